"""Pipes in the place of files: ``-`` is the standard input or output, and an input may be a pipe that has a name.

What goes on into a pipe is read as it comes, if it can be read from its beginning to its end. Everything else is kept
in a temporary file first: one cannot go back and forth in a pipe, nor go on with it after an interruption.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from v2v.core.abort import removed_on_abort
from v2v.core.errors import UsageError
from v2v.runtime.media.pipe_in import MATROSKA, Y4M, Inflow, Source
from v2v.runtime.media.pipe_out import piped_name

PIPE = "-"


@contextmanager
def opened_input(path: Path, *, streamed: bool, from_the_start: bool = True) -> Iterator[Source]:
    """What to read: ``path``, or what comes in by a pipe, where that is "-" or the name of one.

    Args:
        path: as the user names it.
        streamed: what comes in may be read as it comes. y4m and Matroska are, by their first bytes.
        from_the_start: Matroska may too. Otherwise its sound would wait in memory until the pictures begin.

    Raises:
        UsageError: nothing can come in: the standard input is a terminal or closed, or the name is that of a device; or
            there is no room to keep it.
    """
    if str(path) == PIPE:
        if sys.stdin is None:
            raise UsageError("INPUT is -, but the standard input is closed; give a file, or pipe one in")
        if sys.stdin.isatty():
            raise UsageError("INPUT is -, but nothing is piped in; give a file, or pipe one in")
        path, handle = Path("/dev/stdin"), sys.stdin.fileno()
    elif is_pipe(path):
        handle = None
    else:
        check_input(path)
        yield path
        return
    with _read_from(path, handle) as (pipe, beginning):
        as_it_comes = (Y4M, MATROSKA) if from_the_start else (Y4M,)
        if streamed and beginning.startswith(as_it_comes):
            with closing(Inflow(pipe.fileno(), path, beginning)) as inflow:
                yield inflow
        else:
            with _spooled(beginning, pipe, path.name) as spooled:
                yield spooled


@contextmanager
def _read_from(path: Path, handle: int | None) -> Iterator[tuple[io.FileIO, bytes]]:
    """The pipe, and its first bytes, enough to know a format by."""
    beginning = b""
    with ExitStack() as opened:
        try:
            name = path if handle is None else handle
            pipe = opened.enter_context(io.FileIO(name, closefd=handle is None))
            while len(beginning) < len(Y4M) and (more := pipe.read(len(Y4M) - len(beginning))):
                beginning += more
        except OSError as error:
            raise UsageError(
                f"INPUT {path} cannot be read: {error.strerror}; give a file, or pipe one in"
            ) from error
        yield pipe, beginning


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
def output_path(path: Path, codec: str) -> Iterator[Path]:
    """The file to write: ``path``, or where that is "-" a name in a temporary folder, for what lies beside the output.

    Raises:
        UsageError: the standard output is a terminal or closed.
    """
    if str(path) != PIPE:
        yield path
        return
    check_stdout()
    with _temporary_folder() as folder:
        yield folder / piped_name(codec)


def check_stdout() -> None:
    """Find out before the work whether a video may be written to the standard output.

    Raises:
        UsageError: it is a terminal or closed.
    """
    if sys.stdout is None:
        raise UsageError("-o is -, but the standard output is closed; name a file with -o")
    if sys.stdout.isatty():
        raise UsageError(
            "-o is -, but the standard output is a terminal; redirect it, or name a file with -o"
        )


class StandardOutput:
    """Writes to the standard output, at once.

    ``failure`` is what went wrong in writing, as soon as it has: whoever reads may be gone.
    """

    def __init__(self) -> None:
        check_stdout()
        sys.stdout.flush()
        self._handle = sys.stdout.fileno()
        self.failure: Exception | None = None

    def write(self, data: bytes) -> int:
        """Write all of ``data``.

        Raises:
            UsageError: it takes no more.
            BrokenPipeError: nobody reads it any more.
        """
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._handle, rest) :]
        except KeyboardInterrupt as error:  # which PyAV would not hand on
            raise InterruptedError from error
        except BrokenPipeError as error:
            self.failure = error
            raise
        except OSError as error:
            self.failure = UsageError(
                f"-o -: the standard output takes no more: {error.strerror}; name a file with -o"
            )
            raise self.failure from error
        return len(data)

    def check(self) -> None:
        """Raise what went wrong, if anything did."""
        if self.failure is not None:
            raise self.failure


@contextmanager
def _spooled(beginning: bytes, pipe: io.FileIO, name: str) -> Iterator[Path]:
    with _temporary_folder() as folder:
        spooled = folder / name
        try:
            with spooled.open("wb") as file:
                file.write(beginning)
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
