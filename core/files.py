"""Files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

_LONGEST = 255  # bytes of a name, on every file system of note
_FOR_SYNC = (
    os.O_RDWR if os.name == "nt" else os.O_RDONLY
)  # Windows syncs nothing that was opened for reading alone

NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
"""Flags for opening a file, never what a link leads to; not every system has them."""


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk, so that a rename after it cannot come first.

    Windows opens no folders; its file systems keep the order by themselves.
    """
    try:
        handle = os.open(path, _FOR_SYNC)
    except PermissionError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Make sure that all of it is on the disk before the rename that makes it visible."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def new_file(path: Path) -> int:
    """The handle of a new file, for writing; only its owner may read it.

    Raises:
        OSError: something is there already, a link too.
    """
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK, 0o600)


def umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def hidden_sibling(path: Path, ending: str) -> Path:
    """``.NAME`` + ``ending`` beside ``path``; where that is too long, NAME is cut and a hash keeps it unique.

    The same path gives the same sibling.
    """
    name, ending_bytes = os.fsencode(path.name), os.fsencode(ending)
    if 1 + len(name) + len(ending_bytes) > _LONGEST:
        mark = b"-" + hashlib.sha256(name).hexdigest()[:16].encode()
        beginning = name[: _LONGEST - 1 - len(mark) - len(ending_bytes)]
        name = beginning.decode(errors="ignore").encode() + mark  # no half characters
    return path.with_name(os.fsdecode(b"." + name + ending_bytes))


def link_or_copy(source: Path, target: Path) -> Path:
    """Put ``source`` at ``target`` without a second copy of its gigabytes where the file system can."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target


def write_whole(path: Path, text: str) -> None:
    """Write a small file that appears when it is complete."""
    fresh = hidden_sibling(path, ".writing")
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def read_limited(path: Path, most: int) -> bytes:
    """The content of a file that anybody may have made.

    Raises:
        OSError: it cannot be read.
        ValueError: it has more than ``most`` bytes.
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most >> 20} MiB")
    return content
