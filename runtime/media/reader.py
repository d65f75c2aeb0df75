"""Video in, video out: pictures as RGB levels, everything else of the file carried over.

    with VideoReader(Path("in.mp4")) as source, VideoWriter(Path("out.mp4"), source) as sink:
        for frame in enhance(source.frames()):
            sink.write(frame)

Frame for frame: the n-th picture written takes the time stamp of the n-th picture read.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import av
import av.container

from v2v.core.abort import removed_on_abort
from v2v.device import Frame
from v2v.engine.backend import V2VError
from v2v.engine.store import sync
from v2v.runtime.media import hdr, pixels
from v2v.runtime.media import image_sequence as folders
from v2v.runtime.media.deinterlacing import Deinterlacer
from v2v.runtime.media.encoding import CODECS, EncodedSegment, Encoding
from v2v.runtime.media.pixels import Colors
from v2v.runtime.media.shots import ShotDetector
from v2v.runtime.media.streams import (
    StreamCopier,
    copy_stream_tags,
    open_media,
    packets,
    picture_stream,
    warn,
)
from v2v.runtime.media.time_range import NOT_GIVEN, SEEKABLE, WHOLE, Part, TimeRange, before
from v2v.runtime.media.time_range import clock as clock_text

PARITY_RATE = Fraction(8)
_DAMAGED_PACKETS = 100  # in a row, after which the rest of a file counts as unreadable
_SUSPICIOUS_FORMATS = {"tty"}  # FFmpeg draws any text file as a film of a terminal


class MediaError(V2VError):
    """A video cannot be read or written; the message names the file, the cause and the way out."""


class Timestamp(NamedTuple):
    """When a picture is shown, in units of the source's time base."""

    start: int
    duration: int  # 0 where unknown


