"""Open a graph's frame axis: one graph for any number of frames, for a compiler that makes use of it.

Networks are traced for one window, because everything is simpler and faster where every size is a number. The
UNet's graphs for two numbers of frames are the same node by node; they differ only in the shapes that ``Reshape``
nodes are given, in one place each. ONNX can infer that place (-1), and then no number of frames is left.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common as passes

from v2v.core.components import ComponentName, Precision, Window
from v2v.core.configs import ModelConfig
from v2v.core.errors import BuildError
from v2v.export.graphs import trace

FRAMES = "frames"
"""Name of the open axis."""


def open_frame_axis(
    path: Path, name: ComponentName, model: ModelConfig, window: Window, precision: Precision
) -> None:
    """Rewrite the graph ``path``, which :func:`v2v.export.graphs.export_component` made for ``window``.

    Inputs and outputs get an open axis where they have frames; the weights beside the graph stay as they are.

    Raises:
        BuildError: the number of frames is in the graph in another way than as one place of a ``Reshape``.
    """
    graph = ir.load(path)
    other = trace(name, model, replace(window, frames=window.frames + 2), precision)
    nodes, counterparts = list(graph.graph), list(other.graph)
    if [node.op_identifier() for node in nodes] != [node.op_identifier() for node in counterparts]:
        raise BuildError(f"{name}: another number of frames takes other operations; build without a range")
    for node, counterpart in zip(nodes, counterparts, strict=True):
        for position, (value, changed) in enumerate(zip(node.inputs, counterpart.inputs, strict=True)):
            shape, shape_there = _integers(value), _integers(changed)
            if shape is None or shape_there is None or np.array_equal(shape, shape_there):
                continue
            if node.op_type != "Reshape" or np.count_nonzero(shape != shape_there) != 1 or -1 in shape:
                raise BuildError(
                    f"{name}: {node.op_type} '{node.name}' depends on the number of frames; build without a range"
                )
            opened = _initializer(f"{node.name}.shape", np.where(shape == shape_there, shape, -1))
            graph.graph.initializers.add(opened)
            node.replace_input_with(position, opened)
        for value, changed in zip(node.outputs, counterpart.outputs, strict=True):
            _open(value, changed)
    for value, changed in zip(graph.graph.inputs, other.graph.inputs, strict=True):
        _open(value, changed)
    passes.RemoveUnusedNodesPass()(graph)  # the shapes that were
    rewritten = path.with_suffix(".open")
    ir.save(graph, rewritten)
    rewritten.replace(path)


def _integers(value: ir.Value | None) -> npt.NDArray[np.int64] | None:
    """The numbers in a constant of the graph, if it is one."""
    if value is None or value.const_value is None or value.const_value.dtype != ir.DataType.INT64:
        return None
    return np.asarray(value.const_value.numpy(), np.int64)


def _initializer(name: str, values: npt.NDArray[np.int64]) -> ir.Value:
    tensor = ir.tensor(values, name=name)
    return ir.Value(
        name=name, shape=ir.Shape(values.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )


def _open(value: ir.Value, changed: ir.Value) -> None:
    """Open the axes in which two shapes differ; inside the graph they may be multiples of the frames."""
    if value.shape is None or changed.shape is None:
        return
    border = value.is_graph_input() or value.is_graph_output()
    value.shape = ir.Shape(
        [
            ours if ours == theirs else (FRAMES if border else None)
            for ours, theirs in zip(value.shape, changed.shape, strict=True)
        ]
    )
