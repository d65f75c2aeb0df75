"""Promises of seconds, tested on machines that have other work too."""

from __future__ import annotations

from collections.abc import Callable

TRIES = 6


def takes_at_most(seconds: float, attempt: Callable[[int], float]) -> None:
    """``attempt``, given its number, returns the seconds it took; one of a few tries keeps the promise.

    A machine that was busy for a moment makes one try late and not all of them; what is slow is late each time.
    """
    taken: list[float] = []
    while not taken or min(taken) >= seconds:
        assert len(taken) < TRIES, f"took {taken} s, {seconds} s are promised"
        taken.append(attempt(len(taken)))
