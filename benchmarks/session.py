"""One session: choose what to measure, measure each in a process of its own, collect."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from v2v.benchmarks.machine import ceilings, machine
from v2v.benchmarks.measure import Measurement, OpenBaseline, OpenEngineSet, Opener, Tell, measure
from v2v.benchmarks.results import Axis, Ceilings, Failed, Kind, Measured, Results, Work
from v2v.core.abort import removed_on_abort
from v2v.core.components import Precision, Window
from v2v.core.configs import ModelConfig
from v2v.core.errors import V2VError
from v2v.core.isolate import in_fresh_process
from v2v.core.version import __version__
from v2v.engine.store import EngineSet

_TITLES = {"tensorrt": "TensorRT", "inductor": "Inductor", "onnxruntime": "ONNX Runtime"}
_BASELINES: dict[Kind, str] = {"eager": "PyTorch eager", "compile": "torch.compile"}

Shape = tuple[ModelConfig, Window, Precision]
Announce = Callable[[str], Tell]
"""Takes the name of the next subject, returns the function that takes its progress."""


@dataclass(frozen=True)
class SessionPlan:
    """What a session measures and how often."""

    sets: tuple[EngineSet, ...]
    baselines: tuple[Kind, ...]
    device: str | None  # None: the one that each set was built for
    weights: str | None  # of baselines; None: those of the sets
    repeats: int
    steps: int | None
    sweeps: tuple[Axis, ...]  # of the engine sets


def openers(plan: SessionPlan) -> list[Opener]:
    """The subjects, baselines first: one of each for every model, window and device among the sets."""
    sets: dict[str, Opener] = {}
    baselines: dict[str, Opener] = {}
    recipes = [engine_set.manifest.recipe for engine_set in plan.sets]
    models = {recipe.model.name for recipe in recipes}
    windows = {str(recipe.window) for recipe in recipes}
    for engine_set, recipe in zip(plan.sets, recipes, strict=True):
        device = plan.device or recipe.options.device
        distinction = [recipe.model.name] * (len(models) > 1) + [str(recipe.window)] * (len(windows) > 1)
        for kind in plan.baselines:
            name = f"{', '.join([_BASELINES[kind], *distinction])} ({device})"
            source = plan.weights or recipe.weights.source
            baselines.setdefault(name, OpenBaseline(name, kind, recipe.model, recipe.window, source, device))
        engine = f"{_TITLES.get(recipe.backend.name, recipe.backend.name)} {recipe.options.precision}"
        name = f"{', '.join([engine, *distinction])} ({device})"
        if (
            name in sets
        ):  # told apart by its folder, or where that is one of the store's long names, by its hash
            name = f"{name} {engine_set.name if len(engine_set.name) < 30 else recipe.identity[:8]}"
        sets[name] = OpenEngineSet(name, engine_set.path, device)
    return [*baselines.values(), *sets.values()]


def run_session(
    plan: SessionPlan,
    command: str,
    announce: Announce,
    keep: Callable[[Results], None] = lambda results: None,
) -> Results:
    """Measure everything in ``plan``; what fails is listed in the results, with the reason.

    ``keep`` gets the results so far whenever there are more: a session may be cut off after hours.

    Raises:
        V2VError: nothing at all could be measured.
    """
    measured: dict[str, Measured] = {}
    failed: list[Failed] = []
    subjects = openers(plan)

    def results(ceilings: tuple[Ceilings, ...] = (), work: tuple[Work, ...] = ()) -> Results:
        return Results(
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            v2v=__version__,
            command=command,
            repeats=plan.repeats,
            machine=machine(),
            ceilings=ceilings,
            work=work,
            measured=tuple(measured[s.name] for s in subjects if s.name in measured),
            failed=tuple(failed),
        )

    with tempfile.TemporaryDirectory(prefix="v2v-bench-") as folder, removed_on_abort(Path(folder)):
        # Engine sets first: baselines take longest, and have been measured before.
        for index, opener in enumerate(sorted(subjects, key=lambda subject: subject.kind != "engines")):
            subject_folder = Path(folder) / str(index)
            subject_folder.mkdir()
            sweeps = plan.sweeps if opener.kind == "engines" else ()
            job = Measurement(opener, plan.repeats, plan.steps, sweeps)

            def take(result: Measured, name: str = opener.name) -> None:
                measured[name] = result
                keep(results())

            try:
                in_fresh_process(measure, job, subject_folder, tell=announce(opener.name), take=take)
            except V2VError as error:
                failed.append(Failed(opener.name, str(error)))
    if not measured:
        raise V2VError("nothing could be measured: " + "; ".join(f"{f.name}: {f.reason}" for f in failed))
    return results(_ceilings(measured.values(), announce), _work(plan.sets, measured.values(), announce))


def _ceilings(measured: Iterable[Measured], announce: Announce) -> tuple[Ceilings, ...]:
    """Of every device that something ran on; figures stand without them too."""
    ceilings = []
    for device in sorted({m.subject.device for m in measured}):
        with suppress(V2VError):
            ceilings.append(
                in_fresh_process(measure_ceilings, device, tell=announce(f"ceilings of the {device}"))
            )
    return tuple(ceilings)


def _work(sets: Iterable[EngineSet], measured: Iterable[Measured], announce: Announce) -> tuple[Work, ...]:
    """The arithmetic of everything measured; none without PyTorch to count it."""
    recipes = {(r.model.name, str(r.window)): r for r in (engine_set.manifest.recipe for engine_set in sets)}
    keys = {(m.subject.model, m.subject.window, m.subject.precision) for m in measured}
    shapes: list[Shape] = []
    for model, window, precision in sorted(keys):
        recipe = recipes[model, window]
        shapes.append((recipe.model, recipe.window, precision))
    with suppress(V2VError):
        return in_fresh_process(count_work, shapes, tell=announce("counting operations"))
    return ()


def measure_ceilings(device: str, tell: Tell) -> Ceilings:
    """In a fresh process: see :func:`v2v.benchmarks.machine.ceilings`."""
    tell("copies and matrix products", 0.1)
    measured = ceilings(device)
    tell("done", 1.0)
    return measured


def count_work(shapes: list[Shape], tell: Tell) -> tuple[Work, ...]:
    """In a fresh process, as it imports PyTorch: see :func:`v2v.benchmarks.torch_engines.work`."""
    from v2v.benchmarks.torch_engines import work

    counted: list[Work] = []
    for index, shape in enumerate(shapes):
        tell(f"{shape[0].name} {shape[1]}", index / len(shapes))
        counted += work(*shape)
    tell("done", 1.0)
    return tuple(counted)
