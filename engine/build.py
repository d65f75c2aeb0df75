"""Build an engine set: weights -> graphs -> engines -> a folder that appears when it is complete."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from v2v.core.components import (
    Component,
    ComponentName,
    Window,
    is_unet,
)
from v2v.core.configs import ModelConfig
from v2v.core.errors import BuildError, EngineError
from v2v.core.progress import BuildProgress, PhaseProgress
from v2v.core.version import __version__
from v2v.engine.backend import Backend, BuildOptions, Compiled, Source, backend
from v2v.engine.manifest import BackendRecord, ComponentRecord, Manifest, Recipe, WeightsRecord
from v2v.engine.store import (
    TOKENIZER,
    EngineSet,
    building_lock,
    engines_root,
    finish,
    list_sets,
    new_set,
    packaged_tokenizer,
    replaceable,
    stored_file,
)
from v2v.export import packaged

_LARGEST_KEPT = 20
"""Tensors of a component whose largest numbers the manifest tells."""


class Weights(Protocol):
    """What a build needs to know of :class:`v2v.export.weights.Weights`."""

    @property
    def source(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def identity(self) -> str: ...

    @property
    def model(self) -> ModelConfig:
        """What they fit: the model asked for, or its form without what they lack."""
        ...


def _plain_network(name: ComponentName, model: ModelConfig, weights: Any) -> Any:
    from v2v.export.graphs import plain_network

    return plain_network(name, model, weights)


def _rehearse(name: ComponentName, *arguments: Any) -> Any:
    from v2v.export.ranges import rehearse

    return rehearse(name, *arguments)


@dataclass(frozen=True)
class Exporter:
    """Where weights, graphs and networks come from: the functions of ``v2v.export`` that a build calls."""

    load_weights: Callable[..., Any]
    export_component: Callable[..., Any]
    save_safetensors: Callable[..., Any]
    plain_network: Callable[..., Any] = _plain_network
    rehearse: Callable[..., Any] = _rehearse
    largest_numbers: Callable[..., Any] | None = None  # None: nothing looks for them

    @classmethod
    def packaged(cls) -> Exporter:
        """The packaged graphs, for builds that save no weights; they need neither PyTorch nor ONNX."""

        def save(weights: Any, folder: Path) -> None:
            raise BuildError(f"these weights come with v2v: take {weights.source}")

        return cls(packaged.load_weights, packaged.export_component, save, packaged.plain_network)

    @classmethod
    def default(cls) -> Exporter:
        """PyTorch's.

        Raises:
            BuildError: PyTorch or another part of the ``export`` extra is not installed.
        """
        try:
            from v2v.export.graphs import export_component
            from v2v.export.ranges import largest_numbers
            from v2v.export.weights import load_weights, save_safetensors
        except ImportError as error:
            raise BuildError(
                f"building engines needs PyTorch and ONNX ({error}); "
                "install them with: pip install 'v2v[export]'"
            ) from error
        return cls(load_weights, export_component, save_safetensors, largest_numbers=largest_numbers)


@dataclass(frozen=True)
class Built:
    """An engine set, and whether this call made it."""

    engine_set: EngineSet
    fresh: bool


def build_engine_set(
    model: ModelConfig,
    *,
    weights: str,
    window: Window,
    backend_name: str,
    options: BuildOptions,
    output: Path | None = None,
    force: bool = False,
    save_weights: Path | None = None,
    progress: BuildProgress = lambda component, phase, share: None,
    exporter: Exporter | None = None,
) -> Built:
    """Build the engine set of ``model``, or return the one that is already there.

    ``weights`` is what :func:`v2v.export.weights.load_weights` takes. The set lands in ``output``, or in the
    store under a name made from what it is. ``force`` builds it anew. When another process builds the same
    set, this one waits and takes its result. The folder ``save_weights`` gets the weights as safetensors.

    Raises:
        BuildError: weights, export or compilation fail, ``output`` holds something else, the disk is full.
        EngineError: the backend is not installed.
    """
    requested = time.time()
    engine_backend = backend(backend_name)
    backend_record = BackendRecord(engine_backend.name, engine_backend.version, engine_backend.facts(options))
    if exporter is None:
        use_packaged = (
            packaged.fits(model, weights, window, options.precision)
            and save_weights is None
            and not (options.reuse or options.mixed)
        )
        exporter = Exporter.packaged() if use_packaged else Exporter.default()
    if Path(weights).expanduser().exists():  # the manifest's rebuild command must work from any folder
        weights = str(Path(weights).expanduser().resolve())
    progress("weights", "reading", 0.0)
    loaded: Weights = exporter.load_weights(
        weights, model, lambda phase, share: progress("weights", phase, share)
    )
    if save_weights is not None:
        progress("weights", f"writing {save_weights}", 0.5)
        exporter.save_safetensors(loaded, save_weights)
    progress("weights", "ready", 1.0)
    recipe = Recipe(
        loaded.model,
        WeightsRecord(loaded.source, loaded.kind, loaded.identity),
        window,
        options,
        backend_record,
    )
    path = (output or engines_root() / recipe.name).absolute()
    try:
        with building_lock(path, waiting=lambda: progress("weights", "waiting for another build", 1.0)):
            existing = _existing_set(path, recipe, in_store=output is None)
            if existing is not None and (not force or _seconds(existing.manifest.created) >= requested):
                return Built(existing, fresh=False)
            _check_output(path, recipe, force)
            with new_set(path) as folder:
                manifest = _fill(folder, recipe, loaded, engine_backend, exporter, requested, progress)
                finish(folder, manifest)
            return Built(EngineSet.open(path), fresh=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BuildError(f"the disk is full; the engine set {path} was not built") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise BuildError(
                f"cannot write the engine set {path}: {error.strerror}; "
                "name another folder with -o or $V2V_ENGINES"
            ) from error
        raise


def _fill(
    folder: Path,
    recipe: Recipe,
    weights: Weights,
    engine_backend: Backend,
    exporter: Exporter,
    started: float,
    progress: BuildProgress,
) -> Manifest:
    """Make everything but the manifest inside ``folder``."""
    described = recipe.options.describe(recipe.model, recipe.window)
    records = {
        name: _build_component(folder, component, recipe, weights, engine_backend, exporter, progress)
        for name, component in described.items()
    }
    records = _with_ranges(records, recipe, weights, exporter, progress)
    (folder / TOKENIZER).write_bytes(packaged_tokenizer())
    return Manifest(
        recipe=recipe,
        components=records,
        tokenizer=stored_file(folder / TOKENIZER, folder),
        seconds=round(time.time() - started, 3),
        created=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        v2v=__version__,
    )


def _with_ranges(
    records: dict[ComponentName, ComponentRecord],
    recipe: Recipe,
    weights: Weights,
    exporter: Exporter,
    progress: BuildProgress,
) -> dict[ComponentName, ComponentRecord]:
    """``records`` with the largest numbers inside those components that compute in FP16."""
    half = [name for name in records if recipe.options.of(name).precision == "fp16"]
    if exporter.largest_numbers is None or not half or recipe.bf16 or weights.kind == "random":
        return records
    found: dict[str, dict[str, float]] = exporter.largest_numbers(
        recipe.model, weights, recipe.window, lambda phase, share: progress("weights", phase, share)
    )

    def largest(name: ComponentName) -> dict[str, float]:
        numbers = found["unet" if is_unet(name) else name]
        return dict(sorted(numbers.items(), key=lambda each: -each[1])[:_LARGEST_KEPT])

    return {
        name: replace(record, largest=largest(name)) if name in half else record
        for name, record in records.items()
    }


def _build_component(
    folder: Path,
    component: Component,
    recipe: Recipe,
    weights: Weights,
    engine_backend: Backend,
    exporter: Exporter,
    progress: BuildProgress,
) -> ComponentRecord:
    """Export one component, compile it into ``folder/<name>`` and describe what came out."""
    name: ComponentName = component.name
    graphs, target = folder / "graphs", folder / name
    target.mkdir()
    graphs.mkdir()
    report: PhaseProgress = lambda phase, share: progress(name, phase, share)  # noqa: E731
    model, window, options = recipe.model, recipe.window, recipe.options.of(name)
    precision = options.precision
    export_seconds = 0.0

    def timed(work: Callable[[], Any]) -> Any:
        nonlocal export_seconds
        report("exporting", 0.0)
        started = time.monotonic()
        try:
            return work()
        finally:
            export_seconds += time.monotonic() - started
            report("compiling", 0.0)

    def export() -> Any:
        return exporter.export_component(name, model, weights, window, precision, graphs, report)

    def rehearse() -> Any:
        (graphs / "rehearsal").mkdir()
        return exporter.rehearse(name, model, weights, window, precision, graphs / "rehearsal", report)

    source = Source(
        component,
        model,
        window,
        precision,
        graph=lambda: timed(export),
        network=lambda: timed(lambda: exporter.plain_network(name, model, weights)),
        rehearsal=lambda: timed(rehearse),
    )
    started = time.monotonic()
    compiled = engine_backend.build(source, target, options, report)
    seconds = time.monotonic() - started
    shutil.rmtree(graphs)
    return _record(folder, component, compiled, export_seconds, seconds - export_seconds, report)


def _record(
    folder: Path,
    component: Component,
    compiled: Compiled,
    export_seconds: float,
    compile_seconds: float,
    report: PhaseProgress,
) -> ComponentRecord:
    """Describe what a backend made in ``folder/<name>`` and remove what it left there besides."""
    for path in (folder / component.name).rglob("*"):
        if path.is_file() and path not in compiled.files:
            path.unlink()
    report("hashing", 0.0)
    record = ComponentRecord(
        files=tuple(stored_file(file, folder) for file in compiled.files),
        inputs=component.inputs,
        outputs=component.outputs,
        error=compiled.error,
        export_seconds=round(export_seconds, 3),
        compile_seconds=round(compile_seconds, 3),
    )
    report("done", 1.0)
    return record


def _existing_set(path: Path, recipe: Recipe, *, in_store: bool) -> EngineSet | None:
    """An intact set made from ``recipe`` that runs here: at ``path``, or anywhere in the store.

    The store may hold one made with other versions that still fits, as its backend judges.
    """
    candidates: list[EngineSet] = []
    with suppress(EngineError):  # nothing there, or damaged: built anew
        candidates.append(EngineSet.open(path))
    if in_store:
        candidates += [stored for stored in list_sets(path.parent) if isinstance(stored, EngineSet)]
    for candidate in candidates:
        made_from = candidate.manifest.recipe
        if made_from.identity == recipe.identity:
            return candidate
        same = recipe.difference(made_from) is None
        if same and candidate.runs_on(recipe.options.device).fits:
            return candidate
    return None


def _check_output(path: Path, recipe: Recipe, force: bool) -> None:
    """Refuse to replace what is not an engine set, and another engine set without ``force``."""
    allowed = replaceable(path)
    if not allowed.fits:
        raise BuildError(allowed.reason)
    if force or not path.exists():
        return
    try:
        other = EngineSet.open(path).manifest.recipe
    except EngineError:
        return  # an empty folder, or a damaged set
    difference = recipe.difference(other) or "it does not run here"
    raise BuildError(
        f"{path} holds another engine set ({difference}); --force replaces it, -o names another folder"
    )


def _seconds(created: str) -> float:
    return datetime.fromisoformat(created).timestamp()
