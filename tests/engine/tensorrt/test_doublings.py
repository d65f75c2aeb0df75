"""Doubling and convolution in one: the same numbers by fewer products, the repeated map is never made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.engine.tensorrt import graphs
from tests.stand_ins.sets import source_of
from v2v.core.components import Component, Tensor
from v2v.core.samples import relative_error
from v2v.device import open_device
from v2v.engine.backend import BuildOptions, backend
from v2v.engine.tensorrt.backend import TensorRTBackend
from v2v.engine.tensorrt.doublings import double_at_once
from v2v.engine.tensorrt.runner import PlanRecord
from v2v.engine.verify import run_once
from v2v.export.ranges import Rehearsal

INPUTS, OUTPUTS = 5, 6


def component(height: int, width: int, crop: int, dtype: str = "float32") -> Component:
    """Of :func:`doubling`."""
    given = Tensor("latents", dtype, (2, INPUTS, height, width))
    made = Tensor("image", dtype, (2, OUTPUTS, 2 * (height - crop), 2 * width))
    return Component("vae_decoder", (given,), (made,))


def doubling(folder: Path, described: Component, **changes: Any) -> Path:
    """A map that is repeated, its first and last row dropped where the output has fewer, and convolved."""
    given, made = described.inputs[0], described.outputs[0]
    repeat = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    convolve = {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [1, 1], "dilations": [1, 1]}
    crop = made.shape[2] < 2 * given.shape[2]
    nodes = [
        helper.make_node(
            "Resize", [given.name, "", "scales"], ["repeated"], **repeat | changes.get("repeat", {})
        ),
        *([helper.make_node("Slice", ["repeated", "one", "end", "rows", "one"], ["inside"])] if crop else []),
        helper.make_node(
            "Conv",
            ["inside" if crop else "repeated", "weight", "bias"],
            [made.name],
            name="convolution",
            **convolve | changes.get("convolve", {}),
        ),
    ]
    numbers = {"one": [1], "end": [-1], "rows": [2]} if crop else {}
    weights = [
        graphs.array("weight", OUTPUTS, INPUTS, 3, 3, dtype=made.dtype),
        graphs.array("bias", OUTPUTS, dtype=made.dtype),
        numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"),
        *(numpy_helper.from_array(np.array(value), name) for name, value in numbers.items()),
    ]
    path = graphs.save(folder, described, nodes, weights)
    onnx.save(onnx.shape_inference.infer_shapes(onnx.load(path)), path)
    return path


def run(described: Component, path: Path) -> Any:
    """By ONNX Runtime, on drawn numbers."""
    given = described.inputs[0]
    drawn = np.random.default_rng(1).standard_normal(given.shape).astype(given.dtype)
    engine = backend("onnxruntime").load(described, [path], "cpu")
    return run_once(engine, {given.name: drawn}, open_device("cpu"))["image"]


@pytest.mark.parametrize("crop", [0, 1])
@pytest.mark.parametrize(("height", "width"), [(3, 2), (4, 7), (10, 16)])
def test_every_row_and_column_stays_to_rounding(tmp_path: Path, crop: int, height: int, width: int) -> None:
    described = component(height, width, crop)
    path, target = doubling(tmp_path, described), tmp_path / "doubled.onnx"
    assert double_at_once(path, target) == 1
    plain, made = run(described, path), run(described, target)
    assert relative_error(made, plain) < 3e-7
    for rows in (slice(0, 1), slice(-1, None)):
        assert relative_error(made[:, :, rows], plain[:, :, rows]) < 1e-6
    kinds = [node.op_type for node in onnx.load(target).graph.node]
    assert "Resize" not in kinds and kinds.count("ConvTranspose") == 1 + 2 * crop


@pytest.mark.parametrize("crop", [0, 1])
def test_products_and_bytes_of_weights_are_fewer(tmp_path: Path, crop: int) -> None:
    path, target = doubling(tmp_path, component(40, 64, crop)), tmp_path / "doubled.onnx"
    double_at_once(path, target)
    plain, made = (products(onnx.shape_inference.infer_shapes(onnx.load(each))) for each in (path, target))
    assert made / plain == pytest.approx(4 / 9, rel=0.1)
    assert (tmp_path / "doubled.onnx.data").stat().st_size == 4 * OUTPUTS * INPUTS * 16
    assert "weight" not in {tensor.name for tensor in onnx.load(target).graph.initializer}


def products(model: onnx.ModelProto) -> int:
    """Multiplications of all convolutions: a transposed one multiplies what it is given, each number by its kernel."""
    graph = model.graph
    shapes = {
        value.name: [each.dim_value for each in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    kernels = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    return sum(
        int(np.prod(shapes[node.output[0] if node.op_type == "Conv" else node.input[0]]))
        * int(np.prod(kernels[node.input[1]][1:]))
        for node in graph.node
        if node.op_type in ("Conv", "ConvTranspose")
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"repeat": {"nearest_mode": "round_prefer_floor"}},
        {"repeat": {"mode": "linear"}},
        {"convolve": {"pads": [2, 1, 2, 1], "dilations": [2, 1]}},
        {"convolve": {"strides": [2, 2], "pads": [1, 1, 1, 1]}},
    ],
    ids=["other repetition", "interpolation", "wider steps", "strides"],
)
def test_what_is_another_operation_is_left_alone(tmp_path: Path, changes: dict[str, Any]) -> None:
    described = component(6, 8, 0)
    if "strides" in changes.get("convolve", {}):
        described = replace(described, outputs=(Tensor("image", "float32", (2, OUTPUTS, 6, 8)),))
    path = doubling(tmp_path, described, **changes)
    assert double_at_once(path, tmp_path / "doubled.onnx") == 0


@pytest.mark.parametrize("crop", [0, 1])
def test_nvidias_compiler_makes_no_repeated_map(tensorrt: ModuleType, tmp_path: Path, crop: int) -> None:
    described = component(6, 8, crop, "float16")
    path = doubling(tmp_path, described)
    (tmp_path / "set").mkdir()
    options = BuildOptions("fp16", "cuda")
    made = TensorRTBackend().build(source_of(described, path), tmp_path / "set", options, lambda *_: None)
    layers = PlanRecord.read(made.files[1]).layers
    assert layers["DECONVOLUTION HALF"] == 1 + 2 * crop
    assert not [name for name in layers if name.startswith(("RESIZE", "CONVOLUTION"))]


def test_in_bf16_a_map_is_repeated_as_there_is_no_kernel_for_it(tensorrt: ModuleType, tmp_path: Path) -> None:
    described = component(6, 8, 0, "float16")
    (tmp_path / "rehearsal").mkdir()
    (tmp_path / "set").mkdir()
    given = described.inputs[0]
    inputs = {given.name: np.ones(given.shape, np.float16)}
    graph = doubling(tmp_path / "rehearsal", described)
    outputs = run_once(backend("onnxruntime").load(described, [graph], "cpu"), inputs, open_device("cpu"))
    rehearsal = Rehearsal(described, graph, [(inputs, outputs)], {})
    source = replace(source_of(described, doubling(tmp_path, described)), rehearsal=lambda: rehearsal)
    options = BuildOptions("fp16", "cuda", {"bf16": "yes"})
    made = TensorRTBackend().build(source, tmp_path / "set", options, lambda *_: None)
    layers = PlanRecord.read(made.files[1]).layers
    assert layers["RESIZE BF16"] == layers["CONVOLUTION BF16"] == 1
