"""What came of an examination, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.filesize import decimal

from v2v.core.console import seconds_text
from v2v.core.version import __version__
from v2v.doctor.checks import Outcome

Row = tuple[str, str, str, str]
"""Check, result, seconds, what there is to tell."""


def rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """A table of all outcomes."""
    return [
        (outcome.name, outcome.state, f"{outcome.seconds:.1f}" if outcome.seconds else "", told(outcome))
        for outcome in outcomes
    ]


def told(outcome: Outcome) -> str:
    """What there is to tell of one outcome, in a line."""
    if outcome.state == "failed":
        return f"{outcome.step}: {' '.join(outcome.reason.split())}"
    if outcome.state == "skipped":
        return " ".join(outcome.reason.split())
    return "; ".join(part for part in _parts(outcome.facts) if part)


def to_json(outcomes: Sequence[Outcome]) -> str:
    """Everything."""
    document: dict[str, Any] = {
        "v2v": __version__,
        "passed": not any(outcome.state == "failed" for outcome in outcomes),
        "checks": [asdict(outcome) for outcome in outcomes],
    }
    return json.dumps(document, indent=2) + "\n"


def to_markdown(outcomes: Sequence[Outcome]) -> str:
    """A table to paste into a report, and behind it what the processes wrote that ended badly."""
    lines = [f"## v2v-doctor, v2v {__version__}", "", "| check | result | s | |", "| --- | --- | --- | --- |"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows(outcomes)]
    for outcome in outcomes:
        if outcome.log:
            lines += ["", f"What *{outcome.name}* wrote last:", "", "```text", *outcome.log, "```"]
    return "\n".join(lines) + "\n"


def _parts(facts: Mapping[str, Any]) -> list[str]:
    """The facts of a check that passed which a person looks for."""
    tell: dict[str, Any] = {
        "system": str,
        "python": lambda value: f"Python {value}",
        "cores": lambda value: f"{value} cores",
        "memory_bytes": lambda value: f"{decimal(int(value))} of memory",
        "gpu": lambda value: str(value or ""),
        "compute_capability": lambda value: f"compute capability {value}",
        "cuda_of_driver": lambda value: f"driver for CUDA {value}",
        "no_gpu": str,
        "version": str,
        "devices": lambda value: f"runs on {', '.join(value)}" if value else "runs nowhere here",
        "compiles_only": lambda value: "compiles without a GPU" if value else "",
        "differences": lambda value: f"differences up to {max(value.values()):.0e}",
        "decibels": lambda value: f"{value} dB from the CPU's",
        "error": lambda value: f"error {value:.1e}",
        "compile_seconds": lambda value: f"compiled in {seconds_text(value)}",
        "scratch_bytes": lambda value: f"{decimal(value)} of scratch" if value else "",
        "gpu_bytes": lambda value: f"{decimal(value)} on the GPU",
        "build_seconds": lambda value: f"build {seconds_text(value)}",
        "evaluation_seconds": lambda value: f"UNet evaluation {seconds_text(value)}",
        "clip_seconds": lambda value: f"a clip of one window {seconds_text(value)}",
        "seconds": lambda value: f"run in {seconds_text(value)}",
    }
    size = facts.get("window")
    shown = [size if isinstance(size, str) else f"{size[2]}x{size[1]}x{size[0]}"] if size else []
    return shown + [words(facts[name]) for name, words in tell.items() if name in facts]
