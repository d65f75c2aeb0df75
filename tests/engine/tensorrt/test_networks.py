"""The exported FP16 graphs on NVIDIA's own compiler: they build, with the layers and in the memory that were meant."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.conftest import SMALL_WINDOW
from tests.engine.tensorrt import test_fp8
from tests.stand_ins.sets import source_of
from v2v.core.components import (
    COMPONENTS,
    Component,
    ComponentName,
    Precision,
    Window,
    components,
    window_for,
)
from v2v.core.configs import MODELS, AutoencoderConfig, ModelConfig, TextEncoderConfig
from v2v.engine.backend import BuildOptions
from v2v.engine.tensorrt.backend import TensorRTBackend
from v2v.engine.tensorrt.doublings import double_at_once
from v2v.engine.tensorrt.library import Library
from v2v.engine.tensorrt.runner import PlanRecord
from v2v.export import graphs
from v2v.export.ranges import Rehearsal
from v2v.export.weights import load_weights

FP16 = BuildOptions(precision="fp16", device="cuda")
DATA = Path(__file__).parents[2] / "data"
MEMORY = {
    "ms-vid2vid-xl": DATA / "tensorrt_memory.json",
    "ms-image2video": DATA / "tensorrt_memory_first_stage.json",
}
GB = 10**9


def build(component: Component, graph: Path, folder: Path) -> PlanRecord:
    """Compile, and return what the record says; the plan itself goes, it may have gigabytes."""
    plan, record = TensorRTBackend().build(source_of(component, graph), folder, FP16, lambda *_: None).files
    plan.unlink()
    return PlanRecord.read(record)


def count(record: PlanRecord, kind: str, dtype: str | None = None) -> int:
    """Layers of a type, and of an output type if given."""
    return sum(
        number
        for name, number in record.layers.items()
        if name.split()[0] == kind and dtype in (None, name.split()[1])
    )


def check_layers(record: PlanRecord, operators: dict[str, int]) -> None:
    """Attention is fused, norms are computed in FP32, and the heavy work in FP16."""
    assert count(record, "ATTENTION_OUTPUT") == count(record, "ATTENTION_OUTPUT", "HALF")
    assert count(record, "ATTENTION_OUTPUT") == operators.get("Attention", 0)
    norms = operators.get("GroupNormalization", 0) + operators.get("LayerNormalization", 0)
    assert count(record, "NORMALIZATION", "FLOAT") == count(record, "NORMALIZATION") == norms
    assert count(record, "SOFTMAX", "HALF") == 0
    for heavy in ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY"):
        assert count(record, heavy, "FLOAT") == 0
    assert count(record, "DECONVOLUTION", "HALF") == operators.get("ConvTranspose", 0)
    assert count(record, "RESIZE") == operators.get("Resize", 0)
    assert count(record, "CONVOLUTION", "HALF") == operators.get("Conv", 0)


def operators(graph: Path) -> dict[str, int]:
    """How many nodes of each operator a graph has, with its doublings as they are compiled."""
    import onnx

    found: dict[str, int] = {}
    doubled = graph.with_name("doubled.onnx")
    double_at_once(graph, doubled)
    for node in onnx.load(str(doubled), load_external_data=False).graph.node:
        found[node.op_type] = found.get(node.op_type, 0) + 1
    return found


def export_and_build(
    name: ComponentName, model: ModelConfig, window: Window, folder: Path
) -> tuple[PlanRecord, dict[str, int]]:
    """The record of a plan and the operators of its graph."""
    graph = graphs.export_component(name, model, load_weights("random:0", model), window, "fp16", folder)
    component = components(model, window, "fp16", reuse=name not in COMPONENTS)[name]
    return build(component, graph.path, folder), operators(graph.path)


@pytest.mark.parametrize(
    "name",
    [
        *("text_encoder", "vae_encoder", "vae_decoder"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("unet", "unet_outer")),
    ],
)
def test_the_small_graphs_build_with_the_layers_that_were_meant(
    tensorrt: ModuleType, tmp_path: Path, name: ComponentName
) -> None:
    model = MODELS["small"]
    record, nodes = export_and_build(name, model, window_for(model, *SMALL_WINDOW), tmp_path)
    check_layers(record, nodes)
    assert record.scratch_bytes and record.weight_bytes
    assert (count(record, "ATTENTION_OUTPUT") > 0) is (name in ("text_encoder", "unet"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae_encoder", "vae_decoder"])
def test_the_reference_autoencoder_attends_without_iattention_and_norms_in_fp32(
    tensorrt: ModuleType, tmp_path: Path, name: ComponentName
) -> None:
    """The reference's layers in a quarter of its width; its one head of 512 has no fused kernel."""
    model = ModelConfig("narrow", autoencoder=AutoencoderConfig(width=32))
    record, nodes = export_and_build(name, model, window_for(model, (64, 80), 1), tmp_path)
    check_layers(record, nodes)
    assert count(record, "ATTENTION_OUTPUT") == 0
    assert count(record, "SOFTMAX", "FLOAT") == 1
    assert count(record, "NORMALIZATION", "FLOAT") > 20


