"""``-`` for a file: the standard input, kept in a temporary file while it is needed, and the standard output.

For the rest of the program both are whole files: one cannot go back and forth in a pipe.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from v2v.core.abort import removed_on_abort
from v2v.core.errors import UsageError

PIPE = "-"
_STREAMED = "stdout.mkv"  # Matroska can be played while it is still coming in


@contextmanager
def input_path(given: Path) -> Iterator[Path]:
    """The file to read: ``given``, or what comes in by the standard input where that is "-".

    Raises:
        UsageError: the standard input is a terminal.
    """
    if str(given) != PIPE:
        yield given
        return
    if sys.stdin.isatty():
        raise UsageError("INPUT is -, but nothing is piped in; give a file, or pipe one in")
    with _temporary_folder() as folder:
        spooled = folder / "stdin"
        with spooled.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
        yield spooled


@contextmanager
def output_path(given: Path) -> Iterator[Path]:
    """The file to write: ``given``, or one that goes out by the standard output, as Matroska, where that is "-".

    Raises:
        UsageError: the standard output is a terminal.
    """
    if str(given) != PIPE:
        yield given
        return
    if sys.stdout.isatty():
        raise UsageError(
            "-o is -, but the standard output is a terminal; redirect it, or name a file with -o"
        )
    with _temporary_folder() as folder:
        yield folder / _STREAMED
        with (folder / _STREAMED).open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer, 1 << 20)
        sys.stdout.buffer.flush()


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="v2v-") as name, removed_on_abort(Path(name)):
        yield Path(name)
