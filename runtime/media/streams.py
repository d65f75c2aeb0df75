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

from v2v.runtime.media.errors import warn
from v2v.runtime.media.names import file_url
from v2v.runtime.media.time_range import SEEKABLE, Part, before, chapters_of

# What describes the file that was read, not the film in it.
_OF_THE_WHOLE = {"timecode"}  # what is not true of a part
_OF_THE_CONTAINER = {"major_brand", "minor_version", "compatible_brands", "encoder", "creation_time"}
# Statistics of the stream that was enhanced, which are no longer true.
_OF_THE_ENCODING = re.compile(r"(BPS|DURATION|NUMBER_OF_|_STATISTICS|encoder|timecode|rotate)", re.IGNORECASE)
_PYAV = int(av.__version__.split(".")[0])
Packet = Any  # of any stream: PyAV's class is generic over its kind

_DAMAGED_PACKETS = 50  # in a row, after which a copy gives up
_BACK = 30  # seconds before a part to look for subtitles that are still shown when it begins
_APART = 10  # seconds by which packets of different streams may lie apart in a file


def open_media(path: Path) -> av.container.InputContainer:
    """Open a file for reading. Tags need not be UTF-8: PyAV 19 keeps their bytes, before it they are replaced."""
    lenient: Any = {} if _PYAV >= 19 else {"metadata_errors": "replace"}
    opened: av.container.InputContainer = av.open(file_url(path), **lenient)
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


def picture_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """The stream that plays as the film: the first one that is no cover picture."""
    return next((stream for stream in container.streams.video if not is_cover(stream)), None)


def is_cover(stream: Any) -> bool:
    """Whether a video stream is a still picture attached to the file."""
    return bool(stream.disposition & type(stream.disposition).attached_pic)


def copy_tags(
    source: av.container.InputContainer, output: av.container.OutputContainer, part: Part | None = None
) -> None:
    """Copy title, artist and the like, and the chapters, cut to ``part``."""
    unwanted = _OF_THE_CONTAINER | (_OF_THE_WHOLE if part else set())
    output.metadata.update({k: v for k, v in source.metadata.items() if k not in unwanted})
    chapters: Any = source.chapters()
    if part:
        chapters = chapters_of(part, chapters)
    if chapters:
        output.set_chapters(chapters)


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
        copy_tags(self._input, output, part)
        if part and part.shift > _BACK and self._input.format.name.startswith(SEEKABLE):
            self._input.seek(math.floor((part.shift - _BACK) * av.time_base))
        self._packets = self._read()
        self._next: Packet | None = None
        self._told: set[int] = set()

    def advance(self, seconds: Fraction | None) -> None:
        """Write all packets that start no later than ``seconds``; None writes the rest."""
        while (packet := self._next or next(self._packets, None)) is not None:
            self._next = packet
            start = packet.pts if packet.dts is None else packet.dts
            if seconds is not None and start * packet.time_base > seconds:
                return
            self._next = None
            self._write(packet)

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
        streams = [s for s in self._input.streams if s.index in self._copies and s.type != "attachment"]
        if not streams:
            return
        damaged = 0
        while damaged < _DAMAGED_PACKETS:
            try:
                for packet in packets(self._input, streams):
                    if packet.size == 0:  # the mark of the end
                        continue
                    damaged = 0
                    if packet.pts is None and packet.dts is None:  # a cover picture
                        packet.pts = packet.dts = 0
                    yield packet
                return
            except av.FFmpegError:
                damaged += 1

    def _write(self, packet: Packet) -> None:
        index = packet.stream.index
        packet.stream = self._copies[index]
        try:
            self._output.mux_one(packet)
        except ValueError:  # time stamps that run backwards, which no container takes
            if index not in self._told:
                self._told.add(index)
                warn(f"{self._source}: stream {index} is damaged; what is left of it is copied")


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
