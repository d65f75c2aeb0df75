"""Run every Triton kernel in Triton's interpreter and compare it with the plain form of its operation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F
from triton.runtime import interpreter
from triton.tools.tensor_descriptor import TensorDescriptor

from v2v.engine.inductor.fused import fp8, kernels, twins
from v2v.engine.inductor.fused import operations as ops
from v2v.engine.inductor.fused.operations import E4M3

# What a CPU has no instruction for, and what there is no GPU to ask.
kernels.tanh = lambda x: 2.0 * tl.sigmoid(2.0 * x) - 1.0
torch.cuda.get_device_properties = lambda device: SimpleNamespace(
    multi_processor_count=7, shared_memory_per_block_optin=232448
)
ops.being_traced = lambda: False
ops.chunk_size = lambda frames, rows, channels: 64
ops.has_twins = lambda device: False

launch_unchecked = ops.launch


def _launch_checked(name: str, grid: tuple[int, ...], **arguments: Any) -> None:
    """PyTorch's compiler passes fractions as FP64: a kernel may have them as constants only."""
    kinds = getattr(kernels, name).fn.__annotations__
    for argument, value in arguments.items():
        assert not isinstance(value, float) or kinds.get(argument) == "tl.constexpr", (name, argument)
    launch_unchecked(name, grid, **arguments)


ops.launch = _launch_checked

# The interpreter of Triton 3.6 loses the carry when it rounds to e4m3: 1.98 becomes 1.
_convert = interpreter._convert_float


def _convert_float(values: Any, source: Any, target: Any, rounding: Any) -> Any:
    if target == tl.float8e4nv and source == tl.float32:
        return torch.from_numpy(values).to(E4M3).view(torch.uint8).numpy()
    return _convert(values, source, target, rounding)


interpreter._convert_float = _convert_float

ROWS, FRAMES, CHANNELS, MORE = 150, 3, 96, 160


def kernel_form(name: str, module: Any = ops) -> Any:
    """The function behind an operator, which would not take CPU tensors."""
    return getattr(module, name)._init_fn


def check(name: str, found: Tensor, expected: Tensor) -> None:
    error = float((found.double() - expected.double()).norm() / expected.double().norm())
    tolerance = 5e-5 if expected.dtype == torch.float32 else 2e-3
    print(f"{name} {expected.dtype}: {error:.1e}")
    assert error < tolerance, name


def merged(moments: Tensor) -> Tensor:
    """Moments of chunks as moments of whole frames."""
    counts = torch.tensor([min(64, ROWS - first) for first in range(0, ROWS, 64)]).float()[None, :, None]
    mean = (moments[..., 0] * counts).sum(1) / ROWS
    spread = (moments[..., 1] + counts * (moments[..., 0] - mean[:, None]) ** 2).sum(1)
    return torch.stack([mean, spread], -1)[:, None]


def check_norms(kind: torch.dtype) -> None:
    first = (torch.randn(FRAMES, ROWS, CHANNELS) * 2 + 5).to(kind)
    other = torch.randn(FRAMES, ROWS, CHANNELS).to(kind)
    second = (torch.randn(FRAMES, ROWS, MORE) + 1).to(kind)
    bias = torch.randn(CHANNELS).to(kind)
    check("moments", merged(kernel_form("_moments")(first)), ops.moments(first))
    for others in ([other], [other, first]):
        total, moments = kernel_form("_add_moments")(first, others, bias)
        expected, _ = ops.add_moments(first, others, bias)
        check("sum", total, expected)
        check("moments of sum", merged(moments).to(kind), ops.moments(expected.float()).to(kind))
    weight, offset, shift = (torch.randn(CHANNELS + MORE).to(kind) for _ in range(3))
    found = [kernel_form("_moments")(part) for part in (first, second)]
    for whole in (False, True):
        for lacking in (None, shift):
            coefficients = kernel_form("_norm_coefficients")(
                found, lacking, weight, offset, ROWS, [64, 64], 32, 1e-5, whole
            )
            scaled = kernel_form("_scale_offset")([first, second], coefficients, True, kind, 0)
            joined = torch.cat([first, second], 2).float() + (0 if lacking is None else lacking.float())
            image = joined.permute(2, 0, 1)[None] if whole else joined.permute(0, 2, 1)
            normed = F.silu(F.group_norm(image, 32, weight.float(), offset.float(), 1e-5))
            normed = normed[0].permute(1, 2, 0) if whole else normed.permute(0, 2, 1)
            check("group norm", scaled, normed.flatten(0, 1).to(kind))


