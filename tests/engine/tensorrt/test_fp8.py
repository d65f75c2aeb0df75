"""Products in FP8: which, with what scales, how far off, and that NVIDIA's compiler computes them so."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from tests.engine.tensorrt import graphs
from tests.stand_ins.sets import source_of
from v2v.core.components import Component, Tensor, components, window_for
from v2v.core.configs import MODELS
from v2v.core.errors import BuildError
from v2v.core.samples import Arrays, relative_error
from v2v.device import open_device
from v2v.device.gpus import Gpu
from v2v.engine.backend import BuildOptions, backend
from v2v.engine.fp8 import TOLERANCE
from v2v.engine.inductor.fused.fp8 import quantise as quantise_fused
from v2v.engine.inductor.fused.unet import FusedUNet
from v2v.engine.tensorrt import backend as backend_module
from v2v.engine.tensorrt.backend import TensorRTBackend
from v2v.engine.tensorrt.fp8 import quantise
from v2v.engine.tensorrt.rehearsed import error_of
from v2v.engine.tensorrt.runner import PlanRecord
from v2v.engine.verify import run_once
from v2v.export.graphs import plain_network
from v2v.export.ranges import Rehearsal, rehearse
from v2v.export.weights import load_weights

FP8 = BuildOptions("fp16", "cuda", {"fp8": "yes"})
SMALL = MODELS["small"]
NARROW = replace(
    SMALL,
    unet=replace(
        SMALL.unet,
        **{"width": 16, "head_size": 16, "groups": 4, "multipliers": (1,), "attention": (True,)},
        **{"stem_heads": 1, "context_width": 16},
    ),
    text_encoder=replace(SMALL.text_encoder, width=16, layers=1),
)
BLOCK = "unet.input_blocks.1.0"
TOKENS = f"{BLOCK}.transformer_blocks.0"
CONVOLUTION, GATED, QUERY = (
    f"{BLOCK}.in_layers.2.weight",
    f"{TOKENS}.ff.net.2.weight",
    f"{TOKENS}.attn2.to_q.weight",
)
OTHERS = (f"{BLOCK}.skip_connection.weight", f"{TOKENS}.attn2.to_k.weight")
TOY = Component(
    "unet",
    (Tensor("latents", "float16", (1, 16, 8, 8)), Tensor("context", "float16", (1, 64, 16))),
    (Tensor("velocity", "float16", (64, 16)),),
)


def toy(folder: Path) -> Path:
    """A convolution, the same product on both halves of its tokens, a query and a key, a convolution by one."""
    shape = numpy_helper.from_array(np.array([64, 16]), "shape")
    nodes = [
        helper.make_node("Cos", ["latents"], ["normed"]),
        helper.make_node("Conv", ["normed", CONVOLUTION], ["mixed"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["mixed", OTHERS[0]], ["shortcut"]),
        helper.make_node("Transpose", ["shortcut"], ["last"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["last", "shape"], ["tokens"]),
        helper.make_node("Split", ["tokens"], ["one", "two"], num_outputs=2),
        *(
            helper.make_node("Gemm", [half, GATED], [f"{half}_done"], transB=1, name=half)
            for half in ("one", "two")
        ),
        helper.make_node("Concat", ["one_done", "two_done"], ["done"], axis=0),
        helper.make_node("Gemm", ["done", QUERY], ["query"], transB=1),
        helper.make_node("Reshape", ["context", "shape"], ["words"]),
        helper.make_node("Gemm", ["words", OTHERS[1]], ["key"], transB=1),
        helper.make_node("Add", ["query", "key"], ["velocity"]),
    ]
    weights = [
        graphs.array(CONVOLUTION, 16, 16, 3, 3),
        graphs.array(OTHERS[0], 16, 16, 1, 1),
        *(graphs.array(name, 16, 16) for name in (GATED, QUERY, OTHERS[1])),
    ]
    path = graphs.save(folder, TOY, nodes, [*weights, shape])
    onnx.save(onnx.shape_inference.infer_shapes(onnx.load(path)), path)
    return path


SEEN = {CONVOLUTION: 1.0, GATED: 3.0, QUERY: 2.0}


def run(component: Component, path: Path, inputs: Arrays) -> Arrays:
    """By ONNX Runtime."""
    return run_once(backend("onnxruntime").load(component, [path], "cpu"), inputs, open_device("cpu"))


def drawn() -> Arrays:
    generator = np.random.default_rng(0)
    return {t.name: generator.standard_normal(t.shape).astype(t.dtype) for t in TOY.inputs}


# The graph ------------------------------------------------------------------------------------------------------


def test_products_behind_norms_and_gates_get_rounded_operands_and_others_none(tmp_path: Path) -> None:
    target = tmp_path / "fp8.onnx"
    assert quantise(toy(tmp_path), target, SEEN) == 4
    graph = onnx.load(target).graph
    made = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            before = [made[name].op_type for name in node.input if name in made]
            weight = next(name for name in (*SEEN, *OTHERS) if node.input[1].startswith(name))
            assert (before == ["DequantizeLinear"] * 2) is (weight in SEEN), weight


def test_scales_are_powers_of_two_that_leave_room_and_weights_are_stored_once(tmp_path: Path) -> None:
    target = tmp_path / "fp8.onnx"
    source = toy(tmp_path)
    quantise(source, target, SEEN)
    plain = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(source).graph.initializer}
    graph = onnx.load(target).graph
    kept = {tensor.name: tensor for tensor in graph.initializer}
    scale = {
        node.input[0]: float(numpy_helper.to_array(kept[node.input[1]]))
        for node in graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    }
    assert not set(SEEN) & set(kept) and set(OTHERS) <= set(kept)
    assert all(np.log2(each) == round(np.log2(each)) for each in scale.values())
    assert 4 * SEEN[CONVOLUTION] <= 448 * scale["normed"] < 8 * SEEN[CONVOLUTION]
    for name in SEEN:
        stored = np.frombuffer(kept[f"{name}_fp8"].raw_data, ml_dtypes.float8_e4m3fn).astype(np.float32)
        found, expected = stored * scale[f"{name}_fp8"], plain[name].astype(np.float32).ravel()
        assert 224 <= np.abs(stored).max() <= 448
        assert np.all(
            np.abs(found - expected) <= np.maximum(np.abs(expected) / 16, 2**-10 * scale[f"{name}_fp8"])
        )
    data = tmp_path / "fp8.onnx.data"
    assert data.stat().st_size == 16 * 16 * 9 + 2 * 16 * 16


def test_the_quantised_graph_computes_the_same_to_three_bits(tmp_path: Path) -> None:
    source, target = toy(tmp_path), tmp_path / "fp8.onnx"
    quantise(source, target, SEEN)
    results = [run(TOY, path, drawn())["velocity"] for path in (target, source)]
    assert 0.01 < relative_error(*results) < 0.1


def test_a_product_that_was_not_rehearsed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"in_layers\.2\.weight has no scale"):
        quantise(toy(tmp_path), tmp_path / "fp8.onnx", {GATED: 1.0})


def test_a_graph_without_such_products_is_refused(tmp_path: Path) -> None:
    component = components(SMALL, window_for(SMALL, (80, 72), 4), "fp16")["vae_encoder"]
    with pytest.raises(BuildError, match="has no products for FP8"):
        quantise(graphs.toy(tmp_path, component), tmp_path / "fp8.onnx", {})


# A rehearsed network --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Rehearsal:
    """Of a narrow UNet with the full model's layers, whose window is the least."""
    window = window_for(NARROW, (32, 32), 3)
    return rehearse(
        "unet", NARROW, load_weights("random:0", NARROW), window, "fp16", tmp_path_factory.mktemp("narrow")
    )


