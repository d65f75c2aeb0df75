"""Machine code and weights -> an engine."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from v2v.core.components import Component, inputs_behind, shared_inputs
from v2v.core.errors import EngineError, first_line
from v2v.engine.backend import Engine, Prompted, checked
from v2v.engine.inductor.torch_internals import open_package, quiet


class InductorEngine(Engine):
    """Code and weights of a component; of a UNet of two pieces the first, which takes no prompt, runs once a step.

    On CUDA the first run on a stream asks for memory and chooses kernels; later ones find both, so that they can be
    captured in a CUDA graph. That memory is the engine's own until it is closed: a captured graph may keep using it.
    Evaluations that are captured one after another keep their own arrays: every kernel of a package is a launch, whose
    parameters CUDA copies into the graph, and nothing that they point to is the host's.
    """

    def __init__(self, component: Component, files: list[Path], device: str) -> None:
        import v2v.engine.inductor.fused.convolution  # noqa: F401  # registers the operator that packages call by name

        self.component = component
        self._device = device
        *codes, weights = files
        try:
            with quiet():
                self._weights = _load(component, weights, device)
                self._runners = [open_package(code) for code in codes]
                for runner in self._runners:
                    names = runner.get_constant_fqns()
                    constants = {name: self._weights[name] for name in names if name in self._weights}
                    inactive, complete, user_managed = False, True, True
                    runner.load_constants(constants, inactive, complete, user_managed)
        except (RuntimeError, SafetensorError, OSError) as error:
            raise EngineError(f"{codes[0]} does not load in PyTorch: {first_line(error)}") from error
        self._pool: Any = torch.cuda.MemPool() if device == "cuda" else None
        self._tensor = functools.lru_cache(maxsize=64)(_device_tensor)

    def run(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], stream: int = 0) -> None:
        """See :class:`v2v.engine.backend.Engine`.

        Raises:
            EngineError: an array is missing or has another type or shape; the engine is closed; or PyTorch
                fails, for want of memory for example.
        """
        self.run_prompts({}, [(inputs, outputs)], stream)

    def run_prompts(self, common: Mapping[str, Any], prompts: Sequence[Prompted], stream: int = 0) -> None:
        """See :class:`v2v.engine.backend.Engine`; raises as :meth:`run` does."""
        evaluations = [
            (
                tuple(self._wrap(tensor, {**common, **inputs}) for tensor in self.component.inputs),
                [self._wrap(tensor, outputs) for tensor in self.component.outputs],
            )
            for inputs, outputs in prompts
        ]
        try:
            with self._queued_on(stream):
                shared = self._unprompted(evaluations[0][0])
                for tensors, targets in evaluations:
                    for target, result in zip(targets, self._prompted(shared, tensors), strict=True):
                        target.copy_(result)
        except RuntimeError as error:
            raise EngineError(f"{self.component.name} failed in PyTorch: {first_line(error)}") from error

    def evaluate(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        """Run on tensors of the engine's device; all outputs."""
        return self._prompted(self._unprompted(inputs), inputs)

    def close(self) -> None:
        """Free code, weights and scratch memory."""
        self._runners = []
        self._weights = {}
        self._pool = None

    def _unprompted(self, tensors: tuple[Tensor, ...]) -> list[Tensor]:
        """The first inputs of the last piece of code: what the piece before it returns, if there is one."""
        if len(self._runners) < 2:
            return []
        return self._call(self._runners[0], [tensors[n] for n in shared_inputs(self.component)])

    def _prompted(self, shared: list[Tensor], tensors: tuple[Tensor, ...]) -> list[Tensor]:
        if not self._runners:
            raise EngineError(f"the engine {self.component.name} is closed")
        behind = [tensors[n] for n in inputs_behind(self.component)] if shared else tensors
        return self._call(self._runners[-1], [*shared, *behind])

    @staticmethod
    def _call(runner: Any, tensors: list[Tensor]) -> list[Tensor]:
        with torch.inference_mode():
            results: list[Tensor] = runner.boxed_run(tensors)
        return results

    @contextmanager
    def _queued_on(self, stream: int) -> Iterator[None]:
        if self._device != "cuda":
            yield
            return
        external: Any = torch.cuda.ExternalStream
        outside = external(stream) if stream else torch.cuda.default_stream()
        with torch.cuda.stream(outside), torch.cuda.use_mem_pool(self._pool):
            yield

    def _wrap(self, tensor: Any, arrays: Mapping[str, Any]) -> Tensor:
        """The caller's memory as a tensor."""
        array = checked(self.component, tensor, arrays)
        if self._device == "cuda":
            wrapped: Tensor = self._tensor(int(array.pointer), tensor.shape, tensor.dtype)
            return wrapped
        return torch.from_numpy(array)


def _load(component: Component, path: Path, device: str) -> dict[str, Tensor]:
    with safe_open(path, framework="pt", device=device) as file:
        built_for = (file.metadata() or {}).get("component")
        if built_for != json.dumps(asdict(component)):
            raise EngineError(f"{path} is not the {component.name} expected: it was built for {built_for}")
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


class _Memory:
    """Device memory in the form that PyTorch takes without copying."""

    def __init__(self, pointer: int, shape: tuple[int, ...], dtype: str) -> None:
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": np.dtype(dtype).str,
            "data": (pointer, False),
            "strides": None,
            "version": 2,  # no stream: the caller queues everything on one
        }


def _device_tensor(pointer: int, shape: tuple[int, ...], dtype: str) -> Tensor:
    return torch.as_tensor(_Memory(pointer, shape, dtype), device="cuda")
