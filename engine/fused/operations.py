"""Operations on feature maps in token layout: a plain PyTorch form for any device, a Triton kernel for CUDA.

A map is ``[F, R, C]``: frames, positions of a frame (rows of the image one after the other), channels. It is what a
channels-last tensor ``[F, C, H, W]`` holds, so convolutions see it through a view and matrix products need none.

Norms over groups of channels are split in three: moments of each channel over chunks of rows (mean, sum of squared
deviations), which whoever writes a map last can compute on the way; one scale and offset per channel out of them; and
the pass that applies these. What only shifts a channel (a convolution's bias, the time embedding) enters at the second
step and never costs a pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import triton_op, wrap_triton

if TYPE_CHECKING:
    from types import ModuleType

GROUPS = 32
LOG2_E = 1.4426950408889634


def _kernels() -> ModuleType:
    """Imported late: Triton is there only where CUDA is."""
    from v2v.engine.fused import kernels

    return kernels


def _up(a: int, b: int) -> int:
    """``a / b``, rounded up."""
    return -(-a // b)


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


# Norms over groups ------------------------------------------------------------------------------------------


def _chunk(frames: int, rows: int, channels: int) -> int:
    """Rows per program of the moments: enough programs to fill a GPU twice over, and not many more."""
    wanted = _up(2112, frames * _up(channels, 64))
    return _up(_up(rows, min(wanted, _up(rows, 128))), 64) * 64


@triton_op("v2v::moments", mutates_args=())
def _moments(x: Tensor) -> Tensor:
    kernels = _kernels()
    frames, rows, channels = x.shape
    chunk = _chunk(frames, rows, channels)
    chunks = _up(rows, chunk)
    out = x.new_empty((frames, chunks, channels, 2), dtype=torch.float32)
    wrap_triton(kernels.channel_moments)[(_up(channels, 64), frames * chunks)](
        x,
        x,
        x,
        x,
        x,
        out,
        rows,
        channels,
        chunk,
        ADD=False,
        THREE=False,
        BLOCK_R=64,
        BLOCK_C=64,
        num_warps=4,
    )
    return out


@triton_op("v2v::add_moments", mutates_args=())
def _add_moments(x: Tensor, others: list[Tensor], bias: Tensor) -> tuple[Tensor, Tensor]:
    kernels = _kernels()
    frames, rows, channels = x.shape
    chunk = _chunk(frames, rows, channels)
    chunks = _up(rows, chunk)
    total = torch.empty_like(x)
    out = x.new_empty((frames, chunks, channels, 2), dtype=torch.float32)
    wrap_triton(kernels.channel_moments)[(_up(channels, 64), frames * chunks)](
        x,
        others[0],
        others[-1],
        bias,
        total,
        out,
        rows,
        channels,
        chunk,
        ADD=True,
        THREE=len(others) == 2,
        BLOCK_R=32,
        BLOCK_C=64,
        num_warps=4,
    )
    return total, out


def moments(x: Tensor) -> Tensor:
    """``x [F, R, C]`` -> moments ``[F, chunks, C, 2]`` FP32: mean and sum of squared deviations of each channel."""
    if x.is_cuda:
        return _moments(x)
    variance, mean = torch.var_mean(x.float(), 1, correction=0)
    return torch.stack([mean, variance * x.shape[1]], -1)[:, None]


def add_moments(x: Tensor, others: list[Tensor], bias: Tensor) -> tuple[Tensor, Tensor]:
    """``x``, one or two others and ``bias [C]`` added up, and the moments of the sum, in one pass."""
    if x.is_cuda:
        total, found = _add_moments(x, others, bias)
        return total, found
    total = sum(others, x + bias)
    return total, moments(total)


@triton_op("v2v::norm_coefficients", mutates_args=())
def _norm_coefficients(
    found: list[Tensor],
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    rows: int,
    chunks: list[int],
    eps: float,
    whole: bool,
) -> Tensor:
    kernels = _kernels()
    frames = found[0].shape[0]
    widths = [part.shape[2] for part in found] + [0]
    segments = 1 if whole else frames
    channels = sum(widths)
    group = channels // GROUPS
    out = weight.new_empty((2, segments, channels), dtype=torch.float32)
    block = max(_power_of_two(group), 4)
    wrap_triton(kernels.norm_coefficients)[(segments, GROUPS)](
        found[0],
        found[-1],
        out if shift is None else shift,
        weight,
        bias,
        out,
        frames // segments,
        rows,
        widths[0],
        chunks[0],
        widths[1],
        chunks[-1],
        group,
        eps,
        TWO=len(found) == 2,
        SHIFT=shift is not None,
        BLOCK_P=max(2048 // block, 1),
        BLOCK_G=block,
        num_warps=4,
    )
    return out


def norm_coefficients(
    found: list[Tensor], rows: int, weight: Tensor, bias: Tensor, eps: float, *, whole: bool, shift: Tensor | None
) -> Tensor:
    """Moments -> scale and offset ``[2, S, C]`` FP32 of a group norm with 32 groups.

    Args:
        found: moments of the map, or of the two maps that follow each other along the channels.
        rows: positions of a frame.
        weight: of the norm, ``[C]``, as ``bias``.
        whole: statistics span all frames (S is 1) instead of one (S is F).
        shift: ``[C]``, added to the map before the norm.
    """
    if weight.is_cuda:
        chunks = [_chunk(part.shape[0], rows, part.shape[2]) for part in found]
        return _norm_coefficients(found, shift, weight, bias, rows, chunks, eps, whole)
    both = torch.cat(found, 2)[:, 0]  # plain moments have one chunk
    mean, spread = both.unbind(-1)  # [F, C]
    if shift is not None:
        mean = mean + shift.float()
    segments = 1 if whole else mean.shape[0]
    grouped = mean.reshape(segments, -1, GROUPS, mean.shape[1] // GROUPS)
    centre = grouped.mean((1, 3), keepdim=True)
    count = rows * grouped.shape[1] * grouped.shape[3]
    square = (spread.view_as(grouped) + rows * (grouped - centre) ** 2).sum((1, 3), keepdim=True)
    deviation = torch.rsqrt(square / count + eps)
    per_group = grouped.shape[3]
    scale = deviation.expand(-1, 1, -1, per_group).reshape(segments, -1) * weight.float()
    shifted = 0.0 if shift is None else shift.float()
    centre = centre.expand(-1, 1, -1, per_group).reshape(segments, -1)
    return torch.stack([scale, bias.float() + (shifted - centre) * scale])


@triton_op("v2v::scale_offset", mutates_args=())
def _scale_offset(parts: list[Tensor], coefficients: Tensor, silu: bool) -> Tensor:
    kernels = _kernels()
    frames, rows, _ = parts[0].shape
    segments, channels = coefficients.shape[1:]
    out = parts[0].new_empty((frames, rows, channels))
    start = 0
    for part in parts:
        width = part.shape[2]
        wrap_triton(kernels.scale_offset)[(_up(width, 64), frames * _up(rows, 64))](
            part,
            coefficients,
            out,
            rows,
            width,
            channels,
            start,
            segments,
            SILU=silu,
            BLOCK_R=64,
            BLOCK_C=64,
            num_warps=4,
        )
        start += width
    return out


def scale_offset(parts: list[Tensor], coefficients: Tensor, *, silu: bool) -> Tensor:
    """Maps one after the other along the channels, scaled and shifted, then SiLU where asked: ``[F, R, C]``."""
    if parts[0].is_cuda:
        return _scale_offset(parts, coefficients, silu)
    scale, offset = coefficients[:, :, None, :]
    y = torch.cat(parts, 2).float() * scale + offset
    return (F.silu(y) if silu else y).to(parts[0].dtype)


# Transformer blocks -----------------------------------------------------------------------------------------


def _tokens_per_program(channels: int) -> int:
    return max(4096 // _power_of_two(channels), 1)


@triton_op("v2v::layer_norm", mutates_args=())
def _layer_norm(x: Tensor, weight: Tensor, offset: Tensor, eps: float) -> Tensor:
    kernels = _kernels()
    channels = x.shape[-1]
    tokens = x.numel() // channels
    block = _tokens_per_program(channels)
    out = torch.empty_like(x)
    wrap_triton(kernels.layer_norm)[(_up(tokens, block),)](
        x,
        x,
        weight,
        x,
        weight,
        offset,
        out,
        tokens,
        channels,
        channels,
        eps,
        ADD=False,
        BLOCK_T=block,
        BLOCK_C=_power_of_two(channels),
        num_warps=4,
    )
    return out


@triton_op("v2v::add_layer_norm", mutates_args=())
def _add_layer_norm(
    x: Tensor, delta: Tensor, bias: Tensor, weight: Tensor, offset: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    total = torch.empty_like(x)
    return total, _launch_add_layer_norm(x, delta, bias, weight, offset, eps, total)


def _launch_add_layer_norm(
    x: Tensor, delta: Tensor, bias: Tensor, weight: Tensor, offset: Tensor, eps: float, total: Tensor
) -> Tensor:
    """Write the sum into the first columns of ``total``; return its norm."""
    kernels = _kernels()
    channels = x.shape[-1]
    tokens = x.numel() // channels
    block = _tokens_per_program(channels)
    out = torch.empty_like(x)
    wrap_triton(kernels.layer_norm)[(_up(tokens, block),)](
        x,
        delta,
        bias,
        total,
        weight,
        offset,
        out,
        tokens,
        channels,
        total.shape[-1],
        eps,
        ADD=True,
        BLOCK_T=block,
        BLOCK_C=_power_of_two(channels),
        num_warps=4,
    )
    return out


def layer_norm(x: Tensor, weight: Tensor, offset: Tensor, eps: float = 1e-5) -> Tensor:
    """Layer norm over the last axis, in FP32."""
    if x.is_cuda:
        return _layer_norm(x, weight, offset, eps)
    return F.layer_norm(x.float(), weight.shape, weight.float(), offset.float(), eps).to(x.dtype)


def add_layer_norm(
    x: Tensor, delta: Tensor, bias: Tensor, weight: Tensor, offset: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """``x + delta + bias`` and its layer norm, in one pass."""
    if x.is_cuda:
        total, normed = _add_layer_norm(x, delta, bias, weight, offset, eps)
        return total, normed
    total = x + delta + bias
    return total, layer_norm(total, weight, offset, eps)


def _launch_gate(h: Tensor, bias: Tensor, out: Tensor) -> None:
    """Write the gated values into the last columns of ``out``."""
    kernels = _kernels()
    width = h.shape[-1] // 2
    tokens = h.numel() // (2 * width)
    wrap_triton(kernels.gate)[(_up(width, 128), _up(tokens, 16))](
        h, bias, out, tokens, width, out.shape[-1], BLOCK_T=16, BLOCK_C=128, num_warps=4
    )


@triton_op("v2v::feed_forward", mutates_args=())
def _feed_forward(
    x: Tensor,
    delta: Tensor,
    bias: Tensor,
    weight: Tensor,
    offset: Tensor,
    eps: float,
    expand: Tensor,
    expand_bias: Tensor,
    contract: Tensor,
) -> Tensor:
    # The sum and the hidden values share a buffer, so that one matrix product reads both.
    buffer = x.new_empty((*x.shape[:-1], contract.shape[1]))
    normed = _launch_add_layer_norm(x, delta, bias, weight, offset, eps, buffer)
    _launch_gate(torch.matmul(normed, expand.t()), expand_bias, buffer)
    return torch.matmul(buffer, contract.t())


def feed_forward(
    x: Tensor,
    delta: Tensor,
    bias: Tensor,
    weight: Tensor,
    offset: Tensor,
    expand: Tensor,
    expand_bias: Tensor,
    contract: Tensor,
    eps: float = 1e-5,
) -> Tensor:
    """The end of a transformer block and the projection after it: ``contract`` times (s, gated values of norm(s)).

    Args:
        x: ``[F, R, C]``; s is ``x + delta + bias``.
        weight: of the layer norm, ``[C]``, as ``offset``.
        expand: ``[8C, C]``: values, then gates; ``expand_bias [8C]``.
        contract: ``[O, 5C]``: what the output takes from s, then from the ``4C`` gated values.
    """
    if x.is_cuda:
        return _feed_forward(x, delta, bias, weight, offset, eps, expand, expand_bias, contract)
    total, normed = add_layer_norm(x, delta, bias, weight, offset, eps)
    value, gates = F.linear(normed, expand, expand_bias).chunk(2, -1)
    return F.linear(torch.cat([total, value * F.gelu(gates)], -1), contract)


def _launch_product(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    out: Tensor,
    blocks: tuple[int, int, int],
    warps: int,
    stages: int,
    *,
    taps: int = 1,
    step: int = 0,
    gated: bool = False,
    group: int = 8,
) -> None:
    """Fill the last columns of ``out`` with ``x @ w.T``; see the kernel for taps and gate."""
    kernels = _kernels()
    depth = x.shape[-1]
    tokens = x.numel() // depth
    width = w.shape[0] // 2 if gated else w.shape[0]
    block_m, block_n, extra_n = blocks
    wrap_triton(kernels.product)[(_up(tokens, block_m) * _up(width, block_n + extra_n),)](
        x,
        w,
        x if bias is None else bias,
        out,
        tokens,
        width,
        depth,
        out.shape[-1],
        step,
        TAPS=taps,
        GATED=gated,
        BIAS=bias is not None,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        EXTRA_N=extra_n,
        BLOCK_K=64,
        GROUP=group,
        num_warps=warps,
        num_stages=stages,
    )


# Attention --------------------------------------------------------------------------------------------------


@triton_op("v2v::temporal_attention", mutates_args=())
def _temporal_attention(qkv: Tensor, size: int) -> Tensor:
    kernels = _kernels()
    frames, rows, three = qkv.shape
    heads = three // (3 * size)
    out = qkv.new_empty((frames, rows, three // 3))
    wrap_triton(kernels.temporal_attention)[(rows * heads,)](
        qkv,
        out,
        frames,
        rows,
        heads,
        LOG2_E * size**-0.5,
        SIZE=size,
        BLOCK_F=max(_power_of_two(frames), 16),
        IEEE=qkv.dtype == torch.float32,
        num_warps=1 if frames <= 32 else 4,
    )
    return out


def temporal_attention(qkv: Tensor, size: int) -> Tensor:
    """Attention of each position among its frames: ``qkv [F, R, 3C]`` -> ``[F, R, C]``; heads of ``size`` channels."""
    if qkv.is_cuda:
        return _temporal_attention(qkv, size)
    q, k, v = (part.unflatten(-1, (-1, size)).permute(1, 2, 0, 3) for part in qkv.chunk(3, -1))
    return F.scaled_dot_product_attention(q, k, v).permute(2, 0, 1, 3).flatten(2)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``[N, tokens, heads, size]`` each -> ``[N, tokens, C]``; cuDNN's kernel is the fastest for long sequences."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    if q.is_cuda and q.dtype == torch.float16:
        mixed = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, False)[0]
    else:
        mixed = F.scaled_dot_product_attention(q, k, v)
    return mixed.transpose(1, 2).flatten(2)


def spatial_attention(qkv: Tensor, size: int) -> Tensor:
    """Attention among the positions of each frame: ``qkv [F, R, 3C]`` -> ``[F, R, C]``; heads of ``size`` channels."""
    return _attend(*(part.unflatten(-1, (-1, size)) for part in qkv.chunk(3, -1)))


@triton_op("v2v::text_attention", mutates_args=())
def _text_attention(q: Tensor, kv: Tensor, size: int) -> Tensor:
    kernels = _kernels()
    channels = q.shape[-1]
    tokens = q.numel() // channels
    keys = kv.shape[0]
    out = torch.empty_like(q)
    wrap_triton(kernels.text_attention)[(channels // size, _up(tokens, 128))](
        q,
        kv,
        out,
        tokens,
        keys,
        kv.stride(0),
        channels // size,
        LOG2_E * size**-0.5,
        SIZE=size,
        BLOCK_T=128,
        BLOCK_K=max(_power_of_two(keys), 16),
        IEEE=q.dtype == torch.float32,
        num_warps=4,
    )
    return out


def text_attention(q: Tensor, kv: Tensor, size: int) -> Tensor:
    """Every position attends to the prompt: ``q [F, R, C]``, ``kv [tokens, 2C]`` -> ``[F, R, C]``."""
    if q.is_cuda:
        return _text_attention(q, kv, size)
    k, v = (part.unflatten(-1, (-1, size))[None] for part in kv.chunk(2, -1))
    return _attend(q.flatten(0, 1)[None].unflatten(-1, (-1, size)), k, v).view_as(q)


# Convolutions -----------------------------------------------------------------------------------------------


def convolution(
    x: Tensor, weight: Tensor, height: int, *, stride: int = 1, padding: tuple[int, int] = (1, 1)
) -> tuple[Tensor, int]:
    """Spatial convolution without bias: ``x [F, R, I]``, ``weight [O, I, k, k]`` channels-last -> ``[F, R', O]``, height."""
    image = x.unflatten(1, (height, -1)).permute(0, 3, 1, 2)
    y = F.conv2d(image, weight, stride=stride, padding=padding)
    return y.permute(0, 2, 3, 1).flatten(1, 2).contiguous(), y.shape[2]


def temporal_convolution(x: Tensor, weight: Tensor) -> Tensor:
    """Convolution over three frames without bias: ``x [F, R, I]``, ``weight [O, I, 3, 1]`` channels-last -> ``[F, R, O]``.

    A clip in token layout is one image of F rows and R columns, so this is a spatial convolution of 3x1.
    """
    y = F.conv2d(x.permute(2, 0, 1)[None], weight, padding=(1, 0))
    return y[0].permute(1, 2, 0).contiguous()


@triton_op("v2v::interleave", mutates_args=())
def _interleave(phases: Tensor, top: Tensor, bottom: Tensor, height: int, width: int) -> Tensor:
    kernels = _kernels()
    frames, channels = phases.shape[0], top.shape[-1] // 2
    out = phases.new_empty((frames, (2 * height - 2) * 2 * width, channels))
    lines = frames * (2 * height - 2)
    wrap_triton(kernels.interleave)[(_up(channels, 64), lines * _up(2 * width, 64))](
        phases, top, bottom, out, height, width, channels, BLOCK_X=64, BLOCK_C=64, num_warps=4
    )
    return out


def interleave(phases: Tensor, top: Tensor, bottom: Tensor, height: int, width: int) -> Tensor:
    """Assemble a doubled map without its first and last row.

    Args:
        phases: ``[F, (height + 1) * (width + 1), 4C]``; entry (i, j) of phase (a, b) is position
            (2i - a, 2j - b) of the doubled map.
        top: ``[F, width + 1, 2C]``: the first row that stays, phases b in the columns.
        bottom: the last row that stays.

    Returns:
        ``[F, (2 height - 2) * 2 width, C]``.
    """
    if phases.is_cuda:
        return _interleave(phases, top, bottom, height, width)

    def columns(rows: Tensor) -> Tensor:
        """``[..., width + 1, 2, C] -> [..., 2 width, C]``."""
        return torch.stack([rows[..., :-1, 0, :], rows[..., 1:, 1, :]], -2).flatten(-3, -2)

    split = phases.unflatten(1, (height + 1, width + 1)).unflatten(-1, (2, 2, -1))
    even, odd = columns(split[:, :-1, :, 0]), columns(split[:, 1:, :, 1])
    rows = torch.stack([even, odd], 2).flatten(1, 2)[:, 2:-2]
    edges = [columns(edge.unflatten(-1, (2, -1)))[:, None] for edge in (top, bottom)]
    return torch.cat([edges[0], rows, edges[1]], 1).flatten(1, 2)
