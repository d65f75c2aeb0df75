"""How pictures are encoded: the codecs to choose from, and segments encoded each on its own.

A film is encoded segment by segment, each with an encoder of its own, so that a finished segment is finished for
good. Inside a segment's file packets are only numbered; the film's own time stamps are put in when the segments are
joined (:meth:`v2v.runtime.media.writer.VideoWriter.join`), exact whatever the time base or frame rate.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import av

from v2v.core.errors import V2VError
from v2v.device import Frame
from v2v.runtime.media import hdr, pixels
from v2v.runtime.media.formats import Y4M_ENDING, reason_of, reasons_kept
from v2v.runtime.media.names import file_url
from v2v.runtime.media.pixels import REFERENCE_COLORS, Colors


class EncodingError(V2VError):
    """Pictures cannot be encoded as asked; the message names the flag and what it takes."""


# Encoders give other bytes with another number of threads; with this one they are the same on every machine.
_THREADS = 4


@dataclass(frozen=True)
class Codec:
    """An encoder and what it is used with."""

    library: str  # FFmpeg's name of the encoder
    formats: dict[int, str]  # bits of a component -> pixel format
    containers: tuple[str, ...]  # endings of files that can hold it; none: a folder of pictures
    segment: str  # FFmpeg's name of the container of a lone segment
    quality: str | None = None  # name of the encoder's constant-quality option
    crf: int | None = None  # its default
    presets: tuple[str, ...] = ()
    options: dict[str, str] = field(default_factory=dict)
    chroma: int = 2  # width and height must be multiples of this
    narrowest: int = 1  # width must not be smaller
    fastest: int = 1000  # pictures a second that the encoder may be told of
    own: str | None = None  # name of the option that holds the encoder's own parameters
    parameters: dict[str, str] = field(default_factory=dict)  # what is always among them
    segment_options: dict[str, str] = field(default_factory=dict)  # what the muxer of a lone segment is told
    says_colors: bool = True  # beside their range


_X264_PRESETS = (
    "ultrafast",
    "superfast",
    "veryfast",
    "faster",
    "fast",
    "medium",
    "slow",
    "slower",
    "veryslow",
)
_NVENC_PRESETS = tuple(f"p{n}" for n in range(1, 8))
_ANY = (".mp4", ".m4v", ".mov", ".mkv")

# Chroma is halved where players expect it, whatever the source has: a film of twice the size still holds all of it.
_8_AND_10 = {8: "yuv420p", 10: "yuv420p10le"}
_UP_TO_12 = {**_8_AND_10, 12: "yuv420p12le"}
_WHOLE_CHROMA = {8: "yuv444p", 10: "yuv444p10le", 12: "yuv444p12le", 16: "yuv444p16le"}
_NVENC_10 = {8: "yuv420p", 10: "p010le"}

CODECS: dict[str, Codec] = {
    # Without cpu-independent, x264's look-ahead gave other bytes for the same pictures in about one of 300 short
    # encodes on a busy machine with AVX-512: a resumed film would then differ from an undisturbed one.
    "h264": Codec(
        "libx264",
        _8_AND_10,
        _ANY,
        "mp4",
        "crf",
        17,
        _X264_PRESETS,
        own="x264-params",
        parameters={"cpu-independent": "1"},
    ),
    "hevc": Codec(
        "libx265",
        _UP_TO_12,
        _ANY,
        "mp4",
        "crf",
        19,
        _X264_PRESETS,
        own="x265-params",
        parameters={"log-level": "error"},
        narrowest=66,  # below a block of 64, x265 writes beyond its memory; at 64x64 its bytes differ
    ),
    "av1": Codec(
        "libsvtav1",
        _8_AND_10,
        (".mp4", ".mkv"),
        "mp4",
        "crf",
        24,
        tuple(str(n) for n in range(14)),
        fastest=240,  # what it is told only guides its decisions; time stamps are exact
        own="svtav1-params",
    ),
    "ffv1": Codec("ffv1", _WHOLE_CHROMA, (".mkv",), "matroska", options={"level": "3", "g": "1"}, chroma=1),
    "prores": Codec("prores_ks", {10: "yuv422p10le"}, (".mov", ".mkv"), "mov", options={"profile": "hq"}),
    "y4m": Codec(  # for pipes; in 10 bits it is what mjpegtools and FFmpeg agreed on, and no standard
        "rawvideo",
        _8_AND_10,
        (Y4M_ENDING,),
        "yuv4mpegpipe",
        segment_options={"strict": "unofficial"},
        says_colors=False,
    ),
    "png": Codec("png", {8: "rgb24", 16: "rgb48be"}, (), "mov", chroma=1),
    "h264_nvenc": Codec("h264_nvenc", {8: "yuv420p"}, _ANY, "mp4", "cq", 19, _NVENC_PRESETS),
    "hevc_nvenc": Codec("hevc_nvenc", _NVENC_10, _ANY, "mp4", "cq", 21, _NVENC_PRESETS),
    "av1_nvenc": Codec("av1_nvenc", _NVENC_10, (".mp4", ".mkv"), "mp4", "cq", 26, _NVENC_PRESETS),
}
"""By the name used on the command line."""


@dataclass(frozen=True)
class Encoding:
    """Everything that an encoder is told about a film.

    Args:
        colors: what the numbers mean; written as tags unless ``parity``.
        rate: pictures per second, for the encoder's decisions; time stamps are exact without it.
        time_base: unit of the time stamps.
        aspect: sample aspect ratio.
        depth: bits of a component; None for the fewest that the codec has.
        codec: one of :data:`CODECS`.
        crf: constant quality; None for the codec's default.
        preset: the encoder's speed; None for its default.
        parity: as the reference: no tags, its fast conversion to YUV.
        light: static HDR metadata, written where the encoder takes it.

    Raises:
        EncodingError: unknown codec or preset, or a quality or depth that the codec does not have.
    """

    colors: Colors
    rate: Fraction
    time_base: Fraction
    aspect: Fraction = Fraction(1)
    depth: int | None = None
    codec: str = "h264"
    crf: int | None = None
    preset: str | None = None
    parity: bool = False
    light: hdr.StaticMetadata = hdr.UNSTATED

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise EncodingError(
                f"--codec {self.codec}: there is no such codec; choose from {', '.join(CODECS)}"
            )
        entry = CODECS[self.codec]
        if self.crf is not None and entry.quality is None:
            raise EncodingError(f"--crf {self.crf}: codec {self.codec} has no such setting; leave it out")
        if self.crf is not None and not 0 <= self.crf <= 63:
            raise EncodingError(f"--crf {self.crf}: must lie between 0 (best) and 63")
        if self.preset is not None and self.preset not in entry.presets:
            choices = ", ".join(entry.presets) or "none: leave it out"
            raise EncodingError(f"--preset {self.preset}: codec {self.codec} takes {choices}")
        if self.depth is not None and self.depth not in entry.formats:
            others = [
                name
                for name, codec in CODECS.items()
                if self.depth in codec.formats and Y4M_ENDING not in codec.containers  # for pipes alone
            ]
            advice = f"; {self.depth} has codec {' or '.join(others)}" if others else ""
            depths = " or ".join(map(str, entry.formats))
            raise EncodingError(f"--depth {self.depth}: codec {self.codec} has {depths} bits{advice}")

    @property
    def makes_folder(self) -> bool:
        """Whether the output is a folder of pictures instead of a file."""
        return not self.library.containers

    @property
    def library(self) -> Codec:
        """The codec's entry in :data:`CODECS`."""
        return CODECS[self.codec]

    @property
    def pixel_format(self) -> str:
        """FFmpeg's name of the format that the encoder is given."""
        formats = self.library.formats
        return formats[min(formats) if self.depth is None else self.depth]

    def check(self, path: Path, height: int, width: int) -> None:
        """Find out before the work whether ``path`` can hold pictures of this size in this codec.

        Raises:
            EncodingError: it cannot; names the way out.
        """
        if self.library.containers and path.suffix.lower() not in self.library.containers:
            endings = ", ".join(self.library.containers)
            raise EncodingError(
                f"cannot write {path}: codec {self.codec} needs a name that ends in {endings}"
            )
        self._check_width(height, width)
        step = self.library.chroma
        if height % step or width % step:
            raise EncodingError(
                f"--size {width}x{height}: codec {self.codec} needs an even width and height; "
                f"try --size {width + width % step}x{height + height % step}"
            )
        self._check_encoder(height, width)

    def _check_encoder(self, height: int, width: int) -> None:
        """Open the encoder as it will be opened."""
        try:
            with reasons_kept(), self.open_segment(io.BytesIO()) as trial:
                self.add_stream(trial, height, width).codec_context.time_base = 1 / self.rate
                trial.start_encoding()
        except (av.FFmpegError, ValueError) as error:
            tags = f"{self.colors.primaries}, {self.colors.transfer}, {self.colors.matrix}"
            raise EncodingError(
                f"--codec {self.codec}: its encoder refuses {width}x{height} at {float(self.rate):g} pictures a second "
                f"with the colour tags {tags} of H.273: {reason_of(error)}; choose another codec"
            ) from error

    def _check_width(self, height: int, width: int) -> None:
        if width < self.library.narrowest:
            raise EncodingError(
                f"--size {width}x{height}: codec {self.codec} needs a width of {self.library.narrowest} or more; "
                "take another codec"
            )

    def open_segment(self, file: BinaryIO) -> av.container.OutputContainer:
        """The container of a lone segment, in ``file``."""
        # bitexact leaves out what differs from run to run
        options = {"fflags": "+bitexact", **self.library.segment_options}
        return av.open(file, "w", format=self.library.segment, container_options=options)

    def add_stream(self, container: av.container.OutputContainer, height: int, width: int) -> Any:
        """Open the encoder as a stream of ``container``.

        Raises:
            EncodingError: this machine has no such encoder (no NVIDIA GPU, for the hardware ones), or the encoder
                would crash on pictures so narrow.
        """
        self._check_width(height, width)
        codec = self.library
        os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 would write pages to stderr; 1 is errors alone
        try:
            stream: Any = container.add_stream(
                codec.library, rate=Fraction(min(self.rate, Fraction(codec.fastest)))
            )
        except (av.FFmpegError, ValueError) as error:
            raise EncodingError(f"--codec {self.codec}: this machine cannot use it ({error})") from error
        stream.width, stream.height = width, height
        stream.pix_fmt = self.pixel_format
        options = dict(codec.options)
        parameters = codec.parameters | (hdr.encoder_parameters(codec.library, self.light) or {})
        if codec.own and parameters:
            options[codec.own] = ":".join(f"{name}={value}" for name, value in parameters.items())
        if codec.quality is not None:
            options[codec.quality] = str(codec.crf if self.crf is None else self.crf)
        if self.preset is not None:
            options["preset"] = self.preset
        stream.options = options
        context = stream.codec_context
        context.time_base, context.thread_count = self.time_base, _THREADS
        if not self.parity:
            context.sample_aspect_ratio = self.aspect
            context.color_primaries, context.color_trc = self.colors.primaries, self.colors.transfer
            stored_rgb = self.pixel_format.startswith("rgb")
            context.colorspace = 0 if stored_rgb else self.colors.matrix
            context.color_range = 2 if stored_rgb or self.colors.full_range else 1
        return stream

    def picture(self, frame: Frame, stream: Any) -> av.VideoFrame:
        """RGB levels ``[H, W, 3]`` in the stream's pixel format."""
        colors = REFERENCE_COLORS if self.parity else self.colors
        if not self.parity and not self.library.says_colors:  # what players take it for
            colors = Colors(full_range=colors.full_range).resolved(frame.shape[1], frame.shape[0])
        picture = pixels.from_rgb(frame, stream.pix_fmt, colors, fast=self.parity)
        # Most encoders go by the stream, ProRes and PNG by each picture. PNG is left alone unless it is HDR: viewers
        # take it for sRGB, which is how films of BT.709 are shown too.
        if self.codec != "png" or colors.transfer in (hdr.PQ, hdr.HLG):
            picture.color_primaries, picture.color_trc = colors.primaries, colors.transfer
        return picture


