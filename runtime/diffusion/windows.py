"""How frames and pixels are cut into windows and blended back.

An engine takes one size. Along each axis a longer extent is covered by overlapping windows whose blend weights add
up to one everywhere, so that blending equal windows gives back the whole exactly (Bar-Tal et al. 2023, MultiDiffusion,
https://arxiv.org/abs/2302.08113; Zhang et al. 2023 do the same along time).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

# A network sees nothing behind a window's edge and does worst beside it: a quarter of what two windows share, at
# either end, is taken from the other window alone.
_MARGIN = 4
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Span:
    """One window along one axis: its start, and the blend weight of each of its positions or of their subdivisions."""

    start: int
    weights: Floats


@dataclass(frozen=True)
class Tile:
    """One window along (frames, rows, columns): its start and its blend weights [F, h, w], or those of its pixels."""

    start: tuple[int, int, int]
    weights: Floats


def starts(length: int, window: int, overlap: int, multiple: int = 1) -> list[int]:
    """Where windows of ``window`` positions start: as few as cover ``length`` with ``overlap`` shared, evenly spread.

    They start at multiples of ``multiple``, if the last does.

    Raises:
        ValueError: the window is longer than the length, or the overlap is not shorter than the window.
    """
    if length < window:
        raise ValueError(f"a window of {window} does not fit into {length}: pad first")
    if not 0 <= overlap < window:
        raise ValueError(f"an overlap must lie between 0 and {window - 1}, not {overlap}")
    last = length - window
    count = -(-last // (window - overlap))
    return [round(i * last / count / multiple) * multiple for i in range(count + 1)] if count else [0]


def spans(
    length: int,
    window: int,
    overlap: int,
    phase: float | None = None,
    *,
    subdivisions: int = 1,
    multiple: int = 1,
) -> list[Span]:
    """Windows along one axis with blend weights that add up to one at every position.

    Neighbours are cross-faded linearly: over the middle half of what they share, or, given a ``phase`` in 0..1, over
    a quarter, which lies at the middle half's beginning for 0 and at its end for 1. Changing the phase from step to
    step moves every boundary without costing a window. Each position has as many weights as ``subdivisions``.
    """
    positions = [start * subdivisions for start in starts(length, window, overlap, multiple)]
    length, window = length * subdivisions, window * subdivisions
    total = np.zeros(length, np.float64)
    raw = [np.ones(window, np.float64) for _ in positions]
    for left, right in zip(range(len(positions)), range(1, len(positions)), strict=False):
        shared = positions[left] + window - positions[right]
        rise = _rise(shared, phase)
        raw[left][window - shared :] *= 1 - rise
        raw[right][:shared] *= rise
    for start, weights in zip(positions, raw, strict=True):
        total[start : start + window] += weights
    return [
        Span(start // subdivisions, (weights / total[start : start + window]).astype(np.float32))
        for start, weights in zip(positions, raw, strict=True)
    ]


def _rise(shared: int, phase: float | None) -> npt.NDArray[np.float64]:
    """Weights of the later window over the positions it shares with the earlier one."""
    margin = shared // _MARGIN
    free = shared - 2 * margin
    width = free if phase is None else max(free // 2, 1)
    begin = margin + (0 if phase is None else round(phase * (free - width)))
    return np.clip((np.arange(shared) - begin + 1) / (width + 1), 0, 1)


def tiles(
    extent: tuple[int, int, int],
    window: tuple[int, int, int],
    overlap: tuple[int, int, int],
    phase: float | None = None,
    *,
    subdivisions: int = 1,
    multiple: int = 1,
    time: Sequence[Span] | None = None,
) -> list[Tile]:
    """Windows over (frames, rows, columns): every combination of each axis' :func:`spans`.

    ``multiple`` is of the frames that they start at; ``time`` takes the place of the windows along frames.

    Each position has ``subdivisions`` x ``subdivisions`` weights: those of its pixels.
    """
    axes = [
        spans(
            *axis,
            phase,
            subdivisions=1 if number == 0 else subdivisions,
            multiple=multiple if number == 0 else 1,
        )
        for number, axis in enumerate(zip(extent, window, overlap, strict=True))
    ]
    axes[0] = axes[0] if time is None else list(time)
    return [
        Tile(
            (f.start, y.start, x.start),
            f.weights[:, None, None] * y.weights[:, None] * x.weights,
        )
        for f, y, x in product(*axes)
    ]


def chunks(frames: int, longest: int, overlap: int, share: float) -> list[tuple[int, int]]:
    """Starts and ends of the pieces that the authors of STAR and VEnhancer take a long video apart into.

    One that would end within ``share`` of its length of the video's end takes all that is left.
    """
    pieces, start = [], 0
    while start + round(share * longest) < frames:
        pieces.append((start, start + longest))
        start += longest - overlap
    return [*pieces, (start, frames)]


def joined(pieces: Sequence[tuple[int, int]], *, fade: bool) -> list[Span]:
    """Pieces with the weights by which they are joined again: cut in the middle of what two share, or faded over it."""
    weights = [np.ones(stop - start, np.float32) for start, stop in pieces]
    for number in range(1, len(pieces)):
        shared = pieces[number - 1][1] - pieces[number][0]
        place = np.arange(shared)
        rise = place / shared if fade else (place >= shared // 2)
        weights[number - 1][-shared:] *= (1 - rise).astype(np.float32)
        weights[number][:shared] *= rise.astype(np.float32)
    return [Span(start, each) for (start, _), each in zip(pieces, weights, strict=True)]
