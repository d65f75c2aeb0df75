"""Uncompressed video as ``ffmpeg -f yuv4mpegpipe`` writes it, made and read by hand."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# What a header calls them -> (columns, rows) of luma for each of chroma, and bytes of a number.
KINDS = {
    "420jpeg": ((2, 2), 1),
    "420mpeg2": ((2, 2), 1),
    "422": ((2, 1), 1),
    "444": ((1, 1), 1),
    "420p10": ((2, 2), 2),
    "422p10": ((2, 1), 2),
    "444p10": ((1, 1), 2),
}


def header(
    size: tuple[int, int] = (64, 48),
    kind: str = "420jpeg",
    *,
    rate: str = "25:1",
    interlaced: str = "p",
    aspect: str = "1:1",
    more: str = "",
) -> bytes:
    """The first line; ``size`` is (width, height)."""
    fields = f"YUV4MPEG2 W{size[0]} H{size[1]} F{rate} I{interlaced} A{aspect} C{kind} {more}"
    return fields.strip().encode() + b"\n"


def picture(number: int, size: tuple[int, int] = (64, 48), kind: str = "420jpeg") -> bytes:
    """A frame that moves with ``number``."""
    (columns, rows), width_of_number = KINDS[kind]
    width, height = size
    scale, level = (1, np.uint8) if width_of_number == 1 else (4, np.dtype("<u2"))
    y, x = np.mgrid[0:height, 0:width]
    luma = 40 + 150 * x / width + 20 * np.sin((y + 3 * number) / 7)
    chroma = 128 + 30 * np.cos((x[::rows, ::columns] + 2 * number) / 11)
    planes = [(scale * plane).astype(level).tobytes() for plane in (luma, chroma, 256 - chroma)]
    return b"FRAME\n" + b"".join(planes)


def film(frames: int, size: tuple[int, int] = (64, 48), kind: str = "420jpeg", **said: str) -> bytes:
    """A whole film."""
    return header(size, kind, **said) + b"".join(picture(number, size, kind) for number in range(frames))


def parsed(film: bytes) -> tuple[dict[str, str], list[bytes]]:
    """What the first line says, by its letters (X fields by their names), and each frame's planes."""
    line, _, rest = film.partition(b"\n")
    magic, *fields = line.decode().split()
    assert magic == "YUV4MPEG2"
    said = dict(
        field[1:].split("=", 1) if field.startswith("X") else (field[0], field[1:]) for field in fields
    )
    return said, list(_frames(rest, said))


def _frames(rest: bytes, said: dict[str, str]) -> Iterator[bytes]:
    (columns, rows), width_of_number = KINDS[said["C"]]
    width, height = int(said["W"]), int(said["H"])
    size = width_of_number * (width * height + 2 * -(-width // columns) * -(-height // rows))
    mark = b"FRAME\n"
    for start in range(0, len(rest), size + len(mark)):
        assert rest.startswith(mark, start)
        assert len(rest) >= start + len(mark) + size, "the last frame is cut off"
        yield rest[start + len(mark) : start + len(mark) + size]
