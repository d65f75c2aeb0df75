"""Noise keyed by the frame's number: the same on every device, whatever the windows.

Each draw comes from its own counter of NumPy's Philox generator (Salmon et al. 2011, "Parallel random numbers: as
easy as 1, 2, 3"), chosen by the frame's number in the video and by what the draw is for. Cutting a video into other
segments, resuming it or moving to another device changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

# Draws are numbered by the solver's step, 0 and up; these come from the other end of the counter.
POSTERIOR = 2**64 - 1
DIFFUSION = 2**64 - 2
OFFSET = 2**64 - 3
HINT = 2**64 - 4

Source = Callable[[int, int], Floats]
"""(frame, draw) -> standard normal float32 of the latent's shape [Z, h, w]."""


def keyed(seed: int, shape: tuple[int, int, int]) -> Source:
    """Standard normal noise of ``shape`` [Z, h, w] for each (frame, draw).

    Raises:
        ValueError: the seed is negative or has more than 64 bits.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"the seed must lie between 0 and 2^64 - 1, not {seed}")

    def draw(frame: int, number: int) -> Floats:
        key = np.array([seed, 0], np.uint64)
        counter = np.array([0, 0, frame, number], np.uint64)  # the generator itself counts in the low words
        bits = np.random.Philox(key=key, counter=counter)
        return np.random.Generator(bits).standard_normal(shape, dtype=np.float32)

    return draw


def canvas(source: Source, frames: Sequence[int], number: int) -> Floats:
    """One draw for each of ``frames``, stacked: [T, Z, h, w]."""
    return np.stack([source(frame, number) for frame in frames])
