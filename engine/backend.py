"""The interface that every backend implements: compile a component's graph, load it, run it.

A backend is a module with one class that satisfies :class:`Backend`; ``BACKENDS`` names them all. A backend's
heavy library is imported when the class is made, never when this module is.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from v2v.core.components import (
    Component,
    ComponentName,
    Precision,
    Tensor,
    Window,
    component,
    component_names,
)
from v2v.core.configs import ModelConfig
from v2v.core.errors import BuildError, EngineError
from v2v.core.progress import PhaseProgress
from v2v.core.samples import Arrays


class Buffer(Protocol):
    """Device memory that an engine reads or writes (on a CPU a C-contiguous NumPy array takes its place)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...

    @property
    def pointer(self) -> int: ...


def checked(component: Component, tensor: Tensor, arrays: Mapping[str, Any]) -> Any:
    """The array of ``arrays`` for ``tensor``, which is exactly as described.

    Raises:
        EngineError: it is missing, has another type or shape, or is a NumPy array that is not C-contiguous.
    """
    array = arrays.get(tensor.name)
    if array is None:
        raise EngineError(f"{component.name} needs an array for '{tensor.name}'")
    if tuple(array.shape) != tensor.shape or np.dtype(array.dtype) != np.dtype(tensor.dtype):
        raise EngineError(
            f"'{tensor.name}' of {component.name} must be {tensor.dtype} {list(tensor.shape)}, "
            f"not {np.dtype(array.dtype)} {list(array.shape)}"
        )
    if isinstance(array, np.ndarray) and not array.flags.c_contiguous:
        raise EngineError(f"'{tensor.name}' of {component.name} must be C-contiguous")
    return array


class Compatibility(NamedTuple):
    """Whether something fits, and if not, why not."""

    fits: bool
    reason: str = ""
    rebuild: bool = True  # whether building it anew here would help


@dataclass(frozen=True)
class BuildOptions:
    """The options of a build: those that every backend has, and ``extra``, a backend's own.

    ``extra`` are as ``--option NAME=VALUE`` gives them; the backend reads and checks them.
    """

    precision: Precision = "fp32"
    device: str = "cpu"  # "cpu" or "cuda"
    extra: Mapping[str, str] = field(default_factory=dict)
    reuse: bool = False  # a UNet that can go on from the deep features of an earlier evaluation
    # Components in another precision than the rest, in the order of their names.
    mixed: tuple[tuple[ComponentName, Precision], ...] = field(default=(), metadata={"added": True})

    def of(self, name: ComponentName) -> BuildOptions:
        """The options of one component."""
        return replace(self, precision=dict(self.mixed).get(name, self.precision), mixed=())

    def describe(self, model: ModelConfig, window: Window) -> dict[ComponentName, Component]:
        """The components of an engine set of ``model`` that is built so."""
        names = component_names(model, self.reuse)
        return {name: component(name, model, window, self.of(name).precision) for name in names}


MIXABLE: tuple[ComponentName, ...] = ("vae_encoder", "vae_decoder")
"""Components that may have a precision of their own: what goes in and comes out is converted by the runtime anyway, and
a decoder is where half precision overflows. Those that guide the UNet hand it arrays of its own precision."""


class Graph(Protocol):
    """A component as an ONNX file, its weights beside it; see :class:`v2v.export.graphs.Graph`."""

    @property
    def path(self) -> Path: ...

    @property
    def error(self) -> float:
        """Relative L2 error against PyTorch, on random input."""
        ...


@dataclass(frozen=True)
class CheckedGraph:
    """A :class:`Graph` that needs no other check than that of the graph it was made of."""

    path: Path
    error: float = 0.0


class Rehearsal(Protocol):
    """A component on a small window, given what it is given in a run; see :class:`v2v.export.ranges.Rehearsal`."""

    @property
    def component(self) -> Component: ...

    @property
    def graph(self) -> Path: ...

    @property
    def runs(self) -> Sequence[tuple[Arrays, Arrays]]:
        """Inputs and outputs, the latter in FP32."""
        ...

    @property
    def largest(self) -> Mapping[str, float]:
        """The largest magnitude that each product is given, by its weight's name in the graph."""
        ...


def _no_rehearsal() -> Rehearsal:
    raise BuildError(
        "there are no weights to rehearse a component with: leave out --option fp8=yes or bf16=yes"
    )


@dataclass(frozen=True)
class Source:
    """A component to compile. A backend calls what it needs of the functions, and only what it calls is made."""

    component: Component
    model: ModelConfig
    window: Window
    precision: Precision
    graph: Callable[[], Graph]  # exports it
    network: Callable[
        [], Any
    ]  # the torch.nn.Module that ``v2v.export`` defines, with its weights, FP32, on the CPU
    rehearsal: Callable[[], Rehearsal] = _no_rehearsal  # what it writes may be thrown away


@dataclass(frozen=True)
class Compiled:
    """The result of compiling a component."""

    files: list[Path]  # the one to load first
    error: float  # relative L2 error against PyTorch in FP32, on random input


Prompted = tuple[Mapping[str, Any], Mapping[str, Any]]
"""The inputs and the outputs that differ from one prompt to the next."""


