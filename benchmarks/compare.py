"""Compare two sessions: which figures changed by more than their spread."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from v2v.benchmarks.results import Figure, Measured, Results, ResultsError

Verdict = Literal["slower", "faster", "larger", "smaller", "same"]
Unit = Literal["s", "B"]

# However close together a few samples lie, a machine is not steadier than this.
_LEAST_SPREAD = 0.02
# What was measured once shows no spread of its own.
_SPREAD_OF_ONE = 0.10
# Below this a stage's time is mostly that of taking it.
_LEAST_SECONDS = 1e-4


@dataclass(frozen=True)
class Change:
    """One quantity in both sessions."""

    subject: str
    quantity: str
    unit: Unit
    old: Figure
    new: Figure

    @property
    def ratio(self) -> float:
        """New over old, medians."""
        return self.new.median / self.old.median if self.old.median else float("inf")

    @property
    def verdict(self) -> Verdict:
        """A change is one only where the two spreads do not touch."""
        if self.unit == "s" and max(self.old.median, self.new.median) < _LEAST_SECONDS:
            return "same"
        old, new = spread(self.old), spread(self.new)
        if new[0] > old[1]:
            return "slower" if self.unit == "s" else "larger"
        if new[1] < old[0]:
            return "faster" if self.unit == "s" else "smaller"
        return "same"

    @property
    def worse(self) -> bool:
        """Whether it takes more time or more memory than before."""
        return self.verdict in ("slower", "larger")


@dataclass(frozen=True)
class Comparison:
    """All changes, and the other differences between the sessions that may explain them."""

    changes: tuple[Change, ...]
    differences: tuple[str, ...]  # between the machines, versions and settings
    only_old: tuple[str, ...]  # subjects
    only_new: tuple[str, ...]

    @property
    def worse(self) -> tuple[Change, ...]:
        """What got slower or larger, worst first."""
        return tuple(sorted((c for c in self.changes if c.worse), key=lambda c: -c.ratio))


def spread(figure: Figure) -> tuple[float, float]:
    """The range in which a figure may lie: its spread, and no less than a machine's own unsteadiness."""
    least = _SPREAD_OF_ONE if len(figure.samples) == 1 else _LEAST_SPREAD
    middle = figure.median
    return min(figure.low, middle * (1 - least)), max(figure.high, middle * (1 + least))


def compare(old: Results, new: Results) -> Comparison:
    """Compare subjects that are in both sessions.

    Raises:
        ResultsError: they have none in common.
    """
    before, after = (_by_key(results) for results in (old, new))
    common = [key for key in before if key in after]
    if not common:
        raise ResultsError(
            "the two files have no measurement in common: nothing with the same backend, device, model, window, "
            "precision and steps is in both"
        )
    changes = [change for key in common for change in _changes(before[key], after[key])]
    return Comparison(
        tuple(changes),
        tuple(_differences(old, new, [(before[key], after[key]) for key in common])),
        tuple(before[key].subject.name for key in before if key not in after),
        tuple(after[key].subject.name for key in after if key not in before),
    )


def _by_key(results: Results) -> Mapping[tuple[object, ...], Measured]:
    return {(*m.subject.key, m.clip): m for m in results.measured}


def _changes(old: Measured, new: Measured) -> Iterator[Change]:
    name = new.subject.name
    yield Change(name, "whole run", "s", old.run, new.run)
    stages = {stage.name: stage for stage in old.stages}
    for stage in new.stages:
        if stage.name in stages and stage.calls > 1:
            yield Change(name, stage.name, "s", stages[stage.name].seconds, stage.seconds)
    yield Change(name, "load", "s", old.load, new.load)
    yield Change(name, "load to first step", "s", old.first_step, new.first_step)
    if old.build and new.build:
        yield Change(name, "build", "s", Figure((old.build.seconds,)), Figure((new.build.seconds,)))
    yield Change(name, "host memory", "B", old.host_bytes, new.host_bytes)
    if old.gpu_bytes and new.gpu_bytes:
        yield Change(name, "GPU memory", "B", old.gpu_bytes, new.gpu_bytes)
    sweeps = {sweep.over: sweep for sweep in old.sweeps}
    for sweep in new.sweeps:
        if sweep.over not in sweeps or sweeps[sweep.over].clip != sweep.clip:
            continue
        points = {point.value: point.seconds for point in sweeps[sweep.over].points}
        for point in sweep.points:
            if point.value in points:
                yield Change(name, f"{point.value} {sweep.over}", "s", points[point.value], point.seconds)


def _differences(old: Results, new: Results, pairs: list[tuple[Measured, Measured]]) -> Iterator[str]:
    """What else changed between the sessions; a figure may have changed for that reason."""
    facts = [
        ("GPU", old.machine.gpu, new.machine.gpu),
        ("driver", old.machine.driver, new.machine.driver),
        ("CPU", old.machine.cpu, new.machine.cpu),
        ("cores", old.machine.cores, new.machine.cores),
        ("v2v", old.v2v, new.v2v),
    ]
    for library in sorted({*old.machine.versions, *new.machine.versions}):
        facts.append((library, old.machine.versions.get(library), new.machine.versions.get(library)))
    for before, after in pairs:
        was, now = before.subject, after.subject
        facts.append((f"weights of {now.name}", was.weights_identity[:12], now.weights_identity[:12]))
    for fact, was_value, is_value in facts:
        if was_value != is_value:
            yield f"{fact}: {was_value or 'none'} -> {is_value or 'none'}"
