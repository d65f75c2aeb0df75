"""Maps a file's time stamps to the film's: the one map for pictures, sound, subtitles and chapters.

A file's clock may start anywhere, wrap around, and jump where recordings were joined or interrupted. The film starts
at 0, and its time only grows. The rules are those of the ``ffmpeg`` command line, with one difference: packets are
held back at a jump until every stream has jumped, so that all of them move by the same time and stay in step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av.container

from v2v.runtime.media.formats import REORDERED, is_cover, may_jump

Packet = Any  # of any stream: PyAV's class is generic over its kind

# Seconds. Ahead of what is expected by more than this is a jump: in formats whose clocks may jump, and in the others.
_AHEAD, _AHEAD_ELSEWHERE = Fraction(10), Fraction(30 * 3600)
_BACK, _BACK_ELSEWHERE = Fraction(1, 10), Fraction(10)  # the same for going back
_REORDERED = Fraction(2)  # what pictures without decoding times may go back
_LONGEST_WAIT = Fraction(60)  # the same in formats whose clocks do not jump: a few pictures of seconds each
_HELD_TIME, _HELD_PACKETS = Fraction(2), 2000  # after which a jump is decided on without the missing streams
_RETURNED = Fraction(1)  # the same for a clock that goes on where it was before it jumped
_TIMELINES = 16  # to try, the newest first
# Seconds after which counters start anew: MPEG's of 33 bits, and those of 32 bits at 90 kHz and in milliseconds.
_WRAPS = (Fraction(1 << 33, 90_000), Fraction(1 << 32, 90_000), Fraction(1 << 32, 1000))
_COUNTS = ("audio", "video")  # streams that jumps are told by; the others are too sparse


@dataclass
class _Line:
    """A stream's place in the film; all but ``tick`` in units of it."""

    tick: Fraction
    shift: int  # from the file's time to the film's
    next: int | None = None  # where its next packet is expected
    last: int | None = None  # where its last packet was
    step: int = 1  # how long a packet lasts, as far as is known
    by_showing: bool = False  # whether the last packet had no decoding time


@dataclass
class _Jump:
    """Where the file's clock has jumped and not all streams have followed."""

    now: Fraction  # the film's time when it was met
    firsts: dict[int, int]  # a stream's first stamp behind the jump
    held_packets: list[tuple[Packet, bool]]  # packets, and whether they wait for the new shift


