"""The graphs that come with the package."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from v2v.core.components import window_for
from v2v.core.configs import MODELS
from v2v.core.errors import BuildError
from v2v.engine.choose import default_weights
from v2v.export import packaged
from v2v.export.weights import load_weights

SMALL = MODELS["small"]
WEIGHTS = default_weights(SMALL)


def test_they_belong_to_the_model_window_and_weights_of_this_version() -> None:
    # If this fails, run `python -m training.ship export/data/small.safetensors` after changing the model or graphs.
    assert packaged.fits(SMALL, WEIGHTS, window_for(SMALL), "fp32")


def test_anything_else_is_exported_instead() -> None:
    window = window_for(SMALL)
    assert not packaged.fits(SMALL, "random:0", window, "fp32")
    assert not packaged.fits(SMALL, WEIGHTS, replace(window, frames=8), "fp32")
    assert not packaged.fits(SMALL, WEIGHTS, window, "fp16")
    assert not packaged.fits(replace(SMALL, latent_scale=1.0), WEIGHTS, window, "fp32")


def test_weights_are_identified_as_an_export_identifies_them() -> None:
    exported = load_weights(WEIGHTS, SMALL)
    ours = packaged.load_weights(WEIGHTS, SMALL)
    assert (ours.identity, ours.kind) == (exported.identity, exported.kind)


def test_a_truncated_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    path.write_bytes(Path(WEIGHTS).read_bytes()[:1000])
    weights = packaged.PackagedWeights(str(path), "0", SMALL)
    with pytest.raises(BuildError, match="cannot be read as safetensors"):
        packaged.export_component("unet", SMALL, weights, window_for(SMALL), "fp32", tmp_path)


def test_an_engine_set_is_made_without_pytorch_and_onnx(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnx_ir', 'onnxscript'):\n"
        "    sys.modules[name] = None\n"
        "from v2v.engine.cli import main\n"
        f"sys.argv = ['v2v-build-engines', 'small', '--device', 'cpu', '-o', {str(tmp_path / 'set')!r}]\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "set" / "manifest.json").is_file()
