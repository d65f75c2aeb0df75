"""The measurement of FP8, on the narrow network and the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from v2v.benchmarks.studies.fp8 import measure
from v2v.engine.inductor.fused.fp8 import PARTS


def test_more_in_fp8_is_less_exact_and_everything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "fp8.json"
    measure("narrow", "cpu", path, ("spread",))
    found = json.loads(path.read_text())
    records = list(found["evaluation"].values())
    assert len(records) == 1 + len(PARTS)
    errors = [record["error, spread weights"] for record in records]
    assert errors[0] < 1e-4
    assert 5e-3 < errors[1] < errors[-1] < 0.3
    assert all(record["milliseconds"] > 0 for record in records)
    stages = list(found["stages, milliseconds"].values())
    assert list(stages[0]) == list(stages[-1])
    assert {kind.rpartition(",")[0] for kind in stages[0]} == {
        "norm, 3x3 convolution",
        "norm, temporal convolution",
        "norm, feed-forward network",
        "product behind a norm",
    }
