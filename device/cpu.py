"""The device that is plain memory: every operation in NumPy, and thereby its specification."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from v2v.device import Nonfinite
from v2v.device.resize import taps

Array = npt.NDArray[Any]


class CpuDevice:
    """NumPy arrays; see :class:`v2v.device.Device` for what each operation does."""

    name = "cpu"
    stream = 0
    synchronous = True

    def __init__(self) -> None:
        self._failure: Nonfinite | None = None

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
        return np.empty(tuple(shape), dtype)

    def zero(self, out: Array) -> None:
        out.fill(0)

    def upload(self, host: Array, out: Array | None = None) -> Array:
        if out is None:
            copied: Array = np.ascontiguousarray(host)
            return copied
        np.copyto(out, host, casting="same_kind")
        return out

    def download(self, array: Array) -> Array:
        copied: Array = array.copy()
        return copied

    def view(self, array: Array, index: int | slice) -> Array:
        part: Array = array[slice(index, index + 1) if isinstance(index, int) else index]
        return part

    def reshape(self, array: Array, shape: Sequence[int]) -> Array:
        return array.reshape(tuple(shape))

    def synchronize(self) -> None:
        pass

    def copy(self, source: Array, out: Array) -> None:
        out[...] = source.reshape(out.shape)

    def fetch(self, array: Array) -> _Fetched:
        return _Fetched(array.copy())

    def feed(self, shape: Sequence[int], dtype: npt.DTypeLike) -> _Queue:
        return _Queue()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        return work

    def prepare_frame(
        self, frame: Array, size: tuple[int, int], out: Array, *, offset: tuple[int, int], antialias: bool
    ) -> None:
        rows, row_weights = taps(frame.shape[0], size[0], offset[0], out.shape[2], antialias)
        columns, column_weights = taps(frame.shape[1], size[1], offset[1], out.shape[3], antialias)
        resized = _weigh(frame, rows, row_weights[..., None, None], axis=0)
        resized = _weigh(resized, columns, column_weights[..., None], axis=1)
        out[0] = np.moveaxis(resized, 2, 0) * np.float32(2 / _white(frame)) - np.float32(1)

    def resize(self, image: Array, out: Array) -> None:
        rows, row_weights = taps(image.shape[2], out.shape[2], 0, out.shape[2], True)
        columns, column_weights = taps(image.shape[3], out.shape[3], 0, out.shape[3], True)
        pixels = np.moveaxis(image[0], 0, 2)
        resized = _weigh(pixels, rows, row_weights[..., None, None], axis=0)
        resized = _weigh(resized, columns, column_weights[..., None], axis=1)
        out[0] = np.moveaxis(resized, 2, 0)

    def sample_posterior(self, moments: Array, noise: Array, scale: float, out: Array) -> None:
        mean, log_variance = np.split(moments[0].astype(np.float32), 2)
        deviation = np.exp(np.clip(log_variance, -30, 20) / 2)
        out[...] = ((mean + deviation * noise.reshape(mean.shape)) * np.float32(scale)).reshape(out.shape)

    def image_to_bytes(self, image: Array, out: Array, *, truncate: bool) -> None:
        shares = np.clip(image[0].astype(np.float32) * 0.5 + 0.5, 0, 1) * np.float32(_white(out))
        with np.errstate(invalid="ignore"):  # NaN is for check() to report
            out[...] = np.moveaxis(shares if truncate else np.rint(shares), 0, 2)

    def take_window(self, canvas: Array, start: tuple[int, int, int], scale: float, out: Array) -> None:
        part = canvas[_box(start, out)]
        np.multiply(np.moveaxis(part, 1, 0), np.float32(scale), out=out[0], casting="same_kind")

    def guide(
        self, conditional: Array, unconditional: Array | None, guidance: float, rescale: float, out: Array
    ) -> None:
        positive = conditional.astype(np.float32)
        if unconditional is None:
            out[...] = positive
            return
        negative = unconditional.astype(np.float32)
        guided = negative + np.float32(guidance) * (positive - negative)
        if rescale:
            ratio = _deviation(positive) / (_deviation(guided) + 1e-12)
            guided *= np.float32(rescale * ratio + 1 - rescale)
        out[...] = guided

    def add_window(self, velocity: Array, weights: Array, start: tuple[int, int, int], total: Array) -> None:
        total[_box(start, velocity)] += np.moveaxis(velocity[0] * weights, 0, 1)

    def combine(self, terms: Sequence[tuple[float, Array]], out: Array) -> None:
        out[...] = _weighted(*terms)

    def check(self, array: Array, label: int) -> None:
        bad = ~np.isfinite(array.reshape(array.shape[0], -1)).all(axis=1)
        if bad.any():
            nonfinite = Nonfinite(label, int(bad.argmax()))
            self._failure = min(self._failure or nonfinite, nonfinite)

    def failure(self) -> Nonfinite | None:
        failure, self._failure = self._failure, None
        return failure


class _Fetched:
    """A copy that has already arrived."""

    def __init__(self, array: Array) -> None:
        self._array = array

    def result(self) -> Array:
        return self._array


class _Queue:
    """Host arrays waiting to be taken; see :class:`v2v.device.Feed`."""

    def __init__(self) -> None:
        self._waiting: deque[Array] = deque()

    def put(self, host: Array) -> None:
        if len(self._waiting) >= 2:
            raise RuntimeError("two arrays are waiting to be taken already")
        self._waiting.append(host.copy())

    def take(self, out: Array) -> None:
        if not self._waiting:
            raise RuntimeError("nothing was put")
        np.copyto(out, self._waiting.popleft(), casting="same_kind")


def _white(picture: Array) -> int:
    """The value of white in a picture of uint8 or uint16."""
    return int(np.iinfo(picture.dtype).max)


def _weighted(*terms: tuple[float, Array]) -> Array:
    """Sum of coefficient times array; a coefficient of 0 silences whatever its array holds."""
    return np.asarray(sum((np.float32(c) * array for c, array in terms if c), np.float32(0)))


def _weigh(image: Array, indices: Array, weights: Array, axis: int) -> Array:
    """Sum of weighted picks along ``axis``; ``weights`` broadcast behind their tap axis."""
    picks = (
        np.take(image, indices[:, k], axis=axis)
        * (weights[:, k] if axis == 0 else weights[:, k].reshape(1, -1, 1))
        for k in range(indices.shape[1])
    )
    total = next(picks)
    for pick in picks:
        total += pick
    return total


def _box(start: tuple[int, int, int], window: Array) -> tuple[slice, slice, slice, slice]:
    """Where a window ``[1, Z, F, h, w]`` lies in a canvas ``[T, Z, h, w]``."""
    frames, rows, columns = (
        slice(first, first + size) for first, size in zip(start, window.shape[2:], strict=True)
    )
    return frames, slice(None), rows, columns


def _deviation(values: Array) -> float:
    return float(np.std(values, ddof=1, dtype=np.float64))
