"""What there is to know of container formats, and what FFmpeg says when one refuses something."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Any

import av
import av.container
import av.format
import av.logging

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""Endings of files that are written -> FFmpeg's names of their formats."""

Y4M_ENDING = ".y4m"
"""Stands for uncompressed pictures, which are written into pipes alone."""

REORDERED = 32
"""Pictures that a decoder may hold back to put them in order."""

OF_THE_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
OF_THE_PLACE = OF_THE_SPACE | {
    errno.EIO,
    errno.EROFS,
    errno.EACCES,
    errno.ENOENT,
    errno.ENODEV,
}
"""Errors that come from where a file lies, not from what is in it."""


def ending_of(container_format: str) -> str:
    """The usual ending of a format that is written."""
    return next(ending for ending, name in FORMATS.items() if name == container_format)


def may_jump(container: av.container.InputContainer) -> bool:
    """Whether the clock of such a file may jump, as that of a broadcast does."""
    return _has(container, av.format.Flags.ts_discont)


def takes_equal_times(container: av.container.OutputContainer) -> bool:
    """Whether packets of a stream may have the same decoding time."""
    return _has(container, av.format.Flags.ts_nonstrict)


def is_cover(stream: Any) -> bool:
    """Whether a video stream is a still picture attached to the file, whose time says nothing."""
    return bool(stream.disposition & type(stream.disposition).attached_pic)


def _has(container: av.container.Container, flag: av.format.Flags) -> bool:
    bits: Any = flag.value
    return bool(container.format.flags & bits)


@contextlib.contextmanager
def reasons_kept() -> Iterator[None]:
    """Inside, FFmpeg's errors say in words what was wrong, for :func:`reason_of`.

    Only while no other thread uses FFmpeg: what it says there would go to Python's log.
    """
    with log_at(av.logging.ERROR), av.logging.Capture():
        yield


@contextlib.contextmanager
def log_at(level: int) -> Iterator[None]:
    """Inside, FFmpeg's messages from ``level`` on go to whoever captures them."""
    before = av.logging.get_level()
    av.logging.set_level(level)
    try:
        yield
    finally:
        av.logging.set_level(before)


def reason_of(error: Exception) -> str:
    """Why FFmpeg or PyAV refused something, in words."""
    log = getattr(error, "log", None)
    message = " ".join(str(log[2]).split()) if log else ""
    return message or getattr(error, "strerror", None) or str(error) or type(error).__name__
