"""Prove an engine set: every file as it was built, every engine computing what ONNX Runtime computes.

Every component is given what it is given in a run (:class:`v2v.core.samples.Occurring`): what overflows in FP16 does so
on a real picture's latents, not on normal ones.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from v2v.core.components import ComponentName
from v2v.core.errors import EngineError
from v2v.core.progress import BuildProgress
from v2v.core.samples import Arrays, Occurring, relative_error
from v2v.device import Array, Device, open_device
from v2v.engine.backend import Engine, Graph, backend
from v2v.engine.build import Exporter
from v2v.engine.store import EngineSet


@dataclass(frozen=True)
class Verified:
    """How one component loaded, ran and compared."""

    component: ComponentName
    load_seconds: float
    run_seconds: float  # one run, the second
    error: (
        float | None
    )  # relative L2 difference from ONNX Runtime on a CPU; None where that is the engine itself


def verify_engine_set(
    engine_set: EngineSet,
    device: str,
    progress: BuildProgress = lambda component, phase, share: None,
    exporter: Exporter | None = None,
) -> list[Verified]:
    """Hash every file of the set, then load each engine on ``device`` and run it on what it is given in a run.

    An engine that is not ONNX Runtime's own on a CPU is compared with it. Other backends' sets hold no graph
    to compare with, so the graph is exported once more from the weights that the manifest names; this needs
    PyTorch and, at full size, minutes. On CUDA runs are also captured and replayed.

    Raises:
        EngineError: a file differs from the manifest, an engine does not load, gives NaN or Inf, is
            further from ONNX Runtime than its backend tolerates, or computes something else when it is replayed.
        BuildError: the graph to compare with cannot be exported.
    """
    total = max(engine_set.bytes, 1)
    engine_set.verify(lambda read: progress("files", "hashing", read / total))
    occurring, opened = Occurring(engine_set.model), open_device(device)
    return [
        _verify(engine_set, name, opened, occurring, progress, exporter)
        for name in engine_set.manifest.components
    ]


def run_once(engine: Engine, inputs: Arrays, device: Device) -> Arrays:
    """Run ``engine`` on host arrays; its outputs."""
    binding = Binding(engine, inputs, device)
    binding.run()
    return binding.result()


def worst_error(outputs: Arrays, expected: Arrays) -> float:
    """The largest :func:`~v2v.core.samples.relative_error` of all outputs."""
    return max(relative_error(outputs[name], reference) for name, reference in expected.items())


class Binding:
    """An engine's inputs and outputs on a device."""

    def __init__(self, engine: Engine, inputs: Arrays, device: Device) -> None:
        self._engine, self._device = engine, device
        self._inputs: Mapping[str, Array] = {name: device.upload(host) for name, host in inputs.items()}
        self._outputs: Mapping[str, Array] = {
            tensor.name: device.empty(tensor.shape, tensor.dtype) for tensor in engine.component.outputs
        }
        self.clear()

    def run(self) -> None:
        """Queue one run."""
        self._engine.run(self._inputs, self._outputs, self._device.stream)

    def layer_seconds(self) -> dict[str, float]:
        """Run twice, and return how long each layer took the second time."""
        self.run()
        return self._engine.layer_seconds(self._inputs, self._outputs, self._device.stream)

    def result(self) -> Arrays:
        """The outputs of what was queued."""
        return {name: self._device.download(array).copy() for name, array in self._outputs.items()}

    def clear(self) -> None:
        """Forget the outputs."""
        for array in self._outputs.values():
            self._device.zero(array)


def check_replay(engine: Engine, inputs: Arrays, device: Device, times: int = 2) -> None:
    """Capture runs with two bindings as one graph, as a guided step does.

    Replayed, ``times`` over, they must give the same bytes.

    Raises:
        EngineError: they do not.
    """
    mirrored = {
        name: np.ascontiguousarray(values[..., ::-1]) if values.dtype.kind == "f" else values
        for name, values in inputs.items()
    }
    bindings = [Binding(engine, given, device) for given in (inputs, mirrored)]

    def work() -> None:
        for binding in bindings:
            binding.run()

    work()
    expected = [binding.result() for binding in bindings]
    replay = device.capture(work)
    for _ in range(times):
        for binding in bindings:
            binding.clear()
        replay()
        for binding, plain in zip(bindings, expected, strict=True):
            for name, values in binding.result().items():
                if values.tobytes() != plain[name].tobytes():
                    raise EngineError(
                        f"{engine.component.name} gives another '{name}' when a captured run is replayed; "
                        "please report this with the versions of the driver and of the backend's library"
                    )


