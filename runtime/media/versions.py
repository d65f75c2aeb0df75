"""Which libraries read and write the media."""

from __future__ import annotations

import av


def versions() -> dict[str, str]:
    """Name -> version of PyAV and of FFmpeg's libraries."""
    numbers = {name: ".".join(map(str, version)) for name, version in sorted(av.library_versions.items())}
    return {"PyAV": av.__version__, **numbers}
