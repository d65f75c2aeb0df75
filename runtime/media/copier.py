"""Everything of a video but its pictures goes along with them: sound, subtitles, attachments, data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import av.container

from v2v.runtime.media.clock import FilmClock, Packet
from v2v.runtime.media.errors import warn
from v2v.runtime.media.formats import OF_THE_PLACE, is_cover, reason_of
from v2v.runtime.media.packet_order import PacketOrder
from v2v.runtime.media.pipe_in import Inflow
from v2v.runtime.media.stream_plan import Converter, StreamPlan, declare
from v2v.runtime.media.streams import all_packets, open_media
from v2v.runtime.media.tags import copy_tags
from v2v.runtime.media.time_range import SEEKABLE, Part, before

_LEAD_IN = Fraction(1, 10)  # seconds of sound that decoders take to begin
_NOTHING = bytes(2)  # an empty text of MP4
_BACK = 30  # seconds before a part to look for subtitles that are still shown when it begins
_APART = 10  # seconds by which packets of different streams may lie apart in a file


class StreamCopier:
    """Copies or converts streams as planned, packet by packet, in step with the pictures that are written.

    It reads the input a second time, so that nothing is collected in memory however far pictures lag behind. What
    comes in by a pipe is lent to it as ``opened``, and waits in memory from where the pictures are written to where
    they are read.

    Of a ``part`` the packets that begin inside are copied, so sound is cut to its packets (about 20 ms), a second
    video begins at a key picture, and a subtitle that is on the screen when the part begins is shown from 0.
    """

    def __init__(
        self,
        plan: StreamPlan,
        output: av.container.OutputContainer,
        part: Part | None = None,
        opened: av.container.InputContainer | None = None,
    ) -> None:
        self._output, self._part = output, part
        self._source = plan.source.path if isinstance(plan.source, Inflow) else plan.source
        self._in_step = opened is not None  # with the pipe: never read ahead for a stream that is sparse
        self._input = opened or open_media(self._source)
        self._clock = FilmClock.of(self._input)
        self._copies: dict[int, Any] = {}
        self._converters: dict[int, Converter] = {}
        for fate in plan.kept():
            stream = self._input.streams[fate.index]
            track, converter = declare(fate, stream, output, whole=part is None)
            self._copies[fate.index] = track
            if converter is not None:
                self._converters[fate.index] = converter
        copy_tags(self._input, output, self._clock, part)
        seekable = opened is None and self._input.format.name.startswith(SEEKABLE)
        if part and part.shift > _BACK and seekable:
            position = part.shift - _BACK + (self._clock.zero or 0)
            self._input.seek(math.floor(position * av.time_base))
            self._clock.moved()
        self._packets = self._read()
        self._next: Packet | None = None
        self._order = {index: PacketOrder(output) for index in self._copies}
        self._early: dict[int, int] = {}  # pictures of second videos that come before a key picture
        self._failures: dict[int, tuple[int, str]] = {}  # packets that could not be written, and why

    def advance(self, seconds: Fraction | None) -> None:
        """Write all packets that start no later than ``seconds``; None writes the rest."""
        while (packet := self._next or next(self._packets, None)) is not None:
            self._next = packet
            start = packet.pts if packet.dts is None else packet.dts
            if seconds is not None and start * packet.time_base > seconds:
                return
            self._next = None
            if packet.stream.index in self._copies:
                self._write(packet)
        if seconds is None:
            self._end()

    def tell_losses(self) -> None:
        """Tell of packets that were moved or lost, once all is written."""
        for index, order in self._order.items():
            if order.moved:
                warn(
                    f"{self._source}: {order.moved} packets of stream {index} have time stamps that run backwards; "
                    "they are moved to where the one before ends"
                )
        for index, count in self._early.items():
            warn(
                f"{self._source}: stream {index} begins with {count} pictures that nothing can show; they are left out"
            )
        for index, (count, reason) in self._failures.items():
            warn(
                f"{self._source}: {count} packets of stream {index} could not be written ({reason}); the others are"
            )

    def close(self) -> None:
        """Close the input."""
        self._input.close()

    def _read(self) -> Iterator[Packet]:
        return self._read_all() if self._part is None else self._read_part(self._part)

    def _read_part(self, part: Part) -> Iterator[Packet]:
        """What begins inside of ``part``, shifted with it."""
        started: set[int] = set()  # second videos that have had a key picture
        for packet in self._read_all():
            stream, tick = packet.stream, packet.time_base
            if is_cover(stream):
                yield packet
                continue
            start = (packet.dts if packet.pts is None else packet.pts) * tick
            if part.stop is not None and start > part.stop + _APART:
                return
            if stream.type == "subtitle" and packet.pts is not None and packet.duration:
                if not _cut(packet, part):
                    continue
            elif (part.shift and before(start, part.shift)) or part.ended(start):
                continue
            if stream.type == "video":
                if stream.index not in started and not packet.is_keyframe:
                    continue
                started.add(stream.index)
            shift = round(part.shift / tick)
            packet.pts = None if packet.pts is None else packet.pts - shift
            packet.dts = None if packet.dts is None else packet.dts - shift
            yield packet

    def _read_all(self) -> Iterator[Packet]:
        if all(copy.type == "attachment" for copy in self._copies.values()):
            return
        started: set[int] = set()  # streams of which something is shown
        for packet in all_packets(self._input, self._clock):
            copy = self._copies.get(packet.stream.index)
            if self._in_step and copy is None and packet.size and _is_of_pictures(packet):
                yield packet  # which tells only how far the pipe is
                continue
            if not packet.size or copy is None or copy.type == "attachment":
                continue
            stream = packet.stream
            if is_cover(stream):
                packet.pts = packet.dts = 0
            elif stream.type in ("audio", "video"):
                if packet.is_discard and self._is_cut_away(packet):
                    continue
                if stream.type == "video" and stream.index not in started and not packet.is_keyframe:
                    self._early[stream.index] = self._early.get(stream.index, 0) + 1
                    continue
            elif stream.type == "subtitle" and not packet.duration and bytes(packet) == _NOTHING:
                continue  # what MP4's muxer writes between two texts, and will write again
            else:
                _begin_at_zero(packet)
            started.add(stream.index)
            yield packet

    def _is_cut_away(self, packet: Packet) -> bool:
        """Whether an edit list cuts a packet away, and decoders do not need it to begin."""
        length = (packet.duration or 0) * packet.time_base
        end = (packet.dts if packet.pts is None else packet.pts) * packet.time_base + length
        # MP4 says what not to play; in Matroska it is heard, and all else moves behind it
        lead_in: Fraction = length if self._output.format.name == "matroska" else _LEAD_IN
        return bool(end <= -lead_in)

    def _write(self, packet: Packet) -> None:
        index = packet.stream.index
        self._output.start_encoding()  # from here on the time bases of the copies are known
        converter = self._converters.get(index)
        if converter is None:
            packet.stream = self._copies[index]
            self._mux(index, packet)
            return
        try:
            for converted in converter.convert(packet):
                self._mux(index, converted)
        except (av.FFmpegError, ValueError) as error:
            self._lose(index, error)

    def _end(self) -> None:
        """Write what converters still hold."""
        for index, converter in self._converters.items():
            mark: Packet = av.Packet()
            mark.stream = self._input.streams[index]
            try:
                for converted in converter.flush(mark):
                    self._mux(index, converted)
            except (av.FFmpegError, ValueError, EOFError) as error:
                self._lose(index, error)

    def _mux(self, index: int, packet: Packet) -> None:
        self._order[index](packet)
        try:
            self._output.mux_one(packet)
        except (av.FFmpegError, ValueError) as error:
            self._lose(index, error)

    def _lose(self, index: int, error: Exception) -> None:
        """Count a packet that could not be written; raises ``error`` again if not the packet is the reason."""
        if getattr(error, "errno", None) in OF_THE_PLACE:
            raise error
        count, _ = self._failures.get(index, (0, ""))
        self._failures[index] = (count + 1, reason_of(error))


def _is_of_pictures(packet: Packet) -> bool:
    return packet.stream.type == "video" and not is_cover(packet.stream)


def _begin_at_zero(packet: Packet) -> None:
    """A subtitle that is on the screen when the film begins, or data from before it, belongs to its beginning."""
    start = packet.dts if packet.pts is None else packet.pts
    if start < 0:
        if packet.duration:
            packet.duration = max(packet.duration + start, 1)
        packet.pts = packet.dts = 0


def _cut(packet: Packet, part: Part) -> bool:
    """Shorten a subtitle to what is shown of it inside ``part``; whether anything is."""
    tick = packet.time_base
    start = max(packet.pts, round(part.shift / tick))
    end = packet.pts + packet.duration
    if part.stop is not None:
        end = min(end, round(part.stop / tick))
    if start >= end:
        return False
    packet.pts = packet.dts = start
    packet.duration = end - start
    return True
