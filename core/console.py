"""What the three commands share: how they end, and how a build shows its progress."""

from __future__ import annotations

import dataclasses
import errno
import inspect
import io
import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from types import TracebackType
from typing import IO, TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar, cast, get_type_hints

import rich.box
import rich.console
import rich.progress
import rich.table
import rich.text
import typer

from v2v.core.abort import exit_code, watch
from v2v.core.crash import unforeseen
from v2v.core.errors import UsageError, V2VError
from v2v.core.progress import BuildProgress

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ERROR = 2
"""Exit code of everything that a person can put right."""

BUG = 70
"""Exit code of what nobody foresaw (EX_SOFTWARE)."""

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

Choice = TypeVar("Choice", bound=str)
Options = TypeVar("Options", bound="DataclassInstance")


class Console(rich.console.Console):
    """Shows text as it was typed, control characters as their codes: a name must not steer the terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, soft_wrap=True, emoji=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """As Rich's."""
        super().print(*(printable(each) if isinstance(each, str) else each for each in objects), **options)


class _Stderr(io.TextIOBase):
    """Writes to whatever ``sys.stderr`` is at the moment; a write that fails (closed, disk full) is ignored."""

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def _stream(self) -> IO[str]:
        stream = getattr(sys.stderr, "rich_proxied_file", sys.stderr)  # while a progress bar is shown
        return cast(IO[str], io.StringIO() if stream is None else stream)


messages = Console(file=_Stderr())
"""Where progress, warnings and errors go."""

results = Console()
"""Where results for people go: the standard output. :func:`print_result` prints those for programs."""
if not results.is_terminal:
    results.width = 120  # a log is as wide as the tables need


class Table(rich.table.Table):
    """Numbers beside the names in its first column; every cell is shown as by :class:`Console`."""

    def __init__(self, *columns: str) -> None:
        super().__init__(box=rich.box.SIMPLE_HEAD, pad_edge=False)
        for index, column in enumerate(columns):
            self.add_column(
                rich.text.Text(printable(column)), justify="right" if index else "left", overflow="fold"
            )

    def add_row(self, *cells: Any, **options: Any) -> None:
        """As Rich's, without its markup."""
        shown = (rich.text.Text(printable(cell)) if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*shown, **options)


def printable(text: str) -> str:
    """``text`` with its control characters, and bytes that are no text, as their codes; lines stay lines."""
    return "".join(
        each if each.isprintable() or each == "\n" else each.encode("unicode_escape").decode()
        for each in text
    )


class _EndOfFile(Exception):
    """Carries an EOFError past Click, which would take it for Ctrl-D; the EOFError is its cause."""


class _App(typer.Typer):
    """Gives each of its commands ``--debug``."""

    def command(self, *arguments: Any, **options: Any) -> Callable[[Any], Any]:
        """As Typer's."""
        register = super().command(*arguments, **options)
        return lambda function: register(_with_debug(function))


def new_app() -> typer.Typer:
    """An empty Typer application; :func:`run_app` runs it and reports its errors."""
    return _App(rich_markup_mode=None, pretty_exceptions_enable=False)


def _with_debug(function: Callable[..., Any]) -> Callable[..., None]:
    """``function`` with an option that shows where an error comes from."""
    hints = get_type_hints(function, include_extras=True)
    parameters = [
        each.replace(annotation=hints[each.name]) for each in inspect.signature(function).parameters.values()
    ]
    annotation = Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters.append(inspect.Parameter("debug", kind, default=False, annotation=annotation))

    def command(debug: bool, **values: Any) -> None:
        try:
            function(**values)
        except Exception as error:
            if debug:
                traceback.print_exc()
            if isinstance(error, EOFError):
                raise _EndOfFile from error
            raise

    return _shown_as(function, parameters, command)


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
        def command(**values: Any) -> None:
            function(options(**values))

        return _shown_as(function, parameters, command)

    return wrap


def _shown_as(
    function: Callable[..., None], parameters: Sequence[inspect.Parameter], command: Callable[..., None]
) -> Callable[..., None]:
    """``command`` with the name and the help of ``function``, and with ``parameters``, for Typer to read."""
    command.__doc__, command.__name__ = function.__doc__, function.__name__
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def run_app(app: typer.Typer) -> NoReturn:
    """Run a command to its end and leave the process.

    An error that a person can put right is one line on stderr and exit code 2. Ctrl-C, SIGTERM and SIGHUP end the
    command within two seconds with exit code 130, 143 or 129, whatever they make fail on the way. Anything else is a
    bug: one line that names a file with the traceback, and exit code 70.
    """
    watch()
    _prepare_streams()
    code = _outcome(app)
    if (stopped := exit_code()) is not None:
        with suppress(OSError, ValueError, AttributeError):
            sys.stdout.flush()
        os._exit(stopped)  # taking down a compiler's libraries in good order can take seconds
    sys.exit(code)


