"""An FP16 graph in BF16: eight bits of mantissa instead of eleven, and FP32's range, in which nothing overflows.

Every tensor in FP16 becomes one in BF16; norms, softmax and what else is in FP32 stay so. What goes in and comes out of
a component stays in FP16, between casts at its border, so that the runtime sees no difference.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from v2v.engine.backend import TOLERANCE as FP16_TOLERANCE

CAPABILITY = (8, 0)
"""Of the first GPUs whose matrix units take BF16."""

TOLERANCE = 8 * FP16_TOLERANCE["fp16"]
"""Relative L2 error past which a component is refused: three bits less than FP16."""


def widen(source: Path, target: Path) -> None:
    """Write the FP16 graph at ``source`` to ``target``, in the same folder, in BF16.

    Weights lie in ``<target>.data``.
    """
    import onnx_ir as ir

    model = ir.load(source)
    _retype(model, ir.DataType.BFLOAT16, lambda array: array)
    ir.save(model, target, external_data=f"{target.name}.data")


def imitate(source: Path, target: Path) -> None:
    """As :func:`widen`, for ONNX Runtime on a CPU, which computes in FP32: every result is rounded to BF16.

    That is what matrix units do, which add up in FP32.
    """
    import ml_dtypes
    import onnx_ir as ir

    model = ir.load(source)
    made = [value for node in model.graph for value in node.outputs if value.dtype == ir.DataType.FLOAT16]
    _retype(model, ir.DataType.FLOAT, lambda array: array.astype(ml_dtypes.bfloat16))
    for value in made:
        _cast(model.graph, value, ir.DataType.BFLOAT16, ir.DataType.FLOAT)
    ir.save(model, target, external_data=f"{target.name}.data")


def _retype(model: Any, kind: Any, rounded: Callable[[Any], Any]) -> None:
    """Make ``kind`` of what is FP16 inside ``model``; weights go through ``rounded`` before."""
    import onnx_ir as ir

    half, graph = ir.DataType.FLOAT16, model.graph
    borders = [value for value in (*graph.inputs, *graph.outputs) if value.dtype == half]
    for node in graph:
        if node.op_type == "Cast" and node.attributes["to"].value == half:
            node.attributes["to"] = ir.AttrInt64("to", kind)
        for value in node.outputs:
            if value.dtype == half:
                value.type = ir.TensorType(kind)
    for value in graph.initializers.values():
        if value.dtype == half:
            value.const_value = _converted(value.const_value, kind, rounded)
            value.type = ir.TensorType(kind)
    for value in borders:
        if value.is_graph_input():
            _cast(graph, value, kind)
        else:
            _cast(graph, value, half)


def _converted(tensor: Any, kind: Any, rounded: Callable[[Any], Any]) -> Any:
    import onnx_ir as ir

    def convert() -> Any:
        return ir.tensor(rounded(tensor.numpy()).astype(kind.numpy()), name=tensor.name)

    return ir.LazyTensor(convert, dtype=kind, shape=tensor.shape, name=tensor.name)


def _cast(graph: Any, value: Any, *kinds: Any) -> None:
    """Let everything that uses ``value`` use it cast to ``kinds``, one after the other; an output keeps its name."""
    import onnx_ir as ir

    name, users = value.name, list(value.uses())
    nodes, last = [], value
    for kind in kinds:
        node = ir.Node("", "Cast", [last], attributes=[ir.AttrInt64("to", kind)])
        last = node.outputs[0]
        last.name, last.shape, last.type = f"{name}_{kind.name.lower()}", value.shape, ir.TensorType(kind)
        nodes.append(node)
    for user, index in users:
        user.replace_input_with(index, last)
    if value.is_graph_output():
        graph.outputs[graph.outputs.index(value)] = last
        value.name, last.name = f"{name}_inside", name
    if value.producer() is None:
        graph.insert_before(graph[0], nodes)
    else:
        graph.insert_after(value.producer(), nodes)
