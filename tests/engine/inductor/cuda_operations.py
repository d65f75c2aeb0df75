"""What each operation of a graph rewritten for CUDA computes, in PyTorch and FP32: a reference for tests without a GPU.

The definitions are those of ONNX and of ONNX Runtime's documentation of its ``com.microsoft`` operators
(ContribOperators.md); of NhwcConv's weights, [O, kernel..., I], the CUDA provider's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor


def run(path: Path, inputs: Mapping[str, Any]) -> list[np.ndarray]:
    """Compute the outputs of the graph in ``path``, one operation after the other."""
    graph = onnx.load(path).graph
    values = {tensor.name: _tensor(numpy_helper.to_array(tensor)) for tensor in graph.initializer}
    values |= {name: _tensor(np.asarray(array)) for name, array in inputs.items()}
    for node in graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        arguments = [values[name] if name else None for name in node.input]
        found = OPERATIONS[node.domain, node.op_type](*arguments, **attributes)
        for name, value in zip(node.output, found if isinstance(found, tuple) else (found,), strict=True):
            values[name] = value
    return [values[output.name].numpy() for output in graph.output]


def _tensor(array: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(np.array(array))
    return tensor.float() if tensor.is_floating_point() else tensor


def _group_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    groups: int,
    epsilon: float,
    activation: int,
    channels_last: int,
) -> Tensor:
    assert channels_last and x.ndim == 4
    y = F.group_norm(x.permute(0, 3, 1, 2), groups, gamma, beta, epsilon).permute(0, 2, 3, 1)
    return F.silu(y) if activation else y


def _skip_group_norm(
    x: Tensor, gamma: Tensor, beta: Tensor, skip: Tensor, bias: Tensor | None = None, **attributes: Any
) -> tuple[Tensor, Tensor]:
    assert x.shape == skip.shape
    total = x + skip if bias is None else x + skip + bias
    return _group_norm(total, gamma, beta, **attributes), total


def _skip_layer_norm(
    x: Tensor, skip: Tensor, gamma: Tensor, beta: Tensor, bias: Tensor | None = None, *, epsilon: float
) -> tuple[Tensor, None, None, Tensor]:
    assert x.shape == skip.shape and x.ndim == 3
    total = x + skip if bias is None else x + skip + bias
    return F.layer_norm(total, gamma.shape, gamma, beta, epsilon), None, None, total


def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, kernel_shape: Any, pads: Any, strides: Any
) -> Tensor:
    assert list(weight.shape[1:3]) == list(kernel_shape)
    top, left, bottom, right = pads
    padded = F.pad(x.permute(0, 3, 1, 2), (left, right, top, bottom))
    return F.conv2d(padded, weight.permute(0, 3, 1, 2), bias, strides).permute(0, 2, 3, 1)


def _attention(q: Tensor, k: Tensor, v: Tensor, *, num_heads: int, unidirectional: int) -> Tensor:
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=bool(unidirectional)).transpose(1, 2).flatten(2)


def _split_gelu(x: Tensor, bias: Tensor) -> Tensor:
    assert x.ndim == 3
    value, gate = (x + bias).chunk(2, -1)
    return value * F.gelu(gate)


def _bias_add(x: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
    assert x.ndim == 3 and x.shape == skip.shape
    return x + bias + skip


def _gemm(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, transB: int) -> Tensor:
    assert transB
    return F.linear(x, weight, bias)


def _reshape(x: Tensor, shape: Tensor, allowzero: int = 0) -> Tensor:
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape.tolist())])


def _split(x: Tensor, *, axis: int, num_outputs: int) -> tuple[Tensor, ...]:
    return tuple(x.chunk(num_outputs, axis))


def _cast(x: Tensor, *, to: int) -> Tensor:
    return x.float() if to in (onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT) else x.to(torch.int64)


def _gather(x: Tensor, indices: Tensor, *, axis: int) -> Tensor:
    return x.index_select(axis, indices.ravel()).unflatten(axis, indices.shape)


def _unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    for axis in sorted(axes.tolist()):
        x = x.unsqueeze(axis)
    return x


OPERATIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("", "Add"): torch.add,
    ("", "Cast"): _cast,
    ("", "Concat"): lambda *x, axis: torch.cat(x, axis),
    ("", "Cos"): torch.cos,
    ("", "Gather"): _gather,
    ("", "Gemm"): _gemm,
    ("", "Identity"): lambda x: x,
    ("", "LayerNormalization"): lambda x, gamma, beta, *, epsilon, axis: F.layer_norm(
        x, gamma.shape, gamma, beta, epsilon
    ),
    ("", "MatMul"): torch.matmul,
    ("", "Mul"): torch.mul,
    ("", "Reshape"): _reshape,
    ("", "Sigmoid"): torch.sigmoid,
    ("", "Sin"): torch.sin,
    ("", "Softmax"): lambda x, *, axis: torch.softmax(x, axis),
    ("", "Split"): _split,
    ("", "Transpose"): lambda x, *, perm: x.permute(*perm),
    ("", "Unsqueeze"): _unsqueeze,
    ("com.microsoft", "BiasAdd"): _bias_add,
    ("com.microsoft", "BiasSplitGelu"): _split_gelu,
    ("com.microsoft", "Gelu"): F.gelu,
    ("com.microsoft", "GroupNorm"): _group_norm,
    ("com.microsoft", "MultiHeadAttention"): _attention,
    ("com.microsoft", "NhwcConv"): _convolution,
    ("com.microsoft", "QuickGelu"): lambda x, *, alpha: x * torch.sigmoid(alpha * x),
    ("com.microsoft", "SkipGroupNorm"): _skip_group_norm,
    ("com.microsoft", "SkipLayerNormalization"): _skip_layer_norm,
}