class Timestamps(Sequence[Timestamp]):
    """Those of a whole film, 16 bytes a picture."""

    def __init__(self) -> None:
        self._starts, self._durations = array("q"), array("q")

    def append(self, stamp: Timestamp) -> None:
        """Add the next picture's."""
        self._starts.append(stamp.start)
        self._durations.append(stamp.duration)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, place: Any) -> Any:
        return Timestamp(self._starts[place], self._durations[place])


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video before it has been read."""

    path: Path
    height: int  # upright, in pixels
    width: int
    frames: int | None  # as announced by the file
    frame_rate: Fraction  # average
    time_base: Fraction
    sample_aspect_ratio: Fraction  # upright
    colors: Colors
    depth: int  # bits per component
    stream_index: int
    light: hdr.StaticMetadata = hdr.UNSTATED
    profile: bytes | None = None  # ICC


class VideoReader:
    """Decodes a video's pictures to upright RGB levels, one at a time: uint8, or uint16 if the source has more bits.

    ``parity`` reads colours as the reference does: as BT.601, whatever the tags say, and as bytes. Interlaced
    pictures are made whole frames, except with ``parity`` or without ``deinterlace``. Damage in the middle costs
    only the pictures it hit; how many were read is told as a :class:`~v2v.runtime.media.streams.MediaWarning` at the
    end.

    With a ``wanted`` range only its pictures are given out, the first of them at time 0. Files with an index are
    entered at the last key picture before it, others are decoded from their beginning.

    Raises:
        MediaError: no such file, not a video, no video stream, no picture that can be decoded, or none in the
            range.
    """

    def __init__(
        self,
        path: Path,
        *,
        parity: bool = False,
        find_cuts: bool = False,
        rate: Fraction | None = None,
        wanted: TimeRange = WHOLE,
        deinterlace: bool = True,
    ) -> None:
        self.path, self.wanted = path, wanted
        self.deinterlace = deinterlace and not parity
        self.find_cuts = find_cuts
        self.cuts: set[int] = set()
        """Numbers of the pictures that start a shot, of those given out, if asked to ``find_cuts``."""
        self.timestamps: deque[Timestamp] = deque()
        """Of pictures given out by :meth:`frames` and not yet written."""
        self._damaged = 0
        self._told_interlaced = False
        self._opened = contextlib.ExitStack()
        self._container = _open(path, rate, self._opened)
        try:
            self._stream = self._find_stream()
            self._stream.thread_type = "AUTO"
            self._decoded = self._decode()
            self.part: Part | None = None
            """What of the file is given out; None for all of it."""
            self.first_number = 0
            """The film's number of the first picture given out, which its noise is drawn for.

            In a range it is told from the picture's time and the frame rate: exact where the rate is constant.
            """
            self._first = self._decode_first()
            if not wanted.whole:
                self._first, self.first_number = self._enter(wanted, self._first)
            self.info, self._to_rgb = self._describe(self._first, parity)
        except BaseException:
            self._opened.close()
            raise

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def frames(self) -> Iterator[Frame]:
        """Every picture in order, ``[H, W, 3]``, once; its time stamp goes to :attr:`timestamps`."""
        frame: av.VideoFrame | None = self._first
        self._tell_losses(self._first)
        clock = _Clock(self.info.frame_rate, self.info.time_base)
        shift = round(self.part.shift / self.info.time_base) if self.part else 0
        starts_shot = ShotDetector() if self.find_cuts else None
        while frame is not None:
            stamp = clock.stamp(frame)
            if self.part and self.part.ended(stamp.start * self.info.time_base):
                break
            if starts_shot and starts_shot(frame):
                self.cuts.add(clock.count - 1)
            self.timestamps.append(stamp._replace(start=stamp.start - shift))
            yield self._to_rgb(frame)
            frame = next(self._decoded, None)
        self._tell_damage(clock)

    def _enter(self, wanted: TimeRange, first: av.VideoFrame) -> tuple[av.VideoFrame, int]:
        """Go to the first picture of a range in the film that begins with ``first``; returns it and its number."""
        tick = self._stream.time_base or Fraction(1, av.time_base)
        beginning = (first.pts or 0) * tick
        # A file's clock may start above zero, as a recording's does; players count from there.
        told = self._container.start_time
        zero = beginning if told is None else max(Fraction(told, av.time_base), Fraction(0))
        length = self._length(zero)
        start, stop = wanted.within(length)
        part = Part(zero + start, None if stop is None else zero + stop)
        frame: av.VideoFrame | None = first
        if before(beginning, part.start) and self._container.format.name.startswith(SEEKABLE):
            frame = next(self._decoded, None) if self._seek(part.start) else None
            if frame is None or frame.pts is None or before(part.start, frame.pts * tick):
                self._seek(beginning)  # the index leads behind the start: read all instead
                frame = next(self._decoded, None)
        stamps = _Clock(self._frame_rate(), tick)
        time = Fraction(0)
        while frame is not None and before(time := stamps.stamp(frame).start * tick, part.start):
            frame = next(self._decoded, None)
        if frame is None or part.ended(time):
            ends = "" if length is None else f"; the video is {clock_text(length)} long"
            flags = " ".join(
                f"{name} {value}" for name, value in wanted.facts().items() if value != NOT_GIVEN
            )
            raise MediaError(f"{self.path}: no picture begins within {flags}{ends}")
        if wanted.end is not None and length is not None and wanted.end > length + 1:
            warn(f"{self.path} ends at {clock_text(length)}, before --end {clock_text(wanted.end)}")
        self.part = part.beginning_at(time if start else Fraction(0))
        return frame, max(round((time - beginning) * self._frame_rate()), 0)

    def _seek(self, time: Fraction) -> bool:
        """Go on decoding at the last key picture at or before ``time``; whether that was possible."""
        tick = self._stream.time_base or Fraction(1, av.time_base)
        try:
            self._container.seek(math.floor(time / tick), stream=self._stream)
        except av.FFmpegError:
            return False
        self._decoded = self._decode()
        return True

    def _length(self, zero: Fraction) -> Fraction | None:
        """Seconds from the film's beginning to its end, as far as the file tells."""
        if (end := self._stated_end()) is not None:
            return end - zero
        return Fraction(self._container.duration, av.time_base) if self._container.duration else None

    def _find_stream(self) -> av.VideoStream:
        stream = picture_stream(self._container)
        if stream is None:
            kinds = " and ".join(sorted({str(s.type) for s in self._container.streams})) or "nothing"
            raise MediaError(
                f"{self.path} has no video stream, only {kinds}; give a file with moving pictures"
            )
        return stream

    def _tell_losses(self, frame: av.VideoFrame) -> None:
        """Tell what pictures say that the result cannot."""
        if pixels.has_alpha(frame):
            warn(f"{self.path}: transparency cannot be kept; it is shown on black")
        elif ("alpha_mode", "1") in {(name.lower(), value) for name, value in self._stream.metadata.items()}:
            # VP8 and VP9 keep it beside the pictures
            warn(f"{self.path}: transparency cannot be kept; what it hides is shown")
        if dynamic := hdr.dynamic_metadata_of(self._side_data):
            warn(
                f"{self.path}: its {' and '.join(dynamic)} metadata describes each picture as it was and is left "
                "out; the result is shown as plain HDR, by its colour tags"
            )
        if "A53_CC" in self._side_data:
            warn(
                f"{self.path}: its closed captions (CEA-608/708) lie inside its pictures and are left out; "
                "FFmpeg or ccextractor make subtitles of them"
            )

    def _decode(self) -> Iterator[av.VideoFrame]:
        """Decode what can be decoded, each picture a whole frame."""
        decoded = self._decode_packets()
        return Deinterlacer(self._tell_interlaced)(decoded) if self.deinterlace else decoded

    def _tell_interlaced(self) -> None:
        if not self._told_interlaced:
            self._told_interlaced = True
            warn(
                f"{self.path} is interlaced; its fields are made whole frames. --no-deinterlace leaves them woven"
            )

    def _tell_late_stream(self) -> None:
        warn(f"{self.path} has a stream that begins only in the middle of the file; it is left out")

    def _decode_packets(self) -> Iterator[av.VideoFrame]:
        """A damaged packet costs no more than itself."""
        in_a_row = 0
        while in_a_row < _DAMAGED_PACKETS:
            try:
                for packet in packets(self._container, self._stream, self._tell_late_stream):
                    try:
                        decoded = packet.decode()
                    except (av.FFmpegError, ValueError):  # the latter where damage made the codec unknown
                        self._damaged += 1
                        continue
                    in_a_row = 0
                    yield from decoded
                return
            except av.FFmpegError:  # the demuxer stumbled; it goes on behind what it could not read
                self._damaged += 1
                in_a_row += 1

    def _decode_first(self) -> av.VideoFrame:
        frame = next(self._decoded, None)
        if frame is None:
            cause = "its pictures are damaged" if self._damaged else "it holds none"
            raise MediaError(f"{self.path}: no picture could be read, {cause}; check that the file plays")
        if not frame.width or not frame.height:
            raise MediaError(f"{self.path}: its pictures have no size ({frame.width}x{frame.height})")
        return frame

    def _describe(self, first: av.VideoFrame, parity: bool) -> tuple[VideoInfo, pixels.ToRGB]:
        stream, codec = self._stream, self._stream.codec_context
        side_data = self._side_data = pixels.side_data_of(first, codec)
        orientation = pixels.orientation_of(first, side_data.get("DISPLAYMATRIX"))
        if parity:
            colors = pixels.reference_colors(first)
        else:
            colors = pixels.colors_of(first, codec).resolved(first.width, first.height)
        deep = pixels.depth_of(first) > 8 and not parity
        try:
            to_rgb = pixels.ToRGB(colors, orientation, (first.height, first.width), deep=deep, fast=parity)
        except V2VError as error:
            raise MediaError(f"{self.path}: {error}") from None
        aspect = stream.sample_aspect_ratio or codec.sample_aspect_ratio or Fraction(1)
        height, width = first.height, first.width
        if orientation.transpose:
            height, width, aspect = width, height, 1 / aspect
        rate = self._frame_rate()
        info = VideoInfo(
            path=self.path,
            height=height,
            width=width,
            frames=self._announced(rate),
            frame_rate=rate,
            time_base=stream.time_base or 1 / rate,
            sample_aspect_ratio=Fraction(aspect),
            colors=colors,
            depth=pixels.depth_of(first),
            stream_index=stream.index,
            light=hdr.static_metadata_of(side_data),
            profile=side_data.get("ICC_PROFILE")
            or (folders.profile_in(self.path) if self.path.is_dir() else None),
        )
        return info, to_rgb

    def _frame_rate(self) -> Fraction:
        return Fraction(self._stream.average_rate or self._stream.guessed_rate or 25)

    def _announced(self, rate: Fraction) -> int | None:
        whole = Fraction(self._container.duration or 0, av.time_base)
        start = (self._stream.start_time or 0) * (self._stream.time_base or 0)
        end = self._stated_end() or whole
        if self.part is None:
            return self._stream.frames or round((end - start) * rate) or None
        ends = [time for time in (self.part.stop, end) if time]
        return max(round((min(ends) - self.part.shift) * rate), 1) if ends else None

    def _stated_end(self) -> Fraction | None:
        """When the last picture ends, in seconds, if the file says that of the stream itself."""
        stream = self._stream
        if stream.duration and stream.time_base:
            return ((stream.start_time or 0) + stream.duration) * stream.time_base
        if tag := stream.metadata.get("DURATION"):  # Matroska's writers note the end in a tag
            with contextlib.suppress(ValueError):
                hours, minutes, seconds = tag.split(":")
                return (int(hours) * 60 + int(minutes)) * 60 + Fraction(seconds)
        return None

    def _tell_damage(self, clock: _Clock) -> None:
        if self.part is not None:
            if self._damaged:
                warn(f"{self.path} is damaged: {clock.count} frames of the range could be read and are used")
            return
        stated, expected = self._stated_end(), self.info.frames or 0
        missing = expected - clock.count
        cut_short = stated is not None and stated - clock.end > 2 * clock.longest and missing > 0
        read = (
            f"{clock.count}{f' of about {expected}' if missing > 0 else ''} frames could be read and are used"
        )
        if self._damaged or cut_short:
            warn(f"{self.path} is damaged or cut short: {read}")
        elif clock.regular and missing > 1:  # some demuxers skip what they cannot read without a word
            warn(f"{self.path} may be damaged: {read}")


