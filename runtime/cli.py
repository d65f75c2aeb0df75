"""``v2v-run``: enhance videos."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NoReturn

import rich.console
import rich.progress
import typer

from v2v.core.configs import MODELS
from v2v.core.console import messages, new_app, one_of, parse_size, run_app, seconds_text
from v2v.core.errors import UsageError
from v2v.engine.backend import BACKENDS
from v2v.engine.choose import (
    choose_engines,
)
from v2v.engine.store import EngineSet, Wanted
from v2v.runtime.diffusion.pipeline import Memory
from v2v.runtime.diffusion.settings import Settings
from v2v.runtime.diffusion.solvers import SOLVERS
from v2v.runtime.display import Display, warnings_shown
from v2v.runtime.films import batch
from v2v.runtime.films.compare_page import check_page, write_page
from v2v.runtime.films.enhance import asked_for, check_place, describe, hire, plan_for
from v2v.runtime.films.film import Target, enhance_film
from v2v.runtime.films.journal import settle
from v2v.runtime.films.pool import Team
from v2v.runtime.media.encoding import CODECS
from v2v.runtime.media.reader import VideoReader
from v2v.runtime.media.stdio import PIPE, input_path, output_path
from v2v.runtime.media.time_range import TimeRange, is_time, parse_time
from v2v.runtime.media.writer import encoding_for

app = new_app()
results = rich.console.Console(highlight=False, soft_wrap=True)

_MEMORY: tuple[Memory, ...] = ("high", "low")
PREVIEW_SECONDS = 3


def main() -> NoReturn:
    """Entry point of ``v2v-run``."""
    run_app(app)


class _Command(typer.core.TyperCommand):
    """Lets ``--preview`` stand without its seconds."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = [
            f"{arg}={PREVIEW_SECONDS}" if arg == "--preview" and not is_time(after) else arg
            for arg, after in zip(args, [*args[1:], ""], strict=True)
        ]
        return super().parse_args(ctx, given)


