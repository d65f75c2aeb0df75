"""Bandwidth of the CUDA device's kernels against a plain copy.

    python -m v2v.benchmarks.studies.gpu_device -o FILE.json

Every kernel here only moves memory: its floor is the bytes it must read and write over the bandwidth of a copy. Two
sizes: a window of the full model (32x720x1280 pixels, where a kernel takes microseconds and its launch counts), and
one that fills the GPU. At both, a copy of the same number of bytes is timed in the same way.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import re
import statistics
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from v2v.device.cuda import CudaArray, CudaDevice

_REPLAYS = 9  # of which the median counts
_QUEUED = 20  # launches in one captured graph
_SPREAD_BYTES = 256 * 2**20  # small cases rotate among so much memory, several times any L2 cache


class Case(NamedTuple):
    """One kernel at one size: the bytes it must move, and a maker of closures that queue it on fresh arrays."""

    name: str
    size: str
    bytes: int
    make: Callable[[], Callable[[], None]]


def measure(device: CudaDevice, case: Case) -> float:
    """Median seconds of one launch, from graphs of many, rotating among copies of the arrays."""
    copies = max(1, min(_QUEUED, _SPREAD_BYTES // case.bytes))
    queued = [case.make() for _ in range(copies)]
    for work in queued:
        work()

    def all_of_them() -> None:
        for k in range(_QUEUED):
            queued[k % copies]()

    replay = device.capture(all_of_them)
    if replay is all_of_them:
        raise RuntimeError(f"{case.name} cannot be captured")
    replay()
    times: list[float] = []
    for _ in range(_REPLAYS):
        start, end = (device.gpu.create_event(_timing()) for _ in range(2))
        device.cuda_stream.record(start)
        replay()
        device.cuda_stream.record(end)
        end.sync()
        times.append(float(end - start) / 1e3 / _QUEUED)
    return statistics.median(times)


def copy_case(device: CudaDevice, nbytes: int, size: str) -> Case:
    """A copy within the device that reads and writes ``nbytes`` together."""

    def make() -> Callable[[], None]:
        source, target = (device.empty((nbytes // 2,), np.uint8) for _ in range(2))
        device.zero(source)
        return lambda: device.copy(source, target)

    return Case("copy", size, nbytes, make)


def latent_cases(device: CudaDevice, size: str, frames: int, height: int, width: int) -> Iterator[Case]:
    """Kernels on latents ``[frames, 4, height, width]`` with half-precision windows."""
    canvas, window = (frames, 4, height, width), (1, 4, frames, height, width)
    n = frames * 4 * height * width
    block = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32)
    filling = {kind: device.upload(np.resize(block, n).astype(kind)) for kind in (np.float32, np.float16)}

    def filled(shape: tuple[int, ...], dtype: Any) -> CudaArray:
        out = device.empty(shape, dtype)
        device.copy(device.view(filling[dtype], slice(0, out.size)), out)
        return out

    def x() -> CudaArray:
        return filled(canvas, np.float32)

    def v() -> CudaArray:
        return filled(window, np.float16)

    def guide() -> Callable[[], None]:
        c, u, o = v(), v(), filled(window, np.float32)
        return lambda: device.guide(c, u, 7.5, 0.2, o)

    def guide_only() -> Callable[[], None]:
        c, u, o = v(), v(), filled(window, np.float32)
        return lambda: device.guide(c, u, 7.5, 0.0, o)

    def statistics_only() -> Callable[[], None]:
        c, u = v(), v()
        return lambda: device._statistics(c, u, 7.5, 0.2)

    def take() -> Callable[[], None]:
        a, o = x(), v()
        return lambda: device.take_window(a, (0, 0, 0), 0.3, o)

    def add() -> Callable[[], None]:
        a, o, w = x(), v(), filled(window[2:], np.float32)
        return lambda: device.add_window(o, w, (0, 0, 0), a)

    def noise() -> Callable[[], None]:
        a, b, o = x(), x(), x()
        return lambda: device.combine([(0.5, a), (0.8, b)], o)

    def posterior() -> Callable[[], None]:
        m, e, o = device.empty((1, 2 * canvas[1] * frames, height, width), np.float16), x(), x()
        for half in range(2):
            device.copy(v(), device.view(device.reshape(m, (2, n)), half))
        return lambda: device.sample_posterior(m, e, 0.18215, o)

    def check() -> Callable[[], None]:
        a = x()
        return lambda: device.check(a, 0)

    yield Case("guidance statistics", size, 4 * n, statistics_only)
    yield Case("guide without rescale", size, 8 * n, guide_only)
    yield Case("guide with rescale (two kernels, velocities read twice)", size, 12 * n, guide)
    yield Case("take window", size, 6 * n, take)
    yield Case("add window", size, 11 * n, add)
    yield Case("add noise (combine of two)", size, 12 * n, noise)
    yield Case("sample posterior", size, 12 * n, posterior)
    yield Case("find NaN", size, 4 * n, check)


def pixel_cases(device: CudaDevice, size: str, height: int, width: int) -> Iterator[Case]:
    """Kernels on pictures of ``height`` x ``width`` half-precision pixels."""
    pixels = height * width
    rng = np.random.default_rng(0)

    def prepare(
        source: tuple[int, int], antialias: bool, levels: Any = np.uint8
    ) -> Callable[[], Callable[[], None]]:
        def make() -> Callable[[], None]:
            frame = device.upload(rng.integers(0, np.iinfo(levels).max + 1, (*source, 3), levels))
            out = device.empty((1, 3, height, width), np.float16)
            return lambda: device.prepare_frame(
                frame, (height, width), out, offset=(0, 0), antialias=antialias
            )

        return make

    def to_bytes(dtype: Any, levels: Any = np.uint8) -> Callable[[], Callable[[], None]]:
        def make() -> Callable[[], None]:
            image = device.upload(rng.random((1, 3, height, width), np.float32).astype(dtype))
            out = device.empty((height, width, 3), levels)
            return lambda: device.image_to_bytes(image, out, truncate=False)

        return make

    for name, source, antialias in (
        ("resize to twice the size", (height // 2, width // 2), False),
        ("normalise without resizing", (height, width), False),
        ("shrink to two thirds", (height * 3 // 2, width * 3 // 2), True),
    ):
        moved = source[0] * source[1] * 3 + pixels * 6
        yield Case(f"prepare frame, {name}", size, moved, prepare(source, antialias))
    deep = prepare((height // 2, width // 2), False, np.uint16)
    yield Case("prepare frame of 16 bits, resize to twice the size", size, pixels * 15 // 2, deep)
    yield Case("image to bytes, half", size, pixels * 9, to_bytes(np.float16))
    yield Case("image to bytes, float", size, pixels * 15, to_bytes(np.float32))
    yield Case("image to 16 bits, float", size, pixels * 18, to_bytes(np.float32, np.uint16))


def run(device: CudaDevice) -> dict[str, Any]:
    """Measure everything; rates in GB/s, times in microseconds."""
    # The fastest of some large copies: the largest is not always the fastest.
    sizes = (2**28, 2**29, 2**30, 2**31)
    ceiling = max(size / measure(device, copy_case(device, size, "large")) for size in sizes) / 1e9
    results = []
    cases = [
        *latent_cases(device, "window", 32, 90, 160),
        *pixel_cases(device, "window", 720, 1280),
        *latent_cases(device, "large", 32, 720, 1280),
        *pixel_cases(device, "large", 4096, 7200),
    ]
    for case in cases:
        seconds = measure(device, case)
        same = measure(device, copy_case(device, case.bytes, case.size))
        results.append(
            {
                "kernel": case.name,
                "size": case.size,
                "bytes": case.bytes,
                "microseconds": round(seconds * 1e6, 2),
                "gigabytes_per_second": round(case.bytes / seconds / 1e9, 1),
                "share_of_copy": round(case.bytes / seconds / 1e9 / ceiling, 3),
                "copy_of_as_many_bytes_microseconds": round(same * 1e6, 2),
            }
        )
    return {
        "what": "bandwidth of the runtime's CUDA kernels",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": device.gpu.name,
        "compute_capability": ".".join(map(str, device.capability)),
        "driver": driver_version(),
        "versions": {name: version(name) for name in ("cuda-core", "cuda-bindings", "numpy")}
        | {"python": platform.python_version()},
        "copy_gigabytes_per_second": round(ceiling, 1),
        "sizes": {
            "window": "latents 32x4x90x160, one picture 720x1280",
            "large": "latents 32x4x720x1280, one picture 4096x7200",
        },
        "kernels": results,
    }


def driver_version() -> str:
    """Of NVIDIA's kernel module on this machine."""
    path = Path("/proc/driver/nvidia/version")
    match = re.search(r"\d+\.\d+(\.\d+)?", path.read_text()) if path.exists() else None
    return match.group() if match else "unknown"


def _timing() -> Any:
    from cuda.core import EventOptions

    return EventOptions(timing_enabled=True)


def main() -> None:
    """Print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, help="where to write the figures as JSON")
    arguments = parser.parse_args()
    report = run(CudaDevice())
    print(f"{report['device']}: copy {report['copy_gigabytes_per_second']} GB/s")
    for row in report["kernels"]:
        print(
            f"{row['size']:7} {row['kernel']:56} {row['microseconds']:9.2f} us  copy of as many bytes "
            f"{row['copy_of_as_many_bytes_microseconds']:9.2f} us  {row['gigabytes_per_second']:7.1f} GB/s  "
            f"{row['share_of_copy']:6.1%}"
        )
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
