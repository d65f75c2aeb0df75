"""ONNX Runtime's CUDA provider on a GPU: the rewritten UNet at full size, as fast and as exact as promised."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("torch")

from v2v.benchmarks.studies import onnxruntime_evaluation
from v2v.engine.onnxruntime.backend import OnnxRuntimeBackend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.full_size,
    pytest.mark.skipif(
        "cuda" not in OnnxRuntimeBackend().devices, reason="needs a GPU and the onnxruntime-gpu wheel"
    ),
]


def test_the_full_unet_keeps_its_promises(tmp_path: Path) -> None:
    """$V2V_RESULTS, a folder, keeps what was measured."""
    folder = Path(os.environ.get("V2V_RESULTS", tmp_path))
    found = onnxruntime_evaluation.evaluate(
        "full", "cuda", folder / "onnxruntime.json", [], as_exported=False
    )["versions"]["rewritten"]
    shown = json.dumps({key: found[key] for key in ("milliseconds", "GiB in use")})
    assert found["relative error against FP32"] < 5e-3
    assert found["milliseconds"] <= 800, shown
    assert found["GiB in use"] < 16, shown
    assert not [kernel for kernel in found["kernels"] if "Memcpy DtoH" in kernel["name"]]
