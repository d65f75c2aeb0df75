"""Every call into PyTorch that its interface does not promise, and the versions that each was tried with."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


@contextmanager
def remembered_analyses() -> Iterator[None]:
    """Let PyTorch find out only once what a Triton kernel writes to, not at each of its hundreds of calls."""
    from torch._higher_order_ops import triton_kernel_wrap as wrap

    names = [n for n in ("identify_mutated_tensors", "identify_accessed_tensors") if hasattr(wrap, n)]
    originals = {name: getattr(wrap, name) for name in names}

    def remembering(analyse: Any) -> Any:
        known: dict[Any, Any] = {}

        def look_up(kernel: Any, arguments: Any, descriptors: Any) -> Any:
            function = kernel
            while not hasattr(function, "params"):
                function = function.fn
            constants = {p.name for p in function.params if p.is_constexpr}
            described = tuple(
                (name, value if name in constants else str(type(value))) for name, value in arguments.items()
            )
            key = (id(kernel), described, str(descriptors))
            if key not in known:
                known[key] = analyse(kernel, arguments, descriptors)
            return known[key]

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
