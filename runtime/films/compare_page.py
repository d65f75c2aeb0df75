"""Before and after on one self-contained page: two players in step, a slider between them, the run's settings."""

from __future__ import annotations

import base64
import html
import string
import tempfile
import warnings
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from v2v.core.abort import removed_on_abort
from v2v.core.files import hidden_sibling, sync
from v2v.runtime.media.errors import MediaError, MediaWarning
from v2v.runtime.media.muxing import writing
from v2v.runtime.media.playable import playable
from v2v.runtime.media.reader import VideoReader
from v2v.runtime.media.time_range import WHOLE, TimeRange

# A page holds the videos as text: more than this would be slow to open.
LONGEST = Fraction(60)
"""Seconds of video that a page shows at most."""


def check_page(path: Path, flag: str = "--compare", *, overwrite: bool) -> None:
    """Find out before the work whether the page that ``flag`` names may be written.

    Raises:
        MediaError: it exists, or there is no such folder.
    """
    if not path.parent.is_dir():
        raise MediaError(f"{flag} {path}: there is no folder {path.parent}; create it first")
    if path.exists() and not overwrite:
        raise MediaError(f"{flag} {path} already exists; choose another name, or replace it with --overwrite")


def write_page(
    path: Path, source: Path, result: Path, settings: Mapping[str, Any], time_range: TimeRange = WHOLE
) -> None:
    """Write the page that compares a range of ``source`` with its ``result``, the first :data:`LONGEST` seconds.

    Both are encoded anew as H.264 at the result's size, so that any browser plays them.

    Raises:
        MediaError: one of the videos cannot be read, or the page cannot be written.
    """
    with VideoReader(result) as reader:
        height, width = reader.info.height, reader.info.width
    template = string.Template((Path(__file__).parent / "compare_page.html").read_text(encoding="utf-8"))
    with writing(path), tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", MediaWarning)  # all of it was told when the source was enhanced
        videos = {
            name: base64.b64encode(
                playable(video, shown_range, (height, width), Path(folder) / f"{name}.mp4", LONGEST)
            ).decode()
            for name, video, shown_range in (("before", source, time_range), ("after", result, WHOLE))
        }
        page = template.substitute(
            title=html.escape(f"{source.name} before and after"),
            width=width,
            height=height,
            rows="".join(
                f"<tr><th>{html.escape(str(name))}<td>{html.escape(str(value))}"
                for name, value in settings.items()
            ),
            **videos,
        )
        place_page(path, page)


def place_page(path: Path, page: str) -> None:
    """Write a page that appears when it is whole.

    Raises:
        MediaError: it cannot be written.
    """
    partial = hidden_sibling(path, ".v2v-part")
    with writing(path), removed_on_abort(partial):
        partial.unlink(missing_ok=True)  # of a run that was killed here
        try:
            with partial.open("x", encoding="utf-8", errors="backslashreplace") as file:
                file.write(page)
            sync(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
