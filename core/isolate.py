"""Run a function in a fresh process, so that memory and load times are its own and a crash or hang ends it alone."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Generator, Iterator
from multiprocessing.connection import Connection
from typing import Any, TypeVar, cast

from v2v.core.errors import V2VError

Returned = TypeVar("Returned")
Tell = Callable[[str, float], None]

_LEAVE_SECONDS = 5  # for a process that has delivered its result and unloads its libraries


class Died(V2VError):
    """A process ended before its work did."""


class Killed(Died):
    """It was killed, most likely for want of memory."""


class Late(Died):
    """It took longer than it might, and was ended."""


def in_fresh_process(
    work: Callable[..., Returned | Iterator[Returned]],
    *arguments: Any,
    tell: Tell,
    take: Callable[[Returned], None] = lambda value: None,
    limit: float | None = None,
) -> Returned:
    """``work(*arguments, tell)`` in a process of its own; its calls of ``tell`` and its result are passed on to here.

    ``work`` is a function of a module, arguments and result can be pickled. Where it is a generator, ``take`` gets what
    it yields as it comes, and the last of it is returned. After ``limit`` seconds the process is ended.

    Raises:
        V2VError: ``work`` raised one; any other exception arrives as one too, with its name.
        Died: the process ended before; :class:`Killed` for want of memory, :class:`Late` after ``limit``.
    """
    end = None if limit is None else time.monotonic() + limit
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, work, arguments), daemon=True)
    process.start()
    there.close()
    try:
        while True:
            if end is not None and not here.poll(max(end - time.monotonic(), 0)):
                raise Late(f"it did not end within {limit:.0f} seconds")
            kind, *values = here.recv()
            if kind == "told":
                tell(*values)
            elif kind == "yielded":
                take(cast(Returned, values[0]))
            elif kind == "returned":
                return cast(Returned, values[0])
            else:
                raise V2VError(values[0])
    except EOFError:
        process.join()
        raise _end(process.exitcode) from None
    except BaseException:
        process.kill()  # at once: whoever pressed Ctrl-C is waiting
        raise
    finally:
        here.close()
        process.join(_LEAVE_SECONDS)
        process.kill()
        process.join()


def _end(code: int | None) -> Died:
    if code == -9:  # SIGKILL, a name that Windows does not have
        return Killed("its process was killed, most likely for want of memory")
    if code is not None and code < 0:
        return Died(f"its process died of {signal.Signals(-code).name}")
    return Died(f"its process ended with exit code {code}")


def _serve(parent: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """What the fresh process does."""
    try:
        result = work(*arguments, lambda text, share: parent.send(("told", text, share)))
        if isinstance(result, Generator):
            for value in result:
                result = value
                parent.send(("yielded", value))
    except V2VError as error:
        parent.send(("failed", str(error)))
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        pass  # the parent has gone
    except Exception as error:  # libraries raise anything; one subject must not end the session
        parent.send(("failed", f"{type(error).__name__}: {_first_line(error)}"))
    else:
        parent.send(("returned", result))
    finally:
        parent.close()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")
