"""Spatial convolution on tokens, an operator of its own: ``torch.ops.v2v.convolution``.

Compiled packages call it by name, so this module is what they need beside PyTorch; it imports nothing of PyTorch's
compiler, which would take seconds. See :mod:`v2v.engine.inductor.fused.operations` for tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_LIBRARY: Any = torch.library.Library("v2v", "FRAGMENT")  # type: ignore[no-untyped-call, unused-ignore]
_LIBRARY.define(
    "convolution(Tensor x, Tensor weight, Tensor? bias, int frames, int height, int stride, int[] padding) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    frames: int,
    height: int,
    stride: int,
    padding: tuple[int, int] | list[int],
) -> Tensor:
    """``x [F * R, I]``, ``weight [O, k, k, I]``, ``bias [O]`` -> ``[F, R', O]``, by PyTorch's own convolution."""
    image = torch.unflatten(x, 0, (frames, height, -1)).permute(0, 3, 1, 2)
    y = F.conv2d(image, weight.permute(0, 3, 1, 2), stride=stride, padding=tuple(padding))
    tokens = y.permute(0, 2, 3, 1).flatten(1, 2).contiguous()
    return tokens if bias is None else tokens.add_(bias)


def _shape_of_result(
    x: Tensor, weight: Tensor, bias: Tensor | None, frames: int, height: int, stride: int, padding: list[int]
) -> Tensor:
    """What a compiler is told of the operator's result."""
    sides = (height, x.shape[0] // (frames * height))
    rows, columns = (
        (side + 2 * pad - kernel) // stride + 1
        for side, pad, kernel in zip(sides, padding, weight.shape[1:3], strict=True)
    )
    return x.new_empty((frames, rows * columns, weight.shape[0]))


_LIBRARY.impl("convolution", convolve, "CUDA")
torch.library.register_fake("v2v::convolution", _shape_of_result, lib=_LIBRARY)


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, frames: int, height: int, stride: int, padding: list[int]
) -> Tensor:
    """The operator, a whole to compilers: PyTorch's (2.11) expects another order of a result in memory than cuDNN's."""
    y: Tensor = torch.ops.v2v.convolution(x, weight, bias, frames, height, stride, padding)
    return y
