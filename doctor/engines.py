"""A pattern through a backend: built as an engine is built, run, compared, captured and replayed, loaded again."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from v2v.benchmarks.machine import GpuMemory
from v2v.core.components import Component, Precision, Window, component
from v2v.core.errors import EngineError
from v2v.core.samples import Arrays, sample_inputs
from v2v.device import Device, open_device
from v2v.doctor.checks import Facts, Step
from v2v.doctor.patterns import Pattern, scaled, weights_of
from v2v.engine.backend import Backend, BuildOptions, CheckedGraph, Engine, Source, backend
from v2v.engine.build import Exporter
from v2v.engine.verify import Binding, check_replay, run_once, worst_error

REPLAYS = 100
"""Of two captured bindings, each of which must give the bytes that were computed outside."""

_TIMED = 5  # runs whose median is taken


@dataclass(frozen=True)
class Scale:
    """How large a pattern may be here."""

    work: float  # floating-point operations that ONNX Runtime may take on the CPU
    elements: float  # of the largest map: frames x height x width x channels


def described(pattern: Pattern, precision: Precision) -> Component:
    """Inputs and outputs of the pattern's component."""
    return component(pattern.component, pattern.model, pattern.window, precision)


def export(pattern: Pattern, precision: Precision, scale: Scale | None, folder: Path, step: Step) -> Facts:
    """Export a pattern's graph into ``folder``, and let ONNX Runtime on the CPU compute what must come out.

    With a ``scale`` the window is made as small as that asks; without one it stays, and nothing is computed.

    Returns:
        The window, the work and the weights of it.
    """
    from v2v.export.graphs import data_file, work, write_graph

    step("choosing a size")
    window = pattern.window
    if scale is not None:
        window = _within(pattern, scale)
    chosen = replace(pattern, window=window)
    step("exporting")
    weights = weights_of(chosen)
    started = time.monotonic()
    graph = write_graph(chosen.component, chosen.model, weights, window, precision, folder)
    facts: dict[str, Any] = {
        "window": [window.frames, window.height, window.width],
        "work": work(chosen.component, chosen.model, window),
        "weight_bytes": data_file(graph).stat().st_size,
        "export_seconds": round(time.monotonic() - started, 2),
    }
    if scale is None:
        return facts
    step("running in ONNX Runtime on the CPU")
    described_ = described(chosen, precision)
    inputs = sample_inputs(described_, chosen.model.vocabulary)
    engine = backend("onnxruntime").load(described_, [graph], "cpu")
    binding = Binding(engine, inputs, open_device("cpu"))
    started = time.monotonic()
    binding.run()
    facts["cpu_seconds"] = round(time.monotonic() - started, 3)
    outputs = binding.result()
    engine.close()
    if not all(np.isfinite(array).all() for array in outputs.values()):
        raise EngineError("ONNX Runtime gives NaN or Inf")
    np.savez(folder / "inputs.npz", **inputs)  # type: ignore[arg-type]
    np.savez(folder / "outputs.npz", **outputs)  # type: ignore[arg-type]
    return facts


def _within(pattern: Pattern, scale: Scale) -> Window:
    """The largest of the pattern's windows within ``scale``, or the smallest that there is."""
    from v2v.export.graphs import work

    window = pattern.window
    for window in scaled(pattern):
        elements = window.frames * window.latent_height * window.latent_width * pattern.model.unet.width
        if pattern.component != "unet":
            elements = window.height * window.width * pattern.model.autoencoder.width
        if elements <= scale.elements and work(pattern.component, pattern.model, window) <= scale.work:
            break
    return window


