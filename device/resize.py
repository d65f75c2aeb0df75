"""The source pixels and weights behind each resized pixel: the geometry that both devices share."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt


@lru_cache(maxsize=64)
def taps(
    source: int, target: int, offset: int, count: int, antialias: bool
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Indices and weights ``[count, K]`` of the source pixels behind ``count`` resized ones, from ``offset`` on.

    One axis of a bilinear resize from ``source`` to ``target`` pixels with half-pixel centres. Positions outside
    ``0..target`` repeat the edge. Without ``antialias`` K is 2 and the arithmetic is the reference's:
    ``src = max((dst + 0.5) source / target - 0.5, 0)``, upper neighbour clamped. With it, the triangle widens by
    ``source / target`` when scaling down.
    """
    ratio = source / target
    positions = np.clip(np.arange(offset, offset + count), 0, target - 1)
    if not antialias or ratio <= 1:
        centre = np.maximum((positions + 0.5) * ratio - 0.5, 0)
        low = np.minimum(centre.astype(np.int64), source - 1)
        upper = centre - low
        indices = np.stack([low, np.minimum(low + 1, source - 1)], axis=1)
        weights = np.stack([1 - upper, upper], axis=1)
    else:
        centre = (positions + 0.5) * ratio
        first = np.floor(centre - ratio).astype(np.int64)
        indices = first[:, None] + np.arange(int(np.ceil(2 * ratio)) + 1)
        weights = np.maximum(1 - np.abs(indices + 0.5 - centre[:, None]) / ratio, 0)
        weights[(indices < 0) | (indices >= source)] = 0
        weights /= weights.sum(axis=1, keepdims=True)
        indices = np.clip(indices, 0, source - 1)
    return indices.astype(np.int32), weights.astype(np.float32)
