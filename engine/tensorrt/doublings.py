"""Doubling and convolution in one: a map that is repeated and then convolved, as one transposed convolution of the map.

A 3x3 convolution of a map whose rows and columns are repeated adds up the same number twice or four times. Each of the
four places that a position becomes is a sum of four positions by added weights, 16 products in the place of 36, and the
four together are a transposed convolution of 4x4 with a stride of two. The repeated map is never made. Sums of weights
are rounded once more in FP16; in FP32 the two agree to rounding.

Where the first and the last row of the repeated map are dropped before the convolution, it sees zeros beside what is
left, and this one sees what was dropped. Its share in the first and the last row of the result is taken away again; one
row of the map gives it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from v2v.engine.tensorrt.rewrites import add_weight, store_beside

_LEAST_ROWS = 3  # of a map whose first and last row differ from others between them


def double_at_once(source: Path, target: Path) -> int:
    """Write the graph at ``source`` to ``target``, in the same folder, whose doublings are transposed convolutions.

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
        store_beside([writer.weight for writer in writers], target)
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
        self.weight = self._added_weight()  # whose values are not stored yet

    def replace(self) -> None:
        """Do it."""
        import onnx_ir as ir

        doubling = self._doubling
        last = self._doubled(self._map, (1, 1), self._bias) if doubling.crop is None else self._cropped()
        old = [node for node in (doubling.resize, doubling.crop, doubling.convolution) if node is not None]
        ir.convenience.replace_nodes_and_values(
            self._graph, doubling.convolution, old, self._made, [doubling.convolution.outputs[0]], [last]
        )

    def _cropped(self) -> Any:
        """Without the first and the last row of the repeated map, which see what is dropped."""
        rows = self._map.shape[2]
        doubled = self._doubled(self._map, (2, 2), self._bias)
        # Of one row four are made. What is left has the last one of the first row's, and the first one of the last's.
        first = self._doubled(self._rows(self._map, 0, 1), (3, 0), [])
        last = self._doubled(self._rows(self._map, rows - 1, rows), (0, 3), [])
        end = 2 * (rows - 1)
        ends = [
            self._node("Sub", [self._rows(doubled, 0, 1), first]),
            self._rows(doubled, 1, end - 1),
            self._node("Sub", [self._rows(doubled, end - 1, end), last]),
        ]
        return self._node("Concat", ends, axis=2)

    def _doubled(self, given: Any, left_out: tuple[int, int], bias: list[Any]) -> Any:
        """Rows and columns doubled; ``left_out`` of ``2h + 2`` rows above and below."""
        pads = [left_out[0], 1, left_out[1], 1]
        return self._node(
            "ConvTranspose", [given, self.weight, *bias], kernel_shape=[4, 4], strides=[2, 2], pads=pads
        )

    def _rows(self, value: Any, start: int, stop: int) -> Any:
        return self._node("Slice", [value, *map(self._number, (start, stop, 2))])

    def _added_weight(self) -> Any:
        """``[O, I, 3, 3]`` -> ``[I, O, 4, 4]``: mirrored, and each tap once more beside itself."""
        import onnx_ir as ir

        plain = self._doubling.convolution.inputs[1]
        outputs, inputs = plain.shape.numpy()[:2]
        shape, name = ir.Shape([inputs, outputs, 4, 4]), f"{plain.name}_doubling"

        def convert() -> Any:
            mirrored = plain.const_value.numpy().astype(np.float32)[:, :, ::-1, ::-1].swapaxes(0, 1)
            added = np.zeros(shape.numpy(), np.float32)
            for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
                added[:, :, row : row + 3, column : column + 3] += mirrored
            return added.astype(plain.dtype.numpy())

        return add_weight(self._graph, name, shape, plain.dtype, convert)

    def _number(self, number: int) -> Any:
        import onnx_ir as ir

        name = f"doubling_at_{number}"
        if name not in self._graph.initializers:
            tensor = ir.tensor([number], dtype=ir.DataType.INT64, name=name)
            self._graph.register_initializer(ir.Value(name=name, const_value=tensor))
        return self._graph.initializers[name]

    def _node(self, operator: str, inputs: list[Any], **attributes: Any) -> Any:
        """The output of a new node."""
        import onnx_ir as ir

        own = ir.convenience.convert_attributes(attributes)
        number = len(self._made)
        node = ir.Node(
            "", operator, inputs, attributes=own, name=f"{self._doubling.convolution.name}_{number}"
        )
        node.outputs[0].name, node.outputs[0].type = f"{self._map.name}_doubled_{number}", self._map.type
        self._made.append(node)
        return node.outputs[0]
