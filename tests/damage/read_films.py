"""The process that enhances damaged films."""

from __future__ import annotations

import contextlib
import shutil
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

from tests.damage.process import serve
from v2v.core.errors import V2VError
from v2v.engine.store import EngineSet
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.diffusion.settings import Settings
from v2v.runtime.films.enhance import Crew, Paths, Request, enhance
from v2v.runtime.films.pool import Alone
from v2v.runtime.media.time_range import WHOLE, TimeRange

OUTPUTS = ("out.mp4", "out.mkv", "out.mov", "out")


def main() -> None:
    """Engines are loaded once; with the film's number changes what is asked for."""
    engine_set = EngineSet.open(Path(sys.argv[1]))
    team = Alone(VideoToVideo.load(engine_set, "cpu"))
    crew = Crew(lambda: engine_set, lambda chosen: team)

    def read(number: int, source: Path) -> dict[str, Any]:
        output = source.with_name(OUTPUTS[number // 3 % len(OUTPUTS)])
        wanted = TimeRange(start=Fraction(1, 2)) if number % 5 == 0 else WHOLE
        page = source.with_name("page.html") if number % 7 == 0 and output.suffix == ".mp4" else None
        how = {"codec": "h264", "preset": "ultrafast"} if output.suffix else {"codec": "png"}
        request = Request(Settings(steps=1, scale=1.0), wanted, **how)
        before = set(source.parent.iterdir())
        try:
            enhance(request, Paths(source, output, page), crew, lambda: contextlib.nullcontext(_unseen))
        except V2VError:
            _check(source.parent, before)
            raise
        _check(source.parent, before, output, *([page] if page else []))
        return {}

    serve(read)


def _check(folder: Path, before: set[Path], *expected: Path) -> None:
    """That nothing was left but what is expected, and remove that."""
    left = set(folder.iterdir()) - before
    for path in left:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert left == set(expected), left


def _unseen(progress: object) -> None:
    """No display."""


if __name__ == "__main__":
    main()
