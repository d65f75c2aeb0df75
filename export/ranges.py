"""A model's networks on a picture and a prompt: how large their numbers become, which FP16 or FP8 must hold.

They run in FP32 on any CPU, on a small window, whose numbers are no smaller than a large one's. So it is found on the
machine that builds what would else be seen as NaN on the GPU that runs, and what is quantised gets its scales there.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from v2v.core.components import (
    Component,
    ComponentName,
    Precision,
    Window,
    component,
    component_names,
    is_unet,
)
from v2v.core.configs import ModelConfig
from v2v.core.progress import PhaseProgress
from v2v.core.samples import Arrays, Occurring
from v2v.export.graphs import plain_network, small_window, write_graph
from v2v.export.models.layers import GroupNorm, LayerNorm
from v2v.export.weights import METHOD_OF, NETWORK_OF, Weights

LEFT = (1.0, 0.7, 0.4, 0.1)
"""Shares of a run that are still to come, at which a UNet is rehearsed."""


@dataclass(frozen=True)
class Rehearsal:
    """A component on a small window, given what it is given in a run.

    Attributes:
        component: its inputs and outputs there.
        graph: the ``.onnx`` file; nothing was compared with PyTorch.
        runs: inputs and outputs, the latter in FP32; of a UNet at each of :data:`LEFT`.
        largest: the largest magnitude that each product is given in any of them, by its weight's name in the graph.
    """

    component: Component
    graph: Path
    runs: list[tuple[Arrays, Arrays]]
    largest: Mapping[str, float]


def largest_numbers(
    model: ModelConfig, weights: Weights, window: Window, progress: PhaseProgress = lambda phase, share: None
) -> dict[ComponentName, dict[str, float]]:
    """The largest magnitude of every tensor that an FP16 graph would hold in FP16, for each component.

    Tensors are named by the module that makes them and the operation: ``middle_block.0.in_layers.2 conv2d``.
    What norms compute inside is left out: graphs do that in FP32. One network is held at a time.

    Raises:
        WeightsError: the weights do not fit.
    """
    occurring, least = Occurring(model), small_window(window)
    names = component_names(model)
    found: dict[ComponentName, dict[str, float]] = {}
    for number, name in enumerate(names):
        progress("looking for large numbers", number / len(names))
        described = component(name, model, least, "fp32")
        network = plain_network(name, model, weights)
        found[name], outputs = _watched(network, METHOD_OF[name], described, occurring)
        occurring.keep(outputs)
    progress("looking for large numbers", 1.0)
    return found


def rehearse(
    name: ComponentName,
    model: ModelConfig,
    weights: Weights,
    window: Window,
    precision: Precision,
    folder: Path,
    progress: PhaseProgress = lambda phase, share: None,
) -> Rehearsal:
    """Run a component, a UNet at several noise levels, and write its graph for the small window into ``folder``.

    Raises:
        WeightsError: the weights do not fit.
    """
    occurring, least = Occurring(model), small_window(window)
    progress("rehearsing", 0.0)
    for encoder in (each for each in component_names(model) if each.endswith("encoder") and each != name):
        described = component(encoder, model, least, "fp32")
        network = plain_network(encoder, model, weights)
        occurring.keep(_run(network, METHOD_OF[encoder], described, occurring.inputs(described)))
    progress("rehearsing", 0.2)
    whole_name: ComponentName = "unet_full" if is_unet(name) else name  # its outputs are those of every form
    network = plain_network(whole_name, model, weights)
    largest = _watch_products(network, NETWORK_OF[name])
    whole, part = component(whole_name, model, least, "fp32"), component(name, model, least, precision)
    runs = []
    for occurring.left in LEFT if is_unet(name) else LEFT[:1]:
        outputs = _run(network, METHOD_OF[whole_name], whole, occurring.inputs(whole))
        occurring.keep(outputs)
        runs.append((occurring.inputs(part), {tensor.name: outputs[tensor.name] for tensor in part.outputs}))
    progress("rehearsing", 0.8)
    del network
    graph = write_graph(name, model, weights, least, precision, folder)
    progress("rehearsing", 1.0)
    return Rehearsal(part, graph, runs, largest)


def _watch_products(network: nn.Module, prefix: str) -> Mapping[str, float]:
    """Largest magnitudes of what convolutions and linear maps are given from now on, by their weights' names."""
    largest: dict[str, float] = {}

    def note(weight: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        largest[weight] = max(largest.get(weight, 0.0), _magnitude(inputs[0]))

    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.Linear)):
            module.register_forward_pre_hook(partial(note, f"{prefix}.{name}.weight"))
    return largest


def _watched(
    network: nn.Module, method: str, described: Component, occurring: Occurring
) -> tuple[dict[str, float], Arrays]:
    with _Watch(network) as watch:
        outputs = _run(network, method, described, occurring.inputs(described))
    return watch.largest, outputs


def _run(network: nn.Module, method: str, described: Component, inputs: Arrays) -> Arrays:
    with torch.inference_mode():
        result = getattr(network, method)(*(torch.from_numpy(array) for array in inputs.values()))
    results = result if isinstance(result, tuple) else (result,)
    return {tensor.name: value.numpy() for tensor, value in zip(described.outputs, results, strict=True)}


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, notes the largest magnitude of what every operation of ``network`` returns."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest: dict[str, float] = {}
        self._inside: list[tuple[str, nn.Module]] = [(type(network).__name__, network)]
        for name, module in network.named_modules():
            if name:
                module.register_forward_pre_hook(partial(self._enter, name))
                module.register_forward_hook(self._leave)

    def _enter(self, name: str, module: nn.Module, inputs: Any) -> None:
        self._inside.append((name, module))

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._inside.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        place, module = self._inside[-1]
        operation = func.__name__.partition(".")[0]
        if not isinstance(module, (GroupNorm, LayerNorm)) or operation == "to":
            for value in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                    name = f"{place} {operation}"
                    self.largest[name] = max(self.largest.get(name, 0.0), _magnitude(value))
        return result


def _magnitude(value: Tensor) -> float:
    number = float(value.abs().max())
    return number if math.isfinite(number) else sys.float_info.max
