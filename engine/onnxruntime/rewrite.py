"""Graphs rewritten for ONNX Runtime's CUDA provider, which runs an exported FP16 graph as it stands slowly.

As exported, maps are channels-first, and every norm is a chain of small operations: ONNX Runtime has no kernel for
GroupNormalization, and the shape arithmetic of its expansion runs on the CPU, five copies between the two a norm.
Here everything is channels-last and large steps are single operations of the ``com.microsoft`` domain: norm with
SiLU, sum with norm, bias with gate, attention on tokens as they lie.

Memory first: an array is rows of channels, and every tensor of the exported graph is a view of one (:data:`Layout`),
so that its many Reshape and Transpose nodes become nothing. Where an operation needs another order of rows, the
rows are reordered once, as far up as that costs no more (:meth:`_Rewriter._ordered`): attention over frames takes
one transposition before and one after a block. Sums and biases wait (:class:`Stored`) until somebody reads them,
who then adds them in the same pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common as passes

from v2v.core.errors import BuildError
from v2v.engine.onnxruntime.layout import (
    Axis,
    Factor,
    Layout,
    dense,
    is_dense,
    merged,
    refined,
    reshaped,
    shape_of,
    wider,
)
from v2v.engine.onnxruntime.patterns import (
    Convolution,
    after_norm,
    between,
    convolution,
    gate,
    integer,
    integers,
    join_pieces,
    real,
)

CONTRIB = "com.microsoft"

OPSET = 18
"""Of the rewritten graph: the provider has kernels for all of it, which newer opsets' Reshape or Cast may lack."""

GATED_WIDTHS = (1280, 2560, 3072, 5120, 6144)
"""Widths of the gated half for which BiasSplitGelu is compiled."""

MOST_ELEMENTS = 2**31 - 1
"""Of an array: kernels count in 32 bits."""

# Arrays -----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Stored:
    """An array of the rewritten graph, rows of ``channels``, or how to make it.

    One of three: ``value`` is there; ``make`` writes it, given a bias to add or None; or it is the sum of
    ``parts``. ``bias`` [channels] is still to be added to what is made. ``remake``, of operations that treat each row
    alone, makes it from ``sources`` whose rows are in another order.
    """

    size: int
    channels: int
    value: ir.Value | None = None
    make: Callable[[ir.Value | None], ir.Value] | None = None
    parts: tuple[Stored, Stored] | None = None
    bias: ir.Value | None = None
    sources: tuple[Stored, ...] = ()
    remake: Callable[[tuple[Stored, ...]], Stored] | None = None
    reordered: dict[Axis, Stored] = field(default_factory=dict)
    value_without_bias: ir.Value | None = None


class View(NamedTuple):
    """A tensor of the exported graph: where its axes lie in an array."""

    stored: Stored
    layout: Layout

    @property
    def shape(self) -> tuple[int, ...]:
        return shape_of(self.layout)


def rewrite(model: ir.Model) -> ir.Model:
    """The same computation for the CUDA provider; ``model`` is used up.

    Args:
        model: an FP16 graph as :mod:`v2v.export.graphs` writes it: all shapes static.

    Returns:
        A graph with the same inputs and outputs. Its large initializers are lazy: they read ``model``'s.

    Raises:
        BuildError: the graph holds what the provider has no operation for.
    """
    join_pieces(model.graph, GATED_WIDTHS)
    passes.RemoveUnusedNodesPass()(model)
    rewritten = _Rewriter(model.graph).model(model)
    passes.CommonSubexpressionEliminationPass()(rewritten)
    passes.RemoveUnusedNodesPass()(rewritten)
    return rewritten


def rewrite_file(source: Path, target: Path, progress: Callable[[float], None] = lambda share: None) -> None:
    """Rewrite ``source`` and write it, with its weights in ``<target>.data``."""
    rewritten = rewrite(ir.load(source))

    def report(_: Any, information: Any) -> None:
        progress((information.index + 1) / information.total)

    ir.save(rewritten, target, external_data=f"{target.name}.data", callback=report)


# Rewriting --------------------------------------------------------------------------------------------------

_KEEPS_ORDER = {
    "Cast",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Identity",
}  # of elements: what may lie above a weight
_ELEMENTWISE = {
    "Mul",
    "Sigmoid",
    "Gelu",
    "Cast",
    "Cos",
    "Sin",
    "Neg",
    "Exp",
    "Tanh",
    "Div",
    "Sub",
    "Clip",
    "QuickGelu",
}


