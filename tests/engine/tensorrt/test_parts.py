"""A UNet in two: the cut changes no number, both halves compile, and the first runs once for all prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from tests.conftest import SMALL_WINDOW
from tests.stand_ins.graphs import onnx_model
from tests.stand_ins.model import MODEL, WINDOW
from tests.stand_ins.sets import source_of
from v2v.core.components import Component, Tensor, components, window_for
from v2v.core.configs import MODELS
from v2v.core.errors import BuildError, MachineError
from v2v.core.samples import Arrays, sample_inputs
from v2v.device import open_device
from v2v.engine.backend import BuildOptions, backend
from v2v.engine.tensorrt.backend import TensorRTBackend
from v2v.engine.tensorrt.parts import Part, split
from v2v.engine.tensorrt.runner import PlanRecord, SharingEngine, record_path
from v2v.engine.verify import run_once

SHARED = BuildOptions("fp16", "cuda", {"shared": "yes"})
UNET = components(MODEL, WINDOW, "fp32")["unet"]


def stand_in(folder: Path, component: Component) -> Path:
    path = folder / f"{component.name}.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(onnx_model(component, MODEL)), path)
    return path


def run(part: Part, inputs: Arrays) -> Arrays:
    """By ONNX Runtime."""
    engine = backend("onnxruntime").load(part.component, [part.path], "cpu")
    return run_once(
        engine, {tensor.name: inputs[tensor.name] for tensor in part.component.inputs}, open_device("cpu")
    )


def check_halves(component: Component, path: Path) -> tuple[Part, Part]:
    shared, rest = split(component, path)
    assert "context" not in [tensor.name for tensor in shared.component.inputs]
    inputs = sample_inputs(component, 1)
    whole = run(Part(component, path), inputs)
    halves = run(rest, inputs | run(shared, inputs))
    np.testing.assert_array_equal(halves["velocity"], whole["velocity"])
    return shared, rest


def test_halves_of_a_graph_compute_what_the_whole_does(tmp_path: Path) -> None:
    shared, rest = check_halves(UNET, stand_in(tmp_path, UNET))
    handed = {tensor.name for tensor in shared.component.outputs}
    assert handed == {"own", "mean", "late"}
    assert {tensor.name for tensor in rest.component.inputs} == {"context", *handed}
    assert rest.component.outputs == UNET.outputs


@pytest.mark.slow
def test_halves_of_the_small_unet_share_its_weights_and_compute_the_same(tmp_path: Path) -> None:
    from v2v.export.graphs import write_graph
    from v2v.export.weights import load_weights

    model = MODELS["small"]
    window = window_for(model, *SMALL_WINDOW)
    path = write_graph("unet", model, load_weights("random:0", model), window, "fp32", tmp_path)
    shared, _ = check_halves(components(model, window, "fp32")["unet"], path)
    # Its time embedding, and blocks up to the first attention to a prompt, on its coarsest level.
    assert len(shared.component.outputs) > 5
    assert (
        sum(file.stat().st_size for file in tmp_path.glob("*.onnx"))
        < path.with_name("unet.onnx.data").stat().st_size
    )


def test_what_has_no_prompt_cannot_be_cut(tmp_path: Path) -> None:
    component = components(MODEL, WINDOW, "fp32")["vae_decoder"]
    with pytest.raises(BuildError, match="vae_decoder has no part that no prompt changes"):
        split(component, stand_in(tmp_path, component))


def test_both_halves_become_plans_whose_records_say_what_they_take(
    tensorrt: ModuleType, tmp_path: Path
) -> None:
    unet = components(MODEL, WINDOW, "fp16")["unet"]
    made = TensorRTBackend().build(
        source_of(unet, stand_in(tmp_path, unet)), tmp_path, SHARED, lambda *_: None
    )
    assert [file.name for file in made.files] == [
        "unet.plan",
        "unet.json",
        "unet_shared.plan",
        "unet_shared.json",
    ]
    rest, shared = (PlanRecord.read(record_path(plan)).component for plan in made.files[::2])
    assert rest is not None and shared is not None
    assert set(shared.outputs) <= set(rest.inputs)
    encoder = components(MODEL, WINDOW, "fp16")["vae_encoder"]
    source = source_of(encoder, stand_in(tmp_path, encoder))
    assert len(TensorRTBackend().build(source, tmp_path, SHARED, lambda *_: None).files) == 2
    both = replace(SHARED, extra={"shared": "yes", "plans": "folder"})
    with pytest.raises(BuildError, match="option shared=yes makes graphs of its own"):
        TensorRTBackend().facts(both)


class Noting:
    """An engine that notes which arrays it is given."""

    def __init__(self, component: Component) -> None:
        self.component = component
        self.runs: list[tuple[dict[str, int], dict[str, int], int]] = []
        self.closed = False

    def run(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], stream: int = 0) -> None:
        pointers = [
            {tensor.name: arrays[tensor.name].pointer for tensor in tensors}
            for tensors, arrays in ((self.component.inputs, inputs), (self.component.outputs, outputs))
        ]
        self.runs.append((pointers[0], pointers[1], stream))

    def close(self) -> None:
        self.closed = True


class At:
    def __init__(self, pointer: int) -> None:
        self.pointer = pointer


LATENTS, CONTEXT = Tensor("latents", "float16", (8,)), Tensor("context", "float16", (4,))
STEM, VELOCITY = Tensor("stem", "float16", (16,)), Tensor("velocity", "float16", (8,))


@pytest.fixture
def halves(monkeypatch: pytest.MonkeyPatch) -> Any:
    driver = pytest.importorskip("cuda.bindings.driver")
    monkeypatch.setattr(driver, "cuMemAlloc", lambda size: (0, 4096 + size))
    freed: list[int] = []
    monkeypatch.setattr(driver, "cuMemFree", lambda pointer: freed.append(pointer) or (0,))
    shared = Noting(Component("unet", (LATENTS,), (STEM,)))
    rest = Noting(Component("unet", (CONTEXT, STEM), (VELOCITY,)))
    whole = Component("unet", (LATENTS, CONTEXT), (VELOCITY,))
    return SharingEngine(whole, shared, rest), shared, rest, freed  # type: ignore[arg-type]


def test_what_no_prompt_changes_runs_once_and_is_handed_to_every_prompt(halves: Any) -> None:
    engine, shared, rest, freed = halves
    prompts = [({"context": At(2)}, {"velocity": At(3)}), ({"context": At(4)}, {"velocity": At(5)})]
    engine.run_prompts({"latents": At(1)}, prompts, 7)
    stem = 4096 + 32
    assert shared.runs == [({"latents": 1}, {"stem": stem}, 7)]
    assert rest.runs == [
        ({"context": 2, "stem": stem}, {"velocity": 3}, 7),
        ({"context": 4, "stem": stem}, {"velocity": 5}, 7),
    ]
    engine.run({"latents": At(1), "context": At(2)}, {"velocity": At(3)})
    assert len(shared.runs) == 2 and len(rest.runs) == 3
    engine.close()
    engine.close()
    assert shared.closed and rest.closed and freed == [stem]


def test_too_little_memory_for_what_is_handed_over_is_told(
    halves: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cuda.bindings import driver

    engine, shared, rest, _ = halves
    monkeypatch.setattr(driver, "cuMemAlloc", lambda size: (2, 0))
    with pytest.raises(MachineError, match="build without --option shared=yes"):
        SharingEngine(engine.component, shared, rest)
    assert shared.closed and rest.closed
