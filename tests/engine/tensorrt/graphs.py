"""Small ONNX graphs made by hand, with the interface of a component or with one fault each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.stand_ins.graphs import onnx_model
from tests.stand_ins.model import MODEL
from v2v.core.components import Component, Tensor

_TYPES = {"float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


def save(
    folder: Path,
    component: Component,
    nodes: Sequence[onnx.NodeProto],
    weights: Sequence[onnx.TensorProto] = (),
    domains: Sequence[str] = (),
) -> Path:
    """Write a graph with ``component``'s inputs and outputs."""

    def value(tensor: Tensor) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(tensor.name, _TYPES[tensor.dtype], tensor.shape)

    graph = helper.make_graph(
        list(nodes),
        component.name,
        [value(tensor) for tensor in component.inputs],
        [value(tensor) for tensor in component.outputs],
        list(weights),
    )
    opsets = [helper.make_opsetid("", 23), *(helper.make_opsetid(domain, 1) for domain in domains)]
    path = folder / f"{component.name}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def array(name: str, *shape: int, dtype: str = "float16") -> onnx.TensorProto:
    """Seeded weights."""
    values = np.random.default_rng(0).standard_normal(shape) / 8
    return numpy_helper.from_array(values.astype(dtype), name)


def toy(folder: Path, component: Component) -> Path:
    """A graph that does next to nothing, with exactly ``component``'s inputs and outputs."""
    if component.name != "unet":
        path = folder / f"{component.name}.onnx"
        onnx.save(onnx_model(component, MODEL), path)
        return path
    nodes = [
        helper.make_node("ReduceMean", ["context"], ["mean"], name="context_mean", keepdims=0),
        helper.make_node("Cast", ["timestep"], ["time"], name="time", to=TensorProto.FLOAT16),
        helper.make_node("Add", ["mean", "time"], ["shift"], name="shift"),
        helper.make_node("Mul", ["latents", "shift"], ["velocity"], name="scale"),
    ]
    return save(folder, component, nodes)
