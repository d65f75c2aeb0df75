"""Convolutions over frames become two-dimensional ones: the same numbers, the same weights file, no third dimension."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.engine.tensorrt import graphs
from tests.stand_ins.sets import source_of
from v2v.core.components import Component, Tensor, Window, components
from v2v.core.configs import MODELS
from v2v.core.samples import relative_error, sample_inputs
from v2v.device import open_device
from v2v.engine.backend import BuildOptions, backend
from v2v.engine.tensorrt.backend import TensorRTBackend
from v2v.engine.tensorrt.rewrites import flatten_frames
from v2v.engine.tensorrt.runner import PlanRecord
from v2v.engine.verify import run_once
from v2v.export.graphs import write_graph
from v2v.export.weights import load_weights

SMALL = MODELS["small"]
MODEL = replace(
    SMALL,
    unet=replace(SMALL.unet, width=16, head_size=16, multipliers=(1,), attention=(False,), stem_heads=1),
)
WINDOW = Window(3, 32, 32, factor=4, levels=0)


def convolutions(path: Path) -> list[int]:
    """How many dimensions each kernel has."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    return [
        len(attribute.ints)
        for node in nodes
        if node.op_type == "Conv"
        for attribute in node.attribute
        if attribute.name == "kernel_shape"
    ]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_numbers_and_weights_stay(tmp_path: Path, precision: str) -> None:
    component = components(MODEL, WINDOW, precision)["unet"]  # type: ignore[arg-type]
    weights = load_weights("random:0", MODEL)
    path = write_graph("unet", MODEL, weights, WINDOW, precision, tmp_path)  # type: ignore[arg-type]
    flat = tmp_path / "flat.onnx"
    before = convolutions(path)
    assert flatten_frames(path, flat) == before.count(3) >= 8
    assert convolutions(flat).count(2) == len(before)
    assert flat.stat().st_size < 2 * path.stat().st_size
    assert {file.name for file in tmp_path.iterdir()} == {"unet.onnx", "unet.onnx.data", "flat.onnx"}
    inputs = sample_inputs(component, 1)
    results = [
        run_once(backend("onnxruntime").load(component, [each], "cpu"), inputs, open_device("cpu"))[
            "velocity"
        ]
        for each in (path, flat)
    ]
    assert relative_error(*results) < (1e-6 if precision == "fp32" else 2e-3)
    assert np.isfinite(results[1]).all()


def test_an_output_keeps_its_name(tmp_path: Path) -> None:
    """``--layers`` makes outputs of tensors inside."""
    described = Component(
        "unet", (Tensor("video", "float32", (1, 4, 3, 2, 2)),), (Tensor("mixed", "float32", (1, 4, 3, 2, 2)),)
    )
    same = {"strides": [1] * 3, "dilations": [1] * 3}
    node = helper.make_node(
        "Conv", ["video", "w"], ["mixed"], kernel_shape=[3, 1, 1], pads=[1, 0, 0] * 2, **same
    )
    path = graphs.save(tmp_path, described, [node], [graphs.array("w", 4, 4, 3, 1, 1, dtype="float32")])
    assert flatten_frames(path, tmp_path / "flat.onnx") == 1
    results = [
        run_once(
            backend("onnxruntime").load(described, [each], "cpu"),
            sample_inputs(described, 1),
            open_device("cpu"),
        )["mixed"]
        for each in (path, tmp_path / "flat.onnx")
    ]
    assert relative_error(*results) < 1e-6


@pytest.mark.slow
def test_nvidias_compiler_gets_them_flat(
    tensorrt: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    component = components(MODEL, WINDOW, "fp16")["unet"]
    path = write_graph("unet", MODEL, load_weights("random:0", MODEL), WINDOW, "fp16", tmp_path)
    (tmp_path / "set").mkdir()
    files = (
        TensorRTBackend()
        .build(source_of(component, path), tmp_path / "set", BuildOptions("fp16", "cuda"), lambda *_: None)
        .files
    )
    assert f"--onnx={tmp_path}/unet_flat.onnx" in caplog.text
    layers = PlanRecord.read(files[1]).layers
    assert layers["CONVOLUTION HALF"] == len(convolutions(path))
    assert sorted(file.name for file in (tmp_path / "set").iterdir()) == ["unet.json", "unet.plan"]
