"""Decoded pictures <-> RGB bytes: matrix, range, depth, transparency, orientation.

Colour codes are those of ITU-T H.273, as FFmpeg and the files use them; 2 means "unspecified".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from v2v.engine.backend import V2VError

UNSPECIFIED = 2
_RGB, _BT709, _BT601 = 0, 1, 6
_LIMITED, _FULL = 1, 2
_FULL_RANGE_FORMATS = ("gray", "ya", "yuvj")

# H.273 matrix -> swscale's number of the same coefficients.
_SWSCALE = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}

# swscale's flags. Bicubic alone takes its fast path, which gives what OpenCV 4 gives, bit for bit where a component has
# 8 bits; with accurate rounding and full chroma interpolation the picture keeps its mean and chroma has no steps.
_BICUBIC, _ACCURATE, _FULL_CHROMA = 0x4, 0x40000, 0x2000
_FAST = _BICUBIC
_FAITHFUL = _BICUBIC | _ACCURATE | _FULL_CHROMA


@dataclass(frozen=True)
class Colors:
    """What the numbers of a picture mean."""

    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED
    matrix: int = UNSPECIFIED
    full_range: bool = False

    def resolved(self, width: int, height: int) -> Colors:
        """With a definite matrix: where a file says none, players take BT.709 for HD and BT.601 for less."""
        if self.matrix not in (UNSPECIFIED, _RGB):
            return self
        hd = width >= 1280 or height > 576
        return replace(self, matrix=_BT709 if hd or self.matrix == _RGB else _BT601)


REFERENCE_COLORS = Colors(matrix=_BT601)
"""How the reference writes every file."""


@dataclass(frozen=True)
class Orientation:
    """How the stored picture becomes the upright one: transpose, then flip."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    def apply(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """``[H, W, C]`` -> upright ``[H', W', C]``, contiguous."""
        if self.transpose:
            pixels = pixels.transpose(1, 0, 2)
        return np.ascontiguousarray(pixels[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1])


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """Read a frame's display matrix, rounded to quarter turns and mirrors (ISO 14496-12, 8.2.2)."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return Orientation()
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(data))
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, flip_x=c < 0, flip_y=b < 0)
    return Orientation(False, flip_x=a < 0, flip_y=d < 0)


def colors_of(frame: av.VideoFrame, codec: av.VideoCodecContext) -> Colors:
    """What the frame and its stream say about their colours, range made definite, matrix not yet."""
    stated = int(frame.color_range) or int(codec.color_range)
    # Where nothing is said, grey formats count as 0..255 and YUV as 16..235, as FFmpeg and players take them.
    full = stated == _FULL if stated else frame.format.name.startswith(_FULL_RANGE_FORMATS)
    matrix = _RGB if frame.format.is_rgb else int(frame.colorspace)
    if matrix == UNSPECIFIED:
        matrix = int(codec.colorspace)
    return Colors(int(codec.color_primaries), int(codec.color_trc), matrix, full)


def reference_colors(frame: av.VideoFrame) -> Colors:
    """What the reference takes a frame for: BT.601, and 0..255 only where the pixel format itself says so.

    That is OpenCV 4, with which it was published; OpenCV 5 goes by a file's tags.
    """
    return replace(REFERENCE_COLORS, full_range=frame.format.name.startswith(_FULL_RANGE_FORMATS))


def has_alpha(frame: av.VideoFrame) -> bool:
    """Whether the frame has a channel for transparency."""
    return any(component.is_alpha for component in frame.format.components)


def depth_of(frame: av.VideoFrame) -> int:
    """Bits per component: 8, 10, 12, 16."""
    return max(component.bits for component in frame.format.components)


class ToRGB:
    """Converts decoded frames of one video to upright RGB bytes ``[H, W, 3]``.

    ``fast`` takes the reference's arithmetic instead of the accurate one. Transparent pixels turn black.

    Raises:
        V2VError: a matrix that FFmpeg cannot convert.
    """

    def __init__(
        self,
        colors: Colors,
        orientation: Orientation,
        size: tuple[int, int],
        *,
        fast: bool = False,
    ) -> None:
        if colors.matrix not in _SWSCALE:
            raise V2VError(
                f"the colour matrix of this video (number {colors.matrix} of H.273) cannot be read; "
                "convert it to BT.709 or BT.2020 first"
            )
        self.colors, self.orientation, self.fast = colors, orientation, fast
        self._reformatter = VideoReformatter()  # keeps its tables from frame to frame
        self._height, self._width = size  # as stored; a frame of another size is scaled to it

    def __call__(self, frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
        """Convert one frame."""
        alpha = has_alpha(frame)
        if frame.format.name.startswith("gray") and not self.colors.full_range:
            return self._grey(frame)
        matrix = _SWSCALE[self.colors.matrix]
        frame.colorspace = self.colors.matrix  # PyAV 17 takes BT.2020 from here alone
        stored_rgb = frame.format.is_rgb or frame.format.has_palette
        converted = self._reformatter.reformat(
            frame,
            width=self._width,
            height=self._height,
            format="rgba" if alpha else "rgb24",
            src_colorspace=matrix,
            dst_colorspace=matrix,
            interpolation=_FAST if self.fast else _FAITHFUL,
            src_color_range=_FULL if self.colors.full_range or stored_rgb else _LIMITED,
            dst_color_range=_FULL,
        )
        pixels: npt.NDArray[Any] = converted.to_ndarray()
        if alpha:
            pixels = _on_black(pixels)
        return self.orientation.apply(pixels)

    def _grey(self, frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
        """Grey in 16..235, which swscale would take for 0..255."""
        grey = frame.reformat(width=self._width, height=self._height, format="gray").to_ndarray()
        stretched = np.clip((grey.astype(np.float32) - 16) * (255 / 219), 0, 255).round().astype(np.uint8)
        return self.orientation.apply(np.repeat(stretched[..., None], 3, axis=2))


def _on_black(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """``[H, W, 4]`` with straight alpha -> ``[H, W, 3]``."""
    shown = pixels[..., :3].astype(np.uint16) * pixels[..., 3:]
    return ((shown + 127) // 255).astype(np.uint8)


def from_rgb(
    pixels: npt.NDArray[np.uint8], pixel_format: str, colors: Colors, *, fast: bool = False
) -> av.VideoFrame:
    """RGB bytes ``[H, W, 3]`` -> a frame in ``pixel_format``, tagged with ``colors``."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    if frame.format.name == pixel_format:
        return frame
    matrix = _SWSCALE[colors.matrix]
    frame.colorspace = colors.matrix
    return frame.reformat(
        format=pixel_format,
        src_colorspace=matrix,
        dst_colorspace=matrix,
        interpolation=_FAST if fast else _FAITHFUL,
        src_color_range=_FULL,
        dst_color_range=_FULL if colors.full_range else _LIMITED,
    )
