"""A picture becomes a film in two stages: one makes a small film, which is kept until the other has enhanced it.

    picture.png
    .film.mp4.first.mkv     what the first stage has made, lossless, beside the output while the run lasts; with
                            --first-stage FILE it is FILE, and stays
    film.mp4                the output

A run that goes on after an interruption takes the first film if it was made of the same picture, engines and settings.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from v2v.core.errors import UsageError
from v2v.core.files import hidden_sibling
from v2v.core.version import __version__
from v2v.engine.choose import Unbuilt
from v2v.engine.store import EngineSet
from v2v.runtime.diffusion.image_to_video import Animation, AnimationPlan, ImageToVideo
from v2v.runtime.diffusion.loaded import Memory
from v2v.runtime.diffusion.progress import Progress
from v2v.runtime.diffusion.settings import Plan
from v2v.runtime.films.batch import was_made_before
from v2v.runtime.films.enhance import Crew, Paths, Request, check_place, describe, plan_of
from v2v.runtime.films.film import fingerprint
from v2v.runtime.films.journal import finished_run
from v2v.runtime.films.places import Place, check_places
from v2v.runtime.media.encoding import Encoding
from v2v.runtime.media.errors import MediaError
from v2v.runtime.media.lossless import ENDING, write_lossless
from v2v.runtime.media.pixels import REFERENCE_COLORS
from v2v.runtime.media.still import read_picture

Follow = Callable[[], AbstractContextManager[Callable[[Progress], None]]]


@dataclass(frozen=True)
class FirstFilm:
    """Where the first stage's film of a picture goes, and whether it stays there."""

    picture: Path
    path: Path
    kept: bool

    def check(self, output: Path) -> None:
        """Find out before the work whether it may be written, beside the second stage's ``output``.

        Raises:
            UsageError: it is the picture or the output, has another ending, or has no folder.
        """
        if not self.kept:
            return
        if self.path.suffix.lower() != ENDING:
            raise UsageError(
                f"--first-stage {self.path}: its pictures are kept as they are, in a file {ENDING}"
            )
        if not self.path.parent.is_dir() or self.path.is_dir():
            raise UsageError(f"--first-stage {self.path}: there is no folder for it, or it is one itself")
        written = [Place(self.path, "--first-stage"), Place(output, "-o")]
        check_places(written, [Place(self.picture, "the input")])

    def clear_up(self) -> None:
        """Remove it, if it is not to stay: the second stage is done."""
        if not self.kept:
            self.path.unlink(missing_ok=True)


def first_film_of(picture: Path, output: Path, named: Path | None = None) -> FirstFilm:
    """The film that ``named`` says, or one beside ``output``."""
    return FirstFilm(picture, named or hidden_sibling(output, f".first{ENDING}"), named is not None)


class Animator:
    """The first stage: its engines are loaded for the first film, and let go of with :meth:`close`.

    Raises:
        V2VError: a value out of range; names the flag.
    """

    def __init__(
        self, engine_set: EngineSet, asked: Animation, device: str | None = None, memory: Memory = "high"
    ) -> None:
        self.engine_set, self._device, self._memory = engine_set, device, memory
        self.plan = AnimationPlan.of(asked, engine_set.model)

    @cached_property
    def _loaded(self) -> ImageToVideo:
        return ImageToVideo.load(self.engine_set, self._device or self.engine_set.device, self._memory)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of its films."""
        return self.engine_set.window.height, self.engine_set.window.width

    @property
    def rate(self) -> Fraction:
        """Pictures per second of its films."""
        return Fraction(self.engine_set.model.fps or 8)

    def facts(self, picture: Path) -> dict[str, Any]:
        """All that decides what a film shows: its comment holds it."""
        made_of = {"made_with": f"v2v {__version__}", **self.engine_set.facts, **asdict(self.plan)}
        return {**made_of, "picture": fingerprint(picture)}

    def second_stage(self, request: Request, picture: Path) -> Request:
        """``request`` for the film of ``picture``: it is one shot, however much moves in it."""
        return replace(request, first_stage=self.facts(picture), find_cuts=False)

    def make(
        self, film: FirstFilm, follow: Follow, *, overwrite: bool = False, restart: bool = False
    ) -> float:
        """Make ``film``, unless it is there already; returns the seconds that it took, without loading engines.

        Raises:
            MediaError: the picture cannot be read, the film not written, or something else has its name.
            NumericalError: a latent or a picture became NaN or Inf.
        """
        facts = self.facts(film.picture)
        if film.path.exists() and not restart and was_made_before(film.path, facts):
            return 0.0
        if film.kept and film.path.exists() and not overwrite:
            raise MediaError(
                f"{film.path} already exists and was not made of this; choose another --first-stage, or replace it "
                "with --overwrite"
            )
        picture = read_picture(film.picture)
        loaded, started = self._loaded, time.monotonic()
        with follow() as show:
            frames = loaded(picture, Animation(**asdict(self.plan)), progress=show)
            write_lossless(film.path, frames, self.rate, json.dumps(facts))
        return time.monotonic() - started

    def close(self) -> None:
        """Free the memory of the engines, if they were loaded."""
        if "_loaded" in self.__dict__:
            self._loaded.close()
            del self.__dict__["_loaded"]


def check_second_stage(request: Request, paths: Paths, crew: Crew, size: tuple[int, int]) -> None:
    """Find out before the first stage what could stop the second, whose source will have ``size`` (height, width).

    Raises:
        V2VError: there are no engines for it, a value is out of range, or the output cannot be written.
    """
    paths.check(crew.engine_set.path)
    made, encoding, _ = decide_of_picture(request, crew.engine_set, size)
    encoding.check(paths.output, *made.size)
    if finished_run(paths.output) is None:
        check_place(paths.output, paths.source, request.codec, overwrite=request.overwrite)


def is_made(output: Path, request: Request, crew: Crew, size: tuple[int, int]) -> bool:
    """Whether ``output`` is what both stages would make: then neither need run.

    Raises:
        V2VError: there are no engines for the second stage, or a value is out of range.
    """
    return request.keeps(output, decide_of_picture(request, crew.engine_set, size)[2])


def decide_of_picture(
    request: Request, engines: EngineSet | Unbuilt, size: tuple[int, int]
) -> tuple[Plan, Encoding, dict[str, Any]]:
    """As :func:`v2v.runtime.films.enhance.decide`, before the first stage has made the film, of ``size``.

    Raises:
        V2VError: a value is out of range.
    """
    made = plan_of(size, request.settings, engines)
    encoding = Encoding(
        REFERENCE_COLORS,
        Fraction(8),
        Fraction(1, 8),
        depth=request.settings.depth,
        codec=request.codec,
        crf=request.crf,
        preset=request.preset,
    )
    return made, encoding, describe(request, made, engines, encoding)
