"""A film whose pictures are kept as they are: RGB in FFV1, in Matroska, what one stage of a run hands to the next."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import filelock

from v2v.core.abort import removed_on_abort
from v2v.core.files import hidden_sibling, new_file, sync, umask
from v2v.device import Frame
from v2v.runtime.media.errors import MediaError
from v2v.runtime.media.muxing import writing
from v2v.runtime.media.names import file_url

ENDING = ".mkv"
_RGB = "bgr0"  # FFV1's name of 8-bit RGB
_SLICES = 16  # parts of a picture that are encoded at once; the bytes depend on them, not on the threads


def write_lossless(path: Path, frames: Iterable[Frame], rate: Fraction, note: str) -> int:
    """Write ``frames [H, W, 3]``, uint8, into ``path``, which appears when it is whole; returns their number.

    A file of that name is replaced. ``note`` becomes its comment. The same frames and note give the same bytes.
    What a killed run has left beside it goes.

    Raises:
        MediaError: the disk is full or fails, or another run is writing this.
    """
    partial, count = hidden_sibling(path, ".part"), 0
    with writing(path), _alone(path) as file:
        partial.unlink(missing_ok=True)
        # New, so that it is a file, whatever anybody puts there at this moment.
        os.close(new_file(partial))
        with removed_on_abort(partial), _removed_at_last(partial):
            with av.open(
                file_url(partial), "w", format="matroska", container_options={"fflags": "+bitexact"}
            ) as output:
                output.metadata["comment"] = note
                stream: Any = None
                for count, frame in enumerate(frames, start=1):
                    if stream is None:
                        stream = _stream(output, frame, rate)
                    picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=_RGB)
                    picture.pts, picture.time_base = count - 1, 1 / rate
                    output.mux(stream.encode(picture))
                if stream is not None:
                    output.mux(stream.encode(None))
            sync(partial)
            partial.chmod(0o666 & ~umask())
            file.unlink(missing_ok=True)  # before the last step, so that nobody need come back for it
            partial.replace(path)
            sync(path.parent)
    return count


@contextmanager
def _alone(path: Path) -> Iterator[Path]:
    """Inside, no other run writes ``path``; lends the file that says so."""
    file = hidden_sibling(path, ".lock")
    lock = filelock.FileLock(file)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise MediaError(f"another run is writing {path}; wait for it, or choose another name") from None
    with removed_on_abort(file), _removed_at_last(file):
        try:
            yield file
        finally:
            lock.release()


@contextmanager
def _removed_at_last(path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _stream(output: Any, frame: Frame, rate: Fraction) -> Any:
    stream: Any = output.add_stream("ffv1", rate=rate)
    stream.height, stream.width = frame.shape[:2]
    stream.pix_fmt, stream.options = _RGB, {"level": "3", "g": "1", "slices": str(_SLICES)}
    context = stream.codec_context
    context.time_base, context.thread_count = 1 / rate, _SLICES
    context.color_primaries, context.color_trc, context.colorspace, context.color_range = 1, 1, 0, 2
    return stream
