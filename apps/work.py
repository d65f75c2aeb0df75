"""The process of one job: does what ``job.json`` in its folder asks for, as ``v2v-run`` would.

It says how far it is in lines of JSON (:class:`v2v.apps.job.Told`) on its standard output, and errors as every command
does. When its standard input ends, because whoever started it wants that or has died, it ends as by Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Annotated, NoReturn

import filelock
import msgspec
import typer

from v2v.apps.job import FIXED, Job, Progress, Told, run_options
from v2v.core.console import new_app, run_app
from v2v.core.errors import UsageError
from v2v.core.progress import BuildProgress
from v2v.runtime.diffusion import progress as diffusion
from v2v.runtime.display import warnings_shown
from v2v.runtime.run import run

_PAUSE = 0.1  # seconds between two lines
_PATIENCE = 10.0  # seconds that the process of a service that was killed may take to end

app = new_app()


def main() -> NoReturn:
    """Entry point of the process."""
    run_app(app)


@app.command()
def command(folder: Annotated[Path, typer.Argument(help="The job's folder.")]) -> None:
    """Do one job of a service; the service calls this."""
    with _taken_over_stdout() as lines:
        threading.Thread(target=_end_with_input, daemon=True).start()
        job = msgspec.json.decode((folder / "job.json").read_bytes(), type=Job)
        fixed = msgspec.json.decode(os.environ.get(FIXED, "{}"))
        with _alone(folder), warnings_shown() as warnings:
            follower = Follower(lines, warnings)
            enhanced = run(run_options(job, folder, fixed), follower).enhanced
        assert enhanced is not None
        follower.end(enhanced.frames, enhanced.settings)


class Follower:
    """Writes down what a run tells; time left goes by what this process has done itself."""

    def __init__(self, lines: IO[bytes], warnings: list[str]) -> None:
        self._lines, self._warnings = lines, warnings
        self._now = Told()
        self._written = 0.0

    def say(self, message: str) -> None:
        """One line of news."""
        self._now.news = message
        self._write()

    def build(self) -> AbstractContextManager[BuildProgress]:
        """A build is news too."""
        return contextlib.nullcontext(
            lambda component, phase, share: self._maybe(news=f"building {component}: {phase}, {share:.0%}")
        )

    @contextlib.contextmanager
    def following(self, name: str) -> Iterator[Callable[[diffusion.Progress], None]]:
        """Lend a function that is told how far the video is."""

        def tell(now: diffusion.Progress) -> None:
            stage = f"{name}: {now.stage}" if name else now.stage
            progress = Progress(stage, now.fraction, now.seconds_left, now.frames_done, now.frames_total)
            self._maybe(progress=progress, news="")

        yield tell

    def end(self, frames: int, settings: dict[str, object]) -> None:
        """The job is done."""
        self._now.done, self._now.frames, self._now.settings = True, frames, settings
        self._write()

    def _maybe(self, *, news: str, progress: Progress | None = None) -> None:
        self._now.news = news
        self._now.progress = progress or self._now.progress
        if time.monotonic() - self._written >= _PAUSE:
            self._write()

    def _write(self) -> None:
        self._now.warnings = list(self._warnings)
        self._written = time.monotonic()
        self._lines.write(msgspec.json.encode(self._now) + b"\n")
        self._lines.flush()


@contextlib.contextmanager
def _taken_over_stdout() -> Iterator[IO[bytes]]:
    """The standard output for us alone; what libraries print there goes to stderr."""
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(own, "wb") as lines:
        yield lines


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for the process of a service that was killed, which ends by itself."""
    try:
        with filelock.FileLock(folder / "at-work", timeout=_PATIENCE):
            yield
    except filelock.Timeout:
        raise UsageError("an earlier process still works at this job; end it, then resume the job") from None


def _end_with_input() -> None:
    while os.read(0, 1 << 10):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.argv[0] = "v2v-job"
    main()
