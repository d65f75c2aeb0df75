"""Results for people: one self-contained page, a short summary in Markdown, and the folder that holds both."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from v2v.benchmarks.results import DECODE, ENCODE, EVALUATE, Figure, Measured, Results, ResultsError
from v2v.core.abort import removed_on_abort
from v2v.core.files import umask

PAGE, SUMMARY, DATA = "report.html", "summary.md", "results.json"
_FILES = {PAGE, SUMMARY, DATA}
_SOURCES = Path(__file__).parent / "page"


def page(results: Results) -> str:
    """The report as one HTML file that loads nothing else: open it in a browser, print it, send it."""
    html, style, script = (
        (_SOURCES / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")
    )
    # Inside a script element only "<" can end the data early, and JSON may write it otherwise.
    data = results.to_json().replace("<", "\\u003c")
    for placeholder, content in (("/*STYLE*/", style), ("/*SCRIPT*/", script), ("/*RESULTS*/", data)):
        before, after = html.split(placeholder, 1)
        html = before + content + after
    return html


def summary(results: Results) -> str:
    """The main figures in Markdown."""
    machine = results.machine
    device = machine.gpu or machine.cpu
    location = f"{device}, driver {machine.driver}" if machine.gpu else f"{device}, {machine.cores} cores"
    weights = " and ".join(sorted({m.subject.weights for m in results.measured}))
    lines = [
        "# v2v benchmark",
        "",
        f"{location}; {weights} weights; v2v {results.v2v}; {results.created}; `{results.command}`",
        "",
        _table(
            ["", "window", "steps", "whole run", "UNet evaluation", "VAE, a frame", "first step", "memory"],
            [_row(measured) for measured in results.measured],
        ),
        "",
        f"Whole runs: {results.repeats}; medians, in brackets where the middle 80 % lie. A whole run is decoded, "
        "enhanced and encoded with the engines loaded; memory is the GPU's, on a CPU the host's. UNet evaluations "
        "that share work count as equally long.",
    ]
    for sweep_of in results.measured:
        for sweep in sweep_of.sweeps:
            points = ", ".join(f"{p.value}: {time_text(p.seconds.median)}" for p in sweep.points)
            lines += ["", f"{sweep_of.subject.name}, whole run against {sweep.over}: {points}"]
    for ceilings in results.ceilings:
        product = ceilings.product_flops_per_second
        reached = f", {ceilings.precision} matrix product {_rate(product.median)}FLOP/s" if product else ""
        copied = _rate(ceilings.copy_bytes_per_second.median)
        lines += ["", f"Ceilings measured on the {ceilings.device}: copy {copied}B/s{reached}"]
    for failed in results.failed:
        lines += ["", f"Not measured: {failed.name}: {failed.reason}"]
    if machine.versions:
        lines += ["", "With " + ", ".join(f"{name} {version}" for name, version in machine.versions.items())]
    return "\n".join(lines) + "\n"


def _row(measured: Measured) -> list[str]:
    memory = measured.gpu_bytes or measured.host_bytes
    return [
        measured.subject.name,
        measured.subject.window,
        str(measured.clip.steps),
        spread_text(measured.run, time_text),
        spread_text(measured.stage(EVALUATE).seconds, time_text),
        time_text(measured.stage(ENCODE).seconds.median + measured.stage(DECODE).seconds.median),
        time_text(measured.first_step.median),
        size_text(memory.median),
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def spread_text(figure: Figure, text: Callable[[float], str]) -> str:
    """Median and, of several samples, the spread."""
    if len(figure.samples) == 1:
        return text(figure.median)
    return f"{text(figure.median)} ({text(figure.low)} to {text(figure.high)})"


def time_text(seconds: float) -> str:
    """Seconds for people, as in "85 µs", "12.3 ms", "1.11 s", "12 min 05 s"."""
    if seconds >= 600:
        return f"{int(seconds) // 60} min {int(seconds) % 60:02} s"
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= factor * 0.9995:
            return f"{_digits(seconds / factor)} {unit}"
    return f"{_digits(seconds / 1e-6)} µs"


def size_text(count: float) -> str:
    """Bytes for people, as in "11.8 GiB"."""
    for factor, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= factor:
            return f"{_digits(count / factor)} {unit}"
    return f"{count:.0f} B"


def _rate(value: float) -> str:
    for factor, unit in ((1e12, "T"), (1e9, "G")):
        if value >= factor:
            return f"{_digits(value / factor)} {unit}"
    return f"{_digits(value / 1e6)} M"


def _digits(value: float) -> str:
    """Three significant digits, written out."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Find out before the work whether the report may be written to ``folder``.

    Raises:
        ResultsError: its parent is missing or cannot be written, it holds something else, or it holds a report and
            ``overwrite`` is false.
    """
    parent = folder.absolute().parent
    if not parent.is_dir():
        raise ResultsError(f"cannot write {folder}: there is no folder {parent}; create it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ResultsError(f"cannot write {folder}: {parent} is not writable; choose another place with -o")
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir() or folder.is_symlink():
        raise ResultsError(f"{folder} exists and is not a folder; choose another with -o")
    foreign = sorted({path.name for path in folder.iterdir()} - _FILES)
    if foreign:
        raise ResultsError(
            f"{folder} also holds what is no part of a report ({foreign[0]}); choose another folder with -o"
        )
    if not overwrite and any(folder.iterdir()):
        raise ResultsError(
            f"{folder} already holds a report; choose another folder with -o, or replace it with --overwrite"
        )


def write(results: Results, folder: Path, *, overwrite: bool) -> None:
    """Write page, summary and data into ``folder``, which appears whole or not at all.

    Raises:
        ResultsError: as :func:`check_output`.
    """
    check_output(folder, overwrite=overwrite)
    folder = folder.absolute()
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    old = building.with_name(building.name + ".old")
    with removed_on_abort(building):
        try:
            building.chmod(0o777 & ~umask())
            (building / PAGE).write_text(page(results), encoding="utf-8")
            (building / SUMMARY).write_text(summary(results), encoding="utf-8")
            (building / DATA).write_text(results.to_json(), encoding="utf-8")
            if folder.exists():
                folder.rename(old)
            building.rename(folder)
        finally:
            if old.exists() and not folder.exists():
                old.rename(folder)
            shutil.rmtree(building, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
