"""Video in, video out: pictures as RGB levels, everything else of the file carried over.

    with VideoReader(Path("in.mp4")) as source, VideoWriter(Path("out.mp4"), source) as sink:
        for frame in enhance(source.frames()):
            sink.write(frame)

Frame for frame: the n-th picture written takes the time stamp of the n-th picture read.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container

from v2v.core.errors import UsageError, V2VError
from v2v.device import Frame
from v2v.runtime.between import Given, repeated
from v2v.runtime.media import hdr, pixels
from v2v.runtime.media import image_sequence as folders
from v2v.runtime.media.clock import FilmClock
from v2v.runtime.media.deinterlacing import Deinterlacer
from v2v.runtime.media.errors import MediaError, warn
from v2v.runtime.media.formats import REORDERED
from v2v.runtime.media.pipe_in import Inflow, Source, Tap
from v2v.runtime.media.pixels import Colors
from v2v.runtime.media.shots import ShotDetector
from v2v.runtime.media.side_data import Crop, crop_of
from v2v.runtime.media.streams import all_packets, open_media, picture_stream
from v2v.runtime.media.time_range import NOT_GIVEN, SEEKABLE, WHOLE, Part, TimeRange, before
from v2v.runtime.media.time_range import clock as clock_text
from v2v.runtime.media.timecode import timecode_of
from v2v.runtime.media.timestamps import PictureTimes, Timestamp

_OWN_LENGTH = ("mov", "matroska", "avi", "mpegts", "mpeg", "nut", "ogg")  # formats that say it of each stream
_TORN = 3  # usual steps between pictures above which some are missing, where frames may be dropped while recording
_PICTURE_CODECS = ("png", "apng", "gif", "bmp", "tiff", "webp")
_FASTEST = 1000  # pictures a second; more is the tick of a clock
_EARLY = Fraction(2)  # seconds by which a file may end before it says
_SUSPICIOUS_FORMATS = {"tty"}  # FFmpeg draws any text file as a film of a terminal


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
    immersive: dict[str, bytes] = field(
        default_factory=dict
    )  # FFmpeg's side data of 360 degrees and of two eyes
    made_of_pictures: bool = False  # photographs or drawings, whose numbers are not those of a video


class VideoReader:
    """Decodes a video's pictures to upright RGB levels, one at a time: uint8, or uint16 if the source has more bits.

    ``parity`` reads colours as the reference does: as BT.601, whatever the tags say, and as bytes. Interlaced
    pictures are made whole frames, except with ``parity`` or without ``deinterlace``. Damage in the middle costs
    only the pictures it hit; how many were read is told as a :class:`~v2v.runtime.media.errors.MediaWarning` at the
    end.

    With a ``time_range`` only its pictures are given out, the first of them at time 0. Files with an index are
    entered at the last key picture before it, others, and what comes in by a pipe, are decoded from their beginning.

    Raises:
        UsageError: the middle is asked for of something whose length is not known yet.
        MediaError: no such file, not a video, no video stream, no picture that can be decoded, or none in the
            range.
    """

    def __init__(
        self,
        source: Source,
        *,
        parity: bool = False,
        find_cuts: bool = False,
        rate: Fraction | None = None,
        time_range: TimeRange = WHOLE,
        deinterlace: bool = True,
    ) -> None:
        self.source = source
        self.path = source.path if isinstance(source, Inflow) else source
        self.time_range, self.rate = time_range, rate
        self.deinterlace = deinterlace and not parity
        self.find_cuts = find_cuts
        self.cuts: set[int] = set()
        """Numbers of the pictures that start a shot, of those given out, if asked to ``find_cuts``."""
        self.timestamps: deque[Timestamp] = deque()
        """Of pictures given out by :meth:`frames` and not yet written."""
        self._keys: deque[int] = deque(maxlen=REORDERED)  # packets of the last key pictures
        self._aspects: list[tuple[int, Fraction]] = []  # shapes of pixels, and from which packet on
        self._wider: dict[int | None, Fraction] = {}  # time stamps of pictures with wider pixels -> how much
        self._damaged = 0
        self._read_to = 0  # byte of the file
        self._stopped = False
        self._times = 1  # that each picture is given out
        self._told_interlaced = False
        self._opened = contextlib.ExitStack()
        self._tap = (
            self._opened.enter_context(contextlib.closing(source.open()))
            if isinstance(source, Inflow)
            else None
        )
        self._container = _open(self.path, rate, self._opened, self._tap)
        try:
            self._stream = self._find_stream()
            self._stream.thread_type = "AUTO"
            if self._stream.codec_context is not None:
                self._stream.codec_context.copy_opaque = True  # which packet a picture comes from
                # Its threads take Python's lock to let go of that, and PyAV holds the lock while it frees the decoder,
                # which waits for them: they must be idle by then.
                self._opened.callback(self._stream.codec_context.flush_buffers)
            self._clock = FilmClock.of(self._container)
            self._decoded = self._decode()
            self.part: Part | None = None
            """What of the file is given out; None for all of it."""
            self.first_number = 0
            """The film's number of the first picture given out, which its noise is drawn for.

            In a range it is told from the picture's time and the frame rate: exact where the rate is constant.
            """
            self._first = self._decode_first()
            if not time_range.whole:
                self._first, self.first_number = self._enter(time_range, self._first)
            self.info, self._to_rgb = self._describe(self._first, parity)
            self.timecode = timecode_of(self._container, self._stream)
            """SMPTE time code of the file's first picture, if it says one."""
        except BaseException:
            self._opened.close()
            raise

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def stop(self) -> None:
        """Whoever waits in :meth:`frames` for what comes in by a pipe gets the end, which tells nothing of the film."""
        self._stopped = True
        if self._tap is not None:
            self._tap.close()

    def leave_room(self, times: int) -> None:
        """From now on each picture is given out ``times`` times, at times evenly spread until the next one is shown.

        Between two shots, and at the end, nothing is put: the last picture of a shot stays as long as it did.
        """
        info = self.info
        frames = None if info.frames is None else (info.frames - 1) * times + 1
        self.info = replace(
            info, frames=frames, frame_rate=info.frame_rate * times, time_base=info.time_base / times
        )
        self._times, self.first_number = times, self.first_number * times

    def frames(self) -> Iterator[Frame]:
        """Every picture in order, ``[H, W, 3]``, once; its time stamp goes to :attr:`timestamps`."""
        if self._times == 1:
            for number, (picture, stamp, starts_shot) in enumerate(self._pictures()):
                if starts_shot:
                    self.cuts.add(number)
                self.timestamps.append(stamp)
                yield picture
            return
        shots: set[int] = set()

        def read() -> Iterator[tuple[Frame, Timestamp]]:
            for number, (picture, stamp, starts_shot) in enumerate(self._pictures()):
                if starts_shot:
                    shots.add(number)
                yield picture, stamp

        for number, given in enumerate(repeated(read(), self._times, shots.__contains__)):
            if given.starts_shot:
                self.cuts.add(number)
            picture, stamp = given.item
            self.timestamps.append(self._between(stamp, given))
            yield picture

    def _between(self, stamp: Timestamp, given: Given[tuple[Frame, Timestamp]]) -> Timestamp:
        """When a picture's repetition is shown, in the time base that has room for all."""
        if given.following is None:
            return Timestamp(stamp.start * self._times, stamp.duration * self._times)
        step = given.following[1].start - stamp.start
        return Timestamp(stamp.start * self._times + given.repeat * step, step)

    def _pictures(self) -> Iterator[tuple[Frame, Timestamp, bool]]:
        """The film's own pictures, when they are shown, and whether they start a shot."""
        frame: av.VideoFrame | None = self._first
        self._tell_losses(self._first)
        tick = self.info.time_base * self._times
        times = PictureTimes(self.info.frame_rate / self._times, tick)
        shift = round(self.part.shift / tick) if self.part else 0
        starts_shot = ShotDetector() if self.find_cuts else None
        while frame is not None:
            stamp = times.stamp(frame)
            if self.part and self.part.ended(stamp.start * tick):
                break
            starts = bool(starts_shot and starts_shot(frame))
            wider = self._wider.pop(frame.pts, Fraction(1))
            yield self._to_rgb(frame, wider), stamp._replace(start=stamp.start - shift), starts
            frame = next(self._decoded, None)
        if self._stopped:
            return
        self._tell_jumps()
        self._tell_damage(times)

    def _enter(self, time_range: TimeRange, first: av.VideoFrame) -> tuple[av.VideoFrame, int]:
        """Go to the first picture of a range in the film that begins with ``first``; returns it and its number."""
        tick = self._stream.time_base or Fraction(1, av.time_base)
        beginning = max(first.pts or 0, 0) * tick
        length = self._length()
        if self._tap is not None and length is None and time_range.preview and time_range.start is None:
            raise UsageError(
                "--preview shows the middle of a film, and what comes in by the pipe does not say how long it is; "
                "say from where, as --start 0"
            )
        start, stop = time_range.within(length)
        part = Part(start, stop)
        frame: av.VideoFrame | None = first
        seekable = self._tap is None and self._container.format.name.startswith(SEEKABLE)
        if seekable and before(beginning, part.start):
            frame = next(self._decoded, None) if self._seek(part.start) else None
            if frame is None or frame.pts is None or before(part.start, frame.pts * tick):
                self._seek(beginning)  # the index leads behind the start: read all instead
                frame = next(self._decoded, None)
        stamps = PictureTimes(self._frame_rate(), tick)
        time = Fraction(0)
        while frame is not None and before(time := stamps.stamp(frame).start * tick, part.start):
            frame = next(self._decoded, None)
        if frame is None or part.ended(time):
            ends = "" if length is None else f"; the video is {clock_text(length)} long"
            flags = " ".join(
                f"{name} {value}" for name, value in time_range.facts().items() if value != NOT_GIVEN
            )
            raise MediaError(f"{self.path}: no picture begins within {flags}{ends}")
        if time_range.end is not None and length is not None and time_range.end > length + 1:
            warn(f"{self.path} ends at {clock_text(length)}, before --end {clock_text(time_range.end)}")
        self.part = part.beginning_at(time if start else Fraction(0))
        return frame, max(round((time - beginning) * self._frame_rate()), 0)

    def _seek(self, time: Fraction) -> bool:
        """Go on decoding at the last key picture at or before the film's ``time``; whether that was possible."""
        tick = self._stream.time_base or Fraction(1, av.time_base)
        try:
            self._container.seek(math.floor((time + (self._clock.zero or 0)) / tick), stream=self._stream)
        except av.FFmpegError:
            return False
        self._clock.moved()
        self._decoded = self._decode()
        return True

    def _length(self) -> Fraction | None:
        """Seconds from the film's beginning to its end, as far as the file tells."""
        if (end := self._stated_end()) is not None:
            return end
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
        """Warn of what the result cannot keep: transparency, dynamic HDR metadata, closed captions."""
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
        """Decode all packets; a damaged one is counted and left out."""
        unstamped: deque[tuple[int, int]] = (
            deque()
        )  # packets without a time of showing: number, time of decoding
        number = 0
        for packet in all_packets(self._container, self._clock, self._count_damage, self._tell_late_stream):
            if packet.stream.index != self._stream.index:
                continue
            if packet.size:
                number += 1
                self._read_to = (packet.pos or 0) + packet.size
                if packet.is_keyframe:
                    self._keys.append(number)
                packet.opaque = (number, packet.pts is None)
                if packet.pts is None:
                    unstamped.append((number, packet.dts))
            try:
                decoded = packet.decode()
            except (av.FFmpegError, ValueError):  # the latter where damage made the codec unknown
                self._count_damage()
                if unstamped and unstamped[-1][0] == number:
                    unstamped.pop()
                continue
            for frame in decoded:
                if frame.opaque is not None and frame.opaque[1]:
                    frame.pts = _in_order(unstamped, frame.opaque[0])
                self._watch_aspect(frame)
                yield frame

    def _watch_aspect(self, frame: av.VideoFrame) -> None:
        """Note pictures whose pixels are of another shape than the first one's, as where a broadcast changes.

        A decoder tells of the change when it meets it, while it still gives out pictures from before: it is true of
        those from the key picture on.
        """
        aspect = self._stream.codec_context.sample_aspect_ratio or Fraction(1)
        origin: Any = frame.opaque
        number = 0 if origin is None else origin[0]
        if not self._aspects or aspect != self._aspects[-1][1]:
            since = next((key for key in self._keys if key >= number), number)
            self._aspects.append((since if self._aspects else 0, Fraction(aspect)))
        now = next(shape for since, shape in reversed(self._aspects) if since <= number)
        if now != self._aspects[0][1]:
            self._wider[frame.pts] = now / self._aspects[0][1]

    def _count_damage(self) -> None:
        self._damaged += 1

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
        crop = Crop() if parity else crop_of(self._container, stream, (first.height, first.width))
        try:
            to_rgb = pixels.ToRGB(
                colors, orientation, (first.height, first.width), deep=deep, fast=parity, crop=crop
            )
        except V2VError as error:
            raise MediaError(f"{self.path}: {error}") from None
        aspect = stream.sample_aspect_ratio or codec.sample_aspect_ratio or Fraction(1)
        height, width = crop.size(first.height, first.width)
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
            immersive={name: side_data[name] for name in ("SPHERICAL", "STEREO3D") if name in side_data},
            made_of_pictures=self.path.is_dir() or codec.name in _PICTURE_CODECS,
            depth=pixels.depth_of(first),
            stream_index=stream.index,
            light=hdr.static_metadata_of(side_data),
            profile=side_data.get("ICC_PROFILE")
            or (folders.profile_in(self.path) if self.path.is_dir() else None),
        )
        return info, to_rgb

    def _frame_rate(self) -> Fraction:
        rates = (self._stream.average_rate, self._stream.guessed_rate, self._stream.base_rate)
        return next((Fraction(rate) for rate in rates if rate and rate <= _FASTEST), folders.RATE)

    def _announced(self, rate: Fraction) -> int | None:
        """How many pictures there will be, as far as the file tells."""
        length = self._length()
        if self.part is None:
            return self._stated_count(rate) or (round(length * rate) if length else 0) or None
        ends = [time for time in (self.part.stop, length) if time]
        return max(round((min(ends) - self.part.shift) * rate), 1) if ends else None

    def _stated_count(self, rate: Fraction) -> int | None:
        """How many pictures the file holds, if it says that of the stream itself."""
        kind, stream = self._container.format.name, self._stream
        if kind.startswith("mov") and len(stream.index_entries):  # without what an edit list cuts away
            return sum(not entry.is_discard for entry in stream.index_entries)
        if (
            kind == "avi"
            and (entries := stream.index_entries)
            and entries[-1].timestamp > 0.9 * stream.frames - 5
        ):
            # the header counts frames that were dropped while recording; without an index the file is cut short
            return sum(entry.size > 0 for entry in entries)
        if (end := self._stated_end()) is not None and not stream.frames:
            start = (stream.start_time or 0) * (stream.time_base or Fraction(0))
            return round((end - self._clock.seconds(start)) * rate)
        return stream.frames or None

    def _stated_end(self) -> Fraction | None:
        """When the last picture ends in the film, in seconds, if the file says that of the stream itself."""
        stream = self._stream
        if stream.duration and stream.time_base and self._container.format.name.startswith(_OWN_LENGTH):
            return self._clock.seconds(((stream.start_time or 0) + stream.duration) * stream.time_base)
        if tag := stream.metadata.get("DURATION"):  # Matroska's writers note the end in a tag
            with contextlib.suppress(ValueError):
                hours, minutes, seconds = tag.split(":")
                return self._clock.seconds((int(hours) * 60 + int(minutes)) * 60 + Fraction(seconds))
        return None

    def _tell_jumps(self) -> None:
        if gaps := self._clock.gaps:
            count = "once" if len(gaps) == 1 else f"{len(gaps)} times"
            warn(
                f"{self.path}: its clock jumps ahead {count}, by {clock_text(sum(gaps, Fraction(0)))} in all; "
                "the film goes on without a gap"
            )
        if self._clock.strays:
            warn(f"{self.path}: {self._clock.strays} packets have impossible time stamps; theirs are made up")

    def _tell_damage(self, times: PictureTimes) -> None:
        if self.part is not None or self._clock.jumped:
            if self._damaged:
                of = " of the range" if self.part is not None else ""
                warn(f"{self.path} is damaged: {times.count} frames{of} could be read and are used")
            return
        expected = self._stated_count(self.info.frame_rate / self._times) or 0
        missing = expected - times.count
        extent = (
            f"{times.count}{f' of about {expected}' if missing > 0 else ''} frames could be read and are used"
        )
        if self._damaged or self._is_torn() or self._ends_early(times, missing):
            warn(f"{self.path} is damaged or cut short: {extent}")
        elif missing > 1 and times.regular and (self._is_indexed() or times.longest > _TORN * times.usual):
            # some demuxers skip what they cannot read without a word
            warn(f"{self.path} may be damaged: {extent}")

    def _is_torn(self) -> bool:
        """Whether the last of the uncompressed pictures that came in by a pipe is not whole."""
        source = self.source
        if not isinstance(source, Inflow) or not source.is_y4m:
            return False
        return source.received > self._read_to + len(b"FRAME\n")

    def _is_indexed(self) -> bool:
        return self._container.format.name.startswith(("mov", "avi"))

    def _ends_early(self, times: PictureTimes, missing: int) -> bool:
        """Whether the pictures, or else all there is, end before the file says."""
        stated = self._stated_end()
        if stated is not None:
            return missing > 0 and stated - times.end > 2 * times.longest
        end = max(times.end, self._clock.end)
        return bool(self._container.duration) and (self._length() or 0) - end > max(2 * times.longest, _EARLY)


def _in_order(unstamped: deque[tuple[int, int]], number: int) -> int | None:
    """The time of a picture shown now that came from packet ``number``: pictures take the packets' times in order.

    Those of packets from long ago, which gave no picture, are dropped.
    """
    while unstamped and unstamped[0][0] < number - REORDERED:
        unstamped.popleft()
    return unstamped.popleft()[1] if unstamped else None


def _open(
    path: Path, rate: Fraction | None, opened: contextlib.ExitStack, tap: Tap | None
) -> av.container.InputContainer:
    if tap is None and not path.exists():
        raise MediaError(f"{path}: no such file")
    if rate is not None and (tap is not None or not path.is_dir()):
        raise MediaError(f"--rate is for folders of pictures; {path} has a frame rate of its own")
    try:
        if tap is None and path.is_dir():
            return opened.enter_context(folders.opened_folder(path, rate or folders.RATE))
        if path.is_file() and not path.stat().st_size:
            raise MediaError(f"{path} is empty (0 bytes); give a video file")
        container: av.container.InputContainer = opened.enter_context(open_media(tap or path))
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
