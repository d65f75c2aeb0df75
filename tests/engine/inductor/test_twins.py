"""Kernels in Hopper's own form take the same arguments as the general ones, and translate where no GPU is."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton.experimental.gluon")

import torch
import triton

from v2v.engine.inductor import torch_internals
from v2v.engine.inductor.fused import kernels, twins

if not triton.__version__.startswith(twins.TRITON):
    pytest.skip("hopper.py is not written for this Triton", allow_module_level=True)

from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource

from v2v.engine.inductor.fused import hopper
from v2v.engine.inductor.fused import operations as ops

WHOLE = dict.fromkeys(
    ("M", "N", "K", "stride", "step", "image_height", "image_width", "rows", "heads"), "i32"
)
HALF = dict.fromkeys(("scale", "bias", "out"), "*fp16")
FLAGS = {"SCALED": False, "PADDED": False, "BLOCK_K": 64, "GROUP": 4}


def signature(name: str, tiles: dict[str, list[int]], constants: dict[str, Any]) -> dict[str, str]:
    """As PyTorch's compiler writes it."""
    kinds = {**WHOLE, **HALF, **{tensor: f"tensordesc<fp16{tile}>" for tensor, tile in tiles.items()}}
    kinds |= dict.fromkeys(constants, "constexpr")
    return {parameter.name: kinds[parameter.name] for parameter in getattr(kernels, name).params}


def translate(source: Any, warps: int = 4) -> Any:
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})


def parameters(kernel: Any) -> list[str]:
    """Types of the machine code's parameters."""
    lines = [line.strip() for line in kernel.asm["ptx"].splitlines()]
    return [line.split(kernel.metadata.name)[0] for line in lines if line.startswith(".param")]


@pytest.mark.parametrize("name", twins.NAMES)
def test_twins_have_the_same_parameters(name: str) -> None:
    one, other = (getattr(module, name).params for module in (kernels, hopper))
    assert [(p.name, p.is_constexpr) for p in one] == [(p.name, p.is_constexpr) for p in other]


def test_attention_is_called_in_the_same_way() -> None:
    constants = {"factor": 0.125, "SIZE": 64, "BLOCK_M": 64, "BLOCK_N": 128, "STAGES": 2, "TWIN": 3}
    kinds = signature("spatial_attention", {"queries": [64, 64], "kv": [128, 64]}, constants)
    special = translate(torch_internals.translated("spatial_attention", kinds, constants))
    general = translate(triton.compiler.ASTSource(kernels.spatial_attention, kinds, constants))
    assert parameters(special) == parameters(general)
    assert special.metadata.num_warps == 16  # three consumers, the producer's warp, padding to a warpgroup


@pytest.mark.parametrize(
    ("tiles", "constants"),
    [
        (
            {"x": [128, 64], "w": [64, 64], "w_extra": [64, 64]},
            {"TAPS": 1, "GATED": True, "BIAS": True, "BLOCK_M": 128, "BLOCK_N": 64, "EXTRA_N": 0, "TWIN": 4},
        ),
        (
            {"x": [64, 64], "w": [256, 64], "w_extra": [64, 64]},
            {
                "TAPS": 3,
                "GATED": False,
                "BIAS": False,
                "BLOCK_M": 64,
                "BLOCK_N": 256,
                "EXTRA_N": 64,
                "TWIN": 3,
            },
        ),
    ],
    ids=["gated", "convolution over frames"],
)
def test_products_fit_into_shared_memory(tiles: dict[str, list[int]], constants: dict[str, Any]) -> None:
    constants = {**constants, **FLAGS}
    kernel = translate(
        torch_internals.translated("product", signature("product", tiles, constants), constants)
    )
    assert kernel.metadata.shared <= 232448
    assert kernel.metadata.num_warps == 12


def test_the_compiler_gets_hoppers_form_of_what_was_traced_for_it() -> None:
    heuristics = pytest.importorskip("torch._inductor.runtime.triton_heuristics")
    before = heuristics.ASTSource
    constants = {"factor": 0.125, "SIZE": 64, "BLOCK_M": 64, "BLOCK_N": 128, "STAGES": 2, "TWIN": 3}
    kinds = signature("spatial_attention", {"queries": [64, 64], "kv": [128, 64]}, constants)
    with torch_internals.in_packages():
        special = heuristics.ASTSource(kernels.spatial_attention, kinds, constants, {})
        general = heuristics.ASTSource(kernels.spatial_attention, kinds, {**constants, "TWIN": 0}, {})
    assert isinstance(special, GluonASTSource)
    assert special.fn is hopper.spatial_attention
    assert general.fn is kernels.spatial_attention
    assert heuristics.ASTSource is before


HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9


@pytest.mark.gpu
@pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU")
def test_twins_compute_the_same() -> None:
    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device="cuda", dtype=torch.float16) / shape[-1] ** 0.25

    def everything() -> list[torch.Tensor]:
        made = [ops.spatial_attention(qkv, 3, 64) for qkv in tokens]
        made += [ops.temporal_convolution(x, weight, 3) for x, weight in convolutions]
        return [*made, *(ops.feed_forward(*layer) for layer in layers)]

    # Frames smaller than a tile, of whole tiles, of a part more; widths of one tile and of several.
    tokens = [random(3 * rows, 3 * 320) for rows in (100, 384, 1000)]
    convolutions = [(random(3 * 500, width), random(width, 3 * width)) for width in (64, 320, 640, 1280)]
    layers = []
    for width in (64, 320, 1280):
        bias, weight, offset = (random(1, width)[0] for _ in range(3))
        matrices = random(8 * width, width), random(1, 8 * width)[0], random(width, 5 * width)
        layers.append((random(700, width), random(700, width), bias, weight, offset, *matrices))
    special = everything()
    with ops.general_kernels():
        general = everything()
    for one, other in zip(special, general, strict=True):
        assert float((one.float() - other.float()).norm() / other.float().norm()) < 1e-3
