"""What the three commands share: how they end, and how a build shows its progress."""

from __future__ import annotations

import dataclasses
import inspect
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, get_type_hints

import rich.console
import rich.progress
import typer

from v2v.core.abort import exit_code, watch
from v2v.core.errors import UsageError, V2VError
from v2v.core.progress import BuildProgress

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ERROR = 2
"""Exit code of everything that a person can put right."""

Choice = TypeVar("Choice", bound=str)
Options = TypeVar("Options", bound="DataclassInstance")

messages = rich.console.Console(stderr=True, highlight=False, soft_wrap=True)
"""Where progress, warnings and errors go; results go to stdout."""


def new_app() -> typer.Typer:
    """An empty command whose usage errors :func:`run_app` can word."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def takes(options: type[Options]) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Make a function of one dataclass of ``options`` a command that has an option for each of its fields."""
    hints = get_type_hints(options, include_extras=True)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(options)
    ]

    def wrap(function: Callable[[Options], None]) -> Callable[..., None]:
        def command(**given: Any) -> None:
            function(options(**given))

        command.__doc__, command.__name__ = function.__doc__, function.__name__
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return wrap


def run_app(app: typer.Typer) -> NoReturn:
    """Run a command to its end and leave the process.

    An error that a person can put right is one line on stderr and exit code 2. Ctrl-C and SIGTERM end the
    command within two seconds with exit code 130 or 143. Anything else is a bug and keeps its traceback.
    """
    watch()
    code: int | None = None
    try:
        code = app(standalone_mode=False)
    except V2VError as error:
        fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except BrokenPipeError:  # "| head" has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        if error.filename is None or error.strerror is None:
            raise
        fail(f"{error.filename}: {error.strerror}")
    except Exception as error:
        # Click's usage errors. Some versions of Typer bring their own Click, so no class names them all.
        wording = getattr(error, "format_message", None)
        if wording is None:
            raise
        fail(f"{wording()} (--help lists the options)")
    if (stopped := exit_code()) is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(stopped)  # taking down a compiler's libraries in good order can take seconds
    sys.exit(code or 0)


def fail(message: str) -> NoReturn:
    """Say what is wrong in one line and leave with exit code 2."""
    messages.print(f"error: {' '.join(message.split())}", style="red", markup=False)
    sys.exit(ERROR)


def warn(message: str) -> None:
    """Say in one line what a person should know though the command goes on."""
    messages.print(f"warning: {' '.join(message.split())}", style="yellow", markup=False)


def parse_size(text: str) -> tuple[int, int]:
    """Read "1280x720" -> (1280, 720).

    Raises:
        UsageError: anything else.
    """
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise UsageError(f"--size must be WIDTHxHEIGHT in pixels, as 1280x720, not '{text}'")
    return int(width), int(height)


def one_of(what: str, given: str, allowed: Sequence[Choice]) -> Choice:
    """``given`` if it is allowed.

    Raises:
        UsageError: it is not; the message lists what is.
    """
    for choice in allowed:
        if given == choice:
            return choice
    raise UsageError(f"{what} must be one of {', '.join(allowed)}, not '{given}'")


class BuildDisplay:
    """A progress bar per component; a :data:`v2v.core.progress.BuildProgress` and a context manager."""

    def __init__(self) -> None:
        self._bars = rich.progress.Progress(
            rich.progress.TextColumn("{task.description:<13}", markup=False),
            rich.progress.BarColumn(24),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("{task.fields[phase]}", markup=False),
            console=messages,
        )
        self._tasks: dict[str, rich.progress.TaskID] = {}
        self._phase: tuple[str, str] = ("", "")
        self._shown = 0.0

    def __enter__(self) -> BuildDisplay:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish_others()
        self._bars.stop()

    def __call__(self, component: str, phase: str, share: float) -> None:
        """The component's bar shows how far ``phase`` is and the time since the component's first phase."""
        if component not in self._tasks:
            self._finish_others()
            self._tasks[component] = self._bars.add_task(component, total=1.0, phase=phase)
        now = time.monotonic()
        if (component, phase) == self._phase and share < 1.0 and now - self._shown < 0.05:
            return  # compilers report thousands of times a second
        self._phase, self._shown = (component, phase), now
        # Rich stops the clock of a full bar, and the end of one phase may be the start of the next.
        self._bars.update(self._tasks[component], completed=min(share, 0.999), phase=phase)

    def _finish_others(self) -> None:
        for task in self._tasks.values():
            self._bars.update(task, completed=1.0, phase="")


def size_text(count: int) -> str:
    """Bytes for people, as in "12.3 MB"."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def seconds_text(seconds: float) -> str:
    """Seconds for people, as in "0.13 s", "12 s", "3 min 05 s"."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02} s"


class TerminalListener:
    """Tells on stderr what happens, unless it is to be quiet; a :class:`v2v.core.progress.Listener`."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet

    def say(self, message: str) -> None:
        """One line of news."""
        if not self.quiet:
            messages.print(message, markup=False)

    def build(self) -> AbstractContextManager[BuildProgress]:
        """A bar for each component that is built."""
        return nullcontext(lambda component, phase, share: None) if self.quiet else BuildDisplay()