@pytest.mark.slow
def test_a_network_is_as_far_off_as_the_fused_one(narrow: Rehearsal) -> None:
    graph = narrow.graph.with_name("fp8.onnx")
    quantise(narrow.graph, graph, narrow.largest)
    error = error_of(narrow, graph)
    assert 0.01 < error < TOLERANCE
    network = quantise_fused(FusedUNet(plain_network("unet", NARROW, load_weights("random:0", NARROW))))
    with torch.no_grad():
        made = [
            network(
                *(
                    torch.from_numpy(each).float() if each.dtype == "float16" else torch.from_numpy(each)
                    for each in inputs.values()
                )
            )
            for inputs, _ in narrow.runs
        ]
    expected = [outputs["velocity"] for _, outputs in narrow.runs]
    of_the_fused_one = relative_error(torch.stack(made).numpy(), np.stack(expected))
    assert error == pytest.approx(of_the_fused_one, rel=0.3)


@pytest.mark.slow
def test_nvidias_compiler_multiplies_in_fp8(
    tensorrt_rtx: ModuleType, narrow: Rehearsal, tmp_path: Path
) -> None:
    """By the plan's own list of products; the engine inspector needs a driver."""
    folder = tmp_path / "rehearsal"
    for copy in (folder, tmp_path / "graphs"):
        shutil.copytree(narrow.graph.parent, copy)
    graph = tmp_path / "graphs" / narrow.graph.name
    (tmp_path / "set").mkdir()
    source = replace(
        source_of(narrow.component, graph, NARROW),
        rehearsal=lambda: replace(narrow, graph=folder / narrow.graph.name),
    )
    made = TensorRTBackend().build(source, tmp_path / "set", FP8, lambda *_: None)
    assert 0.01 < made.error < TOLERANCE
    products = quantise(graph, graph.with_name("again.onnx"), narrow.largest)
    assert PlanRecord.read(made.files[1]).layers["QUANTIZE FP8"] == products > 50
    assert products_in(made.files[0]).count(("fp8_e4m3", "fp8_e4m3", "half")) == products
    assert not folder.exists(), "its gigabytes go before those of the graph come"


