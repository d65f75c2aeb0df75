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
from tests.runtime.clips import picture
from tests.stand_ins.graphs import onnx_model
from tests.stand_ins.model import MODEL, WINDOW, like, narrow
from tests.stand_ins.sets import ONNX, build, source_of
from v2v.core.components import Component, Tensor, Window, components, window_for
from v2v.core.configs import MODELS, ModelConfig
from v2v.core.errors import BuildError, EngineError, MachineError
from v2v.core.samples import Arrays, relative_error, sample_inputs
from v2v.device import open_device
from v2v.engine.backend import BuildOptions, backend
from v2v.engine.cutting import Part, split
from v2v.engine.onnxruntime.backend import OnnxRuntimeEngine
from v2v.engine.tensorrt.backend import TensorRTBackend
from v2v.engine.tensorrt.runner import PlanRecord, SharingPlans, record_path
from v2v.engine.verify import run_once, verify_engine_set
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.diffusion.settings import Settings

SHARED = BuildOptions("fp16", "cuda", {"shared": "yes"})
UNET = components(MODEL, WINDOW, "fp32")["unet"]


def stand_in(folder: Path, component: Component, model: ModelConfig = MODEL) -> Path:
    path = folder / f"{component.name}.onnx"
    onnx.save(onnx_model(component, model), path)
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
    # ONNX Runtime joins other operations where a graph ends; none is left out.
    assert relative_error(halves["velocity"], whole["velocity"]) < 1e-6
    return shared, rest


@pytest.mark.parametrize("name", ["star-light", "venhancer"])
def test_halves_of_a_steered_graph_compute_what_the_whole_does(tmp_path: Path, name: str) -> None:
    model = like(name)
    unet = components(model, WINDOW, "fp32")["unet"]
    shared, rest = check_halves(unet, stand_in(tmp_path, unet, model))
    steering = {tensor.name for tensor in unet.inputs} - {"latents", "timestep", "context"}
    assert steering <= {tensor.name for tensor in shared.component.inputs}
    assert "context" in {tensor.name for tensor in rest.component.inputs}


def test_halves_of_a_graph_compute_what_the_whole_does(tmp_path: Path) -> None:
    shared, rest = check_halves(UNET, stand_in(tmp_path, UNET))
    handed = {tensor.name for tensor in shared.component.outputs}
    assert handed == {"own", "mean", "late"}
    assert {tensor.name for tensor in rest.component.inputs} == {"context", *handed}
    assert rest.component.outputs == UNET.outputs


NARROW = [
    (MODELS["small"], window_for(MODELS["small"], *SMALL_WINDOW)),
    *((narrow(name), window_for(narrow(name), (64, 48), 4)) for name in ("star-light", "venhancer")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "window"), NARROW, ids=[model.name for model, _ in NARROW])
def test_halves_of_real_unets_share_weights_and_compute_the_same(
    tmp_path: Path, model: ModelConfig, window: Window
) -> None:
    from v2v.export.graphs import write_graph
    from v2v.export.weights import load_weights

    path = write_graph("unet", model, load_weights("random:0", model), window, "fp32", tmp_path)
    shared, rest = check_halves(components(model, window, "fp32")["unet"], path)
    # Time embeddings, and blocks up to the first attention to a prompt; of a control branch too.
    assert len(shared.component.outputs) > 5
    if model.unet.control != "none":
        assert "hint" in {tensor.name for tensor in shared.component.inputs}
        assert "hint" not in {tensor.name for tensor in rest.component.inputs}
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["star-light", "venhancer"])
def test_halves_of_steered_unets_become_plans_with_all_their_attentions(
    tensorrt: ModuleType, tmp_path: Path, name: str
) -> None:
    from v2v.export.graphs import write_graph
    from v2v.export.weights import load_weights

    model = replace(narrow(name), unet=replace(narrow(name).unet, attention=(True, True)))
    window = window_for(model, (64, 48), 4)
    path = write_graph("unet", model, load_weights("random:0", model), window, "fp16", tmp_path)
    source = source_of(components(model, window, "fp16")["unet"], path, model, window)
    made = TensorRTBackend().build(source, tmp_path, SHARED, lambda *_: None)
    layers = [PlanRecord.read(record_path(plan)).layers for plan in made.files[::2]]
    attentions = [
        sum(number for kind, number in each.items() if kind.startswith("ATTENTION_OUTPUT")) for each in layers
    ]
    nodes = [node.op_type for node in onnx.load(str(path), load_external_data=False).graph.node]
    assert sum(attentions) == nodes.count("Attention")
    # Before the prompt: two over frames in the stem and one over positions, of the UNet and of the branch.
    assert attentions[1] == 2 * 3


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
    return SharingPlans(whole, shared, rest), shared, rest, freed  # type: ignore[arg-type]


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
        SharingPlans(engine.component, shared, rest)
    assert shared.closed and rest.closed