@app.command(cls=_Command)
def command(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="A video, a folder of pictures, or - for the standard input. "
            "Many: several of them, 'patterns*', folders of videos; then -o is a folder.",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="A file (.mp4, .mkv, .mov, .m4v), a folder/ for PNG pictures, or - for stdout.",
        ),
    ],
    prompt: Annotated[str, typer.Option(help="What the video shows; quality words are added.")] = "",
    negative_prompt: Annotated[
        str | None, typer.Option(help="What it must not look like; default: the reference's words.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    solver: Annotated[str | None, typer.Option(help=f"One of {', '.join(SOLVERS)}.")] = None,
    strength: Annotated[
        float | None, typer.Option(help="Noise level, 0 to 1: how far the result may leave the source.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="How strictly to follow the prompt; 1: no guidance.")
    ] = None,
    guidance_rescale: Annotated[
        float | None, typer.Option(help="How much of guidance's added contrast to take back, 0 to 1.")
    ] = None,
    guidance_interval: Annotated[
        str | None, typer.Option(help="Noise levels at which guidance acts, as 0.2:0.5: spares evaluations.")
    ] = None,
    reuse: Annotated[
        int | None,
        typer.Option(help="2: every second evaluation on features of the one before; needs a set built so."),
    ] = None,
    fast: Annotated[
        bool,
        typer.Option(
            "--fast",
            help="22 evaluations of the UNet instead of 60: 12 steps of dpmpp_2m, guidance at 0.08:0.56, --reuse 2 "
            "where the engine set can. The video differs from the full run's; other options win over it.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="The same seed gives the same video.")] = Settings.seed,
    size: Annotated[str | None, typer.Option(help="Output's width x height, as 1280x720.")] = None,
    scale: Annotated[float | None, typer.Option(help="Output's size over input's; --size wins.")] = None,
    color: Annotated[
        str | None, typer.Option(help="wavelet or adain: colours of the source; none: of the model.")
    ] = None,
    model: Annotated[str | None, typer.Option(help=f"One of {', '.join(MODELS)}.")] = None,
    engines: Annotated[
        str | None, typer.Option(help="Engine set: a folder, or a name in the store; default: the best.")
    ] = None,
    backend: Annotated[str | None, typer.Option(help=f"One of {', '.join(BACKENDS)}.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    memory: Annotated[str, typer.Option(help="low: never hold all engines in memory at once.")] = "high",
    parity: Annotated[
        bool, typer.Option("--parity", help="As the reference: 1280x720, 32 frames, 8 a second, no sound.")
    ] = False,
    codec: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(CODECS)}; default: h264, for a folder/ png.")
    ] = None,
    crf: Annotated[
        int | None, typer.Option(help="Constant quality, lower is better; default: the codec's.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="The encoder's speed, as FFmpeg names it.")] = None,
    depth: Annotated[
        int | None,
        typer.Option(help="Bits of a colour: 8, 10, 12 or 16, as the codec has them; default: the input's."),
    ] = None,
    deinterlace: Annotated[
        bool, typer.Option(help="Make whole frames of interlaced ones, which the model does not know.")
    ] = True,
    rate: Annotated[
        str | None, typer.Option(help="Pictures per second of a folder, as 25 or 30000/1001.")
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="Enhance from here on: seconds, mm:ss or hh:mm:ss.")
    ] = None,
    end: Annotated[str | None, typer.Option(help="Enhance what begins before: seconds, mm:ss.")] = None,
    preview: Annotated[
        str | None,
        typer.Option(
            metavar="[SECONDS]",
            help=f"A few seconds ({PREVIEW_SECONDS}) from the middle or --start, the source on the left.",
        ),
    ] = None,
    cuts: Annotated[bool, typer.Option(help="Find cuts, so that shots do not run into each other.")] = True,
    compare: Annotated[
        Path | None, typer.Option(help="Also write a page with a slider between before and after: page.html.")
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="A prompt for each video: lines 'name: prompt', or .csv, or .json.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that share the work; on cuda each has its own GPU.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster that shares the work; local starts one here.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT if it exists.")] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew instead of going on with an unfinished run.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show only warnings and errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done, as JSON.")] = False,
) -> None:
    """Enhance a video, guided by text. Its frame rate, sound and everything else are kept.

    Where an option is not given, the model's own default holds.
    """
    height_width = None if size is None else parse_size(size)[::-1]
    given: dict[str, Any] = {
        "steps": steps,
        "solver": solver,
        "strength": strength,
        "guidance": guidance,
        "color": color,
        "reuse": reuse,
    }
    given |= {"guidance_rescale": guidance_rescale, "size": height_width, "scale": scale, "depth": depth}
    if guidance_interval is not None:
        given["guidance_interval"] = parse_interval(guidance_interval)
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = Settings(prompt, negative_prompt, seed=seed, parity=parity, fast=fast, **chosen)
    wanted = Wanted(
        model=None if model is None else one_of("--model", model, tuple(MODELS)),
        backend=None if backend is None else one_of("--backend", backend, tuple(BACKENDS)),
        device=None if device is None else one_of("--device", device, ("cpu", "cuda")),
    )
    wanted_range = TimeRange(
        *(
            None if text is None else parse_time(flag, text)
            for flag, text in (("--start", start), ("--end", end), ("--preview", preview))
        )
    )
    high_or_low = one_of("--memory", memory, _MEMORY)
    many = batch.is_batch(inputs, prompt_file)
    codec = codec or ("png" if output.endswith("/") and not many else "h264")
    if compare is not None and (many or output == PIPE or codec == "png" or inputs[0] == PIPE):
        raise UsageError("--compare needs files: name one video for INPUT and one for -o")
    if compare is not None and preview is not None:
        raise UsageError("--compare and --preview both show before and after; leave one of them out")
    if output == PIPE and as_json:
        raise UsageError("--json and -o - both write to the standard output; leave one of them out")
    with (
        warnings_shown() as told,
        Display(quiet) as display,
        contextlib.ExitStack() as opened,
    ):

        @cache
        def engine_set() -> EngineSet:
            return choose_engines(engines, wanted, display, fast=fast, reuse=reuse)

        @cache
        def team() -> Team:
            return hire(engine_set(), device, high_or_low, workers, ray, opened)

        def facts_of(frames: int, seconds: float, described: dict[str, Any]) -> dict[str, Any]:
            told = {"frames": frames, "seconds": round(seconds, 3)}
            return {**told, "engine_set": str(engine_set().path), "settings": described}

        def enhance(read_from: Path, written_to: Path, prompt: str, again: bool) -> dict[str, Any]:
            """One video; ``again``: what an earlier run of the same settings has made is left as it is."""
            settled = settle(written_to)
            again = again or settled is not None
            if not (again and written_to.exists()):
                check_place(written_to, read_from, codec, overwrite=overwrite)
            with VideoReader(
                read_from,
                parity=parity,
                find_cuts=cuts and not parity,
                rate=_parse_rate(rate),
                wanted=wanted_range,
                deinterlace=deinterlace,
            ) as reader:
                encoding = encoding_for(
                    reader.info, codec=codec, crf=crf, preset=preset, depth=depth, parity=parity
                )
                made = plan_for(reader, replace(settings, prompt=prompt), engine_set())
                described = describe(engine_set(), made, encoding) | asked_for(wanted_range)
                if not deinterlace:
                    described["deinterlace"] = False
                if not cuts:
                    described["cuts"] = False
                note = json.dumps(described)
                if again and written_to.exists():
                    if not overwrite and batch.was_made_before(written_to, note):
                        return facts_of(settled, 0.0, described) if settled is not None else {}
                    check_place(written_to, read_from, codec, overwrite=overwrite)
                encoding.check(written_to, *made.size)
                target = Target(written_to, encoding, overwrite, restart, note)
                members = team()
                started = time.monotonic()
                with display.following(read_from.name if many else "") as show:
                    frames = enhance_film(members, reader, target, made, show)
            return facts_of(frames, time.monotonic() - started, described)

        if many:
            jobs = batch.plan_jobs(inputs, Path(output), codec, prompt, prompt_file)

            def attempt(job: batch.Job) -> batch.Outcome:
                facts = enhance(job.source, job.output, job.prompt, again=True)
                return batch.Outcome(job, "done" if facts else "done before", facts)

            outcomes = batch.run_jobs(jobs, attempt, team().size, team().close)
        else:
            read_from = opened.enter_context(input_path(Path(inputs[0])))
            written_to = opened.enter_context(output_path(Path(output)))
            if compare is not None:
                check_page(compare, overwrite=overwrite)
            facts = enhance(read_from, written_to, prompt, again=False)
            if compare is not None:
                shown = {
                    **facts["settings"],
                    "seconds": round(facts["seconds"], 1),
                    "frames": facts["frames"],
                }
                write_page(compare, read_from, written_to, shown, wanted_range)
    if many:
        if as_json:
            told_of = [outcome.as_json() for outcome in outcomes]
            results.print_json(json.dumps({"videos": told_of, "warnings": told}))
        elif not quiet:
            batch.tell(outcomes)
        batch.check(outcomes)
    elif as_json:
        results.print_json(json.dumps({"input": inputs[0], "output": output, **facts, "warnings": told}))
    elif not quiet:
        size_text, seconds = facts["settings"]["size"], facts["seconds"]
        messages.print(
            f"{output}: {facts['frames']} frames of {size_text} in {seconds_text(seconds)}", markup=False
        )


def _parse_rate(text: str | None) -> Fraction | None:
    if text is None:
        return None
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 0 < rate <= 1000:
        raise UsageError(f"--rate must be pictures per second, as 25 or 30000/1001, not '{text}'")
    return rate


def parse_interval(text: str) -> tuple[float, float]:
    """Two shares of the noise levels, as ``0.2:0.5``.

    Raises:
        UsageError: anything else.
    """
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        raise UsageError(
            f"--guidance-interval {text}: give two noise levels from 0 to 1, as 0.2:0.5"
        ) from None
    return low, high
