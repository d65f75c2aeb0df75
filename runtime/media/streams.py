"""The streams of a file, and their packets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import av
import av.container

from v2v.runtime.media.clock import FilmClock, Packet
from v2v.runtime.media.formats import is_cover
from v2v.runtime.media.names import file_url
from v2v.runtime.media.pipe_in import Inflow, Source, Tap

_PYAV = int(av.__version__.split(".")[0])
_DAMAGED_PACKETS = 100  # in a row, after which the rest of a file counts as unreadable


@contextmanager
def looked_at(source: Source) -> Iterator[av.container.InputContainer]:
    """Opened for a look at its beginning; what came in by a pipe waits for others to read it."""
    if not isinstance(source, Inflow):
        with open_media(source) as opened:
            yield opened
        return
    with closing(source.open()) as tap, open_media(tap) as opened:
        yield opened


def open_media(source: Path | Tap) -> av.container.InputContainer:
    """Open for reading; a tap is not closed with the container.

    Tags need not be UTF-8: PyAV 19 keeps their bytes, before it they are replaced.
    """
    lenient: Any = {} if _PYAV >= 19 else {"metadata_errors": "replace"}
    file: Any = file_url(source) if isinstance(source, Path) else source
    opened: av.container.InputContainer = av.open(file, **lenient)
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


def describe(stream: Any) -> str:
    """What a person calls a stream: its kind, codec and language."""
    codec = getattr(stream.codec_context, "name", None) if stream.codec_context else None
    language = stream.metadata.get("language", "und").encode("utf-8", "replace").decode()
    name = stream.name if stream.type == "attachment" else None
    kind = "cover picture" if is_cover(stream) else stream.type
    return " ".join(filter(None, (kind, codec, name, language if language != "und" else None)))
