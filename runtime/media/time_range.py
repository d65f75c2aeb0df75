"""The part of a film to enhance: from a start to an end, or a few seconds from its middle.

A range is ``[start, end)`` in seconds from the film's beginning, as players count: a picture belongs to it if it
begins inside. Times are compared to the microsecond, which is what containers tell of their own beginning.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from v2v.core.errors import UsageError

NOT_GIVEN = "not given"
_MICROSECOND = Fraction(1, 1_000_000)
_TIME = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d+)?|\.\d+)", re.ASCII)

# Containers with an index to seek by, where a picture keeps the time stamp that it has when all is read in order.
SEEKABLE = ("mov", "matroska", "image2")


@dataclass(frozen=True)
class TimeRange:
    """What a user asks for, in seconds; None: not asked for.

    ``preview`` takes so many seconds, from ``start`` or else out of the middle of what the others leave.
    """

    start: Fraction | None = None
    end: Fraction | None = None
    preview: Fraction | None = None

    def __post_init__(self) -> None:
        start, end = self.start or Fraction(0), self.end
        if end is not None and start >= end:
            flags = f"--start {clock(start)} --end {clock(end)}" if start else f"--end {clock(end)}"
            raise UsageError(f"{flags}: the end must come after the start")
        if self.preview is not None and self.preview <= 0:
            raise UsageError("--preview 0: give the seconds to show, as --preview 3")

    @property
    def whole(self) -> bool:
        """Whether all of the film is wanted."""
        return self == WHOLE

    def facts(self) -> dict[str, str]:
        """What was asked for, by the names of the flags."""
        times = {"--start": self.start, "--end": self.end, "--preview": self.preview}
        return {name: NOT_GIVEN if value is None else clock(value) for name, value in times.items()}

    def within(self, length: Fraction | None) -> tuple[Fraction, Fraction | None]:
        """(start, end) in a film of ``length`` seconds, where that is known; an end of None is the film's own."""
        start, end = self.start or Fraction(0), self.end
        if self.preview is None:
            return start, end
        last = min((time for time in (end, length) if time is not None), default=None)
        if self.start is None and last is not None:
            start = max((last - self.preview) / 2, Fraction(0))
        stop = start + self.preview
        return start, stop if end is None else min(stop, end)


WHOLE = TimeRange()


@dataclass(frozen=True)
class Part:
    """A range on a file's own clock, in seconds.

    ``shift`` is the time that becomes 0: that of the first picture, or 0 where the part begins with the film.
    """

    start: Fraction
    stop: Fraction | None
    shift: Fraction = Fraction(0)

    def holds(self, time: Fraction) -> bool:
        """Whether what begins at ``time`` belongs to the part."""
        return not before(time, self.start) and not self.ended(time)

    def ended(self, time: Fraction) -> bool:
        """Whether ``time`` lies behind the part."""
        return self.stop is not None and not before(time, self.stop)

    def beginning_at(self, shift: Fraction) -> Part:
        """The same part, once the time of its first picture is known."""
        return replace(self, shift=shift)


def before(time: Fraction, other: Fraction) -> bool:
    """Whether ``time`` comes before ``other``, to the microsecond."""
    return round(time / _MICROSECOND) < round(other / _MICROSECOND)


def parse_time(flag: str, text: str) -> Fraction:
    """Seconds of ``12.5``, ``1:30`` or ``1:02:03.25``.

    Raises:
        UsageError: anything else.
    """
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{flag} {text}: give seconds, mm:ss or hh:mm:ss, as 12.5, 1:30 or 1:02:03.25")
    hours, minutes, seconds = match.groups()
    if (minutes and Fraction(seconds) >= 60) or (hours and int(minutes) >= 60):
        raise UsageError(f"{flag} {text}: minutes and seconds behind a colon go up to 59")
    return (int(hours or 0) * 60 + int(minutes or 0)) * 60 + Fraction(seconds)


def is_time(text: str) -> bool:
    """Whether :func:`parse_time` can read ``text``."""
    return _TIME.fullmatch(text) is not None


def clock(seconds: Fraction) -> str:
    """``0:01:05.25``, as :func:`parse_time` reads it."""
    minutes, microseconds = divmod(round(seconds / _MICROSECOND), 60_000_000)
    text = (
        f"{minutes // 60}:{minutes % 60:02d}:{microseconds // 1_000_000:02d}.{microseconds % 1_000_000:06d}"
    )
    return text.rstrip("0").rstrip(".")


def chapters_of(part: Part, chapters: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The chapters that ``part`` touches, cut to it and shifted with it."""
    cut = []
    for chapter in chapters:
        tick = chapter["time_base"]
        begin = round(part.shift / tick)
        start, end = max(chapter["start"], begin), chapter["end"]
        if part.stop is not None:
            end = min(end, round(part.stop / tick))
        if start < end:
            cut.append({**chapter, "start": start - begin, "end": end - begin})
    return cut