@pytest.mark.slow
def test_the_reference_autoencoder_in_fp32_is_compiled_for_all_but_turing(
    tensorrt_rtx: ModuleType, tmp_path: Path
) -> None:
    """Its attention is two products of matrices, which TensorRT for RTX has no FP32 kernels for on Turing."""
    model = ModelConfig("narrow", autoencoder=AutoencoderConfig(width=32))
    window = window_for(model, (64, 80), 1)
    graph = graphs.export_component(
        "vae_decoder", model, load_weights("random:0", model), window, "fp32", tmp_path
    )
    component = components(model, window, "fp32")["vae_decoder"]
    wide = BuildOptions("fp32", "cuda")
    plan, record = (
        TensorRTBackend().build(source_of(component, graph.path), tmp_path, wide, lambda *_: None).files
    )
    assert plan.stat().st_size > 0
    assert count(PlanRecord.read(record), "CONVOLUTION", "FLOAT") > 20
    mixed = BuildOptions("fp16", "cuda", mixed=(("vae_decoder", "fp32"),))
    capabilities = [TensorRTBackend().facts(each)["capabilities"] for each in (FP16, mixed)]
    assert "7.5" in capabilities[0] and capabilities[1] == [each for each in capabilities[0] if each != "7.5"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "unet_outer", "vae_decoder"])
@pytest.mark.parametrize("row", ["star-light", "venhancer"])
def test_control_branches_gates_and_decoders_of_clips_build(
    tensorrt: ModuleType, tmp_path: Path, name: ComponentName, row: str
) -> None:
    """The layers of STAR and VEnhancer in a tenth of their width."""
    published = MODELS[row]
    narrow = {"width": 32, "multipliers": (1, 2), "blocks": 1, "head_size": 16, "attention": (True, True)}
    model = ModelConfig(
        "narrow",
        unet=replace(published.unet, **narrow, context_width=64),
        autoencoder=replace(published.autoencoder, width=32),
        text_encoder=TextEncoderConfig(width=64, heads=2, layers=2),
    )
    record, nodes = export_and_build(name, model, window_for(model, (128, 80), 5), tmp_path)
    check_layers(record, nodes)


# Full size ------------------------------------------------------------------------------------------------------

ATTENTIONS = {"text_encoder": 23, "image_encoder": 32, "vae_encoder": 0, "unet": 66, "vae_decoder": 0}
"""By the references: 23 text blocks, 32 of pictures; 16 spatial and 17 temporal transformers, two attentions each."""


@pytest.fixture
def full_size(tmp_path: Path) -> Iterator[Any]:
    """Makes full-size graphs with random weights, and takes them away again."""
    import onnx_ir as ir

    generator = np.random.default_rng(0)

    def values(value: ir.Value) -> ir.LazyTensor:
        """Weights of one tensor, drawn when they are written; equal ones would be stored once."""
        assert value.dtype is not None and value.shape is not None
        shape = tuple(int(n) for n in value.shape)
        kind = value.dtype.numpy()

        def draw() -> ir.TensorProtocol:
            return ir.tensor(
                (generator.standard_normal(shape, np.float32) * 0.02).astype(kind), name=value.name
            )

        return ir.LazyTensor(draw, dtype=value.dtype, shape=value.shape, name=value.name)

    def make(name: ComponentName, model: ModelConfig, window: Window, precision: Precision = "fp16") -> Path:
        graph = graphs.trace(name, model, window, precision)
        for value in graph.graph.initializers.values():
            if value.const_value is None:
                value.const_value = values(value)
        path = tmp_path / f"{name}.onnx"
        ir.save(graph, path, external_data=f"{name}.onnx.data")
        return path

    yield make
    for file in tmp_path.glob("*.onnx*"):
        file.unlink()


