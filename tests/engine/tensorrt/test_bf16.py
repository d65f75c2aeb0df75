"""BF16 in the place of FP16: the same graph, three bits less exact, in which nothing overflows."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.engine.tensorrt import graphs
from tests.engine.tensorrt.test_fp8 import NARROW, TOY, drawn, run, toy
from tests.stand_ins.sets import CopyBackend, build, install, source_of
from v2v.core.components import Component, ComponentName, Tensor, window_for
from v2v.core.configs import MODELS
from v2v.core.errors import BuildError
from v2v.core.samples import relative_error
from v2v.device.gpus import Gpu
from v2v.engine.backend import TOLERANCE as TOLERANCES
from v2v.engine.backend import BuildOptions, Rehearsal
from v2v.engine.tensorrt import backend as backend_module
from v2v.engine.tensorrt.backend import TensorRTBackend
from v2v.engine.tensorrt.bf16 import TOLERANCE, imitate, widen
from v2v.engine.tensorrt.rehearsed import error_of
from v2v.engine.tensorrt.runner import PlanRecord
from v2v.export import ranges
from v2v.export.graphs import small_window
from v2v.export.weights import load_weights

BF16 = BuildOptions("fp16", "cuda", {"bf16": "yes"})


def rehearsal(path: Path) -> Rehearsal:
    """Of the toy in ``path``."""
    path.parent.mkdir(exist_ok=True)
    toy(path.parent)
    inputs = drawn()
    return ranges.Rehearsal(TOY, path, [(inputs, run(TOY, path, inputs))], {})


# The graph ------------------------------------------------------------------------------------------------------


def test_what_is_half_inside_becomes_bf16_and_borders_stay(tmp_path: Path) -> None:
    source, target = toy(tmp_path), tmp_path / "bf16.onnx"
    widen(source, target)
    model = onnx.load(target)
    onnx.checker.check_model(str(target))
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    inside = {
        node.output[0] for node in model.graph.node if node.op_type in ("Conv", "Gemm", "Reshape", "Add")
    }
    assert {kinds.get(name, TensorProto.BFLOAT16) for name in inside} == {TensorProto.BFLOAT16}
    borders = [*model.graph.input, *model.graph.output]
    assert [value.name for value in borders] == ["latents", "context", "velocity"]
    assert {value.type.tensor_type.elem_type for value in borders} == {TensorProto.FLOAT16}
    assert {weight.data_type for weight in model.graph.initializer} == {
        TensorProto.BFLOAT16,
        TensorProto.INT64,
    }


def test_weights_are_rounded_to_eight_bits(tmp_path: Path) -> None:
    source, target = toy(tmp_path), tmp_path / "bf16.onnx"
    widen(source, target)
    plain = {weight.name: weight for weight in onnx.load(source).graph.initializer}
    for weight in onnx.load(target).graph.initializer:
        if weight.data_type == TensorProto.BFLOAT16:
            wide = np.frombuffer(weight.raw_data, "<u2").astype(np.uint32) << 16
            expected = onnx.numpy_helper.to_array(plain[weight.name]).astype(np.float32)
            np.testing.assert_allclose(wide.view(np.float32), expected.ravel(), rtol=2**-8)


def test_imitated_it_is_three_bits_less_exact(tmp_path: Path) -> None:
    source, target = toy(tmp_path), tmp_path / "imitated.onnx"
    imitate(source, target)
    inputs = drawn()
    error = relative_error(*(run(TOY, path, inputs)["velocity"] for path in (target, source)))
    assert 2**-10 < error < 2**-6


def test_what_overflows_in_half_does_not(tmp_path: Path) -> None:
    component = Component("unet", (Tensor("x", "float16", (4,)),), (Tensor("y", "float16", (4,)),))
    half = helper.make_tensor("half", TensorProto.FLOAT16, (1,), [2.0**-15])
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"]),
        helper.make_node("Mul", ["square", "half"], ["y"]),
    ]
    source, target = graphs.save(tmp_path, component, nodes, [half]), tmp_path / "imitated.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(onnx.load(source)), source)
    imitate(source, target)
    result = run(component, target, {"x": np.full(4, 3e4, np.float16)})["y"]
    np.testing.assert_allclose(result, 9e8 / 2**15, rtol=2**-6)


# A build --------------------------------------------------------------------------------------------------------


def test_nvidias_compiler_computes_in_bf16(tensorrt_rtx: ModuleType, tmp_path: Path) -> None:
    given = rehearsal(tmp_path / "rehearsal" / "unet.onnx")
    (tmp_path / "set").mkdir()
    source = replace(source_of(TOY, toy(tmp_path), MODELS["small"]), rehearsal=lambda: given)
    made = TensorRTBackend().build(source, tmp_path / "set", BF16, lambda *_: None)
    layers = PlanRecord.read(made.files[1]).layers
    assert layers["CONVOLUTION BF16"] == 2 and layers["MATRIX_MULTIPLY BF16"] == 4
    assert not [name for name in layers if name.endswith("HALF") and not name.startswith("CAST")]
    assert 2**-10 < made.error < 2**-6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text_encoder", "vae_decoder", "unet"])
def test_the_layers_of_the_networks_compile_and_stay_within_the_tolerance(
    tensorrt_rtx: ModuleType, tmp_path: Path, name: ComponentName
) -> None:
    window = small_window(window_for(NARROW, (32, 32), 3))
    (tmp_path / "rehearsal").mkdir()
    given = ranges.rehearse(
        name, NARROW, load_weights("random:0", NARROW), window, "fp16", tmp_path / "rehearsal"
    )
    for file in given.graph.parent.iterdir():
        shutil.copy(file, tmp_path)
    assert error_of(given, given.graph) < TOLERANCES["fp16"]
    source = replace(source_of(given.component, tmp_path / f"{name}.onnx", NARROW), rehearsal=lambda: given)
    (tmp_path / "set").mkdir()
    made = TensorRTBackend().build(source, tmp_path / "set", BF16, lambda *_: None)
    assert TOLERANCES["fp16"] / 16 < made.error < TOLERANCE
    layers = PlanRecord.read(made.files[1]).layers
    norms = [count for layer, count in layers.items() if layer.startswith("NORMALIZATION")]
    assert sum(norms) == layers.get("NORMALIZATION FLOAT", 0)
    assert "ATTENTION_OUTPUT HALF" not in layers and "CONVOLUTION HALF" not in layers


# The option -----------------------------------------------------------------------------------------------------


def test_a_set_says_so_and_is_for_cards_that_have_it(tensorrt_rtx: ModuleType) -> None:
    backend = TensorRTBackend()
    facts = backend.facts(BF16)
    assert facts["bf16"] is True and "fp8" not in facts
    assert "7.5" not in facts["capabilities"] and facts["capabilities"][0] == "8.0"
    assert backend.tolerance("vae_decoder", BF16) == TOLERANCE == 0.16
    assert backend.tolerance("vae_decoder", replace(BF16, precision="fp32")) == TOLERANCES["fp32"]


@pytest.mark.parametrize("other", ["shared", "fp8"])
def test_what_was_never_tried_with_it_is_refused(tensorrt: ModuleType, other: str) -> None:
    with pytest.raises(BuildError, match=f"bf16=yes and {other}=yes were never tried together"):
        TensorRTBackend().facts(replace(BF16, extra={"bf16": "yes", other: "yes"}))


def test_a_gpu_without_bf16_says_so(tensorrt: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    card = Gpu(0, "Tesla T4", (7, 5), 16 << 30, "13.0")
    monkeypatch.setattr(backend_module, "find_gpu", lambda device="cuda": card)
    with pytest.raises(
        BuildError, match=r"Tesla T4 has no BF16 .* came with 8\.0\): leave out --option bf16=yes"
    ):
        TensorRTBackend().facts(BF16)


def test_a_set_is_named_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = CopyBackend()
    monkeypatch.setattr(copies, "facts", lambda options: {"gpu": None, "version": "1.0", "bf16": True})
    install(copies, monkeypatch)
    assert "-bf16-" in build().engine_set.name
