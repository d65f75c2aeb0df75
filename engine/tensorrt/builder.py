"""ONNX graph -> TensorRT plan: parse, check, configure, compile, and say what went wrong in words.

The graph decides the precision (networks are strongly typed); this file decides limits, profiles and caches.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import filelock

from v2v.core.components import Component, Tensor
from v2v.core.errors import BuildError
from v2v.core.progress import PhaseProgress
from v2v.device.gpus import DRIVERS, cuda_version
from v2v.engine.tensorrt.library import (
    AMPERE_AND_LATER,
    SAME_CAPABILITY,
    Library,
    Message,
    Portability,
)

GIB = 2**30

_TYPES = {"HALF": "float16", "FLOAT": "float32", "INT64": "int64"}


@dataclass(frozen=True)
class Limits:
    """What the builder may use. None leaves TensorRT's own default."""

    workspace: int | None  # bytes of scratch that one layer may use when it runs
    tactic_memory: int | None  # bytes on the device that one candidate kernel may use while it is timed
    tactics: int | None  # candidate kernels that are tried for one layer
    optimization_level: int
    weight_streaming: bool = False
    detailed: bool = False  # names and parameters of layers stay in the plan
    capability: tuple[int, int] = (0, 0)  # of the first GPUs that have what the graph needs


_OPTIMIZATION_LEVEL = 3
"""TensorRT's own. Level 4 only generates other kernels than 3 does; 5 times both, which takes longest."""


@dataclass(frozen=True)
class TensorRTOptions:
    """TensorRT's own options, ``v2v-build-engines --option NAME=VALUE``; None leaves a choice to the backend.

    ``library`` and ``portable`` are described at :mod:`v2v.engine.tensorrt.backend`.
    """

    library: str | None = None
    portable: str | None = None
    tactics: int | None = None  # candidate kernels that are tried for one layer
    tactic_memory: int | None = None  # bytes on the GPU that a candidate may use while it is tried
    workspace: int | None = None  # bytes of scratch that one layer may use when it runs
    optimization_level: int | None = None  # 0..5
    weight_streaming: bool = (
        False  # weights that the card has no room for come from the host while they are used
    )
    profiling: bool = False  # "detailed": the plan keeps what each layer is, for NVIDIA's tools
    shared: bool = False  # of a UNet what no prompt changes becomes an engine of its own
    fp8: bool = False  # products of a UNet in FP8
    bf16: bool = False  # BF16 in the place of FP16
    graphs: str | None = None  # a folder that keeps the graphs, and trtexec's command lines
    plans: str | None = None  # a folder with plans that trtexec made, one for each component

    @classmethod
    def read(cls, extra: Mapping[str, str]) -> TensorRTOptions:
        """Read a build's ``extra`` options; there ``tactic_memory`` and ``workspace`` are in GiB.

        Raises:
            BuildError: an option that TensorRT does not have, or a value that is not a number.
        """
        names = [field.name for field in fields(cls)]
        if unknown := sorted(set(extra) - set(names)):
            raise BuildError(f"backend tensorrt has no option '{unknown[0]}'; it has {', '.join(names)}")
        level = extra.get("optimization_level")
        if level is not None and level not in ("0", "1", "2", "3", "4", "5"):
            raise BuildError(f"option optimization_level={level} must be a number from 0 to 5")
        return cls(
            weight_streaming=_choice(extra, "weight_streaming", no="no", yes="yes"),
            profiling=_choice(extra, "profiling", no="names", yes="detailed"),
            shared=_choice(extra, "shared", no="no", yes="yes"),
            fp8=_choice(extra, "fp8", no="no", yes="yes"),
            bf16=_choice(extra, "bf16", no="no", yes="yes"),
            graphs=extra.get("graphs"),
            plans=extra.get("plans"),
            library=extra.get("library"),
            portable=extra.get("portable"),
            tactics=_number(extra, "tactics"),
            tactic_memory=_number(extra, "tactic_memory", unit=GIB),
            workspace=_number(extra, "workspace", unit=GIB),
            optimization_level=None if level is None else int(level),
        )


