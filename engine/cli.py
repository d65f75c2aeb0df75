"""``v2v-build-engines``: build, list and verify engine sets."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from rich.filesize import decimal

from v2v.core.components import window_for
from v2v.core.configs import MODELS, ModelConfig
from v2v.core.console import (
    BuildDisplay,
    Table,
    messages,
    new_app,
    results,
    run_app,
    seconds_text,
    show_log,
    takes,
    warn,
)
from v2v.core.errors import EngineError, UsageError
from v2v.core.published import PUBLISHED, PURPOSES
from v2v.engine.backend import MIXABLE
from v2v.engine.build import build_engine_set
from v2v.engine.choose import default_weights
from v2v.engine.layers import wrong_layers
from v2v.engine.manifest import FP16_RANGE
from v2v.engine.options import BuildArguments
from v2v.engine.store import EngineSet, engines_root, list_sets
from v2v.engine.verify import Verified, verify_engine_set

app = new_app()


def main() -> NoReturn:
    """Run ``v2v-build-engines``; :mod:`v2v.engine.start` calls it."""
    run_app(app)


@app.command()
@takes(BuildArguments)
def command(arguments: BuildArguments) -> None:
    """Export a model's networks, compile them and keep the engines for v2v-run.

    Engine sets are kept in $V2V_ENGINES, by default in the user's cache folder.
    """
    if arguments.verbose:
        show_log()
    if arguments.models:
        return show_models()
    if arguments.list_sets:
        return show_sets()
    if arguments.layers:
        if not (arguments.verify and arguments.output):
            raise UsageError("--layers belongs to --verify, and takes one engine set: name it with -o")
        return show_layers(EngineSet.open(arguments.output), arguments.named_device())
    if arguments.verify:
        return verify_sets(arguments.output, arguments.named_device())
    config = arguments.config()
    options = arguments.build_options()
    weights = arguments.weights or default_weights(config)
    window = arguments.window(config)
    backend_name = arguments.backend_name(options.device)
    if not weights.startswith("random:"):
        show_provenance(config)
    with warnings_shown(), BuildDisplay() as display:
        built = build_engine_set(
            config,
            weights=weights,
            window=window,
            backend_name=backend_name,
            options=options,
            output=arguments.output,
            force=arguments.force,
            save_weights=arguments.save_weights,
            progress=display,
        )
    if not built.fresh:
        messages.print("already built (--force builds it anew)")
    show_built(built.engine_set)


def show_built(engine_set: EngineSet) -> None:
    """The table at the end of a build."""
    manifest = engine_set.manifest
    table = Table("component", "size", "export", "compile", "error against PyTorch")
    for name, record in manifest.components.items():
        table.add_row(
            name,
            decimal(sum(file.bytes for file in record.files)),
            seconds_text(record.export_seconds),
            seconds_text(record.compile_seconds),
            f"{record.error:.1e}",
        )
    table.add_section()
    table.add_row("all", decimal(engine_set.bytes), seconds_text(manifest.seconds), "", "")
    results.print(table)
    results.print(f"engine set: {engine_set.path}", markup=False)
    for name, record in manifest.components.items():
        if record.too_large:
            advice = f"; --option {name}=fp32 gives it more" if name in MIXABLE else ""
            warn(
                f"{name}: {record.too_large} on a picture and a prompt, FP16 ends at {FP16_RANGE:.0f}, so other "
                f"pictures may give NaN{advice}"
            )
    _say_if_random(engine_set)


def show_models() -> None:
    """What ``--models`` prints: for each model what it is for, what it takes, and whose its weights are."""
    for name, purpose in PURPOSES.items():
        model, published = MODELS[name], PUBLISHED.get(name)
        results.print(name, style="bold", markup=False)
        results.print(f"    {purpose.text}", markup=False)
        results.print(f"    window {window_for(model)}; GPU memory: {purpose.memory}", markup=False)
        if published is None:
            results.print("    weights: come with v2v, under its licence", markup=False)
        else:
            files = ", ".join(file.name for file in published.files.values())
            results.print(f"    weights: hf:{published.repository}, {published.size} ({files})", markup=False)
            results.print(f"    licence of the weights: {published.licence}", markup=False)


def show_provenance(model: ModelConfig) -> None:
    """Before a build: the licence of the weights, and what is known of where they come from."""
    published = PUBLISHED.get(model.name)
    if published is not None:
        messages.print(f"licence of the weights of {model.name}: {published.licence}", markup=False)
        if published.provenance:
            warn(published.provenance)


@contextmanager
def warnings_shown() -> Iterator[None]:
    """Inside, warnings are printed as v2v's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *_, **__: warn(str(message))
        yield