def _outcome(app: typer.Typer) -> int:
    """Run a command, say what went wrong, and return the exit code."""
    try:
        code = app(standalone_mode=False)
        if sys.stdout is not None:
            _write_results("")
        return code or 0
    except BaseException as error:
        if isinstance(error, SystemExit):  # as a library's own handler makes of a signal
            time.sleep(0.05)  # until it is known
        if exit_code() is not None:
            return 0  # the signal has its own
        return _explain(error)


def _explain(error: BaseException) -> int:
    if isinstance(error, _EndOfFile) and error.__cause__ is not None:
        error = error.__cause__
    # Click's usage errors. Some versions of Typer bring their own Click, so no class names them all.
    wording = getattr(error, "format_message", None)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else ERROR
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return 130
    if isinstance(error, BrokenPipeError):  # "| head" has seen enough
        _drop_results()
        return 1
    if isinstance(error, V2VError):
        _say_error(str(error))
    elif isinstance(error, OSError) and error.errno in _DISK and error.filename is None:
        _drop_results()
        _say_error(f"what was made cannot be written: {error.strerror}; free space, or write elsewhere")
    elif isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        _say_error(f"{os.fsdecode(error.filename)}: {error.strerror}")
    elif isinstance(error, MemoryError):
        _say_error("there is not enough memory; end other programs, or ask for smaller pictures")
    elif wording is not None:
        _say_error(f"{wording()} (--help lists the options)")
    else:
        _say_error(unforeseen(error))
        return BUG
    return ERROR


def _prepare_streams() -> None:
    """Open /dev/null for standard streams that are closed, and let the others escape what they cannot encode.

    Otherwise the next file to be opened would get the number of a standard stream.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # it was closed by whoever started this
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def show(failure: threading.ExceptHookArgs) -> None:
        if failure.exc_value is not None and exit_code() is None:
            _say_error(unforeseen(failure.exc_value))

    threading.excepthook = show


def print_result(facts: Any) -> None:
    """Print ``facts`` as JSON on the standard output.

    Raises:
        UsageError: it is closed or full.
        BrokenPipeError: nobody reads it any more.
    """
    if sys.stdout is None:
        raise UsageError("the standard output is closed, so there is no place for what --json prints")
    text = json.dumps(facts, indent=2, ensure_ascii=False)
    escaped = (each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text)
    _write_results("".join(escaped) + "\n")


def _write_results(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _drop_results()
        raise UsageError(f"the standard output takes no more: {error.strerror}") from error


def _drop_results() -> None:
    """Send what is left in stdout's buffer to /dev/null, so that Python's flush at exit does not fail."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say_error(message: str) -> None:
    messages.print(f"error: {' '.join(message.split())}", style="red", markup=False)


def warn(message: str) -> None:
    """Print a warning on one line; the command goes on."""
    messages.print(f"warning: {' '.join(message.split())}", style="yellow", markup=False)


def show_log() -> None:
    """From now on print what v2v's log is given, warnings of compilers above all, line by line."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warn(record.getMessage())

    logging.getLogger("v2v").addHandler(Lines())


def parse_size(text: str) -> tuple[int, int]:
    """Read "1280x720" -> (1280, 720).

    Raises:
        UsageError: anything else.
    """
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise UsageError(f"--size must be WIDTHxHEIGHT in pixels, as 1280x720, not '{text}'")
    return int(width), int(height)


def one_of(name: str, value: str, allowed: Sequence[Choice]) -> Choice:
    """``value`` if it is among ``allowed``; ``name`` is the option or argument that it was given for.

    Raises:
        UsageError: it is not; the message lists the allowed values.
    """
    for choice in allowed:
        if value == choice:
            return choice
    raise UsageError(f"{name} must be one of {', '.join(allowed)}, not '{value}'")


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
        self._updated = 0.0

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
        if (component, phase) == self._phase and share < 1.0 and now - self._updated < 0.05:
            return  # compilers report thousands of times a second
        self._phase, self._updated = (component, phase), now
        # Rich stops the clock of a full bar, and the end of one phase may be the start of the next.
        self._bars.update(self._tasks[component], completed=min(share, 0.999), phase=phase)

    def _finish_others(self) -> None:
        for task in self._tasks.values():
            self._bars.update(task, completed=1.0, phase="")


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
