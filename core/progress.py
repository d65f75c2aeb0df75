"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

PhaseProgress = Callable[[str, float], None]
"""Called with a phase's name and the share of it that is done, 0..1."""


BuildProgress = Callable[[str, str, float], None]
"""Called with a component's name (or "weights"), its phase, and the share of that phase done, 0..1."""


class Listener(Protocol):
    """Whoever is told what a command does before its real work begins."""

    def say(self, message: str) -> None:
        """One line of news."""

    def build(self) -> AbstractContextManager[BuildProgress]:
        """Engines are being built: lend something to tell how far they are."""
