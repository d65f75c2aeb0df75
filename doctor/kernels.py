"""The CUDA kernels against their NumPy twins, at the sizes of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from v2v.core.errors import EngineError
from v2v.device import Device, open_device
from v2v.device.gpus import cuda_devices
from v2v.doctor.checks import Facts, Skipped, Step

Arrays = tuple[npt.NDArray[Any], ...]
Operation = Callable[[Any, list[Any]], None]

_TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "uint8": 0.0, "uint16": 0.0}
"""Largest difference from the twin, in units of the largest value."""


def kernels(step: Step) -> Facts | Skipped:
    """Every kernel, compiled for the GPU here."""
    if not cuda_devices():
        return Skipped("there is no NVIDIA GPU here, or its driver is not installed")
    step("compiling the kernels")
    return compare(open_device("cuda"), step, (720, 1280), (32, 90, 160))


def compare(device: Device, step: Step, picture: tuple[int, int], latent: tuple[int, int, int]) -> Facts:
    """Each operation of ``device`` and its NumPy twin on the same arrays.

    ``picture`` is height and width of frames, ``latent`` frames, height and width of latents.

    Returns:
        The largest difference of each operation, in units of the largest value.

    Raises:
        EngineError: one is too far from its twin; names the operation.
    """
    twin = open_device("cpu")
    worst: dict[str, float] = {}
    for name, operation, inputs, out in _cases(picture, latent):
        step(name)
        mine = [device.upload(array) for array in (*inputs, out)]
        theirs = [array.copy() for array in (*inputs, out)]
        operation(device, mine)
        operation(twin, theirs)
        result, expected = device.download(mine[-1]), theirs[-1]
        scale = max(float(np.abs(expected.astype(np.float64)).max()), 1e-30)
        difference = float(np.abs(result.astype(np.float64) - expected.astype(np.float64)).max()) / scale
        if not difference <= _TOLERANCE[expected.dtype.name]:
            raise EngineError(
                f"the kernel of {name} for {inputs[0].dtype.name} differs from its NumPy twin by {difference:.1e} of "
                "the largest value"
            )
        worst[name] = max(worst.get(name, 0.0), difference)
    return {"differences": worst}


def _cases(
    picture: tuple[int, int], latent: tuple[int, int, int]
) -> Iterator[tuple[str, Operation, Arrays, npt.NDArray[Any]]]:
    """Name, call, inputs and the array that is written to, for each operation and type."""
    generator = np.random.default_rng(0)
    frames, height, width = latent
    window = (1, 4, *latent)

    def normal(*shape: int, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
        return generator.standard_normal(shape).astype(dtype)

    for levels in (np.uint8, np.uint16):
        most = np.iinfo(levels).max
        frame = generator.integers(0, most + 1, (picture[0] // 2, picture[1] // 2, 3)).astype(levels)
        for real in (np.float32, np.float16):
            yield (
                "prepare_frame",
                lambda on, a: on.prepare_frame(a[0], picture, a[1], offset=(0, 0), antialias=True),
                (frame,),
                np.zeros((1, 3, *picture), real),
            )
            yield (
                "image_to_bytes",
                lambda on, a: on.image_to_bytes(a[0], a[1], truncate=False),
                ((normal(1, 3, *picture) * 0.7).astype(real),),
                np.zeros((*picture, 3), levels),
            )
    yield (
        "resize",
        lambda on, a: on.resize(a[0], a[1]),
        (normal(1, 3, *picture),),
        np.zeros((1, 3, height, width), np.float32),
    )
    for real in (np.float32, np.float16):
        moments = normal(1, 8, height, width, dtype=real)
        yield (
            "sample_posterior",
            lambda on, a: on.sample_posterior(a[0], a[1], 0.18215, a[2]),
            (moments, normal(1, 4, 1, height, width)),
            np.zeros((1, 4, 1, height, width), np.float32),
        )
        yield (
            "take_window",
            lambda on, a: on.take_window(a[0], (0, 0, 0), 0.7, a[1]),
            (normal(frames, 4, height, width),),
            np.zeros(window, real),
        )
        yield (
            "add_window",
            lambda on, a: on.add_window(a[0], a[1], (0, 0, 0), a[2]),
            (normal(*window, dtype=real), generator.random(latent, np.float32)),
            normal(frames, 4, height, width),
        )
        yield (
            "guide",
            lambda on, a: on.guide(a[0], a[1], 7.5, 0.2, a[2]),
            (normal(*window, dtype=real), normal(*window, dtype=real)),
            np.zeros(window, np.float32),
        )
        yield (
            "combine",
            lambda on, a: on.combine([(0.5, a[0]), (-2.0, a[1])], a[2]),
            (normal(*window, dtype=real), normal(*window)),
            np.zeros(window, np.float32),
        )
        yield "check", _finds_what_is_not_finite, (normal(*window[1:], dtype=real),), np.zeros(1, np.float32)


def _finds_what_is_not_finite(on: Any, arrays: list[Any]) -> None:
    """Write the frame in which a NaN is found, plus one."""
    array, out = arrays
    values = on.download(array)
    values[-1, 0, 0, 0] = np.nan
    on.check(on.upload(values), 3)
    on.synchronize()
    failure = on.failure()
    on.upload(np.array([0 if failure is None else failure.frame + 1], np.float32), out)
