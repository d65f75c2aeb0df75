"""The entry point of ``v2v-doctor``, which sees to signals before anything that takes time is imported."""

from __future__ import annotations

from typing import NoReturn

from v2v.core.abort import start


def main() -> NoReturn:
    """Entry point of ``v2v-doctor``."""
    start("v2v.doctor.cli")
