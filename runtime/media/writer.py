"""Finished segments and copied streams -> a video file that appears when it is whole."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av

from v2v.core.abort import removed_on_abort
from v2v.core.files import sync, umask
from v2v.device import Frame
from v2v.runtime.media import hdr
from v2v.runtime.media.encoding import CODECS, EncodedSegment, Encoding
from v2v.runtime.media.errors import MediaError, warn
from v2v.runtime.media.formats import OF_THE_PLACE, reason_of
from v2v.runtime.media.muxing import PARITY_RATE, Muxer, format_for, writing
from v2v.runtime.media.names import file_url
from v2v.runtime.media.reader import VideoInfo, VideoReader
from v2v.runtime.media.stream_plan import StreamPlan, plan_streams
from v2v.runtime.media.tags import mov_flags
from v2v.runtime.media.timestamps import Timestamp


class VideoWriter(Muxer):
    """Encodes enhanced pictures, with the source's other streams, into a file that appears when finished.

    Until then the work lies in a hidden temporary file in the same folder, which is removed when the ``with``
    block is left by an exception. Time stamps are the film's; the source's other streams are copied packet for
    packet, or what was planned for them.
    ``parity`` writes as the reference does: no sound, no colour tags, and the rate that ``encoding`` says.

    Args:
        path: where to write; the ending picks the format.
        source: where the pictures come from.
        overwrite: whether an existing file may be replaced.
        note: settings of the run, kept in the file's comment.
        partial: where to write until it is finished, on the same disk, instead of a file beside ``path``.
        complete: called when all is on the disk, before the file gets its name.
        encoding: codec and quality; H.264 at crf 17 where None.
        streams: what becomes of the source's other streams; decided, and told, here where None.

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
        streams: StreamPlan | None = None,
    ) -> None:
        self._complete, self.overwrite = complete, overwrite
        check_output(path, source.path, overwrite=overwrite)
        super().__init__(
            path,
            source,
            encoding or encoding_for(source.info, parity=parity),
            parity=parity,
            note=note,
            streams=streams if streams is not None else streams_for(source, path, parity=parity),
        )
        self._partial = partial or _create_beside(path)
        self._cleanup = contextlib.ExitStack()
        self._cleanup.callback(self._partial.unlink, missing_ok=True)
        self._cleanup.enter_context(removed_on_abort(self._partial))
        self._encoder: Any = None
        try:
            self._open()
        except BaseException:
            self._cleanup.close()
            raise

    def _open(self) -> None:
        options = {"movflags": mov_flags(self._streams.tags)} if self._format in ("mp4", "mov") else {}
        self._open_output(file_url(self._partial), options)

    def __enter__(self) -> VideoWriter:
        return self

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
            if self._counts:
                picture.pts, picture.time_base = self._pictures_written, 1 / PARITY_RATE
            else:
                picture.pts, picture.time_base = stamp.start, info.time_base
                picture.duration = stamp.duration
            if self._copier:
                self._copier.advance(stamp.start * info.time_base)
            self._output.mux(encoder.encode(picture))
            self._pictures_written += 1

    def _begin(self, height: int, width: int) -> None:
        """Open the encoder and declare every stream, before the first packet is written."""
        self.encoding.check(self.path, height, width)
        self._encoder = self.encoding.add_stream(self._output, height, width)
        self._declare_others(self._encoder)

    def join(self, segments: Sequence[EncodedSegment], stamps: Sequence[Timestamp]) -> None:
        """Write segments that were encoded on their own, one behind the other, under ``stamps`` of all pictures.

        Raises:
            MediaError: the disk is full or fails.
        """
        with writing(self.path):
            while True:
                try:
                    self._join(segments, stamps)
                    self._end()
                    return
                except av.FFmpegError as error:
                    if error.errno in OF_THE_PLACE or not self._streams.kept():
                        raise
                    self._begin_anew(error)

    def _begin_anew(self, error: av.FFmpegError) -> None:
        """Do without streams that FFmpeg refuses after all: first those that play the least part, then all."""
        sound = [fate for fate in self._streams.kept() if fate.description.startswith("audio")]
        refused = [fate for fate in self._streams.kept() if fate not in sound] or sound
        named = ", ".join(f"{fate.index} ({fate.description})" for fate in refused)
        warn(
            f"{self.path}: FFmpeg refuses to write the streams {named} ({reason_of(error)}); they are left out"
        )
        self._streams = self._streams.without(fate.index for fate in refused)
        self._close()
        self._start()
        self._open()

    def _join(self, segments: Sequence[EncodedSegment], stamps: Sequence[Timestamp]) -> None:
        self._plan_decoding(max(segment.delay for segment in segments), stamps)
        first = 0
        for segment in segments:
            count = len(segment.order)
            self._add(segment, [stamps[number] for number in range(first, first + count)])
            first += count

    def _finish(self) -> None:
        if self._encoder is not None:
            self._output.mux(self._encoder.encode(None))
            self._end()
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
            self._close()


def streams_for(source: VideoReader, path: Path, *, parity: bool = False, convert: bool = True) -> StreamPlan:
    """Decide, and tell, what becomes of the streams of ``source`` beside its pictures in the file ``path``."""
    if parity or source.path.is_dir():
        return StreamPlan(source.source, path)
    plan = plan_streams(source.source, source.info.stream_index, path, convert=convert)
    plan.tell()
    return plan


def check_output(path: Path, source: Path, *, overwrite: bool) -> None:
    """Find out before the work whether ``path`` may be written.

    Raises:
        MediaError: unknown ending, no such folder, a folder, the input itself, or there without ``overwrite``.
    """
    format_for(path)
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
    own_rate: bool = False,
) -> Encoding:
    """How to encode the pictures of the video ``info``: its colours, depth, aspect and time stamps.

    With ``parity`` that is little, and the rate is :data:`PARITY_RATE` unless it is the video's ``own_rate``.

    What of that the codec cannot hold is told as a :class:`~v2v.runtime.media.errors.MediaWarning`.

    Raises:
        EncodingError: unknown codec or preset, or a quality or ``depth`` that the codec does not have.
    """
    if codec in CODECS and not parity:
        depth = depth or _depth_for(info, codec)
        _tell_unheld(info, codec)
    return Encoding(
        # players expect video to be of limited range, and many do not read the tag that says otherwise
        colors=replace(info.colors, full_range=info.colors.full_range and not info.made_of_pictures),
        rate=PARITY_RATE if parity and not own_rate else info.frame_rate,
        time_base=1 / PARITY_RATE if parity and not own_rate else info.time_base,
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
    if not CODECS[codec].says_colors:
        if info.colors.transfer in (hdr.PQ, hdr.HLG):
            warn(
                f"{info.path}: codec {codec} cannot say that it is HDR, so it is shown flat and pale; h264, hevc and "
                "av1 say it"
            )
    elif info.light and hdr.encoder_parameters(CODECS[codec].library, info.light) is None:
        warn(
            f"{info.path}: codec {codec} cannot hold its HDR metadata (mastering display, light levels); the colour "
            "tags are kept. h264, hevc and av1 hold all of it"
        )
    if info.profile and codec != "png":
        warn(
            f"{info.path}: its colour profile (ICC) has no place in a video and is left out; a folder of PNG "
            "pictures would keep it"
        )


def _create_beside(path: Path) -> Path:
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".part", dir=path.parent)
    except OSError as error:
        raise MediaError(
            f"cannot write {path}: {error.strerror} in folder {path.parent}; choose another place with -o"
        ) from error
    os.close(handle)
    return Path(name)