class Engine(Protocol):
    """A compiled component, ready to run on one device. What runs one inherits from it."""

    component: Component

    def run(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], stream: int = 0) -> None:
        """Read ``inputs``, write ``outputs``; both as described by :attr:`component`.

        On a CPU the values are C-contiguous NumPy arrays and the call returns when the outputs are written.
        On CUDA they are device arrays (``shape``, ``dtype``, ``pointer``), the work is queued on ``stream``.
        A run may be captured in a CUDA graph after one with the same arrays outside; what was captured goes on using
        its own arrays, whatever runs, captured or not, come after it.
        """
        ...

    def run_prompts(self, common: Mapping[str, Any], prompts: Sequence[Prompted], stream: int = 0) -> None:
        """As :meth:`run` for each of ``prompts``, with the inputs ``common`` to all of them.

        One after the other; an engine may compute only once what no prompt changes.
        """
        for inputs, outputs in prompts:
            self.run({**common, **inputs}, outputs, stream)

    def layer_seconds(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], stream: int = 0
    ) -> dict[str, float]:
        """As :meth:`run`, and wait for it; returns how long each layer took, by the library's names.

        Raises:
            EngineError: the library does not tell; or as :meth:`run`.
        """
        raise EngineError(f"the backend of {self.component.name} tells no times of layers")

    def close(self) -> None:
        """Free the memory that the engine holds. Calling it twice is harmless."""
        ...


class Engines(Protocol):
    """A model's engines, wherever they come from: all that a run asks of an engine set."""

    @property
    def model(self) -> ModelConfig: ...

    @property
    def window(self) -> Window:
        """What the UNet takes at once."""
        ...

    @property
    def names(self) -> Collection[ComponentName]:
        """The components that there are."""
        ...

    @property
    def tokenizer_path(self) -> Path:
        """A file for the ``tokenizers`` library."""
        ...

    @property
    def facts(self) -> Mapping[str, str]:
        """What the outputs depend on, by names for people: ``model``, ``weights``, ``engines``."""
        ...

    @property
    def command_with_reuse(self) -> str:
        """What builds the same engines with a UNet that can go on from the features of an earlier evaluation."""
        ...

    def load(self, name: ComponentName, device: str) -> Engine:
        """Load a component on ``device`` ("cpu" or "cuda").

        Raises:
            EngineError: it cannot be loaded there.
        """
        ...


@dataclass(frozen=True)
class LooseEngines:
    """Engines outside any engine set, each made by ``make`` when it is loaded; satisfies :class:`Engines`."""

    model: ModelConfig
    window: Window
    components: Mapping[ComponentName, Component]
    tokenizer_path: Path
    facts: Mapping[str, str]
    make: Callable[[Component, str], Engine]  # (component, device)

    @property
    def names(self) -> Collection[ComponentName]:
        """See :class:`Engines`."""
        return self.components.keys()

    @property
    def command_with_reuse(self) -> str:
        """See :class:`Engines`."""
        return f"v2v-build-engines {self.model.name} --reuse"

    def load(self, name: ComponentName, device: str) -> Engine:
        """See :class:`Engines`."""
        return self.make(self.components[name], device)

    @classmethod
    def of(cls, engines: Engines, loaded: Mapping[ComponentName, Engine]) -> LooseEngines:
        """``engines``, but loading gives the engines in ``loaded``, which the caller goes on owning."""
        components = {name: engine.component for name, engine in loaded.items()}
        return cls(
            engines.model,
            engines.window,
            components,
            engines.tokenizer_path,
            engines.facts,
            lambda component, device: loaded[component.name],
        )


class Backend(Protocol):
    """What compiles and runs components."""

    name: str
    version: str  # of the library that compiles and runs
    devices: tuple[str, ...]  # where its engines can run on this machine, best first: "cuda", "cpu"

    def build(self, source: Source, folder: Path, options: BuildOptions, progress: PhaseProgress) -> Compiled:
        """Compile a component into files inside ``folder``; other files there are thrown away afterwards.

        Raises ``BuildError`` when it cannot be compiled, or computes something else than the network.
        """
        ...

    def facts(self, options: BuildOptions) -> dict[str, Any]:
        """What must stay the same for an engine built now to load later: versions, GPU, capability.

        Plain JSON values. Where engines are tied to a GPU, ``gpu`` is its name and ``compute_capability`` is
        like "8.9"; ``label``, a short word such as "sm89" or "portable", becomes part of the set's name; ``fp8`` is
        true where products of the UNet are computed in FP8, ``bf16`` where BF16 takes FP16's place.

        Raises ``BuildError`` for options that the backend does not have or cannot meet.
        """
        ...

    def tolerance(self, name: ComponentName, options: BuildOptions) -> float:
        """Relative L2 error past which a component built so is not that component."""
        ...

    def fits(self, facts: Mapping[str, Any], device: str) -> Compatibility:
        """Whether engines built under ``facts`` load on ``device`` here and now."""
        ...

    def load(self, component: Component, files: list[Path], device: str) -> Engine:
        """Load what :meth:`build` made and check its inputs and outputs against ``component``.

        Raises ``EngineError`` when the files do not hold that component.
        """
        ...


TOLERANCE: dict[Precision, float] = {"fp32": 1e-3, "fp16": 2e-2}
"""Relative L2 error that two correct implementations of a component may have between them."""


# name -> module:class. The order is the order of preference when the user names none; the name is that of the extra
# that installs the backend's library.
BACKENDS = {
    "tensorrt": "v2v.engine.tensorrt.backend:TensorRTBackend",
    "inductor": "v2v.engine.inductor.backend:InductorBackend",
    "onnxruntime": "v2v.engine.onnxruntime.backend:OnnxRuntimeBackend",
}


def backend(name: str) -> Backend:
    """Make the backend called ``name``.

    Raises:
        EngineError: no such backend, or its library is not installed here.
    """
    if name not in BACKENDS:
        raise EngineError(f"there is no backend '{name}'; choose from {', '.join(BACKENDS)}")
    module, _, attribute = BACKENDS[name].partition(":")
    try:
        engine_backend: Backend = getattr(importlib.import_module(module), attribute)()
    except ImportError as error:
        raise EngineError(
            f"backend '{name}' is not installed here ({error}); install it with: pip install 'v2v[{name}]'"
        ) from error
    return engine_backend
