"""How builds and other long work report their progress."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

PhaseProgress = Callable[[str, float], None]
"""Called with a phase's name and the share of it that is done, 0..1."""


BuildProgress = Callable[[str, str, float], None]
"""Called with a component's name (or "weights"), its phase, and the share of that phase done, 0..1."""


class Listener(Protocol):
    """Receives the news of a command's preparations: choosing an engine set, building one."""

    def say(self, message: str) -> None:
        """One line of news."""

    def build(self) -> AbstractContextManager[BuildProgress]:
        """A context in which engines are built; it lends the function that takes their progress."""
