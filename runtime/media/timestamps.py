"""When each picture of a video is shown."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import av.container


class Timestamp(NamedTuple):
    """When a picture is shown, in units of the source's time base."""

    start: int
    duration: int  # 0 where unknown


class Timestamps(Sequence[Timestamp]):
    """Those of a whole film, 16 bytes a picture."""

    def __init__(self) -> None:
        self._starts, self._durations = array("q"), array("q")

    def append(self, stamp: Timestamp) -> None:
        """Add the next picture's."""
        self._starts.append(stamp.start)
        self._durations.append(stamp.duration)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: Any) -> Any:
        return Timestamp(self._starts[index], self._durations[index])


def is_constant(stamps: Sequence[Timestamp], time_base: Fraction, rate: Fraction) -> bool:
    """Whether pictures follow each other at ``rate``, as exactly as the time base can tell."""
    step, first = 1 / (rate * time_base), stamps[0].start
    return all(abs(stamp.start - first - n * step) <= 1 for n, stamp in enumerate(stamps))


class PictureTimes:
    """Time stamps of pictures that only ever grow from 0, as muxers need them; kept wherever they are sane."""

    def __init__(self, frame_rate: Fraction, time_base: Fraction) -> None:
        self._time_base = time_base
        self._step = max(round(1 / (frame_rate * time_base)), 1)
        self._longest = self._step
        self._last: Timestamp | None = None
        self._regular = 0
        self.count = 0

    def stamp(self, frame: av.VideoFrame) -> Timestamp:
        """The next picture's time stamp."""
        start, last = frame.pts, self._last
        if last is None:
            start = max(start or 0, 0)
        else:
            if start is None or start <= last.start:
                start = last.start + (last.duration or self._step)
            self._longest = max(self._longest, start - last.start)
            self._regular += abs(start - last.start - self._step) <= 1
        self._last = Timestamp(start, max(frame.duration or 0, 0))
        self.count += 1
        return self._last

    @property
    def end(self) -> Fraction:
        """When the last picture ends, in seconds."""
        last = self._last or Timestamp(0, 0)
        return (last.start + (last.duration or self._step)) * self._time_base

    @property
    def longest(self) -> Fraction:
        """The longest that a picture was shown, in seconds."""
        return self._longest * self._time_base

    @property
    def usual(self) -> Fraction:
        """How long a picture is shown at the frame rate, in seconds."""
        return self._step * self._time_base

    @property
    def regular(self) -> bool:
        """Whether the frame rate looks constant, give or take what is missing."""
        return self._regular > 0.8 * self.count
