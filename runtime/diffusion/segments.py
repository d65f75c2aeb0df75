"""Cut a shot into segments that are denoised together; each hands its last latents to the next."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from v2v.core.components import Window
from v2v.device import Frame
from v2v.runtime.diffusion.settings import PARITY_FRAMES

# Neighbouring windows share a quarter of their frames, rows and columns; so do neighbouring segments of a shot.
OVERLAP = 4


# Frames that a segment is shown of the next one, where windows share as many. With two the step between segments on a
# still picture is that between any two frames; with none it was 9 % larger (small model, windows of 8 frames).
_LEAST_AHEAD = 2


# A segment is this many windows long: long enough that seams are rare, short enough that its frames fit in memory.
_WINDOWS_PER_SEGMENT = 3


SEGMENT_BYTES = 1 << 30  # of decoded frames, as long as a window is not more than that


@dataclass(frozen=True)
class Carry:
    """What a segment hands to the next: the finished latents ``[K, Z, h, w]`` of its last K frames.

    ``ahead`` ``[A, Z, h, w]`` are what it made of the frames that followed, :attr:`Segment.ahead`.
    """

    latents: npt.NDArray[np.float32]
    ahead: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Segment:
    """New frames that are denoised together, the first of them number ``first`` of the video."""

    index: int
    first: int
    frames: list[Frame]
    continues: bool  # the shot that the previous segment ended in
    ahead: list[Frame] = field(default_factory=list)  # those that follow in the shot, for context alone


def segments(
    window: Window,
    frames: Iterable[Frame],
    cuts: Collection[int] = (),
    *,
    parity: bool = False,
    first_number: int = 0,
) -> Iterator[Segment]:
    """Collect frames into segments of a few windows, none of which spans a cut.

    ``first_number`` is the first frame's in the film; ``cuts`` count from that frame.
    """
    shared = shared_frames(window)
    length = PARITY_FRAMES
    waiting: list[Frame] = []
    index, first, continues = 0, 0, False
    for number, frame in enumerate(frames):
        if parity and number == PARITY_FRAMES:
            break
        if number == 0 and not parity:
            windows = min(max(SEGMENT_BYTES // (frame.nbytes * window.frames), 1), _WINDOWS_PER_SEGMENT)
            length = window.frames * windows - shared * (windows - 1)
        full = len(waiting) == length - (shared if continues else 0)
        if waiting and (full or number in cuts):
            count = len(waiting) - (0 if number in cuts else look_ahead(window))
            yield Segment(index, first_number + first, waiting[:count], continues, waiting[count:])
            index, first, continues, waiting = index + 1, first + count, number not in cuts, waiting[count:]
        waiting.append(frame)
    if waiting:
        yield Segment(index, first_number + first, waiting, continues)


def shared_frames(window: Window) -> int:
    """Frames that a segment sees again from the one whose shot it continues."""
    return window.frames // OVERLAP


def look_ahead(window: Window) -> int:
    """Frames behind a segment that it is shown too, so that its last frames have neighbours on both sides.

    What it makes of them is cross-faded into what the next segment makes of them.
    """
    shared = shared_frames(window)
    return min(shared, max(shared // 2, _LEAST_AHEAD))