def examine(
    name: str,
    device: str | None,
    pattern: Pattern,
    precision: Precision,
    graphs: Path,
    folder: Path,
    step: Step,
) -> Facts:
    """Compile a pattern with backend ``name`` and put the engine on ``device`` to the proof (None: compile alone).

    ``graphs`` is where :func:`export` left the graph and what must come out.

    Raises:
        V2VError: what fails.
    """
    engine_backend, asked = backend(name), described(pattern, precision)
    options = BuildOptions(precision=precision, device=device or "cuda")
    target = folder / "engine"
    target.mkdir(parents=True)
    exporter = Exporter.default()
    step("compiling")
    started = time.monotonic()
    source = Source(
        asked,
        pattern.model,
        pattern.window,
        precision,
        graph=lambda: CheckedGraph(graphs / f"{pattern.component}.onnx"),
        network=lambda: exporter.plain_network(pattern.component, pattern.model, weights_of(pattern)),
    )
    compiled = engine_backend.build(source, target, options, lambda phase, share: None)
    facts: dict[str, Any] = {"compile_seconds": round(time.monotonic() - started, 2)}
    facts |= _recorded(compiled.files)
    if device is not None:
        proof = Proof(
            engine_backend, asked, compiled.files, open_device(device), _stored(graphs / "inputs.npz")
        )
        facts |= proof.run(
            _stored(graphs / "outputs.npz"), engine_backend.tolerance(asked.name, options), step
        )
    shutil.rmtree(folder)
    return facts


class Proof:
    """An engine's files, and everything that they must do on a device."""

    def __init__(
        self, engine_backend: Backend, asked: Component, files: list[Path], device: Device, inputs: Arrays
    ) -> None:
        self._backend, self._component, self._files = engine_backend, asked, files
        self._device, self._inputs = device, inputs

    def run(self, expected: Arrays, tolerance: float, step: Step) -> Facts:
        """Load, run, compare with ``expected``, replay, time, load again.

        Raises:
            EngineError: another result, or other bytes the second time.
        """
        step("loading")
        facts: dict[str, Any] = {}
        with GpuMemory() as memory:
            engine = self._load()
            try:
                step("running")
                started = time.monotonic()
                first = run_once(engine, self._inputs, self._device)
                facts["seconds"] = time.monotonic() - started
                step("comparing with ONNX Runtime on the CPU")
                facts["error"] = worst_error(first, expected)
                if facts["error"] > tolerance:
                    raise EngineError(
                        f"the result differs from ONNX Runtime's by {facts['error']:.1e}, allowed is {tolerance:.0e}"
                    )
                step("replaying two captured bindings")
                check_replay(engine, self._inputs, self._device, 1 if self._device.synchronous else REPLAYS)
                refused = getattr(self._device, "capture_refused", None)
                if refused is not None:
                    raise EngineError(f"it cannot be captured in a CUDA graph: {refused}")
                if not self._device.synchronous:
                    step("timing")
                    facts["seconds"] = self._seconds(engine)
            finally:
                engine.close()
        if memory.peak is not None and not self._device.synchronous:
            facts["gpu_bytes"] = memory.peak
        step("loading again")
        engine = self._load()
        try:
            again = run_once(engine, self._inputs, self._device)
        finally:
            engine.close()
        for name, values in first.items():
            if values.tobytes() != again[name].tobytes():
                raise EngineError(f"loaded again, it gives another '{name}' for the same inputs")
        return facts

    def _load(self) -> Engine:
        return self._backend.load(self._component, self._files, self._device.name)

    def _seconds(self, engine: Engine) -> float:
        """Of one replayed run: the median."""
        binding = Binding(engine, self._inputs, self._device)
        binding.run()
        replay = self._device.capture(binding.run)
        samples = []
        for _ in range(_TIMED):
            self._device.synchronize()
            started = time.monotonic()
            replay()
            self._device.synchronize()
            samples.append(time.monotonic() - started)
        return float(np.median(samples))


def _recorded(files: list[Path]) -> dict[str, Any]:
    """What TensorRT's record beside a plan says of its memory; nothing for other backends."""
    from v2v.engine.tensorrt.runner import PlanRecord

    records = [path for path in files if path.suffix == ".json"]
    if not records:
        return {}
    record = PlanRecord.read(records[0])
    return {"scratch_bytes": record.scratch_bytes, "weight_bytes": record.weight_bytes}


def _stored(path: Path) -> Arrays:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}
