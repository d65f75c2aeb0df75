"""Finished segments -> a pipe, each as soon as it is there: as Matroska, or as uncompressed pictures.

What is written cannot be mended: there is no index, and no word of how long the film is.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Protocol

from v2v.runtime.media.encoding import EncodedSegment, Encoding
from v2v.runtime.media.errors import warn
from v2v.runtime.media.formats import Y4M_ENDING
from v2v.runtime.media.muxing import Muxer, writing
from v2v.runtime.media.pipe_in import Inflow
from v2v.runtime.media.reader import VideoReader
from v2v.runtime.media.stream_plan import StreamPlan
from v2v.runtime.media.streams import open_media
from v2v.runtime.media.timestamps import Timestamp

# The muxer keeps back no more than it must: small clusters, and no waiting for streams that are silent.
_AT_ONCE = {"cluster_time_limit": "0", "flush_packets": "1", "max_interleave_delta": "1"}


class Sink(Protocol):
    """What can be written into, and not gone back in."""

    def write(self, data: bytes, /) -> int:
        """Write all of it; returns its length."""


class PipeWriter(Protocol):
    """Writes segments into a pipe; a context manager, which writes the end unless it is left by an exception."""

    def __enter__(self) -> PipeWriter: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def add(self, segment: EncodedSegment, stamps: Sequence[Timestamp]) -> None:
        """Write the next segment; ``stamps`` are those of its pictures.

        Raises:
            BrokenPipeError: nobody reads any more.
            V2VError: it cannot be written.
        """


def piped_name(codec: str) -> Path:
    """What the output is called in messages; its ending is that of its format."""
    return Path(f"stdout{Y4M_ENDING if codec == 'y4m' else '.mkv'}")


def pipe_writer(
    sink: Sink, source: VideoReader, encoding: Encoding, note: str, streams: StreamPlan, *, parity: bool
) -> PipeWriter:
    """The writer that ``encoding`` asks for; ``note`` and ``streams`` go where the format has a place for them.

    From here on what comes in by a pipe is read once: nobody can open ``source`` anew.
    """
    if encoding.codec == "y4m":
        writer: PipeWriter = _Y4m(sink, encoding)
    else:
        writer = _Matroska(sink, source, encoding, note, streams, parity=parity)
    if isinstance(source.source, Inflow):
        source.source.seal()
    return writer


class _Matroska(Muxer):
    """With the source's other streams, as far as they have come.

    The muxer keeps the last few packets of a segment back: a cluster is written when a picture comes that is shown
    after its first one, and a packet when the next one of its stream has come.
    """

    def __init__(
        self,
        sink: Sink,
        source: VideoReader,
        encoding: Encoding,
        note: str,
        streams: StreamPlan,
        *,
        parity: bool,
    ) -> None:
        path = piped_name(encoding.codec)
        super().__init__(path, source, encoding, parity=parity, note=note, streams=streams)
        inflow = source.source
        self._tap = inflow.open() if isinstance(inflow, Inflow) and not parity else None
        if self._tap is not None:
            self._copied_from = open_media(self._tap)
            if not streams.have_packets:  # it is there for the film's tags
                self._tap.close()
        with writing(self.path):
            self._open_output(sink, dict(_AT_ONCE))

    def __enter__(self) -> _Matroska:
        return self

    def _discard(self) -> None:
        super()._discard()
        if self._tap is not None:
            self._tap.close()

    def add(self, segment: EncodedSegment, stamps: Sequence[Timestamp]) -> None:
        """Write the next segment."""
        with writing(self.path):
            self._plan_decoding(segment.delay, stamps)
            self._add(segment, stamps)


class _Y4m:
    """YUV4MPEG2: a line that says what the pictures are, and the pictures, at one frame rate."""

    def __init__(self, sink: Sink, encoding: Encoding) -> None:
        self._sink, self._encoding = sink, encoding
        self._before: Timestamp | None = None
        self._begun = self._told = False

    def __enter__(self) -> _Y4m:
        return self

    def __exit__(self, *_: object) -> None:
        """There is no end to write."""

    def add(self, segment: EncodedSegment, stamps: Sequence[Timestamp]) -> None:
        """Write the next segment, which is y4m itself: its pictures without its first line."""
        assert isinstance(segment.file, bytes)
        line_end = segment.file.index(b"\n") + 1
        if not self._begun:
            self._begun = True
            with segment.open() as container:
                pictures = container.streams.video[0]
                self._sink.write(self._first_line(pictures.height, pictures.width))
        if not self._encoding.parity:
            self._tell_rate(stamps)
        self._sink.write(segment.file[line_end:])

    def _first_line(self, height: int, width: int) -> bytes:
        """Written here, for FFmpeg leaves out the shape of pixels and the place of their chroma."""
        rate, aspect = self._encoding.rate, Fraction(self._encoding.aspect)
        chroma = "420p10" if self._encoding.pixel_format == "yuv420p10le" else "420mpeg2"
        fields = (
            f"YUV4MPEG2 W{width} H{height} F{rate.numerator}:{rate.denominator} Ip",
            f"A{aspect.numerator}:{aspect.denominator} C{chroma} XYSCSS={chroma.upper()}",
            f"XCOLORRANGE={'FULL' if self._encoding.colors.full_range else 'LIMITED'}\n",
        )
        return " ".join(fields).encode()

    def _tell_rate(self, stamps: Sequence[Timestamp]) -> None:
        """Tell, once, of pictures that do not follow each other at the frame rate."""
        step = 1 / (self._encoding.rate * self._encoding.time_base)
        for stamp in stamps:
            before, self._before = self._before, stamp
            if before is not None and abs(stamp.start - before.start - step) > 1 and not self._told:
                self._told = True
                warn(
                    f"the film has no constant frame rate, and y4m no times: its frames are shown at "
                    f"{float(self._encoding.rate):g} a second; without --codec y4m they keep their times"
                )
