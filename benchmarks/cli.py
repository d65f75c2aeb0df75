"""``v2v-bench``: measure engine sets against their baselines, report, compare two reports."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn, get_args

import rich.box
import rich.console
import rich.table
import typer

from v2v.benchmarks.compare import Change, Comparison, compare
from v2v.benchmarks.report import PAGE, check_output, size_text, spread_text, time_text, write
from v2v.benchmarks.results import Axis, Kind, Results
from v2v.benchmarks.session import SessionPlan, run_session
from v2v.core.components import Window, window_for
from v2v.core.configs import MODELS, ModelConfig
from v2v.core.console import (
    BuildDisplay,
    TerminalListener,
    messages,
    new_app,
    one_of,
    parse_size,
    run_app,
    warn,
)
from v2v.core.errors import UsageError
from v2v.engine.backend import BACKENDS
from v2v.engine.choose import (
    build_default,
    default_backend,
    default_device,
    default_precision,
)
from v2v.engine.store import EngineSet, NoEngineSet, Wanted, find

app = new_app()
results_console = rich.console.Console(highlight=False, soft_wrap=True)
if not results_console.is_terminal:  # a log is as wide as the tables need
    results_console.width = 120

_AXES: tuple[Axis, ...] = get_args(Axis)
_BASELINES: tuple[Kind, ...] = ("eager", "compile")
_NO_BASELINE = "none"
_DEVICES = ("cpu", "cuda")

_REPEATS = 3


@dataclass(frozen=True)
class Quick:
    """What ``--quick`` measures with the small model on the CPU where nothing else is said."""

    windows: Sequence[str]  # none: the one that the model has graphs for in the package
    steps: int
    baselines: Sequence[str]
    sweeps: Sequence[str]
    repeats: int


# What two cores do in well under two minutes, building included: a tiny window, and no torch.compile, which alone
# takes a minute.
QUICK = Quick(["80x72x4"], 2, ["eager"], ["steps", "frames"], _REPEATS)
# Without PyTorch only the packaged graphs can be measured, whose window has 160 times as many pixels.
QUICK_PACKAGED = Quick([], 1, [_NO_BASELINE], [], 1)


def main() -> NoReturn:
    """Entry point of ``v2v-bench``."""
    run_app(app)


@app.command()
def command(
    more_engines: Annotated[
        list[Path] | None, typer.Argument(metavar="[SET]...", help="Folders of engine sets.")
    ] = None,
    engines: Annotated[
        list[Path] | None, typer.Option(help="The same; --engines A B C measures three.")
    ] = None,
    model: Annotated[str, typer.Option(help=f"Without sets: one of {', '.join(MODELS)}.")] = "small",
    backend: Annotated[
        list[str] | None, typer.Option(help=f"Without sets: {', '.join(BACKENDS)}; may be repeated.")
    ] = None,
    window: Annotated[
        list[str] | None,
        typer.Option(help="Without sets: width x height x frames, as 1280x720x32; may be repeated."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; default: what a set was built for.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Of what is built here and of baselines, as v2v-build-engines.")
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(help="eager, compile or none; may be repeated. Default: both, where PyTorch is."),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="Also the engine sets' cost against frames, pixels or steps; may be repeated."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=998, help="Default: the model's.")] = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, max=1000, help=f"Whole runs; medians are taken. Default: {_REPEATS}.")
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="The small model on the CPU in a tiny window: under two minutes. Without PyTorch, one run of what "
            "comes with the package.",
        ),
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the report; default: named by the date.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a report in -o.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results as JSON; write a folder only with -o.")
    ] = False,
    compare_: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", metavar="OLD NEW", help="Say what changed; exit code 1 if for the worse."),
    ] = None,
) -> None:
    """Measure stages, whole runs, memory and load times; write a page, a summary and JSON.

    Without engine sets the best one in the store is measured, or one is built. PyTorch, eager and compiled, runs
    in the same pipeline for comparison.
    """
    if compare_ is not None:
        return show_comparison(compare(Results.read(compare_[0]), Results.read(compare_[1])), as_json)
    folder = output or (None if as_json else Path(f"v2v-bench-{datetime.now():%Y%m%d-%H%M%S}"))
    if folder is not None:
        check_output(folder, overwrite=overwrite)
    named = [*(engines or []), *(more_engines or [])]
    if named and (backend or window or quick):
        raise UsageError(
            "name engine sets, or say with --backend, --window or --quick which to measure, not both"
        )
    if quick:
        default = quick_here()
        model, window, device = "small", [*default.windows], "cpu"
        baseline, sweep = baseline or [*default.baselines], sweep or [*default.sweeps]
        steps, repeats = steps or default.steps, repeats or default.repeats
    config = MODELS[one_of("--model", model, tuple(MODELS))]
    chosen = one_of("--device", device, _DEVICES) if device else None
    baselines = choose_baselines(baseline)
    sweeps = tuple(dict.fromkeys(one_of("--sweep", axis, _AXES) for axis in sweep or ()))
    # Building comes last: no one should wait for it to learn of a misspelt option.
    sets = tuple(map(EngineSet.open, named)) or sets_for(config, window, backend, chosen, weights)
    plan = SessionPlan(sets, baselines, chosen, weights, repeats or _REPEATS, steps, sweeps)
    kept = False

    def keep(so_far: Results) -> None:
        nonlocal kept
        if folder is not None:
            write(so_far, folder, overwrite=overwrite or kept)
            kept = True

    with BuildDisplay() as display:
        results = run_session(plan, _command_line(), lambda name: partial(display, name), keep)
    keep(results)
    if as_json:
        sys.stdout.write(results.to_json())
    else:
        show(results)
    if folder is not None:
        (messages if as_json else results_console).print(f"report: {folder / PAGE}", markup=False)


def _command_line() -> str:
    """What was typed, for the report."""
    return shlex.join(["v2v-bench", *sys.argv[1:]])


def quick_here() -> Quick:
    """The quick session that this installation can do; says so if it is the lesser one."""
    if all(importlib.util.find_spec(name) for name in ("torch", "onnx", "onnxscript")):
        return QUICK
    warn(
        "PyTorch and ONNX are not installed, so the packaged graphs are measured, without baselines and sweeps; "
        "all of it: pip install 'v2v[export]'"
    )
    return QUICK_PACKAGED


def choose_baselines(given: Sequence[str] | None) -> tuple[Kind, ...]:
    """What the user named, or those that can run here.

    Raises:
        UsageError: PyTorch is needed and missing, or there is no such baseline.
    """
    if given:
        names = [one_of("--baseline", name, (*_BASELINES, _NO_BASELINE)) for name in given]
        if _NO_BASELINE in names and len(set(names)) > 1:
            raise UsageError("--baseline none cannot be combined with another")
        chosen = tuple(kind for kind in _BASELINES if kind in names)
    else:
        chosen = _BASELINES
    if chosen and importlib.util.find_spec("torch") is None:
        if given:
            raise UsageError("--baseline needs PyTorch; install it with: pip install 'v2v[export]'")
        warn("PyTorch is not installed, so there are no baselines and no roofline: pip install 'v2v[export]'")
        return ()
    return chosen


def sets_for(
    model: ModelConfig,
    windows: Sequence[str] | None,
    backends: Sequence[str] | None,
    device: str | None,
    weights: str | None,
) -> tuple[EngineSet, ...]:
    """An engine set of ``model`` for every window and backend: from the store, or built into it.

    Raises:
        V2VError: a window, backend or device that cannot be, or a build that fails.
    """
    on = device or default_device()
    names = [one_of("--backend", name, tuple(BACKENDS)) for name in backends or ()] or [default_backend(on)]
    sizes = [parse_window(model, text) for text in windows or ()] or [window_for(model)]
    return tuple(find_or_build(model, size, name, on, weights) for size in sizes for name in names)


def parse_window(model: ModelConfig, text: str) -> Window:
    """Read "1280x720x32".

    Raises:
        UsageError: anything else.
        BuildError: a window that the model cannot take.
    """
    size, _, frames = text.lower().rpartition("x")
    if not frames.isdecimal() or "x" not in size:
        raise UsageError(f"--window must be WIDTHxHEIGHTxFRAMES, as 1280x720x32, not '{text}'")
    return window_for(model, parse_size(size), int(frames))


def find_or_build(
    model: ModelConfig, window: Window, backend: str, device: str, weights: str | None
) -> EngineSet:
    """The set in the store, or a new one; with ``weights`` named it is always the build that decides."""
    wanted = Wanted(
        model=model.name, window=window, backend=backend, precision=default_precision(device), device=device
    )
    listener = TerminalListener()
    if weights is None:
        try:
            return find(wanted)
        except NoEngineSet:
            listener.say(f"building engines of {model.name} for {window} with {backend}")
    return build_default(model, wanted, listener, weights)


def show(results: Results) -> None:
    """The table at the end of a session."""
    table = _table("", "whole run", "UNet evaluation", "first step", "memory")
    for measured in results.measured:
        unet = next(stage for stage in measured.stages if stage.name == "UNet evaluation")
        table.add_row(
            measured.subject.name,
            spread_text(measured.run, time_text),
            spread_text(unet.seconds, time_text),
            time_text(measured.first_step.median),
            size_text((measured.gpu_bytes or measured.host_bytes).median),
        )
    results_console.print(table)
    if any(measured.subject.weights == "random" for measured in results.measured):
        warn("the weights are random numbers: times and memory are the real networks', pictures mean nothing")
    for failed in results.failed:
        warn(f"{failed.name} was not measured: {failed.reason}")


def show_comparison(found: Comparison, as_json: bool) -> None:
    """Print what changed; leave with exit code 1 if something got slower or larger."""
    if as_json:
        changes = [
            {**asdict(change), "ratio": change.ratio, "verdict": change.verdict} for change in found.changes
        ]
        sys.stdout.write(json.dumps({**asdict(found), "changes": changes}, indent=1) + "\n")
    else:
        _print_comparison(found)
    if found.worse:
        raise typer.Exit(1)


def _print_comparison(found: Comparison) -> None:
    by_subject: dict[str, list[Change]] = {}
    for change in sorted(found.changes, key=lambda c: -c.ratio if c.worse else 0):
        by_subject.setdefault(change.subject, []).append(change)
    for subject, changes in by_subject.items():
        table = _table(subject, "old", "new", "change", "")
        for change in changes:
            text = time_text if change.unit == "s" else size_text
            table.add_row(
                change.quantity,
                spread_text(change.old, text),
                spread_text(change.new, text),
                f"{100 * (change.ratio - 1):+.1f} %",
                "within the spread" if change.verdict == "same" else change.verdict,
                style="red" if change.worse else "dim" if change.verdict == "same" else "green",
            )
        results_console.print(table)
    for difference in found.differences:
        results_console.print(f"differs: {difference}", markup=False)
    for when, names in (("old", found.only_old), ("new", found.only_new)):
        for name in names:
            results_console.print(f"only in the {when} file: {name}", markup=False)
    worse = len(found.worse)
    results_console.print(
        f"{worse} of {len(found.changes)} figures got worse" if worse else "nothing got worse"
    )


def _table(*columns: str) -> rich.table.Table:
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", overflow="fold")
    return table
