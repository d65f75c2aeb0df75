"""Run kernels of ``hopper.py`` in place of their twins in ``kernels.py``: at once, or in a package that is compiled.

PyTorch traces and compiles kernels in Triton's general language alone (as of 2.13). So it is shown the twin, which has
the same parameters and computes the same, and gets Hopper's form when it has the kernel translated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

NAMES = ("spatial_attention", "product")

TRITON = ("3.6.",)
"""Versions that ``hopper.py`` is written for: Gluon still changes. With others Hopper runs the general kernels."""


def launch(
    name: str, grid: tuple[int, ...], warps: int, tiles: Mapping[str, list[int]], arguments: dict[str, Any]
) -> None:
    """Run Hopper's form; see ``operations._launch``."""
    from triton.experimental.gluon.nvidia.hopper import (  # type: ignore[import-not-found, unused-ignore]
        TensorDescriptor,
    )

    from v2v.engine.inductor.fused import hopper

    for tensor, tile in tiles.items():
        arguments[tensor] = TensorDescriptor.from_tensor(arguments[tensor], tile, _layout(tile))
    getattr(hopper, name)[grid](**arguments, num_warps=warps)


def _layout(tile: list[int]) -> Any:
    """How the copy engine leaves a tile of half-precision numbers in shared memory."""
    from triton.experimental.gluon import language as gl  # type: ignore[import-not-found, unused-ignore]

    return gl.NVMMASharedLayout.get_default_for(tile, gl.float16)


@contextmanager
def in_packages() -> Iterator[None]:
    """Within it PyTorch's compiler translates Hopper's form of what was traced with ``TWIN``.

    These kernels are translated in this process: the compiler's helper processes would not know.
    """
    import torch._inductor.config
    from torch._inductor import async_compile
    from torch._inductor.runtime import triton_heuristics

    compiler: Any = triton_heuristics
    queue: Any = async_compile.AsyncCompile
    general, elsewhere = compiler.ASTSource, queue.triton

    def source(function: Any, signature: Any, constants: Any, attributes: Any) -> Any:
        name = getattr(function, "__name__", "")
        if name not in NAMES or not constants.get("TWIN"):
            return general(function, signature, constants, attributes)
        return translated(name, signature, constants, attributes)

    def triton(self: Any, kernel_name: str, *arguments: Any, **options: Any) -> Any:
        if not kernel_name.startswith(NAMES):
            return elsewhere(self, kernel_name, *arguments, **options)
        with torch._inductor.config.patch(compile_threads=1):
            return elsewhere(self, kernel_name, *arguments, **options)

    compiler.ASTSource, queue.triton = source, triton
    try:
        yield
    finally:
        compiler.ASTSource, queue.triton = general, elsewhere


def translated(
    name: str, signature: Mapping[str, str], constants: Mapping[Any, Any], attributes: Any = None
) -> Any:
    """What Triton compiles for Hopper's form of ``name``; its twin's signature lacks the layout of tiles."""
    from triton.experimental.gluon._runtime import (  # type: ignore[import-not-found, unused-ignore]
        GluonASTSource,
    )

    from v2v.engine.inductor.fused import hopper

    kinds = {}
    for parameter, kind in signature.items():
        if kind.startswith("tensordesc<"):
            tile = [int(size) for size in kind[kind.index("[") + 1 : kind.index("]")].split(",")]
            kind = f"{kind[:-1]},{_layout(tile)!r}>"
        kinds[parameter] = kind
    return GluonASTSource(getattr(hopper, name), kinds, dict(constants), attributes)
