"""``v2v-bench SET --layers``: what each layer of an engine set takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.stand_ins.sets import ONNX, build
from v2v.benchmarks.cli import show_layers
from v2v.benchmarks.options import BenchOptions
from v2v.core.components import COMPONENTS
from v2v.core.errors import UsageError
from v2v.engine.store import EngineSet


@pytest.fixture
def engine_set(tmp_path: Path) -> EngineSet:
    pytest.importorskip("onnx")
    return build(tmp_path / "set", backend="onnxruntime", exporter=ONNX).engine_set


def test_every_component_has_a_table(engine_set: EngineSet, capsys: pytest.CaptureFixture[str]) -> None:
    sets = BenchOptions(engines=[engine_set.path], layers=True).sets_for_layers()
    assert sets == [(engine_set, "cpu")]
    show_layers(sets, False)
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMPONENTS)
    assert "ReduceMean" in shown and "%" in shown


def test_programs_get_all_layers_the_slowest_first(
    engine_set: EngineSet, capsys: pytest.CaptureFixture[str]
) -> None:
    show_layers([(engine_set, "cpu")], True)
    document = json.loads(capsys.readouterr().out)[engine_set.name]
    assert set(document) == set(COMPONENTS)
    for seconds in document.values():
        assert [*seconds.values()] == sorted(seconds.values(), reverse=True)


def test_a_set_must_be_named() -> None:
    with pytest.raises(UsageError, match="--layers needs the folder of an engine set"):
        BenchOptions(layers=True).sets_for_layers()
