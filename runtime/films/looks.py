"""How sharp frames are, and how much they flicker, before and after: two light measures on small grey copies.

Source and result are brought to one size, at most 640 pixels along a side, so that the figures can be compared.

- Sharpness is the mean step between neighbouring pixels, across and down, in levels of 255. Noise counts as detail.
- Flicker is what a frame's brightness differs from the mean of the frames before and after it, in blocks of 8x8 pixels,
  in levels of 255. Motion counts too, but as much before as after.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from v2v.runtime.media.pixels import scaled

_LONGEST, _BLOCK = 640, 8  # pixels
Floats = npt.NDArray[np.float32]


@dataclass
class Looks:
    """Of consecutive frames, either before or after: the sharpness of each, and the blocks by which flicker is seen."""

    sharpness: list[float] = field(default_factory=list)
    flicker: list[float] = field(default_factory=list)  # of all but the first and the last
    head: list[Floats] = field(default_factory=list)  # blocks of the first two frames
    tail: list[Floats] = field(default_factory=list)  # and of the last two

    def add(self, grey: Floats) -> None:
        """The next frame, ``[H, W]`` in levels of 255."""
        self.sharpness.append(_sharpness(grey))
        blocks = _blocks(grey)
        if len(self.tail) == 2:
            self.flicker.append(_flicker(self.tail[0], self.tail[1], blocks))
        self.tail = [*self.tail[-1:], blocks]
        if len(self.head) < 2:
            self.head.append(blocks)

    def flicker_before(self, earlier: Looks) -> list[float]:
        """Flicker of the last frame of ``earlier``, which comes right before, and of the first of these."""
        frames = [*earlier.tail, *self.head]
        seam = len(earlier.tail)
        return [_flicker(*frames[n - 1 : n + 2]) for n in (seam - 1, seam) if 0 < n < len(frames) - 1]


@dataclass
class BothLooks:
    """The looks of the source's frames and of the result's."""

    before: Looks = field(default_factory=Looks)
    after: Looks = field(default_factory=Looks)

    def add(self, source: npt.NDArray[Any], result: npt.NDArray[Any]) -> None:
        """The next frame, ``[H0, W0, 3]`` and ``[H, W, 3]``, uint8 or uint16."""
        height, width = result.shape[:2]
        shrink = min(_LONGEST / max(height, width), 1.0)
        size = max(round(height * shrink), 1), max(round(width * shrink), 1)
        self.before.add(_grey(source, size))
        self.after.add(_grey(result, size))


def curve(parts: Iterable[tuple[bool, Looks]]) -> tuple[list[float], list[float | None]]:
    """Sharpness and flicker of all frames of ``parts``, each with whether it continues the one before in its shot.

    Where a frame has no neighbour on one side there is no flicker to be seen: None.
    """
    sharpness: list[float] = []
    flicker: list[float | None] = []
    previous: Looks | None = None
    for continues, looks in parts:
        count = len(looks.sharpness)
        here: list[float | None] = [None, *looks.flicker, None][:count] if count else []
        if continues and previous is not None:
            values = looks.flicker_before(previous)
            if values and len(previous.tail) == 2:
                flicker[-1] = values.pop(0)
            if values and count > 1:
                here[0] = values.pop(0)
        sharpness += looks.sharpness
        flicker += here
        previous = looks
    return sharpness, flicker


def thinned(values: Sequence[float | None], most: int) -> list[tuple[float, float | None]]:
    """(place, mean) of at most ``most`` stretches of ``values``, places counted in values."""
    step = max(-(-len(values) // most), 1)
    stretches = [values[first : first + step] for first in range(0, len(values), step)]
    points: list[tuple[float, float | None]] = []
    for number, stretch in enumerate(stretches):
        there = [value for value in stretch if value is not None]
        middle = number * step + (len(stretch) - 1) / 2
        points.append((middle, sum(there) / len(there) if there else None))
    return points


def _grey(picture: npt.NDArray[Any], size: tuple[int, int]) -> Floats:
    white = np.iinfo(picture.dtype).max
    small = scaled(picture, size, picture.dtype) if picture.shape[:2] != size else picture
    weights = np.array([0.299, 0.587, 0.114], np.float32) * np.float32(255 / white)
    grey: Floats = small.astype(np.float32) @ weights
    return grey


def _sharpness(grey: Floats) -> float:
    steps = [np.abs(np.diff(grey, axis=axis)) for axis in (0, 1) if grey.shape[axis] > 1]
    return float(np.mean([each.mean() for each in steps])) if steps else 0.0


def _blocks(grey: Floats) -> Floats:
    rows, columns = (max(side // _BLOCK, 1) for side in grey.shape)
    height, width = grey.shape[0] // rows * rows, grey.shape[1] // columns * columns
    shaped = grey[:height, :width].reshape(rows, height // rows, columns, width // columns)
    means: Floats = shaped.mean((1, 3), dtype=np.float32)
    return means


def _flicker(before: Floats, frame: Floats, after: Floats) -> float:
    return float(np.abs(frame - (before + after) / 2).mean())