def products_in(plan: Path) -> list[tuple[str, ...]]:
    """The types of the operands and the result of every convolution and product of matrices in a plan for RTX."""
    lines = [line.decode() for line in re.findall(rb"[\x20-\x7e]{6,}", plan.read_bytes())]
    types = {
        match[1]: match[2]
        for line in lines
        if (match := re.match(r' +(?:sub_)?tensor=\{.* name="([^"]+)".* type=(\w+) ', line))
    }
    found = []
    for line in lines:
        if re.match(r" +(corrltn|fully_connected)=\{", line):
            operands, results = (
                re.findall(r'"([^"]+)"', re.search(rf" {word}=\{{([^}}]*)\}}", line)[1])  # type: ignore[index]
                for word in ("input", "output")
            )
            found.append(tuple(types.get(name, "") for name in (*operands[:2], results[0])))
    return found


def test_a_network_that_is_too_far_off_is_not_kept(tensorrt_rtx: ModuleType, tmp_path: Path) -> None:
    path = toy(tmp_path)
    (tmp_path / "rehearsal").mkdir()
    expected = {"velocity": -run(TOY, path, drawn())["velocity"]}
    wrong = Rehearsal(TOY, toy(tmp_path / "rehearsal"), [(drawn(), expected)], SEEN)
    source = replace(source_of(TOY, path, NARROW), rehearsal=lambda: wrong)
    with pytest.raises(BuildError, match=r"unet: in FP8 it differs from PyTorch by .*leave out"):
        TensorRTBackend().build(source, tmp_path, FP8, lambda *_: None)


# The option -----------------------------------------------------------------------------------------------------


def test_a_set_says_that_it_holds_fp8_and_is_for_cards_that_have_it(tensorrt_rtx: ModuleType) -> None:
    backend = TensorRTBackend()
    facts = backend.facts(FP8)
    assert facts["fp8"] is True
    assert facts["capabilities"][0] == "8.9" and "8.6" not in facts["capabilities"]
    assert "fp8" not in backend.facts(BuildOptions("fp16", "cuda"))
    assert backend.tolerance("unet", FP8) == TOLERANCE
    assert backend.tolerance("vae_decoder", FP8) < TOLERANCE


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"portable": "ampere_plus"}, "is for cards that have no FP8 as well"),
        ({"graphs": "folder"}, "option fp8=yes makes graphs of its own"),
        ({"bf16": "yes"}, "bf16=yes and fp8=yes were never tried together"),
        ({"fp8": "perhaps"}, "option fp8=perhaps must be yes or no"),
    ],
)
def test_what_cannot_go_with_it_is_refused(tensorrt: ModuleType, more: dict[str, str], said: str) -> None:
    with pytest.raises(BuildError, match=said):
        TensorRTBackend().facts(replace(FP8, extra={"fp8": "yes", **more}))


def test_a_gpu_without_fp8_says_so(tensorrt: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    card = Gpu(0, "NVIDIA A10", (8, 6), 24 << 30, "13.0")
    monkeypatch.setattr(backend_module, "find_gpu", lambda device="cuda": card)
    with pytest.raises(BuildError, match=r"NVIDIA A10 has no FP8 \(its compute capability is 8\.6"):
        TensorRTBackend().facts(FP8)


@pytest.mark.parametrize(("name", "why"), [("small", "has no norms"), ("star-light", "has a control branch")])
def test_models_that_were_not_made_for_it_are_refused(
    tensorrt_rtx: ModuleType, tmp_path: Path, name: str, why: str
) -> None:
    source = source_of(TOY, tmp_path / "nothing.onnx", MODELS[name])
    with pytest.raises(BuildError, match=f"model {name} {why}"):
        TensorRTBackend().build(source, tmp_path, FP8, lambda *_: None)
