"""What a person and a program are told, what is predicted, and how the command ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from v2v.core.components import window_for
from v2v.core.configs import MODELS
from v2v.core.errors import UsageError, V2VError
from v2v.device.cpu import CpuDevice
from v2v.doctor.checks import Examination, Outcome
from v2v.doctor.cli import report
from v2v.doctor.kernels import compare
from v2v.doctor.options import DoctorOptions
from v2v.doctor.patterns import patterns
from v2v.doctor.predict import Measured, missing, predict, work_of_levels

PASSED = Outcome("environment", "passed", 1.5, {"system": "Linux", "cores": 2})
SKIPPED = Outcome("CUDA kernels", "skipped", reason="there is no NVIDIA GPU here")
FAILED = Outcome(
    "tensorrt: UNet level 1",
    "failed",
    12.0,
    step="replaying two captured bindings",
    reason="it crashed: its process died of SIGSEGV",
    log=("Segmentation fault",),
)


def test_a_failure_ends_the_command_by_its_step_and_all_files_are_written(tmp_path: Path) -> None:
    examination = Examination(100, tmp_path)
    for outcome in (PASSED, SKIPPED, FAILED):
        examination.keep(outcome)
    options = DoctorOptions(json=tmp_path / "d.json", markdown=tmp_path / "d.md")
    with pytest.raises(V2VError, match=r"UNet level 1 failed at the step replaying .*: it crashed.*SIGSEGV"):
        report(examination, options)
    document = json.loads((tmp_path / "d.json").read_text())
    assert not document["passed"]
    assert [check["state"] for check in document["checks"]] == ["passed", "skipped", "failed"]
    text = (tmp_path / "d.md").read_text()
    assert "| environment | passed | 1.5 | Linux; 2 cores |" in text
    assert "Segmentation fault" in text


def test_files_are_refused_before_the_work(tmp_path: Path) -> None:
    there = tmp_path / "there.json"
    there.write_text("mine")
    with pytest.raises(UsageError, match="it is there already; --overwrite"):
        DoctorOptions(json=there).check_files()
    DoctorOptions(json=there, overwrite=True).check_files()
    with pytest.raises(UsageError, match="there is no folder"):
        DoctorOptions(markdown=tmp_path / "no" / "where.md").check_files()


class Wrong(CpuDevice):
    """A device whose guidance is a little off."""

    def guide(self, conditional, unconditional, guidance, rescale, out):  # type: ignore[no-untyped-def]
        super().guide(conditional, unconditional, guidance * 1.01, rescale, out)


def test_an_operation_that_is_not_its_twin_is_named() -> None:
    sizes = (24, 32), (3, 6, 8)
    assert max(compare(CpuDevice(), lambda step: None, *sizes)["differences"].values()) == 0  # type: ignore[arg-type]
    with pytest.raises(V2VError, match="the kernel of guide for float32 differs from its NumPy twin by"):
        compare(Wrong(), lambda step: None, *sizes)  # type: ignore[arg-type]


@pytest.mark.slow
def test_full_size_is_predicted_from_patterns() -> None:
    pytest.importorskip("torch")
    from v2v.export.graphs import work, work_of_blocks

    model, speed = MODELS["ms-vid2vid-xl"], 4e14
    window = window_for(model)
    blocks = work_of_blocks(model, window)
    levels = work_of_levels(model, blocks)
    assert sum(levels.values()) == pytest.approx(work("unet", model, window), rel=1e-3)
    assert [round(amount / 1e12) for amount in levels.values()] == [86, 47, 43, 9]
    measured = []
    for pattern in patterns(model, window):
        exported = {"window": [32, 720, 1280], "work": 1e12, "weight_bytes": 10**8, "export_seconds": 1.0}
        facts = {"compile_seconds": 5.0, "seconds": 1e12 / speed, "scratch_bytes": 10**9}
        measured.append(Measured(pattern, exported, facts))
    found = predict(model, "fp16", measured, lambda step: None)
    assert not isinstance(found, type(None))
    assert found["evaluation_seconds"] == pytest.approx(185.8e12 / speed, rel=0.01)
    assert found["clip_seconds"] == pytest.approx(60 * 185.8e12 / speed + 32 * 13.4e12 / speed, rel=0.01)
    assert 3.6e9 < found["weight_bytes"] < 4.2e9
    assert found["memory_bytes"] == found["weight_bytes"] + 10**9
    assert missing(model, measured) == []
    assert missing(model, measured[1:]) == ["UNet level 1"]


def test_without_a_gpu_only_what_compiles_is_predicted() -> None:
    pytest.importorskip("torch")
    model = MODELS["small"]
    exported = {"window": [16, 360, 640], "work": 1e12, "weight_bytes": 10**8, "export_seconds": 1.0}
    measured = [
        Measured(pattern, exported, {"compile_seconds": 5.0, "scratch_bytes": 1})
        for pattern in patterns(model, window_for(model))
    ]
    found = predict(model, "fp16", measured, lambda step: None)
    assert "clip_seconds" not in found and found["build_seconds"] > 5 * len(measured)


@pytest.mark.slow
def test_the_command_on_a_cpu(tmp_path: Path) -> None:
    command = "from v2v.doctor.start import main; main()"
    options = ["--backend", "onnxruntime", "--time", "400", "--json", "d.json", "--markdown", "d.md"]
    done = subprocess.run(
        [sys.executable, "-c", command, *options], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "d.json").read_text())
    states = {check["name"]: check["state"] for check in document["checks"]}
    assert states["onnxruntime: clip on cpu"] == states["onnxruntime: UNet level 1"] == "passed"
    assert states["onnxruntime: attention with logits of 1e4"] == "passed"
    assert states["onnxruntime: prediction"] == "passed"
    assert "failed" not in states.values()
    assert [*(tmp_path / "store").iterdir()] == []  # nothing big is left
