"""Components as ONNX graphs (opset 23), each checked against PyTorch before it appears.

A graph is traced from a network without weights, so that tracing costs the same memory at every size. Weights go
from their source straight into the external data file, under the names they have in a single file of safetensors
(``unet.input_blocks.0.0.weight``) and untransposed, so that a graph may as well refer to such a file.

Precision is in the graph. FP16 graphs hold FP16 weights and compute norms, SiLU after norms, and the VAE's softmax
between casts to FP32, as strongly typed compilers need it.
"""

from __future__ import annotations

import logging
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime  # type: ignore[import-untyped]
import onnxscript.optimizer
import onnxscript.rewriter
import torch
from onnx_ir.passes import common as passes
from onnxscript import opset23
from onnxscript.rewriter.rules import common as rules
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from v2v.core.components import Component, ComponentName, Precision, Window, component
from v2v.core.configs import ModelConfig
from v2v.core.errors import BuildError
from v2v.core.progress import PhaseProgress
from v2v.core.samples import relative_error, sample_inputs
from v2v.export.models.layers import with_token_epsilons
from v2v.export.weights import METHOD_OF, NETWORK_OF, Weights, make_network

OPSET = 23
op: Any = opset23  # its annotations allow no use of one result as another's argument

TOLERANCE: Mapping[Precision, float] = {"fp32": 1e-4, "fp16": 2e-2}
"""Relative L2 error, against PyTorch in FP32 with the same weights, past which a graph is refused."""

CHECK_FLOPS = 5e11
"""Work, in floating-point operations, up to which a graph is checked at its own window: seconds on two cores."""


@dataclass(frozen=True)
class Graph:
    """An exported component.

    Attributes:
        path: the ``.onnx`` file; its weights lie beside it in ``<name>.onnx.data``.
        error: relative L2 error of ONNX Runtime's output against PyTorch's.
        seconds: that exporting and checking took.
    """

    path: Path
    error: float
    seconds: float


def export_component(
    name: ComponentName,
    model: ModelConfig,
    weights: Weights,
    window: Window,
    precision: Precision,
    folder: Path,
    progress: PhaseProgress | None = None,
) -> Graph:
    """Write ``folder/<name>.onnx`` with the inputs and outputs that :mod:`v2v.core.components` describes.

    ONNX Runtime runs the graph on a CPU on random input and is compared with PyTorch in FP32. Where the window
    makes that too slow (see :data:`CHECK_FLOPS`), the comparison runs on a graph of a small window that shares the
    weights file, and the two graphs must be the same operation by operation, shapes apart.

    Args:
        name: the component.
        model: what it belongs to.
        weights: fit ``model``; one network at a time is read.
        window: size of the static shapes.
        precision: of weights, activations, inputs and outputs.
        folder: where the files appear, complete and checked or not at all. Files of that name are replaced.
        progress: told the phase and the share of it that is done, 0..1.

    Raises:
        BuildError: the graph's numbers are not PyTorch's.
        WeightsError: the weights do not fit.
    """
    started = time.monotonic()
    report = progress or (lambda _phase, _share: None)
    report("tracing", 0.0)
    graph = trace(name, model, window, precision)
    report("tracing", 0.5)
    check_window = window if work(name, model, window) <= CHECK_FLOPS else small_window(window)
    probe = graph if check_window == window else trace(name, model, check_window, precision)
    require_same_operations(name, graph, probe)
    report("tracing", 1.0)

    inputs = sample_inputs(component(name, model, check_window, precision), model.vocabulary)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=folder) as scratch:
        path = Path(scratch) / f"{name}.onnx"
        module = _load(name, model, weights, precision)
        _write(graph, module, path, lambda share: report("writing", share))
        report("checking", 0.0)
        expected = _run_pytorch(module, inputs)
        del module  # ONNX Runtime is about to need the memory
        report("checking", 0.5)
        if probe is not graph:
            _write_beside(probe, path.with_name("probe.onnx"), path)
        outputs = _run_onnx(name, path if probe is graph else path.with_name("probe.onnx"), inputs)
        error = max(map(relative_error, outputs, expected))
        if error > TOLERANCE[precision]:
            raise BuildError(
                f"{name}: the exported {precision} graph differs from PyTorch by {error:.1e} (relative), "
                f"more than the {TOLERANCE[precision]:.0e} allowed; it was not kept"
            )
        for file in (data_file(path), path):  # the graph last: where it is, all is there
            file.replace(folder / file.name)
    report("checking", 1.0)
    return Graph(folder / path.name, error, time.monotonic() - started)


