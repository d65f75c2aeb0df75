"""Exported graphs compute what PyTorch computes, or do not appear."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from tests.export import golden
from v2v.core.components import (
    COMPONENTS,
    ComponentName,
    Precision,
    Window,
    component,
    component_names,
    components,
)
from v2v.core.configs import AutoencoderConfig, ModelConfig, TextEncoderConfig, UNetConfig
from v2v.core.errors import BuildError
from v2v.core.samples import relative_error, sample_inputs
from v2v.export import graphs
from v2v.export.graphs import export_component
from v2v.export.weights import METHOD_OF, NETWORK_OF, Network, Weights, load_weights, save_safetensors

TINY = ModelConfig(
    "tiny",
    unet=UNetConfig(
        width=32,
        multipliers=(1, 1),
        blocks=1,
        head_size=16,
        stem_heads=1,
        context_width=32,
        attention=(False, False),
        groups=8,
    ),
    autoencoder=AutoencoderConfig(width=32, multipliers=(1, 2), blocks=1, groups=8),
    text_encoder=TextEncoderConfig(width=32, heads=2, layers=3, vocabulary=100),
)
WINDOW = Window(3, 20, 24, factor=2, levels=1)
EVERY = tuple(dict.fromkeys((*COMPONENTS, *component_names(TINY, reuse=True))))


def run(path: Path, inputs: dict[str, Any]) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, inputs)[0])


def operations(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


@pytest.fixture(scope="module")
def weights() -> Weights:
    return load_weights("random:0", TINY)


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def exported(
    request: pytest.FixtureRequest, weights: Weights, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Precision, dict[ComponentName, graphs.Graph]]:
    precision: Precision = request.param
    folder = tmp_path_factory.mktemp(precision)
    return precision, {
        name: export_component(name, TINY, weights, WINDOW, precision, folder) for name in EVERY
    }


def test_outer_blocks_on_a_step_s_own_features_give_that_step(
    exported: tuple[Precision, dict[ComponentName, graphs.Graph]],
) -> None:
    precision, made = exported
    inputs = sample_inputs(component("unet", TINY, WINDOW, precision), 100)
    full, outer, plain = (
        onnxruntime.InferenceSession(made[name].path, providers=["CPUExecutionProvider"])
        for name in ("unet_full", "unet_outer", "unet")
    )
    velocity, features = full.run(None, inputs)
    tolerance = 1e-5 if precision == "fp32" else 5e-3
    (again,) = outer.run(None, {**inputs, "features": features})
    assert relative_error(again, velocity) < tolerance
    (whole,) = plain.run(None, inputs)
    assert relative_error(whole, velocity) < tolerance
    (other,) = outer.run(None, {**inputs, "features": features[:, ::-1].copy()})
    assert relative_error(other, velocity) > 0.01


# What is exported -------------------------------------------------------------------------------------------


def test_graphs_have_the_described_inputs_and_outputs(
    exported: tuple[Precision, dict[ComponentName, graphs.Graph]],
) -> None:
    precision, made = exported
    for name in EVERY:
        whole = component(name, TINY, WINDOW, precision)
        model = onnx.load(made[name].path, load_external_data=False)
        assert [(i.domain, i.version) for i in model.opset_import] == [("", 23)]
        for found, described in (
            (model.graph.input, whole.inputs),
            (model.graph.output, whole.outputs),
        ):
            assert [value.name for value in found] == [tensor.name for tensor in described]
            for value, tensor in zip(found, described, strict=True):
                kind = value.type.tensor_type
                assert tuple(d.dim_value for d in kind.shape.dim) == tensor.shape
                assert onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type) == tensor.dtype


def test_graphs_agree_with_pytorch(exported: tuple[Precision, dict[ComponentName, graphs.Graph]]) -> None:
    precision, made = exported
    for name, graph in made.items():
        assert 0 < graph.error < {"fp32": 1e-5, "fp16": 5e-3}[precision], name
        assert graph.seconds > 0


def test_a_folder_of_graphs_holds_nothing_else(
    exported: tuple[Precision, dict[ComponentName, graphs.Graph]],
) -> None:
    _, made = exported
    folder = made["unet"].path.parent
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        f"{name}.onnx{suffix}" for name in EVERY for suffix in ("", ".data")
    )


def test_graphs_can_be_moved(
    exported: tuple[Precision, dict[ComponentName, graphs.Graph]], tmp_path: Path
) -> None:
    precision, made = exported
    inputs = sample_inputs(components(TINY, WINDOW, precision)["text_encoder"], 100)
    before = run(made["text_encoder"].path, inputs)
    for file in made["text_encoder"].path.parent.glob("text_encoder*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert np.array_equal(run(tmp_path / "text_encoder.onnx", inputs), before)


def test_weights_keep_their_names_shapes_and_values(
    exported: tuple[Precision, dict[ComponentName, graphs.Graph]], weights: Weights, tmp_path: Path
) -> None:
    precision, made = exported
    [file] = save_safetensors(
        weights, tmp_path / "all.safetensors", dtype=torch.float16 if precision == "fp16" else None
    )
    stored = load_file(file)
    found: set[str] = set()
    for graph in made.values():
        for name, value in ir.load(graph.path).graph.initializers.items():
            if name.partition(".")[0] in NETWORK_OF.values():
                found.add(name)
                assert value.const_value is not None
                assert np.array_equal(value.const_value.numpy(), stored[name].numpy())
    unused = {name for name in stored if ".resblocks.2." in name} | {
        "text_encoder.text_projection",
        "text_encoder.logit_scale",
    }
    assert found == stored.keys() - unused


def test_nothing_tells_where_graphs_were_made(
    exported: tuple[Precision, dict[ComponentName, graphs.Graph]],
) -> None:
    _, made = exported
    for graph in made.values():
        assert str(Path(__file__).parents[2]).encode() not in graph.path.read_bytes()
        assert b"stack_trace" not in graph.path.read_bytes()


def test_attention_is_one_operation_except_in_the_autoencoder(
    exported: tuple[Precision, dict[ComponentName, graphs.Graph]],
) -> None:
    _, made = exported
    # Two for the stem's frames, four (frame, text, frames, frames) for the middle.
    assert operations(made["unet"].path).count("Attention") == 2 + 4
    assert operations(made["text_encoder"].path).count("Attention") == 2
    for name in ("vae_encoder", "vae_decoder"):
        found = operations(made[name].path)
        assert "Attention" not in found
        assert (found.count("MatMul"), found.count("Softmax")) == (2, 1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("text_encoder", {"LayerNormalization", "Attention"}),
        ("vae_decoder", {"GroupNormalization", "Softmax", "Conv"}),
        pytest.param("vae_encoder", {"GroupNormalization", "Softmax", "Conv"}, marks=pytest.mark.slow),
        *(
            pytest.param(
                name, {"GroupNormalization", "LayerNormalization", "Attention"}, marks=pytest.mark.slow
            )
            for name in ("unet", "unet_full", "unet_outer")
        ),
    ],
)
def test_fp16_graphs_compute_norms_and_softmax_in_fp32(
    weights: Weights, tmp_path: Path, name: ComponentName, expected: set[str]
) -> None:
    delicate = {"GroupNormalization", "LayerNormalization", "InstanceNormalization", "Softmax"}
    heavy = {"Conv", "Gemm", "MatMul", "Attention"}
    graph = export_component(name, TINY, weights, WINDOW, "fp16", tmp_path)
    assert 0 < graph.error < 5e-3
    model = onnx.shape_inference.infer_shapes(onnx.load(graph.path))
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    types |= {v.name: v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    types |= {i.name: i.data_type for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in delicate:
            assert {types[name] for name in node.input} == {onnx.TensorProto.FLOAT}, node.name
        if node.op_type in heavy:
            assert {types[name] for name in node.input if name} == {onnx.TensorProto.FLOAT16}, node.name
    assert expected <= {node.op_type for node in model.graph.node}


# Golden numbers ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelConfig, Weights]:
    model = ModelConfig(
        "golden", unet=golden.UNET, autoencoder=golden.AUTOENCODER, text_encoder=golden.TEXT_ENCODER
    )
    names: dict[Network, str] = {
        "unet": "unet_small",
        "autoencoder": "vae_small",
        "text_encoder": "text_small",
    }
    return model, Weights(
        "golden", "trained", "0" * 64, model, lambda network: (golden.weights(names[network]), "golden")
    )


@pytest.mark.slow
def test_unet_graph_gives_the_references_numbers(
    golden_model: tuple[ModelConfig, Weights], tmp_path: Path
) -> None:
    model, weights = golden_model
    model = replace(model, text_encoder=TextEncoderConfig())  # the golden UNet's context is full-size
    cases = golden.cases("unet_small")
    x, t, y = (cases[f"1.{part}"].numpy() for part in "xty")
    window = Window(x.shape[2], 8 * x.shape[3], 8 * x.shape[4])
    graph = export_component("unet", model, weights, window, "fp32", tmp_path)
    found = run(graph.path, {"latents": x, "timestep": t.astype(np.int64), "context": y})
    assert golden.relative_error(found, cases["1.out"]) < 1e-4


@pytest.mark.slow
def test_autoencoder_graphs_give_the_references_numbers(
    golden_model: tuple[ModelConfig, Weights], tmp_path: Path
) -> None:
    model, weights = golden_model
    cases = golden.cases("vae_small")
    window = Window(1, 48, 64, levels=2)
    encoder = export_component("vae_encoder", model, weights, window, "fp32", tmp_path)
    decoder = export_component("vae_decoder", model, weights, window, "fp32", tmp_path)
    moments = run(encoder.path, {"image": cases["0.image"].numpy()})
    image = run(decoder.path, {"latents": cases["0.z"].numpy()})
    assert golden.relative_error(moments, cases["0.moments"]) < 1e-4
    assert golden.relative_error(image, cases["0.decoded"]) < 1e-4


def test_text_encoder_graph_gives_the_references_numbers(
    golden_model: tuple[ModelConfig, Weights], tmp_path: Path
) -> None:
    model, weights = golden_model
    cases = golden.cases("text_small")
    graph = export_component("text_encoder", model, weights, Window(1, 80, 64), "fp32", tmp_path)
    for ids, expected in zip(cases["ids"].numpy(), cases["penultimate"], strict=True):
        assert golden.relative_error(run(graph.path, {"ids": ids[None].astype(np.int64)})[0], expected) < 1e-4


# Refusal ----------------------------------------------------------------------------------------------------


def test_a_graph_past_its_tolerance_is_refused_and_leaves_nothing(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Imprecise(onnxruntime.InferenceSession):
        def run(self, *arguments: Any) -> Any:
            return [array * np.float32(1 + 2e-4) for array in super().run(*arguments)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Imprecise)
    with pytest.raises(BuildError, match=r"vae_decoder: the exported fp32 graph differs from PyTorch by"):
        export_component("vae_decoder", TINY, weights, WINDOW, "fp32", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_overflow_is_refused(tmp_path: Path) -> None:
    def read(network: Network) -> tuple[dict[str, torch.Tensor], str]:
        state = load_weights("random:0", TINY).state_dict(network)
        state["decoder.conv_out.bias"] += 1e5  # past 65504, the largest number in FP16
        return state, "made"

    loud = Weights("made", "trained", "0" * 64, TINY, read)
    with pytest.raises(BuildError, match="differs from PyTorch by inf"):
        export_component("vae_decoder", TINY, loud, WINDOW, "fp16", tmp_path)


def test_an_interrupted_export_leaves_nothing(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(onnxruntime, "InferenceSession", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_component("vae_decoder", TINY, weights, WINDOW, "fp32", tmp_path)
    assert list(tmp_path.iterdir()) == []


# Large windows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "checked"),
    [("vae_decoder", (1, 4, 2, 4)), pytest.param("unet", (1, 4, 3, 2, 4), marks=pytest.mark.slow)],
)
def test_a_large_window_is_checked_on_a_small_one(
    weights: Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: ComponentName,
    checked: tuple[int, ...],
) -> None:
    window = Window(5, 44, 48, factor=2, levels=1)
    shapes = []

    class Watched(onnxruntime.InferenceSession):
        def run(self, names: Any, inputs: dict[str, Any]) -> Any:
            shapes.append(inputs["latents"].shape)
            return super().run(names, inputs)

    with monkeypatch.context() as watching:
        watching.setattr(onnxruntime, "InferenceSession", Watched)
        watching.setattr(graphs, "CHECK_FLOPS", 1)
        graph = export_component(name, TINY, weights, window, "fp32", tmp_path)
    assert shapes == [checked]
    assert 0 < graph.error < 1e-5
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{name}.onnx", f"{name}.onnx.data"]
    # The graph itself is for the window asked for, and computes what PyTorch computes there.
    inputs = sample_inputs(components(TINY, window, "fp32")[name], 100)
    network = getattr(graphs.plain_network(name, TINY, weights), METHOD_OF[name])
    with torch.inference_mode():
        expected = network(*map(torch.from_numpy, inputs.values()))
    assert golden.relative_error(run(graph.path, inputs), expected) < 1e-5


def test_graphs_that_differ_in_an_operation_are_told_apart() -> None:
    ours, theirs = (graphs.trace("text_encoder", TINY, WINDOW, "fp32") for _ in range(2))

    def second_norm(model: ir.Model) -> ir.Node:
        return [node for node in model.graph if node.op_type == "LayerNormalization"][1]

    graphs.require_same_operations("text_encoder", ours, theirs)
    for change in (
        lambda norm: norm.attributes.add(ir.AttrFloat32("epsilon", 1e-3)),
        lambda norm: norm.replace_input_with(1, norm.inputs[2]),
    ):
        change(second_norm(theirs))
        with pytest.raises(BuildError, match=r"text_encoder: operation \d+ of the graph"):
            graphs.require_same_operations("text_encoder", ours, theirs)
        change(second_norm(ours))
        graphs.require_same_operations("text_encoder", ours, theirs)


def test_work_is_counted() -> None:
    # One 3x3 convolution of the full-size decoder alone: 2 * 9 * 128 * 128 operations at each of 720 x 1280 pixels.
    full = ModelConfig("full")
    assert graphs.work("vae_decoder", full, Window(1, 720, 1280)) > 5 * 2 * 9 * 128 * 128 * 720 * 1280
    # Measured elsewhere for the reference: 185.8 TFLOP an evaluation.
    assert graphs.work("unet", full, Window(32, 720, 1280)) == pytest.approx(185.8e12, rel=0.02)


def test_progress_is_told(weights: Weights, tmp_path: Path) -> None:
    heard: list[tuple[str, float]] = []
    export_component(
        "text_encoder",
        TINY,
        weights,
        WINDOW,
        "fp32",
        tmp_path,
        lambda phase, share: heard.append((phase, share)),
    )
    assert list(dict.fromkeys(phase for phase, _ in heard)) == ["tracing", "writing", "checking"]
    assert dict(heard) == dict.fromkeys(("tracing", "writing", "checking"), 1.0)
