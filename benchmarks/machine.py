"""The machine under test: its description, the ceilings of its hardware, the memory that a process used."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from v2v.benchmarks.results import Ceilings, Figure, Machine
from v2v.benchmarks.trace import Clock, CudaClock, HostClock
from v2v.device import open_device

_LIBRARIES = (
    "numpy",
    "av",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "triton",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "cuda-core",
    "cuda-bindings",
)

# Large enough to be far beyond any cache, small enough for a machine with little memory.
_COPY_BYTES = {"cpu": 1 << 27, "cuda": 1 << 30}
_PRODUCT_SIDE = {"cpu": 2048, "cuda": 8192}
_LOOK_SECONDS = 0.02
_SAMPLES = {"cpu": 5, "cuda": 20}


def machine() -> Machine:
    """Describe this machine; facts that cannot be determined are None or "unknown"."""
    gpu = _Gpu.find()
    return Machine(
        cpu=_cpu_name(),
        cores=cores(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpu=None if gpu is None else gpu.name,
        gpu_memory_bytes=None if gpu is None else gpu.total,
        driver=None if gpu is None else gpu.driver,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        versions=_versions(),
    )


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _versions() -> dict[str, str]:
    versions = {}
    for library in _LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[library] = importlib.metadata.version(library)
    return versions


class _Gpu:
    """The first GPU, seen through NVIDIA's management library, which needs no CUDA context."""

    def __init__(self) -> None:
        from cuda.core import system

        self._device = system.Device(index=0)
        self.name = str(self._device.name)
        self.total = int(self._device.memory_info.total)
        self.driver = ".".join(map(str, system.get_kernel_mode_driver_version()))

    @classmethod
    def find(cls) -> _Gpu | None:
        """The GPU, if the library and one of them are there."""
        try:
            return cls()
        except Exception:  # no cuda-python, no driver, no GPU: each raises something of its own
            return None

    @property
    def used(self) -> int:
        """Bytes in use, by all processes."""
        return int(self._device.memory_info.used)


class GpuMemory:
    """Inside, watches the most GPU memory in use, beyond what was in use at the beginning.

    It sees the whole GPU: what another process takes meanwhile is counted too.
    """

    def __init__(self) -> None:
        self._gpu = _Gpu.find()
        self._before = 0 if self._gpu is None else self._gpu.used
        self._most = 0
        self._end = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="v2v-gpu-memory")

    def __enter__(self) -> GpuMemory:
        if self._gpu is not None:
            self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._gpu is not None:
            self._watcher.join()

    @property
    def peak(self) -> int | None:
        """Bytes; None without a GPU."""
        return None if self._gpu is None else self._most

    def _watch(self) -> None:
        assert self._gpu is not None
        while True:
            self._most = max(self._most, self._gpu.used - self._before)
            if self._end.wait(_LOOK_SECONDS):
                break


def host_peak() -> int:
    """The most memory, in bytes, that this process has had resident so far."""
    with suppress(OSError):  # getrusage's figure would be that of the parent, where the parent was larger
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def ceilings(device: str) -> Ceilings:
    """Measure how fast ``device`` ("cpu" or "cuda") copies memory and multiplies matrices.

    On a CPU with all its cores, in FP32; on CUDA in FP16, if PyTorch is there to do it.

    Raises:
        EngineError: no GPU.
    """
    return _cuda_ceilings() if device == "cuda" else _cpu_ceilings()


def _cpu_ceilings() -> Ceilings:
    count = _COPY_BYTES["cpu"]
    source, target = (np.ones(count, np.uint8) for _ in range(2))
    edges = np.linspace(0, count, cores() + 1).astype(int)
    pieces = [slice(first, last) for first, last in zip(edges[:-1], edges[1:], strict=True)]
    side = _PRODUCT_SIDE["cpu"]
    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal((side, side), np.float32) for _ in range(2))
    product = np.empty_like(a)
    with ThreadPoolExecutor(len(pieces)) as pool:

        def copy() -> None:
            list(pool.map(lambda piece: np.copyto(target[piece], source[piece]), pieces))

        copied = _rates(copy, 2 * count, "cpu", HostClock())
    multiplied = _rates(lambda: np.matmul(a, b, out=product), 2 * side**3, "cpu", HostClock())
    return Ceilings("cpu", "fp32", copied, multiplied)


def _cuda_ceilings() -> Ceilings:
    device = open_device("cuda")
    clock = CudaClock(device)
    count = _COPY_BYTES["cuda"]
    source, target = (device.empty((count,), np.uint8) for _ in range(2))
    copied = _rates(lambda: device.copy(source, target), 2 * count, "cuda", clock)
    try:
        import torch
    except ImportError:
        return Ceilings("cuda", "fp16", copied, None)
    side = _PRODUCT_SIDE["cuda"]
    with torch.cuda.stream(torch.cuda.ExternalStream(device.stream)):  # type: ignore[no-untyped-call]
        a, b = (torch.randn(side, side, device="cuda", dtype=torch.float16) for _ in range(2))
        product = torch.empty_like(a)
        multiplied = _rates(lambda: torch.matmul(a, b, out=product), 2 * side**3, "cuda", clock)
    return Ceilings("cuda", "fp16", copied, multiplied)


def _rates(work: Callable[[], Any], amount: float, device: str, clock: Clock) -> Figure:
    """``amount`` per second of ``work``, after a warm-up."""
    samples = []
    for _ in range(2):
        work()
    for _ in range(_SAMPLES[device]):
        clock.start()
        work()
        samples.append(amount / clock.seconds(clock.mark()))
    return Figure(tuple(samples))