class VideoWriter:
    """Encodes enhanced pictures, with the source's other streams, into a file that appears when finished.

    Until then the work lies in a hidden temporary file in the same folder, which is removed when the ``with``
    block is left by an exception. Time stamps are the source's; its other streams are copied packet for packet.
    ``parity`` writes as the reference does: 8 frames per second, no sound, no colour tags, crf 17.

    Args:
        path: where to write; the ending picks the format.
        source: where the pictures come from.
        overwrite: whether an existing file may be replaced.
        note: settings of the run, kept in the file's comment.
        partial: where to write until it is finished, on the same disk, instead of a file beside ``path``.
        complete: called when all is on the disk, before the file gets its name.
        encoding: codec and quality; H.264 at crf 17 where None.

    Raises:
        MediaError: the output exists, cannot be written or has an unknown ending; the disk is full.
    """

    def __init__(
        self,
        path: Path,
        source: VideoReader,
        *,
        overwrite: bool = False,
        note: str = "",
        encoding: Encoding | None = None,
        parity: bool = False,
        partial: Path | None = None,
        complete: Callable[[], None] = lambda: None,
    ) -> None:
        self._complete = complete
        self.path, self.source, self.overwrite, self.note, self.parity = path, source, overwrite, note, parity
        self.encoding = encoding or encoding_for(source.info, parity=parity)
        self._format = _format_for(path)
        check_output(path, source.path, overwrite=overwrite)
        self._partial = partial or _create_beside(path)
        self._cleanup = contextlib.ExitStack()
        self._cleanup.callback(self._partial.unlink, missing_ok=True)
        self._cleanup.enter_context(removed_on_abort(self._partial))
        self._output: Any = None
        self._encoder: Any = None
        self._copier: StreamCopier | None = None
        self._written = 0
        try:
            options = {"movflags": "+faststart"} if self._format in ("mp4", "mov") else {}
            # bitexact leaves out what differs from run to run, such as Matroska's random identifiers
            self._output = av.open(
                str(self._partial),
                "w",
                format=self._format,
                container_options={"fflags": "+bitexact", **options},
            )
        except BaseException:
            self._cleanup.close()
            raise

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._discard()

    def write(self, frame: Frame) -> None:
        """Encode the next picture, ``[H, W, 3]``; the first one decides the size.

        Raises:
            MediaError: the disk is full or fails.
        """
        with writing(self.path):
            if self._encoder is None:
                self._begin(*frame.shape[:2])
            stamp = self.source.timestamps.popleft()
            encoder, info = self._encoder, self.source.info
            picture = self.encoding.picture(frame, encoder)
            if self.parity:
                picture.pts, picture.time_base = self._written, 1 / PARITY_RATE
            else:
                picture.pts, picture.time_base = stamp.start, info.time_base
                picture.duration = stamp.duration
            if self._copier:
                self._copier.advance(stamp.start * info.time_base)
            self._output.mux(encoder.encode(picture))
            self._written += 1

    def _begin(self, height: int, width: int) -> None:
        """Open the encoder and declare every stream, before the first packet is written."""
        self.encoding.check(self.path, height, width)
        self._encoder = self.encoding.add_stream(self._output, height, width)
        self._declare_others(self._encoder)

    def _declare_others(self, pictures: Any) -> None:
        """Declare all that comes along with the stream of pictures."""
        if self.encoding.codec.startswith("hevc") and self._format in ("mp4", "mov"):
            pictures.codec_context.codec_tag = "hvc1"  # Apple's players know HEVC by this name alone
        carries_aspect = self._format != "matroska" or self.encoding.codec.startswith(("h264", "hevc"))
        if not self.parity and self.encoding.aspect != 1 and not carries_aspect:
            warn(
                f"{self.path}: its pixels are {self.encoding.aspect} as wide as high, which codec "
                f"{self.encoding.codec} cannot say in Matroska; take another codec, or .mp4 or .mov where it goes"
            )
        if not self.parity:
            copy_stream_tags(self.source._stream, pictures)
            skip = self.source.info.stream_index
            if not self.source.path.is_dir():
                self._copier = StreamCopier(self.source.path, skip, self._output, self.path, self.source.part)
        _add_note(self._output.metadata, self.note)

    def join(self, segments: Sequence[EncodedSegment], stamps: Sequence[Timestamp]) -> None:
        """Write segments that were encoded on their own, one behind the other, under ``stamps`` of all pictures.

        Pictures are shown at their stamps; decoding times follow from them, so that they rise across segments too.

        Raises:
            MediaError: the disk is full or fails.
        """
        tick = 1 / PARITY_RATE if self.parity else self.source.info.time_base
        if self.parity:
            stamps = [Timestamp(n, 1) for n in range(len(stamps))]
        delay = max(segment.delay for segment in segments)
        step = stamps[1].start - stamps[0].start if len(stamps) > 1 else max(stamps[0].duration, 1)
        stream: Any = None
        first = written = 0
        with writing(self.path):
            for segment in segments:
                with segment.open() as container:
                    if stream is None:
                        template = container.streams.video[0]
                        stream = self._output.add_stream_from_template(template, opaque=True)
                        stream.time_base = tick
                        if not self.parity:  # a segment's file may hold it where the codec does not
                            stream.codec_context.sample_aspect_ratio = self.encoding.aspect
                        self._declare_others(stream)
                    for packet, picture in zip(segment.packets(container), segment.order, strict=True):
                        stamp = stamps[first + picture]
                        ahead = written - delay
                        packet.time_base, packet.pts = tick, stamp.start
                        packet.dts = stamps[ahead].start if ahead >= 0 else stamps[0].start + ahead * step
                        packet.duration = stamp.duration
                        packet.stream = stream
                        if self._copier:
                            self._copier.advance(packet.dts * tick)
                        self._output.mux_one(packet)
                        written += 1
                first += len(segment.order)
            self._written = written

    def _finish(self) -> None:
        with writing(self.path):
            if not self._written:
                raise MediaError(f"{self.path}: there was nothing to write")
            if self._encoder is not None:
                self._output.mux(self._encoder.encode(None))
            if self._copier:
                self._copier.advance(None)
            self._output.close()
            sync(self._partial)
            self._publish()

    def _publish(self) -> None:
        """Give the finished file its name, in one step."""
        self._partial.chmod(0o666 & ~_umask())
        self._complete()
        if self.overwrite:
            self._partial.replace(self.path)
            sync(self.path.parent)
            return
        target, number = self.path, 1
        while True:  # a file that appeared meanwhile is not replaced, and finished work is not thrown away
            try:
                os.link(self._partial, target)
                break
            except FileExistsError:
                target = self.path.with_stem(f"{self.path.stem}-{number}")
                number += 1
            except OSError:  # a file system without hard links
                if target.exists():
                    continue
                self._partial.rename(target)
                break
        sync(self.path.parent)
        if target != self.path:
            warn(f"{self.path} has appeared meanwhile and is left as it is; the result is in {target}")

    def _discard(self) -> None:
        """Close everything and remove the temporary file, which by then has its final name or is useless."""
        with self._cleanup:
            if self._copier:
                self._copier.close()
            with contextlib.suppress(Exception):  # the trailer of an unfinished file may well fail
                self._output.close()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, what goes wrong with files is told of the output ``path``.

    Raises:
        MediaError: the disk is full or fails.
    """
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        cause = error.strerror or str(error)
        raise MediaError(
            f"cannot write {path}: {cause}; free space there or choose another place with -o"
        ) from error


def check_output(path: Path, source: Path, *, overwrite: bool) -> None:
    """Find out before the work whether ``path`` may be written.

    Raises:
        MediaError: unknown ending, no such folder, a folder, the input itself, or there without ``overwrite``.
    """
    _format_for(path)
    if not path.parent.is_dir():
        raise MediaError(f"cannot write {path}: there is no folder {path.parent}; create it first")
    if path.is_dir():
        raise MediaError(f"cannot write {path}: it is a folder; name a file in it")
    if path.exists() and source.exists() and path.samefile(source):
        raise MediaError(f"{path} is the input itself; choose another output with -o")
    if path.exists() and not overwrite:
        raise MediaError(
            f"{path} already exists; choose another output with -o, or replace it with --overwrite"
        )


def encoding_for(
    info: VideoInfo,
    *,
    codec: str = "h264",
    crf: int | None = None,
    preset: str | None = None,
    depth: int | None = None,
    parity: bool = False,
) -> Encoding:
    """How to encode the pictures of the video ``info``: its colours, depth, aspect and time stamps.

    What of that the codec cannot hold is told as a :class:`~v2v.runtime.media.streams.MediaWarning`.

    Raises:
        EncodingError: unknown codec or preset, or a quality or ``depth`` that the codec does not have.
    """
    if codec in CODECS and not parity:
        depth = depth or _depth_for(info, codec)
        _tell_unheld(info, codec)
    return Encoding(
        colors=info.colors,
        rate=PARITY_RATE if parity else info.frame_rate,
        time_base=1 / PARITY_RATE if parity else info.time_base,
        aspect=info.sample_aspect_ratio,
        depth=depth,
        codec=codec,
        crf=crf,
        preset=preset,
        parity=parity,
        light=hdr.UNSTATED if parity else info.light,
    )


def _depth_for(info: VideoInfo, codec: str) -> int:
    """Bits that hold all of the source's, or the most that the codec has."""
    depths = CODECS[codec].formats
    if (most := max(depths)) < info.depth <= 16:
        others = ", ".join(name for name, other in CODECS.items() if max(other.formats) >= info.depth)
        warn(
            f"{info.path} has {info.depth} bits a colour, codec {codec} {most}: the finest steps are lost; "
            f"{others} would keep them"
        )
    return min((depth for depth in depths if depth >= info.depth), default=most)


