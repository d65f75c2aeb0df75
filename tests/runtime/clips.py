"""Little videos made to measure, and what is in a video, for the tests of reading and writing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from v2v.runtime.media import hdr, pixels

SECOND = Fraction(1, 600)  # a time base that holds most frame rates exactly


def picture(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A smooth picture [H, W, 3] that moves with ``number`` and is different in each corner."""
    y, x = np.mgrid[0:height, 0:width]
    red = 40 + 170 * x / width
    green = 60 + 120 * y / height
    blue = 120 + 60 * np.sin((x + 4 * number) / 9)
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def make_video(
    path: Path,
    *,
    frames: int = 12,
    size: tuple[int, int] = (64, 48),
    pictures: Sequence[np.ndarray] | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    pts: Sequence[int] | None = None,
    time_base: Fraction = SECOND,
    sounds: int = 0,
    sound: str = "aac",
    sound_rate: int = 48000,
    sound_start: int = 0,
    colors: dict[str, int] | None = None,
    aspect: Fraction | None = None,
    rotation: int = 0,
    options: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
    chapters: list[dict[str, Any]] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write a video; ``size`` is (width, height), ``pts`` are in ``time_base`` (default: 10 frames a second)."""
    if pictures is None:
        pictures = [picture(n, *size) for n in range(frames)]
    pts = pts or [n * int(Fraction(1, 10) / time_base) for n in range(len(pictures))]
    with av.open(str(path), "w", container_options=container_options or {}) as output:
        video = output.add_stream(codec, rate=Fraction(10))
        video.height, video.width = pictures[0].shape[:2]
        video.pix_fmt = pix_fmt
        video.options = {"crf": "4"} if options is None and codec == "libx264" else options or {}
        context = video.codec_context
        context.time_base = time_base
        for name, value in (colors or {}).items():
            setattr(context, name, value)
        if aspect:
            context.sample_aspect_ratio = aspect
        if rotation:
            video.set_display_rotation(rotation)  # PyAV 18
        tracks = [
            output.add_stream(sound, rate=sound_rate, layout="mono", bit_rate=64000) for _ in range(sounds)
        ]
        output.metadata.update(metadata or {})
        if chapters:
            output.set_chapters(chapters)
        for number, (pixels, when) in enumerate(zip(pictures, pts, strict=True)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if pix_fmt != "rgb24":
                matrix = {9: 9, 1: 1}.get((colors or {}).get("colorspace", 5), 5)
                frame.colorspace = matrix  # PyAV 17 takes BT.2020 from here alone
                frame = frame.reformat(
                    format=pix_fmt,
                    src_colorspace=matrix,
                    dst_colorspace=matrix,
                    interpolation=0x42004,
                    src_color_range=2,
                    dst_color_range=(colors or {}).get("color_range", 1),
                )
            frame.pts, frame.time_base = when, time_base
            output.mux(video.encode(frame))
            for index, track in enumerate(tracks):
                output.mux(track.encode(_tone(number, 4800, 440 * (index + 1), sound_start)))
        for stream in (video, *tracks):
            output.mux(stream.encode(None))
    return path


def write_planes(
    path: Path, pix_fmt: str, pictures: Sequence[Sequence[np.ndarray]], colors: dict[str, int]
) -> Path:
    """Write planar pictures of more than 8 bits, each a list of planes [h, w] uint16, without loss (FFV1)."""
    with av.open(str(path), "w") as output:
        video = output.add_stream("ffv1", rate=Fraction(10))
        video.height, video.width = pictures[0][0].shape
        video.pix_fmt = pix_fmt
        for name, value in colors.items():
            setattr(video.codec_context, name, value)
        for number, planes in enumerate(pictures):
            frame = av.VideoFrame(video.width, video.height, pix_fmt)
            for plane, values in zip(frame.planes, planes, strict=True):
                padded = np.zeros((plane.height, plane.line_size // 2), np.uint16)
                padded[:, : plane.width] = values
                plane.update(padded.tobytes())
            frame.pts = number
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
    return path


def planes_of(frame: av.VideoFrame) -> list[np.ndarray]:
    """The planes [h, w] of a planar frame of more than 8 bits."""
    return [np.frombuffer(p, np.uint16).reshape(p.height, -1)[:, : p.width] for p in frame.planes]


def make_sound(path: Path) -> Path:
    """A file with sound and no pictures."""
    with av.open(str(path), "w") as output:
        track = output.add_stream("aac", rate=48000, layout="mono")
        for number in range(5):
            output.mux(track.encode(_tone(number, 4800, 440)))
        output.mux(track.encode(None))
    return path


def _tone(number: int, samples: int, pitch: int, start: int = 0) -> av.AudioFrame:
    t = (np.arange(samples) + number * samples) / 48000
    wave = (0.3 * np.sin(2 * np.pi * pitch * t)).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = 48000, start + number * samples, Fraction(1, 48000)
    return frame


def packets(path: Path, kind: str, index: int = 0) -> list[tuple[Fraction, str]]:
    """Time in seconds and digest of every packet of the ``index``-th stream of a kind, in file order."""
    with av.open(str(path)) as source:
        stream = [s for s in source.streams if s.type == kind][index]
        return [
            ((p.pts or 0) * p.time_base, hashlib.sha256(bytes(p)).hexdigest())
            for p in source.demux(stream)
            if p.size
        ]


def times(path: Path) -> list[Fraction]:
    """When each picture is shown, in seconds, in order."""
    with av.open(str(path)) as source:
        return [frame.pts * frame.time_base for frame in source.decode(video=0)]


def pixels_of(path: Path) -> list[np.ndarray]:
    """Every picture [H, W, 3], converted by FFmpeg's own rules."""
    with av.open(str(path)) as source:
        return [frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)]


def color_tags(path: Path) -> tuple[int, int, int, int]:
    """(primaries, transfer, matrix, range) as a player sees them."""
    with av.open(str(path)) as source:
        next(source.decode(video=0))
        codec = source.streams.video[0].codec_context
        return codec.color_primaries, codec.color_trc, codec.colorspace, codec.color_range


def described(path: Path) -> list[dict[str, Any]]:
    """Every stream as ffprobe tells it: what it is, whom it is for, and of what is copied a digest of each packet."""
    with av.open(str(path)) as source:
        found = [
            {
                "kind": stream.type,
                "codec": stream.codec_context.name if stream.codec_context else None,
                "language": stream.metadata.get("language"),
                "title": stream.metadata.get("title"),
                "disposition": int(stream.disposition),
            }
            for stream in source.streams
        ]
        kinds = [stream.type for stream in source.streams]
    for number, (stream, kind) in enumerate(zip(found, kinds, strict=True)):
        if kind in ("audio", "subtitle"):
            stream["packets"] = packets(path, kind, kinds[:number].count(kind))
    found[kinds.index("video")] |= described_pictures(path)
    return found


def described_pictures(path: Path) -> dict[str, Any]:
    """The same of the pictures, which are made anew."""
    with av.open(str(path)) as source:
        stream = source.streams.video[0]
        frames = list(source.decode(stream))
        return {
            "format": stream.pix_fmt,
            "tags": color_tags(path),
            "size": (stream.width, stream.height),
            "aspect": stream.sample_aspect_ratio,
            "times": [frame.pts * frame.time_base for frame in frames],
            "interlaced": {frame.interlaced_frame for frame in frames},
            "light": hdr.static_metadata_of(pixels.side_data_of(frames[0], stream.codec_context)),
        }


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two pictures of bytes."""
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")
