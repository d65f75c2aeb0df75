"""ONNX Runtime: the backend that runs everywhere, on CPUs and with the onnxruntime-gpu wheel on CUDA.

An engine is a graph, weights beside it, so a set built on one machine runs on any other. For a CPU, and in FP32, it
is the exported graph itself; FP16 for CUDA is rewritten (:mod:`v2v.engine.onnxruntime.rewrite`) and runs there only.
ONNX Runtime optimises the graph when it loads it: stored optimised, the small model's UNet would load in 0.3
instead of 0.5 s on two cores and run no faster, and would be tied to one version.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]

from v2v.core.components import Component, ComponentName, Tensor
from v2v.core.errors import BuildError, EngineError, first_line
from v2v.core.files import link_or_copy
from v2v.core.progress import PhaseProgress
from v2v.device.gpus import cuda_devices
from v2v.engine.backend import TOLERANCE, BuildOptions, Compatibility, Compiled, Engine, Source, checked
from v2v.engine.sharing import SharingEngine

_PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
_TYPES = {"tensor(float16)": "float16", "tensor(float)": "float32", "tensor(int64)": "int64"}
# First versions whose kernels cover the graphs: the Attention operator of opset 23 sets the limit.
_MINIMUM = {"cpu": (1, 23), "cuda": (1, 25)}
_LARGEST_GRAPH = 64 << 20  # bytes; those of the full-size networks have a few millions


CUDA_SETTINGS = {
    "arena_extend_strategy": "kSameAsRequested",  # not the next power of two
    "cudnn_conv_algo_search": "HEURISTIC",  # trying all takes a minute, and gigabytes of scratch memory
    "enable_skip_layer_norm_strict_mode": "1",  # statistics of layer norms in FP32
}
"""Options of the CUDA provider."""


class OnnxRuntimeBackend:
    """Satisfies :class:`v2v.engine.backend.Backend`."""

    name = "onnxruntime"

    def __init__(self) -> None:
        self.version: str = ort.__version__
        available = ort.get_available_providers()
        # A GPU wheel lists CUDA on a machine without a GPU too.
        self.devices: tuple[str, ...] = tuple(
            device
            for device, provider in _PROVIDERS.items()
            if provider in available and (device == "cpu" or cuda_devices() > 0)
        )

    def build(self, source: Source, folder: Path, options: BuildOptions, progress: PhaseProgress) -> Compiled:
        """Take the graph and its weights into ``folder`` and compare its inputs and outputs with the component's.

        Raises:
            BuildError: ONNX Runtime does not accept the graph, or it is not the component's.
        """
        exported = source.graph()
        graph = exported.path
        progress("checking", 0.0)
        try:
            _check_interface(_open_for_inspection(graph), source.component, graph)
        except EngineError as error:
            raise BuildError(str(error)) from error
        progress("checking", 1.0)
        if _rewritten(options):
            from v2v.engine.onnxruntime.rewrite import rewrite_file  # needs what only builds have

            rewrite_file(graph, folder / graph.name, lambda share: progress("rewriting", share))
            return Compiled([folder / graph.name, folder / f"{graph.name}.data"], exported.error)
        graphs = (
            _halves(source.component, graph)
            if _shares(options) and source.component.name == "unet"
            else [graph]
        )
        sources = [*graphs, *sorted(p for p in graph.parent.glob(f"{graph.stem}.*") if p != graph)]
        files = []
        for index, file in enumerate(sources):
            progress("storing", index / len(sources))
            files.append(link_or_copy(file, folder / file.name))
        return Compiled(files, exported.error)

    def facts(self, options: BuildOptions) -> dict[str, Any]:
        """The graph is portable: only the oldest versions that have its operators matter.

        Raises:
            BuildError: an option that only other backends have, or that is of engines for a CPU.
        """
        shares = _shares(options)
        if shares and options.device != "cpu":
            raise BuildError(
                "option shared=yes: backend onnxruntime cuts graphs for --device cpu alone; leave it out"
            )
        devices = ["cuda"] if _rewritten(options) else ["cpu"] if shares else list(_MINIMUM)
        return {"minimum": {device: ".".join(map(str, _MINIMUM[device])) for device in devices}}

    def tolerance(self, name: ComponentName, options: BuildOptions) -> float:
        """See :class:`v2v.engine.backend.Backend`."""
        return TOLERANCE[options.precision]

    def fits(self, facts: Mapping[str, Any], device: str) -> Compatibility:
        """Whether this ONNX Runtime is new enough and has ``device``."""
        if device not in self.devices:
            advice = "; pip install onnxruntime-gpu adds cuda" if device == "cuda" else ""
            have = ", ".join(self.devices)
            return Compatibility(
                False, f"ONNX Runtime {self.version} runs on {have} here, not on {device}{advice}"
            )
        minimum = facts.get("minimum", {})
        if minimum and device not in minimum:
            return Compatibility(False, f"it was built for {' and '.join(minimum)}, not for {device}")
        needed = str(minimum.get(device, "0"))
        if _version(self.version) < _version(needed):
            return Compatibility(
                False, f"it needs ONNX Runtime {needed} or later on {device}, here is {self.version}"
            )
        return Compatibility(True)

    def load(self, component: Component, files: list[Path], device: str) -> OnnxRuntimeEngine | SharingEngine:
        """Open a session, or one for each half, and compare inputs and outputs with ``component``.

        Raises:
            EngineError: not a graph that this ONNX Runtime takes, or not this component's.
        """
        graphs = [file for file in files if file.suffix == ".onnx"]
        if len(graphs) < 2:
            return OnnxRuntimeEngine(component, files[0], device)
        rest, shared = (OnnxRuntimeEngine(_half(component, path), path, device) for path in graphs[:2])
        _check_halves(component, shared.component, rest.component)
        handed = {tensor.name: np.empty(tensor.shape, tensor.dtype) for tensor in shared.component.outputs}
        return SharingEngine(component, shared, rest, handed)


class OnnxRuntimeEngine(Engine):
    """``$V2V_THREADS`` sets the CPU threads.

    On CUDA a session is tied to one stream when it is made. The first run on another stream opens it again:
    a caller that keeps one stream pays for that once.

    A captured run keeps its own arrays: each run has a binding of its own, and CUDA copies the parameters of every
    launch into the graph. What runs share is the session's arena, which gives nothing back while the session is open;
    they use it one after the other, on that stream.
    """

    def __init__(self, component: Component, path: Path, device: str) -> None:
        self.component = component
        self._path = path
        self._device = device
        self._stream = 0
        self._session: ort.InferenceSession | None = self._open()
        _check_interface(self._session, component, path)

    def run(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], stream: int = 0) -> None:
        """See :class:`v2v.engine.backend.Engine`.

        Raises:
            EngineError: an array is missing or has another type, shape or layout; the engine is closed; or
                ONNX Runtime fails, for want of memory for example.
        """
        if self._session is None:
            raise EngineError(f"the engine {self.component.name} is closed")
        if self._device == "cuda" and stream != self._stream:
            self._stream = stream
            self._session = None  # two copies of the weights may not fit
            self._session = self._open()
        self._run(self._session, inputs, outputs)

    def layer_seconds(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], stream: int = 0
    ) -> dict[str, float]:
        """See :class:`v2v.engine.backend.Engine`: nodes of the graph as ONNX Runtime optimised it."""
        self.close()
        with tempfile.TemporaryDirectory(prefix="v2v-profile-") as folder:
            self._session = self._open(str(Path(folder) / "profile"))
            for _ in range(2):  # the first chooses kernels and asks for memory
                self._run(self._session, inputs, outputs)
            events = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))
        self.close()
        self._session = self._open()
        seconds: dict[str, float] = {}
        for event in events:  # in the order of time: the second run's replace the first's
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                node = event["name"].removesuffix("_kernel_time")
                seconds[f"{node} {event['args']['op_name']}"] = event["dur"] / 1e6
        return seconds

    def _run(
        self, session: ort.InferenceSession, inputs: Mapping[str, Any], outputs: Mapping[str, Any]
    ) -> None:
        binding = session.io_binding()
        for described, arrays, bind in (
            (self.component.inputs, inputs, binding.bind_input),
            (self.component.outputs, outputs, binding.bind_output),
        ):
            for tensor in described:
                pointer = _pointer(self.component, tensor, arrays)
                bind(tensor.name, self._device, 0, np.dtype(tensor.dtype), tensor.shape, pointer)
        options = ort.RunOptions()
        if self._stream:  # leave the work queued there; without a stream of the caller's, wait for the end
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        try:
            session.run_with_iobinding(binding, options)
        except Exception as error:  # ONNX Runtime's errors share no public base class
            raise EngineError(f"{self.component.name} failed in ONNX Runtime: {first_line(error)}") from error

    def close(self) -> None:
        """Free the session."""
        self._session = None

    def _open(self, profile: str | None = None) -> ort.InferenceSession:
        options = _quiet_options()
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, profile
        options.intra_op_num_threads = _threads()
        # Planning memory by pattern allocates the peak a second time on the second run: the small model's UNet
        # at 640x360x16 took 3.2 GB with it and 1.8 GB without, in the same processor time.
        options.enable_mem_pattern = False
        provider = _PROVIDERS[self._device]
        settings: dict[str, str] = {}
        if self._device == "cuda":
            # A rewritten graph has what the higher levels look for; on the rest they would gain little.
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
            # Arrays that take over others' memory leave holes: 19.4 instead of 9.8 GiB for the full UNet.
            options.enable_mem_reuse = False
            settings |= CUDA_SETTINGS
            if self._stream:
                settings["user_compute_stream"] = str(self._stream)
        session = _session(self._path, options, (provider, settings))
        if session.get_providers()[0] != provider:
            raise EngineError(
                f"ONNX Runtime {ort.__version__} could not start {provider} and would run on the CPU "
                "instead; check that the CUDA and cuDNN libraries that it needs are installed"
            )
        return session


def _rewritten(options: BuildOptions) -> bool:
    """Whether an engine is made of operations that only the CUDA provider has."""
    return options.device == "cuda" and options.precision == "fp16"


def _shares(options: BuildOptions) -> bool:
    """Whether a guided step does once what no prompt changes.

    Raises:
        BuildError: an option that this backend does not have, or a value that it does not take.
    """
    for name, value in options.extra.items():
        if name != "shared":
            raise BuildError(f"backend onnxruntime has no option '{name}'; it has shared")
        if value not in ("yes", "no"):
            raise BuildError(f"option shared={value} must be yes or no")
    return options.extra.get("shared") == "yes"


def _halves(component: Component, graph: Path) -> list[Path]:
    """Files beside ``graph``: what comes behind, and what no prompt changes."""
    try:
        from v2v.engine.cutting import split

        shared, rest = split(component, graph)
    except ImportError as error:
        raise BuildError(
            f"option shared=yes needs ONNX's tools ({error}); install them with: pip install 'v2v[export]'"
        ) from error
    return [rest.path, shared.path]


def _half(component: Component, path: Path) -> Component:
    """A half of a UNet, as its graph describes itself."""
    session = _open_for_inspection(path)
    inputs, outputs = (
        tuple(Tensor(each.name, _TYPES.get(each.type, each.type), tuple(each.shape)) for each in found)
        for found in (session.get_inputs(), session.get_outputs())
    )
    return Component(component.name, inputs, outputs)


def _check_halves(component: Component, shared: Component, rest: Component) -> None:
    """Raise EngineError unless the two make ``component``."""
    taken = {*shared.inputs, *rest.inputs} - {*shared.outputs}
    if taken != {*component.inputs} or rest.outputs != component.outputs:
        raise EngineError(
            f"these are not the halves of the {component.name} expected: they take {_listing(taken)} "
            f"instead of {_listing(component.inputs)}"
        )


def _quiet_options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors; warnings speak of the graph, which users cannot change
    return options


def _open_for_inspection(path: Path) -> ort.InferenceSession:
    """A session for reading inputs and outputs only: on the CPU, unoptimised, weights left in their file."""
    options = _quiet_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    return _session(path, options, _PROVIDERS["cpu"])


def _session(path: Path, options: ort.SessionOptions, provider: Any) -> ort.InferenceSession:
    try:
        if (size := path.stat().st_size) > _LARGEST_GRAPH:
            raise ValueError(f"it has {size} bytes, and a graph whose weights lie beside it has few")
        # Its fallback would try the CPU instead, and print that on the standard output.
        return ort.InferenceSession(str(path), options, providers=[provider], enable_fallback=0)
    except Exception as error:  # ONNX Runtime's errors share no public base class
        raise EngineError(f"{path} does not load in ONNX Runtime: {first_line(error)}") from error


def _check_interface(session: ort.InferenceSession, component: Component, path: Path) -> None:
    """Raise EngineError unless the session's inputs and outputs are ``component``'s."""
    for kind, tensors, expected in (
        ("inputs", session.get_inputs(), component.inputs),
        ("outputs", session.get_outputs(), component.outputs),
    ):
        have = {Tensor(a.name, _TYPES.get(a.type, a.type), tuple(a.shape)) for a in tensors}
        if have != set(expected):
            raise EngineError(
                f"{path} is not the {component.name} expected: its {kind} are {_listing(have)} "
                f"instead of {_listing(expected)}"
            )


def _pointer(component: Component, tensor: Tensor, arrays: Mapping[str, Any]) -> int:
    """Address of the array for ``tensor``, which must be exactly as described."""
    array = checked(component, tensor, arrays)
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.pointer)


def _listing(tensors: Any) -> str:
    return ", ".join(f"{t.name} {t.dtype} {list(t.shape)}" for t in sorted(tensors, key=lambda t: t.name))


def _threads() -> int:
    """Threads for one operator; 0 leaves it to ONNX Runtime (one per core)."""
    text = os.environ.get("V2V_THREADS", "0")
    try:
        threads = int(text)
    except ValueError:
        threads = -1
    if threads < 0:
        raise EngineError(f"V2V_THREADS must be a number of threads, not '{text}'")
    return threads


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("+")[0].split(".")[:2] if part.isdigit())
