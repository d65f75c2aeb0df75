"""Before and after in one picture: on the left the source, plainly scaled, on the right the result."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from v2v.runtime.media.pixels import scaled

GAP = 4
"""Columns of black between the two, an even number as chroma wants it."""


def side_by_side(source: npt.NDArray[Any], result: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """``source [H0, W0, 3]`` scaled bicubically beside ``result [H, W, 3]``: ``[H, 2 W + GAP, 3]``."""
    height, width = result.shape[:2]
    both = np.zeros((height, 2 * width + GAP, 3), result.dtype)
    both[:, :width] = scaled(source, (height, width), result.dtype)
    both[:, width + GAP :] = result
    return both
