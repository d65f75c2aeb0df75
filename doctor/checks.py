"""A check, what came of it, and how a row of them is run: each in a process of its own, within a time in all.

A check is a function of a module. It is given its arguments and a function that it calls with the name of every step
before it takes it; it returns facts, or :class:`Skipped`. Whatever else happens is a result too: an error, a crash, a
hang, an end for want of memory.
"""

from __future__ import annotations

import faulthandler
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from v2v.core.errors import V2VError
from v2v.core.isolate import Died, Killed, Late, in_fresh_process

State = Literal["passed", "failed", "skipped"]
Step = Callable[[str], None]
Facts = Mapping[str, Any]
"""Plain JSON values."""

LIMIT = 90.0
"""Seconds that one check may take; what takes longer hangs."""

_LOG_LINES = 12  # of what a process wrote that ended badly
_LEAST = 4.0  # seconds that a check is begun for


@dataclass(frozen=True)
class Skipped:
    """Why a check says nothing here."""

    reason: str


@dataclass(frozen=True)
class Check:
    """One thing that is looked at."""

    name: str
    work: Callable[..., Facts | Skipped]  # a function of a module, called with the arguments and a Step
    arguments: tuple[Any, ...] = ()
    skip: str = ""  # why it is not even tried
    limit: float = LIMIT


@dataclass(frozen=True)
class Outcome:
    """What came of a check."""

    name: str
    state: State
    seconds: float = 0.0
    facts: Facts = field(default_factory=dict)
    step: str = ""  # the one that it ended in, where it failed
    reason: str = ""  # of a failure or for being skipped
    log: tuple[str, ...] = ()  # the last lines that its process wrote, where it failed


class Examination:
    """Runs checks one after another, and stops beginning them when ``seconds`` are over; outcomes are kept."""

    def __init__(
        self, seconds: float, folder: Path, tell: Callable[[str, str], None] = lambda check, step: None
    ) -> None:
        self._end = time.monotonic() + seconds
        self._seconds = seconds
        self._folder = folder
        self._tell = tell
        self.outcomes: list[Outcome] = []

    @property
    def failed(self) -> list[Outcome]:
        """Those that failed so far."""
        return [outcome for outcome in self.outcomes if outcome.state == "failed"]

    def run(self, check: Check) -> Outcome:
        """Run one check, keep what came of it and return that."""
        outcome = self.outcome(check)
        self.keep(outcome)
        return outcome

    def keep(self, outcome: Outcome) -> None:
        """Add an outcome to those that there are."""
        self.outcomes.append(outcome)

    def outcome(self, check: Check) -> Outcome:
        """Run one check and return what came of it; any thread may ask."""
        if check.skip:
            return Outcome(check.name, "skipped", reason=check.skip)
        left = self._end - time.monotonic()
        if left < _LEAST:
            return Outcome(check.name, "skipped", reason=self._time_over)
        steps = ["starting"]

        def tell(step: str, share: float) -> None:
            steps.append(step)
            self._tell(check.name, step)

        log = self._folder / f"{re.sub(r'[^a-z0-9]+', '-', check.name.lower())}.log"
        self._tell(check.name, steps[-1])
        limit, started = min(check.limit, left), time.monotonic()
        state: State = "failed"
        facts: Facts = {}
        reason = ""
        try:
            done: Any = in_fresh_process(_in_log, log, check.work, check.arguments, tell=tell, limit=limit)
            if isinstance(done, Skipped):
                state, reason = "skipped", done.reason
            else:
                state, facts = "passed", done
        except Late:
            if limit < check.limit:
                state, reason = "skipped", self._time_over
            else:
                reason = f"it hangs: it did not end within {limit:.0f} seconds"
        except Killed as error:
            reason = f"out of memory: {error}"
        except Died as error:
            reason = f"it crashed: {error}"
        except V2VError as error:
            reason = str(error)
            if re.search(r"out ?of ?memory|MemoryError|bad_alloc", reason, re.IGNORECASE):
                reason = f"out of memory: {reason}"
        bad = state == "failed"
        return Outcome(
            check.name,
            state,
            round(time.monotonic() - started, 3),
            facts,
            steps[-1] if bad else "",
            reason,
            _last_lines(log) if bad else (),
        )

    @property
    def _time_over(self) -> str:
        return f"the {self._seconds:.0f} seconds were over; --time gives it more"


def _in_log(
    log: Path, work: Callable[..., Facts | Skipped], arguments: tuple[Any, ...], tell: Callable[..., None]
) -> Facts | Skipped:
    """``work``, with everything that it and its libraries print in ``log``: that of a crash too."""
    with log.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        faulthandler.enable()
        return work(*arguments, lambda step: tell(step, 0.0))


def _last_lines(log: Path) -> tuple[str, ...]:
    try:
        lines = log.read_text(encoding="utf-8", errors="backslashreplace").splitlines()
    except OSError:
        return ()
    return tuple(line for line in lines if line.strip())[-_LOG_LINES:]
