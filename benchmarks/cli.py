"""``v2v-bench``: measure engine sets against their baselines, report, compare two reports."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import NoReturn

import typer

from v2v.benchmarks.compare import Change, Comparison, compare
from v2v.benchmarks.layers import layer_times
from v2v.benchmarks.options import BenchOptions
from v2v.benchmarks.report import PAGE, check_output, size_text, spread_text, time_text, write
from v2v.benchmarks.results import EVALUATE, Results
from v2v.benchmarks.session import run_session
from v2v.core import console
from v2v.core.console import BuildDisplay, Table, messages, new_app, print_result, run_app, takes, warn
from v2v.engine.store import EngineSet

app = new_app()


def main() -> NoReturn:
    """Run ``v2v-bench``; :mod:`v2v.benchmarks.start` calls it."""
    run_app(app)


@app.command()
@takes(BenchOptions)
def command(options: BenchOptions) -> None:
    """Measure stages, whole runs, memory and load times; write a page, a summary and JSON.

    Without engine sets the best one in the store is measured, or one is built. PyTorch, eager and compiled, runs
    in the same pipeline for comparison.
    """
    if options.compare is not None:
        old, new = map(Results.read, options.compare)
        return show_comparison(compare(old, new), options.as_json)
    if options.layers:
        return show_layers(options.sets_for_layers(), options.as_json)
    folder = options.folder()
    if folder is not None:
        check_output(folder, overwrite=options.overwrite)
    plan = options.plan()
    written = False

    def keep(results: Results) -> None:
        nonlocal written
        if folder is not None:
            write(results, folder, overwrite=options.overwrite or written)
            written = True

    with BuildDisplay() as display:
        results = run_session(plan, _command_line(), lambda name: partial(display, name), keep)
    keep(results)
    if options.as_json:
        print_result(json.loads(results.to_json()))
    else:
        show(results)
    if folder is not None:
        (messages if options.as_json else console.results).print(f"report: {folder / PAGE}", markup=False)


def _command_line() -> str:
    """What was typed, for the report."""
    return shlex.join(["v2v-bench", *sys.argv[1:]])


def show(results: Results) -> None:
    """The table at the end of a session."""
    table = Table("", "whole run", EVALUATE, "first step", "memory")
    for measured in results.measured:
        unet = measured.stage(EVALUATE)
        table.add_row(
            measured.subject.name,
            spread_text(measured.run, time_text),
            spread_text(unet.seconds, time_text),
            time_text(measured.first_step.median),
            size_text((measured.gpu_bytes or measured.host_bytes).median),
        )
    console.results.print(table)
    if any(measured.subject.weights == "random" for measured in results.measured):
        warn("the weights are random numbers: times and memory are the real networks', pictures mean nothing")
    for failed in results.failed:
        warn(f"{failed.name} was not measured: {failed.reason}")


_LAYERS = 15  # of a component that a table shows


def show_layers(sets: Sequence[tuple[EngineSet, str]], as_json: bool) -> None:
    """Print the slowest layers of every component of the sets; as JSON all of them."""
    document: dict[str, dict[str, dict[str, float]]] = {}
    for engine_set, device in sets:
        for times in layer_times(engine_set, device):
            document.setdefault(engine_set.name, {})[times.component] = times.seconds
            if as_json:
                continue
            table = Table(times.component, "time", "share")
            for layer, seconds in [*times.seconds.items()][:_LAYERS]:
                table.add_row(layer, time_text(seconds), f"{100 * seconds / max(times.total, 1e-12):.1f} %")
            table.add_section()
            table.add_row(f"all {len(times.seconds)}", time_text(times.total), "")
            console.results.print(table)
    if as_json:
        print_result(document)


def show_comparison(comparison: Comparison, as_json: bool) -> None:
    """Print what changed; leave with exit code 1 if something got slower or larger."""
    if as_json:
        changes = [
            {**asdict(change), "ratio": change.ratio, "verdict": change.verdict}
            for change in comparison.changes
        ]
        print_result({**asdict(comparison), "changes": changes})
    else:
        _print_comparison(comparison)
    if comparison.worse:
        raise typer.Exit(1)


def _print_comparison(comparison: Comparison) -> None:
    by_subject: dict[str, list[Change]] = {}
    for change in sorted(comparison.changes, key=lambda c: -c.ratio if c.worse else 0):
        by_subject.setdefault(change.subject, []).append(change)
    for subject, changes in by_subject.items():
        table = Table(subject, "old", "new", "change", "")
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
        console.results.print(table)
    for difference in comparison.differences:
        console.results.print(f"differs: {difference}", markup=False)
    for when, names in (("old", comparison.only_old), ("new", comparison.only_new)):
        for name in names:
            console.results.print(f"only in the {when} file: {name}", markup=False)
    worse = len(comparison.worse)
    console.results.print(
        f"{worse} of {len(comparison.changes)} figures got worse" if worse else "nothing got worse"
    )