def check_transformer(kind: torch.dtype) -> None:
    x, delta = (torch.randn(FRAMES * ROWS, CHANNELS).to(kind) for _ in range(2))
    bias, weight, offset = (torch.randn(CHANNELS).to(kind) for _ in range(3))
    check(
        "layer norm",
        kernel_form("_layer_norm")(x, bias, weight, offset, 1e-5, kind),
        ops.layer_norm(x, bias, weight, offset),
    )
    sums = zip(
        kernel_form("_add_layer_norm")(x, delta, bias, weight, offset, 1e-5, kind),
        ops.add_layer_norm(x, delta, bias, weight, offset),
        strict=True,
    )
    for found, expected in sums:
        check("sum and layer norm", found, expected)
    for width in (CHANNELS, 64):  # one for the gate's own kernel, one for the product's in half precision
        x, delta = (torch.randn(70, width).to(kind) for _ in range(2))
        bias, weight, offset = (torch.randn(width).to(kind) for _ in range(3))
        expand, contract = (
            (torch.randn(8 * width, width) / 10).to(kind),
            (torch.randn(64, 5 * width) / 20).to(kind),
        )
        expand_bias = torch.randn(8 * width).to(kind)
        check(
            "feed-forward",
            kernel_form("_feed_forward")(x, delta, bias, weight, offset, 1e-5, expand, expand_bias, contract),
            ops.feed_forward(x, delta, bias, weight, offset, expand, expand_bias, contract),
        )
    qkv = torch.randn(5 * 20, 3 * CHANNELS).to(kind)
    check(
        "temporal attention",
        kernel_form("_temporal_attention")(qkv, 5, 32),
        ops.temporal_attention(qkv, 5, 32),
    )
    kv, q = torch.randn(77, 400).to(kind)[:, 100 : 100 + 2 * CHANNELS], torch.randn(150, CHANNELS).to(kind)
    check("text attention", kernel_form("_text_attention")(q, kv, 32), ops.text_attention(q, kv, 32))


def check_half_only() -> None:
    qkv = torch.randn(2 * 200, 3 * CHANNELS).half()
    expected = ops.spatial_attention(qkv.float(), 2, 32).half()
    check("spatial attention", kernel_form("_spatial_attention")(qkv, 2, 32), expected)
    for width in (320, 128):
        x, weight = torch.randn(4 * 40, 128).half(), (torch.randn(width, 3 * 128) / 10).half()
        found = kernel_form("_temporal_convolution")(x, weight, 4)
        check("temporal convolution", found, ops.temporal_convolution(x, weight, 4))


def check_twins() -> None:
    """As they are launched for Hopper; there other kernels take their places, and must agree with what runs here."""

    def launch(name: str, grid: Any, warps: int, tiles: dict[str, list[int]], arguments: Any) -> None:
        for tensor, tile in tiles.items():
            arguments[tensor] = TensorDescriptor.from_tensor(arguments[tensor], tile)
        getattr(kernels, name)[grid](**arguments)
        launched.append(name)

    launched: list[str] = []
    twins.launch, ops.has_twins = launch, lambda device: True
    qkv = torch.randn(2 * 200, 3 * 128).half()
    expected = ops.spatial_attention(qkv.float(), 2, 64).half()
    check("spatial attention, tiles shared", kernel_form("_spatial_attention")(qkv, 2, 64), expected)
    for width in (320, 128):
        x, weight = torch.randn(4 * 40, 128).half(), (torch.randn(width, 3 * 128) / 10).half()
        found = kernel_form("_temporal_convolution")(x, weight, 4)
        check("temporal convolution, other tiles", found, ops.temporal_convolution(x, weight, 4))
    x, delta = (torch.randn(70, 64).half() for _ in range(2))
    bias, weight, offset = (torch.randn(64).half() for _ in range(3))
    layers = (torch.randn(512, 64) / 10).half(), torch.randn(512).half(), (torch.randn(64, 320) / 20).half()
    found = kernel_form("_feed_forward")(x, delta, bias, weight, offset, 1e-5, *layers)
    check("feed-forward, other tiles", found, ops.feed_forward(x, delta, bias, weight, offset, *layers))
    assert launched == ["spatial_attention", "product", "product", "product"]
    ops.has_twins = lambda device: False