@dataclass(frozen=True)
class EncodedSegment:
    """A segment's pictures in a file of their own, which has a name or is in memory.

    ``order`` gives each packet's picture, counted from 0 in the order in which pictures are shown.
    """

    file: Path | bytes
    order: tuple[int, ...]

    @property
    def delay(self) -> int:
        """Packets by which decoding runs ahead of showing."""
        return max((position - picture for position, picture in enumerate(self.order)), default=0)

    def open(self) -> av.container.InputContainer:
        """The file, for reading."""
        file: Any = file_url(self.file) if isinstance(self.file, Path) else io.BytesIO(self.file)
        opened: av.container.InputContainer = av.open(file)
        return opened

    @staticmethod
    def packets(container: av.container.InputContainer) -> Iterator[Any]:
        """The packets of an opened segment."""
        return (packet for packet in container.demux(container.streams.video[0]) if packet.size)


class SegmentEncoder:
    """Encodes the pictures of one segment into a file, numbered from 0.

        with SegmentEncoder(file, encoding) as encoder:
            encoder.write(frame)
        encoder.order  # as in EncodedSegment

    Raises:
        OSError, av.FFmpegError: the disk is full or fails.
    """

    def __init__(self, file: BinaryIO, encoding: Encoding) -> None:
        self._encoding = encoding
        self._container = encoding.open_segment(file)
        self._stream: Any = None
        self._count = 0
        self._order: list[int] = []

    def __enter__(self) -> SegmentEncoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._stream is not None:
                self._mux(self._stream.encode(None))
        finally:
            self._container.close()

    def write(self, frame: Frame) -> None:
        """Encode the next picture, ``[H, W, 3]``."""
        if self._stream is None:
            self._stream = self._encoding.add_stream(self._container, *frame.shape[:2])
            self._tick = 1 / self._encoding.rate
            self._stream.codec_context.time_base = self._tick
        picture = self._encoding.picture(frame, self._stream)
        picture.pts, picture.time_base = self._count, self._tick
        self._count += 1
        self._mux(self._stream.encode(picture))

    @property
    def order(self) -> tuple[int, ...]:
        """Each packet's picture, once the block has ended."""
        return tuple(self._order)

    def _mux(self, packets: Sequence[Any]) -> None:
        for packet in packets:
            self._order.append(round(packet.pts * packet.time_base / self._tick))
            # Where a packet stands is all that the file has to tell. x265 gives decoding times out of memory that
            # it never wrote if there are fewer pictures than it looks ahead.
            packet.time_base, packet.pts, packet.dts = self._tick, len(self._order) - 1, len(self._order) - 1
            self._container.mux(packet)
