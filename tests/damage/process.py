"""A process that reads damaged things one after the other, and who watches that it neither crashes nor hangs."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from v2v.core.errors import V2VError

SECONDS = 60.0  # that one thing may take
MEMORY = 1024  # MB that the process may use at any moment
BATCH = 100  # things that one process reads
ROOT = Path(__file__).parents[2]


def serve(read: Callable[[int, Path], dict[str, Any] | None]) -> None:
    """In the process: read each thing named on the standard input, and tell how that ended in a line of JSON."""
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        number, name = line.split(maxsplit=1)
        Path("/proc/self/clear_refs").write_text("5")  # forget the most memory that was used so far
        began, told = time.monotonic(), None
        try:
            told = read(int(number), Path(name.strip()))
            ended = "whole"
        except V2VError as error:
            ended = str(error)
        except BaseException:
            ended = f"bug: {traceback.format_exc()}"
        most = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
        facts = {"ended": ended, "seconds": time.monotonic() - began, "megabytes": most >> 10}
        print(json.dumps({**facts, **(told or {})}), flush=True)


class Reader:
    """Processes of a module that calls :func:`serve`, a new one after a crash and after so many things."""

    def __init__(self, module: str, *arguments: object) -> None:
        self._command = [sys.executable, "-m", module, *map(str, arguments)]
        self._process: Any = None
        self._read = 0

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def __call__(self, number: int, path: Path) -> dict[str, Any]:
        """How reading ended, as told by the process, or how the process ended."""
        if self._read % BATCH == 0:
            self._close()
        if self._process is None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self._process = subprocess.Popen(self._command, text=True, cwd=ROOT, **pipes)
        self._read += 1
        self._process.stdin.write(f"{number} {path}\n")
        self._process.stdin.flush()
        late = threading.Event()
        alarm = threading.Timer(SECONDS, lambda: (late.set(), self._process.kill()))
        alarm.start()
        answer = self._process.stdout.readline()
        alarm.cancel()
        if not answer:
            code = self._close()
            what = f"not done after {SECONDS:.0f} seconds" if late.is_set() else f"the process ended: {code}"
            return {"ended": f"bug: {what}", "megabytes": 0}
        told: dict[str, Any] = json.loads(answer)
        return told

    def _close(self) -> int:
        if self._process is None:
            return 0
        with self._process as process:
            self._process = None
            process.stdin.close()
            return int(process.wait())


def fault_in(told: dict[str, Any], names: Iterable[str]) -> str | None:
    """What was wrong with the way in which reading something ended: it must not be refused without its name."""
    ended = str(told["ended"])
    if ended.startswith("bug: "):
        return ended
    if told["megabytes"] > MEMORY:
        return f"took {told['megabytes']} MB; {ended}"
    if ended != "whole" and not any(name in ended for name in names):
        return f"names no file: {ended}"
    return None
