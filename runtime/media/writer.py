"""Finished segments and copied streams -> a video file that appears when it is whole."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av.container

from v2v.core.abort import removed_on_abort
from v2v.core.files import sync, umask
from v2v.device import Frame
from v2v.runtime.media import hdr
from v2v.runtime.media.encoding import CODECS, EncodedSegment, Encoding
from v2v.runtime.media.errors import MediaError, warn
from v2v.runtime.media.names import file_url
from v2v.runtime.media.reader import VideoInfo, VideoReader
from v2v.runtime.media.streams import StreamCopier, copy_stream_tags
from v2v.runtime.media.timestamps import Timestamp

PARITY_RATE = Fraction(8)


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
                file_url(self._partial),
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
                self._copier.tell_losses()
            self._output.close()
            sync(self._partial)
            self._publish()

    def _publish(self) -> None:
        """Give the finished file its name, in one step."""
        self._partial.chmod(0o666 & ~umask())
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

    What of that the codec cannot hold is told as a :class:`~v2v.runtime.media.errors.MediaWarning`.

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