def show_sets() -> None:
    """What ``--list`` prints: the sets in the store, whose names say what they are, and which of them run here."""
    count = 0
    for entry in list_sets():
        if isinstance(entry, EngineError):
            warn(str(entry))
            continue
        count += 1
        built_at = entry.manifest.created_here.strftime("%Y-%m-%d %H:%M")
        compatibility = entry.runs_on(None)
        verdict = "runs here" if compatibility.fits else f"does not run here: {compatibility.reason}"
        results.print(entry.name, style="bold", markup=False)
        results.print(f"    {decimal(entry.bytes)}, built {built_at}, {verdict}", markup=False)
    results.print(f"{count} engine sets in {engines_root()}", markup=False)


def verify_sets(folder: Path | None, device: str | None) -> None:
    """Verify the set in ``folder``, or every set in the store.

    Raises:
        EngineError: one of them is damaged or computes something else; the others are verified first.
    """
    sets = [EngineSet.open(folder)] if folder else list(list_sets())
    failures: list[EngineError] = []
    for entry in sets:
        try:
            if isinstance(entry, EngineError):
                raise entry
            device_of_set = device or _runnable_on(entry)
            with BuildDisplay() as display:
                verified = verify_engine_set(entry, device_of_set, display)
            show_verified(entry, device_of_set, verified)
        except EngineError as error:
            failures.append(error)
    if not sets:
        raise EngineError(f"there is no engine set in {engines_root()} to verify")
    for failure in failures[:-1]:
        messages.print(f"error: {failure}", style="red", markup=False)
    if failures:
        raise failures[-1]


def show_layers(engine_set: EngineSet, device: str | None) -> None:
    """What ``--verify --layers`` prints for one set.

    Raises:
        EngineError: a layer computes something else; names the first.
    """
    with BuildDisplay() as display:
        found = list(wrong_layers(engine_set, device or _runnable_on(engine_set), display))
    for name, layers, _ in found:
        table = Table(name, "operator", "in", "error against ONNX Runtime")
        for layer in layers:
            table.add_row(layer.name, layer.operator, layer.place, f"{layer.error:.1e}")
        results.print(table)
    for name, _, wrong in found:
        if wrong is not None:
            raise EngineError(
                f"{name} of {engine_set.path} goes wrong at the layer '{wrong.name}' ({wrong.operator} in "
                f"{wrong.place or 'its beginning'}), which differs from ONNX Runtime by {wrong.error:.1e}"
            )


def show_verified(engine_set: EngineSet, device: str, verified: Sequence[Verified]) -> None:
    """The table of ``--verify`` for one set."""
    table = Table("component", "load", "run", "error against ONNX Runtime", "against PyTorch, as built")
    for result in verified:
        table.add_row(
            result.component,
            seconds_text(result.load_seconds),
            seconds_text(result.run_seconds),
            "is the reference" if result.error is None else f"{result.error:.1e}",
            f"{engine_set.manifest.components[result.component].error:.1e}",
        )
    results.print(table)
    results.print(f"verified on {device}: {engine_set.path}", markup=False)
    _say_if_random(engine_set)


def _runnable_on(engine_set: EngineSet) -> str:
    """The device that the set was built for, or the CPU if it runs there and not on the former."""
    built_for = engine_set.manifest.recipe.options.device
    return "cpu" if not engine_set.runs_on(built_for).fits and engine_set.runs_on("cpu").fits else built_for


def _say_if_random(engine_set: EngineSet) -> None:
    if engine_set.manifest.recipe.weights.kind == "random":
        warn("its weights are random numbers: it runs like the real model, but its pictures mean nothing")
