"""The entry points of ``v2v-serve`` and ``v2v-web``, which see to signals before anything heavy is imported."""

from __future__ import annotations

from typing import NoReturn

from v2v.core.abort import start


def serve() -> NoReturn:
    """Entry point of ``v2v-serve``."""
    start("v2v.apps.serve")


def web() -> NoReturn:
    """Entry point of ``v2v-web``."""
    start("v2v.apps.web")