@pytest.mark.full_size
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("model", [MODELS[name] for name in MEMORY], ids=[*MEMORY])
def test_the_full_size_set_builds_and_fits_a_12_gb_card(
    tensorrt: ModuleType, tmp_path: Path, full_size: Any, model: ModelConfig
) -> None:
    """Sizes are compared with the recorded ones; ``V2V_RECORD_MEMORY=1`` records them anew."""
    if (memory := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) < 15 * GB:
        pytest.skip(f"compiling at full size takes 12 GB of memory, here are {memory / GB:.0f} in all")
    window = window_for(model)
    found: dict[str, dict[str, int]] = {}
    for name, component in components(model, window, "fp16").items():
        graph = full_size(name, model, window)
        record = build(component, graph, tmp_path)
        check_layers(record, operators(graph))
        assert count(record, "ATTENTION_OUTPUT") == ATTENTIONS[name]
        assert record.scratch_bytes is not None and record.weight_bytes is not None
        found[name] = {"activations": record.scratch_bytes, "weights": record.weight_bytes}
        for file in tmp_path.glob("*.onnx*"):
            file.unlink()
    weights = sum(sizes["weights"] for sizes in found.values())
    activations = max(sizes["activations"] for sizes in found.values())  # the engines share them
    assert weights + activations < 11 * GB
    if os.environ.get("V2V_RECORD_MEMORY"):
        text = {"window": str(window), "compiler": TensorRTBackend().version, "bytes": found}
        MEMORY[model.name].write_text(json.dumps(text, indent=2) + "\n")
    recorded = json.loads(MEMORY[model.name].read_text())["bytes"]
    for name, sizes in found.items():
        for kind, size in sizes.items():
            assert size == pytest.approx(recorded[name][kind], rel=0.02), (name, kind)


class Variant(NamedTuple):
    """A full-size network in another form than in the sets above, and what it is compiled for."""

    component: ComponentName
    precision: Precision = "fp16"
    extra: Mapping[str, str] = {}
    model: str = "ms-vid2vid-xl"
    capability: tuple[int, int] | None = None  # None: all, which above is left to the compiler


VARIANTS = {
    "vae_encoder in FP32": Variant("vae_encoder", "fp32"),
    "vae_decoder in FP32": Variant("vae_decoder", "fp32"),
    "unet with weight_streaming=yes": Variant("unet", extra={"weight_streaming": "yes"}),
    "unet with fp8=yes": Variant("unet", extra={"fp8": "yes"}),
    "unet": Variant("unet"),
    "unet of star-light for 8.9": Variant("unet", model="star-light", capability=(8, 9)),
}


def rehearsal_of(graph: Path, folder: Path) -> Rehearsal:
    """A rehearsal with small numbers for every product of ``graph``, whose weights are none that anything computes."""
    import onnx

    weights = onnx.load(graph, load_external_data=False).graph.initializer
    (folder / "rehearsal").mkdir()
    toy = test_fp8.toy(folder / "rehearsal")
    inputs = test_fp8.drawn()
    runs = [(inputs, test_fp8.run(test_fp8.TOY, toy, inputs))]
    return Rehearsal(test_fp8.TOY, toy, runs, {weight.name: 8.0 for weight in weights} | test_fp8.SEEN)


@pytest.mark.full_size
@pytest.mark.timeout(1500)
@pytest.mark.skipif(
    not os.environ.get("V2V_REHEARSE"), reason="a quarter of an hour of compiling: set V2V_REHEARSE=1"
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_other_forms_of_the_full_size_networks_build(
    tensorrt_rtx: ModuleType,
    tmp_path: Path,
    full_size: Any,
    variant: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sizes are compared with the recorded ones; ``V2V_RECORD_MEMORY=1`` records them anew."""
    name, precision, extra, row, capability = VARIANTS[variant]
    model = MODELS[row]
    needed = 12 if model.unet.control == "none" else 17
    if (memory := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) < (needed + 3) * GB:
        pytest.skip(f"compiling at full size takes {needed} GB of memory, here are {memory / GB:.0f} in all")
    window = window_for(model)
    if capability is not None:
        monkeypatch.setattr(Library, "capabilities", (capability,))
    graph = full_size(name, model, window, precision)
    source = source_of(components(model, window, precision)[name], graph, model, window)
    if "fp8" in extra:
        source = replace(source, rehearsal=lambda: rehearsal_of(graph, tmp_path))
    options = BuildOptions(precision, "cuda", extra)
    files = TensorRTBackend().build(source, tmp_path, options, lambda *_: None).files
    found = {}
    for plan, record in zip(files[::2], files[1::2], strict=True):
        plan.unlink()
        read = PlanRecord.read(record)
        found[plan.stem] = {"activations": read.scratch_bytes, "weights": read.weight_bytes}
    kept = DATA / "tensorrt_memory_variants.json"
    recorded = json.loads(kept.read_text())
    if os.environ.get("V2V_RECORD_MEMORY"):
        recorded[variant] = found
        kept.write_text(json.dumps(recorded, indent=2) + "\n")
    for plan_name, sizes in found.items():
        for kind, size in sizes.items():
            assert size == pytest.approx(recorded[variant][plan_name][kind], rel=0.02), (plan_name, kind)
