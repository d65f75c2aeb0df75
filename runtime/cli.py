"""``v2v-run``: enhance videos."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import typer

from v2v.core.console import messages, new_app, print_result, run_app, seconds_text, takes
from v2v.engine.choose import choose_engines, choose_first_stage
from v2v.runtime.display import Display, warnings_shown
from v2v.runtime.films import batch
from v2v.runtime.films.animate import Animator, FirstFilm, check_second_stage, first_film_of, is_made
from v2v.runtime.films.enhance import Crew, Enhanced, Paths, Request, enhance, hire, plan_of
from v2v.runtime.media.image_sequence import is_picture
from v2v.runtime.media.stdio import input_path, output_path
from v2v.runtime.media.time_range import is_time
from v2v.runtime.options import PREVIEW_SECONDS, RunOptions

app = new_app()


def main() -> NoReturn:
    """Entry point of ``v2v-run``."""
    run_app(app)


class _Command(typer.core.TyperCommand):
    """Lets ``--preview`` stand without its seconds."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        completed = [
            f"{arg}={PREVIEW_SECONDS}" if arg == "--preview" and not is_time(after) else arg
            for arg, after in zip(args, [*args[1:], ""], strict=True)
        ]
        return super().parse_args(ctx, completed)


@app.command(cls=_Command)
@takes(RunOptions)
def command(options: RunOptions) -> None:
    """Enhance a video, guided by text. Its frame rate, sound and everything else are kept.

    Where an option is not given, the model's own default holds.
    """
    wanted, memory = options.wanted(), options.memory_mode()
    many = batch.is_batch(options.inputs, options.prompt_file)
    request = options.request(many=many)
    with warnings_shown() as warnings, Display(options.quiet) as display, contextlib.ExitStack() as opened:
        crew = Crew(
            partial(choose_engines, options.engines, wanted, display, fast=options.fast, reuse=options.reuse),
            partial(hire, options.device, memory, options.workers, options.ray, opened),
        )
        if many:
            outcomes = _enhance_many(options, request, crew, display)
        elif is_picture(Path(options.inputs[0])):
            enhanced = _animate_one(options, request, crew, display, opened)
        else:
            options.check_pictures(0, many=False)
            enhanced = _enhance_one(options, request, crew, display, opened)
    if many:
        _report_many(options, outcomes, warnings)
    else:
        _report_one(options, enhanced, warnings)


def _enhance_one(
    options: RunOptions, request: Request, crew: Crew, display: Display, opened: contextlib.ExitStack
) -> Enhanced:
    """The single video of the command line, and the page that compares it with its source."""
    source = opened.enter_context(input_path(Path(options.inputs[0])))
    output = opened.enter_context(output_path(Path(options.output)))
    paths = Paths(source, output, options.compare)
    enhanced = enhance(request, paths, crew, partial(display.following, ""))
    assert enhanced is not None
    return enhanced


def _animate_one(
    options: RunOptions, request: Request, crew: Crew, display: Display, opened: contextlib.ExitStack
) -> Enhanced:
    """The single picture of the command line: its film is made, then enhanced."""
    options.check_pictures(1, many=False)
    picture = Path(options.inputs[0])
    output = opened.enter_context(output_path(Path(options.output)))
    film = first_film_of(picture, output, options.first_stage)
    film.check(output)
    animator = _animator(options, display)
    check_second_stage(request, Paths(picture, output), crew, animator.size)
    try:
        seconds = animator.make(
            film,
            partial(display.following, "film"),
            overwrite=options.overwrite,
            restart=options.restart,
        )
    finally:
        animator.close()  # the second stage has the memory for itself
    asked = animator.second_stage(request, picture)
    enhanced = enhance(asked, Paths(film.path, output), crew, partial(display.following, ""))
    film.clear_up()
    assert enhanced is not None
    made_by = {"engine_set": str(animator.engine_set.path), "seconds": round(seconds, 3)}
    return replace(enhanced, first_stage=made_by)


def _animator(options: RunOptions, display: Display) -> Animator:
    engine_set = choose_first_stage(options.engines_first, options.wanted(), display)
    return Animator(engine_set, options.animation(), options.device, options.memory_mode())


def _animate_many(
    options: RunOptions, request: Request, crew: Crew, display: Display, jobs: list[batch.Job]
) -> tuple[dict[Path, tuple[FirstFilm, Request]], list[batch.Outcome]]:
    """The films of all pictures of a batch, by picture, before any is enhanced, and what is asked for each.

    Then the outcomes of the jobs that end here: they failed, or an earlier run has done them.
    """
    pictures = [job for job in jobs if is_picture(job.source)]
    options.check_pictures(len(pictures), many=True)
    if not pictures:
        return {}, []
    animator = _animator(options, display)
    plan_of(animator.size, request.settings, crew.engine_set)  # told before the first film is made
    made: dict[Path, tuple[FirstFilm, Request]] = {}

    def attempt(job: batch.Job) -> batch.Outcome:
        film = first_film_of(job.source, job.output)
        asked = animator.second_stage(request.with_prompt(job.prompt), job.source)
        if is_made(job.output, asked, crew, animator.size):
            return batch.Outcome(job, "done before")
        check_second_stage(asked, Paths(job.source, job.output), crew, animator.size)
        animator.make(film, partial(display.following, job.source.name), restart=options.restart)
        made[job.source] = film, asked
        return batch.Outcome(job, "done")

    try:
        outcomes = batch.run_jobs(pictures, attempt, 1, lambda: None)
    finally:
        animator.close()
    return made, [outcome for outcome in outcomes if outcome.status != "done"]


def _enhance_many(options: RunOptions, request: Request, crew: Crew, display: Display) -> list[batch.Outcome]:
    """Every video of a batch; what an earlier run of the same settings has made is left as it is."""
    jobs = batch.plan_jobs(
        options.inputs, Path(options.output), request.codec, options.prompt, options.prompt_file
    )
    made, ended = _animate_many(options, request, crew, display, jobs)

    def attempt(job: batch.Job) -> batch.Outcome:
        film, asked = made.get(job.source, (None, request.with_prompt(job.prompt)))
        source, follow = film.path if film else job.source, partial(display.following, job.source.name)
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


def _report_one(options: RunOptions, enhanced: Enhanced, warnings: list[str]) -> None:
    if options.as_json:
        files = {"input": options.inputs[0], "output": options.output}
        print_result({**files, **enhanced.as_json(), "warnings": warnings})
    elif not options.quiet:
        size, seconds = enhanced.settings["size"], seconds_text(enhanced.seconds)
        messages.print(f"{options.output}: {enhanced.frames} frames of {size} in {seconds}", markup=False)


def _report_many(options: RunOptions, outcomes: list[batch.Outcome], warnings: list[str]) -> None:
    if options.as_json:
        videos = [outcome.as_json() for outcome in outcomes]
        print_result({"videos": videos, "warnings": warnings})
    elif not options.quiet:
        batch.tell(outcomes)
    batch.check(outcomes)
