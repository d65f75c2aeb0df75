"""What engines are compared with: PyTorch running the same networks in the same pipeline, uncompiled and compiled.

``eager`` has the reference's precisions. On a GPU its UNet is in half and runs, as the decoder does, under FP16
autocast, while the text encoder and the VAE's encoder stay in FP32 (reference, section 3). ``compile`` is what one
line gets: the networks in half under ``torch.compile`` with its defaults. On a CPU both are FP32. The networks are
the exported ones, with PyTorch's scaled dot-product attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from v2v.benchmarks.results import Work
from v2v.core.components import Component, ComponentName, Precision, Window, components
from v2v.core.configs import ModelConfig
from v2v.core.errors import EngineError
from v2v.core.version import __version__
from v2v.engine.backend import BuildOptions
from v2v.engine.manifest import BackendRecord, ComponentRecord, Manifest, Recipe, StoredFile, WeightsRecord
from v2v.engine.store import TOKENIZER, EngineSet, packaged_tokenizer
from v2v.export.weights import Network, Weights, load_weights, make_network

Baseline = Literal["eager", "compile"]

_NETWORK: Mapping[ComponentName, Network] = {
    "text_encoder": "text_encoder",
    "vae_encoder": "autoencoder",
    "unet": "unet",
    "vae_decoder": "autoencoder",
}


@dataclass(frozen=True)
class TorchEngines(EngineSet):
    """The four components in PyTorch, in the shape of an engine set."""

    weights: Weights
    baseline: Baseline

    @classmethod
    def make(
        cls,
        folder: Path,
        baseline: Baseline,
        model: ModelConfig,
        window: Window,
        weights_source: str,
        device: str,
    ) -> TorchEngines:
        """Find the weights; they are read when a component is loaded. ``folder`` gets the tokenizer.

        Raises:
            EngineError: PyTorch has no such device here.
            WeightsError: no weights there.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise EngineError(f"PyTorch {torch.__version__} cannot use CUDA here; leave out --baseline")
        precision: Precision = "fp16" if device == "cuda" else "fp32"
        weights = load_weights(weights_source, model)
        (folder / TOKENIZER).write_bytes(packaged_tokenizer())
        manifest = Manifest(
            recipe=Recipe(
                model,
                WeightsRecord(weights.source, weights.kind, weights.identity),
                window,
                BuildOptions(precision=precision, device=device),
                BackendRecord("pytorch", torch.__version__, {}),
            ),
            components={
                name: ComponentRecord((), component.inputs, component.outputs, 0.0, 0.0, 0.0)
                for name, component in components(model, window, precision).items()
            },
            tokenizer=StoredFile(TOKENIZER, 0, ""),
            seconds=0.0,
            created=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            v2v=__version__,
        )
        return cls(folder, manifest, weights, baseline)

    def load(self, name: ComponentName, device: str) -> TorchEngine:
        """Read one component's weights and put it on ``device``."""
        return TorchEngine(self.component(name), self.weights, self.baseline, device)


class TorchEngine:
    """A network in PyTorch; satisfies :class:`v2v.engine.backend.Engine`."""

    def __init__(self, component: Component, weights: Weights, baseline: Baseline, device: str) -> None:
        self.component, self._device = component, device
        self._half = device == "cuda" and baseline == "eager" and component.name in ("unet", "vae_decoder")
        stored_in_half = device == "cuda" and (baseline == "compile" or component.name == "unet")
        self._type = torch.float16 if stored_in_half else torch.float32
        network = weights.load(_NETWORK[component.name], self._type).to(device)
        call: Callable[..., Tensor] = _call(component.name, network)
        self._call = torch.compile(call) if baseline == "compile" else call

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], stream: int = 0) -> None:
        """See :class:`v2v.engine.backend.Engine`."""
        with ExitStack() as contexts:
            if self._device == "cuda":
                contexts.enter_context(torch.cuda.stream(torch.cuda.ExternalStream(stream)))  # type: ignore[no-untyped-call]
            contexts.enter_context(self._autocast())
            given = [self._tensor(inputs[tensor.name]) for tensor in self.component.inputs]
            result = self._call(*(t.to(self._type) if t.is_floating_point() else t for t in given))
            self._tensor(outputs[self.component.outputs[0].name]).copy_(result)

    def close(self) -> None:
        """Free the network."""

        def closed(*_: Tensor) -> Tensor:
            raise EngineError(f"the engine {self.component.name} is closed")

        self._call = closed

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast("cuda", torch.float16) if self._half else nullcontext()

    def _tensor(self, array: Any) -> Tensor:
        """The same memory as a tensor."""
        return torch.as_tensor(array, device="cuda") if self._device == "cuda" else torch.from_numpy(array)


def _call(name: ComponentName, network: nn.Module) -> Callable[..., Tensor]:
    method = {"vae_encoder": "encode", "vae_decoder": "decode"}.get(name, "forward")
    call: Callable[..., Tensor] = getattr(network, method)
    return call


def work(model: ModelConfig, window: Window, precision: Precision) -> Iterator[Work]:
    """Count what one call of each component computes and moves; see :class:`v2v.benchmarks.results.Work`.

    Shapes alone decide, so the networks run without memory (on PyTorch's ``meta`` device).
    """
    kept = torch.float16 if precision == "fp16" else torch.float32
    for name, component in components(model, window, precision).items():
        network = make_network(_NETWORK[name], model).to(kept).eval()
        inputs = [
            torch.empty(t.shape, dtype=getattr(torch, t.dtype), device="meta") for t in component.inputs
        ]
        with torch.no_grad(), _Traffic() as traffic, _WholeAttention(traffic):
            _call(name, network)(*inputs)
        yield Work(model.name, str(window), precision, name, float(traffic.flops), float(traffic.bytes))


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
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


class _WholeAttention(TorchFunctionMode):
    """Attention is one piece of work: its scores never leave the chip."""

    def __init__(self, traffic: _Traffic) -> None:
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
