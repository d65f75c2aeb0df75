"""Which layer of an engine goes wrong: tensors inside, compared with ONNX Runtime's, closer and closer to the first.

A compiler joins layers, so what is inside an engine cannot be read. A few tensors are made outputs of the component's
graph, which is cut behind them, compiled as the engine was and run. Where one is off, the next round looks between it
and the last one that was not.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from v2v.core.components import Component, ComponentName, Tensor
from v2v.core.errors import EngineError
from v2v.core.progress import BuildProgress, PhaseProgress
from v2v.core.samples import Arrays, Occurring, relative_error
from v2v.device import open_device
from v2v.engine.backend import Backend, BuildOptions, CheckedGraph, Engine, Graph, Source, backend
from v2v.engine.build import Exporter
from v2v.engine.cutting import save_part
from v2v.engine.store import EngineSet
from v2v.engine.verify import exported, run_once

_AT_ONCE = 8
"""Tensors that are looked at in a round: of a full-size UNet a map has up to 0.3 GB."""


@dataclass(frozen=True)
class Layer:
    """A tensor inside a component, and how far an engine's is from ONNX Runtime's."""

    name: str
    operator: str
    place: str  # the module whose weights were used last before it
    error: float  # relative L2 difference


@dataclass(frozen=True)
class Subject:
    """A component's graph, and how an engine is made of it."""

    source: Source  # its graph is there
    backend: Backend
    options: BuildOptions  # of this component
    device: str


def first_wrong_layer(
    subject: Subject, inputs: Arrays, folder: Path, progress: PhaseProgress = lambda phase, share: None
) -> tuple[list[Layer], Layer | None]:
    """Look for the first layer whose numbers are further from ONNX Runtime's than the backend tolerates.

    Returns:
        All layers that were looked at, in the graph's order, and the first wrong one, or None.

    Raises:
        EngineError: the backend compiles no graphs.
        BuildError: a part of the graph does not compile.
    """
    if subject.backend.name == "inductor":
        raise EngineError(
            "backend inductor compiles networks, not graphs, so its layers cannot be compared; --option fused=no "
            "leaves out the fused kernels"
        )
    path = subject.source.graph().path
    tensors = _tensors(path)
    tolerance = subject.backend.tolerance(subject.source.component.name, subject.options)
    seen: dict[int, Layer] = {}
    good, wrong, found = -1, len(tensors), None
    while wrong - good > 1:
        chosen = _spread(good, wrong)
        progress(f"comparing {len(chosen)} of {wrong - good - 1} layers", 1 - (wrong - good) / len(tensors))
        errors = _errors(subject, [tensors[index][0].name for index in chosen], inputs, path, folder)
        for index, error in zip(chosen, errors, strict=True):
            _, operator, place = tensors[index]
            seen[index] = Layer(tensors[index][0].name, operator, place, error)
        off = next((index for index in chosen if seen[index].error > tolerance), None)
        if off is None:
            if found is None:
                break
            good = chosen[-1]  # the rest lies between it and what was found
            continue
        before = [index for index in chosen if index < off]
        good, wrong, found = (before[-1] if before else good), off, seen[off]
    return [seen[index] for index in sorted(seen)], found


