"""The CUDA device without a GPU: its own host code over kernels that a C++ compiler made for this CPU.

Slow, and no proof of what a GPU's memory or scheduling do; but every line of arithmetic and indexing runs.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections import deque
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from v2v.device import cuda, kernels

# Instructions that have no name in C++, by what does the same.
_INSTRUCTIONS = [
    (r'asm\("cvt\.f32\.f16 .*?;" : "=f"\((\w+)\) : "h"\((.*?)\)\);', r"\1 = bits<_Float16>(\2);"),
    (
        r'asm\("cvt\.rn\.f16\.f32 .*?;" : "=h"\((.*?)\) : "f"\((.*?)\)\);',
        r"\1 = bits<uint16>((_Float16)(\2));",
    ),
    (
        r'asm\("cvt\.rn\.f16x2\.f32 .*?;" : "=r"\((.*?)\) : "f"\((.*?)\), "f"\((.*?)\)\);',
        r"\1 = (uint32)bits<uint16>((_Float16)(\2)) << 16 | bits<uint16>((_Float16)(\3));",
    ),
]


def why_not() -> str:
    """Why this machine cannot emulate; empty if it can."""
    compiler = shutil.which("g++")
    if compiler is None:
        return "no g++"
    version = subprocess.run([compiler, "-dumpversion"], capture_output=True, text=True, check=True).stdout
    return "" if int(version.split(".")[0]) >= 12 else f"g++ {version.strip()} has no _Float16"


def compiled(folder: Path, names: set[str]) -> ctypes.CDLL:
    """All kernels, as functions of this machine; ``names`` are theirs."""
    text = ['#include "emulated.h"']
    for file in kernels.FILES:
        source = kernels.source(file)
        for pattern, replacement in _INSTRUCTIONS:
            source = re.sub(pattern, replacement, source, flags=re.DOTALL)
        assert "asm" not in source, re.search("asm.*", source)
        text.append(f"namespace {file} {{\n{source}\n}}")
        text += [
            f'extern "C" {{ void* launch_{name} = (void*)&Launch<&{file}::{name}>::run; }}'
            for name in sorted(names)
            if re.match("|".join(kernels.FILES[file]), name)
        ]
    (folder / "kernels.cpp").write_text("\n".join(text))
    shutil.copy(Path(__file__).with_name("emulated.h"), folder)
    command = ["g++", "-std=c++20", "-O1", "-w", "-shared", "-fPIC", "-ffp-contract=off", "kernels.cpp"]
    done = subprocess.run([*command, "-o", "kernels.so"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]
    return ctypes.CDLL(str(folder / "kernels.so"))


class EmulatedDevice(cuda.CudaDevice):
    """Memory of the host, and one block after the other."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self.gpu = SimpleNamespace(properties=SimpleNamespace(multiprocessor_count=2))
        self.stream, self.allocations, self.capture_refused = 0, 0, "emulated"
        self._taps = lru_cache(maxsize=256)(self._make_taps)
        self._tiles = lru_cache(maxsize=256)(self._make_tiles)
        self._scratch = self.upload(np.zeros(cuda.SCRATCH_BYTES, np.uint8))
        self._nonfinite = self.upload(np.full(1, cuda.ALL_FINITE))
        self._flag = np.zeros(1, np.int32)
        self._flag_memory = SimpleNamespace(pointer=self._flag.ctypes.data)

    def empty(self, shape, dtype):
        self.allocations += 1
        nbytes = max(int(np.prod(shape)) * np.dtype(dtype).itemsize, 1)
        memory = np.full(nbytes + 256, 0xFF, np.uint8)  # aligned as a GPU's
        begin = -memory.ctypes.data % 256
        return cuda.CudaArray(tuple(shape), np.dtype(dtype), memory.ctypes.data + begin, memory)

    def upload(self, host, out=None):
        out = self.empty(np.shape(host), host.dtype) if out is None else out
        data = np.ascontiguousarray(host, out.dtype)
        ctypes.memmove(out.pointer, data.ctypes.data, data.nbytes)
        return out

    def download(self, array):
        return self.fetch(array).result()

    def fetch(self, array):
        host = np.empty(array.shape, array.dtype)
        ctypes.memmove(host.ctypes.data, array.pointer, array.nbytes)
        return SimpleNamespace(result=lambda: host)

    def zero(self, out):
        ctypes.memset(out.pointer, 0, out.nbytes)

    def copy(self, source, out):
        ctypes.memmove(out.pointer, source.pointer, out.nbytes)

    def synchronize(self):
        pass

    def capture(self, work):
        return work

    def feed(self, shape, dtype):
        waiting = deque()
        return SimpleNamespace(
            put=lambda host: waiting.append(host.copy()), take=lambda out: self.upload(waiting.popleft(), out)
        )

    def _kernel(self, name, *variant):
        parts = (str(part) if isinstance(part, int) else np.dtype(part).name for part in variant)
        return "_".join((name, *parts))

    def _launch(self, kernel, blocks, *arguments, threads=cuda.THREADS):
        values = [ctypes.c_uint64(value) if isinstance(value, int) else value for value in arguments]
        sizes = [ctypes.c_uint(size) for size in (*blocks, threads)]
        function = ctypes.CFUNCTYPE(None, *map(type, [*sizes, *values]))
        function(ctypes.c_void_p.in_dll(self._library, f"launch_{kernel}").value)(*sizes, *values)
        assert not ctypes.c_int.in_dll(self._library, "failed").value, f"{kernel} would fail on a GPU"
