"""The progress and the warnings of a run on the terminal."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta

import rich.progress
import rich.text

from v2v.core.console import TerminalListener, messages, warn
from v2v.runtime.diffusion.progress import Progress

_WORTH_SAYING, _LONG = 10, 120  # seconds that a video will take


@contextlib.contextmanager
def warnings_shown() -> Iterator[list[str]]:
    """Inside, print each warning of :mod:`warnings` on a line of its own; lends the list of their texts."""
    texts: list[str] = []

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        texts.append(str(message))
        for line in str(message).splitlines():  # tables have several
            warn(line)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield texts


class _TimeLeft(rich.progress.ProgressColumn):
    """The time left that a run was last told, less what has passed since."""

    def render(self, task: rich.progress.Task) -> rich.text.Text:
        """As 1:23:45."""
        end = task.fields["end"]
        seconds = None if end is None else max(round(end - time.monotonic()), 0)
        return rich.text.Text("-:--:--" if seconds is None else str(timedelta(seconds=seconds)))


class Display(TerminalListener):
    """Progress on stderr: frames done, the step of the current segment, time left.

    How long a video will take is said as soon as it is known, and ``advice`` with it if it will take long.
    """

    def __init__(self, quiet: bool, advice: str = "") -> None:
        super().__init__(quiet)
        self._advice = advice
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(30),
            rich.progress.TextColumn("{task.fields[frames]} frames, {task.fields[stage]}", markup=False),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("left:"),
            _TimeLeft(),
            console=messages,
            disable=quiet,
            transient=True,
        )

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    @contextlib.contextmanager
    def following(self, name: str) -> Iterator[Callable[[Progress], None]]:
        """Lend a function that shows how far the video called ``name`` is, on a line of its own."""
        task = self._bar.add_task(name, total=None, frames="0", stage="", end=None)
        self._bar.start()
        told = False

        def show(now: Progress) -> None:
            nonlocal told
            if now.seconds_left is not None and now.is_measured and not told:
                told = True
                self._foretell(name, now.seconds_left)
            of = "" if now.frames_total is None else f"/{now.frames_total}"
            self._bar.update(
                task,
                total=None if now.fraction is None else 1.0,
                completed=now.fraction or 0.0,
                frames=f"{now.frames_done}{of}",
                stage=f"{now.stage} {now.step}/{now.steps}",
                end=None if now.seconds_left is None else time.monotonic() + now.seconds_left,
            )

        try:
            yield show
        finally:
            self._bar.remove_task(task)

    def _foretell(self, name: str, seconds: float) -> None:
        if seconds < _WORTH_SAYING:
            return
        takes = f"{name}: will take" if name else "this will take"
        advice = self._advice if seconds > _LONG else ""
        self.say(f"{takes} about {about(seconds)}{advice}")


def about(seconds: float) -> str:
    """A time for people that was estimated, as in "40 s", "12 min", "5 h 20 min"."""
    if seconds < 100:
        return f"{max(round(seconds / 5) * 5, 1)} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02} min"
