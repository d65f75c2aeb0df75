"""Everything of a video but its pictures, copied as it is: sound, subtitles, attachments, chapters, tags."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container

from v2v.runtime.media.clock import FilmClock, Packet
from v2v.runtime.media.errors import warn
from v2v.runtime.media.formats import takes_equal_times
from v2v.runtime.media.names import file_url
from v2v.runtime.media.time_range import SEEKABLE, Part, before, chapters_of

# What describes the file that was read, not the film in it.
_OF_THE_WHOLE = {"timecode"}  # what is not true of a part
_OF_THE_CONTAINER = {"major_brand", "minor_version", "compatible_brands", "encoder", "creation_time"}
# Statistics of the stream that was enhanced, which are no longer true.
_OF_THE_ENCODING = re.compile(r"(BPS|DURATION|NUMBER_OF_|_STATISTICS|encoder|timecode|rotate)", re.IGNORECASE)
_PYAV = int(av.__version__.split(".")[0])

_DAMAGED_PACKETS = 100  # in a row, after which the rest of a file counts as unreadable
_LEAD_IN = Fraction(1, 10)  # seconds of sound that decoders take to begin
_NOTICED = Fraction(1, 100)  # seconds
_BACK = 30  # seconds before a part to look for subtitles that are still shown when it begins
_APART = 10  # seconds by which packets of different streams may lie apart in a file


def open_media(path: Path) -> av.container.InputContainer:
    """Open a file for reading. Tags need not be UTF-8: PyAV 19 keeps their bytes, before it they are replaced."""
    lenient: Any = {} if _PYAV >= 19 else {"metadata_errors": "replace"}
    opened: av.container.InputContainer = av.open(file_url(path), **lenient)
    # PyAV asks FFmpeg to make up stamps that are missing, which it gets wrong for H.264 with B-frames in AVI.
    make_up: Any = av.container.Flags.gen_pts.value
    opened.flags &= ~make_up
    return opened


def packets(
    container: av.container.InputContainer, streams: Any, appeared: Callable[[], None] = lambda: None
) -> Iterator[Packet]:
    """The packets of ``streams``, one or several, and then the empty ones that mark their end.

    A stream may appear while a file is read, as in a recording whose sound begins in the middle. PyAV (18, 19) does not
    give it out, and may stumble over it when it marks the end, which it has told of all ``streams`` by then; if so,
    ``appeared`` is called.
    """
    try:
        yield from container.demux(streams)
    except IndexError:
        appeared()


def all_packets(
    container: av.container.InputContainer,
    clock: FilmClock,
    damaged: Callable[[], None] = lambda: None,
    appeared: Callable[[], None] = lambda: None,
) -> Iterator[Packet]:
    """The packets of all streams under the film's time stamps; the demuxer goes on behind what it cannot read.

    Whoever reads a file so, however often, gets the same stamps. ``damaged`` is called for each error.
    """

    def read() -> Iterator[Packet]:
        in_a_row = 0
        while in_a_row < _DAMAGED_PACKETS:
            try:
                for packet in packets(container, list(container.streams), appeared):
                    in_a_row = 0
                    yield packet
                return
            except av.FFmpegError:
                damaged()
                in_a_row += 1

    return clock.film(read())


def picture_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """The stream that plays as the film: the first one that is no cover picture."""
    return next((stream for stream in container.streams.video if not is_cover(stream)), None)


def is_cover(stream: Any) -> bool:
    """Whether a video stream is a still picture attached to the file."""
    return bool(stream.disposition & type(stream.disposition).attached_pic)


def copy_tags(
    source: av.container.InputContainer,
    output: av.container.OutputContainer,
    clock: FilmClock,
    part: Part | None = None,
) -> None:
    """Copy title, artist and the like, and the chapters at their places in the film, cut to ``part``."""
    unwanted = _OF_THE_CONTAINER | (_OF_THE_WHOLE if part else set())
    output.metadata.update({k: v for k, v in source.metadata.items() if k not in unwanted})
    told: Any = source.chapters()
    chapters: Any = [
        {**chapter, **{edge: _in_film(chapter, edge, clock) for edge in ("start", "end")}} for chapter in told
    ]
    chapters = [chapter for chapter in chapters if chapter["end"] > chapter["start"]]
    if part:
        chapters = chapters_of(part, chapters)
    if chapters:
        output.set_chapters(chapters)


def _in_film(chapter: dict[str, Any], edge: str, clock: FilmClock) -> int:
    tick: Fraction = chapter["time_base"]
    return max(round(clock.seconds(chapter[edge] * tick) / tick), 0)


def copy_stream_tags(source: Any, output: Any) -> None:
    """Copy language, title and the like of the stream that was enhanced."""
    output.metadata.update({k: v for k, v in source.metadata.items() if not _OF_THE_ENCODING.match(k)})
    output.disposition = source.disposition


class StreamCopier:
    """Copies every stream but one, packet by packet, in step with the pictures that are written.

    It reads the input a second time, so that nothing is collected in memory however far pictures lag behind.
    A stream that the output's container cannot hold is left out with a :class:`MediaWarning`.

    Of a ``part`` the packets that begin inside are copied, so sound is cut to its packets (about 20 ms), a second
    video begins at a key picture, and a subtitle that is on the screen when the part begins is shown from 0.
    """

    def __init__(
        self,
        source: Path,
        skip: int,
        output: av.container.OutputContainer,
        target: Path,
        part: Part | None = None,
    ) -> None:
        self._output, self._source, self._part = output, source, part
        self._input = open_media(source)
        self._clock = FilmClock.of(self._input)
        self._copies: dict[int, Any] = {}
        for stream in self._input.streams:
            if stream.index == skip:
                continue
            if not _fits(stream, output.format.name):
                warn(
                    f"{target}: its format cannot hold stream {stream.index} of {source.name} "
                    f"({_describe(stream)}); it is left out. Matroska (.mkv) holds nearly everything"
                )
                continue
            self._copies[stream.index] = _add_copy(output, stream, whole=part is None)
        copy_tags(self._input, output, self._clock, part)
        if part and part.shift > _BACK and self._input.format.name.startswith(SEEKABLE):
            place = part.shift - _BACK + (self._clock.zero or 0)
            self._input.seek(math.floor(place * av.time_base))
            self._clock.moved()
        self._packets = self._read()
        self._next: Packet | None = None
        self._order = {index: _InOrder(output) for index in self._copies}
        self._lost: dict[int, tuple[int, str]] = {}  # packets that could not be written, and why

    def advance(self, seconds: Fraction | None) -> None:
        """Write all packets that start no later than ``seconds``; None writes the rest."""
        while (packet := self._next or next(self._packets, None)) is not None:
            self._next = packet
            start = packet.pts if packet.dts is None else packet.dts
            if seconds is not None and start * packet.time_base > seconds:
                return
            self._next = None
            self._write(packet)

    def tell_losses(self) -> None:
        """Tell of packets that were moved or lost, once all is written."""
        for index, order in self._order.items():
            if order.moved:
                warn(
                    f"{self._source}: {order.moved} packets of stream {index} have time stamps that run backwards; "
                    "they are moved to where the one before ends"
                )
        for index, (count, reason) in self._lost.items():
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
        begun: set[int] = set()  # second videos that have had a key picture
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
                if stream.index not in begun and not packet.is_keyframe:
                    continue
                begun.add(stream.index)
            shift = round(part.shift / tick)
            packet.pts = None if packet.pts is None else packet.pts - shift
            packet.dts = None if packet.dts is None else packet.dts - shift
            yield packet

    def _read_all(self) -> Iterator[Packet]:
        if all(stream.type == "attachment" for stream in self._copies.values()):
            return
        begun: set[int] = set()  # streams of which something is shown
        for packet in all_packets(self._input, self._clock):
            if not packet.size or packet.stream.index not in self._copies:
                continue
            stream = packet.stream
            if is_cover(stream):
                packet.pts = packet.dts = 0
            elif stream.type in ("audio", "video"):
                if packet.is_discard and self._is_cut_away(packet):
                    continue
                if stream.type == "video" and stream.index not in begun and not packet.is_keyframe:
                    continue
            else:
                _begin_at_zero(packet)
            begun.add(stream.index)
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
        packet.stream = self._copies[index]
        self._output.start_encoding()  # from here on the time base of the copy is known
        self._order[index](packet)
        try:
            self._output.mux_one(packet)
        except ValueError as error:
            count, _ = self._lost.get(index, (0, ""))
            self._lost[index] = (count + 1, getattr(error, "strerror", None) or str(error))


class _InOrder:
    """Puts a stream's packets into the time base of their copy, where decoding times only grow, as muxers need them.

    Where formats allow for it, they may stay the same.
    """

    def __init__(self, output: av.container.OutputContainer) -> None:
        self._step = 0 if takes_equal_times(output) else 1
        self._last: int | None = None
        self.moved = 0
        """Packets so far that were moved by a time one could notice."""

    def __call__(self, packet: Packet) -> None:
        tick = packet.stream.time_base
        ratio = Fraction(packet.time_base) / tick
        pts, dts = (None if time is None else round(time * ratio) for time in (packet.pts, packet.dts))
        if dts is None:
            dts = pts or 0
        if self._last is not None and dts < self._last + self._step:
            moved = self._last + self._step
            self.moved += (moved - dts) * tick > _NOTICED
            dts = moved
        self._last = dts
        packet.dts, packet.pts = dts, dts if pts is None else max(pts, dts)
        packet.duration = round((packet.duration or 0) * ratio)
        packet.time_base = tick


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


def _add_copy(output: av.container.OutputContainer, stream: Any, *, whole: bool = True) -> Any:
    if stream.type == "attachment":
        return output.add_attachment(stream.name or "attachment", stream.mimetype or "", stream.data)
    copy = output.add_stream_from_template(stream, opaque=True)
    kept = {k: v for k, v in stream.metadata.items() if whole or not _OF_THE_ENCODING.match(k)}
    copy.metadata.update(kept)
    copy.disposition = stream.disposition
    return copy


def _fits(stream: Any, container_format: str) -> bool:
    """Try it out: open an output with this stream alone and write its header."""
    try:
        with av.open(io.BytesIO(), "w", format=container_format) as trial:
            if stream.type == "attachment":  # needs some stream beside it, and a format that has attachments
                return "matroska" in container_format
            _add_copy(trial, stream)
            trial.start_encoding()
    except (av.FFmpegError, ValueError, TypeError, AttributeError):
        return False
    return True


def _describe(stream: Any) -> str:
    codec = getattr(stream.codec_context, "name", None) if stream.codec_context else None
    language = stream.metadata.get("language", "und").encode("utf-8", "replace").decode()
    return " ".join(filter(None, (stream.type, codec, language if language != "und" else None)))
