"""Run kernels of ``hopper.py`` in place of their twins in ``kernels.py``: at once, or in a package that is compiled.

PyTorch traces and compiles kernels in Triton's general language alone (as of 2.13). So it is shown the twin, which has
the same parameters and computes the same, and gets Hopper's form when it has the kernel translated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAMES = ("spatial_attention", "product")

TRITON = ("3.6.",)
"""Versions that ``hopper.py`` is written for: Gluon still changes. With others Hopper runs the general kernels."""


def launch(
    name: str, grid: tuple[int, ...], warps: int, tiles: Mapping[str, list[int]], arguments: dict[str, Any]
) -> None:
    """Run Hopper's form; see ``operations.launch``."""
    from triton.experimental.gluon.nvidia.hopper import (  # type: ignore[import-not-found, unused-ignore]
        TensorDescriptor,
    )

    from v2v.engine.inductor.fused import hopper

    for tensor, tile in tiles.items():
        arguments[tensor] = TensorDescriptor.from_tensor(arguments[tensor], tile, layout(tile))
    getattr(hopper, name)[grid](**arguments, num_warps=warps)


def layout(tile: list[int]) -> Any:
    """How the copy engine leaves a tile of half-precision numbers in shared memory."""
    from triton.experimental.gluon import language as gl  # type: ignore[import-not-found, unused-ignore]

    return gl.NVMMASharedLayout.get_default_for(tile, gl.float16)
