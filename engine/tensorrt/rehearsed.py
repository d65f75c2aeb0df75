"""Graphs in other numbers than they were exported in: held against the network in the runs of a rehearsal."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from v2v.core.errors import BuildError
from v2v.core.progress import PhaseProgress
from v2v.core.samples import relative_error
from v2v.device import open_device
from v2v.engine.backend import Rehearsal, Source, backend
from v2v.engine.verify import run_once


def rehearsed(
    source: Source,
    kind: str,
    tolerance: float,
    rewrite: Callable[[Rehearsal, Path], Any],
    progress: PhaseProgress,
) -> tuple[Rehearsal, float]:
    """Rehearse a component, and compute the error of its graph in numbers of another ``kind``.

    ``rewrite`` writes that graph for the rehearsal's small window, in a form that ONNX Runtime computes on the CPU. All
    files of the rehearsal are gone afterwards.

    Returns:
        The rehearsal, and the relative L2 error over all its runs.

    Raises:
        BuildError: the error is larger than ``tolerance``.
    """
    rehearsal = source.rehearsal()
    progress("checking", 0.0)
    graph = rehearsal.graph.with_name("rewritten.onnx")
    rewrite(rehearsal, graph)
    error = error_of(rehearsal, graph)
    shutil.rmtree(graph.parent)
    if not error <= tolerance:
        raise BuildError(
            f"{source.component.name}: in {kind} it differs from PyTorch by {error:.1e} (relative), more than the "
            f"{tolerance:.0e} allowed: leave out --option {kind.lower()}=yes"
        )
    progress("checking", 1.0)
    return rehearsal, error


def error_of(rehearsal: Rehearsal, graph: Path) -> float:
    """Relative L2 error of ``graph`` in all runs of a rehearsal, by ONNX Runtime on the CPU."""
    engine = backend("onnxruntime").load(rehearsal.component, [graph], "cpu")
    actual, expected = [], []
    for inputs, outputs in rehearsal.runs:
        found = run_once(engine, inputs, open_device("cpu"))
        actual += [found[name].ravel() for name in outputs]
        expected += [values.ravel() for values in outputs.values()]
    engine.close()
    return relative_error(np.concatenate(actual), np.concatenate(expected))
