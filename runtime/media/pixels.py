"""Decoded pictures <-> RGB levels of 8 or 16 bits: matrix, range, depth, transparency, orientation.

Colour codes are those of ITU-T H.273, as FFmpeg and the files use them; 2 means "unspecified".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Interpolation, VideoReformatter

from v2v.core.errors import V2VError
from v2v.device import Frame
from v2v.runtime.media.side_data import Crop

UNSPECIFIED = 2
_RGB, _BT709, _BT601 = 0, 1, 6
_LIMITED, _FULL = 1, 2
_FULL_RANGE_FORMATS = ("gray", "ya", "yuvj")

# H.273 matrix -> swscale's number of the same coefficients.
_NEAR = 0.02  # by which shapes may differ and count as the same

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


def side_data_of(frame: av.VideoFrame, codec: Any) -> dict[str, bytes]:
    """What was decoded beside a frame's pixels, by FFmpeg's names; ``codec`` is the context that decoded it.

    Nothing for PNG: its decoder names colour profiles, and PyAV (18.1) frees that name twice, which ends the
    process. Their profiles are read by :func:`v2v.runtime.media.image_sequence.profile_in`. Nothing either where a
    frame has something that PyAV does not know, such as the EXIF data of photographs before PyAV 19: it reads all
    or none.
    """
    if codec.name in ("png", "apng"):
        return {}
    of_all = getattr(
        codec, "decoded_side_data", {}
    )  # of PyAV 19, whose FFmpeg no longer repeats it at each frame
    try:
        side_data: Any = frame.side_data
        items = [side_data[index] for index in range(len(side_data))]
    except ValueError:
        return {}
    return {kind.name: data for kind, data in of_all.items()} | {
        item.type.name: bytes(item) for item in items
    }


def orientation_of(frame: av.VideoFrame, matrix: bytes | None) -> Orientation:
    """Read a display matrix, rounded to quarter turns and mirrors (ISO 14496-12, 8.2.2).

    Without one the frame's own rotation counts.
    """
    if matrix is None:
        return _TURNS.get(round(frame.rotation / 90) * 90 % 360, Orientation())
    a, b, _, c, d, *_ = struct.unpack("=9i", matrix)
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, flip_x=c < 0, flip_y=b < 0)
    return Orientation(False, flip_x=a < 0, flip_y=d < 0)


# Degrees to turn counterclockwise -> how.
_TURNS = {
    90: Orientation(True, flip_y=True),
    180: Orientation(False, flip_x=True, flip_y=True),
    270: Orientation(True, flip_x=True),
}


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
    """Converts decoded frames of one video to upright RGB levels ``[H, W, 3]``.

    Levels are bytes, or where ``deep`` uint16 that use all of 0..65535. FFmpeg's own conversion to 16 bits makes
    white 65280 and is not the inverse of the way back, so there FFmpeg only enlarges the chroma planes and the
    matrix is applied here: a component of up to 16 bits comes back from :func:`from_rgb` as it was, as long as it
    lies within the colours that RGB has. ``fast`` takes the reference's arithmetic instead of the accurate one and
    has bytes alone. Transparent pixels turn black. A frame of another size than ``size`` is scaled to it, between
    bars if its shape differs; then ``crop`` is taken off.

    Raises:
        V2VError: a matrix that FFmpeg cannot convert.
    """

    def __init__(
        self,
        colors: Colors,
        orientation: Orientation,
        size: tuple[int, int],
        *,
        deep: bool = False,
        fast: bool = False,
        crop: Crop = Crop(),  # noqa: B008  it cannot be changed
    ) -> None:
        if colors.matrix not in _SWSCALE:
            raise V2VError(
                f"the colour matrix of this video (number {colors.matrix} of H.273) cannot be read; "
                "convert it to BT.709 or BT.2020 first"
            )
        self.colors, self.orientation, self.deep, self.fast = colors, orientation, deep, fast
        self._reformatter = VideoReformatter()  # keeps its tables from frame to frame
        self._stored = self._height, self._width = size
        self._crop = crop

    def __call__(self, frame: av.VideoFrame, wider: Fraction = Fraction(1)) -> Frame:
        """Convert one frame, whose pixels are shown ``wider`` than those of the first one."""
        self._height, self._width = self._stored
        if (frame.height, frame.width) != self._stored or wider != 1:
            self._height, self._width = _inside(self._stored, frame.height, frame.width * wider)
        levels = self._deep(frame) if self.deep else self._bytes(frame)
        if levels.shape[:2] != self._stored:
            levels = _on_bars(levels, self._stored)
        return self.orientation.apply(self._crop.apply(levels))

    def _bytes(self, frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
        if frame.format.name.startswith("gray") and not self.colors.full_range:
            return self._grey(frame)
        alpha = has_alpha(frame)
        pixels: npt.NDArray[Any] = self._as_rgb(frame, "rgba" if alpha else "rgb24").to_ndarray()
        return _on_black(pixels) if alpha else pixels

    def _grey(self, frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
        """Grey in 16..235, which swscale would take for 0..255."""
        grey = frame.reformat(width=self._width, height=self._height, format="gray").to_ndarray()
        stretched = np.clip((grey.astype(np.float32) - 16) * (255 / 219), 0, 255).round().astype(np.uint8)
        return np.repeat(stretched[..., None], 3, axis=2)

    def _as_rgb(self, frame: av.VideoFrame, name: str) -> av.VideoFrame:
        """FFmpeg's conversion to a format of RGB."""
        stored_rgb = frame.format.is_rgb or frame.format.has_palette
        stored = _FULL if self.colors.full_range or stored_rgb else _LIMITED
        return self._scaled(frame, name, (stored, _FULL), _FAST if self.fast else _FAITHFUL)

    def _deep(self, frame: av.VideoFrame) -> npt.NDArray[np.uint16]:
        alpha = has_alpha(frame)
        kind = frame.format.name
        if frame.format.is_rgb or frame.format.has_palette or kind.startswith("ya"):
            stored: npt.NDArray[Any] = self._as_rgb(frame, "rgba64le" if alpha else "rgb48le").to_ndarray()
            return _on_black(stored) if alpha else stored
        bits = min(depth for depth in _DEPTHS if depth >= min(depth_of(frame), _DEPTHS[-1]))
        if kind.startswith("gray"):
            grey = self._planes(frame, f"gray{bits}le" if bits > 8 else "gray", _FULL)
            return np.repeat(_stretched(grey[0], bits, self.colors.full_range)[..., None], 3, axis=2)
        if alpha and bits == 14:  # which FFmpeg has no planes for
            bits = 16
        stated = _FULL if self.colors.full_range else _LIMITED
        planes = self._planes(frame, _planar("yuva444p" if alpha else "yuv444p", bits), stated)
        rgb = _rgb_of(planes[:3], bits, self.colors)
        return _on_black(np.dstack([rgb, _stretched(planes[3], bits, full_range=True)])) if alpha else rgb

    def _planes(self, frame: av.VideoFrame, name: str, color_range: int) -> list[npt.NDArray[Any]]:
        """The frame's components at full size, the same numbers, ``[H, W]`` each."""
        return planes_of(self._scaled(frame, name, (color_range, color_range), _FAITHFUL))

    def _scaled(
        self, frame: av.VideoFrame, name: str, ranges: tuple[int, int], interpolation: int
    ) -> av.VideoFrame:
        """The frame at its size in another format; ``ranges`` are those of its numbers before and after."""
        matrix = _SWSCALE[self.colors.matrix]
        frame.colorspace = self.colors.matrix  # PyAV 17 takes BT.2020 from here alone
        return self._reformatter.reformat(
            frame,
            width=self._width,
            height=self._height,
            format=name,
            src_colorspace=matrix,
            dst_colorspace=matrix,
            interpolation=interpolation,
            src_color_range=ranges[0],
            dst_color_range=ranges[1],
        )