def check_fp8() -> None:
    half = torch.float16
    height, width, depth = 5, 6, 80
    x = torch.randn(2, height * width, depth).half() * 300  # some saturate
    coefficients = torch.stack([torch.full((2, depth), 1.0), torch.randn(2, depth)])
    for padded in (0, width):
        written = kernel_form("_scale_offset")([x], coefficients, True, E4M3, padded)
        expected = ops.scale_offset([x], coefficients, silu=True, dtype=E4M3, padded_width=padded)
        assert expected.float().max() == 448
        check("e4m3 map", written.float(), expected.float())
    bias, weight, offset = (torch.randn(depth).half() for _ in range(3))
    tokens = x.flatten(0, 1) / 300
    normed = kernel_form("_layer_norm")(tokens, bias, weight, offset, 1e-5, E4M3)
    found, expected = normed.float(), ops.layer_norm(tokens, bias, weight, offset, dtype=E4M3).float()
    assert float((found != expected).float().mean()) < 1e-3  # where the last bit before rounding differs
    for outputs in (320, 48):
        padded_map = ops.scale_offset([x / 300], coefficients, silu=True, dtype=E4M3, padded_width=width)
        rows = fp8.Rows(torch.randn(outputs, 9 * depth).half() / 30)
        arguments = (padded_map, rows.weight, rows.scale, 2, height, width, half)
        check("FP8 convolution", kernel_form("_convolution", fp8)(*arguments), fp8.convolution(*arguments))
        rows = fp8.Rows(torch.randn(outputs, 3 * depth).half() / 20)
        arguments = (expected.to(E4M3), rows.weight, rows.scale, 4, half)
        made = kernel_form("_temporal_convolution", fp8)(*arguments)
        check("FP8 temporal convolution", made, fp8.temporal_convolution(*arguments))
    for inputs in (depth, 128):
        rows, biases = fp8.Rows(torch.randn(2 * 96, inputs).half() / 5), torch.randn(2 * 96).half()
        arguments = (ops.rounded(torch.randn(70, inputs), E4M3), rows.weight, rows.scale, biases)
        found, expected = kernel_form("_gated", fp8)(*arguments).float(), fp8.gated(*arguments).float()
        # The gate by tanh is good to half precision: where it is near a boundary e4m3 goes the other way.
        assert float((found - expected).norm() / expected.norm()) < 1e-2


def check_interleave(kind: torch.dtype) -> None:
    height, width, channels = 4, 6, 72
    phases = torch.randn(2, (height + 1) * (width + 1), 4 * channels).to(kind)
    edges = [torch.randn(2, width + 1, 2 * channels).to(kind) for _ in range(2)]
    bias = torch.randn(channels).to(kind)
    cropped = kernel_form("_interleave")(phases, *edges, bias, height, width, True)
    check("doubling, cropped", cropped, ops.interleave(phases, (edges[0], edges[1]), bias, height, width))
    whole = kernel_form("_interleave")(phases, phases, phases, bias, height, width, False)
    check("doubling", whole, ops.interleave(phases, None, bias, height, width))


torch.manual_seed(0)
for precision in (torch.float32, torch.float16):
    check_norms(precision)
    check_transformer(precision)
    check_interleave(precision)
check_half_only()
check_twins()
check_fp8()
