"""Finished segments and copied streams -> one container, be it a file or a pipe."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import av.container

from v2v.runtime.media.copier import StreamCopier
from v2v.runtime.media.encoding import EncodedSegment, Encoding
from v2v.runtime.media.errors import MediaError, warn
from v2v.runtime.media.formats import FORMATS, OF_THE_PLACE, OF_THE_SPACE, reason_of, reasons_kept
from v2v.runtime.media.immersive import is_immersive, keeps_immersive, saying
from v2v.runtime.media.reader import VideoReader
from v2v.runtime.media.stream_plan import StreamPlan
from v2v.runtime.media.tags import copy_stream_tags
from v2v.runtime.media.timecode import at_rate, has_track, later
from v2v.runtime.media.timestamps import Timestamp, is_constant

PARITY_RATE = Fraction(8)
"""Pictures per second that the reference writes, whatever it read."""

_MOST_DELAY = 32  # packets by which decoding runs ahead of showing; no codec has more


class Muxer:
    """Puts segments behind one another into a container that was opened, the source's other streams in step with them.

    Args:
        path: what the output is called; its ending picks the format.
        source: where the pictures come from.
        encoding: of the pictures.
        parity: as the reference: no other streams, no tags.
        note: settings of the run, kept in the output's comment.
        streams: what becomes of the source's other streams.
    """

    def __init__(
        self,
        path: Path,
        source: VideoReader,
        encoding: Encoding,
        *,
        parity: bool,
        note: str,
        streams: StreamPlan,
    ) -> None:
        self.path, self.source, self.encoding, self.parity, self.note = path, source, encoding, parity, note
        self._format, self._streams = format_for(path), streams
        # Whether pictures are counted, whatever their time stamps.
        self._counts = parity and encoding.time_base == 1 / PARITY_RATE
        self._copied_from: av.container.InputContainer | None = None  # where it cannot be opened anew
        self._output: Any = None
        self._start()

    def _start(self) -> None:
        """Nothing has been written."""
        self._copier: StreamCopier | None = None
        self._pictures: Any = None  # the stream of pictures that were encoded before
        self._pictures_written = 0
        self._delay, self._step = 0, 1
        self._shown: deque[int] = deque(maxlen=_MOST_DELAY)  # when the last pictures are shown
        self._decoded: int | None = None  # when the last packet is

    def _open_output(self, file: Any, options: dict[str, str]) -> None:
        """Open the container in ``file``, a name or what PyAV writes into."""
        if is_immersive(self.source.info.immersive):
            options["strict"] = "unofficial"  # Google's boxes, which all players go by, are no standard
        # bitexact leaves out what differs from run to run, such as Matroska's random identifiers
        options["fflags"] = "+bitexact"
        self._output = av.open(file, "w", format=self._format, container_options=options)

    def _plan_decoding(self, delay: int, stamps: Sequence[Timestamp]) -> None:
        """Packets are decoded ``delay`` packets before they are shown; ``stamps`` are those of the first pictures."""
        self._delay = max(delay, self._delay)
        if self._counts:
            self._step = 1
        elif not self._pictures_written:
            self._step = stamps[1].start - stamps[0].start if len(stamps) > 1 else max(stamps[0].duration, 1)

    def _add(self, segment: EncodedSegment, stamps: Sequence[Timestamp]) -> None:
        """Write the next segment; ``stamps`` are those of its pictures.

        Pictures are shown at their stamps; decoding times follow from them, so that they rise across segments too.
        """
        tick, number = self.encoding.time_base, self._pictures_written
        if self._counts:
            stamps = [Timestamp(number + index, 1) for index in range(len(stamps))]
        shown = [*self._shown, *(stamp.start for stamp in stamps)]
        ahead = len(self._shown) - self._delay
        with segment.open() as container:
            if self._pictures is None:
                self._pictures = self._declare_joined(container.streams.video[0], tick, stamps)
            for packet, picture in zip(segment.packets(container), segment.order, strict=True):
                stamp = stamps[picture]
                decoded = shown[ahead] if ahead >= 0 else shown[0] + ahead * self._step
                if (
                    self._decoded is not None
                ):  # a longer delay than that of earlier segments: time stands still
                    decoded = max(decoded, self._decoded)
                self._decoded = decoded
                packet.time_base, packet.pts, packet.dts = tick, stamp.start, decoded
                packet.duration, packet.stream = stamp.duration, self._pictures
                if self._copier:
                    self._copier.advance(decoded * tick)
                self._output.mux_one(packet)
                self._pictures_written += 1
                ahead += 1
        self._shown.extend(stamp.start for stamp in stamps)

    def _keep_timecode(self, pictures: Any, stamps: Sequence[Timestamp] | None) -> None:
        """Let the first picture show the time code that it had; MP4 makes a track of it, at a constant rate alone."""
        timecode, info = self.source.timecode, self.source.info
        if timecode is None:
            return
        if self.source.first_number:
            timecode = later(timecode, self.source.first_number, info.frame_rate)
        if self._format != "matroska":
            constant = stamps is not None and is_constant(stamps, info.time_base, info.frame_rate)
            if not (constant and has_track(self._format, timecode, info.frame_rate)):
                warn(
                    f"{self.path}: its time code {timecode} has no place here, at this frame rate; .mkv keeps it"
                )
                return
            at_rate(pictures, info.frame_rate)
        self._output.metadata["timecode"] = timecode

    def _declare_others(self, pictures: Any, stamps: Sequence[Timestamp] | None = None) -> None:
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
            if not self.source.path.is_dir():
                self._copier = StreamCopier(self._streams, self._output, self.source.part, self._copied_from)
                self._keep_timecode(pictures, stamps)
        _add_note(self._output.metadata, self.note)

    def _declare_joined(self, template: Any, tick: Fraction, stamps: Sequence[Timestamp]) -> Any:
        """The stream of pictures that were encoded before, and all that comes along with it."""
        with contextlib.ExitStack() as lent:
            stream = self._output.add_stream_from_template(self._immersive(template, lent), opaque=True)
        context = template.codec_context
        for name in ("color_primaries", "color_trc", "colorspace", "color_range", "pix_fmt"):
            setattr(stream.codec_context, name, getattr(context, name))
        stream.time_base = tick
        if not self.parity:  # a segment's file may hold it where the codec does not
            stream.codec_context.sample_aspect_ratio = self.encoding.aspect
        self._declare_others(stream, stamps)
        return stream

    def _immersive(self, template: Any, lent: contextlib.ExitStack) -> Any:
        """``template`` itself, or one like it that says what the source does of 360 degrees and of two eyes."""
        side_data = self.source.info.immersive
        if self.parity or not is_immersive(side_data):
            return template
        carrier = saying(side_data, template) if keeps_immersive(self._format) else None
        if carrier is None:
            warn(
                f"{self.path}: that it is a film of 360 degrees or for two eyes cannot be said here; .mkv says it"
            )
            return template
        return lent.enter_context(carrier).streams.video[0]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with writing(self.path):
                    if not self._pictures_written:
                        raise MediaError(f"{self.path}: there was nothing to write")
                    self._finish()
        finally:
            self._discard()

    def _finish(self) -> None:
        """All pictures are there."""
        self._end()

    def _discard(self) -> None:
        """Close everything, finished or not."""
        self._close()

    def _end(self) -> None:
        """Write all that is left, and the file's trailer."""
        if self._copier:
            self._copier.advance(None)
            self._copier.tell_losses()
        with reasons_kept():
            self._output.close()

    def _close(self) -> None:
        if self._copier:
            self._copier.close()
        with contextlib.suppress(Exception):  # the trailer of an unfinished file may well fail
            self._output.close()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, what goes wrong with files is told of the output ``path``.

    Raises:
        MediaError: the disk is full or fails.
        BrokenPipeError: nobody reads it any more.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except (av.FFmpegError, OSError) as error:
        number = error.errno or 0
        if not isinstance(error, OSError) and number not in OF_THE_PLACE:
            raise MediaError(f"cannot write {path}: FFmpeg refuses it ({reason_of(error)})") from error
        advice = (
            "free space there or choose another place" if number in OF_THE_SPACE else "choose another place"
        )
        cause = error.strerror or str(error)
        raise MediaError(f"cannot write {path}: {cause}; {advice} with -o") from error


def format_for(path: Path) -> str:
    """FFmpeg's name of the format that a name's ending stands for.

    Raises:
        MediaError: there is none.
    """
    try:
        return FORMATS[path.suffix.lower()]
    except KeyError:
        raise MediaError(
            f"cannot write {path}: '{path.suffix}' is no video format known here; "
            f"end the name in {', '.join(FORMATS)}"
        ) from None


def _add_note(metadata: dict[str, str], note: str) -> None:
    """Keep ``note`` in the first free text field that every container has, without losing what is in them."""
    if note:
        keys = {key.lower(): key for key in metadata}  # Matroska's come in capitals
        free = next((key for key in ("comment", "description", "synopsis") if key not in keys), None)
        if free:
            metadata[free] = note
        else:
            metadata[keys["comment"]] += "\n" + note
