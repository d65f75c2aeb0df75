"""``v2v-bench`` on engines of the Inductor backend, as on a GPU: built, loaded, a clip, both baselines.

On a CPU it is a rehearsal of the same commands with a tiny model (``V2V_REHEARSE=1``, minutes of compiling).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from v2v.benchmarks.results import Results
from v2v.core.components import Window
from v2v.core.configs import AutoencoderConfig, ModelConfig, TextEncoderConfig, UNetConfig
from v2v.engine.backend import BuildOptions
from v2v.engine.build import build_engine_set
from v2v.engine.inductor.backend import InductorBackend

MODELS = {
    "cpu": ModelConfig(
        "tiny",
        unet=UNetConfig(width=32, head_size=16, context_width=8, blocks=1),
        autoencoder=AutoencoderConfig(width=32),
        text_encoder=TextEncoderConfig(width=8, heads=2, layers=2),
    ),
    # Wide enough for the fused networks and their kernels.
    "cuda": ModelConfig(
        "narrow", unet=UNetConfig(width=128, multipliers=(1, 2, 4), blocks=1, context_width=1024)
    ),
}


BASELINES = {"cpu": ["eager"], "cuda": ["eager", "compile"]}  # torch.compile takes many minutes on a CPU


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "device",
    [
        pytest.param(
            "cpu",
            marks=pytest.mark.skipif(
                "V2V_REHEARSE" not in os.environ, reason="minutes of compiling: set V2V_REHEARSE=1"
            ),
        ),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ],
)
def test_a_session_has_every_figure(device: str, tmp_path: Path) -> None:
    if device not in InductorBackend().devices:
        pytest.skip(f"Inductor does not run on {device} here")
    model, precision = MODELS[device], "fp16" if device == "cuda" else "fp32"
    levels = len(model.unet.multipliers) - 1
    built = build_engine_set(
        model,
        weights="random:0",
        window=Window(4, 144, 128, factor=model.autoencoder.factor, levels=levels),
        backend_name="inductor",
        options=BuildOptions(precision=precision, device=device),
        output=tmp_path / "set",
    ).engine_set
    arguments = [
        str(built.path),
        "--steps",
        "2",
        "--repeats",
        "2",
        "--sweep",
        "steps",
        "-o",
        str(tmp_path / "out"),
    ]
    for baseline in BASELINES[device]:
        arguments += ["--baseline", baseline]
    done = subprocess.run(
        [sys.executable, "-c", "from v2v.benchmarks.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results = Results.read(tmp_path / "out")
    assert not results.failed
    engines = results.measured[-1]
    assert [m.subject.kind for m in results.measured] == [*BASELINES[device], "engines"]
    for measured in results.measured:
        calls = {stage.name: stage.calls for stage in measured.stages}
        assert calls["VAE encode"] == calls["VAE decode"] == 4
        assert measured.evaluations == calls["UNet evaluation"]
        assert {"video decode", "video encode", "solver"} <= set(calls)
        assert len(measured.run.samples) == 2
        assert 0 < measured.load.median < measured.first_step.median
        assert (measured.gpu_bytes is not None) == (device == "cuda")
    assert engines.subject.backend == "inductor"
    assert engines.build is not None and all(seconds > 0 for seconds in engines.build.compile.values())
    assert [point.value for point in engines.sweeps[0].points] == [1, 2, 4, 8]
