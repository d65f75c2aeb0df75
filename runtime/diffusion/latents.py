"""Frames to latents and back: the autoencoder over tiles of any canvas.

The autoencoder's engines take one frame of the window's size. A larger frame is covered by overlapping tiles whose
latents, or pixels, are cross-faded; a smaller one is placed in the middle and its edges repeated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from v2v.core.configs import ColorName
from v2v.device import Array, Device, Frame, Pending
from v2v.engine.backend import Engine
from v2v.runtime.diffusion.colors import LowFrequencies, match_statistics
from v2v.runtime.diffusion.windows import Span, spans, starts, tiles

# Tiles share an eighth of their rows and columns: the decoder's field of view is short, a seam needs no more. Small
# ones share four latents: tiles differ a little as wholes too, and over 8 pixels the step between them shows.
_OVERLAP = 8
_LEAST_SHARED = 4

_LEAST_CANVAS, _STEP = (720, 1280), 64  # pixels, of the reference's canvas


@dataclass(frozen=True)
class Canvas:
    """Where an output picture lies in the latents that are computed for it.

    ``size`` is the picture's (height, width) in pixels; ``latent`` the rows and columns of latents, never fewer than
    the window's; ``factor`` pixels per latent position. ``place`` is the picture's top left corner; None: it lies in
    the middle. Around it its edges are repeated, or all is ``white``.
    """

    size: tuple[int, int]
    latent: tuple[int, int]
    factor: int
    place: tuple[int, int] | None = None
    white: bool = False

    @classmethod
    def of(cls, size: tuple[int, int], window: tuple[int, int], factor: int) -> Canvas:
        """The canvas for a picture of ``size`` pixels, given the window's latent (rows, columns)."""
        rows, columns = (max(-(-side // factor), least) for side, least in zip(size, window, strict=True))
        return cls(size, (rows, columns), factor)

    @classmethod
    def with_margin(cls, size: tuple[int, int], window: tuple[int, int], factor: int) -> Canvas:
        """The canvas of the authors of STAR and VEnhancer, with white around the picture (references, section 4).

        A side shorter than 720p's is centred on that; a longer one grows at its end to a length that the UNet takes, by
        a whole step where it is one already.
        """
        places, lengths = [], []
        for side, least, remainder in zip(size, _LEAST_CANVAS, (16, 0), strict=True):
            length = least if side <= least else _STEP * ((side - remainder) // _STEP + 1) + remainder
            lengths.append(length)
            places.append((length - side) // 2 if side < least else 0)
        rows, columns = (max(length // factor, held) for length, held in zip(lengths, window, strict=True))
        return cls(size, (rows, columns), factor, (places[0], places[1]), white=True)

    @property
    def pixels(self) -> tuple[int, int]:
        """Rows and columns of the canvas in pixels."""
        return self.latent[0] * self.factor, self.latent[1] * self.factor

    @property
    def corner(self) -> tuple[int, int]:
        """Pixels of padding above and to the left of the picture."""
        if self.place is not None:
            return self.place
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
        self._margins = [self._margin(start[1:]) for start, _ in self._tiles] if canvas.white else None

    def _margin(self, start: tuple[int, int]) -> tuple[Array, Array]:
        """Of a tile: weights ``[1, H, W]`` of the picture, and the white ``[1, 3, H, W]`` around it."""
        canvas, device = self._canvas, self._device
        tops = (canvas.corner[0] - start[0] * canvas.factor, canvas.corner[1] - start[1] * canvas.factor)
        inside = [
            (np.arange(side) >= top) & (np.arange(side) < top + length)
            for side, top, length in zip(self._image.shape[2:], tops, canvas.size, strict=True)
        ]
        weights = np.outer(*inside).astype(np.float32)[None]
        white = np.broadcast_to(1 - weights, (1, 3, *weights.shape[1:]))
        return device.upload(weights), device.upload(np.ascontiguousarray(white))

    def _with_margin(self, weights: Array, white: Array) -> None:
        """Replace what lies around the picture in a tile by white."""
        device = self._device
        total = device.empty(white.shape, np.float32)
        device.copy(white, total)
        picture = device.reshape(self._image, (1, 3, 1, *self._image.shape[2:]))
        device.add_window(picture, weights, (0, 0, 0), total)
        device.take_window(total, (0, 0, 0), 1.0, picture)

    def __call__(self, frame: Frame, noise: npt.NDArray[np.float32], out: Array) -> None:
        """Write scaled latents of ``frame [H0, W0, 3]``, drawn with ``noise [Z, h, w]``, to ``out [1, Z, h, w]``."""
        device, canvas = self._device, self._canvas
        pixels = device.upload(frame)
        device.upload(noise[None], self._frame_noise)
        device.zero(out)
        for number, ((_, row, column), weights) in enumerate(self._tiles):
            offset = (row * canvas.factor - canvas.corner[0], column * canvas.factor - canvas.corner[1])
            device.prepare_frame(pixels, canvas.size, self._image, offset=offset, antialias=self._antialias)
            if self._margins is not None:
                self._with_margin(*self._margins[number])
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
        colors: ColorName,
        truncate: bool,
        levels: npt.DTypeLike = np.uint8,
    ) -> None:
        (latents, *source), image = engine.component.inputs, engine.component.outputs[0]
        self._device, self._engine, self._canvas, self._scale = device, engine, canvas, scale
        self._truncate, self._colors = truncate, colors
        if colors == "wavelet":
            self._low = LowFrequencies(device, canvas.size, canvas.pixels, canvas.corner)
        self._latents = device.empty(latents.shape, latents.dtype)
        self._inputs = {"latents": self._latents}
        self._inputs |= {tensor.name: device.empty(tensor.shape, tensor.dtype) for tensor in source}
        self._image = device.empty(image.shape, image.dtype)
        self._clip = latents.shape[0]  # frames that the engine takes at once
        self._pictures = [device.empty((1, 3, *canvas.pixels), np.float32) for _ in range(self._clip)]
        self._levels = device.empty((*canvas.pixels, 3), levels)
        self._tiles = [
            (start, device.upload(weights))
            for start, weights in _tiled(canvas.latent, (latents.shape[2], latents.shape[3]), canvas.factor)
        ]

    def __call__(self, latents: Array, frame: Frame | None, label: int) -> Decoded:
        """Queue the decoding of ``latents [1, Z, h, w]``; NaN is reported under ``label``.

        Colours are after ``frame``, which may be None where they are the model's own and its decoder sees no source.
        """
        self._decode([latents] * self._clip, [frame] * self._clip)
        return self._finish(self._pictures[0], frame, label)

    def clip(self, latents: Array, frames: Sequence[Frame], first: int) -> Iterator[Decoded]:
        """Queue the decoding of ``latents [T, Z, h, w]``, the film's frames from number ``first`` on, in order.

        A decoder that mixes frames takes them in windows, which are cross-faded; with ``truncate``, as the reference,
        in groups that do not see each other. The last window begins early enough to be full; of fewer frames than one
        takes the last is repeated.
        """
        device, count = self._device, len(frames)
        if self._clip == 1:
            for number, frame in enumerate(frames):
                yield self(device.view(latents, slice(number, number + 1)), frame, first + number)
            return
        each = [device.view(latents, slice(number, number + 1)) for number in range(count)]
        each += each[-1:] * (self._clip - count)
        sources = [*frames, *[frames[-1]] * (self._clip - count)]
        windows = self._windows(len(each))
        made: dict[int, Array] = {}
        spare = [device.empty(self._pictures[0].shape, np.float32) for _ in range(2 * self._clip)]
        for window, following in zip(
            windows, [*windows[1:], Span(len(each), windows[0].weights)], strict=True
        ):
            taken = slice(window.start, window.start + self._clip)
            self._decode(each[taken], sources[taken])
            for number, (share, picture) in enumerate(zip(window.weights, self._pictures, strict=True)):
                frame_number = window.start + number
                if frame_number in made:
                    total = made[frame_number]
                    device.combine([(1.0, total), (float(share), picture)], total)
                else:
                    made[frame_number] = spare.pop()
                    device.combine([(float(share), picture)], made[frame_number])
            for number in sorted(number for number in made if number < following.start):
                picture = made.pop(number)
                spare.append(picture)
                if number < count:
                    yield self._finish(picture, frames[number], first + number)

    def _windows(self, frames: int) -> list[Span]:
        if not self._truncate:
            return spans(frames, self._clip, self._clip // 2)
        starts = list(range(0, frames - self._clip + 1, self._clip))
        if starts[-1] + self._clip < frames:
            starts.append(frames - self._clip)
        windows = [Span(start, np.ones(self._clip, np.float32)) for start in starts]
        for earlier, later in pairwise(windows):
            later.weights[: earlier.start + self._clip - later.start] = 0
        return windows

    def _decode(self, latents: Sequence[Array], sources: Sequence[Frame | None]) -> None:
        """As many ``latents [1, Z, h, w]`` as the decoder takes, and the frames behind them -> :attr:`_pictures`."""
        device, factor = self._device, self._canvas.factor
        frames = range(self._clip)
        for picture in self._pictures:
            device.zero(picture)
        taken = [device.view(self._latents, slice(n, n + 1)) for n in frames]
        given = [device.view(self._image, slice(n, n + 1)) for n in frames]
        shown = self._uploaded(sources)
        for (_, row, column), weights in self._tiles:
            for each, window in zip(latents, taken, strict=True):
                shaped = device.reshape(window, (1, window.shape[1], 1, *window.shape[2:]))
                device.take_window(each, (0, row, column), 1 / self._scale, shaped)
            for number, pixels in enumerate(shown):
                self._show(pixels, number, row * factor, column * factor)
            self._engine.run(self._inputs, {"image": self._image}, device.stream)
            for image, picture in zip(given, self._pictures, strict=True):
                shaped = device.reshape(image, (1, 3, 1, *image.shape[2:]))
                device.add_window(shaped, weights, (0, row * factor, column * factor), picture)

    def _uploaded(self, sources: Sequence[Frame | None]) -> list[Array]:
        """The frames that a decoder is shown, if it is one that sees them."""
        return [
            self._device.upload(frame) for frame in sources if frame is not None and "source" in self._inputs
        ]

    def _show(self, pixels: Array, number: int, top: int, left: int) -> None:
        """Make a tile of a frame ``[H0, W0, 3]``, scaled as the encoder sees it, source ``number`` of the decoder."""
        device, canvas = self._device, self._canvas
        offset = (top - canvas.corner[0], left - canvas.corner[1])
        out = device.view(self._inputs["source"], slice(number, number + 1))
        device.prepare_frame(pixels, canvas.size, out, offset=offset, antialias=not self._truncate)

    def _finish(self, picture: Array, frame: Frame | None, label: int) -> Decoded:
        """Colours, levels, and the way to the host."""
        device = self._device
        device.check(picture, label)
        if self._colors == "wavelet" and frame is not None:
            self._low(picture, frame, antialias=True)
        device.image_to_bytes(picture, self._levels, truncate=self._truncate)
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


def tiles_of(extent: tuple[int, int], window: tuple[int, int]) -> int:
    """How many tiles of ``window`` latent (rows, columns) cover ``extent``."""
    shared = (max(side // _OVERLAP, min(_LEAST_SHARED, side // 2)) for side in window)
    return math.prod(len(starts(*each)) for each in zip(extent, window, shared, strict=True))


def _placed(
    device: Device, extent: tuple[int, int], window: tuple[int, int]
) -> list[tuple[tuple[int, int, int], Array]]:
    return [(start, device.upload(weights)) for start, weights in _tiled(extent, window)]
