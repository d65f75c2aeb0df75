"""Run ``v2v-run --ray`` under a supervisor process, which ends every process that the run leaves behind.

Ray ends the program that uses it, without a word, when a part of its cluster is lost; and of a cluster that was started
here, processes may stay. So ``v2v-run --ray`` is two processes: one that does the work, and the supervisor, which
passes signals on, reports an end of which Ray says nothing, and kills whatever is left. This module imports only what
is light.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from v2v.core.abort import SIGNALS

_MARK = "V2V_SUPERVISED"  # in the environment of the process that does the work
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
_LOST = 2  # exit code: the same command goes on
_PATIENCE = 10.0  # seconds that processes may take to go


def is_wanted(arguments: Sequence[str]) -> bool:
    """Whether a command with these arguments uses Ray and this process is not yet the supervised one.

    Only Linux has the means.
    """
    if sys.platform != "linux":
        return False
    with_ray = any(each == "--ray" or each.startswith("--ray=") for each in arguments)
    return with_ray and _MARK not in os.environ


def supervise(command: Sequence[str]) -> int:
    """Run ``command``, end whatever it leaves, and return its exit code."""
    # What loses its parent becomes a child of this process.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # In a group of its own: what a terminal sends to all comes here alone, and is passed on once.
    worker = subprocess.Popen(command, env={**os.environ, _MARK: "1"}, start_new_session=True)

    def pass_on(number: int, frame: FrameType | None) -> None:
        worker.send_signal(number)

    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    code = worker.wait()
    _end_all()
    if code == 1 or code < 0:  # no end of ours
        print(
            f"error: Ray has ended this run (exit code {code}): its cluster, or a part of it, was lost; what is "
            "finished is kept, and the same command goes on with it",
            file=sys.stderr,
        )
        return _LOST
    return code


def end_with_supervisor() -> None:
    """In the supervised process: ask the kernel for SIGTERM when the supervisor ends."""
    if _MARK in os.environ:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _end_all() -> None:
    """End all children, and theirs as they become ours."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        for process in _children():
            os.kill(process, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def _children() -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue  # it has gone meanwhile
            if parent == os.getpid():
                yield int(entry.name)