def write_graph(
    name: ComponentName,
    model: ModelConfig,
    weights: Weights,
    window: Window,
    precision: Precision,
    folder: Path,
) -> Path:
    """As :func:`export_component`, but nothing is compared with PyTorch: for graphs that only another library judges.

    Returns:
        The ``.onnx`` file.

    Raises:
        WeightsError: the weights do not fit.
    """
    path = folder / f"{name}.onnx"
    graph = trace(name, model, window, precision)
    _write(graph, _load(name, model, weights, precision), path, lambda share: None)
    return path


def plain_network(name: ComponentName, model: ModelConfig, weights: Weights) -> nn.Module:
    """The network of a component with its weights, FP32, on the CPU; :data:`METHOD_OF` says what of it to call."""
    network = make_network(NETWORK_OF[name], model)
    network.load_state_dict(weights.state_dict(NETWORK_OF[name]), strict=True, assign=True)
    return network.float().requires_grad_(False).eval()


def data_file(path: Path) -> Path:
    """The file beside a graph that holds its weights."""
    return path.with_name(f"{path.name}.data")


# Tracing ----------------------------------------------------------------------------------------------------


class _Traced(nn.Module):
    """A component as one module whose tensors are named after their network."""

    def __init__(self, name: ComponentName, network: nn.Module) -> None:
        super().__init__()
        self.add_module(NETWORK_OF[name], network)
        self._call: Callable[..., Tensor | tuple[Tensor, ...]] = getattr(network, METHOD_OF[name])

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self._call(*inputs)


def trace(name: ComponentName, model: ModelConfig, window: Window, precision: Precision) -> ir.Model:
    """A component's graph without weights: initializers have names, types and shapes, but no values."""
    described = component(name, model, window, precision)
    module = _meta_module(name, model, precision)
    with _quiet():
        exported = torch.export.export(module, _meta_inputs(described), strict=False)
        program = torch.onnx.export(
            exported,
            opset_version=OPSET,
            dynamo=True,
            optimize=False,  # it would transpose and rename weights
            input_names=[tensor.name for tensor in described.inputs],
            output_names=[tensor.name for tensor in described.outputs],
            custom_translation_table=_TRANSLATIONS[precision],
            verbose=False,
        )
    assert program is not None
    graph: ir.Model = program.model
    for value in graph.graph.initializers.values():
        if _is_weight(value):
            value.const_value = None
    return _simplified(graph)


def _meta_module(name: ComponentName, model: ModelConfig, precision: Precision) -> nn.Module:
    network = with_token_epsilons(make_network(NETWORK_OF[name], model))
    return _Traced(name, network.half() if precision == "fp16" else network).eval()


def _meta_inputs(component: Component) -> tuple[Tensor, ...]:
    return tuple(torch.empty(t.shape, dtype=getattr(torch, t.dtype), device="meta") for t in component.inputs)


def _is_weight(value: ir.Value | None) -> bool:
    """Whether a value is a network's tensor, not a constant of the graph."""
    return value is not None and (value.name or "").partition(".")[0] in NETWORK_OF.values()


_SIMPLIFICATIONS = (
    rules.reshape_reshape_rule,
    rules.transpose_transpose_rule,
    rules.no_op_transpose_rule,
    rules.fuse_pad_into_conv_rule,
)


