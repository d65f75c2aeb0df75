"""``v2v-run``: enhance videos."""

from __future__ import annotations

import contextlib
import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NoReturn

import rich.console
import rich.progress
import typer

from v2v.core.configs import MODELS
from v2v.core.console import (
    BuildDisplay,
    UsageError,
    messages,
    new_app,
    one_of,
    parse_size,
    run_app,
    warn,
)
from v2v.engine.backend import BACKENDS, BuildOptions
from v2v.engine.build import (
    build_engine_set,
    default_backend,
    default_device,
    default_precision,
    default_weights,
    window_for,
)
from v2v.engine.cli import seconds_text
from v2v.engine.manifest import v2v_version
from v2v.engine.store import EngineSet, NoEngineSet, Wanted, engines_root, find
from v2v.runtime.diffusion.pipeline import (
    Memory,
    Plan,
    Progress,
    Settings,
    VideoToVideo,
    can_reuse,
    check_reuse,
    plan,
)
from v2v.runtime.diffusion.solvers import SOLVERS
from v2v.runtime.films import batch
from v2v.runtime.films.compare_page import check_page, write_page
from v2v.runtime.films.film import Target, enhance_film
from v2v.runtime.films.journal import settle
from v2v.runtime.films.pool import Alone, Team, local_pool
from v2v.runtime.media.encoding import CODECS, Encoding
from v2v.runtime.media.image_sequence import check_folder
from v2v.runtime.media.reader import VideoReader, check_output, encoding_for
from v2v.runtime.media.stdio import PIPE, input_path, output_path
from v2v.runtime.media.time_range import NOT_GIVEN, TimeRange, is_time, parse_time

app = new_app()
results = rich.console.Console(highlight=False, soft_wrap=True)

# Where no model is named, the large one is used if its engines are there; the small one is built if need be.
_PREFERENCE = ("ms-vid2vid-xl", "small")
_BUILT_ON_DEMAND = "small"
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
        _warnings_shown() as told,
        _Display(quiet) as display,
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


def check_place(output: Path, source: Path, codec: str, *, overwrite: bool) -> None:
    """Find out before the work whether ``output`` may be written.

    Raises:
        MediaError, FolderError: it may not.
    """
    if codec == "png":
        check_folder(output)
    else:
        check_output(output, source, overwrite=overwrite)


def hire(
    engine_set: EngineSet,
    device: str | None,
    memory: Memory,
    workers: int | None,
    ray: str | None,
    opened: contextlib.ExitStack,
) -> Team:
    """Load the engines: here, in several processes, or on a cluster; ``opened`` ends what was started.

    Raises:
        V2VError: the engines do not run there, or there are fewer GPUs than workers.
    """
    device = device or engine_set.manifest.recipe.options.device
    if ray is not None:
        from v2v.runtime.films.ray_cluster import cluster_pool  # Ray is an extra

        return opened.enter_context(cluster_pool(ray, engine_set, workers, device, memory))
    if workers is not None and workers > 1:
        return opened.enter_context(local_pool(engine_set, workers, device, memory))
    return Alone(VideoToVideo.load(engine_set, device, memory))


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


def choose_engines(
    named: str | None, wanted: Wanted, display: _Display, *, fast: bool = False, reuse: int | None = None
) -> EngineSet:
    """The engine set to use: the one named, else the best in the store, else the small model's, built now.

    Among sets that are the same otherwise, what is asked for decides: one built with --reuse to ``reuse`` features, and
    to be ``fast`` also one with FP8.

    Raises:
        EngineError: the named set does not fit ``wanted``, or none does and it is not the small model's.
        BuildError: the small model's engines cannot be built here.
    """
    if named is not None:
        in_store = engines_root() / named
        chosen = EngineSet.open(in_store if in_store.is_dir() and not Path(named).exists() else Path(named))
        chosen.require(wanted)
    else:
        chosen = _find_or_build(wanted, display)
        if fast or (reuse or 1) > 1:
            chosen = _specialised(chosen, wanted, fast=fast, reuse=reuse != 1)
    recipe = chosen.manifest.recipe
    display.say(f"engine set {chosen.name}: {recipe.model.name} on {recipe.backend.name}")
    if recipe.weights.kind == "random":
        warnings.warn(
            f"the weights of model {recipe.model.name} are random numbers: its pictures mean nothing",
            stacklevel=2,
        )
    return chosen


