"""The options of ``v2v-bench``, and how they become what a session measures."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, get_args

import typer

from v2v.benchmarks.results import Axis, Kind
from v2v.benchmarks.session import SessionPlan
from v2v.core.components import Window, window_for
from v2v.core.configs import MODELS, ModelConfig
from v2v.core.console import TerminalListener, one_of, parse_size, warn
from v2v.core.errors import UsageError
from v2v.engine.backend import BACKENDS
from v2v.engine.choose import (
    build_default,
    default_backend,
    default_device,
    default_precision,
    named_device,
)
from v2v.engine.store import EngineSet, NoEngineSet, Wanted, find

_AXES: tuple[Axis, ...] = get_args(Axis)
_BASELINES: tuple[Kind, ...] = ("eager", "compile")
_NO_BASELINE = "none"

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


@dataclass(frozen=True)
class BenchOptions:
    """The command line of ``v2v-bench``."""

    more_engines: Annotated[
        list[Path] | None, typer.Argument(metavar="[SET]...", help="Folders of engine sets.")
    ] = None
    engines: Annotated[list[Path] | None, typer.Option(help="The same; --engines A B C measures three.")] = (
        None
    )
    model: Annotated[str, typer.Option(help=f"Without sets: one of {', '.join(MODELS)}.")] = "small"
    backend: Annotated[
        list[str] | None, typer.Option(help=f"Without sets: {', '.join(BACKENDS)}; may be repeated.")
    ] = None
    window: Annotated[
        list[str] | None,
        typer.Option(help="Without sets: width x height x frames, as 1280x720x32; may be repeated."),
    ] = None
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:1; default: what a set was built for.")
    ] = None
    weights: Annotated[
        str | None, typer.Option(help="Of what is built here and of baselines, as v2v-build-engines.")
    ] = None
    baseline: Annotated[
        list[str] | None,
        typer.Option(help="eager, compile or none; may be repeated. Default: both, where PyTorch is."),
    ] = None
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="Also the engine sets' cost against frames, pixels or steps; may be repeated."),
    ] = None
    steps: Annotated[int | None, typer.Option(min=1, max=998, help="Default: the model's.")] = None
    repeats: Annotated[
        int | None, typer.Option(min=1, max=1000, help=f"Whole runs; medians are taken. Default: {_REPEATS}.")
    ] = None
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="The small model on the CPU in a tiny window: under two minutes. Without PyTorch, one run of what "
            "comes with the package.",
        ),
    ] = False
    layers: Annotated[
        bool, typer.Option("--layers", help="Only tell how long each layer of the engine sets takes.")
    ] = False
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the report; default: named by the date.")
    ] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a report in -o.")] = False
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results as JSON; write a folder only with -o.")
    ] = False
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", metavar="OLD NEW", help="Say what changed; exit code 1 if for the worse."),
    ] = None

    def folder(self) -> Path | None:
        """The folder that the report is written to, if any."""
        if self.output is not None or self.as_json:
            return self.output
        return Path(f"v2v-bench-{datetime.now():%Y%m%d-%H%M%S}")

    def sets_for_layers(self) -> list[tuple[EngineSet, str]]:
        """The engine sets that ``--layers`` times, and on which device.

        Raises:
            UsageError: none is named.
            EngineError: one cannot be opened.
        """
        named = [*(self.engines or []), *(self.more_engines or [])]
        if not named:
            raise UsageError("--layers needs the folder of an engine set")
        device = named_device(self.device)
        return [(opened, device or opened.device) for opened in map(EngineSet.open, named)]

    def plan(self) -> SessionPlan:
        """What the session measures. Engine sets that are missing are built.

        Raises:
            UsageError: options that cannot be read, or that contradict each other.
            V2VError: a set that cannot be opened or built.
        """
        named_sets = [*(self.engines or []), *(self.more_engines or [])]
        if named_sets and (self.backend or self.window or self.quick):
            raise UsageError(
                "name engine sets, or say with --backend, --window or --quick which to measure, not both"
            )
        options = self._filled_in(quick_here()) if self.quick else self
        config = MODELS[one_of("--model", options.model, tuple(MODELS))]
        device = named_device(options.device)
        baselines = choose_baselines(options.baseline)
        sweeps = tuple(dict.fromkeys(one_of("--sweep", axis, _AXES) for axis in options.sweep or ()))
        # Building comes last: no one should wait for it to learn of a misspelt option.
        sets = tuple(map(EngineSet.open, named_sets)) or sets_for(
            config, options.window, options.backend, device, options.weights
        )
        return SessionPlan(
            sets, baselines, device, options.weights, options.repeats or _REPEATS, options.steps, sweeps
        )

    def _filled_in(self, quick: Quick) -> BenchOptions:
        """These options, with those of ``quick`` where nothing else is said."""
        return replace(
            self,
            model="small",
            window=[*quick.windows],
            device="cpu",
            baseline=self.baseline or [*quick.baselines],
            sweep=self.sweep or [*quick.sweeps],
            steps=self.steps or quick.steps,
            repeats=self.repeats or quick.repeats,
        )


def quick_here() -> Quick:
    """The quick session that this installation can do; says so if it is the lesser one."""
    if all(importlib.util.find_spec(name) for name in ("torch", "onnx", "onnxscript")):
        return QUICK
    warn(
        "PyTorch and ONNX are not installed, so the packaged graphs are measured, without baselines and sweeps; "
        "all of it: pip install 'v2v[export]'"
    )
    return QUICK_PACKAGED


def choose_baselines(named: Sequence[str] | None) -> tuple[Kind, ...]:
    """What the user named, or those that can run here.

    Raises:
        UsageError: PyTorch is needed and missing, or there is no such baseline.
    """
    if named:
        names = [one_of("--baseline", name, (*_BASELINES, _NO_BASELINE)) for name in named]
        if _NO_BASELINE in names and len(set(names)) > 1:
            raise UsageError("--baseline none cannot be combined with another")
        baselines = tuple(kind for kind in _BASELINES if kind in names)
    else:
        baselines = _BASELINES
    if baselines and importlib.util.find_spec("torch") is None:
        if named:
            raise UsageError("--baseline needs PyTorch; install it with: pip install 'v2v[export]'")
        warn("PyTorch is not installed, so there are no baselines and no roofline: pip install 'v2v[export]'")
        return ()
    return baselines


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
    run_device = device or default_device()
    names = [one_of("--backend", name, tuple(BACKENDS)) for name in backends or ()] or [
        default_backend(run_device)
    ]
    sizes = [parse_window(model, text) for text in windows or ()] or [window_for(model)]
    return tuple(find_or_build(model, size, name, run_device, weights) for size in sizes for name in names)


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
