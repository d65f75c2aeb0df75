"""What engines are compared with: PyTorch running the same networks in the same pipeline, uncompiled and compiled.

``eager`` has the reference's precisions. On a GPU its UNet is in half and runs, as the decoder does, under FP16
autocast, while the text encoder and the VAE's encoder stay in FP32 (reference, section 3). ``compile`` is what one
line gets: the networks in half under ``torch.compile`` with its defaults. On a CPU both are FP32. The networks are
the exported ones, with PyTorch's scaled dot-product attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from v2v.benchmarks.results import Work
from v2v.core.components import (
    Component,
    ComponentName,
    Precision,
    Window,
    components,
    inputs_behind,
    shared_inputs,
)
from v2v.core.configs import ModelConfig
from v2v.core.errors import EngineError
from v2v.engine.backend import Engine, LooseEngines, Prompted
from v2v.engine.store import TOKENIZER, packaged_tokenizer
from v2v.export.weights import METHOD_OF, NETWORK_OF, Weights, make_network

Baseline = Literal["eager", "compile"]


def baseline_engines(
    folder: Path, baseline: Baseline, model: ModelConfig, window: Window, weights: Weights, device: str
) -> LooseEngines:
    """The four components in PyTorch; weights are read when a component is loaded. ``folder`` gets the tokenizer.

    Raises:
        EngineError: PyTorch has no such device here.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise EngineError(f"PyTorch {torch.__version__} cannot use CUDA here; leave out --baseline")

    def make(component: Component, target: str) -> Engine:
        half = target == "cuda" and (baseline == "compile" or component.name == "unet")
        dtype = torch.float16 if half else torch.float32
        return TorchEngine(
            component,
            weights.load(NETWORK_OF[component.name], dtype).to(target),
            target,
            dtype,
            autocast=target == "cuda" and baseline == "eager" and component.name in ("unet", "vae_decoder"),
            compiled=baseline == "compile",
        )

    return LooseEngines(
        model,
        window,
        components(model, window, "fp16" if device == "cuda" else "fp32"),
        _tokenizer_in(folder),
        {
            "model": model.name,
            "weights": f"{weights.kind} {weights.identity[:16]}",
            "engines": f"pytorch-{baseline}",
        },
        make,
    )


def engines_of(
    networks: Mapping[str, nn.Module],
    folder: Path,
    model: ModelConfig,
    window: Window,
    precision: Precision,
    *,
    reuse: bool = False,
) -> LooseEngines:
    """Networks, on their device already, by the names of components or of networks; ``folder`` gets the tokenizer."""

    def make(component: Component, device: str) -> Engine:
        name = component.name
        return TorchEngine(component, networks[name if name in networks else NETWORK_OF[name]], device)

    return LooseEngines(
        model,
        window,
        components(model, window, precision, reuse),
        _tokenizer_in(folder),
        {"model": model.name, "weights": "random", "engines": "pytorch"},
        make,
    )


class TorchEngine(Engine):
    """A network in PyTorch on the runtime's arrays and, on a GPU, its stream.

    Networks that share what no prompt changes do so here as well.

    Args:
        component: what it takes and returns.
        network: on ``device`` already.
        device: "cpu" or "cuda".
        dtype: of the network's own inputs; None where it takes the component's.
        autocast: run under FP16 autocast.
        compiled: run what ``torch.compile`` makes of it.
    """

    def __init__(
        self,
        component: Component,
        network: nn.Module,
        device: str,
        dtype: torch.dtype | None = None,
        *,
        autocast: bool = False,
        compiled: bool = False,
    ) -> None:
        self.component, self._device, self._type, self._half = component, device, dtype, autocast
        call: Any = _call(component.name, network)
        self._call = torch.compile(call) if compiled else call
        self._sharing: Any = network if hasattr(network, "unprompted") else None

    def run(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], stream: int = 0) -> None:
        """See :class:`v2v.engine.backend.Engine`; memory comes from PyTorch's own pool."""
        self.run_prompts({}, [(inputs, outputs)], stream)

    @torch.inference_mode()
    def run_prompts(self, common: Mapping[str, Any], prompts: Sequence[Prompted], stream: int = 0) -> None:
        """See :class:`v2v.engine.backend.Engine`."""
        shared = None
        with ExitStack() as contexts:
            if self._device == "cuda":
                contexts.enter_context(torch.cuda.stream(torch.cuda.ExternalStream(stream)))  # type: ignore[no-untyped-call]
            contexts.enter_context(torch.autocast("cuda", torch.float16) if self._half else nullcontext())
            for inputs, outputs in prompts:
                arrays = {**common, **inputs}
                tensors = [self._input(arrays[tensor.name]) for tensor in self.component.inputs]
                if self._sharing is not None:
                    common_places, own_places = shared_inputs(self.component), inputs_behind(self.component)
                    shared = shared or self._sharing.unprompted(*(tensors[n] for n in common_places))
                    results = self._sharing.prompted(shared, *(tensors[n] for n in own_places))
                else:
                    results = self._call(*tensors)
                results = results if isinstance(results, tuple) else (results,)
                for described, result in zip(self.component.outputs, results, strict=True):
                    self._tensor(outputs[described.name]).copy_(result)

    def close(self) -> None:
        """Free the network."""

        def closed(*_: Tensor) -> Tensor:
            raise EngineError(f"the engine {self.component.name} is closed")

        self._call, self._sharing = closed, None

    def _input(self, array: Any) -> Tensor:
        tensor = self._tensor(array)
        return tensor.to(self._type) if self._type is not None and tensor.is_floating_point() else tensor

    def _tensor(self, array: Any) -> Tensor:
        """The same memory as a tensor."""
        return torch.as_tensor(array, device="cuda") if self._device == "cuda" else torch.from_numpy(array)


def _tokenizer_in(folder: Path) -> Path:
    path = folder / TOKENIZER
    path.write_bytes(packaged_tokenizer())
    return path


def _call(name: ComponentName, network: nn.Module) -> Callable[..., Tensor]:
    """What computes the component; a network made for one component alone is called itself."""
    call: Callable[..., Tensor] = getattr(network, METHOD_OF[name], network)
    return call


def work(model: ModelConfig, window: Window, precision: Precision) -> Iterator[Work]:
    """Count what one call of each component computes and moves; see :class:`v2v.benchmarks.results.Work`.

    Shapes alone decide, so the networks run without memory (on PyTorch's ``meta`` device).
    """
    dtype = torch.float16 if precision == "fp16" else torch.float32
    for name, component in components(model, window, precision).items():
        network = make_network(NETWORK_OF[name], model).to(dtype).eval()
        inputs = [
            torch.empty(t.shape, dtype=getattr(torch, t.dtype), device="meta") for t in component.inputs
        ]
        with torch.no_grad(), Traffic() as traffic, WholeAttention(traffic):
            _call(name, network)(*inputs)
        yield Work(model.name, str(window), precision, name, float(traffic.flops), float(traffic.bytes))


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up floating-point operations of, and bytes into and out of, matrix products and convolutions."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.bytes = 0
        self.counts_bytes = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
            if self.counts_bytes:
                self.add(args, kwargs, result)
        return result

    def add(self, *values: Any) -> None:
        """Count every tensor in ``values`` as read or written once."""
        tensors = [value for value in tree_leaves(values) if isinstance(value, Tensor)]
        self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class WholeAttention(TorchFunctionMode):
    """Attention is one piece of work: its scores never leave the chip."""

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self._traffic = traffic

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self._traffic.counts_bytes = False
        result = func(*args, **kwargs)
        self._traffic.counts_bytes = True
        self._traffic.add(args, kwargs, result)
        return result