def _tell_unheld(info: VideoInfo, codec: str) -> None:
    if info.light and hdr.encoder_parameters(CODECS[codec].library, info.light) is None:
        warn(
            f"{info.path}: codec {codec} cannot hold its HDR metadata (mastering display, light levels); the colour "
            "tags are kept. h264, hevc and av1 hold all of it"
        )
    if info.profile and codec != "png":
        warn(
            f"{info.path}: its colour profile (ICC) has no place in a video and is left out; a folder of PNG "
            "pictures would keep it"
        )


_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}


def _format_for(path: Path) -> str:
    try:
        return _FORMATS[path.suffix.lower()]
    except KeyError:
        raise MediaError(
            f"cannot write {path}: '{path.suffix}' is no video format known here; "
            f"end the name in {', '.join(_FORMATS)}"
        ) from None


def _open(path: Path, rate: Fraction | None, opened: contextlib.ExitStack) -> av.container.InputContainer:
    if not path.exists():
        raise MediaError(f"{path}: no such file")
    if rate is not None and not path.is_dir():
        raise MediaError(f"--rate is for folders of pictures; {path} has a frame rate of its own")
    try:
        if path.is_dir():
            return opened.enter_context(folders.opened_folder(path, rate or folders.RATE))
        if path.is_file() and not path.stat().st_size:
            raise MediaError(f"{path} is empty (0 bytes); give a video file")
        container: av.container.InputContainer = opened.enter_context(open_media(path))
    except (av.FFmpegError, OSError) as error:
        reasons = {
            ValueError: "it is not a video, or cut off too early",
            EOFError: "it holds nothing that plays",
        }
        reason = next((text for kind, text in reasons.items() if isinstance(error, kind)), error.strerror)
        raise MediaError(f"{path} cannot be read: {reason}; check that the file plays") from error
    if container.format.name in _SUSPICIOUS_FORMATS:
        opened.close()
        raise MediaError(f"{path} cannot be read: it is not a video but text")
    return container


