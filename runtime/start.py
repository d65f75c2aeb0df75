"""Where ``v2v-run`` begins: before anything that takes time is imported, signals are seen to."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from v2v.core.abort import start


def main() -> NoReturn:
    """Entry point of ``v2v-run``."""
    start(_load)


def _load() -> Callable[[], NoReturn]:
    from v2v.runtime.cli import main

    return main
