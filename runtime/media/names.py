"""The names under which FFmpeg opens files."""

from __future__ import annotations

from pathlib import Path


def file_url(path: Path) -> str:
    """The name under which FFmpeg opens ``path`` and nothing else, for reading and for writing.

    Without its scheme, "Movie: Part 2.mp4" would be asked of a protocol "Movie", and "concat:a.mp4" be two films.
    """
    return f"file:{path}"


def numbered_url(folder: Path, name: str) -> str:
    """The same for numbered pictures in ``folder``: "%08d" counts in ``name`` alone."""
    return file_url(Path(str(folder).replace("%", "%%")) / name)
