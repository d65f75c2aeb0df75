"""One run, from what was asked for to what was made: the path behind ``v2v-run``, ``v2v.enhance`` and every other face.

A face brings the options, and somebody who follows: what is to be said, and how far each video is.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from v2v.core.errors import UsageError, V2VError
from v2v.core.progress import BuildProgress, Listener
from v2v.engine.choose import Unbuilt, choose_engines, choose_first_stage, foresee_engines
from v2v.engine.store import EngineSet
from v2v.runtime.diffusion.loaded import Memory
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.diffusion.progress import Progress
from v2v.runtime.diffusion.settings import Plan, Settings
from v2v.runtime.films import batch
from v2v.runtime.films.animate import Animator, FirstFilm, check_second_stage, first_film_of, is_made
from v2v.runtime.films.enhance import Crew, Enhanced, Paths, Request, enhance, hire, plan_of
from v2v.runtime.films.foresight import Costs, Foreseen, foresee, foresee_picture
from v2v.runtime.films.piped import enhance_into_pipe
from v2v.runtime.films.speeds import costs_of
from v2v.runtime.media.image_sequence import is_picture
from v2v.runtime.media.pipe_out import piped_name
from v2v.runtime.media.stdio import PIPE, check_input, check_stdout, opened_input, output_path
from v2v.runtime.options import RunOptions


class Follower(Listener, Protocol):
    """Whoever follows a run."""

    def following(self, name: str) -> AbstractContextManager[Callable[[Progress], None]]:
        """Lend a function that is told how far the video called ``name`` is."""


# Where the standard output would be if it were a file: nothing is there, and nothing is written.
_NOWHERE = Path(tempfile.gettempdir()) / f"v2v-{os.getpid()}"
_SMALL = 64 << 20  # bytes of engines that are tried within seconds on a CPU


@dataclass(frozen=True)
class Run:
    """What became of a run: of its one video, or of each of its many."""

    enhanced: Enhanced | None
    outcomes: tuple[batch.Outcome, ...] = ()
    foreseen: tuple[Foreseen | batch.Outcome, ...] = ()  # of a dry run


def run(options: RunOptions, follower: Follower) -> Run:
    """Do what ``options`` ask for.

    Raises:
        V2VError: something that a person can put right; of many videos, those that fail are in their outcomes.
    """
    if options.dry_run:
        return Run(None, foreseen=tuple(_foresee(options, follower)))
    wanted, memory = options.wanted(), options.memory_mode()
    many = batch.is_batch(options.inputs, options.prompt_file)
    request = options.request(many=many)
    with contextlib.ExitStack() as opened:
        crew = Crew(
            partial(
                choose_engines, options.engines, wanted, follower, fast=options.fast, reuse=options.reuse
            ),
            partial(hire, wanted.device, memory, options.workers, options.ray, opened),
            wanted.device,
        )
        if many:
            return Run(None, tuple(_enhance_many(options, request, crew, follower)))
        if is_picture(Path(options.inputs[0])):
            return Run(_animate_one(options, request, crew, follower, opened))
        options.check_pictures(0, many=False)
        return Run(_enhance_one(options, request, crew, follower, opened))


def _enhance_one(
    options: RunOptions, request: Request, crew: Crew, follower: Follower, opened: contextlib.ExitStack
) -> Enhanced:
    """The single video of the command line, and the page that compares it with its source."""
    into_pipe, part = options.output == PIPE, request.time_range
    if into_pipe:
        check_stdout()  # before all of the input is kept
    from_the_start = part.start is None and part.preview is None
    source = opened.enter_context(
        opened_input(Path(options.inputs[0]), streamed=into_pipe, from_the_start=from_the_start)
    )
    if into_pipe:
        return enhance_into_pipe(request, source, crew, partial(follower.following, ""))
    assert isinstance(source, Path)
    paths = Paths(source, Path(options.output), options.compare, options.report)
    enhanced = enhance(request, paths, crew, partial(follower.following, ""))
    assert enhanced is not None
    return enhanced


def _animate_one(
    options: RunOptions, request: Request, crew: Crew, follower: Follower, opened: contextlib.ExitStack
) -> Enhanced:
    """The single picture of the command line: its film is made, then enhanced."""
    options.check_pictures(1, many=False)
    picture = Path(options.inputs[0])
    output = opened.enter_context(output_path(Path(options.output), request.codec))
    film = first_film_of(picture, output, options.first_stage)
    film.check(output)
    animator = _animator(options, follower)
    check_second_stage(request, Paths(picture, output), crew, animator.size)
    try:
        seconds = animator.make(
            film,
            partial(follower.following, "film"),
            overwrite=options.overwrite,
            restart=options.restart,
        )
    finally:
        animator.close()  # the second stage has the memory for itself
    asked = animator.second_stage(request, picture)
    follow = partial(follower.following, "")
    if options.output == PIPE:
        enhanced: Enhanced | None = enhance_into_pipe(asked, film.path, crew, follow)
    else:
        enhanced = enhance(asked, Paths(film.path, output), crew, follow)
    film.clear_up()
    assert enhanced is not None
    made_by = {"engine_set": str(animator.engine_set.path), "seconds": round(seconds, 3)}
    return replace(enhanced, first_stage=made_by)


def _animator(options: RunOptions, follower: Follower) -> Animator:
    engine_set = choose_first_stage(options.engines_first, options.wanted(), follower)
    return Animator(engine_set, options.animation(), options.wanted().device, options.memory_mode())


def _animate_many(
    options: RunOptions, request: Request, crew: Crew, follower: Follower, jobs: list[batch.Job]
) -> tuple[dict[Path, tuple[FirstFilm, Request]], list[batch.Outcome]]:
    """The films of all pictures of a batch, by picture, before any is enhanced, and what is asked for each.

    Then the outcomes of the jobs that end here: they failed, or an earlier run has done them.
    """
    pictures = [job for job in jobs if is_picture(job.source)]
    options.check_pictures(len(pictures), many=True)
    if not pictures:
        return {}, []
    animator = _animator(options, follower)
    plan_of(animator.size, request.settings, crew.engine_set)  # told before the first film is made
    made: dict[Path, tuple[FirstFilm, Request]] = {}

    def attempt(job: batch.Job) -> batch.Outcome:
        film = first_film_of(job.source, job.output)
        asked = animator.second_stage(request.with_prompt(job.prompt), job.source)
        if is_made(job.output, asked, crew, animator.size):
            return batch.Outcome(job, "done before")
        check_second_stage(asked, Paths(job.source, job.output), crew, animator.size)
        animator.make(film, partial(follower.following, job.source.name), restart=options.restart)
        made[job.source] = film, asked
        return batch.Outcome(job, "done")

    try:
        outcomes = batch.run_jobs(pictures, attempt, 1, lambda: None)
    finally:
        animator.close()
    return made, [outcome for outcome in outcomes if outcome.status != "done"]


def _enhance_many(
    options: RunOptions, request: Request, crew: Crew, follower: Follower
) -> list[batch.Outcome]:
    """Every video of a batch; what an earlier run of the same settings has made is left as it is."""
    jobs = batch.plan_jobs(
        options.inputs, Path(options.output), request.codec, options.prompt, options.prompt_file
    )
    made, ended = _animate_many(options, request, crew, follower, jobs)

    def attempt(job: batch.Job) -> batch.Outcome:
        film, asked = made.get(job.source, (None, request.with_prompt(job.prompt)))
        source, follow = film.path if film else job.source, partial(follower.following, job.source.name)
        enhanced = enhance(asked, Paths(source, job.output), crew, follow, keep_if_same=True)
        if film is not None:
            film.clear_up()
        return (
            batch.Outcome(job, "done", enhanced.as_json()) if enhanced else batch.Outcome(job, "done before")
        )

    outcomes = {outcome.job: outcome for outcome in ended}
    going_on = [job for job in jobs if job not in outcomes]
    if going_on:
        done = batch.run_jobs(going_on, attempt, crew.team.size, crew.team.close)
        outcomes |= {outcome.job: outcome for outcome in done}
    return [outcomes[job] for job in jobs]


def _foresee(options: RunOptions, follower: Follower) -> Iterator[Foreseen | batch.Outcome]:
    """What the run would do with each of its videos, or why it would fail with one of many."""
    many = batch.is_batch(options.inputs, options.prompt_file)
    request, wanted = options.request(many=many), options.wanted()
    engines = foresee_engines(options.engines, wanted, follower, fast=options.fast, reuse=options.reuse)
    costs = partial(_costs, engines, wanted.device or engines.device, options)
    if not many:
        source, piped = Path(options.inputs[0]), options.output == PIPE
        options.check_pictures(int(is_picture(source)), many=False)
        check_input(source)
        output = _NOWHERE / piped_name(request.codec) if piped else Path(options.output)
        paths = Paths(source, output, options.compare, options.report)
        foreseen = _foresee_one(options, request, paths, engines, costs, follower, new=piped)
        yield replace(foreseen, output=PIPE, writes=(PIPE,)) if piped else foreseen
        return
    folder = Path(options.output)
    jobs = batch.plan_jobs(
        options.inputs, folder, request.codec, options.prompt, options.prompt_file, dry=True
    )
    options.check_pictures(sum(is_picture(job.source) for job in jobs), many=True)
    for job in jobs:
        asked, paths = request.with_prompt(job.prompt), Paths(job.source, job.output)
        try:
            yield _foresee_one(
                options, asked, paths, engines, costs, follower, new=not folder.is_dir(), many=True
            )
        except (V2VError, OSError) as error:
            yield batch.Outcome(job, "failed", error=" ".join(str(error).split()))


def _foresee_one(
    options: RunOptions,
    request: Request,
    paths: Paths,
    engines: EngineSet | Unbuilt,
    costs: Callable[[Plan], Costs],
    follower: Follower,
    *,
    new: bool,
    many: bool = False,
) -> Foreseen:
    if not is_picture(paths.source):
        return foresee(request, paths, engines, costs, keep_if_same=many, place_is_new=new)
    film = first_film_of(paths.source, paths.output, options.first_stage)
    film.check(paths.output)
    animator = _animator(options, follower)
    return foresee_picture(animator, film, request, paths, engines, place_is_new=new)


def _costs(engines: EngineSet | Unbuilt, device: str, options: RunOptions, plan: Plan) -> Costs:
    """By the last run of these engines, or by a rehearsal of small ones on this CPU."""
    if isinstance(engines, Unbuilt):
        return Costs(None, "the engines have not been built yet")
    if (options.workers or 1) > 1 or options.ray is not None:
        return Costs(None, "it depends on how many shots the workers can share")
    if (last := costs_of(engines, device)) is not None:
        return Costs(last, "by the last run of these engines on this machine")
    if device != "cpu" or sum(file.bytes for file in engines.manifest.files) > _SMALL:
        return Costs(None, "no run of these engines was finished on this machine yet")
    with VideoToVideo.load(engines, device) as loaded:
        return Costs(loaded.rehearse(plan), "by one window that was tried")


class Cancelled(V2VError):
    """A run was cancelled."""


def enhance_file(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    prompt: str = "",
    *,
    engines: str | os.PathLike[str] | None = None,
    device: str | None = None,
    memory: Memory = "high",
    seed: int = Settings.seed,
    steps: int | None = None,
    scale: float | None = None,
    size: tuple[int, int] | None = None,
    start: float | str | None = None,
    end: float | str | None = None,
    codec: str | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] = lambda now: None,
    cancel: threading.Event | None = None,
    **options: Any,
) -> Enhanced:
    """Enhance a video, or make a film of a picture, as ``v2v-run SOURCE -o OUTPUT`` does; returns what was done.

    Args:
        source: a video, a folder of pictures, or a picture.
        output: .mp4, .mkv, .mov or .m4v, or with ``codec="png"`` a folder.
        prompt: what the video shows.
        engines: an engine set's folder or its name in the store; None takes the best that fits.
        device: "cpu" or "cuda"; None takes that of the engines.
        memory: "low" never holds all engines at once.
        seed: the same seed gives the same video.
        steps: denoising steps.
        scale: the output's size over the source's.
        size: (width, height) of the result in pixels; wins over ``scale``.
        start: enhance from here on: seconds, or as "1:30".
        end: enhance what begins before.
        codec: how the pictures are written, h264 if left out.
        workers: processes that share the work.
        overwrite: replace ``output`` if it exists.
        on_progress: called after every frame encoded or decoded and every step, and with frames that an earlier run
            has finished.
        cancel: once it is set, the run ends at its next sign of progress. What is finished is kept, and the same call
            goes on with it.
        options: the other options of ``v2v-run``, by their names in :class:`~v2v.runtime.options.RunOptions`.

    Raises:
        TypeError: there is no such option.
        Cancelled: ``cancel`` was set.
        V2VError: something that a person can put right.
    """
    text = {"engines": engines, "start": start, "end": end, **options}
    asked = RunOptions(
        [os.fspath(source)],
        os.fspath(output),
        prompt=prompt,
        device=device,
        memory=memory,
        seed=seed,
        steps=steps,
        scale=scale,
        size=None if size is None else f"{size[0]}x{size[1]}",
        codec=codec,
        workers=workers,
        overwrite=overwrite,
        **{name: _as_typed(name, value) for name, value in text.items()},
    )
    if asked.dry_run:
        raise UsageError("dry_run has no result to return; run v2v-run --dry-run --json")
    if batch.is_batch(asked.inputs, asked.prompt_file):
        raise UsageError(f"{asked.inputs[0]} is several videos; enhance them one by one")
    enhanced = run(asked, _Silent(on_progress, cancel)).enhanced
    assert enhanced is not None
    return enhanced


_NUMBERS_AS_TEXT = ("start", "end", "preview", "rate", "fps")


def _as_typed(name: str, value: Any) -> Any:
    """A value as it is typed on the command line, where that takes text; others are what they are."""
    if isinstance(value, tuple):  # guidance_interval
        return ":".join(map(str, value))
    number = name in _NUMBERS_AS_TEXT and isinstance(value, int | float | Fraction)
    return str(value) if number else os.fspath(value) if isinstance(value, os.PathLike) else value


class _Silent:
    """Follows a run without a word."""

    def __init__(self, on_progress: Callable[[Progress], None], cancel: threading.Event | None) -> None:
        self._on_progress, self._cancel = on_progress, cancel

    def say(self, message: str) -> None:
        """Nothing is said."""

    def build(self) -> AbstractContextManager[BuildProgress]:
        """A build is silent too, and ends when the run is cancelled."""
        return contextlib.nullcontext(lambda component, phase, share: self._go_on())

    @contextlib.contextmanager
    def following(self, name: str) -> Iterator[Callable[[Progress], None]]:
        """Pass on how far the video is."""

        def tell(now: Progress) -> None:
            self._go_on()
            self._on_progress(now)

        self._go_on()
        yield tell

    def _go_on(self) -> None:
        if self._cancel is not None and self._cancel.is_set():
            raise Cancelled(
                "the run was cancelled; what is finished is kept, and the same run goes on with it"
            )