def _create_beside(path: Path) -> Path:
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".part", dir=path.parent)
    except OSError as error:
        raise MediaError(
            f"cannot write {path}: {error.strerror} in folder {path.parent}; choose another place with -o"
        ) from error
    os.close(handle)
    return Path(name)


def _add_note(metadata: dict[str, str], note: str) -> None:
    """Keep ``note`` in the first free text field that every container has, without losing what is in them."""
    if note:
        taken = {key.lower(): key for key in metadata}  # Matroska's come in capitals
        free = next((key for key in ("comment", "description", "synopsis") if key not in taken), None)
        if free:
            metadata[free] = note
        else:
            metadata[taken["comment"]] += "\n" + note


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


class _Clock:
    """Time stamps that only ever grow, as muxers need them, kept as they are wherever the file is sane."""

    def __init__(self, frame_rate: Fraction, time_base: Fraction) -> None:
        self._time_base = time_base
        self._step = max(round(1 / (frame_rate * time_base)), 1)
        self._longest = self._step
        self._last: Timestamp | None = None
        self._regular = 0
        self.count = 0

    def stamp(self, frame: av.VideoFrame) -> Timestamp:
        """The next picture's time stamp."""
        start, last = frame.pts, self._last
        if last is None:
            start = start or 0
        else:
            if start is None or start <= last.start:
                start = last.start + (last.duration or self._step)
            self._longest = max(self._longest, start - last.start)
            self._regular += abs(start - last.start - self._step) <= 1
        self._last = Timestamp(start, frame.duration or 0)
        self.count += 1
        return self._last

    @property
    def end(self) -> Fraction:
        """When the last picture ends, in seconds."""
        last = self._last or Timestamp(0, 0)
        return (last.start + (last.duration or self._step)) * self._time_base

    @property
    def longest(self) -> Fraction:
        """The longest that a picture was shown, in seconds."""
        return self._longest * self._time_base

    @property
    def regular(self) -> bool:
        """Whether the frame rate looks constant, give or take what is missing."""
        return self._regular > 0.8 * self.count
