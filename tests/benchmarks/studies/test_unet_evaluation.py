"""What one process measures of the UNet, rehearsed without a GPU."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from v2v.benchmarks.studies import unet_evaluation


def test_versions_are_timed_and_checked_in_one_process(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    unet_evaluation.main(["--size", "narrow", "--device", "cpu", "-o", str(path)])
    found = json.loads(path.read_text())
    versions = {
        "reference-style autocast, eager",
        "fused, eager",
        unet_evaluation.GUIDED,
        "fused, general kernels, eager",
        "fused, eager, again",
    }
    assert set(found["milliseconds"]) == set(found["relative error against FP32"]) == versions
    assert all(time > 0 for time in found["milliseconds"].values())
    assert found["relative error against FP32"]["reference-style autocast, eager"] == 0  # FP32 here
    assert 0 < found["relative error against FP32"]["fused, eager"] < 1e-5


def test_errors_are_relative_and_show_what_is_not_a_number() -> None:
    expected = torch.randn(1000)
    assert unet_evaluation.tensor_error(1.01 * expected, expected) == pytest.approx(0.01, rel=1e-3)
    expected[7] = torch.nan
    assert math.isinf(unet_evaluation.tensor_error(torch.ones(1000), expected))
