"""Doubling and convolution in one: a map that is repeated and then convolved, computed on the map itself.

A 3x3 convolution of a map whose rows and columns are repeated adds up the same number twice or four times. So each of
the four places that a position becomes (its phases) is a 2x2 convolution of the map as it was, with added weights: 16
products in the place of 36, and the repeated map is never made. Sums of weights are rounded once more in FP16; in FP32
the two agree to rounding.

Where the first and the last row of the repeated map are dropped before the convolution, it sees zeros beside what is
left, and the phases see what was dropped. Its share, a product of one row of the map by the weights of one phase, is
taken from the first and the last row again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from v2v.engine.tensorrt.rewrites import store_beside

_LEAST_ROWS = 3  # of a map whose first and last row differ from others between them


def double_in_phases(source: Path, target: Path) -> int:
    """Write the graph at ``source`` to ``target``, in the same folder, with doublings in phases.

    Added weights lie in ``<target>.data``, others stay in their file.

    Returns:
        How many doublings there are of that kind.
    """
    import onnx_ir as ir

    model: Any = ir.load(source)
    found = [doubling for node in model.graph if (doubling := _doubling(node)) is not None]
    writers = [_Writer(model.graph, doubling) for doubling in found]
    for writer in writers:
        writer.replace()
    if found:
        store_beside([value for writer in writers for value in writer.weights], target)
    for value in [value for value in model.graph.initializers.values() if not value.uses()]:
        del model.graph.initializers[value.name]
    ir.save(model, target)
    return len(found)


@dataclass(frozen=True)
class _Doubling:
    """A map that is repeated, perhaps without its first and last row then, and convolved."""

    resize: Any
    crop: Any | None  # a Slice
    convolution: Any


def _doubling(node: Any) -> _Doubling | None:
    """What ends in ``node``; None where that is something else."""
    given = {key: attribute.value for key, attribute in node.attributes.items()}
    if node.op_type != "Conv" or not node.inputs[1].is_initializer():
        return None
    if tuple(given.get("kernel_shape", ())) != (3, 3) or tuple(given.get("pads", ())) != (1, 1, 1, 1):
        return None
    if given.get("group", 1) != 1 or {*given.get("strides", ()), *given.get("dilations", ())} - {1}:
        return None
    before = _only_producer(node.inputs[0])
    crop = before if before is not None and _drops_ends(before) else None
    resize = _only_producer(crop.inputs[0]) if crop is not None else before
    if resize is None or not _repeats(resize):
        return None
    if crop is not None and resize.inputs[0].shape[2] < _LEAST_ROWS:
        return None
    return _Doubling(resize, crop, node)


def _only_producer(value: Any) -> Any:
    """The node that makes ``value`` for one other alone; else None."""
    return value.producer() if len(value.uses()) == 1 and not value.is_graph_output() else None


def _drops_ends(node: Any) -> bool:
    """Whether it is a Slice that takes away the first and the last row."""
    if node.op_type != "Slice" or any(value.const_value is None for value in node.inputs[1:]):
        return False
    return [value.const_value.numpy().tolist() for value in node.inputs[1:]] == [[1], [-1], [2], [1]]


def _repeats(node: Any) -> bool:
    """Whether it is a Resize that repeats every row and every column."""
    if node.op_type != "Resize" or len(node.inputs) != 3 or node.inputs[2].const_value is None:
        return False
    ways = {key: attribute.value for key, attribute in node.attributes.items()}
    return bool(
        node.inputs[2].const_value.numpy().tolist() == [1, 1, 2, 2]
        and ways.get("mode") == "nearest"
        and ways.get("nearest_mode") == "floor"
        and ways.get("coordinate_transformation_mode") == "asymmetric"
        and node.inputs[0].shape is not None
        and node.outputs[0].shape is not None
    )


class _Writer:
    """Puts nodes into the place of a doubling."""

    def __init__(self, graph: Any, doubling: _Doubling) -> None:
        self._graph, self._doubling = graph, doubling
        self._map = doubling.resize.inputs[0]
        self._bias = [*doubling.convolution.inputs[2:]]
        self._made: list[Any] = []
        self._kernels = self._make_kernels()

    @property
    def weights(self) -> list[Any]:
        """Initializers whose values are not stored yet."""
        return [*self._kernels.values()]

    def replace(self) -> None:
        """Do it."""
        import onnx_ir as ir

        doubling, result = self._doubling, self._doubling.convolution.outputs[0]
        make = self._cropped if doubling.crop is not None else self._whole
        # Of the places that a position becomes, row by row; each [N, O, h, w].
        places = [make(row, column) for row in (0, 1) for column in (0, 1)]
        last = self._node("DepthToSpace", [self._node("Concat", places, axis=1)], blocksize=2, mode="DCR")
        old = [node for node in (doubling.resize, doubling.crop, doubling.convolution) if node is not None]
        ir.convenience.replace_nodes_and_values(
            self._graph, doubling.convolution, old, self._made, [result], [last]
        )

    def _whole(self, row: int, column: int) -> Any:
        """One place of every position, h and w those of the map."""
        pads = [1 - row, 1 - column, row, column]
        return self._convolution(self._map, self._kernels[row, column], pads, self._bias)

    def _cropped(self, row: int, column: int) -> Any:
        """The same without the first and the last row: the second places of rows, then the first ones of the next."""
        sides = (1 - column, column)
        other = self._kernels[1 - row, column]
        found = self._convolution(self._map, other, [0, sides[0], 0, sides[1]], self._bias)
        rows = self._map.shape[2]
        dropped = self._rows(self._map, 0, 1) if row == 0 else self._rows(self._map, rows - 1, rows)
        share = self._convolution(dropped, self._kernels[row, column], [row, sides[0], 1 - row, sides[1]], [])
        if row == 0:
            ends = [self._node("Sub", [self._rows(found, 0, 1), share]), self._rows(found, 1, rows - 1)]
        else:
            ends = [
                self._rows(found, 0, rows - 2),
                self._node("Sub", [self._rows(found, rows - 2, rows - 1), share]),
            ]
        return self._node("Concat", ends, axis=2)

    def _convolution(self, given: Any, weight: Any, pads: list[int], bias: list[Any]) -> Any:
        return self._node("Conv", [given, weight, *bias], kernel_shape=[2, 2], pads=pads)

    def _rows(self, value: Any, start: int, stop: int) -> Any:
        return self._node("Slice", [value, *map(self._number, (start, stop, 2))])

    def _make_kernels(self) -> dict[tuple[int, int], Any]:
        """Weights ``[O, I, 2, 2]`` for even and odd rows and columns of the result."""
        import onnx_ir as ir

        plain = self._doubling.convolution.inputs[1]
        shape = ir.Shape([*plain.shape.numpy()[:2], 2, 2])
        found = {}
        for place in ((0, 0), (0, 1), (1, 0), (1, 1)):
            name = f"{plain.name}_phase_{place[0]}{place[1]}"

            def convert(place: tuple[int, int] = place, name: str = name) -> Any:
                wide = plain.const_value.numpy().astype(np.float32)
                kernel = _pair(_pair(wide, place[0], 2), place[1], 3)
                return ir.tensor(kernel.astype(plain.dtype.numpy()), name=name)

            lazy = ir.LazyTensor(convert, dtype=plain.dtype, shape=shape, name=name)
            found[place] = ir.Value(name=name, shape=shape, type=plain.type, const_value=lazy)
            self._graph.register_initializer(found[place])
        return found

    def _number(self, number: int) -> Any:
        import onnx_ir as ir

        name = f"phases_{number}"
        if name not in self._graph.initializers:
            tensor = ir.tensor([number], dtype=ir.DataType.INT64, name=name)
            self._graph.register_initializer(ir.Value(name=name, const_value=tensor))
        return self._graph.initializers[name]

    def _node(self, operator: str, inputs: list[Any], **attributes: Any) -> Any:
        """The output of a new node."""
        import onnx_ir as ir

        own = ir.convenience.convert_attributes(attributes)
        name = f"{self._doubling.convolution.name}_{len(self._made)}"
        node = ir.Node("", operator, inputs, attributes=own, name=name)
        node.outputs[0].name, node.outputs[0].type = (
            f"{self._map.name}_doubled_{len(self._made)}",
            self._map.type,
        )
        self._made.append(node)
        return node.outputs[0]


def _pair(kernel: Any, place: int, axis: int) -> Any:
    """Three taps on repeated entries as two on what was repeated, for the first or the second of its two places."""
    before, at, after = np.split(kernel, 3, axis)
    return np.concatenate([before + at, after] if place else [before, at + after], axis)
