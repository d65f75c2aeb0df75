"""Where arrays live and where the fused operations of the denoising loop run.

Two devices, one interface: :mod:`~v2v.device.cpu` (NumPy, the specification) and
:mod:`~v2v.device.cuda` (cuda-python and the kernels beside it). What runs on one is written against
:class:`Device` alone and never asks which one it has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt

from v2v.core.errors import EngineError

Frame = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
"""A picture on the host: ``[H, W, 3]``, RGB, all of its type's range, 0..255 or (more than 8 bits) 0..65535."""


class Array(Protocol):
    """An array of a device: ``numpy.ndarray`` on a CPU, :class:`v2v.device.cuda.CudaArray` on CUDA.

    Only the device that made it looks inside.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def size(self) -> int:
        """Number of elements."""
        ...

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        ...


class Nonfinite(NamedTuple):
    """Where NaN or Inf first appeared."""

    label: int
    frame: int


class Pending(Protocol):
    """An array on its way to the host."""

    def result(self) -> npt.NDArray[Any]:
        """Wait for it and return it; the caller owns it."""
        ...


class Feed(Protocol):
    """Host arrays that reach the device before they are needed: first in, first out, two in flight."""

    def put(self, host: npt.NDArray[Any]) -> None:
        """Copy ``host`` away and send it; on CUDA through pinned memory, on a stream of its own.

        Raises:
            RuntimeError: two arrays are waiting to be taken already.
        """
        ...

    def take(self, out: Array) -> None:
        """Queue on the device's stream: wait until the oldest array put has arrived, then copy it to ``out``.

        Raises:
            RuntimeError: nothing was put.
        """
        ...


class Device(Protocol):
    """Memory and fused operations. Shapes: Z latent channels, T frames of a segment, F frames of a window,
    h x w latent, H x W pixels.

    A canvas holds a segment's latents frames first, ``[T, Z, h, w]``, so that one frame is one piece of
    memory; an engine's window is channels first, ``[1, Z, F, h, w]``, as the UNet takes it. Latents, noise
    and blend weights are float32; what goes into or comes out of an engine (``image``, ``scaled``,
    ``velocity``, ``moments``) has the engine's precision. Every operation writes into ``out`` and allocates
    nothing; on CUDA it is queued on :attr:`stream` and returns at once.
    """

    name: str
    stream: int  # raw handle, 0 on a CPU
    synchronous: bool  # every operation has finished when it returns

    # Memory -------------------------------------------------------------------------------------------------
    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
        """An array with unspecified contents."""
        ...

    def zero(self, out: Array) -> None:
        """Fill with zeros."""
        ...

    def upload(self, host: npt.NDArray[Any], out: Array | None = None) -> Array:
        """Copy to the device, converting to ``out``'s type if given."""
        ...

    def download(self, array: Array) -> npt.NDArray[Any]:
        """Copy to the host and wait for it."""
        ...

    def view(self, array: Array, index: int | slice) -> Array:
        """Part of the first axis, which stays (an index gives length 1), sharing memory."""
        ...

    def reshape(self, array: Array, shape: Sequence[int]) -> Array:
        """The same memory under another shape."""
        ...

    def synchronize(self) -> None:
        """Wait until all queued work is done."""
        ...

    def copy(self, source: Array, out: Array) -> None:
        """Copy within the device; same type, same number of elements."""
        ...

    def fetch(self, array: Array) -> Pending:
        """Queue a copy to the host and return at once; ``array`` may be overwritten by work queued later."""
        ...

    def feed(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Feed:
        """A queue of arrays of one shape from the host, such as the noise of each step."""
        ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what ``work`` queues on :attr:`stream` and return a function that queues all of it at once.

        ``work`` itself is not executed by this call; it must have run once before, so that everything it
        touches exists. What it queues must not depend on the host: fixed arrays, scalars baked in. Where
        ``work`` cannot be recorded (always on a CPU, or an engine that waits for the host) the result is
        ``work``.
        """
        ...

    # Pixels and latents -------------------------------------------------------------------------------------
    def prepare_frame(
        self, frame: Array, size: tuple[int, int], out: Array, *, offset: tuple[int, int], antialias: bool
    ) -> None:
        """One frame of levels ``[H0, W0, 3]`` -> ``out [1, 3, H, W]`` in -1..1.

        Levels are uint8 or uint16 and use all of their range, 0..255 or 0..65535. The frame is resized
        bilinearly to ``size`` (height, width), edges repeated outside it, and ``out`` shows the part that
        starts at ``offset`` (top, left). Half-pixel centres; without ``antialias``
        exactly the reference's resize, with it the kernel widens when scaling down.
        """
        ...

    def resize(self, image: Array, out: Array) -> None:
        """``image [1, C, H, W]`` float32 -> ``out [1, C, h, w]``: bilinear, averaging when scaling down."""
        ...

    def sample_posterior(self, moments: Array, noise: Array, scale: float, out: Array) -> None:
        """``moments [1, 2Z, h, w]`` -> ``out = (mean + exp(clip(logvar, -30, 20) / 2) noise) scale``.

        ``noise`` and ``out`` hold Z h w float32 in that order, whatever their leading axes of length 1.
        """
        ...

    def image_to_bytes(self, image: Array, out: Array, *, truncate: bool) -> None:
        """``image [1, 3, H, W]`` in -1..1 -> levels ``out [H, W, 3]``, uint8 or uint16, all of their range.

        Rounds, half to even, or truncates as the reference does.
        """
        ...

    # The denoising loop -------------------------------------------------------------------------------------
    def take_window(self, canvas: Array, start: tuple[int, int, int], scale: float, out: Array) -> None:
        """``out[0, z, i, j, k] = scale * canvas[f + i, z, y + j, x + k]`` with ``start = (f, y, x)``."""
        ...

    def guide(
        self,
        conditional: Array,
        unconditional: Array | None,
        guidance: float,
        rescale: float,
        out: Array,
    ) -> None:
        """Classifier-free guidance with rescale; all ``[1, Z, F, h, w]``, ``out`` float32.

        v = v_u + guidance (v_c - v_u); v <- v (rescale std(v_c) / (std(v) + 1e-12) + 1 - rescale), the
        standard deviations unbiased over the window. Without ``unconditional`` v is v_c.
        """
        ...

    def add_window(self, velocity: Array, weights: Array, start: tuple[int, int, int], total: Array) -> None:
        """``total[f + i, z, y + j, x + k] += weights[i, j, k] * velocity[0, z, i, j, k]``.

        Blends windows of latents as well as, with F = 1 and three channels, tiles of pixels.
        """
        ...

    def combine(self, terms: Sequence[tuple[float, Array]], out: Array) -> None:
        """``out = sum of coefficient * array``, any shape, up to five terms; ``out`` may be one of the arrays.

        Terms whose coefficient is 0 do not count, whatever the array holds; no terms give zeros.
        """
        ...

    def check(self, array: Array, label: int) -> None:
        """Queue a search for NaN and Inf in ``array`` (first axis: frames); :meth:`failure` returns the result."""
        ...

    def failure(self) -> Nonfinite | None:
        """The lowest (label, frame) found so far by :meth:`check`, without waiting.

        What was queued before the last :meth:`synchronize`, :meth:`download` or ``Pending.result`` is
        included. Each failure is returned once.
        """
        ...


def open_device(name: str) -> Device:
    """The device called "cpu" or "cuda".

    Raises:
        EngineError: there is no such device, here or at all.
    """
    if name == "cpu":
        from v2v.device.cpu import CpuDevice  # imports this module

        return cast(Device, CpuDevice())  # a device is given its own arrays only, which no type can say
    if name != "cuda":
        raise EngineError(f"--device {name}: there is no such device; choose cpu or cuda")
    from v2v.device.cuda import CudaDevice  # needs cuda-python, which a CPU does not

    return cast(Device, CudaDevice())