def _simplified(model: ir.Model) -> ir.Model:
    """Fold constants, drop what does nothing, leave weights as they are."""

    def fold(node: ir.Node) -> bool | None:
        return False if any(_is_weight(value) for value in node.inputs) else None

    passes.InlinePass()(model)
    onnxscript.optimizer.fold_constants(model, onnx_shape_inference=True, should_fold=fold)
    onnxscript.rewriter.rewrite(model, _SIMPLIFICATIONS)
    for simplify in (
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.IdentityEliminationPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.ClearMetadataAndDocStringPass(),  # stack traces of whoever exported
    ):
        simplify(model)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep PyTorch's remarks on packages that are not needed here from the user's terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# How PyTorch's operations are written in ONNX where the exporter's own way is not the best one -----------------


def _linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """``torch.nn.functional.linear`` as one Gemm, which takes the weight as stored: no transposed copy."""
    if len(x.shape) == 2:
        return op.Gemm(x, weight, bias, transB=1)
    flat = op.Reshape(x, op.Constant(value_ints=[-1, x.shape[-1]]))
    y = op.Gemm(flat, weight, bias, transB=1)
    return op.Reshape(y, op.Constant(value_ints=[*x.shape[:-1], weight.shape[0]]))


def _group_norm(
    x: Any, groups: int, weight: Any, bias: Any, eps: float = 1e-5, cudnn_enabled: bool = True
) -> Any:
    """``torch.nn.functional.group_norm`` by InstanceNormalization over groups.

    ONNX Runtime has no kernel for GroupNormalization and expands it with the variance as E[x^2] - E[x]^2, which
    loses 30 times more digits than this one when the mean is 30 standard deviations away, in the same time.
    """
    batch, channels, *rest = x.shape
    grouped = op.Reshape(x, op.Constant(value_ints=[batch, groups, -1]))
    ones, zeros = op.Constant(value_floats=[1.0] * groups), op.Constant(value_floats=[0.0] * groups)
    normed = op.Reshape(
        op.InstanceNormalization(grouped, ones, zeros, epsilon=eps), op.Constant(value_ints=[*x.shape])
    )
    per_channel = op.Constant(value_ints=[channels] + [1] * len(rest))
    return op.Add(op.Mul(normed, op.Reshape(weight, per_channel)), op.Reshape(bias, per_channel))


_Translations = dict[Callable[..., Any], Callable[..., Any]]

# FP16 graphs are for GPUs: there GroupNormalization stays one operation, for which TensorRT has a fused layer.
_TRANSLATIONS: Mapping[Precision, _Translations] = {
    "fp16": {torch.ops.aten.linear.default: _linear},
    "fp32": {torch.ops.aten.linear.default: _linear, torch.ops.aten.group_norm.default: _group_norm},
}


# Writing ----------------------------------------------------------------------------------------------------


def _load(name: ComponentName, model: ModelConfig, weights: Weights, precision: Precision) -> nn.Module:
    """The component in PyTorch: it computes in FP32, with weights rounded to what a graph of ``precision`` holds."""
    network = make_network(NETWORK_OF[name], model)
    network.load_state_dict(weights.state_dict(NETWORK_OF[name]), strict=True, assign=True)
    if precision == "fp16":
        network.half()
    return _Traced(name, network.float().requires_grad_(False).eval())


def _write(graph: ir.Model, module: nn.Module, path: Path, report: Callable[[float], None]) -> None:
    """Save ``graph``, and ``module``'s weights beside it."""
    values = dict(module.named_parameters())
    weights = [value for value in graph.graph.initializers.values() if _is_weight(value)]
    for value in weights:
        value.const_value = _lazy_tensor(value, values[str(value.name)])

    def advance(_: Any, information: Any) -> None:
        report((information.index + 1) / information.total)

    report(0.0)
    ir.save(graph, path, external_data=data_file(path).name, callback=advance)
    for value in weights:
        value.const_value = None  # lets go of the module


def _lazy_tensor(value: ir.Value, source: Tensor) -> ir.LazyTensor:
    """``source`` as ``value``'s type, converted when it is written: there is never a second copy of all weights."""
    kind = value.dtype
    assert kind is not None

    def convert() -> ir.TensorProtocol:
        return ir.tensor(source.numpy().astype(kind.numpy()), name=value.name)

    return ir.LazyTensor(convert, dtype=kind, shape=ir.Shape(source.shape), name=value.name)


