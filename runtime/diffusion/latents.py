"""Frames to latents and back: the autoencoder over tiles of any canvas.

The autoencoder's engines take one frame of the window's size. A larger frame is covered by overlapping tiles whose
latents, or pixels, are cross-faded; a smaller one is placed in the middle and its edges repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from v2v.device import Array, Device, Frame, Pending
from v2v.engine.backend import Engine
from v2v.runtime.diffusion.colors import ColorMatch, LowFrequencies, match_statistics
from v2v.runtime.diffusion.windows import tiles

# Tiles share an eighth of their rows and columns: the decoder's field of view is short, a seam needs no more. Small
# ones share four latents: tiles differ a little as wholes too, and over 8 pixels the step between them shows.
_OVERLAP = 8
_LEAST_SHARED = 4


@dataclass(frozen=True)
class Canvas:
    """Where an output picture lies in the latents that are computed for it.

    ``size`` is the picture's (height, width) in pixels; ``latent`` the rows and columns of latents, never fewer than
    the window's; ``factor`` pixels per latent position.
    """

    size: tuple[int, int]
    latent: tuple[int, int]
    factor: int

    @classmethod
    def of(cls, size: tuple[int, int], window: tuple[int, int], factor: int) -> Canvas:
        """The canvas for a picture of ``size`` pixels, given the window's latent (rows, columns)."""
        rows, columns = (max(-(-side // factor), least) for side, least in zip(size, window, strict=True))
        return cls(size, (rows, columns), factor)

    @property
    def pixels(self) -> tuple[int, int]:
        """Rows and columns of the canvas in pixels."""
        return self.latent[0] * self.factor, self.latent[1] * self.factor

    @property
    def corner(self) -> tuple[int, int]:
        """Pixels of padding above and to the left of the picture."""
        return (self.pixels[0] - self.size[0]) // 2, (self.pixels[1] - self.size[1]) // 2


class FrameEncoder:
    """Bytes of a frame -> a sample of its latents (reference: posterior sample, one frame a call)."""

    def __init__(
        self, device: Device, engine: Engine, canvas: Canvas, scale: float, *, antialias: bool
    ) -> None:
        image, moments = engine.component.inputs[0], engine.component.outputs[0]
        _, doubled, rows, columns = moments.shape
        self._device, self._engine, self._canvas, self._scale = device, engine, canvas, scale
        self._antialias = antialias
        self._image = device.empty(image.shape, image.dtype)
        self._moments = device.empty(moments.shape, moments.dtype)
        self._noise, self._sample = (
            device.empty((1, doubled // 2, 1, rows, columns), np.float32) for _ in range(2)
        )
        self._frame_noise = device.empty((1, doubled // 2, *canvas.latent), np.float32)
        self._tiles = _placed(device, canvas.latent, (rows, columns))

    def __call__(self, frame: Frame, noise: npt.NDArray[np.float32], out: Array) -> None:
        """Write scaled latents of ``frame [H0, W0, 3]``, drawn with ``noise [Z, h, w]``, to ``out [1, Z, h, w]``."""
        device, canvas = self._device, self._canvas
        pixels = device.upload(frame)
        device.upload(noise[None], self._frame_noise)
        device.zero(out)
        for (_, row, column), weights in self._tiles:
            offset = (row * canvas.factor - canvas.corner[0], column * canvas.factor - canvas.corner[1])
            device.prepare_frame(pixels, canvas.size, self._image, offset=offset, antialias=self._antialias)
            self._engine.run({"image": self._image}, {"moments": self._moments}, device.stream)
            device.take_window(self._frame_noise, (0, row, column), 1.0, self._noise)
            device.sample_posterior(self._moments, self._noise, self._scale, self._sample)
            device.add_window(self._sample, weights, (0, row, column), out)


class FrameDecoder:
    """Latents of a frame -> levels of the picture, uint8 or uint16 as ``levels`` says."""

    def __init__(
        self,
        device: Device,
        engine: Engine,
        canvas: Canvas,
        scale: float,
        *,
        colors: ColorMatch,
        truncate: bool,
        levels: npt.DTypeLike = np.uint8,
    ) -> None:
        latents, image = engine.component.inputs[0], engine.component.outputs[0]
        self._device, self._engine, self._canvas, self._scale = device, engine, canvas, scale
        self._truncate, self._colors = truncate, colors
        if colors == "wavelet":
            self._low = LowFrequencies(device, canvas.size, canvas.pixels, canvas.corner)
        self._latents = device.empty(latents.shape, latents.dtype)
        self._image = device.empty(image.shape, image.dtype)
        self._picture = device.empty((1, 3, *canvas.pixels), np.float32)
        self._levels = device.empty((*canvas.pixels, 3), levels)
        self._tiles = [
            (start, device.upload(weights))
            for start, weights in _tiled(canvas.latent, (latents.shape[2], latents.shape[3]), canvas.factor)
        ]

    def __call__(self, latents: Array, frame: Frame | None, label: int) -> Decoded:
        """Queue the decoding of ``latents [1, Z, h, w]``; NaN is reported under ``label``.

        Colours are after ``frame``, which may be None where they are the model's own.
        """
        device, factor = self._device, self._canvas.factor
        window = device.reshape(self._latents, (1, self._latents.shape[1], 1, *self._latents.shape[2:]))
        picture = device.reshape(self._image, (1, 3, 1, *self._image.shape[2:]))
        device.zero(self._picture)
        for (_, row, column), weights in self._tiles:
            device.take_window(latents, (0, row, column), 1 / self._scale, window)
            self._engine.run({"latents": self._latents}, {"image": self._image}, device.stream)
            device.add_window(picture, weights, (0, row * factor, column * factor), self._picture)
        device.check(self._picture, label)
        if self._colors == "wavelet" and frame is not None:
            self._low(self._picture, frame, antialias=True)
        device.image_to_bytes(self._picture, self._levels, truncate=self._truncate)
        match = frame if self._colors == "adain" else None
        return Decoded(device.fetch(self._levels), self._canvas, match)


@dataclass(frozen=True)
class Decoded:
    """A decoded picture on its way to the host."""

    pending: Pending
    canvas: Canvas
    match: Frame | None = None  # frame whose channel statistics it takes

    def result(self) -> Frame:
        """Wait for it and cut it out of its canvas: ``[H, W, 3]``."""
        top, left = self.canvas.corner
        height, width = self.canvas.size
        pixels = self.pending.result()
        picture: npt.NDArray[Any] = np.ascontiguousarray(pixels[top : top + height, left : left + width])
        return picture if self.match is None else match_statistics(picture, self.match)


def _tiled(
    extent: tuple[int, int], window: tuple[int, int], factor: int = 1
) -> list[tuple[tuple[int, int, int], npt.NDArray[np.float32]]]:
    """Starts of tiles, and the weights of their positions or, given the ``factor``, of their pixels."""
    rows, columns = (max(side // _OVERLAP, min(_LEAST_SHARED, side // 2)) for side in window)
    placed = tiles((1, *extent), (1, *window), (0, rows, columns), subdivisions=factor)
    return [(tile.start, tile.weights) for tile in placed]


def _placed(
    device: Device, extent: tuple[int, int], window: tuple[int, int]
) -> list[tuple[tuple[int, int, int], Array]]:
    return [(start, device.upload(weights)) for start, weights in _tiled(extent, window)]
