"""Files inside Qt's binary resources (``.rcc``), in which GCompris keeps its pictures."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

_FOLDER, _ZLIB, _ZSTD = 2, 1, 4  # flags of a node


def read_resource(container: Path, inside: str) -> bytes:
    """The file ``inside`` (``/folder/name``) of ``container``.

    Raises:
        FileNotFoundError: no such file in it.
        ValueError: no Qt resource, or the file is packed with Zstandard.
    """
    data = container.read_bytes()
    if data[:4] != b"qres":
        raise ValueError(f"{container} is no Qt resource")
    version, tree, contents, names = struct.unpack(">4I", data[4:20])
    size = 22 if version >= 2 else 14  # later versions keep a time stamp

    def name(node: int) -> str:
        at = names + struct.unpack_from(">I", data, tree + node * size)[0]
        (length,) = struct.unpack_from(">H", data, at)
        return data[at + 6 : at + 6 + 2 * length].decode("utf-16-be")

    node = 0
    for part in inside.strip("/").split("/"):
        count, first = struct.unpack_from(">2I", data, tree + node * size + 6)
        matching = [child for child in range(first, first + count) if name(child) == part]
        if not matching:
            raise FileNotFoundError(f"{container} holds no {inside}")
        node = matching[0]
    (flags,) = struct.unpack_from(">H", data, tree + node * size + 4)
    if flags & _FOLDER:
        raise FileNotFoundError(f"{inside} is a folder of {container}")
    at = contents + struct.unpack_from(">I", data, tree + node * size + 10)[0]
    (length,) = struct.unpack_from(">I", data, at)
    content = data[at + 4 : at + 4 + length]
    if flags & _ZSTD:
        raise ValueError(f"{inside} of {container} is packed with Zstandard")
    return zlib.decompress(content[4:]) if flags & _ZLIB else content