def _write_beside(graph: ir.Model, path: Path, other: Path) -> None:
    """Save a graph that reads its weights from the file of ``other``, a graph in the same folder."""
    stored = ir.load(other).graph.initializers
    for value in graph.graph.initializers.values():
        if _is_weight(value):
            value.const_value = stored[str(value.name)].const_value
    ir.save(graph, path)


# Checking ---------------------------------------------------------------------------------------------------


def work(name: ComponentName, model: ModelConfig, window: Window) -> int:
    """Floating-point operations of one evaluation."""
    described = component(name, model, window, "fp32")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        _meta_module(name, model, "fp32")(*_meta_inputs(described))
    return int(counter.get_total_flops())


def work_of_blocks(model: ModelConfig, window: Window) -> dict[str, int]:
    """:func:`work` of a UNet by its blocks: ``input_blocks.3``, ``middle_block``, ``output_blocks.0``, ``out``."""
    described = component("unet", model, window, "fp32")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        _meta_module("unet", model, "fp32")(*_meta_inputs(described))
    places = {
        place.removeprefix("_Traced.unet."): operations
        for place, operations in counter.get_flop_counts().items()
    }
    return {
        place: int(sum(operations.values()))
        for place, operations in places.items()
        if re.fullmatch(r"(in|out)put_blocks\.\d+|middle_block|out", place)
    }


def small_window(window: Window) -> Window:
    """The least window that exercises everything: three frames at most, height and width different."""
    return replace(
        window,
        frames=min(window.frames, 3),
        height=window.step + window.row_remainder,
        width=2 * window.step,
    )


def require_same_operations(name: ComponentName, graph: ir.Model, probe: ir.Model) -> None:
    """Make sure that what was checked on ``probe`` holds for ``graph``.

    Raises:
        BuildError: they differ in more than the numbers of shapes.
    """
    for number, (ours, theirs) in enumerate(zip_longest(_operations(graph), _operations(probe))):
        if ours != theirs:
            raise BuildError(
                f"{name}: operation {number} of the graph is not the one that would be checked on a small window "
                f"({ours} and {theirs}); choose a window with at least three frames"
            )


def _operations(model: ir.Model) -> Iterator[tuple[Any, ...]]:
    """Every operation with its attributes and where its inputs come from, without the numbers of shapes."""
    origin: dict[ir.Value, Any] = {value: ("input", value.name) for value in model.graph.inputs}
    for value in model.graph.initializers.values():
        if _is_weight(value):
            origin[value] = ("weight", value.name)
        elif value.dtype == ir.DataType.INT64:
            origin[value] = ("shape", value.shape)
        else:
            assert value.const_value is not None
            origin[value] = ("constant", value.const_value.numpy().tolist())
    for number, node in enumerate(model.graph):
        origin |= {value: (number, index) for index, value in enumerate(node.outputs)}
        attributes = sorted((key, str(attribute.value)) for key, attribute in node.attributes.items())
        yield node.op_identifier(), attributes, [value and origin[value] for value in node.inputs]


def _run_pytorch(module: nn.Module, inputs: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """Run in FP32; all outputs."""
    tensors = [torch.from_numpy(value) for value in inputs.values()]
    with torch.inference_mode():
        output = module(*(tensor.float() if tensor.is_floating_point() else tensor for tensor in tensors))
    return [each.numpy() for each in (output if isinstance(output, tuple) else (output,))]


def _run_onnx(
    name: ComponentName, path: Path, inputs: Mapping[str, npt.NDArray[Any]]
) -> list[npt.NDArray[Any]]:
    """Run with ONNX Runtime on a CPU; all outputs.

    There it computes FP16 operations in FP32 and drops some of the casts between them. So for an FP16 graph this
    shows that the graph is right and its result finite, not that no value inside overflows FP16: engines are
    compared with this where they run (``v2v-build-engines --verify``).
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.disable_prepacking", "1")  # it would hold the weights twice
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return [np.asarray(output) for output in session.run(None, dict(inputs))]
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        raise BuildError(f"{name}: ONNX Runtime cannot run the exported graph: {error}") from error
