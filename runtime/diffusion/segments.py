"""Cut a shot into segments that are denoised together; each hands its last latents to the next."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import numpy.typing as npt

from v2v.core.components import Window
from v2v.device import Frame

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

    ``ahead`` ``[A, Z, h, w]`` are what it made of the frames that followed, :attr:`Segment.ahead`. ``source``
    ``[K, Z, h, w]``, of models that are shown a hint or carry the source, are latents of the source's last K frames.
    """

    latents: npt.NDArray[np.float32]
    ahead: npt.NDArray[np.float32]
    source: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Segment:
    """New frames that are denoised together, the first of them number ``first`` of the video."""

    index: int
    first: int
    frames: list[Frame]
    continues: bool  # the shot that the previous segment ended in
    ahead: list[Frame] = field(default_factory=list)  # those that follow in the shot, for context alone
    offset: int = 0  # frames of its shot before it


def segments(
    window: Window,
    frames: Iterable[Frame],
    cuts: Collection[int] = (),
    *,
    whole: bool = False,
    most: int | None = None,
    first_number: int = 0,
    multiple: int = 1,
) -> Iterator[Segment]:
    """Collect frames into segments of a few windows, none of which spans a cut.

    Args:
        window: of the engines.
        frames: of the film.
        cuts: count from the first of ``frames``.
        whole: all frames are one segment, as the reference takes them.
        most: frames that are taken; None for all.
        first_number: the first frame's in the film.
        multiple: within a shot segments begin at multiples of so many frames.
    """
    shared = shared_frames(window, multiple)
    length: float = math.inf
    waiting: list[Frame] = []
    index, first, continues, shot = 0, 0, False, 0
    for number, frame in enumerate(islice(frames, most)):
        if number == 0 and not whole:
            length = segment_length(window, frame.nbytes, multiple)
        full = len(waiting) == length - (shared if continues else 0)
        if waiting and (full or number in cuts):
            count = len(waiting)
            if number not in cuts:
                count -= look_ahead(window)
                count -= count % multiple
            yield Segment(
                index, first_number + first, waiting[:count], continues, waiting[count:], first - shot
            )
            index, first, continues, waiting = index + 1, first + count, number not in cuts, waiting[count:]
            shot = shot if continues else first
        waiting.append(frame)
    if waiting:
        yield Segment(index, first_number + first, waiting, continues, [], first - shot)


def segment_length(window: Window, frame_bytes: int, multiple: int = 1) -> int:
    """Frames that are denoised together, those of the segment before and after included, of so many bytes each."""
    windows = min(max(SEGMENT_BYTES // (frame_bytes * window.frames), 1), _WINDOWS_PER_SEGMENT)
    return window.frames * windows - shared_frames(window, multiple) * (windows - 1)


def overlap(window: Window, multiple: int = 1) -> tuple[int, int, int]:
    """(frames, rows, columns) of latents that neighbouring windows share."""
    rows, columns = window.latent_height // OVERLAP, window.latent_width // OVERLAP
    return shared_frames(window, multiple), rows, columns


def shared_frames(window: Window, multiple: int = 1) -> int:
    """Frames that a segment sees again from the one whose shot it continues, a multiple of so many."""
    shared = window.frames // OVERLAP
    return shared if multiple == 1 else min(max(shared - shared % multiple, multiple), window.frames - 1)


def look_ahead(window: Window) -> int:
    """Frames behind a segment that it is shown too, so that its last frames have neighbours on both sides.

    What it makes of them is cross-faded into what the next segment makes of them.
    """
    shared = shared_frames(window)
    return min(shared, max(shared // 2, _LEAST_AHEAD))