def wrong_layers(
    engine_set: EngineSet,
    device: str,
    progress: BuildProgress = lambda component, phase, share: None,
    exporter: Exporter | None = None,
) -> Iterator[tuple[ComponentName, list[Layer], Layer | None]]:
    """:func:`first_wrong_layer` of every component of a set, on what it is given in a run.

    Raises:
        EngineError: the set is ONNX Runtime's on a CPU, or of a backend that compiles no graphs.
        BuildError: a graph cannot be exported, or compiled in part.
    """
    recipe = engine_set.manifest.recipe
    if (recipe.backend.name, device) == ("onnxruntime", "cpu"):
        raise EngineError("--layers compares with ONNX Runtime on the CPU, and this set is that itself")
    if recipe.fp8 or recipe.bf16:
        option = "fp8=yes" if recipe.fp8 else "bf16=yes"
        raise EngineError(
            f"--layers compares graphs as they are exported, and {engine_set.path} was built with --option {option}: "
            "build a set without it to look for a wrong layer"
        )
    occurring, engine_backend = Occurring(engine_set.model), backend(recipe.backend.name)
    for name in engine_set.names:
        component = engine_set.component(name)
        inputs = occurring.inputs(component)
        options = recipe.options.of(name)
        with exported(engine_set, name, progress, exporter) as graph:
            source = Source(
                component,
                recipe.model,
                recipe.window,
                options.precision,
                partial(_same, graph),
                lambda: None,
            )
            subject = Subject(source, engine_backend, options, device)
            layers, wrong = first_wrong_layer(subject, inputs, graph.path.parent, partial(progress, name))
            occurring.keep(
                _run(partial(backend("onnxruntime").load, component, [graph.path], "cpu"), inputs, "cpu")
            )
        yield name, layers, wrong


def _same(graph: Graph) -> Graph:
    return graph


def _spread(after: int, before: int) -> list[int]:
    """Some of the numbers between two, the last of them included, evenly spread."""
    return sorted(
        {int(n) for n in np.linspace(after + 1, before - 1, min(_AT_ONCE, before - after - 1)).round()}
    )


def _tensors(path: Path) -> list[tuple[Tensor, str, str]]:
    """Every floating-point tensor that a node of the graph makes: with the operator and the last weight's module."""
    import onnx_ir as ir

    graph = ir.load(path).graph
    names = {ir.DataType.FLOAT16: "float16", ir.DataType.FLOAT: "float32"}
    place, found = "", []
    for node in graph:
        for value in node.inputs:
            if value is not None and value.is_initializer() and "." in (value.name or ""):
                place = str(value.name).rpartition(".")[0]
        for output in node.outputs:
            if output.dtype in names and output.shape is not None and node.op_type != "Constant":
                shape = tuple(output.shape.numpy())
                found.append((Tensor(str(output.name), names[output.dtype], shape), node.op_type, place))
    return found


def _errors(subject: Subject, names: Sequence[str], inputs: Arrays, path: Path, folder: Path) -> list[float]:
    """Compile the graph with the tensors ``names`` for outputs, and compare them."""
    part = path.with_name("cut.onnx")
    component = cut(subject.source.component, path, names, part)
    given = {tensor.name: inputs[tensor.name] for tensor in component.inputs}
    target = folder / "cut"
    target.mkdir()
    try:
        source = replace(subject.source, component=component, graph=lambda: CheckedGraph(part))
        made = subject.backend.build(source, target, subject.options, lambda phase, share: None)
        outputs = _run(
            lambda: subject.backend.load(component, made.files, subject.device), given, subject.device
        )
        expected = _run(lambda: backend("onnxruntime").load(component, [part], "cpu"), given, "cpu")
    finally:
        shutil.rmtree(target)
        part.unlink()
    return [relative_error(outputs[name], expected[name]) for name in names]


def cut(component: Component, path: Path, outputs: Sequence[str], target: Path) -> Component:
    """Write the graph at ``path`` with other outputs, without what they do not need; weights stay in their file.

    Returns:
        ``component`` with the inputs that are left and those outputs.
    """
    import onnx_ir as ir

    left = save_part(ir.load(path), outputs, target)
    described = {tensor.name: tensor for tensor, _, _ in _tensors(path)}
    return Component(
        component.name,
        tuple(tensor for tensor in component.inputs if tensor.name in left),
        tuple(described[name] for name in outputs),
    )


def _run(load: Callable[[], Engine], inputs: Arrays, device: str) -> dict[str, Any]:
    engine = load()
    try:
        return run_once(engine, inputs, open_device(device))
    finally:
        engine.close()
