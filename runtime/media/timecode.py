"""SMPTE time code: the clock of the camera or the edit that a film's first picture shows."""

from __future__ import annotations

import io
import re
from fractions import Fraction
from typing import Any

import av
import av.container

_TIMECODE = re.compile(r"(\d\d):(\d\d):(\d\d)([:;.])(\d\d)")


def timecode_of(container: av.container.InputContainer, pictures: Any) -> str | None:
    """The time code of the first picture, wherever a file says it."""
    data = (stream.metadata for stream in container.streams if stream.type == "data")
    for tags in (pictures.metadata, container.metadata, *data):
        for name, value in tags.items():
            if name.lower() == "timecode" and _TIMECODE.fullmatch(value):
                return str(value)
    return None


def at_rate(pictures: Any, rate: Fraction) -> None:
    """Say in all places where FFmpeg looks for it how fast the pictures of an output count."""
    pictures.time_base = 1 / rate
    pictures.codec_context.framerate = rate


def has_track(container_format: str, timecode: str, rate: Fraction) -> bool:
    """Find out by trial whether a format gets a track of time code for joined pictures of a constant ``rate``."""
    plain, file = io.BytesIO(), io.BytesIO()
    try:
        with av.open(plain, "w", format=container_format) as output:
            encoder = output.add_stream("mpeg4", rate=25, width=16, height=16)
            for frame in (av.VideoFrame(16, 16, "yuv420p"), None):
                output.mux(encoder.encode(frame))
        plain.seek(0)
        with av.open(plain) as segment, av.open(file, "w", format=container_format) as output:
            pictures = output.add_stream_from_template(segment.streams.video[0], opaque=True)
            at_rate(pictures, rate)
            output.metadata["timecode"] = timecode
            for packet in segment.demux():
                if packet.size:
                    packet.stream = pictures
                    output.mux(packet)
        file.seek(0)
        with av.open(file) as reread:
            return any("timecode" in stream.metadata for stream in reread.streams)
    except (av.FFmpegError, ValueError):
        return False


def later(timecode: str, pictures: int, rate: Fraction) -> str:
    """The time code ``pictures`` later; at 30 and 60 a second numbers are dropped where the code says so (ST 12-1)."""
    match = _TIMECODE.fullmatch(timecode)
    if match is None:
        return timecode
    hours, minutes, seconds, frames = (int(match[group]) for group in (1, 2, 3, 5))
    mark, second = match[4], max(round(rate), 1)
    dropped = second // 15 if mark != ":" else 0  # numbers that each minute leaves out, but every tenth
    minutes += 60 * hours
    count = (60 * minutes + seconds) * second + frames - dropped * (minutes - minutes // 10) + pictures
    tens, remainder = divmod(count, 600 * second - 9 * dropped)
    count += 9 * dropped * tens
    if remainder >= 60 * second:
        count += dropped * (1 + (remainder - 60 * second) // (60 * second - dropped))
    seconds, frames = divmod(count, second)
    return f"{seconds // 3600 % 24:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{mark}{frames:02d}"
