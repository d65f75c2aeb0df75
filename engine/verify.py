"""Prove an engine set: every file as it was built, every engine computing what ONNX Runtime computes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from v2v.core.components import ComponentName
from v2v.core.errors import EngineError
from v2v.core.progress import BuildProgress
from v2v.core.samples import relative_error, sample_inputs
from v2v.engine.backend import Engine, backend
from v2v.engine.build import Exporter
from v2v.engine.store import EngineSet

Arrays = dict[str, npt.NDArray[Any]]


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
    """Hash every file of the set, then load each engine on ``device`` and run it on random input.

    An engine that is not ONNX Runtime's own on a CPU is compared with it. Other backends' sets hold no graph
    to compare with, so the graph is exported once more from the weights that the manifest names; this needs
    PyTorch and, at full size, minutes.

    Raises:
        EngineError: a file differs from the manifest, an engine does not load, gives NaN or Inf, or is
            further from ONNX Runtime than its backend tolerates.
        BuildError: the graph to compare with cannot be exported.
    """
    total = max(engine_set.bytes, 1)
    engine_set.verify(lambda read: progress("files", "hashing", read / total))
    return [_verify(engine_set, name, device, progress, exporter) for name in engine_set.manifest.components]


def run_once(engine: Engine, inputs: Arrays, device: str) -> tuple[Arrays, float]:
    """Run ``engine`` twice on host arrays; its outputs, and the seconds of the second run."""
    outputs: Arrays = {t.name: np.zeros(t.shape, t.dtype) for t in engine.component.outputs}
    run = _run_on_cuda if device == "cuda" else _run_on_cpu
    return outputs, run(engine, inputs, outputs)


def worst_error(outputs: Arrays, expected: Arrays) -> float:
    """The largest :func:`~v2v.core.samples.relative_error` of all outputs."""
    return max(relative_error(outputs[name], reference) for name, reference in expected.items())


def _verify(
    engine_set: EngineSet,
    name: ComponentName,
    device: str,
    progress: BuildProgress,
    exporter: Exporter | None,
) -> Verified:
    recipe = engine_set.manifest.recipe
    inputs = sample_inputs(engine_set.component(name), recipe.model.text_encoder.vocabulary)
    progress(name, "loading", 0.0)
    started = time.monotonic()
    engine = engine_set.load(name, device)
    load_seconds = time.monotonic() - started
    progress(name, "running", 0.3)
    try:
        outputs, run_seconds = run_once(engine, inputs, device)
    finally:
        engine.close()
    for output, values in outputs.items():
        if not np.isfinite(values).all():
            raise EngineError(f"{name} of {engine_set.path} gives NaN or Inf in '{output}' on random input")
    progress(name, "comparing", 0.6)
    error = None
    if (recipe.backend.name, device) != ("onnxruntime", "cpu"):
        with _reference(engine_set, name, progress, exporter) as reference:
            error = worst_error(outputs, run_once(reference, inputs, "cpu")[0])
        allowed = backend(recipe.backend.name).tolerance(name, recipe.options)
        if error > allowed:
            raise EngineError(
                f"{name} of {engine_set.path} differs from ONNX Runtime by {error:.1e}, allowed is "
                f"{allowed:.0e}; rebuild it with: {engine_set.rebuild_command}"
            )
    progress(name, "verified", 1.0)
    return Verified(name, load_seconds, run_seconds, error)


@contextmanager
def _reference(
    engine_set: EngineSet, name: ComponentName, progress: BuildProgress, exporter: Exporter | None
) -> Iterator[Engine]:
    """ONNX Runtime's engine of the same component, on the CPU."""
    recipe = engine_set.manifest.recipe
    if recipe.backend.name == "onnxruntime":
        engine = engine_set.load(name, "cpu")
        yield engine
        engine.close()
        return
    exporter = exporter or Exporter.default()

    def report(phase: str, share: float) -> None:
        progress(name, phase, share)

    weights = exporter.load_weights(recipe.weights.source, recipe.model, report)
    if weights.identity != recipe.weights.identity:
        raise EngineError(
            f"cannot compare {engine_set.path} with ONNX Runtime: the weights at {recipe.weights.source} "
            "are no longer those that it was built from"
        )
    with tempfile.TemporaryDirectory(prefix="v2v-") as folder:
        graph = exporter.export_component(
            name, recipe.model, weights, recipe.window, recipe.options.precision, Path(folder), report
        )
        engine = backend("onnxruntime").load(engine_set.component(name), [graph.path], "cpu")
        yield engine
        engine.close()


def _run_on_cpu(engine: Engine, inputs: Arrays, outputs: Arrays) -> float:
    engine.run(inputs, outputs)
    started = time.monotonic()
    engine.run(inputs, outputs)
    return time.monotonic() - started


class _CudaArray:
    """Device memory for one array, freed with :meth:`free`."""

    def __init__(self, host: npt.NDArray[Any]) -> None:
        self.shape = host.shape
        self.dtype = host.dtype
        self.bytes = host.nbytes
        self.pointer = int(_cuda("cudaMalloc", host.nbytes))
        self.copy(self.pointer, host.ctypes.data)

    def copy(self, target: int, source: int) -> None:
        from cuda.bindings import runtime

        _cuda("cudaMemcpy", target, source, self.bytes, runtime.cudaMemcpyKind.cudaMemcpyDefault)

    def free(self) -> None:
        _cuda("cudaFree", self.pointer)


def _run_on_cuda(engine: Engine, inputs: Arrays, outputs: Arrays) -> float:
    stream = int(_cuda("cudaStreamCreate"))
    arrays = {name: _CudaArray(host) for name, host in (inputs | outputs).items()}
    run: Callable[[], None] = lambda: engine.run(  # noqa: E731
        {name: arrays[name] for name in inputs}, {name: arrays[name] for name in outputs}, stream
    )
    try:
        run()
        _cuda("cudaStreamSynchronize", stream)
        started = time.monotonic()
        run()
        _cuda("cudaStreamSynchronize", stream)
        seconds = time.monotonic() - started
        for name, host in outputs.items():
            arrays[name].copy(host.ctypes.data, arrays[name].pointer)
    finally:
        for array in arrays.values():
            array.free()
        _cuda("cudaStreamDestroy", stream)
    return seconds


def _cuda(function: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime; its result.

    Raises:
        EngineError: cuda-python is not installed, or the call fails.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise EngineError("running on cuda needs cuda-python: pip install 'v2v[cuda]'") from error
    status, *results = getattr(runtime, function)(*arguments)
    if status != runtime.cudaError_t.cudaSuccess:
        raise EngineError(f"CUDA: {function} failed with {status.name}")
    return results[0] if results else None
