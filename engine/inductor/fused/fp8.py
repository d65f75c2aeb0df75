"""Products of the fused UNet in FP8 (e4m3), for GPUs of compute capability 8.9 and later.

What is multiplied in FP8 stands behind a norm or a gate: its numbers are of order one, e4m3 reaches from 2^-9 to 448,
so activations need no scale and nothing is calibrated. Norms and gates write e4m3 themselves, half the bytes of FP16.
Weights are divided by a scale that makes the largest of them 448: one scale per output channel where a kernel of ours
applies it (convolutions, gated products), one per matrix where cuBLAS does. What is too large saturates.

The path along which sums accumulate from block to block stays as it was: shortcuts, changes of resolution, the
projections into and out of transformers and of attention's results, first and last convolution. So do attention and all
that depends on the prompt or the time alone.

e4m3 keeps three bits after the leading one, so each product is off by about 3.7 % of its size (2.6 % from either side,
as random as the data). Tensor cores accumulate e4m3 products in a reduced FP32, which adds 0.05 to 0.4 %.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.library import triton_op

from v2v.engine.inductor.fused import operations as ops
from v2v.engine.inductor.fused import unet
from v2v.engine.inductor.fused.operations import E4M3, E4M3_MAX
from v2v.engine.inductor.torch_internals import fp8_product

PARTS = ("convolutions", "temporal convolutions", "feed-forward networks", "queries, keys, values")
"""What is computed in FP8, by error per time saved, the best first."""


def quantise(network: unet.FusedUNet, parts: Collection[str] = PARTS) -> unet.FusedUNet:
    """Replace the products behind norms and gates of ``network``, in place; call it in the network's final type."""
    for module in list(network.modules()):
        block: Any = module
        if isinstance(module, unet.ResBlock) and PARTS[0] in parts:
            block.first, block.second = SpatialStage(block.first), SpatialStage(block.second)
        elif isinstance(module, unet.TemporalStage) and PARTS[1] in parts:
            block.norm.output_dtype = E4M3
            block.convolution = TemporalConvolution(block.convolution)
        elif isinstance(module, unet.Transformer):
            if PARTS[2] in parts:
                block.feed_forward = FeedForward(block.feed_forward)
            if PARTS[3] in parts:
                block.qkv, block.second = Linear(block.qkv.weight), Linear(block.second.weight)
    return network


def quantised(weight: Tensor, scale: Tensor) -> Tensor:
    """``weight / scale`` in e4m3."""
    return ops.rounded(weight.float() / scale, E4M3)


def scale_of_rows(weight: Tensor) -> Tensor:
    """``[O, I] -> [O]`` FP32: what brings the largest number of each row to the largest e4m3 number."""
    return (weight.float().abs().amax(1) / E4M3_MAX).clamp_min(torch.finfo(torch.float32).tiny)


# Modules ----------------------------------------------------------------------------------------------------