# ONNX Runtime -----------------------------------------------------------------------------------------------

FOR_CPU = BuildOptions("fp32", "cpu", {"shared": "yes"})


@pytest.mark.parametrize(
    "model", [MODEL, like("star-light"), like("venhancer")], ids=lambda model: model.name
)
def test_onnx_runtime_runs_what_no_prompt_changes_once(
    tmp_path: Path, model: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = components(model, WINDOW, "fp32")["unet"]
    runtime = backend("onnxruntime")
    (tmp_path / "set").mkdir()
    source = source_of(unet, stand_in(tmp_path, unet, model), model, WINDOW)
    made = runtime.build(source, tmp_path / "set", FOR_CPU, lambda *_: None)
    assert [file.name for file in made.files] == ["unet_rest.onnx", "unet_shared.onnx"]
    whole, halves = (runtime.load(unet, files, "cpu") for files in ([tmp_path / "unet.onnx"], made.files))
    inputs = sample_inputs(unet, 1)
    common = {name: array for name, array in inputs.items() if name != "context"}
    prompts, expected = [], []
    for share in (1.0, -0.5):
        prompt = {"context": np.float32(share) * inputs["context"]}
        prompts.append((prompt, {"velocity": np.empty(unet.outputs[0].shape, np.float32)}))
        expected.append(run_once(whole, common | prompt, open_device("cpu"))["velocity"])
    ran: list[str] = []
    run_one = OnnxRuntimeEngine.run

    def noting(engine: OnnxRuntimeEngine, *arrays: Any) -> None:
        ran.append("rest" if "context" in {tensor.name for tensor in engine.component.inputs} else "shared")
        run_one(engine, *arrays)

    monkeypatch.setattr(OnnxRuntimeEngine, "run", noting)
    halves.run_prompts(common, prompts)
    assert ran == ["shared", "rest", "rest"]
    for (_, found), one in zip(prompts, expected, strict=True):
        assert relative_error(found["velocity"], one) < 1e-6
    halves.close()
    with pytest.raises(EngineError, match="closed"):
        halves.run_prompts(common, prompts)


def test_a_set_of_halves_makes_the_same_film(tmp_path: Path) -> None:
    frames = [picture(n) for n in range(9)]
    films = []
    for folder, options in (("whole", BuildOptions()), ("halves", FOR_CPU)):
        built = build(
            tmp_path / folder, backend="onnxruntime", exporter=ONNX, model=like("venhancer"), options=options
        ).engine_set
        assert [one.error for one in verify_engine_set(built, "cpu")] == [None] * 4
        with VideoToVideo.load(built) as v2v:
            films.append(np.stack(list(v2v(frames, Settings(steps=3, interpolate=2)))).astype(int))
    assert np.abs(films[0] - films[1]).max() <= 1


def test_halves_of_another_unet_are_refused(tmp_path: Path) -> None:
    unet = components(MODEL, WINDOW, "fp32")["unet"]
    shared, rest = split(unet, stand_in(tmp_path, unet))
    steered = components(like("star-light"), WINDOW, "fp32")["unet"]
    with pytest.raises(EngineError, match="not the halves of the unet expected"):
        backend("onnxruntime").load(steered, [rest.path, shared.path], "cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (BuildOptions("fp16", "cuda", {"shared": "yes"}), "cuts graphs for --device cpu alone"),
        (BuildOptions("fp32", "cpu", {"shared": "maybe"}), "shared=maybe must be yes or no"),
    ],
)
def test_onnx_runtime_s_option_is_checked(options: BuildOptions, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        backend("onnxruntime").facts(options)
    assert backend("onnxruntime").facts(FOR_CPU)["minimum"].keys() == {"cpu"}