def _specialised(chosen: EngineSet, wanted: Wanted, *, fast: bool, reuse: bool) -> EngineSet:
    """The sibling of ``chosen`` that was built for what is asked, as far as there is one."""
    recipe = chosen.manifest.recipe
    sibling = Wanted(
        model=recipe.model.name,
        window=recipe.window,
        backend=recipe.backend.name,
        precision=recipe.options.precision,
        device=wanted.device,
        weights=recipe.weights.identity,
    )
    for reusing in (True, False) if reuse else (False,):
        for fp8 in (True, False) if fast else (recipe.options.fp8,):
            with contextlib.suppress(NoEngineSet):
                return find(replace(sibling, reuse=reusing, fp8=fp8))
    return chosen


def _find_or_build(wanted: Wanted, display: _Display) -> EngineSet:
    models = _PREFERENCE if wanted.model is None else (wanted.model,)
    for name in models:
        try:
            return find(Wanted(model=name, backend=wanted.backend, device=wanted.device))
        except NoEngineSet:
            if name != _BUILT_ON_DEMAND:
                if name == models[-1]:
                    raise
                continue
    model = MODELS[_BUILT_ON_DEMAND]
    device = wanted.device or default_device()
    display.say(f"there are no engines for model {model.name} yet: building them once")
    with display.build() as progress:
        return build_engine_set(
            model,
            weights=default_weights(model),
            window=window_for(model),
            backend_name=wanted.backend or default_backend(device),
            options=BuildOptions(precision=default_precision(device), device=device),
            progress=progress,
        ).engine_set


def plan_for(reader: VideoReader, settings: Settings, engine_set: EngineSet) -> Plan:
    """Settings made whole for this video, checked before anything is loaded.

    Raises:
        V2VError: a value out of range, or engines that cannot do it; names the flag.
    """
    defaults = engine_set.manifest.recipe.model.defaults
    source = reader.info.height, reader.info.width
    made = plan(settings, defaults, source, can_reuse(engine_set))
    check_reuse(made, engine_set)
    return made


def describe(engine_set: EngineSet, made: Plan, encoding: Encoding) -> dict[str, Any]:
    """All that decides what a run gives, as written into the output's comment."""
    recipe = engine_set.manifest.recipe
    height, width = made.size
    return {
        "made_with": f"v2v {v2v_version()}",
        "model": recipe.model.name,
        "weights": f"{recipe.weights.kind} {recipe.weights.identity[:16]}",
        "engines": engine_set.name,
        **asdict(made),
        "size": f"{width}x{height}",
        "codec": encoding.codec,
        "crf": encoding.crf,
        "preset": encoding.preset,
    }


def asked_for(wanted: TimeRange) -> dict[str, str]:
    """The range that was asked for, as written into the output's comment; nothing for a whole film."""
    given = wanted.facts().items()
    return {} if wanted.whole else {name.lstrip("-"): value for name, value in given if value != NOT_GIVEN}


@contextlib.contextmanager
def _warnings_shown() -> Iterator[list[str]]:
    """Show what is said through :mod:`warnings` in one line each, and lend a list of it."""
    told: list[str] = []

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        told.append(str(message))
        warn(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield told


class _Display:
    """Progress on stderr: frames done, the step of the current segment, time left."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(30),
            rich.progress.TextColumn("{task.fields[frames]} frames, {task.fields[stage]}", markup=False),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("left:"),
            rich.progress.TimeRemainingColumn(),
            console=messages,
            disable=quiet,
            transient=True,
        )

    def __enter__(self) -> _Display:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, message: str) -> None:
        """One line of news."""
        if not self._quiet:
            messages.print(message, markup=False)

    def build(self) -> Any:
        """A display for building engines, as a context manager."""
        return contextlib.nullcontext(lambda *_: None) if self._quiet else BuildDisplay()

    @contextlib.contextmanager
    def following(self, name: str) -> Iterator[Callable[[Progress], None]]:
        """Lend a function that shows how far the video called ``name`` is, on a line of its own."""
        task = self._bar.add_task(name, total=None, frames="0", stage="")
        self._bar.start()

        def show(now: Progress) -> None:
            of = "" if now.frames_total is None else f"/{now.frames_total}"
            self._bar.update(
                task,
                total=None if now.fraction is None else 1.0,
                completed=now.fraction or 0.0,
                frames=f"{now.frames_done}{of}",
                stage=f"{now.stage} {now.step}/{now.steps}",
            )

        try:
            yield show
        finally:
            self._bar.remove_task(task)
