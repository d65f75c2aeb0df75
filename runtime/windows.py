"""How frames and pixels are cut into windows and blended back.

An engine takes one size. Along each axis a longer extent is covered by overlapping windows whose blend weights add
up to one everywhere, so that blending equal windows gives back the whole exactly (Bar-Tal et al. 2023, MultiDiffusion,
https://arxiv.org/abs/2302.08113; Zhang et al. 2023 do the same along time).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Span:
    """One window along one axis: where it starts and what each of its positions weighs in the blend."""

    start: int
    weights: Floats


@dataclass(frozen=True)
class Tile:
    """One window along (frames, rows, columns): its start and its blend weights [F, h, w]."""

    start: tuple[int, int, int]
    weights: Floats


def starts(length: int, window: int, overlap: int, shift: int = 0) -> list[int]:
    """Where windows of ``window`` positions start so that they cover ``length`` with at least ``overlap`` shared.

    ``shift`` moves the boundaries inside; the first window always starts at 0 and the last ends at ``length``.

    Raises:
        ValueError: the window is longer than the length, or the overlap is not shorter than the window.
    """
    if length < window:
        raise ValueError(f"a window of {window} does not fit into {length}: pad first")
    if not 0 <= overlap < window:
        raise ValueError(f"an overlap must lie between 0 and {window - 1}, not {overlap}")
    stride = window - overlap
    last = length - window
    if shift % stride == 0:
        count = -(-last // stride)  # as few windows as cover the length, spread evenly
        return [round(i * last / count) for i in range(count + 1)] if count else [0]
    return sorted({0, last, *range(stride - shift % stride, last, stride)})


def spans(length: int, window: int, overlap: int, shift: int = 0) -> list[Span]:
    """Windows along one axis with blend weights that add up to one at every position.

    A weight rises linearly over the overlap with a neighbour, so that no boundary is an edge.
    """
    placed = starts(length, window, overlap, shift)
    total = np.zeros(length, np.float64)
    raw = []
    for index, start in enumerate(placed):
        weights = np.ones(window, np.float64)
        if index > 0:
            shared = placed[index - 1] + window - start
            weights[:shared] *= (np.arange(shared) + 1) / (shared + 1)
        if index < len(placed) - 1:
            shared = start + window - placed[index + 1]
            weights[window - shared :] *= (np.arange(shared)[::-1] + 1) / (shared + 1)
        total[start : start + window] += weights
        raw.append(weights)
    return [
        Span(start, (weights / total[start : start + window]).astype(np.float32))
        for start, weights in zip(placed, raw, strict=True)
    ]


def tiles(
    extent: tuple[int, int, int],
    window: tuple[int, int, int],
    overlap: tuple[int, int, int],
    shift: tuple[int, int, int] = (0, 0, 0),
) -> list[Tile]:
    """Windows over (frames, rows, columns): every combination of each axis' :func:`spans`."""
    axes = [spans(*axis) for axis in zip(extent, window, overlap, shift, strict=True)]
    return [
        Tile(
            (f.start, y.start, x.start),
            f.weights[:, None, None] * y.weights[:, None] * x.weights,
        )
        for f, y, x in product(*axes)
    ]


def segments(total: int | None, length: int, shared: int) -> Iterator[tuple[int, int, int]]:
    """Cut ``total`` frames (None: no end) into ``(known, start, stop)``.

    Frames ``start..stop`` are new; the ``start - known`` frames before them were finished by the previous segment
    and are looked at again, so that motion and colour carry over.

    Raises:
        ValueError: nothing new would fit into a segment.
    """
    if not 0 <= shared < length:
        raise ValueError(f"segments of {length} frames cannot share {shared}")
    start = 0
    while total is None or start < total:
        known = max(start - shared, 0)
        stop = known + length
        if total is not None:
            stop = min(stop, total)
        yield known, start, stop
        start = stop
