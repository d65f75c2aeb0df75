"""``v2v-run``: enhance videos."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NoReturn

import typer

from v2v.core.console import messages, new_app, print_result, run_app, seconds_text, takes
from v2v.core.errors import V2VError
from v2v.runtime.display import Display, about, warnings_shown
from v2v.runtime.films import batch
from v2v.runtime.films.enhance import Enhanced
from v2v.runtime.films.foresight import Foreseen, tell, tell_many
from v2v.runtime.media.time_range import is_time
from v2v.runtime.options import PREVIEW_SECONDS, RunOptions
from v2v.runtime.run import run

app = new_app()


def main() -> NoReturn:
    """Entry point of ``v2v-run``."""
    run_app(app)


class _Command(typer.core.TyperCommand):
    """Lets ``--preview`` stand without its seconds."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        completed = [
            f"{arg}={PREVIEW_SECONDS}" if arg == "--preview" and not is_time(after) else arg
            for arg, after in itertools.zip_longest(args, args[1:], fillvalue="")
        ]
        return super().parse_args(ctx, completed)


@app.command(cls=_Command)
@takes(RunOptions)
def command(options: RunOptions) -> None:
    """Enhance a video, guided by text. Its frame rate, sound and everything else are kept.

    Where an option is not given, the model's own default holds.
    """
    with warnings_shown() as warnings, Display(options.quiet, _advice(options)) as display:
        done = run(options, display)
    if options.dry_run:
        _report_foreseen(options, done.foreseen, warnings)
    elif done.enhanced is None:
        _report_many(options, done.outcomes, warnings)
    else:
        _report_one(options, done.enhanced, warnings)


def _advice(options: RunOptions) -> str:
    """What to try before a long run, where it is not being done already."""
    is_part = options.preview is not None or options.start is not None or options.end is not None
    return "" if is_part else f"; --preview shows {PREVIEW_SECONDS} seconds of it first"


def _report_one(options: RunOptions, enhanced: Enhanced, warnings: list[str]) -> None:
    if options.as_json:
        files = {"input": options.inputs[0], "output": options.output}
        print_result({**files, **enhanced.as_json(), "warnings": warnings})
    elif not options.quiet:
        size, seconds = enhanced.settings["size"], seconds_text(enhanced.seconds)
        messages.print(f"{options.output}: {enhanced.frames} frames of {size} in {seconds}", markup=False)


def _report_foreseen(
    options: RunOptions, foreseen: Sequence[Foreseen | batch.Outcome], warnings: list[str]
) -> None:
    many = batch.is_batch(options.inputs, options.prompt_file)
    if options.as_json:
        each = [one.as_json() for one in foreseen]
        print_result({**({"videos": each} if many else each[0]), "warnings": warnings})
    elif many:
        tell_many(foreseen, about)
    else:
        for one in foreseen:
            assert isinstance(one, Foreseen)
            tell(one, about)
    failed = [str(one.job.source) for one in foreseen if isinstance(one, batch.Outcome)]
    if failed:
        raise V2VError(f"{len(failed)} of {len(foreseen)} videos would fail: {', '.join(failed)}")


def _report_many(options: RunOptions, outcomes: Sequence[batch.Outcome], warnings: list[str]) -> None:
    if options.as_json:
        videos = [outcome.as_json() for outcome in outcomes]
        print_result({"videos": videos, "warnings": warnings})
    elif not options.quiet:
        batch.tell(outcomes)
    batch.check(outcomes)
