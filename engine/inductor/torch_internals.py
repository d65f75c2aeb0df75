"""Every call into PyTorch that its interface does not promise, and the versions that each was tried with.

Another version may have another name for any of these. ``pyproject.toml`` bounds PyTorch for the ``inductor`` extra
accordingly; whoever raises the bound runs ``pytest tests/engine/inductor`` and, on a GPU, ``pytest -m gpu`` with it.

    open_package                        2.11 (CUDA), 2.13 (CPU)
    compile_package                     2.11 (CUDA), 2.13 (CPU)
    remembered_analyses                 2.11 (CUDA), 2.13 (traced without a GPU)
    being_traced, traced_with_tiles     2.11 (CUDA), 2.13 (traced without a GPU)
    in_packages, translated             2.11 with Triton 3.6 (CUDA)
    fp8_product                         2.11 (CUDA)
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from v2v.engine.inductor.fused.twins import NAMES, layout


def compile_package(program: Any, path: Path, options: dict[str, Any]) -> None:
    """Compile an exported program ahead of time into the package ``path``."""
    torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)


def fp8_product(
    x: Tensor, weight: Tensor, x_scale: Tensor, weight_scale: Tensor, dtype: torch.dtype
) -> Tensor:
    """``x [M, K]`` times ``weight [N, K]`` transposed, both e4m3, scaled and as ``dtype``."""
    return torch._scaled_mm(x, weight.t(), x_scale, weight_scale, out_dtype=dtype, use_fast_accum=True)


def being_traced() -> bool:
    """Whether Triton kernels are to be recorded instead of run."""
    from torch._library.triton import is_wrap_triton_enabled

    return bool(is_wrap_triton_enabled())


@contextmanager
def remembered_analyses() -> Iterator[None]:
    """Let PyTorch find out only once what a Triton kernel writes to, not at each of its hundreds of calls."""
    from torch._higher_order_ops import triton_kernel_wrap as wrap

    names = [n for n in ("identify_mutated_tensors", "identify_accessed_tensors") if hasattr(wrap, n)]
    originals = {name: getattr(wrap, name) for name in names}

    def remembering(analyse: Any) -> Any:
        analyses: dict[Any, Any] = {}

        def look_up(kernel: Any, arguments: Any, descriptors: Any) -> Any:
            function = kernel
            while not hasattr(function, "params"):
                function = function.fn
            constants = {p.name for p in function.params if p.is_constexpr}
            described = tuple(
                (name, value if name in constants else str(type(value))) for name, value in arguments.items()
            )
            key = (id(kernel), described, str(descriptors))
            if key not in analyses:
                analyses[key] = analyse(kernel, arguments, descriptors)
            return analyses[key]

        return look_up

    for name in names:
        setattr(wrap, name, remembering(originals[name]))
    try:
        yield
    finally:
        for name in names:
            setattr(wrap, name, originals[name])


def open_package(code: Path) -> Any:
    """Load machine code without ``aoti_load_package``.

    That imports PyTorch's compiler, which takes seconds, and finds out what vectors the CPU has, which on a machine
    that has not done so before means running a C++ compiler for up to a minute.
    """
    package, single_threaded, runners, current_gpu = str(code), True, 1, -1
    return torch._C._aoti.AOTIModelPackageLoader(package, "model", single_threaded, runners, current_gpu)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep PyTorch's remarks on its own interfaces from the user's terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def traced_with_tiles(
    kernel: Any, grid: tuple[int, ...], tiles: Mapping[str, list[int]], arguments: dict[str, Any]
) -> None:
    """What ``wrap_triton(kernel)[grid](**arguments)`` does, with tiles, which it does not take as of PyTorch 2.13."""
    from torch._higher_order_ops import triton_kernel_wrap as wrap

    class Tracer(wrap.TracingTritonHOPifier):
        def call_HOP(self, variable: Any, grids: Any, combined_args: dict[str, Any], tx: None) -> None:
            graphable, constants = self.store_non_graphable_args(combined_args)
            wrap.triton_kernel_wrapper_mutation(
                kernel_idx=variable.kernel_idx,
                constant_args_idx=constants,
                grid=grids,
                tma_descriptor_metadata={
                    tensor: wrap.create_tma_stable_metadata([*tile]) for tensor, tile in tiles.items()
                },
                kwargs=graphable,
            )

    Tracer().call_triton_kernel(wrap.TraceableTritonKernelWrapper(kernel, None, grid), [], arguments, None)


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
            kind = f"{kind[:-1]},{layout(tile)!r}>"
        kinds[parameter] = kind
    return GluonASTSource(getattr(hopper, name), kinds, dict(constants), attributes)
