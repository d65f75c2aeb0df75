"""Products of a UNet's graph in FP8 (e4m3), written as ONNX writes it: QuantizeLinear and DequantizeLinear around them.

The products are those that the fused network computes so (:mod:`v2v.engine.inductor.fused.fp8` says why): behind norms
and gates, but for those that depend on the prompt alone. TensorRT takes a pair of nodes before a product for its type,
and lets the norm or gate before it write e4m3.

Scales are fixed, one for what a product is given and one for its weights. They leave room for four times the largest
number of a rehearsal, and are powers of two: exact in FP16 down to 2^-24, and without a rounding of their own. A scale
for each output channel would be no more exact, as e4m3 has an exponent, and costs time: with it NVIDIA's compiler keeps
a convolution's sums in FP32 and multiplies them in a pass of their own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from v2v.core.errors import BuildError
from v2v.engine.tensorrt.rewrites import add_weight, store_beside

PRODUCTS = re.compile(
    r"\.(in_layers\.2|out_layers\.3|temopral_conv\.conv\d\.\d|ff\.net\.(0\.proj|2)|attn\d\.to_[qkv])\.weight(_rows)?"
)
"""Weights of what is multiplied in FP8, by their names in the checkpoint or as rows (:mod:`.rewrites`)."""

_LARGEST = 448.0  # of e4m3
_ROOM = 4.0  # numbers so many times those of the rehearsal do not saturate
_SMALLEST_SCALE = -24  # the exponent of FP16's smallest number


def quantise(source: Path, target: Path, largest: Mapping[str, float]) -> int:
    """Write the FP16 graph at ``source`` to ``target``, in the same folder, with products in FP8.

    Weights in FP8 lie in ``<target>.data``, others stay in their file.

    Args:
        source: the graph of a UNet.
        target: takes its place.
        largest: the largest magnitude that each product is given, by its weight's name.

    Returns:
        How many products there are in FP8.

    Raises:
        BuildError: there are none, or it is not known what one is given.
    """
    import onnx_ir as ir

    model: Any = ir.load(source)
    writer = _Writer(model.graph)
    found = [node for node in model.graph if _is_quantised(node)]
    for node in found:
        weight = str(node.inputs[1].name)
        bound = largest.get(weight.removesuffix("_rows"))
        if bound is None or not math.isfinite(bound):
            raise BuildError(f"the product with {weight} has no scale in FP8: leave out --option fp8=yes")
        node.replace_input_with(0, writer.activation(node, bound * _ROOM))
        node.replace_input_with(1, writer.weight(node))
    if not found:
        raise BuildError(f"{source} has no products for FP8: leave out --option fp8=yes")
    writer.store(target)
    ir.save(model, target)
    return len(found)


def _is_quantised(node: Any) -> bool:
    return bool(
        node.op_type in ("Conv", "Gemm")
        and node.inputs[1].is_initializer()
        and PRODUCTS.search(node.inputs[1].name)
        and not _is_given(node.inputs[0])
    )


def _is_given(value: Any) -> bool:
    """Whether it is an input of the graph, as the prompt is, in whatever shape."""
    while value.producer() is not None and value.producer().op_type == "Reshape":
        value = value.producer().inputs[0]
    return bool(value.is_graph_input())


def _exponent(bound: float) -> int:
    """Of the least power of two that, for a scale, keeps ``bound`` within e4m3."""
    return max(math.ceil(math.log2(bound / _LARGEST)) if bound else 0, _SMALLEST_SCALE)


class _Writer:
    """Adds what quantised products need to a graph."""

    def __init__(self, graph: Any) -> None:
        import ml_dtypes

        self._graph = graph
        self._zero = self._constant("fp8_zero", np.zeros((), ml_dtypes.float8_e4m3fn))
        self._activations: dict[Any, Any] = {}
        self._weights: dict[str, tuple[Any, Any]] = {}  # in FP8, and their scales

    def activation(self, node: Any, bound: float) -> Any:
        """What ``node`` is given, rounded to e4m3; common to those that are given the same."""
        given = node.inputs[0]
        if given not in self._activations:
            scale = self._scale(_exponent(bound))
            quantised = self._insert(node, "QuantizeLinear", [given, scale, self._zero], f"{given.name}_fp8")
            self._activations[given] = self._insert(
                node, "DequantizeLinear", [quantised, scale], f"{given.name}_rounded"
            )
        return self._activations[given]

    def weight(self, node: Any) -> Any:
        """The weight of ``node``, rounded to e4m3; pieces of one product share what is stored."""
        plain = node.inputs[1]
        if plain.name not in self._weights:
            self._weights[plain.name] = self._rounded(plain)
        stored, scale = self._weights[plain.name]
        return self._insert(
            node, "DequantizeLinear", [stored, scale], f"{plain.name}_rounded_{len(stored.uses())}"
        )

    def store(self, target: Path) -> None:
        """Write the weights in FP8, and let go of those that they replace."""
        store_beside([stored for stored, _ in self._weights.values()], target)
        for name in self._weights:
            if not self._graph.initializers[name].uses():
                del self._graph.initializers[name]

    def _rounded(self, plain: Any) -> tuple[Any, Any]:
        import ml_dtypes
        import onnx_ir as ir

        exponent = _exponent(float(np.abs(plain.const_value.numpy()).max()))
        name, shape = f"{plain.name}_fp8", ir.Shape(plain.shape.numpy())

        def convert() -> Any:
            numbers = plain.const_value.numpy().astype(np.float32) * np.float32(2.0**-exponent)
            return numbers.astype(ml_dtypes.float8_e4m3fn)

        value = add_weight(self._graph, name, shape, ir.DataType.FLOAT8E4M3FN, convert)
        return value, self._scale(exponent)

    def _scale(self, exponent: int) -> Any:
        return self._constant(f"fp8_scale_{exponent}", np.array(2.0**exponent, np.float16))

    def _constant(self, name: str, array: Any) -> Any:
        import onnx_ir as ir

        if name not in self._graph.initializers:
            self._graph.register_initializer(ir.Value(name=name, const_value=ir.tensor(array, name=name)))
        return self._graph.initializers[name]

    def _insert(self, before: Any, operator: str, inputs: list[Any], name: str) -> Any:
        """The output of a new node before ``before``."""
        import onnx_ir as ir

        node = ir.Node("", operator, inputs, name=name)
        made = node.outputs[0]
        in_fp8 = operator == "QuantizeLinear"
        made.name, made.shape = name, inputs[0].shape
        made.type = ir.TensorType(ir.DataType.FLOAT8E4M3FN if in_fp8 else ir.DataType.FLOAT16)
        self._graph.insert_before(before, node)
        return made
