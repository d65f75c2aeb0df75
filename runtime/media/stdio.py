"""Pipes in the place of files: ``-`` is the standard input or output, and an input may be a pipe that has a name.

For the rest of the program all are whole files, kept in a temporary one while it is needed: one cannot go back and
forth in a pipe.
"""

from __future__ import annotations

import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from v2v.core.abort import removed_on_abort
from v2v.core.errors import UsageError

PIPE = "-"
STREAMED = "stdout.mkv"  # Matroska can be played while it is still coming in


@contextmanager
def input_path(path: Path) -> Iterator[Path]:
    """The file to read: ``path``, or a copy of what comes in by a pipe, where that is "-" or the name of one.

    Raises:
        UsageError: nothing can come in: the standard input is a terminal or closed, or the name is that of a device; or
            there is no room to keep it.
    """
    if str(path) == PIPE:
        if sys.stdin is None:
            raise UsageError("INPUT is -, but the standard input is closed; give a file, or pipe one in")
        if sys.stdin.isatty():
            raise UsageError("INPUT is -, but nothing is piped in; give a file, or pipe one in")
        with _spooled(sys.stdin.buffer, "stdin") as spooled:
            yield spooled
    elif is_pipe(path):
        with path.open("rb") as pipe, _spooled(pipe, path.name) as spooled:
            yield spooled
    else:
        check_input(path)
        yield path


def is_pipe(path: Path) -> bool:
    """Whether ``path`` is a pipe that has a name: a FIFO, ``/dev/stdin`` or ``/dev/fd/63`` where that is one."""
    try:
        return stat.S_ISFIFO(path.stat().st_mode)
    except OSError:
        return False


def check_input(path: Path) -> None:
    """Refuse what is neither file nor folder, and would be read for ever or not at all.

    Raises:
        UsageError: ``path`` is a terminal, a disk, a socket or another device.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # whoever opens it says why it cannot
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UsageError(f"INPUT {path} is a device, not a file; give a file, or pipe one in as -")


@contextmanager
def output_path(path: Path) -> Iterator[Path]:
    """The file to write: ``path``, or a Matroska file that is sent to the standard output, where that is "-".

    Raises:
        UsageError: the standard output is a terminal or closed, or takes no more.
        BrokenPipeError: nobody reads it any more.
    """
    if str(path) != PIPE:
        yield path
        return
    if sys.stdout is None:
        raise UsageError("-o is -, but the standard output is closed; name a file with -o")
    if sys.stdout.isatty():
        raise UsageError(
            "-o is -, but the standard output is a terminal; redirect it, or name a file with -o"
        )
    with _temporary_folder() as folder:
        yield folder / STREAMED
        with (folder / STREAMED).open("rb") as file:
            try:
                shutil.copyfileobj(file, sys.stdout.buffer, 1 << 20)
                sys.stdout.buffer.flush()
            except BrokenPipeError:
                raise
            except OSError as error:
                raise UsageError(
                    f"-o -: the standard output takes no more: {error.strerror}; name a file with -o"
                ) from error


@contextmanager
def _spooled(pipe: BinaryIO, name: str) -> Iterator[Path]:
    with _temporary_folder() as folder:
        spooled = folder / name
        try:
            with spooled.open("wb") as file:
                shutil.copyfileobj(pipe, file, 1 << 20)
        except OSError as error:
            raise UsageError(
                f"what comes in by the pipe cannot be kept in {folder.parent}: {error.strerror}; free space there, or "
                "set TMPDIR to a folder that has it"
            ) from error
        yield spooled


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="v2v-") as name, removed_on_abort(Path(name)):
        yield Path(name)
