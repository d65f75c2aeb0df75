"""The progress and the warnings of a run on the terminal."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator

import rich.progress

from v2v.core.console import TerminalListener, messages, warn
from v2v.runtime.diffusion.progress import Progress


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


class Display(TerminalListener):
    """Progress on stderr: frames done, the step of the current segment, time left."""

    def __init__(self, quiet: bool) -> None:
        super().__init__(quiet)
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(30),
            rich.progress.TextColumn("{task.fields[frames]} frames, {task.fields[stage]}", markup=False),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("left:"),
            rich.progress.TimeRemainingColumn(),
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
        task = self._bar.add_task(name, total=None, frames="0", stage="")
        self._bar.start()

        def show(now: Progress) -> None:
            of = "" if now.frames_total is None else f"/{now.frames_total}"
            self._bar.update(
                task,
                total=None if now.fraction is None else 1.0,
                completed=now.fraction or 0.0,
                frames=f"{now.frames_done}{of}",
                stage=f"{now.stage} {now.step}/{now.steps}",
            )

        try:
            yield show
        finally:
            self._bar.remove_task(task)
