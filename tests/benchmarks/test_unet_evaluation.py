"""What one process measures of the UNet, rehearsed without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from v2v.benchmarks import unet_evaluation


def test_versions_are_timed_and_checked_in_one_process(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    unet_evaluation.main(["--size", "narrow", "--device", "cpu", "-o", str(path)])
    found = json.loads(path.read_text())
    versions = {
        "reference-style autocast, eager",
        "fused, eager",
        "fused, general kernels, eager",
        "fused, eager, again",
    }
    assert set(found["milliseconds"]) == set(found["relative error against FP32"]) == versions
    assert all(time > 0 for time in found["milliseconds"].values())
    assert found["relative error against FP32"]["reference-style autocast, eager"] == 0  # FP32 here
    assert 0 < found["relative error against FP32"]["fused, eager"] < 1e-5


def test_wrong_numbers_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = unet_evaluation.FusedUNet.forward
    monkeypatch.setattr(unet_evaluation.FusedUNet, "forward", lambda *inputs: 1.01 * forward(*inputs))
    found = unet_evaluation.measure("narrow", "cpu", tmp_path / "evaluation.json")
    assert found["relative error against FP32"]["fused, eager"] == pytest.approx(0.01, rel=1e-3)
