"""The entry point of ``v2v-bench``, which sees to signals before anything that takes time is imported."""

from __future__ import annotations

from typing import NoReturn

from v2v.core.abort import start


def main() -> NoReturn:
    """Entry point of ``v2v-bench``."""
    start("v2v.benchmarks.cli")