def limits(gpu_memory: int | None, options: TensorRTOptions) -> Limits:
    """Limits for a card with ``gpu_memory`` bytes (None: built without one), unless ``options`` say otherwise.

    TensorRT compiles a network like the UNet as one region, whose whole scratch (gigabytes at full size) counts as
    workspace: so everything may be used but what the weights and the driver need, about 4 GiB.
    """
    available = None if gpu_memory is None else max(gpu_memory - 4 * GIB, gpu_memory // 2)
    return Limits(
        workspace=available if options.workspace is None else options.workspace,
        tactic_memory=available if options.tactic_memory is None else options.tactic_memory,
        tactics=options.tactics,
        optimization_level=_OPTIMIZATION_LEVEL
        if options.optimization_level is None
        else options.optimization_level,
        weight_streaming=options.weight_streaming,
        detailed=options.profiling,
    )


def trtexec(graph: Path, plan: Path, limit: Limits, portability: Portability) -> str:
    """The command line with which TensorRT's own tool compiles ``graph`` as :func:`build_plan` does.

    What it cannot be told: that small attentions may be computed step by step, and the memory of a candidate kernel.
    """
    words = ["trtexec", f"--onnx={graph}", f"--saveEngine={plan}", "--stronglyTyped", "--skipInference"]
    words.append(f"--builderOptimizationLevel={limit.optimization_level}")
    if limit.workspace is not None:
        words.append(f"--memPoolSize=workspace:{limit.workspace >> 20}")  # MiB
    if limit.tactics is not None:
        words.append(f"--maxTactics={limit.tactics}")
    level = {SAME_CAPABILITY: "sameComputeCapability", AMPERE_AND_LATER: "ampere+"}.get(portability)
    words += [f"--hardwareCompatibilityLevel={level}"] if level else []
    words += ["--allowWeightStreaming"] if limit.weight_streaming else []
    words += ["--profilingVerbosity=detailed"] if limit.detailed else []
    return shlex.join(words)


def _choice(extra: Mapping[str, str], name: str, *, no: str, yes: str) -> bool:
    """Whether the option ``name`` is ``yes``; where it is absent it is ``no``."""
    text = extra.get(name, no)
    if text not in (no, yes):
        raise BuildError(f"option {name}={text} must be {yes} or {no}")
    return text == yes


def _number(extra: Mapping[str, str], name: str, unit: int = 1) -> int | None:
    """The option ``name``, a number above zero, times ``unit``; None where it is absent."""
    text = extra.get(name)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0 or (unit == 1 and value != int(value)):
        raise BuildError(f"option {name}={text} must be a {'whole ' * (unit == 1)}number above 0")
    return int(value * unit)


@dataclass(frozen=True)
class CompiledPlan:
    """A compiled component and the figures that the builder logged."""

    data: Any  # IHostMemory, a buffer
    activation_bytes: int | None  # scratch while it runs
    weight_bytes: int | None
    layers: Mapping[str, int]  # "ATTENTION_OUTPUT HALF" -> count


def build_plan(
    library: Library,
    component: Component,
    graph: Path,
    limit: Limits,
    portability: Portability,
    timing_cache: Path,
    progress: PhaseProgress,
) -> CompiledPlan:
    """Compile ``graph``. A KeyboardInterrupt stops the builder at its next step and is raised again.

    ``timing_cache`` is a file that may not exist yet; it is updated.

    Raises:
        BuildError: names the component, the layer where one is known, the cause, and what to try.
    """
    state = BuildState()

    def work() -> CompiledPlan:
        with library.capture() as messages:
            return compile_plan(library, component, graph, limit, portability, timing_cache, state, messages)

    return _in_thread(work, state, progress)


@dataclass
class BuildState:
    """What the thread that builds and the one that waits for it share."""

    phase: str = "parsing"
    share: float = 0.0
    cancelled: threading.Event = field(default_factory=threading.Event)


def _in_thread(work: Callable[[], CompiledPlan], state: BuildState, progress: PhaseProgress) -> CompiledPlan:
    """Run ``work`` beside this thread, which thus stays free to report progress and to take Ctrl-C."""
    outcome: list[CompiledPlan | BaseException] = []

    def target() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # handed over, raised below
            outcome.append(error)

    thread = threading.Thread(target=target, name="tensorrt-builder", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            progress(state.phase, state.share)
            thread.join(0.1)
    except BaseException:
        state.cancelled.set()
        thread.join()  # a second Ctrl-C leaves even this
        raise
    (result,) = outcome
    if isinstance(result, BaseException):
        raise result
    progress("compiling", 1.0)
    return result


def compile_plan(
    library: Library,
    component: Component,
    graph: Path,
    limit: Limits,
    portability: Portability,
    timing_cache: Path,
    state: BuildState,
    messages: list[Message],
) -> CompiledPlan:
    try:
        builder = library.api.Builder(library.log)
    except (TypeError, RuntimeError) as error:
        cause = _last_error(messages) or str(error)
        raise BuildError(
            f"{library.title} cannot start its builder: {cause}; building needs an NVIDIA GPU and its driver"
        ) from error
    network = library.new_network(builder)
    parser = parse(library, network, component, graph)
    check_interface(library, network, component)
    allow_attention(library, network, component, graph)
    config = _configure(library, builder, limit, portability)
    config.progress_monitor = monitor = _monitor(library.api, state)
    cache = TimingCache(timing_cache, config) if library.times_kernels else None
    state.phase = "compiling"
    try:
        data = builder.build_serialized_network(network, config)
    finally:  # what was timed before a failure need not be timed again
        if cache is not None:
            cache.save()
    if data is None:
        if state.cancelled.is_set():
            raise BuildError(f"the build of {component.name} was cancelled")
        raise BuildError(explain(library, component, graph, messages))
    plan = CompiledPlan(
        data,
        _figure(messages, "Total Activation Memory"),
        _figure(messages, "Total Weights Memory"),
        layer_counts(network),
    )
    del parser, monitor  # both must outlive the build: the network reads the parser's weights
    return plan


def parse(library: Library, network: Any, component: Component, graph: Path) -> Any:
    """Read ``graph`` into ``network``; returns the parser, which must live as long as the network.

    Raises:
        BuildError: not a graph, its weights are missing, or TensorRT does not take a node of it.
    """
    if not graph.is_file():
        raise BuildError(f"no graph for {component.name} at {graph}")
    parser = library.api.OnnxParser(network, library.log)
    if parser.parse_from_file(str(graph)):
        return parser
    causes = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node = f"node '{error.node_name()}' ({error.node_operator()}): " if error.node_operator() else ""
        causes.append(node + _first_cause(error.desc()))
    raise BuildError(
        f"{library.title} cannot read the graph of {component.name} ({graph}): "
        f"{'; '.join(causes) or 'no reason given'}; "
        "export it again with --force, and if that does not help use --backend onnxruntime"
    )


def _first_cause(text: str) -> str:
    """The sentence in a parser error that tells the cause, without source files and C++ conditions."""
    lines = [line for line in text.splitlines() if line and not line.startswith("Invalid Node")]
    inner = (
        re.search(r"Error Code \d+: (?:[\w ]+ )?\((.*?)(?:\.? In \w+ at .*)?\)?$", lines[0])
        if lines
        else None
    )
    return inner.group(1) if inner else (lines[0] if lines else text)


def check_interface(library: Library, network: Any, component: Component) -> None:
    """Compare the network's inputs and outputs with ``component``.

    Raises:
        BuildError: names the first tensor that differs.
    """
    tensors = {
        "input": [network.get_input(i) for i in range(network.num_inputs)],
        "output": [network.get_output(i) for i in range(network.num_outputs)],
    }
    for kind, expected in (("input", component.inputs), ("output", component.outputs)):
        have = {
            tensor.name: describe(library, tensor.name, tensor.dtype, tensor.shape)
            for tensor in tensors[kind]
        }
        for tensor in expected:
            if have.get(tensor.name) != tensor:
                listing = ", ".join(map(str, have.values())) or "none"
                raise BuildError(
                    f"the graph of {component.name} lacks the {kind} {tensor}; its {kind}s are: {listing}"
                )
        if len(have) != len(expected):
            unexpected = sorted(set(have) - {tensor.name for tensor in expected})
            raise BuildError(f"the graph of {component.name} has an unknown {kind} '{unexpected[0]}'")


def describe(library: Library, name: str, dtype: Any, shape: Any) -> Tensor:
    """A tensor of the library, in our words."""
    return Tensor(name, _TYPES.get(dtype.name, dtype.name.lower()), tuple(shape))


def _configure(
    library: Library,
    builder: Any,
    limit: Limits,
    portability: Portability,
) -> Any:
    api = library.api
    config = builder.create_builder_config()
    verbosity = api.ProfilingVerbosity
    config.profiling_verbosity = verbosity.DETAILED if limit.detailed else verbosity.LAYER_NAMES_ONLY
    if limit.weight_streaming:
        config.set_flag(api.BuilderFlag.WEIGHT_STREAMING)
    if limit.workspace is not None:
        config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, limit.workspace)
    if library.times_kernels:
        config.builder_optimization_level = limit.optimization_level
        if limit.tactic_memory is not None:
            config.set_memory_pool_limit(api.MemoryPoolType.TACTIC_DRAM, limit.tactic_memory)
        if limit.tactics is not None:
            config.max_num_tactics = limit.tactics
    if library.is_rtx and not limit.weight_streaming:
        # Else an engine may ask for memory of its own while it runs, and so cannot be captured: streaming must.
        config.set_flag(api.BuilderFlag.REQUIRE_USER_ALLOCATION)
    library.set_portability(config, portability, limit.capability)
    return config


class TimingCache:
    """Kernel timings of earlier builds, in a file; losing it costs time and nothing else."""

    def __init__(self, path: Path, config: Any) -> None:
        self._path = path
        self._config = config
        stored = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
        # Damaged, made by another version or on another GPU? Then start afresh.
        if stored is None or not config.set_timing_cache(stored, False):
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def save(self) -> None:
        """Add what this build learnt to the file, also to what others wrote there meanwhile."""
        cache = self._config.get_timing_cache()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(self._path.with_suffix(".lock"), timeout=10):
                if self._path.is_file():
                    stored = self._config.create_timing_cache(self._path.read_bytes())
                    if stored is not None:
                        cache.combine(stored, False)
                fresh = self._path.with_suffix(f".{os.getpid()}")
                fresh.write_bytes(memoryview(cache.serialize()))
                fresh.replace(self._path)
        except (OSError, filelock.Timeout):
            return  # a full or read-only disk must not spoil a finished build


def _monitor(api: Any, state: BuildState) -> Any:
    """TensorRT's nested phases as one share that only grows."""

    class Monitor(api.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.phases: dict[str, tuple[str | None, int]] = {}  # name -> parent, steps
            self.steps_done: dict[str, float] = {}

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.phases[name] = (parent, max(steps, 1))
            self.steps_done[name] = 0.0

        def step_complete(self, name: str, step: int) -> bool:
            self.steps_done[name] = step + 1.0
            self._publish(name)
            return not state.cancelled.is_set()

        def phase_finish(self, name: str) -> None:
            self.phases.pop(name, None)
            self.steps_done.pop(name, None)

        def _publish(self, name: str | None) -> None:
            share = 0.0  # of the step that is under way, from the innermost phase outwards
            while name is not None and name in self.phases:
                parent, steps = self.phases[name]
                share = min((self.steps_done[name] + share) / steps, 1.0)
                name = parent
            state.share = max(state.share, min(share, 1.0))

    return Monitor()


def layer_counts(network: Any) -> dict[str, int]:
    """How many layers of each type and output type: ``{"CONVOLUTION HALF": 2, ...}``."""
    counts: Counter[str] = Counter()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        counts[f"{layer.type.name} {layer.get_output(0).dtype.name if layer.num_outputs else '-'}"] += 1
    return dict(sorted(counts.items()))


def _figure(messages: list[Message], title: str) -> int | None:
    """``Total Weights Memory: 35328 bytes`` -> 35328."""
    figures = [re.search(rf"{title}: (\d+) bytes", message.text) for message in messages]
    values = [int(match.group(1)) for match in figures if match]
    return values[-1] if values else None


# Errors ---------------------------------------------------------------------------------------------------------


def driver_advice() -> str:
    """What to do where CUDA or its driver is the cause."""
    cuda = cuda_version()
    return f"check with nvidia-smi that the driver runs and is {DRIVERS[cuda]} or later, as CUDA {cuda} needs"


def explain(library: Library, component: Component, graph: Path, messages: list[Message]) -> str:
    """Why the builder gave up on ``component``, from its log: the layer, the cause, and what to try."""
    errors = [message.text for message in messages if message.is_error]
    text = "\n".join(errors)
    start = f"{library.title} cannot compile {component.name}"
    if "dedicated kernel" in text or "is_decomposable" in text:
        return f"{start}: it has no fused kernel for one of its attention layers; {_ATTENTION_ADVICE}"
    if "insufficient workspace" in text:
        layer = _layer(text)
        return (
            f"{start}: {_scope(graph, layer)} needs more scratch memory than --workspace allows; raise it, "
            "or use a smaller --size or fewer --frames"
        )
    if "any implementation" in text:
        return (
            f"{start}: it has no implementation for {_scope(graph, _layer(text))}; try a larger --workspace, another "
            "--optimization-level, a newer TensorRT, or --backend onnxruntime"
        )
    if re.search(r"out ?of ?memory", text, re.IGNORECASE):
        return (
            f"{start}: the GPU ran out of memory; close other programs that use it, lower --workspace and "
            "--optimization-level, or use a smaller --size or fewer --frames"
        )
    cause = _last_error(messages) or "it gives no reason"
    if re.search(r"\bcuda|driver", text, re.IGNORECASE):
        return f"{start}: {cause}; {driver_advice()}"
    return f"{start}: {cause}; try --backend onnxruntime"


_SMALL_SCORES = 2**28
"""Elements of a matrix of attention scores that may be computed in full, 1 GiB in FP32: a little more than the VAE has,
whose attention over a frame of 1280x720 is written so in its graph."""


def allow_attention(library: Library, network: Any, component: Component, graph: Path) -> None:
    """Let the compiler write an attention without a fused kernel as matmul, softmax, matmul where that is small.

    One that has a kernel stays fused. A large one without a kernel TensorRT refuses by itself. TensorRT for RTX 1.7
    crashes where there are two of them, so each kind is compiled alone first; seconds each.

    Raises:
        BuildError: names the layers whose attention has no fused kernel and is too large.
    """
    fused: dict[tuple[tuple[str, tuple[int, ...]], ...], bool] = {}
    refused = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type.name != "ATTENTION_INPUT":
            continue
        inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
        query, key = tuple(inputs[0].shape), tuple(inputs[1].shape)
        if math.prod(query[:-1]) * key[-2] <= _SMALL_SCORES:
            layer.__class__ = library.api.IAttentionInputLayer  # a parsed network gives plain layers
            layer.attention.decomposable = True
            continue
        kind = tuple((tensor.dtype.name, tuple(tensor.shape)) for tensor in inputs)
        if library.is_rtx and kind not in fused:
            fused[kind] = _is_fused(library, kind)
        if not fused.get(kind, True):
            name = re.sub(r"_AttentionInput$", "", layer.name)
            refused.append(f"{_scope(graph, name)} {kind[0][0]} {list(kind[0][1])}")
    if refused:
        more = f" and {len(refused) - 3} more" if len(refused) > 3 else ""
        raise BuildError(
            f"{library.title} cannot compile {component.name}: it has no fused kernel for the attention in "
            f"{', '.join(refused[:3])}{more}; {_ATTENTION_ADVICE}"
        )


_ATTENTION_ADVICE = (
    "that takes FP16 and a head size of 16 to 256. Build with --precision fp16, a smaller --size or fewer --frames, or "
    "use --backend onnxruntime"
)


def _is_fused(library: Library, kind: tuple[tuple[str, tuple[int, ...]], ...]) -> bool:
    """Whether attention over query, key, value (and mask) of these types and shapes has a kernel."""
    import onnx
    from onnx import helper

    types = {"HALF": onnx.TensorProto.FLOAT16, "BF16": onnx.TensorProto.BFLOAT16}
    names = [f"input{index}" for index in range(len(kind))]
    values = [
        helper.make_tensor_value_info(
            name,
            types.get(dtype, onnx.TensorProto.FLOAT),
            shape,
        )
        for name, (dtype, shape) in zip(names, kind, strict=True)
    ]
    result = helper.make_tensor_value_info("output", values[0].type.tensor_type.elem_type, None)
    graph = helper.make_graph([helper.make_node("Attention", names, ["output"])], "probe", values, [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    builder = library.api.Builder(library.log)
    network = library.new_network(builder)
    parser = library.api.OnnxParser(network, library.log)
    with library.capture():
        return bool(
            parser.parse(model.SerializeToString())
            and builder.build_serialized_network(network, builder.create_builder_config()) is not None
        )


def _layer(text: str) -> str:
    """The node of ``Could not find any implementation for node NAME.``"""
    match = re.search(r"implementation for node (.+?)(?: due to|\.?\)|\.?$)", text, re.MULTILINE)
    return match.group(1) if match else "a layer"


def _scope(graph: Path, layer: str) -> str:
    """``layer``, with the module of the network that it comes from where the graph tells.

    Nodes have numbers for names, weights have the network's own: the nearest weight upstream tells the place.
    """
    try:
        import onnx

        nodes = onnx.load(str(graph), load_external_data=False).graph
    except Exception:  # a layer's name alone still helps
        return layer
    weights = {weight.name for weight in nodes.initializer if "." in weight.name}
    producer = {output: node for node in nodes.node for output in node.output}
    mentioned = [
        n for n in nodes.node if n.name and re.search(rf"(?<![\w.]){re.escape(n.name)}(?![\w.])", layer)
    ]
    queue = list(mentioned[0].input) if mentioned else []
    for tensor in queue:  # breadth first: it grows while it is read
        if tensor in weights:
            return f"{layer} (after {tensor.rpartition('.')[0]})"
        if tensor in producer and len(queue) < 1000:
            queue += producer[tensor].input
    return layer


def _last_error(messages: list[Message]) -> str:
    """The last error of the log, on one line."""
    errors = [message.text for message in messages if message.is_error]
    return " ".join(errors[-1].split()) if errors else ""
