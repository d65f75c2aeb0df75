"""Errors and warnings about files of pictures and sound."""

from __future__ import annotations

import warnings

import av

from v2v.core.errors import V2VError

FFmpegError = av.FFmpegError
"""What FFmpeg's library raises, as PyAV hands it on; those about files are also :class:`OSError`."""


class MediaError(V2VError):
    """A video cannot be read or written; the message names the file, the cause and the way out."""


class MediaWarning(UserWarning):
    """Something of the input could not be used or kept; the message names the file, what and why."""


def warn(message: str) -> None:
    """Warn the user; the run goes on."""
    warnings.warn(message, MediaWarning, stacklevel=3)
