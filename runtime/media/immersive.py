"""Carry over the metadata of spherical (360 degrees) and stereoscopic pictures.

FFmpeg keeps it beside a stream's packets, where PyAV (18, 19) cannot put anything. A stream that is declared after
another takes it over, though: so a Matroska file without pictures is made in memory that says all of it.
"""

from __future__ import annotations

import io
import struct
from typing import Any

import av
import av.container

_CODECS = {
    "h264": "V_MPEG4/ISO/AVC",
    "hevc": "V_MPEGH/ISO/HEVC",
    "av1": "V_AV1",
    "ffv1": "V_FFV1",
    "prores": "V_PRORES",
}
# libavutil's AVStereo3D (kind, right eye first) -> Matroska's StereoMode
_STEREO = {
    (1, 0): 1,
    (1, 1): 11,
    (2, 0): 3,
    (2, 1): 2,
    (3, 0): 13,
    (3, 1): 14,
    (4, 0): 5,
    (4, 1): 4,
    (6, 0): 7,
    (6, 1): 6,
    (7, 0): 9,
    (7, 1): 8,
}
_EQUIRECTANGULAR, _CUBEMAP, _EQUIRECTANGULAR_TILE = 0, 1, 2  # libavutil's AVSphericalProjection
_RIGHT_FIRST = 1  # of AVStereo3D's flags


def is_immersive(side_data: dict[str, bytes]) -> bool:
    """Whether pictures are of all around or for two eyes."""
    stereo = side_data.get("STEREO3D")
    return "SPHERICAL" in side_data or (stereo is not None and struct.unpack_from("=i", stereo)[0] != 0)


def keeps_immersive(container_format: str) -> bool:
    """Whether a file of a format can say it."""
    return container_format in ("mp4", "matroska")


def saying(side_data: dict[str, bytes], template: Any) -> av.container.InputContainer | None:
    """A file with one stream, encoded as ``template``, that says what ``side_data`` does; None: there is no way."""
    codec = _CODECS.get(template.codec_context.codec.canonical_name)
    projection = _projection(side_data["SPHERICAL"]) if "SPHERICAL" in side_data else b""
    if codec is None or projection is None:
        return None
    video = _number(0xB0, template.width) + _number(0xBA, template.height) + projection
    if "STEREO3D" in side_data:
        kind, flags = struct.unpack_from("=2i", side_data["STEREO3D"])
        if mode := _STEREO.get((kind, flags & _RIGHT_FIRST)):
            video += _number(0x53B8, mode)
    track = _number(0xD7, 1) + _number(0x73C5, 1) + _number(0x83, 1) + _element(0x86, codec.encode())
    if template.codec_context.extradata:
        track += _element(0x63A2, template.codec_context.extradata)
    track += _element(0xE0, video)
    info = _number(0x2AD7B1, 1_000_000) + _element(0x4D80, b"v2v") + _element(0x5741, b"v2v")
    content = _element(0x1549A966, info) + _element(0x1654AE6B, _element(0xAE, track))
    content += _element(0x1F43B675, _number(0xE7, 0))  # an empty cluster
    kind_of_file = _element(0x4282, b"matroska") + _number(0x4287, 4) + _number(0x4285, 2)
    file = io.BytesIO(_element(0x1A45DFA3, kind_of_file) + _element(0x18538067, content))
    try:
        return av.open(file, "r", format="matroska")
    except av.FFmpegError:
        return None


def _projection(spherical: bytes) -> bytes | None:
    """Libavutil's AVSphericalMapping as Matroska's Projection; None for a kind that it does not know."""
    kind, yaw, pitch, roll, left, top, right, bottom, padding = struct.unpack_from("=4i5I", spherical)
    if kind == _CUBEMAP:
        number, private = 2, struct.pack(">3I", 0, 0, padding)
    elif kind in (_EQUIRECTANGULAR, _EQUIRECTANGULAR_TILE):
        number, private = 1, struct.pack(">5I", 0, top, bottom, left, right)
    else:
        return None
    pose = b"".join(
        _element(name, struct.pack(">f", angle / 65536))
        for name, angle in ((0x7673, yaw), (0x7674, pitch), (0x7675, roll))
    )
    return _element(0x7670, _number(0x7671, number) + _element(0x7672, private) + pose)


def _element(name: int, content: bytes) -> bytes:
    """An element of EBML (RFC 8794), its size in eight bytes."""
    return (
        name.to_bytes((name.bit_length() + 7) // 8, "big")
        + b"\x01"
        + len(content).to_bytes(7, "big")
        + content
    )


def _number(name: int, value: int) -> bytes:
    return _element(name, value.to_bytes(8, "big"))
