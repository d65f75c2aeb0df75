"""What :mod:`v2v.engine.onnxruntime.rewrite` looks for in an exported graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import onnx_ir as ir


class Convolution(NamedTuple):
    """A convolution over two axes: rows and columns, or frames and positions."""

    outputs: int
    channels: int
    kernel: tuple[int, int]
    pads: tuple[int, ...]  # before each axis, then after each
    steps: tuple[int, int]
    over_frames: bool

    def sizes(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Of the two axes, from the shape ``[N, C, ...]`` of the input; frames come before positions."""
        spatial = shape[2:]
        return (spatial[0], math.prod(spatial[1:])) if self.over_frames else tuple(spatial)

    def ends(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """The sizes of the output."""
        return tuple(
            (size + self.pads[i] + self.pads[i + 2] - self.kernel[i]) // self.steps[i] + 1
            for i, size in enumerate(sizes)
        )

    @property
    def is_linear(self) -> bool:
        """Whether it maps each position alone."""
        return self.kernel == (1, 1) and self.steps == (1, 1) and not any(self.pads)


def convolution(node: ir.Node, shape: Sequence[int]) -> Convolution | None:
    """Read a Conv whose weight has ``shape``; None for what is not done over two axes."""
    outputs, channels, *kernel = shape
    rank = len(kernel)
    pads = integers(node, "pads", [0] * 2 * rank)
    steps = integers(node, "strides", [1] * rank)
    padding = node.attributes.get("auto_pad")
    if integer(node, "group", 1) != 1 or set(integers(node, "dilations", [1] * rank)) != {1}:
        return None
    if padding is not None and padding.as_string() != "NOTSET":
        return None
    if rank == 2:
        return Convolution(outputs, channels, (kernel[0], kernel[1]), pads, (steps[0], steps[1]), False)
    if rank == 3 and tuple(kernel[1:]) == (1, 1) and steps == (1, 1, 1) and not any((*pads[1:3], *pads[4:])):
        return Convolution(outputs, channels, (kernel[0], 1), (pads[0], 0, pads[3], 0), (1, 1), True)
    return None


def join_pieces(graph: ir.Graph, widths: Sequence[int]) -> None:
    """Undo feed-forwards in pieces: Split of rows, the same steps on each, Concat become the steps on all rows.

    Only gates of these ``widths``, which are one operation: as several, the whole would need far more memory.
    """
    for concat in [node for node in graph if node.op_type == "Concat" and integer(node, "axis") == 0]:
        branches = {_branch(value) for value in concat.inputs}
        if len(branches) != 1 or None in branches:
            continue
        split = _split_above(concat.inputs[0])
        assert split is not None
        last = concat.inputs[0]
        assert last is not None and concat.outputs[0].shape is not None
        steps = _steps(last)
        halves = [node for value in steps if (node := value.producer()) is not None and gate(node)[0]]
        if len(split.outputs) != len(concat.inputs) or not all(_width(node) in widths for node in halves):
            continue
        first = split.outputs[0]
        all_rows = split.inputs[0]
        assert all_rows is not None
        rows = concat.outputs[0].shape[0]
        for value in steps:
            assert value.shape is not None
            value.shape = ir.Shape([rows, *value.shape[1:]])
        ir.convenience.replace_all_uses_with(concat.outputs[0], last)
        ir.convenience.replace_all_uses_with(first, all_rows)


_PER_ROW = {"Gemm", "Gelu", "Mul"}


def _branch(value: ir.Value | None) -> tuple[Any, ...] | None:
    """The steps from a Split of rows down to ``value``, with the weights they use; None for other steps."""
    node = None if value is None else value.producer()
    if value is None or node is None:
        return ("constant", None if value is None else value.name)
    if _is_row_split(node):
        return ("rows", node.outputs[0].name)
    if node.op_type not in _PER_ROW and not (node.op_type == "Split" and integer(node, "axis") == 1):
        return None
    inputs = tuple(_branch(source) for source in node.inputs)
    attributes = tuple(sorted((key, str(attribute.value)) for key, attribute in node.attributes.items()))
    return None if None in inputs else (node.op_type, attributes, value.index(), inputs)


def _width(split: ir.Node) -> int | ir.SymbolicDim | None:
    shape = split.outputs[0].shape
    return None if shape is None else shape[-1]


def _steps(value: ir.Value | None) -> set[ir.Value]:
    """What is computed between a Split of rows and ``value``."""
    node = None if value is None else value.producer()
    if node is None or _is_row_split(node):
        return set()
    return set(node.outputs).union(*(_steps(source) for source in node.inputs))


def _split_above(value: ir.Value | None) -> ir.Node | None:
    node = None if value is None else value.producer()
    if node is None or _is_row_split(node):
        return node
    return next((split for source in node.inputs if (split := _split_above(source))), None)


def _is_row_split(node: ir.Node) -> bool:
    return node.op_type == "Split" and integer(node, "axis") == 0


def integer(node: ir.Node, name: str, default: int = 0) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def integers(node: ir.Node, name: str, default: Sequence[int]) -> tuple[int, ...]:
    attribute = node.attributes.get(name)
    return tuple(default if attribute is None else attribute.as_ints())


def real(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()


def gate(node: ir.Node) -> tuple[ir.Node | None, ir.Node | None]:
    """The Gelu and the Mul after a Split in two, if that is all there is."""
    if len(node.outputs) != 2:
        return None, None
    first, second = ([usage.node for usage in output.uses()] for output in node.outputs)
    if len(first) != 1 or len(second) != 1 or second[0].op_type != "Gelu" or first[0].op_type != "Mul":
        return None, None
    approximate = second[0].attributes.get("approximate")
    if approximate is not None and approximate.as_string() != "none":
        return None, None
    users = [usage.node for usage in second[0].outputs[0].uses()]
    return (second[0], first[0]) if users == [first[0]] else (None, None)


def after_norm(node: ir.Node) -> tuple[ir.Value, bool]:
    """What a norm, perhaps with SiLU and a cast back to FP16 after it, computes; whether there is SiLU."""
    value, silu = node.outputs[0], False
    users = [usage.node for usage in value.uses()]
    if sorted(user.op_type for user in users) == ["Mul", "Sigmoid"]:
        product = next(user for user in users if user.op_type == "Mul")
        value, silu = product.outputs[0], True
        users = [usage.node for usage in value.uses()]
    if len(users) == 1 and users[0].op_type == "Cast":
        value = users[0].outputs[0]
    return value, silu


def between(node: ir.Node, output: ir.Value) -> set[ir.Node]:
    """The nodes on the way from ``node`` to ``output``."""
    nodes: set[ir.Node] = set()
    todo = [output.producer()]
    while todo:
        current = todo.pop()
        if current is not None and current is not node and current not in nodes:
            nodes.add(current)
            todo += [value.producer() for value in current.inputs if value is not None]
            if len(nodes) > 4:
                break
    return nodes