def _inside(size: tuple[int, int], height: int, width: Fraction) -> tuple[int, int]:
    """The largest size of the shape ``height x width`` that fits into ``size``; all of it where the shapes agree."""
    scale = min(size[0] / height, float(size[1] / width))
    fitting = max(round(height * scale), 1), max(round(width * scale), 1)
    near = abs(fitting[0] - size[0]) <= _NEAR * size[0] and abs(fitting[1] - size[1]) <= _NEAR * size[1]
    return size if near else fitting


def _on_bars(levels: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    """``[h, w, 3]`` in the middle of black ``[H, W, 3]``."""
    canvas = np.zeros((*size, 3), levels.dtype)
    top, left = ((side - inner) // 2 for side, inner in zip(size, levels.shape[:2], strict=True))
    canvas[top : top + levels.shape[0], left : left + levels.shape[1]] = levels
    return canvas


def planes_of(frame: av.VideoFrame) -> list[npt.NDArray[Any]]:
    """The planes ``[h, w]`` of a planar frame, uint8 or uint16, in the frame's memory."""
    kind = np.uint8 if depth_of(frame) <= 8 else np.uint16
    planes: tuple[Any, ...] = frame.planes
    return [np.frombuffer(p, kind).reshape(p.height, -1)[:, : p.width] for p in planes]


def _on_black(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """``[H, W, 4]`` with straight alpha -> ``[H, W, 3]``."""
    white = int(np.iinfo(pixels.dtype).max)
    weighted = pixels[..., :3].astype(np.uint16 if white == 255 else np.uint32) * pixels[..., 3:]
    blended: npt.NDArray[Any] = ((weighted + white // 2) // white).astype(pixels.dtype)
    return blended


def from_rgb(pixels: Frame, pixel_format: str, colors: Colors, *, fast: bool = False) -> av.VideoFrame:
    """RGB levels ``[H, W, 3]``, uint8 or uint16 -> a frame in ``pixel_format``, tagged with ``colors``."""
    target = av.VideoFormat(pixel_format)
    depth = max(component.bits for component in target.components)
    if pixels.dtype == np.uint16 and depth > 8:
        return _from_deep(pixels, target, depth, colors)
    levels: npt.NDArray[Any] = np.ascontiguousarray(pixels)
    frame = av.VideoFrame.from_ndarray(
        _to_bytes(levels) if levels.dtype == np.uint16 else levels, format="rgb24"
    )
    if frame.format.name == pixel_format:
        return frame
    return _reformatted(
        frame,
        pixel_format,
        colors,
        _FULL,
        _FULL if colors.full_range else _LIMITED,
        _FAST if fast else _FAITHFUL,
    )


def _from_deep(pixels: Frame, target: av.VideoFormat, depth: int, colors: Colors) -> av.VideoFrame:
    """Levels of 16 bits in a format of more than 8."""
    if target.is_rgb:
        levels: npt.NDArray[Any] = np.ascontiguousarray(pixels)
        stored = av.VideoFrame.from_ndarray(levels, format="rgb48le")
        return stored.reformat(format=target.name, src_color_range=_FULL, dst_color_range=_FULL)
    height, width = pixels.shape[:2]
    frame = av.VideoFrame(width, height, _planar("yuv444p", depth))
    for plane, levels in zip(frame.planes, _yuv_of(pixels, depth, colors), strict=True):
        padded: Any = np.zeros((height, plane.line_size // 2), np.uint16)
        padded[:, :width] = levels
        plane.update(padded)
    if frame.format.name == target.name:
        return frame
    stated = _FULL if colors.full_range else _LIMITED
    return _reformatted(frame, target.name, colors, stated, stated, _FAITHFUL)


def _reformatted(
    frame: av.VideoFrame, name: str, colors: Colors, source: int, target: int, interpolation: int
) -> av.VideoFrame:
    matrix = _SWSCALE[colors.matrix]
    frame.colorspace = colors.matrix
    return frame.reformat(
        format=name,
        src_colorspace=matrix,
        dst_colorspace=matrix,
        interpolation=interpolation,
        src_color_range=source,
        dst_color_range=target,
    )


def _to_bytes(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Levels of 16 bits -> the nearest of 8."""
    return ((pixels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


# The arithmetic of H.273, section 8.3: E'R, E'G, E'B in 0..1 here are levels 0..65535 -----------------------------

_DEPTHS = (8, 9, 10, 12, 14, 16)  # that FFmpeg has planar formats for
_WHITE = 65535
_BAND = 1 << 18  # pixels converted at a time: what fits into a processor's cache

# H.273 matrix -> (KR, KB); 10 is BT.2020 with constant luminance, read as players do, like the other.
_WEIGHTS = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
    10: (0.2627, 0.0593),
}


def _planar(kind: str, bits: int) -> str:
    return f"{kind}{bits}le" if bits > 8 else kind


def _code_range(bits: int, full_range: bool) -> tuple[int, int, int, int]:
    """Black, white minus black, grey's chroma, and the chroma's span, in numbers of ``bits`` bits."""
    top, step = (1 << bits) - 1, 1 << (bits - 8)
    return (0, top, 128 * step, top) if full_range else (16 * step, 219 * step, 128 * step, 224 * step)


def _stretched(plane: npt.NDArray[Any], bits: int, full_range: bool) -> npt.NDArray[np.uint16]:
    """A plane of brightness (or alpha) -> levels 0..65535."""
    black, span, _, _ = _code_range(bits, full_range)
    levels = (plane.astype(np.float32) - black) * np.float32(_WHITE / span)
    stretched: npt.NDArray[np.uint16] = np.rint(np.clip(levels, 0, _WHITE)).astype(np.uint16)
    return stretched


def _bands(height: int, width: int) -> Iterator[slice]:
    rows = max(_BAND // width, 1)
    return (slice(top, min(top + rows, height)) for top in range(0, height, rows))


def _rgb_of(planes: Sequence[npt.NDArray[Any]], bits: int, colors: Colors) -> npt.NDArray[np.uint16]:
    """Y', Cb, Cr ``[H, W]`` of ``bits`` bits -> levels ``[H, W, 3]``."""
    kr, kb = _WEIGHTS[colors.matrix]
    kg = 1 - kr - kb
    black, span, grey, chroma = _code_range(bits, colors.full_range)
    out = np.empty((*planes[0].shape, 3), np.uint16)
    for rows in _bands(*planes[0].shape):
        y, b, r = (plane[rows].astype(np.float32) for plane in planes)
        y = (y - black) * np.float32(_WHITE / span)
        b = (b - grey) * np.float32(2 * (1 - kb) * _WHITE / chroma)
        r = (r - grey) * np.float32(2 * (1 - kr) * _WHITE / chroma)
        g = y - np.float32(kr / kg) * r - np.float32(kb / kg) * b
        for channel, levels in enumerate((y + r, g, y + b)):
            out[rows, :, channel] = np.rint(np.clip(levels, 0, _WHITE, out=levels), out=levels)
    return out


def _yuv_of(
    pixels: npt.NDArray[Any], bits: int, colors: Colors
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16], npt.NDArray[np.uint16]]:
    """Levels ``[H, W, 3]`` of 16 bits -> Y', Cb, Cr ``[H, W]`` of ``bits`` bits."""
    kr, kb = _WEIGHTS[colors.matrix]
    black, span, grey, chroma = _code_range(bits, colors.full_range)
    top = (1 << bits) - 1
    luma, blue, red = (np.empty(pixels.shape[:2], np.uint16) for _ in range(3))
    for rows in _bands(*pixels.shape[:2]):
        r, g, b = (pixels[rows, :, channel].astype(np.float32) for channel in range(3))
        y = np.float32(kr) * r + np.float32(1 - kr - kb) * g + np.float32(kb) * b
        luma[rows] = np.rint(y * np.float32(span / _WHITE) + black)
        for plane, component, weight in ((blue, b, kb), (red, r, kr)):
            code = (component - y) * np.float32(chroma / (2 * (1 - weight) * _WHITE)) + grey
            plane[rows] = np.rint(np.clip(code, 0, top))
    return luma, blue, red


def scaled(picture: Frame, size: tuple[int, int], levels: npt.DTypeLike) -> Frame:
    """``picture [H, W, 3]`` at ``size`` (height, width), bicubically, as uint8 or uint16 ``levels``."""
    kinds = {np.dtype(np.uint8): "rgb24", np.dtype(np.uint16): "rgb48le"}
    frame = av.VideoFrame.from_ndarray(picture, format=kinds[picture.dtype])
    height, width = size
    kind = kinds[np.dtype(levels)]
    converted: Any = frame.reformat(width, height, kind, interpolation=Interpolation.BICUBIC).to_ndarray()
    result: Frame = converted
    return result
