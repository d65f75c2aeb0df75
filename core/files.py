"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk, so that a rename after it cannot come first."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Make sure that all of it is on the disk before the rename that makes it visible."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