class _Rewriter:
    """Walks the exported graph in its order; ``views`` says where each of its tensors lies in the new one."""

    def __init__(self, graph: ir.Graph) -> None:
        self.old = graph
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self.views: dict[ir.Value, View] = {}
        self.translated: set[ir.Node] = set()
        self.shapes: dict[tuple[ir.Value, tuple[int, ...]], ir.Value] = {}

    def model(self, model: ir.Model) -> ir.Model:
        """The rewritten graph in a model like ``model``."""
        inputs = []
        for value in self.old.inputs:
            entry = ir.Value(name=value.name, shape=value.shape, type=value.type)
            inputs.append(entry)
            self.views[value] = self._dense(entry)
        for node in self.old:
            if node not in self.translated and not all(self._origin(value) for value in node.inputs):
                self._translate(node)
        outputs = [self._output(value) for value in self.old.outputs]
        graph = ir.Graph(
            inputs,
            outputs,
            nodes=self.nodes,
            initializers=list(self.initializers.values()),
            opset_imports={"": OPSET, CONTRIB: 1},
            name=self.old.name,
        )
        return ir.Model(graph, ir_version=min(model.ir_version, 10), producer_name="v2v")

    def _translate(self, node: ir.Node) -> None:
        special = getattr(self, f"_{node.op_type.lower()}", None)
        if special is not None and special(node):
            return
        if node.op_type in _ELEMENTWISE and self._elementwise(node):
            return
        self._copy_node(node)

    def _output(self, value: ir.Value) -> ir.Value:
        view = self.views[value]
        array = self._arranged(view, range(len(view.layout)))
        named = self._emit("Identity", [array], view.shape, array.dtype)
        named.name = value.name
        return named

    # Nodes and constants

    def _emit(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        shape: Iterable[int],
        dtype: ir.DataType | None,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """Append a node with one output."""
        node = ir.node(kind, inputs, attributes, domain=domain, num_outputs=1)
        self.nodes.append(node)
        return self._describe(node.outputs[0], shape, dtype)

    @staticmethod
    def _describe(value: ir.Value, shape: Iterable[int], dtype: ir.DataType | None) -> ir.Value:
        value.shape = ir.Shape(tuple(shape))
        if dtype is not None:
            value.dtype = dtype
        return value

    def _shaped(self, value: ir.Value, shape: Iterable[int]) -> ir.Value:
        """``value`` with another shape."""
        shape = tuple(shape)
        if _sizes(value) == shape:
            return value
        if (value, shape) not in self.shapes:
            target = self._constant(np.array(shape, np.int64))
            self.shapes[value, shape] = self._emit("Reshape", [value, target], shape, value.dtype)
        return self.shapes[value, shape]

    def _constant(self, array: npt.NDArray[Any]) -> ir.Value:
        """A small initializer."""
        name = f"{array.dtype.name}{list(array.shape)}" + "_".join(map(str, array.ravel().tolist()))
        if name not in self.initializers:
            tensor = ir.tensor(array, name=name)
            self.initializers[name] = ir.Value(
                name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
        return self.initializers[name]

    def _origin(self, value: ir.Value | None) -> ir.Value | None:
        """The initializer whose elements these are, perhaps in another type or shape; None for computed values."""
        if value is None or (value.const_value is not None and value.producer() is None):
            return value
        node = value.producer()
        return self._origin(node.inputs[0]) if node is not None and node.op_type in _KEEPS_ORDER else None

    def _weight(
        self,
        value: ir.Value | None,
        shape: Sequence[int] | None = None,
        dtype: ir.DataType | None = None,
        change: tuple[str, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] | None = None,
    ) -> ir.Value:
        """The initializer above ``value``: its elements in ``shape`` and ``dtype``, ``change``d.

        ``change`` is a name and what to do to the array of ``shape``.
        """
        origin = self._origin(value)
        assert origin is not None and origin.const_value is not None
        source = origin.const_value
        dtype = dtype or source.dtype
        source_shape = tuple(shape or source.shape.numpy())
        result = source_shape if change is None else change[1](np.empty(source_shape, np.uint8)).shape
        name = "/".join(
            [str(origin.name), dtype.name, "x".join(map(str, result)), *([change[0]] if change else [])]
        )
        if name not in self.initializers:

            def convert() -> ir.TensorProtocol:
                array = source.numpy().reshape(source_shape)
                array = array if change is None else change[1](array)
                return ir.tensor(np.ascontiguousarray(array.astype(dtype.numpy(), copy=False)), name=name)

            lazy = ir.LazyTensor(convert, dtype=dtype, shape=ir.Shape(result), name=name)
            self.initializers[name] = ir.Value(
                name=name, shape=ir.Shape(result), type=ir.TensorType(dtype), const_value=lazy
            )
        return self.initializers[name]

    # Views and arrays

    def _dense(self, value: ir.Value) -> View:
        shape = _sizes(value)
        return View(Stored(math.prod(shape), shape[-1] if shape else 1, value), dense(shape))

    def _view(self, value: ir.Value | None) -> View:
        """Where a tensor of the exported graph lies."""
        assert value is not None
        if value not in self.views:
            origin = self._origin(value)
            assert origin is not None and value.shape is not None, f"nothing computed {value.name}"
            shape = value.shape.numpy()
            self.views[value] = self._dense(self._weight(origin, shape, value.dtype))
        return self.views[value]

    def _materialised(self, stored: Stored) -> ir.Value:
        """The array itself, biases and sums added."""
        if stored.value is None:
            if stored.parts is not None:
                first, second, bias = self._summands(stored)
                shape = (1, stored.size // stored.channels, stored.channels)
                arrays = [self._shaped(array, shape) for array in (first, second)]
                if bias is None:
                    stored.value = self._emit("Add", arrays, shape, first.dtype)
                else:
                    inputs = [arrays[0], bias, arrays[1]]
                    stored.value = self._emit("BiasAdd", inputs, shape, first.dtype, CONTRIB)
            else:
                assert stored.make is not None
                stored.value = stored.make(stored.bias)
        return stored.value

    def _without_bias(self, stored: Stored) -> tuple[ir.Value, ir.Value | None]:
        """The array without the bias that must still be added, and that bias."""
        if stored.value is not None or stored.make is None:
            return self._materialised(stored), None
        stored.value_without_bias = stored.value_without_bias or stored.make(None)
        return stored.value_without_bias, stored.bias

    def _summands(self, stored: Stored) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        """The two arrays of a sum and the bias to add to them."""
        assert stored.parts is not None
        second, bias_2 = self._without_bias(
            stored.parts[1]
        )  # the younger first: on its way the elder may get its value
        first, bias_1 = self._without_bias(stored.parts[0])
        return first, second, self._vector_sum(bias_1, bias_2)

    def _vector_sum(self, first: ir.Value | None, second: ir.Value | None) -> ir.Value | None:
        if first is None or second is None:
            return first or second
        return self._emit("Add", [first, second], _sizes(first), first.dtype)

    def _sum(self, first: Stored, second: Stored) -> Stored:
        return Stored(
            first.size,
            first.channels,
            parts=(first, second),
            sources=(first, second),
            remake=lambda parts: self._sum(parts[0], parts[1]),
        )

    def _arranged(self, view: View, axes: Iterable[int]) -> ir.Value:
        """The view's array with its axes in this order, densely."""
        axes = tuple(axes)
        layout = tuple(view.layout[axis] for axis in axes)
        return self._shaped(
            self._in_order(view.stored, [f for axis in layout for f in axis]), shape_of(layout)
        )

    def _in_order(self, stored: Stored, order: Sequence[Factor]) -> ir.Value:
        """The array with its factors in this order."""
        if is_dense(order):
            return self._materialised(stored)
        for inner in range(1, len(order)):
            rows, channels = order[:-inner], order[-inner:]
            if math.prod(size for size, _ in channels) == stored.channels and is_dense(channels):
                return self._materialised(self._ordered(stored, rows))
        return self._transposed(self._materialised(stored), order)

    def _transposed(self, value: ir.Value, order: Sequence[Factor]) -> ir.Value:
        order = [factor for factor in order if factor[0] > 1]
        order = list(merged(order))
        memory_order = sorted(order, key=lambda factor: -factor[1])
        array = self._shaped(value, [size for size, _ in memory_order])
        shape = [size for size, _ in order]
        return self._emit(
            "Transpose", [array], shape, value.dtype, perm=[memory_order.index(factor) for factor in order]
        )

    def _cost(self, stored: Stored, rows: Sequence[Factor]) -> float:
        """Transpositions that :meth:`_ordered` would add."""
        if is_dense(rows, stored.channels) or merged(rows) in stored.reordered:
            return 0
        return min(1.0, self._cost_above(stored, rows))

    def _cost_above(self, stored: Stored, rows: Sequence[Factor]) -> float:
        if stored.remake is None or (stored.parts is not None and stored.value is not None):
            return math.inf
        return sum(self._cost(source, _scaled(rows, stored, source)) for source in stored.sources)

    def _ordered(self, stored: Stored, rows: Sequence[Factor]) -> Stored:
        """The same with its rows in this order: made from reordered sources where that costs no more."""
        key = merged(rows)
        if is_dense(rows, stored.channels):
            return stored
        if key not in stored.reordered:
            if self._cost_above(stored, rows) <= 1:
                assert stored.remake is not None
                sources = [self._ordered(source, _scaled(rows, stored, source)) for source in stored.sources]
                stored.reordered[key] = stored.remake(tuple(sources))
            else:
                value = self._transposed(self._materialised(stored), [*rows, (stored.channels, 1)])
                stored.reordered[key] = Stored(stored.size, stored.channels, value)
        return stored.reordered[key]

    # What changes only the view

    def _transpose(self, node: ir.Node) -> bool:
        view = self._view(node.inputs[0])
        axes = integers(node, "perm", range(len(view.layout))[::-1])
        self.views[node.outputs[0]] = View(view.stored, tuple(view.layout[axis] for axis in axes))
        return True

    def _reshape(self, node: ir.Node) -> bool:
        view = self._view(node.inputs[0])
        target = self._integers_of(node.inputs[1])
        shape = [view.shape[i] if size == 0 else size for i, size in enumerate(target)]
        if -1 in shape:
            shape[shape.index(-1)] = view.stored.size // -math.prod(shape)
        return self._reshape_view(node, view, shape)

    def _unsqueeze(self, node: ir.Node) -> bool:
        view = self._view(node.inputs[0])
        axes = self._integers_of(node.inputs[1])
        rank = len(view.layout) + len(axes)
        sizes = list(view.shape)
        for axis in sorted(axis % rank for axis in axes):
            sizes.insert(axis, 1)
        return self._reshape_view(node, view, sizes)

    def _squeeze(self, node: ir.Node) -> bool:
        view = self._view(node.inputs[0])
        axes = {axis % len(view.layout) for axis in self._integers_of(node.inputs[1])}
        return self._reshape_view(node, view, [size for i, size in enumerate(view.shape) if i not in axes])

    def _reshape_view(self, node: ir.Node, view: View, shape: Sequence[int]) -> bool:
        layout = reshaped(view.layout, shape)
        if layout is None:
            value = self._shaped(self._arranged(view, range(len(view.layout))), shape)
            self.views[node.outputs[0]] = self._dense(value)
        else:
            self.views[node.outputs[0]] = View(view.stored, layout)
        return True

    def _integers_of(self, value: ir.Value | None) -> list[int]:
        origin = self._origin(value)
        assert origin is not None and origin.const_value is not None, "shapes must be constants"
        values: list[int] = origin.const_value.numpy().ravel().tolist()
        return values

    def _cast(self, node: ir.Node) -> bool:
        """A cast for a norm alone is the norm's own business: it computes in FP32."""
        users = [usage.node for usage in node.outputs[0].uses()]
        if integer(node, "to") == ir.DataType.FLOAT and all(user.op_type in _NORMS for user in users):
            self.views[node.outputs[0]] = self._view(node.inputs[0])
            return True
        return False

    # Products

    def _conv(self, node: ir.Node) -> bool:
        x, origin = self._view(node.inputs[0]), self._origin(node.inputs[1])
        if origin is None or origin.shape is None:
            return False
        conv = convolution(node, origin.shape.numpy())
        if conv is None:
            return False
        batch, sizes = x.shape[0], conv.sizes(x.shape)
        axes = (0, *range(2, len(x.layout)), 1)
        array = self._shaped(self._arranged(x, axes), (batch, *sizes, conv.channels))
        if conv.is_linear:
            weight = self._weight(origin, (conv.outputs, conv.channels))
            rows = Stored(x.stored.size, conv.channels, array)
            stored = self._product(rows, weight, self._bias(node), batch * math.prod(sizes))
        else:
            stored = self._convolved(array, conv, origin, self._bias(node))
        ends = x.shape[2:] if conv.over_frames else conv.ends(sizes)
        self.views[node.outputs[0]] = _channels_second(stored, (batch, *ends, conv.outputs))
        return True

    def _convolved(
        self, array: ir.Value, conv: Convolution, origin: ir.Value, bias: ir.Value | None
    ) -> Stored:
        """``array`` [N, rows, columns, C] convolved with the weights ``origin`` [O, C, kernel...]."""
        last = ("last", lambda weight: np.moveaxis(weight, 1, -1))
        weight = self._weight(origin, (conv.outputs, conv.channels, *conv.kernel), change=last)
        batch, *sizes, _ = _sizes(array)
        shape = (batch, *conv.ends(sizes), conv.outputs)

        def make(added: ir.Value | None) -> ir.Value:
            return self._emit(
                "NhwcConv",
                [array, weight] if added is None else [array, weight, added],
                shape,
                array.dtype,
                CONTRIB,
                kernel_shape=list(conv.kernel),
                pads=list(conv.pads),
                strides=list(conv.steps),
            )

        return Stored(math.prod(shape), conv.outputs, make=make, bias=bias)

    def _bias(self, node: ir.Node) -> ir.Value | None:
        """The third input of a convolution or product, as a vector."""
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        return None if bias is None else self._weight(bias)

    def _gemm(self, node: ir.Node) -> bool:
        x, weight = self._view(node.inputs[0]), self._origin(node.inputs[1])
        if weight is None or integer(node, "transA") or not integer(node, "transB"):
            return False
        if any(real(node, name, 1.0) != 1.0 for name in ("alpha", "beta")):
            return False
        rows, inner = x.shape
        if x.layout[1] != ((inner, 1),) or x.stored.channels != inner:
            x = self._dense(self._arranged(x, (0, 1)))
        assert weight.shape is not None
        out = weight.shape[0]
        assert isinstance(out, int)
        stored = self._product(x.stored, self._weight(weight, (out, inner)), self._bias(node), rows)
        self.views[node.outputs[0]] = View(stored, (wider(x.layout[0], inner, out), dense((out,))[0]))
        return True

    def _product(self, x: Stored, weight: ir.Value, bias: ir.Value | None, rows: int) -> Stored:
        """Each row of ``x`` times the transpose of ``weight`` [O, I], plus ``bias``."""
        out = _sizes(weight)[0]

        def make(added: ir.Value | None) -> ir.Value:
            array = self._shaped(self._materialised(x), (rows, x.channels))
            inputs = [array, weight] if added is None else [array, weight, added]
            return self._emit("Gemm", inputs, (rows, out), array.dtype, transB=1)

        return Stored(
            rows * out,
            out,
            make=make,
            bias=bias,
            sources=(x,),
            remake=lambda sources: self._product(sources[0], weight, bias, rows),
        )

    def _split(self, node: ir.Node) -> bool:
        """The gate of a feed-forward: Split in two, Gelu on the second, Mul."""
        x = self._view(node.inputs[0])
        gelu, product = gate(node)
        if gelu is None or product is None or x.stored.make is None or x.stored.value is not None:
            return False
        width = x.stored.channels // 2
        if x.layout[-1] != ((2 * width, 1),) or width not in GATED_WIDTHS:
            return False
        array, bias = self._without_bias(x.stored)
        if bias is None:
            bias = self._constant(np.zeros(2 * width, array.dtype.numpy() if array.dtype else np.float16))
        rows = x.stored.size // (2 * width)
        array = self._shaped(array, (1, rows, 2 * width))
        value = self._emit("BiasSplitGelu", [array, bias], (1, rows, width), array.dtype, CONTRIB)
        layout = tuple(wider(axis, 2, 1) for axis in x.layout[:-1])
        self.views[product.outputs[0]] = View(Stored(rows * width, width, value), (*layout, ((width, 1),)))
        self.translated |= {gelu, product}
        return True

    # Norms

    def _groupnormalization(self, node: ir.Node) -> bool:
        x = self._view(node.inputs[0])
        batch, channels, *sizes = x.shape
        if channels // integer(node, "num_groups") % 2:
            return False  # the kernel reads channels in pairs
        output, silu = after_norm(node)
        axes = (0, *range(2, len(x.layout)), 1)
        last = sizes[-1] if sizes else 1
        shape = (batch, math.prod(sizes) // last, last, channels)
        order = [factor for axis in axes for factor in x.layout[axis]]
        stored = x.stored
        if not is_dense(order) or stored.channels != channels:
            stored = Stored(stored.size, channels, self._arranged(x, axes))
        scale, offset = (self._weight(value, dtype=ir.DataType.FLOAT) for value in node.inputs[1:3])
        attributes = {
            "epsilon": real(node, "epsilon", 1e-5),
            "groups": integer(node, "num_groups"),
            "activation": int(silu),
            "channels_last": 1,
        }
        if stored.value is None and stored.parts is not None:
            first, second, bias = self._summands(stored)
            arrays = [self._shaped(array, shape) for array in (first, second)]
            norm = ir.node(
                "SkipGroupNorm",
                [arrays[0], scale, offset, arrays[1], *([] if bias is None else [bias])],
                attributes,
                domain=CONTRIB,
                num_outputs=2,
            )
            self.nodes.append(norm)
            value, stored.value = (self._describe(out, shape, first.dtype) for out in norm.outputs)
        else:
            array = self._shaped(self._materialised(stored), shape)
            value = self._emit("GroupNorm", [array, scale, offset], shape, array.dtype, CONTRIB, **attributes)
        self.views[output] = _channels_second(Stored(stored.size, channels, value), (batch, *sizes, channels))
        self.translated |= between(node, output)
        return True

    def _layernormalization(self, node: ir.Node) -> bool:
        x = self._view(node.inputs[0])
        if integer(node, "axis", -1) not in (-1, len(x.layout) - 1):
            return False
        if x.layout[-1] != ((x.stored.channels, 1),):
            x = self._dense(self._arranged(x, range(len(x.layout))))
        output, silu = after_norm(node)
        if silu:
            return False
        scale, offset = (self._weight(value) for value in node.inputs[1:3])
        stored = self._layer_norm(x.stored, scale, offset, real(node, "epsilon", 1e-5))
        self.views[output] = View(stored, x.layout)
        self.translated |= between(node, output)
        return True

    def _layer_norm(self, x: Stored, scale: ir.Value, offset: ir.Value, epsilon: float) -> Stored:
        """Layer norm of each row; where the rows are a sum, the sum comes with it."""
        shape = (1, x.size // x.channels, x.channels)
        if x.value is None and x.parts is not None:
            first, second, bias = self._summands(x)
            arrays = [self._shaped(array, shape) for array in (first, second)]
            node = ir.node(
                "SkipLayerNormalization",
                [*arrays, scale, offset, *([] if bias is None else [bias])],
                {"epsilon": epsilon},
                domain=CONTRIB,
                num_outputs=4,
            )
            self.nodes.append(node)
            value = self._describe(node.outputs[0], shape, first.dtype)
            node.outputs[1].name = node.outputs[2].name = ""  # mean and deviation: not wanted
            x.value = self._describe(node.outputs[3], shape, first.dtype)
        else:
            array = self._shaped(self._materialised(x), shape)
            value = self._emit(
                "LayerNormalization", [array, scale, offset], shape, array.dtype, epsilon=epsilon, axis=-1
            )
        return Stored(
            x.size,
            x.channels,
            value,
            sources=(x,),
            remake=lambda sources: self._layer_norm(sources[0], scale, offset, epsilon),
        )

    # Attention

    def _attention(self, node: ir.Node) -> bool:
        """``[N, heads, tokens, size]`` each; the operation takes ``[N, tokens, heads * size]``."""
        query, key, value = (self._view(source) for source in node.inputs[:3])
        batch, heads, tokens, size = query.shape
        if any(source is not None for source in node.inputs[3:]) or key.shape != value.shape:
            return False
        if key.shape[1] != heads or key.shape[3] != size or "scale" in node.attributes:
            return False
        arrays = [
            self._shaped(self._arranged(view, (0, 2, 1, 3)), (view.shape[0], view.shape[2], heads * size))
            for view in (query, key, value)
        ]
        shape = (batch, tokens, heads * size)
        attributes = {"num_heads": heads, "unidirectional": integer(node, "is_causal")}
        output = self._emit("MultiHeadAttention", arrays, shape, arrays[0].dtype, CONTRIB, **attributes)
        axes = dense((batch, tokens, heads, size))
        stored = Stored(math.prod(shape), heads * size, output)
        self.views[node.outputs[0]] = View(stored, tuple(axes[axis] for axis in (0, 2, 1, 3)))
        return True

    # Sums and the rest

    def _add(self, node: ir.Node) -> bool:
        first, second = self._view(node.inputs[0]), self._view(node.inputs[1])
        if first.shape != second.shape:
            return self._add_vector(node, first, second) or self._add_vector(node, second, first)
        cuts = [refined(left, right) for left, right in zip(first.layout, second.layout, strict=True)]
        if None in cuts or first.stored.channels != second.stored.channels:
            return False
        ours, theirs = (tuple(cut[side] for cut in cuts if cut) for side in (0, 1))
        pairs = list(
            zip((f for axis in ours for f in axis), (f for axis in theirs for f in axis), strict=True)
        )
        in_ours = sorted(pairs, key=lambda pair: -pair[0][1])
        in_theirs = sorted(pairs, key=lambda pair: -pair[1][1])
        layout, left, right = ours, first.stored, second.stored
        if in_ours != in_theirs:
            inner = _inner(in_ours, left.channels)
            if inner is None or in_ours[-inner:] != in_theirs[-inner:]:
                return False
            to_theirs = [pair[0] for pair in in_theirs[:-inner]]
            to_ours = [pair[1] for pair in in_ours[:-inner]]
            if self._cost(left, to_theirs) < self._cost(right, to_ours):
                left, layout = self._ordered(left, to_theirs), theirs
            else:
                right = self._ordered(right, to_ours)
        self.views[node.outputs[0]] = View(self._sum(left, right), tuple(merged(axis) for axis in layout))
        return True

    def _add_vector(self, node: ir.Node, view: View, small: View) -> bool:
        """A number for each channel, added to a product that still waits for its bias."""
        stored = view.stored
        shape = (1,) * (len(view.layout) - len(small.layout)) + small.shape
        wide = [axis for axis, size in enumerate(shape) if size > 1]
        if len(wide) != 1 or view.layout[wide[0]] != ((stored.channels, 1),):
            return False
        if stored.make is None or stored.value is not None or small.stored.size != stored.channels:
            return False
        vector = self._shaped(self._arranged(small, range(len(small.layout))), (stored.channels,))
        summed = self._vector_sum(stored.bias, vector)
        self.views[node.outputs[0]] = View(
            Stored(stored.size, stored.channels, make=stored.make, bias=summed), view.layout
        )
        return True

    def _concat(self, node: ir.Node) -> bool:
        views = [self._view(value) for value in node.inputs]
        rank = len(views[0].layout)
        axis = integer(node, "axis") % rank
        strides = [max((stride for _, stride in axis_factors), default=0) for axis_factors in views[0].layout]
        axes = sorted(range(rank), key=lambda i: (-strides[i] if strides[i] else -math.inf, i))
        if rank < 4 or axis != axes[-1]:
            return False
        arrays = [self._arranged(view, axes) for view in views]
        shape = [*_sizes(arrays[0])[:-1], sum(_sizes(array)[-1] for array in arrays)]
        value = self._emit("Concat", arrays, shape, arrays[0].dtype, axis=rank - 1)
        self.views[node.outputs[0]] = _permuted(self._dense(value), axes)
        return True

    def _resize(self, node: ir.Node) -> bool:
        """Each position repeated twice along rows and columns; a Slice of rows after it costs nothing more."""
        x = self._view(node.inputs[0])
        scales = self._origin(node.inputs[2]) if len(node.inputs) > 2 else None
        mode = node.attributes["mode"].as_string()
        if mode != "nearest" or len(x.layout) != 4 or scales is None or scales.const_value is None:
            return False
        if scales.const_value.numpy().tolist() != [1, 1, 2, 2]:
            return False
        batch, channels, height, width = x.shape
        array = self._shaped(self._arranged(x, (0, 2, 3, 1)), (batch, height, width, channels))
        columns = self._emit(
            "Concat", [array, array], (batch, height, width, 2 * channels), array.dtype, axis=3
        )
        columns = self._shaped(columns, (batch, height, 2 * width * channels))
        output, rows = node.outputs[0], [row // 2 for row in range(2 * height)]
        users = [usage.node for usage in output.uses()]
        if len(users) == 1 and users[0].op_type == "Slice":
            limits = [self._integers_of(value) for value in users[0].inputs[1:]]
            if len(limits) == 4 and limits[2] == [2] and limits[3] == [1]:
                rows = rows[limits[0][0] : limits[1][0]]
                output = users[0].outputs[0]
                self.translated.add(users[0])
        picked = self._constant(np.array(rows, np.int64))
        shape = (batch, len(rows), 2 * width * channels)
        value = self._emit("Gather", [columns, picked], shape, array.dtype, axis=1)
        value = self._shaped(value, (batch, len(rows), 2 * width, channels))
        self.views[output] = _permuted(self._dense(value), (0, 2, 3, 1))
        return True

    def _mul(self, node: ir.Node) -> bool:
        """``x * sigmoid(x)`` in one pass."""
        x, other = node.inputs
        gate = None if other is None else other.producer()
        if gate is None or gate.op_type != "Sigmoid" or gate.inputs[0] is not x:
            return False
        view = self._view(x)
        array = self._materialised(view.stored)
        value = self._emit("QuickGelu", [array], _sizes(array), array.dtype, CONTRIB, alpha=1.0)
        self.views[node.outputs[0]] = View(Stored(view.stored.size, view.stored.channels, value), view.layout)
        return True

    def _elementwise(self, node: ir.Node) -> bool:
        """On arrays as they lie, where all inputs lie alike or have one element."""
        if not _is_exact(node):
            return False
        views = [self._view(value) for value in node.inputs if value is not None]
        large = [view for view in views if view.stored.size > 1]
        if not large or any(view.layout != large[0].layout for view in large):
            return False
        if any(len(view.layout) > len(large[0].layout) for view in views):
            return False
        shape = _sizes(self._materialised(large[0].stored))
        arrays = [
            self._shaped(self._materialised(view.stored), shape if view.stored.size > 1 else ())
            for view in views
        ]
        kind = "com.microsoft" if node.op_type in ("Gelu",) else ""
        attributes = (
            {} if node.op_type == "Gelu" else {k: a.value for k, a in _supported_attributes(node).items()}
        )
        value = self._emit(node.op_type, arrays, shape, node.outputs[0].dtype, kind, **attributes)
        stored = Stored(large[0].stored.size, large[0].stored.channels, value)
        self.views[node.outputs[0]] = View(stored, large[0].layout)
        return True

    def _copy_node(self, node: ir.Node) -> None:
        """Copy the node, on tensors as the exported graph has them."""
        if node.op_type in _NEWER or not _is_exact(node):
            shapes = [self._view(value).shape for value in node.inputs if value is not None]
            raise BuildError(
                f"ONNX Runtime's CUDA provider has no operation for {node.op_type} of {shapes}; "
                "build with --precision fp32 or another --backend"
            )
        inputs = []
        for value in node.inputs:
            view = None if value is None else self._view(value)
            inputs.append(
                None
                if view is None
                else self._shaped(self._arranged(view, range(len(view.layout))), view.shape)
            )
        attributes = {key: attribute.value for key, attribute in _supported_attributes(node).items()}
        domain = CONTRIB if node.op_type == "Gelu" else node.domain
        attributes = {} if node.op_type == "Gelu" else attributes
        copy = ir.node(node.op_type, inputs, attributes, domain=domain, num_outputs=len(node.outputs))
        self.nodes.append(copy)
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            assert old.shape is not None
            self.views[old] = self._dense(self._describe(new, old.shape.numpy(), old.dtype))


_NORMS = {"GroupNormalization", "LayerNormalization"}
_NEWER = {"Attention", "GroupNormalization"}  # since OPSET, or with another meaning


def _is_exact(node: ir.Node) -> bool:
    """Whether a node is not a Gelu by tanh, which the Gelu of CONTRIB is not."""
    approximate = node.attributes.get("approximate")
    return approximate is None or approximate.as_string() == "none"


def _supported_attributes(node: ir.Node) -> dict[str, ir.Attr]:
    """The attributes that the operation has in :data:`OPSET` too."""
    newer = {"Cast": {"saturate", "round_mode"}}
    return {key: value for key, value in node.attributes.items() if key not in newer.get(node.op_type, ())}


def _sizes(value: ir.Value) -> tuple[int, ...]:
    assert value.shape is not None
    return tuple(int(size) for size in value.shape.numpy())


def _scaled(rows: Sequence[Factor], stored: Stored, source: Stored) -> list[Factor]:
    """Factors of ``stored``'s rows as those of ``source``, which has as many rows of other width."""
    return [(size, stride * source.channels // stored.channels) for size, stride in rows]


def _channels_second(stored: Stored, shape: Sequence[int]) -> View:
    """An array ``[N, ..., C]`` seen as ``[N, C, ...]``."""
    axes = dense(shape)
    return View(stored, (axes[0], axes[-1], *axes[1:-1]))


def _inner(pairs: Sequence[tuple[Factor, Factor]], channels: int) -> int | None:
    """How many of the last factors make up a row's channels."""
    count, size = 0, 1
    while size < channels and count < len(pairs):
        count += 1
        size *= pairs[-count][0][0]
    return count if size == channels and count else None


def _permuted(view: View, axes: Sequence[int]) -> View:
    """``view``'s axes are those of another tensor in the order ``axes``: that tensor."""
    layout = [view.layout[axes.index(axis)] for axis in range(len(axes))]
    return View(view.stored, tuple(layout))