class Rows(unet.Weights):
    """Weights ``[O, I]`` with a scale for each row."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        scale = scale_of_rows(weight)
        self.dtype = weight.dtype  # of the results
        self.keep("weight", quantised(weight, scale[:, None]))
        self.keep("scale", scale)


class Linear(unet.Weights):
    """Takes the place of :class:`v2v.engine.inductor.fused.unet.Linear`."""

    weight: Tensor
    scale: Tensor
    unit_scale: Tensor
    input_dtype = E4M3

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        scale = scale_of_rows(weight).amax().reshape(1, 1)  # the compiler would write a scalar into the code
        self.dtype = weight.dtype
        self.keep("weight", quantised(weight, scale))
        self.keep("scale", scale)
        self.keep("unit_scale", torch.ones_like(scale))

    def forward(self, x: Tensor) -> Tensor:
        """``[F * R, I]`` e4m3 -> ``[F * R, O]``."""
        if x.is_cuda:
            return fp8_product(x, self.weight, self.unit_scale, self.scale, self.dtype)
        return (F.linear(x.float(), self.weight.float()) * self.scale).to(self.dtype)


class SpatialStage(nn.Module):
    """Takes the place of :class:`v2v.engine.inductor.fused.unet.SpatialStage`."""

    def __init__(self, stage: unet.SpatialStage) -> None:
        super().__init__()
        self.norm = stage.norm
        self.norm.output_dtype = E4M3
        self.convolution = Rows(stage.convolution.weight.flatten(1))

    def forward(self, xs: list[Tensor], moments: list[Tensor], height: int, shift: Tensor | None) -> Tensor:
        """``xs [F, R, I']``, together I channels -> ``[F, R, O]``."""
        width = xs[0].shape[1] // height
        normed = self.norm(xs, moments, shift, padded_width=width)
        conv = self.convolution
        return convolution(normed, conv.weight, conv.scale, xs[0].shape[0], height, width, conv.dtype)


class TemporalConvolution(Rows):
    """Takes the place of :class:`v2v.engine.inductor.fused.unet.TemporalConvolution`."""

    def __init__(self, plain: unet.TemporalConvolution) -> None:
        super().__init__(plain.weight)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """``[F * R, I]`` e4m3 -> ``[F, R, O]``."""
        return temporal_convolution(x, self.weight, self.scale, frames, self.dtype)


class FeedForward(unet.Weights):
    """Takes the place of :class:`.unet.FeedForward`; the sum's share of the output stays as it was."""

    norm: Tensor
    expand_bias: Tensor
    direct: Tensor

    def __init__(self, plain: unet.FeedForward) -> None:
        super().__init__()
        width = plain.norm.shape[1]
        self.keep("norm", plain.norm)
        self.expand = Rows(plain.expand)
        self.keep("expand_bias", plain.expand_bias)
        self.keep("direct", plain.contract[:, :width])
        self.contract = Linear(plain.contract[:, width:])

    def forward(self, x: Tensor, delta: Tensor, bias: Tensor) -> list[Tensor]:
        """Tokens ``[F * R, C]`` -> what is to be added up to ``[F * R, O]``."""
        total, normed = ops.add_layer_norm(x, delta, bias, self.norm[0], self.norm[1], dtype=E4M3)
        hidden = gated(normed, self.expand.weight, self.expand.scale, self.expand_bias)
        return [F.linear(total, self.direct), self.contract(hidden)]


# Operations -------------------------------------------------------------------------------------------------


def _tile(width: int, depth: int, device: torch.device) -> dict[str, Any]:
    """What was fastest on an H100, with as many stages as fit where there is less shared memory."""
    depth_block = 64 if depth % 128 else 128
    # 320 columns in one tile where that is the width: the input is read once.
    blocks = (128, 256, 64) if width % 320 == 0 and width % 128 else (256, 128, 0)
    return {
        "blocks": blocks,
        "depth_block": depth_block,
        "warps": 8,
        "stages": _stages(sum(blocks) * depth_block, device, 4),
    }


def _stages(size: int, device: torch.device, most: int) -> int:
    """How many tiles of ``size`` bytes fit into a multiprocessor's shared memory beside a little else."""
    properties: Any = torch.cuda.get_device_properties(device)
    available: int = properties.shared_memory_per_block_optin - 2048
    return max(1, min(most, available // size))


@triton_op("v2v::fp8_convolution", mutates_args=())
def _convolution(
    x: Tensor, weight: Tensor, scale: Tensor, frames: int, height: int, width: int, dtype: torch.dtype
) -> Tensor:
    out = x.new_empty((frames, height * width, weight.shape[0]), dtype=dtype)
    tile = _tile(weight.shape[0], x.shape[1], x.device)
    ops.launch_product(
        x, weight, None, out, taps=9, step=width + 1, scale=scale, image=(height, width), **tile
    )
    return out


def convolution(
    x: Tensor, weight: Tensor, scale: Tensor, frames: int, height: int, width: int, dtype: torch.dtype
) -> Tensor:
    """3x3 convolution without bias.

    Args:
        x: e4m3 ``[F * (H + 1) * (W + 1), I]``, padded as ``scale_offset`` does.
        weight: e4m3 ``[O, 3 * 3 * I]``.
        scale: ``[O]`` FP32, of the weights.
        frames: F.
        height: H.
        width: W.
        dtype: of the result.

    Returns:
        ``[F, H * W, O]``.
    """
    if x.is_cuda:
        fused: Tensor = _convolution(x, weight, scale, frames, height, width, dtype)
        return fused
    image = torch.unflatten(x.float(), 0, (frames, height + 1, width + 1))[:, :height, :width]
    kernel = torch.unflatten(weight.float(), 1, (3, 3, -1)).permute(0, 3, 1, 2)
    y = F.conv2d(image.permute(0, 3, 1, 2), kernel, padding=1).permute(0, 2, 3, 1).flatten(1, 2)
    return (y * scale).to(dtype)


@triton_op("v2v::fp8_temporal_convolution", mutates_args=())
def _temporal_convolution(
    x: Tensor, weight: Tensor, scale: Tensor, frames: int, dtype: torch.dtype
) -> Tensor:
    rows, width = x.shape[0] // frames, weight.shape[0]
    out = x.new_empty((frames, rows, width), dtype=dtype)
    tile = _tile(width, x.shape[1], x.device)
    ops.launch_product(x, weight, None, out, taps=3, step=rows, scale=scale, **tile)
    return out


def temporal_convolution(x: Tensor, weight: Tensor, scale: Tensor, frames: int, dtype: torch.dtype) -> Tensor:
    """Convolution over three frames without bias: ``x [F * R, I]``, ``weight [O, 3 * I]`` -> ``[F, R, O]``."""
    if x.is_cuda:
        fused: Tensor = _temporal_convolution(x, weight, scale, frames, dtype)
        return fused
    return (ops.temporal_convolution(x.float(), weight.float(), frames) * scale).to(dtype)


@triton_op("v2v::fp8_gated", mutates_args=())
def _gated(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    out = x.new_empty((x.shape[0], weight.shape[0] // 2))
    if x.shape[1] % 128:
        # Short products: the gate takes as long as they do, so two programs share a multiprocessor.
        tile: dict[str, Any] = {"blocks": (128, 64, 0), "depth_block": 64, "warps": 4, "resident": 2}
    else:
        tile = {"blocks": (128, 128, 0), "depth_block": 128, "warps": 8}
    m, n, _ = tile["blocks"]
    stages = _stages(
        (m + 2 * n) * tile["depth_block"] * tile.get("resident", 1), x.device, 4 if n == 64 else 3
    )
    ops.launch_product(x, weight, bias, out, stages=stages, scale=scale, gated=True, **tile)
    return out


def gated(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Product and GELU gate.

    Args:
        x: e4m3 ``[F * R, I]``.
        weight: e4m3 ``[2 * O, I]``: values, then gates.
        scale: ``[2 * O]`` FP32, of the weights.
        bias: ``[2 * O]``.

    Returns:
        e4m3 ``[F * R, O]``.
    """
    if x.is_cuda:
        fused: Tensor = _gated(x, weight, scale, bias)
        return fused
    value, gate = (F.linear(x.float(), weight.float()) * scale + bias.float()).chunk(2, -1)
    return ops.rounded(value * F.gelu(gate), E4M3)
