"""How large the numbers of a model's networks become on a picture and a prompt: what FP16 must hold.

It runs in FP32 on any CPU, on a small window, whose numbers are no smaller than a large one's. So it finds on the
machine that builds what would else be seen as NaN on the GPU that runs.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from v2v.core.components import Component, ComponentName, Window, component, component_names
from v2v.core.configs import ModelConfig
from v2v.core.progress import PhaseProgress
from v2v.core.samples import Occurring
from v2v.export.graphs import plain_network, small_window
from v2v.export.models.layers import GroupNorm, LayerNorm
from v2v.export.weights import METHOD_OF, Weights


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


def _watched(
    network: nn.Module, method: str, described: Component, occurring: Occurring
) -> tuple[dict[str, float], dict[str, Any]]:
    inputs = [torch.from_numpy(array) for array in occurring.inputs(described).values()]
    watch = _Watch(network)
    with torch.inference_mode(), watch:
        result = getattr(network, method)(*inputs)
    results = result if isinstance(result, tuple) else (result,)
    arrays = {tensor.name: value.numpy() for tensor, value in zip(described.outputs, results, strict=True)}
    return watch.largest, arrays


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
