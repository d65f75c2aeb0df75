"""A film whose pictures are kept as they are: RGB in FFV1, in Matroska, what one stage of a run hands to the next."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from v2v.core.abort import removed_on_abort
from v2v.core.files import sync, umask
from v2v.device import Frame
from v2v.runtime.media.names import file_url
from v2v.runtime.media.writer import writing

ENDING = ".mkv"
_RGB = "bgr0"  # FFV1's name of 8-bit RGB


def write_lossless(path: Path, frames: Iterable[Frame], rate: Fraction, note: str) -> int:
    """Write ``frames [H, W, 3]``, uint8, into ``path``, which appears when it is whole; returns their number.

    A file of that name is replaced. ``note`` becomes its comment. The same frames and note give the same bytes.

    Raises:
        MediaError: the disk is full or fails.
    """
    with writing(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=".part")
        os.close(handle)
    partial, count = Path(name), 0
    try:
        with removed_on_abort(partial), writing(path):
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
            partial.replace(path)
            sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)
    return count


def _stream(output: Any, frame: Frame, rate: Fraction) -> Any:
    stream: Any = output.add_stream("ffv1", rate=rate)
    stream.height, stream.width = frame.shape[:2]
    stream.pix_fmt, stream.options = _RGB, {"level": "3", "g": "1"}
    context = stream.codec_context
    context.time_base, context.thread_count = 1 / rate, 1
    context.color_primaries, context.color_trc, context.colorspace, context.color_range = 1, 1, 0, 2
    return stream