class FilmClock:
    """Puts the film's time stamps in the place of a file's, packet by packet in the file's order.

    Args:
        zero: when the film begins, on the file's clock, in seconds; None: with the first packet.
        jumps: whether the format is one whose clock may jump.
    """

    def __init__(self, zero: Fraction | None, *, jumps: bool) -> None:
        self.zero = zero
        self.gaps: list[Fraction] = []
        """By how many seconds the clock has jumped ahead so far, each time."""
        self.jumped = False
        """Whether it has jumped at all, in whatever direction."""
        self.strays = 0
        """Packets so far whose stamps were out of all order, and were made up."""
        self._ahead, self._back = (_AHEAD, _BACK) if jumps else (_AHEAD_ELSEWHERE, _BACK_ELSEWHERE)
        self._expects_zero = jumps
        self._lines: dict[int, _Line] = {}
        self._timelines: list[Fraction] = []  # shifts in seconds, the newest last
        self._now = Fraction(0)  # the film's time of the last packet
        self._jump: _Jump | None = None

    @classmethod
    def of(cls, container: av.container.InputContainer) -> FilmClock:
        """The clock of an opened file."""
        return cls(beginning(container), jumps=may_jump(container))

    def film(self, packets: Iterable[Packet]) -> Iterator[Packet]:
        """``packets`` of all streams, none left out, under the film's time stamps."""
        for packet in packets:
            yield from self._take(packet)
        yield from self._settle()

    @property
    def end(self) -> Fraction:
        """When the last picture or sound so far ends in the film, in seconds."""
        return max(
            (line.next * line.tick for line in self._lines.values() if line.next is not None),
            default=self._now,
        )

    def seconds(self, time: Fraction) -> Fraction:
        """The film's time of a moment that lies before any jump."""
        return time - (self.zero or 0)

    def moved(self) -> None:
        """To be called after a seek: the next packets come from another place of the file."""
        self._jump = None
        self._expects_zero = False
        for line in self._lines.values():
            line.next = line.last = None

    def _take(self, packet: Packet) -> Iterator[Packet]:
        if not packet.size and packet.pts is None and packet.dts is None:  # the mark of the end
            yield from self._settle()
            yield packet
            return
        line = self._line_of(packet)
        when = packet.pts if packet.dts is None else packet.dts
        counts = packet.stream.type in _COUNTS and when is not None and not is_cover(packet.stream)
        if self._jump is not None:
            yield from self._take_held(self._jump, packet, line, when if counts else None)
        elif counts and not self._continues(line, when, line.shift, packet.dts is None):
            if (shift := self._shift_of_other_clock(line, when)) is not None:
                line.shift = shift
                self._stamp(packet, line)
                yield packet
            else:
                self._jump = _Jump(self._now, {packet.stream.index: when}, [(packet, True)])
        else:
            self._stamp(packet, line)
            yield packet

    def _take_held(self, jump: _Jump, packet: Packet, line: _Line, when: int | None) -> Iterator[Packet]:
        """Take a packet while some streams have jumped and others have not."""
        index = packet.stream.index
        first = jump.firsts.get(index)
        if when is None:  # it tells nothing: goes with its stream
            waits = first is not None
        elif self._continues(line, when, line.shift, packet.dts is None):
            waits = False
            if first is not None:  # back where it was: those before were out of order
                self._restamp(jump, index, line)
        else:
            waits = True
            other, start = next(iter(jump.firsts.items()))
            near = abs(when * line.tick - start * self._lines[other].tick) <= _AHEAD
            if first is None and near:
                jump.firsts[index] = when
            elif not near and (first is None or abs(when - first) * line.tick > _AHEAD):  # another jump
                yield from self._settle()
                yield from self._take(packet)
                return
        if not waits:
            self._stamp(packet, line)
        jump.held_packets.append((packet, waits))
        first = jump.firsts.get(index)
        long = when is not None and first is not None and (when - first) * line.tick > _HELD_TIME
        if not jump.firsts or self._all_jumped(jump) or long or len(jump.held_packets) > _HELD_PACKETS:
            yield from self._settle()

    def _all_jumped(self, jump: _Jump) -> bool:
        """Whether each stream that plays at the time has come to the jump."""
        playing = {index for index, line in self._lines.items() if line.last is not None}
        return playing <= jump.firsts.keys()

    def _settle(self) -> Iterator[Packet]:
        """Decide on the jump, and give out the packets that were held back."""
        if (jump := self._jump) is None:
            return
        self._jump = None
        if jump.firsts:
            self._move(jump)
        for packet, waits in jump.held_packets:
            if waits:
                self._stamp(packet, self._lines[packet.stream.index])
            yield packet

    def _move(self, jump: _Jump) -> None:
        """Let the streams that have jumped go on in the film."""
        firsts = jump.firsts
        lines = {index: self._lines[index] for index in firsts}
        # the least move by which no stream runs into what it has played
        shift = max(
            (jump.now if line.next is None else line.next * line.tick) - firsts[index] * line.tick
            for index, line in lines.items()
        )
        gaps = [
            (firsts[index] + line.shift - line.next) * line.tick
            for index, line in lines.items()
            if line.next is not None
        ]
        self.jumped = True
        # FFmpeg takes the stamps of an older recording behind a newer one for a counter that wrapped around.
        if gaps and 0 < min(gaps) < _WRAPS[0] / 2:
            self.gaps.append(min(gaps))
        self._timelines = [*self._timelines[1 - _TIMELINES :], shift]
        for line in lines.values():
            line.shift = round(shift / line.tick)
            line.next = None

    def _restamp(self, jump: _Jump, index: int, line: _Line) -> None:
        """Give stamps to the held packets of a stream that has not jumped after all."""
        del jump.firsts[index]
        for position, (packet, waits) in enumerate(jump.held_packets):
            if waits and packet.stream.index == index:
                packet.pts = packet.dts = None
                self._stamp(packet, line)
                jump.held_packets[position] = (packet, False)
                self.strays += 1

    def _line_of(self, packet: Packet) -> _Line:
        line = self._lines.get(packet.stream.index)
        if line is None:
            tick = Fraction(packet.time_base)
            when = packet.pts if packet.dts is None else packet.dts
            if self.zero is None and when is not None:
                self.zero = when * tick
            line = self._lines[packet.stream.index] = _Line(tick, -round((self.zero or 0) / tick))
            if not self._timelines:
                self._timelines.append(-(self.zero or Fraction(0)))
        return line

    def _continues(
        self, line: _Line, when: int, shift: int, reordered: bool, ahead: Fraction | None = None
    ) -> bool:
        """Whether the stamp ``when``, shifted by ``shift``, continues its stream, at most ``ahead`` seconds ahead."""
        ahead = self._ahead if ahead is None else ahead
        if line.next is None or line.last is None:
            if not self._expects_zero:
                return True
            return abs((when + shift) * line.tick - self._now) <= ahead
        back = self._back
        if reordered or line.by_showing:  # pictures without decoding times come in another order
            back = max(back, _REORDERED if back < _REORDERED else _LONGEST_WAIT)
        film_time = when + shift
        return (film_time - line.next) * line.tick <= ahead and (line.last - film_time) * line.tick <= back

    def _shift_of_other_clock(self, line: _Line, when: int) -> int | None:
        """The shift of an earlier timeline, or of this clock after wrapping around, under which a stamp continues."""
        own = line.shift * line.tick
        wrapped = [own + way * wrap for wrap in _WRAPS for way in (1, -1)]
        for seconds in (*reversed(self._timelines), *wrapped):
            shift = round(seconds / line.tick)
            ahead = self._ahead if seconds == self._timelines[-1] else min(self._ahead, _RETURNED)
            if shift != line.shift and self._continues(line, when, shift, False, ahead):
                if seconds in wrapped:
                    self._timelines = [*self._timelines[1 - _TIMELINES :], seconds]
                return shift
        return None

    def _stamp(self, packet: Packet, line: _Line) -> None:
        """Give a packet the film's time stamps."""
        pts, dts = packet.pts, packet.dts
        longest = max(self._ahead / line.tick, REORDERED * line.step)
        if pts is not None and dts is not None and abs(pts - dts) > longest:
            pts = None if packet.stream.type == "video" else dts  # no picture waits so long to be shown
            self.strays += 1
        if pts is None and dts is None:
            dts = line.next if line.next is not None else math.ceil(self._now / line.tick)
            pts = None if packet.stream.type == "video" else dts
        else:
            pts = None if pts is None else pts + line.shift
            dts = None if dts is None else dts + line.shift
        packet.pts, packet.dts = pts, dts
        film_time = dts if dts is not None else pts
        assert film_time is not None
        if packet.duration:
            line.step = packet.duration
        elif line.last is not None and 0 < film_time - line.last <= line.step * 4:
            line.step = film_time - line.last
        line.last, line.next, line.by_showing = film_time, film_time + line.step, dts is None
        if packet.stream.type in _COUNTS:
            self._now = max(self._now, film_time * line.tick)


def beginning(container: av.container.InputContainer) -> Fraction | None:
    """When the first picture or sound of a file begins, on its own clock, in seconds; None: not known."""
    starts = [
        (stream.type in _COUNTS, Fraction(stream.start_time * stream.time_base))
        for stream in container.streams
        if stream.start_time is not None and stream.time_base and not is_cover(stream)
    ]
    main = [time for counts, time in starts if counts]
    return min(main or [time for _, time in starts], default=None)
