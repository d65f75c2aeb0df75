"""The version of this package."""

from __future__ import annotations

import importlib.metadata


def _version() -> str:
    try:
        return importlib.metadata.version("v2v")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


__version__ = _version()
"""Of the installed package; "unknown" in a source tree that was never installed."""
