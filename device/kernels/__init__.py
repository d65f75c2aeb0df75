"""The CUDA kernels beside this file, and how they become code for a GPU.

A wheel built where a CUDA compiler was at hand carries ``<name>-<digest>.fatbin`` for the architectures in
``CMakeLists.txt``. Everywhere else the same sources are compiled with NVRTC at first use and kept in the
user's cache folder. The digest is that of the sources, so code made from other sources is never loaded.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

if TYPE_CHECKING:
    from cuda.core import ObjectCode

FILES: dict[str, tuple[str, ...]] = {
    "pixels": ("resize", "prepare_frame", "image_to_bytes"),
    "latents": ("combine", "take_window", "add_window", "sample_posterior", "find_nonfinite"),
    "guidance": ("statistics", "guide"),
}
"""Source file -> the kernels in it.

Each exists for float32 and float16, those of pictures for uint8 and uint16 too, ``prepare_frame`` then for spans of
2, 3 and 5 source columns and any (0); ``combine`` for 1 to 5 terms.
"""

FOLDER = Path(__file__).parent
_COMMON = "common.cuh"


def source(name: str) -> str:
    """The text of ``name.cu`` with the shared header put in its place: NVRTC needs no include path."""
    common = (FOLDER / _COMMON).read_text().replace("#pragma once", "")
    return (FOLDER / f"{name}.cu").read_text().replace(f'#include "{_COMMON}"', common)


def prebuilt(name: str) -> Path:
    """Where the build puts the code compiled from ``name.cu`` as it is now; the file may not exist."""
    sums = (hashlib.sha256((FOLDER / file).read_bytes()).hexdigest() for file in (_COMMON, f"{name}.cu"))
    digest = hashlib.sha256("".join(sums).encode()).hexdigest()  # CMakeLists.txt computes the same
    return FOLDER / f"{name}-{digest[:16]}.fatbin"


def compile_source(
    name: str, capability: tuple[int, int], *, cache: Path | None = None, logs: Any = None
) -> ObjectCode:
    """Compile ``name.cu`` for a GPU's compute capability with NVRTC; needs no GPU.

    A capability that this NVRTC does not know gets PTX of the newest one below it, which the driver finishes.

    Args:
        name: one of :data:`FILES`.
        capability: (major, minor).
        cache: folder that keeps what was compiled, keyed by source, options and NVRTC's version.
        logs: takes the compiler's report through ``write``, with registers and spills of each kernel.
    """
    from cuda.bindings import nvrtc
    from cuda.core import Program, ProgramOptions
    from cuda.core.utils import FileStreamProgramCache

    target = capability[0] * 10 + capability[1]
    _, supported = nvrtc.nvrtcGetSupportedArchs()
    exact = target in supported
    compute = target if exact else max((k for k in supported if k <= target), default=min(supported))
    options = ProgramOptions(
        name=f"{name}.cu",
        std="c++17",
        arch=f"{'sm' if exact else 'compute'}_{compute}",
        ptxas_options="-v" if exact and logs is not None else None,
    )
    program_cache = None if cache is None else FileStreamProgramCache(cache)
    program = Program(source(name), "c++", options)
    return program.compile("cubin" if exact else "ptx", logs=logs, cache=program_cache)


def load(name: str, capability: tuple[int, int]) -> ObjectCode:
    """Code of ``name.cu`` for the current GPU: prebuilt if the package has it, else compiled and cached.

    Raises:
        ImportError, RuntimeError: NVRTC is needed and missing, or the driver refuses what it made.
    """
    from cuda.core import ObjectCode

    file = prebuilt(name)
    if file.exists():
        try:
            code = ObjectCode.from_fatbin(file.read_bytes(), name=name)
            kernel = code.get_kernel(_entry(name))
            if kernel.attributes.num_regs:  # asking makes the driver load it for this GPU
                return code
        except Exception:  # no code for this GPU, or PTX newer than the driver: compile it here
            pass
    return compile_source(name, capability, cache=Path(platformdirs.user_cache_dir("v2v")) / "kernels")


def _entry(name: str) -> str:
    first = FILES[name][0]
    return f"{first}_1" if first == "combine" else f"{first}_float32"
