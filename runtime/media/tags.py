"""The tags of a file and its streams (title, date, place and the like), and its chapters."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import av.container

from v2v.runtime.media.clock import FilmClock
from v2v.runtime.media.time_range import Part, chapters_of

# What describes the file that was read, not the film in it; the time code is the writer's.
_OF_THE_CONTAINER = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration", "timecode"}
# What MP4's usual tags keep that a player shows; the others make no difference to it.
_SHOWN = {
    "title",
    "artist",
    "album",
    "album_artist",
    "composer",
    "date",
    "genre",
    "copyright",
    "lyrics",
    "show",
    "track",
}
# Statistics of the stream that was enhanced, which are no longer true.
_OF_THE_ENCODING = re.compile(r"(BPS|DURATION|NUMBER_OF_|_STATISTICS|encoder|timecode|rotate)", re.IGNORECASE)


def film_tags(source: av.container.InputContainer) -> dict[str, str]:
    """What a file says of the film: title, artist, when and where it was shot, with what."""
    return {k: v for k, v in source.metadata.items() if k.lower() not in _OF_THE_CONTAINER}


@dataclass(frozen=True)
class TagPlan:
    """How tags are written, and which have no place."""

    any_name: bool = False  # MP4's tags of any name, as Apple's cameras write them, instead of the usual ones
    lost: tuple[str, ...] = ()


def plan_tags(tags: dict[str, str], container_format: str, *, cover: bool) -> TagPlan:
    """Find out by trial how ``tags`` are best kept; a ``cover`` picture has a place beside the usual ones alone."""
    usual = TagPlan(False, _unwritable_tags(tags, container_format, any_name=False))
    if not usual.lost or container_format == "matroska" or cover:
        return usual
    visible = {name for name in tags if name.lower() in _SHOWN} - set(usual.lost)
    if not visible or any(name.lower().startswith("com.") for name in usual.lost):
        return TagPlan(True, _unwritable_tags(tags, container_format, any_name=True))
    return usual


def mov_flags(plan: TagPlan) -> str:
    """FFmpeg's flags for MP4 and QuickTime files."""
    return "+faststart+use_metadata_tags" if plan.any_name else "+faststart"


def _unwritable_tags(tags: dict[str, str], container_format: str, *, any_name: bool) -> tuple[str, ...]:
    """The tags that a format loses: those missing when a file that has nothing else is read again."""
    file = io.BytesIO()
    options = {"movflags": "use_metadata_tags"} if any_name else {}
    try:
        with av.open(file, "w", format=container_format, container_options=options) as output:
            pictures = output.add_stream("mpeg4", rate=25, width=16, height=16)
            output.metadata.update(tags)
            output.mux(pictures.encode(av.VideoFrame(16, 16, "yuv420p")))
        file.seek(0)
        with av.open(file, metadata_errors="replace") as reread:
            names = {name.lower() for name in reread.metadata}
    except (av.FFmpegError, ValueError):
        return ()
    return tuple(name for name in tags if name.lower() not in names)


def copy_tags(
    source: av.container.InputContainer,
    output: av.container.OutputContainer,
    clock: FilmClock,
    part: Part | None = None,
) -> None:
    """Copy title, artist and the like, and the chapters at their places in the film, cut to ``part``."""
    output.metadata.update(film_tags(source))
    source_chapters: Any = source.chapters()
    chapters: Any = [
        in_film for chapter in source_chapters if (in_film := _in_film(chapter, clock))["end"] >= 0
    ]
    if part:
        chapters = chapters_of(part, chapters)
    if chapters:
        output.set_chapters(chapters)


def _in_film(chapter: dict[str, Any], clock: FilmClock) -> dict[str, Any]:
    tick: Fraction = chapter["time_base"]
    start, end = (round(clock.seconds(chapter[edge] * tick) / tick) for edge in ("start", "end"))
    return {**chapter, "start": max(start, 0), "end": end}


def stream_tags(stream: Any, *, whole: bool) -> dict[str, str]:
    """Language, title and the like of a stream, and statistics of its packets where it is copied ``whole``."""
    return {k: v for k, v in stream.metadata.items() if whole or not _OF_THE_ENCODING.match(k)}


def copy_stream_tags(source: Any, output: Any) -> None:
    """Copy language, title and the like of the stream that was enhanced."""
    output.metadata.update(stream_tags(source, whole=False))
    output.disposition = source.disposition
