"""Where arrays live and where the fused operations of the denoising loop run.

Two devices, one interface: :mod:`~v2v.runtime.device.cpu` (NumPy, the specification) and
:mod:`~v2v.runtime.device.cuda` (cuda-python and the kernels beside it). The loop in ``pipeline.py`` is written
against :class:`Device` alone and never asks which one it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = Any
"""An array of the device: ``numpy.ndarray`` on a CPU, ``CudaArray`` (shape, dtype, pointer) on CUDA."""


class Device(Protocol):
    """Memory and fused operations. Shapes: Z latent channels, T frames of a segment, F frames of a window,
    h x w latent, H x W pixels.

    A canvas holds a segment's latents frames first, ``[T, Z, h, w]``, so that one frame is one piece of memory;
    an engine's window is channels first, ``[1, Z, F, h, w]``, as the UNet takes it. Latents, noise and blend weights are float32; what goes into or comes out of an engine (``image``, ``scaled``,
    ``velocity``, ``moments``) has the engine's precision. Every operation writes into ``out`` and allocates
    nothing; on CUDA it is queued on :attr:`stream` and returns at once.
    """

    name: str
    stream: int  # raw handle, 0 on a CPU

    # Memory -------------------------------------------------------------------------------------------------
    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
        """An array with unspecified contents."""
        ...

    def upload(self, host: npt.NDArray[Any], out: Array | None = None) -> Array:
        """Copy to the device, converting to ``out``'s type if given."""
        ...

    def download(self, array: Array) -> npt.NDArray[Any]:
        """Copy to the host and wait for it."""
        ...

    def view(self, array: Array, index: int | slice) -> Array:
        """A contiguous slice of the first axis, sharing memory."""
        ...

    def synchronize(self) -> None:
        """Wait until all queued work is done."""
        ...

    # Pixels and latents ---------------------------------------------------------------------------------------
    def prepare_frame(
        self, frame: Array, size: tuple[int, int], out: Array, *, offset: tuple[int, int], antialias: bool
    ) -> None:
        """One frame of bytes ``[H0, W0, 3]`` -> ``out [1, 3, H, W]`` in -1..1.

        The frame is resized bilinearly to ``size`` (height, width), edges repeated outside it, and ``out`` shows
        the part that starts at ``offset`` (top, left). Half-pixel centres; without ``antialias`` exactly the
        reference's resize, with it the kernel widens when scaling down.
        """
        ...

    def sample_posterior(self, moments: Array, noise: Array, scale: float, out: Array) -> None:
        """``moments [1, 2Z, h, w]`` -> ``out [Z, h, w] = (mean + exp(clip(logvar, -30, 20) / 2) noise) scale``."""
        ...

    def add_noise(self, latents: Array, noise: Array, alpha: float, sigma: float, out: Array) -> None:
        """``out = alpha latents + sigma noise``, any shape."""
        ...

    def image_to_bytes(self, image: Array, out: Array, *, truncate: bool) -> None:
        """``image [1, 3, H, W]`` in -1..1 -> bytes ``out [H, W, 3]``; rounds, or truncates as the reference."""
        ...

    # The denoising loop ---------------------------------------------------------------------------------------
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

        v = v_u + guidance (v_c - v_u); v <- v (rescale std(v_c) / (std(v) + 1e-12) + 1 - rescale), the standard
        deviations unbiased over the window. Without ``unconditional`` v is v_c.
        """
        ...

    def add_window(
        self, velocity: Array, weights: Array, start: tuple[int, int, int], total: Array
    ) -> None:
        """``total[f + i, z, y + j, x + k] += weights[i, j, k] * velocity[0, z, i, j, k]``."""
        ...

    def combine(self, terms: Sequence[tuple[float, Array]], out: Array) -> None:
        """``out = sum of coefficient * array``; ``out`` may be one of the arrays. Up to five terms."""
        ...

    def find_nonfinite(self, array: Array) -> int | None:
        """Index of the first frame of a canvas ``[T, Z, h, w]`` that holds NaN or Inf, or None."""
        ...