def _verify(
    engine_set: EngineSet,
    name: ComponentName,
    device: Device,
    occurring: Occurring,
    progress: BuildProgress,
    exporter: Exporter | None,
) -> Verified:
    recipe = engine_set.manifest.recipe
    inputs = occurring.inputs(engine_set.component(name))
    progress(name, "loading", 0.0)
    started = time.monotonic()
    engine = engine_set.load(name, device.name)
    load_seconds = time.monotonic() - started
    progress(name, "running", 0.3)
    try:
        outputs, run_seconds = _run_timed(engine, inputs, device)
        if not device.synchronous:
            check_replay(engine, inputs, device)
    finally:
        engine.close()
    for output, values in outputs.items():
        if not np.isfinite(values).all():
            raise EngineError(
                f"{name} of {engine_set.path} gives NaN or Inf in '{output}' on a picture and a prompt"
            )
    progress(name, "comparing", 0.6)
    if (recipe.backend.name, device.name) == ("onnxruntime", "cpu"):
        occurring.keep(outputs)
        progress(name, "verified", 1.0)
        return Verified(name, load_seconds, run_seconds, None)
    with _reference(engine_set, name, progress, exporter) as reference:
        expected = run_once(reference, inputs, open_device("cpu"))
    occurring.keep(expected)
    error = worst_error(outputs, expected)
    allowed = backend(recipe.backend.name).tolerance(name, recipe.options.of(name))
    if error > allowed:
        raise EngineError(
            f"{name} of {engine_set.path} differs from ONNX Runtime by {error:.1e}, allowed is "
            f"{allowed:.0e}; rebuild it with: {engine_set.rebuild_command}"
        )
    progress(name, "verified", 1.0)
    return Verified(name, load_seconds, run_seconds, error)


def _run_timed(engine: Engine, inputs: Arrays, device: Device) -> tuple[Arrays, float]:
    """The outputs, and the seconds of a second run."""
    binding = Binding(engine, inputs, device)
    binding.run()
    device.synchronize()
    started = time.monotonic()
    binding.run()
    device.synchronize()
    return binding.result(), time.monotonic() - started


@contextmanager
def _reference(
    engine_set: EngineSet, name: ComponentName, progress: BuildProgress, exporter: Exporter | None
) -> Iterator[Engine]:
    """ONNX Runtime's engine of the same component, on the CPU."""
    recipe = engine_set.manifest.recipe
    if recipe.backend.name == "onnxruntime" and engine_set.runs_on("cpu").fits:
        engine = engine_set.load(name, "cpu")
        yield engine
        engine.close()
        return
    with exported(engine_set, name, progress, exporter) as graph:
        engine = backend("onnxruntime").load(engine_set.component(name), [graph.path], "cpu")
        yield engine
        engine.close()


@contextmanager
def exported(
    engine_set: EngineSet, name: ComponentName, progress: BuildProgress, exporter: Exporter | None = None
) -> Iterator[Graph]:
    """The graph of a component of a set, exported once more; it is gone afterwards.

    Raises:
        EngineError: the weights that the set was built from have changed.
        BuildError: it cannot be exported.
    """
    recipe = engine_set.manifest.recipe
    exporter = exporter or Exporter.default()

    def report(phase: str, share: float) -> None:
        progress(name, phase, share)

    weights = exporter.load_weights(recipe.weights.source, recipe.model, report)
    if weights.identity != recipe.weights.identity:
        raise EngineError(
            f"cannot compare {engine_set.path} with ONNX Runtime: the weights at {recipe.weights.source} "
            "are no longer those that it was built from"
        )
    # The graph has gigabytes: where the engines lie there is room, in /tmp there may be none.
    beside = engine_set.path.parent
    room = beside if os.access(beside, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix=".v2v-verify-", dir=room) as folder:
        graph: Graph = exporter.export_component(
            name,
            recipe.model,
            weights,
            recipe.window,
            recipe.options.of(name).precision,
            Path(folder),
            report,
        )
        yield graph
