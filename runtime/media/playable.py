"""A video once more as browsers play it: H.264 in MP4, without sound."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from v2v.device.cpu import CpuDevice
from v2v.runtime.media import hdr
from v2v.runtime.media.encoding import Encoding
from v2v.runtime.media.names import file_url
from v2v.runtime.media.pixels import Colors
from v2v.runtime.media.reader import VideoReader
from v2v.runtime.media.time_range import TimeRange

_BT601 = 6


def playable(
    video: Path, time_range: TimeRange, size: tuple[int, int], target: Path, longest: Fraction
) -> bytes:
    """The pictures of ``video`` resized to ``size`` (height, width), as bytes of an MP4 that starts at 0.

    At most ``longest`` seconds; ``target`` is where it is written.

    Raises:
        MediaError: the video cannot be read.
    """
    device = CpuDevice()
    even = (size[0] + size[0] % 2, size[1] + size[1] % 2)
    image = device.empty((1, 3, *even), np.float32)
    pixels: npt.NDArray[np.uint8] = device.empty((*even, 3), np.uint8)
    with VideoReader(video, time_range=time_range) as reader, av.open(file_url(target), "w") as container:
        info = reader.info
        is_hdr = info.colors.transfer in (
            hdr.PQ,
            hdr.HLG,
        )  # which a browser shows as such, or as well as it can
        colors = replace(info.colors, full_range=False) if is_hdr else Colors(matrix=_BT601)
        encoding = Encoding(colors, info.frame_rate, info.time_base, crf=18)
        stream = encoding.add_stream(container, *even)
        first: int | None = None
        for frame in reader.frames():
            stamp = reader.timestamps.popleft()
            first = stamp.start if first is None else first
            if (stamp.start - first) * info.time_base > longest:
                break
            if frame.shape[:2] != even:
                device.prepare_frame(frame, size, image, offset=(0, 0), antialias=True)
                device.image_to_bytes(image, pixels, truncate=False)
                frame = pixels
            picture = encoding.picture(frame, stream)
            picture.pts, picture.time_base = stamp.start - first, info.time_base
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return target.read_bytes()
