"""``v2v-build-engines``: build, list and verify engine sets."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, NoReturn

import rich.box
import rich.console
import rich.table
import typer
from rich.filesize import decimal

from v2v.core.components import Precision, window_for
from v2v.core.configs import MODELS
from v2v.core.console import (
    BuildDisplay,
    messages,
    new_app,
    one_of,
    parse_size,
    run_app,
    seconds_text,
    warn,
)
from v2v.core.errors import EngineError, UsageError
from v2v.engine.backend import BACKENDS, BuildOptions
from v2v.engine.build import build_engine_set
from v2v.engine.choose import default_backend, default_device, default_precision, default_weights
from v2v.engine.store import EngineSet, engines_root, list_sets
from v2v.engine.verify import Verified, verify_engine_set

app = new_app()
results = rich.console.Console(highlight=False, soft_wrap=True)

_DEVICES = ("cpu", "cuda")
_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")


def main() -> NoReturn:
    """Entry point of ``v2v-build-engines``."""
    run_app(app)


@app.command()
def command(
    model: Annotated[str, typer.Argument(help=f"One of {', '.join(MODELS)}.")] = "small",
    weights: Annotated[
        str | None,
        typer.Option(help="Folder of the published files or of safetensors, hf:ORG/NAME or random:SEED."),
    ] = None,
    size: Annotated[str | None, typer.Option(help="Window's width x height, as 1280x720.")] = None,
    frames: Annotated[
        str | None, typer.Option(help="Window's frames, as 32; 8:32 makes a range (TensorRT).")
    ] = None,
    backend: Annotated[str | None, typer.Option(help=f"One of {', '.join(BACKENDS)}.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where it works.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32 or fp16; default: fp16 on cuda, fp32 on a cpu.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the engine set; default: the store.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build anew what is there already.")] = False,
    save_weights: Annotated[
        Path | None, typer.Option(help="Also write the weights into this folder, as safetensors.")
    ] = None,
    workspace: Annotated[
        float | None, typer.Option(min=0.0, help="Scratch limit while compiling, GiB (TensorRT).")
    ] = None,
    optimization_level: Annotated[
        int | None, typer.Option(min=0, max=5, help="Effort of the compiler (TensorRT).")
    ] = None,
    reuse: Annotated[
        bool,
        typer.Option("--reuse", help="A UNet that v2v-run --reuse and --fast run faster; needs PyTorch."),
    ] = False,
    option: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE for the backend; may be repeated.")
    ] = None,
    list_sets_: Annotated[bool, typer.Option("--list", help="List the engine sets in the store.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Verify the engine set in -o, or all in the store.")
    ] = False,
) -> None:
    """Export a model's networks, compile them and keep the engines for v2v-run.

    Engine sets are kept in $V2V_ENGINES, by default in the user's cache folder.
    """
    if list_sets_:
        return show_sets()
    if verify:
        return verify_sets(output, device and one_of("--device", device, _DEVICES))
    config = MODELS[one_of("model", model, tuple(MODELS))]
    fewest, most = parse_frames(frames) if frames else (None, None)
    on = one_of("--device", device, _DEVICES) if device else default_device()
    extra = dict(parse_option(text) for text in option or [])
    if fewest != most:
        extra["frames"] = f"{fewest}:{most}"
    if workspace is not None:
        extra["workspace"] = f"{workspace:g}"
    if optimization_level is not None:
        extra["optimization_level"] = str(optimization_level)
    options = BuildOptions(
        precision=one_of("--precision", precision or default_precision(on), _PRECISIONS),
        device=on,
        reuse=reuse,
        extra=extra,
    )
    source = weights or default_weights(config)
    window = window_for(config, parse_size(size) if size else None, most)
    by = one_of("--backend", backend, tuple(BACKENDS)) if backend else default_backend(on)
    with BuildDisplay() as display:
        built = build_engine_set(
            config,
            weights=source,
            window=window,
            backend_name=by,
            options=options,
            output=output,
            force=force,
            save_weights=save_weights,
            progress=display,
        )
    if not built.fresh:
        messages.print("already built (--force builds it anew)")
    show_built(built.engine_set)


def parse_frames(text: str) -> tuple[int, int]:
    """Read "32" -> (32, 32); "8:32" -> (8, 32).

    Raises:
        UsageError: anything else.
    """
    low, colon, high = text.partition(":")
    high = high if colon else low
    if not (low.isdecimal() and high.isdecimal() and 1 <= int(low) <= int(high)):
        raise UsageError(f"--frames must be a number, as 32, or a range, as 8:32, not '{text}'")
    return int(low), int(high)


def parse_option(text: str) -> tuple[str, str]:
    """Read "KEY=VALUE" -> (KEY, VALUE).

    Raises:
        UsageError: anything else.
    """
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UsageError(f"--option must be KEY=VALUE, not '{text}'")
    return key, value


def show_built(built: EngineSet) -> None:
    """The table at the end of a build."""
    manifest = built.manifest
    table = _table("component", "size", "export", "compile", "error against PyTorch")
    for name, record in manifest.components.items():
        table.add_row(
            name,
            decimal(sum(file.bytes for file in record.files)),
            seconds_text(record.export_seconds),
            seconds_text(record.compile_seconds),
            f"{record.error:.1e}",
        )
    table.add_section()
    table.add_row("all", decimal(built.bytes), seconds_text(manifest.seconds), "", "")
    results.print(table)
    results.print(f"engine set: {built.path}", markup=False)
    _say_if_random(built)


def show_sets() -> None:
    """What ``--list`` prints: the sets in the store, whose names say what they are, and which of them run here."""
    count = 0
    for found in list_sets():
        if isinstance(found, EngineError):
            warn(str(found))
            continue
        count += 1
        built = datetime.fromisoformat(found.manifest.created).astimezone().strftime("%Y-%m-%d %H:%M")
        fits = found.runs_on(None)
        runs = "runs here" if fits.fits else f"does not run here: {fits.reason}"
        results.print(found.name, style="bold", markup=False)
        results.print(f"    {decimal(found.bytes)}, built {built}, {runs}", markup=False)
    results.print(f"{count} engine sets in {engines_root()}", markup=False)


def verify_sets(folder: Path | None, device: str | None) -> None:
    """Verify the set in ``folder``, or every set in the store.

    Raises:
        EngineError: one of them is damaged or computes something else; the others are verified first.
    """
    sets = [EngineSet.open(folder)] if folder else list(list_sets())
    failures: list[EngineError] = []
    for found in sets:
        try:
            if isinstance(found, EngineError):
                raise found
            on = device or _runnable_on(found)
            with BuildDisplay() as display:
                verified = verify_engine_set(found, on, display)
            show_verified(found, on, verified)
        except EngineError as error:
            failures.append(error)
    if not sets:
        raise EngineError(f"there is no engine set in {engines_root()} to verify")
    for failure in failures[:-1]:
        messages.print(f"error: {failure}", style="red", markup=False)
    if failures:
        raise failures[-1]


def show_verified(found: EngineSet, device: str, verified: Sequence[Verified]) -> None:
    """The table of ``--verify`` for one set."""
    table = _table("component", "load", "run", "error against ONNX Runtime", "against PyTorch, as built")
    for one in verified:
        table.add_row(
            one.component,
            seconds_text(one.load_seconds),
            seconds_text(one.run_seconds),
            "is the reference" if one.error is None else f"{one.error:.1e}",
            f"{found.manifest.components[one.component].error:.1e}",
        )
    results.print(table)
    results.print(f"verified on {device}: {found.path}", markup=False)
    _say_if_random(found)


def _runnable_on(found: EngineSet) -> str:
    """The device that the set was built for, or the CPU if it runs there and not on the former."""
    own = found.manifest.recipe.options.device
    return "cpu" if not found.runs_on(own).fits and found.runs_on("cpu").fits else own


def _say_if_random(engine_set: EngineSet) -> None:
    if engine_set.manifest.recipe.weights.kind == "random":
        warn("its weights are random numbers: it runs like the real model, but its pictures mean nothing")


def _table(*columns: str) -> rich.table.Table:
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    return table
