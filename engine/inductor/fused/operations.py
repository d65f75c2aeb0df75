"""Operations on feature maps in token layout: a plain PyTorch form for any device, a Triton kernel for CUDA.

A map is ``[F, R, C]``: frames, positions of a frame (rows of the image one after the other), channels; where frames do
not matter, tokens ``[F * R, C]``. It is what a channels-last tensor ``[F, C, H, W]`` holds, so convolutions see it
through a view and matrix products need none.

Norms over groups of channels are split in three: moments of each channel over chunks of rows (mean, sum of squared
deviations), which the kernel that writes a map can compute on the way; one scale and offset per channel out of them;
and the pass that applies these. What only shifts a channel (a convolution's bias, the time embedding) enters at the
second step and never costs a pass.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import triton_op

from v2v.engine.inductor.fused.convolution import convolution as convolution_operator
from v2v.engine.inductor.fused.convolution import convolve
from v2v.engine.inductor.torch_internals import being_traced, traced_with_tiles

LOG2_E = 1.4426950408889634


@functools.cache
def _tuned(name: str, warps: int, stages: int) -> Any:
    """The kernel ``name`` with its launch options. One object per choice: to a compiler each is a kernel of its own.

    Triton is imported here and not above, because it is there only where CUDA is.
    """
    import triton  # type: ignore[import-not-found, unused-ignore]

    from v2v.engine.inductor.fused import kernels

    config = triton.Config({}, num_warps=warps, num_stages=stages)
    return triton.autotune([config], key=[])(getattr(kernels, name))


def launch(
    name: str,
    grid: tuple[int, ...],
    *,
    warps: int = 4,
    stages: int = 3,
    tiles: Mapping[str, list[int]] | None = None,
    **arguments: Any,
) -> None:
    """Run a kernel, or put it into the graph that is being traced.

    ``tiles`` names the tensors that the kernel reads through the tensor memory accelerator, with the shape of a tile.
    """
    from triton.tools.tensor_descriptor import TensorDescriptor  # type: ignore[import-not-found, unused-ignore]

    kernel = _tuned(name, warps, stages)
    if being_traced():
        traced_with_tiles(kernel, grid, tiles or {}, arguments)
        return
    if arguments.get("TWIN"):
        from v2v.engine.inductor.fused import twins

        twins.launch(name, grid, warps, tiles or {}, arguments)
        return
    for tensor, tile in (tiles or {}).items():
        arguments[tensor] = TensorDescriptor.from_tensor(arguments[tensor], tile)
    kernel[grid](**arguments)


_general_only = False


@contextmanager
def general_kernels() -> Iterator[None]:
    """A context in which Hopper runs the general kernels too: for comparison, or where its own fail."""
    global _general_only
    before, _general_only = _general_only, True
    try:
        yield
    finally:
        _general_only = before


def has_twins(device: torch.device) -> bool:
    """Whether GPU and Triton are the ones that ``hopper.py`` is for."""
    return not _general_only and _is_hopper(device)


@functools.cache
def _is_hopper(device: torch.device) -> bool:
    import triton  # type: ignore[import-not-found, unused-ignore]

    from v2v.engine.inductor.fused.twins import TRITON

    return torch.cuda.get_device_capability(device)[0] == 9 and triton.__version__.startswith(TRITON)


def _up(a: int, b: int) -> int:
    """``a / b``, rounded up."""
    return -(-a // b)


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0


def rounded(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """``x`` in another type; in e4m3 what is too large becomes the largest number, where PyTorch would make it NaN."""
    if dtype is None:
        return x
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(dtype) if dtype == E4M3 else x.to(dtype)


# Norms over groups ------------------------------------------------------------------------------------------


def chunk_size(frames: int, rows: int, channels: int) -> int:
    """Rows per program of the moments: enough programs to fill a GPU twice over, and not many more."""
    programs = _up(2112, frames * _up(channels, 64))
    return _up(_up(rows, min(programs, _up(rows, 128))), 64) * 64


@triton_op("v2v::moments", mutates_args=())
def _moments(x: Tensor) -> Tensor:
    frames, rows, channels = x.shape
    chunk = chunk_size(frames, rows, channels)
    chunks = _up(rows, chunk)
    out = x.new_empty((frames, chunks, channels, 2), dtype=torch.float32)
    launch(
        "channel_moments",
        (_up(channels, 64), frames * chunks),
        warps=4,
        x=x,
        other=x,
        third=x,
        bias=x,
        total=x,
        moments=out,
        rows=rows,
        channels=channels,
        chunk=chunk,
        ADD=False,
        THREE=False,
        BLOCK_R=64,
        BLOCK_C=64,
    )
    return out


@triton_op("v2v::add_moments", mutates_args=())
def _add_moments(x: Tensor, others: list[Tensor], bias: Tensor) -> tuple[Tensor, Tensor]:
    frames, rows, channels = x.shape
    chunk = chunk_size(frames, rows, channels)
    chunks = _up(rows, chunk)
    total = torch.empty_like(x)
    out = x.new_empty((frames, chunks, channels, 2), dtype=torch.float32)
    launch(
        "channel_moments",
        (_up(channels, 64), frames * chunks),
        warps=4,
        x=x,
        other=others[0],
        third=others[-1],
        bias=bias,
        total=total,
        moments=out,
        rows=rows,
        channels=channels,
        chunk=chunk,
        ADD=True,
        THREE=len(others) == 2,
        BLOCK_R=32,
        BLOCK_C=64,
    )
    return total, out


def moments(x: Tensor) -> Tensor:
    """``x [F, R, C]`` -> moments ``[F, chunks, C, 2]`` FP32: mean and sum of squared deviations of each channel."""
    if x.is_cuda:
        fused: Tensor = _moments(x)
        return fused
    variance, mean = torch.var_mean(x.float(), 1, correction=0)
    return torch.stack([mean, variance * x.shape[1]], -1)[:, None]


def add_moments(x: Tensor, others: list[Tensor], bias: Tensor) -> tuple[Tensor, Tensor]:
    """``x``, one or two others and ``bias [C]`` added up, and the moments of the sum, in one pass."""
    if x.is_cuda:
        total, moments_of_sum = _add_moments(x, others, bias)
        return total, moments_of_sum
    total = sum(others, x + bias)
    return total, moments(total)


@triton_op("v2v::norm_coefficients", mutates_args=())
def _norm_coefficients(
    moments: list[Tensor],
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    rows: int,
    chunks: list[int],
    groups: int,
    eps: float,
    over_clip: bool,
) -> Tensor:
    frames = moments[0].shape[0]
    widths = [part.shape[2] for part in moments] + [0]
    segments = 1 if over_clip else frames
    channels = sum(widths)
    group = channels // groups
    out = weight.new_empty((2, segments, channels), dtype=torch.float32)
    block = max(_power_of_two(group), 4)
    launch(
        "norm_coefficients",
        (segments, groups),
        warps=4,
        first=moments[0],
        second=moments[-1],
        shift=out if shift is None else shift,
        weight=weight,
        bias=bias,
        coefficients=out,
        frames=frames // segments,
        rows=rows,
        first_channels=widths[0],
        first_chunk=chunks[0],
        second_channels=widths[1],
        second_chunk=chunks[-1],
        group=group,
        eps=eps,
        TWO=len(moments) == 2,
        SHIFT=shift is not None,
        BLOCK_P=max(2048 // block, 1),
        BLOCK_G=block,
    )
    return out


def norm_coefficients(
    moments: list[Tensor],
    rows: int,
    weight: Tensor,
    bias: Tensor,
    *,
    groups: int,
    eps: float,
    over_clip: bool,
    shift: Tensor | None,
) -> Tensor:
    """Moments -> scale and offset ``[2, S, C]`` FP32 of a group norm.

    Args:
        moments: of the map, or of the two maps that follow each other along the channels.
        rows: positions of a frame.
        weight: of the norm, ``[C]``.
        bias: of the norm, ``[C]``.
        groups: of the norm.
        eps: of the norm.
        over_clip: statistics span all frames (S is 1) instead of one (S is F).
        shift: ``[C]``, added to the map before the norm.
    """
    if weight.is_cuda:
        chunks = [chunk_size(part.shape[0], rows, part.shape[2]) for part in moments]
        fused: Tensor = _norm_coefficients(moments, shift, weight, bias, rows, chunks, groups, eps, over_clip)
        return fused
    both = torch.cat(moments, 2)[:, 0]  # plain moments have one chunk
    mean, spread = both.unbind(-1)  # [F, C]
    if shift is not None:
        mean = mean + shift.float()
    segments = 1 if over_clip else mean.shape[0]
    grouped = mean.reshape(segments, -1, groups, mean.shape[1] // groups)
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
def _scale_offset(
    maps: list[Tensor], coefficients: Tensor, silu: bool, dtype: torch.dtype, padded_width: int
) -> Tensor:
    frames, rows, _ = maps[0].shape
    segments, channels = coefficients.shape[1:]
    height = rows // padded_width if padded_width else 0
    rows_out = (height + 1) * (padded_width + 1) if padded_width else rows
    out = maps[0].new_empty((frames * rows_out, channels), dtype=dtype)
    start = 0
    for x in maps:
        width = x.shape[2]
        launch(
            "scale_offset",
            (_up(width, 64), frames * _up(rows_out, 64)),
            warps=4,
            x=x,
            coefficients=coefficients,
            out=out,
            rows=rows_out,
            channels=width,
            all_channels=channels,
            start=start,
            segments=segments,
            image_height=height,
            image_width=padded_width,
            SILU=silu,
            PADDED=padded_width > 0,
            BLOCK_R=64,
            BLOCK_C=64,
        )
        start += width
    return out


def scale_offset(
    maps: list[Tensor],
    coefficients: Tensor,
    *,
    silu: bool,
    dtype: torch.dtype | None = None,
    padded_width: int = 0,
) -> Tensor:
    """Maps one after the other along the channels, scaled and shifted, then SiLU where asked: ``[F * R, C]``.

    Args:
        maps: ``[F, R, C']``, together C channels.
        coefficients: ``[2, S, C]``.
        silu: whether SiLU follows.
        dtype: of the result; as the map where None.
        padded_width: where positive, the width of the image, and the result is ``[F * (H + 1) * (W + 1), C]``: zeros
            follow each row of the image and each frame, which is all the padding that a 3x3 convolution reads.
    """
    if maps[0].is_cuda:
        fused: Tensor = _scale_offset(maps, coefficients, silu, dtype or maps[0].dtype, padded_width)
        return fused
    scale, offset = coefficients[:, :, None, :]
    y = torch.cat(maps, 2).float() * scale + offset
    y = F.silu(y) if silu else y
    if padded_width:
        y = F.pad(torch.unflatten(y, 1, (-1, padded_width)), (0, 0, 0, 1, 0, 1)).flatten(1, 2)
    return rounded(y.flatten(0, 1), dtype or maps[0].dtype)


# Transformer blocks -----------------------------------------------------------------------------------------


def _tokens_per_program(channels: int) -> int:
    return max(4096 // _power_of_two(channels), 1)


@triton_op("v2v::layer_norm", mutates_args=())
def _layer_norm(
    x: Tensor, bias: Tensor, weight: Tensor, offset: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    channels = x.shape[-1]
    tokens = x.numel() // channels
    block = _tokens_per_program(channels)
    out = torch.empty_like(x, dtype=dtype)
    launch(
        "layer_norm",
        (_up(tokens, block),),
        warps=4,
        x=x,
        delta=x,
        bias=bias,
        total=x,
        weight=weight,
        offset=offset,
        out=out,
        tokens=tokens,
        channels=channels,
        stride=channels,
        eps=eps,
        ADD=False,
        BLOCK_T=block,
        BLOCK_C=_power_of_two(channels),
    )
    return out


@triton_op("v2v::add_layer_norm", mutates_args=())
def _add_layer_norm(
    x: Tensor, delta: Tensor, bias: Tensor, weight: Tensor, offset: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    total = torch.empty_like(x)
    return total, _launch_add_layer_norm(x, delta, bias, weight, offset, eps, total, dtype)


def _launch_add_layer_norm(
    x: Tensor,
    delta: Tensor,
    bias: Tensor,
    weight: Tensor,
    offset: Tensor,
    eps: float,
    total: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Write the sum into the first columns of ``total``; return its norm."""
    channels = x.shape[-1]
    tokens = x.numel() // channels
    block = _tokens_per_program(channels)
    out = torch.empty_like(x, dtype=dtype)
    launch(
        "layer_norm",
        (_up(tokens, block),),
        warps=4,
        x=x,
        delta=delta,
        bias=bias,
        total=total,
        weight=weight,
        offset=offset,
        out=out,
        tokens=tokens,
        channels=channels,
        stride=total.shape[-1],
        eps=eps,
        ADD=True,
        BLOCK_T=block,
        BLOCK_C=_power_of_two(channels),
    )
    return out


def layer_norm(
    x: Tensor,
    bias: Tensor,
    weight: Tensor,
    offset: Tensor,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Layer norm of ``x + bias`` over the last axis, in FP32; the result in ``dtype``, as ``x`` where None."""
    if x.is_cuda:
        fused: Tensor = _layer_norm(x, bias, weight, offset, eps, dtype or x.dtype)
        return fused
    y = F.layer_norm(x.float() + bias.float(), weight.shape, weight.float(), offset.float(), eps)
    return rounded(y, dtype or x.dtype)


def gated_layer_norm(
    x: Tensor,
    gate: Tensor,
    weight: Tensor,
    offset: Tensor,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Layer norm of ``gate x``, whose gate is an epsilon of each token, in FP32; the compiler fuses it.

    ``x [tokens, C]``, ``gate [tokens, 1]`` in FP32.
    """
    wide = x.float()
    centred = wide - wide.mean(-1, keepdim=True)
    variance = (centred * centred).mean(-1, keepdim=True)
    y = centred * torch.rsqrt(variance + eps / gate.square()) * weight.float() + offset.float()
    return rounded(y, dtype or x.dtype)


def add_layer_norm(
    x: Tensor,
    delta: Tensor,
    bias: Tensor,
    weight: Tensor,
    offset: Tensor,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """``x + delta + bias`` and its layer norm, the latter in ``dtype``, in one pass."""
    if x.is_cuda:
        total, normed = _add_layer_norm(x, delta, bias, weight, offset, eps, dtype or x.dtype)
        return total, normed
    total = x + delta + bias
    return total, layer_norm(total, torch.zeros_like(bias), weight, offset, eps, dtype)


def _launch_gate(h: Tensor, bias: Tensor, out: Tensor) -> None:
    """Write the gated values into the last columns of ``out``."""
    width = h.shape[-1] // 2
    tokens = h.numel() // (2 * width)
    launch(
        "gate",
        (_up(width, 128), _up(tokens, 16)),
        warps=4,
        h=h,
        bias=bias,
        out=out,
        tokens=tokens,
        width=width,
        stride=out.shape[-1],
        BLOCK_T=16,
        BLOCK_C=128,
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
    normed = _launch_add_layer_norm(x, delta, bias, weight, offset, eps, buffer, x.dtype)
    if x.dtype == torch.float16 and x.shape[-1] % 64 == 0:
        if has_twins(x.device):
            tile: dict[str, Any] = {"blocks": (128, 64, 0), "warps": 4, "twin": 4, "group": 4}
        else:
            tile = {"blocks": (128, 128, 0), "warps": 8}
        launch_product(normed, expand, expand_bias, buffer, stages=3, gated=True, **tile)
    else:
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
        x: tokens ``[F * R, C]``; s is ``x + delta + bias``.
        delta: like ``x``.
        bias: ``[C]``.
        weight: of the layer norm, ``[C]``.
        offset: of the layer norm, ``[C]``.
        expand: ``[8C, C]``: values, then gates.
        expand_bias: ``[8C]``.
        contract: ``[O, 5C]``: what the output takes from s, then from the ``4C`` gated values.
        eps: of the layer norm.
    """
    if x.is_cuda:
        fused: Tensor = _feed_forward(x, delta, bias, weight, offset, eps, expand, expand_bias, contract)
        return fused
    total, normed = add_layer_norm(x, delta, bias, weight, offset, eps)
    value, gates = F.linear(normed, expand, expand_bias).chunk(2, -1)
    return F.linear(torch.cat([total, value * F.gelu(gates)], -1), contract)


def launch_product(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    out: Tensor,
    blocks: tuple[int, int, int],
    *,
    warps: int,
    stages: int,
    taps: int = 1,
    step: int = 0,
    gated: bool = False,
    scale: Tensor | None = None,
    image: tuple[int, int] | None = None,
    depth_block: int = 64,
    resident: int = 1,
    group: int = 8,
    twin: int = 0,
) -> None:
    """Fill the last columns of ``out`` with ``x @ w.T``; see the kernel for taps, gate and scale.

    ``x`` and ``w`` are not views: PyTorch 2.11 cannot compile ahead of time what reads tiles of a view. ``image`` is
    height and width where ``x`` is padded; ``resident`` the programs that a multiprocessor has room for; ``twin`` the
    buffers of the kernel in ``hopper.py``, zero for the one in ``kernels.py``.
    """
    tokens, depth = x.shape
    width = w.shape[0] // 2 if gated else w.shape[0]
    block_m, block_n, extra_n = blocks
    height_of_image, width_of_image = image or (0, 0)
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count
    launch(
        "product",
        (min(_up(tokens, block_m) * _up(width, block_n + extra_n), resident * processors),),
        warps=warps,
        stages=stages,
        tiles={
            "x": [block_m, depth_block],
            "w": [block_n, depth_block],
            "w_extra": [extra_n or block_n, depth_block],
        },
        x=x,
        w=w,
        w_extra=w,
        scale=x if scale is None else scale,
        bias=x if bias is None else bias,
        out=out,
        M=tokens,
        N=width,
        K=depth,
        stride=out.shape[-1],
        step=step,
        image_height=height_of_image,
        image_width=width_of_image,
        TAPS=taps,
        GATED=gated,
        SCALED=scale is not None,
        BIAS=bias is not None,
        PADDED=image is not None,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        EXTRA_N=extra_n,
        BLOCK_K=depth_block,
        GROUP=group,
        TWIN=twin,
    )


# Attention --------------------------------------------------------------------------------------------------


@triton_op("v2v::temporal_attention", mutates_args=())
def _temporal_attention(qkv: Tensor, frames: int, size: int) -> Tensor:
    tokens, qkv_width = qkv.shape
    rows = tokens // frames
    heads = qkv_width // (3 * size)
    out = qkv.new_empty((tokens, qkv_width // 3))
    launch(
        "temporal_attention",
        (rows * heads,),
        warps=1 if frames <= 32 else 4,
        qkv=qkv,
        out=out,
        frames=frames,
        rows=rows,
        heads=heads,
        factor=LOG2_E * size ** (-0.5),
        SIZE=size,
        BLOCK_F=max(_power_of_two(frames), 16),
        IEEE=qkv.dtype == torch.float32,
    )
    return out


def temporal_attention(qkv: Tensor, frames: int, size: int) -> Tensor:
    """Attention of each position among its frames: ``qkv [F * R, 3C]`` -> ``[F * R, C]``, heads of ``size``."""
    if qkv.is_cuda:
        fused: Tensor = _temporal_attention(qkv, frames, size)
        return fused
    parts = torch.unflatten(qkv, 0, (frames, -1)).chunk(3, -1)
    q, k, v = (torch.unflatten(part, -1, (-1, size)).permute(1, 2, 0, 3) for part in parts)
    return F.scaled_dot_product_attention(q, k, v).permute(2, 0, 1, 3).flatten(2).flatten(0, 1)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``[N, tokens, heads, size]`` each -> ``[N, tokens, C]``."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@triton_op("v2v::spatial_attention", mutates_args=())
def _spatial_attention(qkv: Tensor, frames: int, size: int) -> Tensor:
    tokens, qkv_width = qkv.shape
    rows = tokens // frames
    heads = qkv_width // (3 * size)
    out = qkv.new_empty((tokens, qkv_width // 3))
    consumers = 3 if size == 64 and has_twins(qkv.device) else 0
    launch(
        "spatial_attention",
        (_up(rows, 64 * (consumers or 1)), frames * heads),
        warps=4,
        stages=2,
        tiles={"queries": [64, size], "kv": [128, size]},
        queries=qkv,
        kv=qkv,
        out=out,
        rows=rows,
        heads=heads,
        factor=LOG2_E * size**-0.5,
        SIZE=size,
        BLOCK_M=64,
        BLOCK_N=128,
        STAGES=2,
        TWIN=consumers,
    )
    return out


def spatial_attention(qkv: Tensor, frames: int, size: int) -> Tensor:
    """Attention among the positions of each frame: ``qkv [F * R, 3C]`` -> ``[F * R, C]``, heads of ``size``."""
    if qkv.is_cuda and qkv.dtype == torch.float16:
        fused: Tensor = _spatial_attention(qkv, frames, size)
        return fused
    parts = torch.unflatten(qkv, 0, (frames, -1)).chunk(3, -1)
    return _attend(*(torch.unflatten(part, -1, (-1, size)) for part in parts)).flatten(0, 1)


@triton_op("v2v::text_attention", mutates_args=())
def _text_attention(q: Tensor, kv: Tensor, size: int) -> Tensor:
    channels = q.shape[-1]
    tokens = q.numel() // channels
    keys = kv.shape[0]
    out = torch.empty_like(q)
    launch(
        "text_attention",
        (channels // size, _up(tokens, 128)),
        warps=4,
        q=q,
        kv=kv,
        out=out,
        tokens=tokens,
        keys=keys,
        pitch=kv.stride(0),
        heads=channels // size,
        factor=LOG2_E * size ** (-0.5),
        SIZE=size,
        BLOCK_T=128,
        BLOCK_K=max(_power_of_two(keys), 16),
        IEEE=q.dtype == torch.float32,
    )
    return out


def text_attention(q: Tensor, kv: Tensor, size: int) -> Tensor:
    """Every position attends to the prompt: ``q [F * R, C]``, ``kv [tokens, 2C]`` -> ``[F * R, C]``."""
    if q.is_cuda:
        fused: Tensor = _text_attention(q, kv, size)
        return fused
    k, v = (torch.unflatten(part, -1, (-1, size))[None] for part in kv.chunk(2, -1))
    return _attend(torch.unflatten(q[None], -1, (-1, size)), k, v)[0]


# Convolutions -----------------------------------------------------------------------------------------------


def convolution(
    x: Tensor,
    weight: Tensor,
    frames: int,
    height: int,
    *,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: tuple[int, int] = (1, 1),
) -> tuple[Tensor, int]:
    """Spatial convolution: ``x [F * R, I]``, ``weight [O, k, k, I]``, ``bias [O]`` -> ``[F, R', O]``, height."""
    if x.is_cuda:
        y = convolution_operator(x, weight, bias, frames, height, stride, list(padding))
    else:
        y = convolve(x, weight, bias, frames, height, stride, padding)
    return y, (height + 2 * padding[0] - weight.shape[1]) // stride + 1


@triton_op("v2v::temporal_convolution", mutates_args=())
def _temporal_convolution(x: Tensor, weight: Tensor, frames: int) -> Tensor:
    rows, width = x.shape[0] // frames, weight.shape[0]
    out = x.new_empty((frames, rows, width))
    # 320 columns in one tile where that is the width: the input is read once.
    one_tile = width % 320 == 0 and width % 128 != 0
    if has_twins(x.device):
        blocks, twin = ((64, 256, 64), 3) if one_tile else ((128, 128, 0), 4)
        tile: dict[str, Any] = {"blocks": blocks, "warps": 4, "twin": twin}
    else:
        tile = {"blocks": (128, 256, 64) if one_tile else (128, 128, 0), "warps": 8}
    launch_product(x, weight, None, out, stages=3, taps=3, step=rows, **tile)
    return out


def temporal_convolution(x: Tensor, weight: Tensor, frames: int) -> Tensor:
    """Convolution over three frames without bias: ``x [F * R, I]``, ``weight [O, 3 * I]`` -> ``[F, R, O]``."""
    if x.is_cuda and x.dtype == torch.float16 and x.shape[-1] % 64 == 0:
        fused: Tensor = _temporal_convolution(x, weight, frames)
        return fused
    middle = torch.unflatten(x, 0, (frames, -1))
    padded = F.pad(middle, (0, 0, 0, 0, 1, 1))
    return F.linear(torch.cat([padded[:-2], middle, padded[2:]], -1), weight)


@triton_op("v2v::interleave", mutates_args=())
def _interleave(
    phases: Tensor, top: Tensor, bottom: Tensor, bias: Tensor, height: int, width: int, cropped: bool
) -> Tensor:
    frames, channels = phases.shape[0], bias.shape[0]
    rows = 2 * height - (2 if cropped else 0)
    out = phases.new_empty((frames, rows * 2 * width, channels))
    lines = frames * rows
    launch(
        "interleave",
        (_up(channels, 64), lines * _up(2 * width, 64)),
        warps=4,
        phases=phases,
        top=top,
        bottom=bottom,
        bias=bias,
        out=out,
        height=height,
        width=width,
        channels=channels,
        CROPPED=cropped,
        BLOCK_X=64,
        BLOCK_C=64,
    )
    return out


def interleave(
    phases: Tensor, edges: tuple[Tensor, Tensor] | None, bias: Tensor, height: int, width: int
) -> Tensor:
    """Assemble a doubled map, or, given ``edges``, one without its first and last row.

    Args:
        phases: ``[F, (height + 1) * (width + 1), 4C]``; entry (i, j) of phase (a, b) is position
            (2i - a, 2j - b) of the doubled map.
        edges: ``[F, width + 1, 2C]`` each: the first row that stays and the last, phases b in the columns.
        bias: ``[C]``, added.
        height: of the map that is doubled.
        width: of the same.

    Returns:
        ``[F, 2 height * 2 width, C]``, or ``[F, (2 height - 2) * 2 width, C]``.
    """
    if phases.is_cuda:
        top, bottom = edges or (phases, phases)  # where there are none, none are read
        fused: Tensor = _interleave(phases, top, bottom, bias, height, width, edges is not None)
        return fused

    def columns(rows: Tensor) -> Tensor:
        """``[..., width + 1, 2, C] -> [..., 2 width, C]``."""
        return torch.stack([rows[..., :-1, 0, :], rows[..., 1:, 1, :]], -2).flatten(-3, -2)

    split = torch.unflatten(torch.unflatten(phases, 1, (height + 1, width + 1)), -1, (2, 2, -1))
    even, odd = columns(split[:, :-1, :, 0]), columns(split[:, 1:, :, 1])
    rows = torch.stack([even, odd], 2).flatten(1, 2)
    if edges is not None:
        first, last = (columns(torch.unflatten(edge, -1, (2, -1)))[:, None] for edge in edges)
        rows = torch.cat([first, rows[:, 2:-2], last], 1)
    return rows.flatten(1, 2) + bias
