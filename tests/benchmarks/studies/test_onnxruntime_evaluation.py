"""What one process measures of the UNet through ONNX Runtime, rehearsed without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from v2v.benchmarks.studies import onnxruntime_evaluation


@pytest.mark.slow
def test_it_times_and_checks_each_setting(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    onnxruntime_evaluation.main(
        ["--size", "narrow", "--device", "cpu", "--setting", "fuse_conv_bias=1", "-o", str(path)]
    )
    found = json.loads(path.read_text())
    assert set(found["versions"]) == {"rewritten", "rewritten, fuse_conv_bias=1"}
    for version in found["versions"].values():
        assert version["milliseconds"] > 0
        assert 0 < version["relative error against FP32"] < 1e-4
        assert version["operations"]["Attention"] > 0  # as exported: the CPU has no other graph
