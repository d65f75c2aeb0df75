"""Ctrl-C, ``kill`` and a closed terminal end a command within two seconds and leave nothing half-written.

Python raises KeyboardInterrupt only between its own instructions, and one call into a compiler or an engine
can take minutes. So a thread that waits for the signal gives the main thread a moment to leave in the regular
way, then removes what :func:`removed_on_abort` registered and ends the process.
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

PATIENCE = 1.0
"""Seconds that the main thread has to leave by itself."""

SIGNALS = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Those that end a command; Windows has no SIGHUP."""

_unfinished: set[Path] = set()
_received: list[int] = []
_handled: list[signal.Signals] = []
_watching: list[threading.Thread] = []


def exit_code() -> int | None:
    """128 plus the number of the signal that told this process to stop; None if none did."""
    return 128 + _received[0] if _received else None


@contextmanager
def removed_on_abort(path: Path) -> Iterator[None]:
    """Inside, ``path`` (a file or a folder under construction) is removed if the process is told to stop."""
    _unfinished.add(path)
    try:
        yield
    finally:
        _unfinished.discard(path)


def watch() -> None:
    """From now on SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt, and end the process if that takes too long.

    One that is ignored already stays so, as ``nohup`` wants it. For commands; call it in the main thread.
    """
    if _watching:
        return
    reader, writer = socket.socketpair()  # Windows takes nothing else
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
    _handled.extend(
        number
        for number in SIGNALS
        if number is signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN
    )
    take_signals()
    _watching.append(threading.Thread(target=_end_late, args=(reader,), daemon=True, name="v2v-abort"))
    _watching[0].start()


def take_signals() -> None:
    """Install our handlers again where a library has replaced them; does nothing before :func:`watch`."""
    for number in _handled:
        signal.signal(number, _raise)


def start(module: str) -> NoReturn:
    """Import ``module``, which takes a second, and call its ``main``; a signal ends it as quietly then as later."""
    try:
        watch()
        sys.exit(importlib.import_module(module).main())
    except BaseException:
        if (code := exit_code()) is not None:
            os._exit(code)
        raise


def _raise(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    raise KeyboardInterrupt


def _end_late(reader: socket.socket) -> None:
    while True:
        number = reader.recv(1)[0]
        if number in SIGNALS:
            _received.append(number)  # here too: a library may have a handler of its own in the place of ours
            break
    time.sleep(PATIENCE)
    for path in tuple(_unfinished):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            sys.stderr.write("\x1b[?25h" if sys.stderr.isatty() else "")  # a progress bar hides the cursor
            sys.stderr.flush()
    os._exit(128 + number)
