"""PyTorch's compiler ahead of time (AOTInductor): the GPU backend where there is no TensorRT.

It compiles networks, not graphs: on a GPU the UNet and the autoencoder are the fused ones of
:mod:`v2v.engine.inductor.fused`, whose kernels no graph format has names for. A component becomes ``<name>.pt2``, machine code
that nothing compiles again, and ``<name>.safetensors``, its weights, which go from the disk to the device without a
detour. A fused UNet becomes two pieces of code: what no prompt changes, which the two evaluations of a guided step
share, and the rest.
"""

from __future__ import annotations

import copy
import functools
import json
import platform
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from v2v.core.components import Component, ComponentName, is_unet
from v2v.core.configs import ModelConfig
from v2v.engine.backend import (
    FP8_TOLERANCE,
    BuildError,
    BuildOptions,
    Compatibility,
    CompiledModule,
    EngineError,
    Progress,
    Prompted,
    cuda_devices,
    first_line,
)
from v2v.engine.inductor.fused.twins import in_packages

if TYPE_CHECKING:
    from v2v.export.weights import Weights

TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2}
"""Relative L2 error, against the plain network in FP32, past which a component is refused."""

_OPTIONS: dict[str, Any] = {
    "aot_inductor.package_constants_in_so": False,
    # The code around the kernels only queues them; optimising it takes longer than compiling all kernels.
    "aot_inductor.compile_wrapper_opt_level": "O0",
}

if sys.platform == "linux":
    # Some C++ compilers, and what CXX may name, put libstdc++ into whatever they link. With a second one in the process
    # the one in the package finds the locale's facets by the other's numbers: opening it fails, or ends the process,
    # unless what was loaded before gave both the same numbers. Naming PyTorch's first leaves nothing to put in.
    _OPTIONS["aot_inductor.custom_op_libs"] = [":libstdc++.so.6"]

_CUDA_OPTIONS = {
    # Nothing is computed on the CPU: finding out what vectors it has takes a minute, most of a small component's build.
    "cpp.vec_isa_ok": False,
}

FP8_CAPABILITY = (8, 9)
"""Of the first GPUs whose matrix units take e4m3."""

_CHOICES = {"fused": "networks made of few operations with kernels of their own", "fp8": "products in FP8"}
"""Options of this backend, each yes or no; on a GPU ``fused`` is yes where nothing is said."""


class InductorBackend:
    """Satisfies :class:`v2v.engine.backend.Backend` and :class:`v2v.engine.backend.ModuleCompiler`."""

    name = "inductor"

    def __init__(self) -> None:
        self.version = torch.__version__.partition("+")[0]
        gpu = cuda_devices() > 0 and torch.cuda.is_available() and find_spec("triton") is not None
        self.devices: tuple[str, ...] = ("cuda", "cpu") if gpu else ("cpu",)

    def build(
        self, component: Component, graph: Path, folder: Path, options: BuildOptions, progress: Progress
    ) -> list[Path]:
        """Refuse: see :meth:`build_module`.

        Raises:
            BuildError: always.
        """
        raise BuildError(f"backend inductor compiles networks, not graphs such as {graph.name}")

    def build_module(
        self,
        component: Component,
        model: ModelConfig,
        weights: Weights,
        folder: Path,
        options: BuildOptions,
        progress: Progress,
    ) -> CompiledModule:
        """Compile one of ``model``'s components and compare it with the plain network in FP32.

        Raises:
            BuildError: no such device here, the compiler fails, or its numbers are wrong.
        """
        if options.device not in self.devices:
            raise BuildError(f"PyTorch {torch.__version__} has no {options.device} here to compile for")
        self._check(options)
        if options.fp8:
            _check_fp8_model(model)
        started = time.monotonic()
        plain = _plain(component.name, model, weights)
        inputs = _sample_inputs(component, model, options.device)
        module = _to_compile(component.name, model, plain, options)
        made_ready = time.monotonic() - started
        try:
            with (
                torch.inference_mode(False),
                torch.no_grad(),
                _quiet(),
                _remembered_analyses(),
                in_packages(),
            ):
                codes, constants, tracing_seconds = _compile(
                    _pieces(component.name, module, inputs, folder), options.device, progress
                )
        except Exception as error:  # a compiler's errors have no common class
            advice = "; --option fused=no compiles the plain network instead" if _fuse(options) else ""
            raise BuildError(
                f"{component.name} does not compile in PyTorch: {first_line(error)}{advice}"
            ) from error
        del module
        files = [*codes, _save(component, codes, constants)]
        del constants
        progress("checking", 0.0)
        engine = self.load(component, files, options.device)
        found = engine.evaluate(inputs)
        engine.close()
        expected = _reference(plain, inputs, options.device)
        difference = max(map(_relative_error, found, expected))
        fp8 = options.fp8 and is_unet(component.name)
        tolerance = FP8_TOLERANCE if fp8 else TOLERANCE[options.precision]
        if not difference <= tolerance:
            raise BuildError(
                f"{component.name}: the compiled component differs from PyTorch by {difference:.1e} (relative), "
                f"more than the {tolerance:.0e} allowed; it was not kept"
            )
        progress("checking", 1.0)
        return CompiledModule(files, difference, made_ready + tracing_seconds)

    def facts(self, options: BuildOptions) -> dict[str, Any]:
        """Machine code needs the PyTorch it was made by, and the GPU or the CPU's instructions.

        Raises:
            BuildError: ``options`` ask for what this backend or this GPU does not have.
        """
        self._check(options)
        if options.device == "cuda" and "cuda" in self.devices:
            capability = ".".join(map(str, torch.cuda.get_device_capability()))
            return {
                "torch": torch.__version__,
                "gpu": torch.cuda.get_device_name(),
                "compute_capability": capability,
                "label": f"sm{capability.replace('.', '')}",
            }
        return {"torch": torch.__version__, "cpu": _cpu(), "label": _cpu().split()[-1].lower()}

    def _check(self, options: BuildOptions) -> None:
        for key, value in options.extra.items():
            if key not in _CHOICES or value not in ("yes", "no"):
                known = ", ".join(f"{choice}=yes|no ({what})" for choice, what in _CHOICES.items())
                raise BuildError(f"backend inductor has no option {key}={value}; it has {known}")
        if not options.fp8:
            return
        if options.device != "cuda" or options.precision != "fp16":
            raise BuildError(
                "--option fp8=yes computes parts of an FP16 UNet on a GPU: it needs --device cuda --precision fp16, "
                f"not {options.device} and {options.precision}"
            )
        if not _fuse(options):
            raise BuildError("--option fp8=yes is a choice of the fused network: leave out --option fused=no")
        if "cuda" in self.devices and torch.cuda.get_device_capability() < FP8_CAPABILITY:
            have, need = (".".join(map(str, c)) for c in (torch.cuda.get_device_capability(), FP8_CAPABILITY))
            raise BuildError(
                f"{torch.cuda.get_device_name()} has no FP8 (its compute capability is {have}, FP8 came with "
                f"{need}): leave out --option fp8=yes"
            )

    def fits(self, facts: Mapping[str, Any], device: str) -> Compatibility:
        """Whether the machine code of a set runs here."""
        if device not in self.devices:
            return Compatibility(False, f"PyTorch {torch.__version__} does not run on {device} here")
        if ("gpu" in facts) != (device == "cuda"):
            return Compatibility(False, f"it was compiled for {'cuda' if 'gpu' in facts else 'cpu'}")
        here = self.facts(BuildOptions(device=device))
        for fact, what in (
            ("torch", "PyTorch"),
            ("compute_capability", "compute capability"),
            ("cpu", "CPU instructions"),
        ):
            if facts.get(fact) != here.get(fact):
                return Compatibility(False, f"it needs {what} {facts.get(fact)}, here is {here.get(fact)}")
        return Compatibility(True)

    def load(self, component: Component, files: list[Path], device: str) -> InductorEngine:
        """Load machine code and weights.

        Raises:
            EngineError: the files do not hold ``component``, or PyTorch cannot load them.
        """
        return InductorEngine(component, files, device)


class InductorEngine:
    """Satisfies :class:`v2v.engine.backend.Engine`.

    Also satisfies :class:`v2v.engine.backend.SharingEngine`.

    On CUDA the first run on a stream asks for memory and chooses kernels; later ones find both, so that they can be
    captured in a CUDA graph. That memory is the engine's own until it is closed: a captured graph may keep using it.
    """

    def __init__(self, component: Component, files: list[Path], device: str) -> None:
        import v2v.engine.inductor.fused.convolution  # noqa: F401  # registers the operator that packages call by name

        self.component = component
        self._device = device
        *codes, weights = files
        try:
            with _quiet():
                self._weights = _load(component, weights, device)
                self._runners = [_open(code) for code in codes]
                for runner in self._runners:
                    asked = runner.get_constant_fqns()
                    own = {name: self._weights[name] for name in asked if name in self._weights}
                    inactive, complete, user_managed = False, True, True
                    runner.load_constants(own, inactive, complete, user_managed)
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
        """See :class:`v2v.engine.backend.SharingEngine`; raises as :meth:`run` does."""
        every = [
            (
                tuple(self._wrap(tensor, {**common, **inputs}) for tensor in self.component.inputs),
                [self._wrap(tensor, outputs) for tensor in self.component.outputs],
            )
            for inputs, outputs in prompts
        ]
        try:
            with self._queued_on(stream):
                shared = self._unprompted(every[0][0])
                for tensors, targets in every:
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
        """What the last piece of code takes in the place of the first input: that, if there is no other piece."""
        return self._call(self._runners[0], [*tensors[:2]]) if len(self._runners) > 1 else [tensors[0]]

    def _prompted(self, shared: list[Tensor], tensors: tuple[Tensor, ...]) -> list[Tensor]:
        if not self._runners:
            raise EngineError(f"the engine {self.component.name} is closed")
        return self._call(self._runners[-1], [*shared, *tensors[1:]])

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
        array = arrays.get(tensor.name)
        if array is None:
            raise EngineError(f"{self.component.name} needs an array for '{tensor.name}'")
        if tuple(array.shape) != tensor.shape or np.dtype(array.dtype) != np.dtype(tensor.dtype):
            raise EngineError(
                f"'{tensor.name}' of {self.component.name} must be {tensor.dtype} {list(tensor.shape)}, "
                f"not {array.dtype} {list(array.shape)}"
            )
        if self._device == "cuda":
            wrapped: Tensor = self._tensor(int(array.pointer), tensor.shape, tensor.dtype)
            return wrapped
        if not array.flags.c_contiguous:
            raise EngineError(f"'{tensor.name}' of {self.component.name} must be C-contiguous")
        return torch.from_numpy(array)


# Building ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Piece:
    """A part of a component that is compiled on its own."""

    module: nn.Module
    inputs: tuple[Any, ...]  # of that module
    path: Path


def _pieces(name: ComponentName, module: Any, inputs: tuple[Tensor, ...], folder: Path) -> list[_Piece]:
    """In the order in which they run; all but the last take what no prompt changes."""
    if not hasattr(module, "unprompted"):
        return [_Piece(module, inputs, folder / f"{name}.pt2")]
    latents, timestep, *prompted = inputs
    kept = module.unprompted(latents, timestep)
    return [
        _Piece(_Method(module, "unprompted"), (latents, timestep), folder / f"{name}.unprompted.pt2"),
        _Piece(_Method(module, "prompted"), (kept, timestep, *prompted), folder / f"{name}.prompted.pt2"),
    ]


def _compile(
    pieces: list[_Piece], device: str, progress: Progress
) -> tuple[list[Path], dict[str, Tensor], float]:
    """Machine code of each piece, what constants they read, and the seconds that tracing took."""
    chosen = {**_OPTIONS, **(_CUDA_OPTIONS if device == "cuda" else {})}
    constants: dict[str, Tensor] = {}
    seconds = 0.0
    for number, piece in enumerate(pieces):
        progress("tracing", number / len(pieces))
        started = time.monotonic()
        program = torch.export.export(piece.module, piece.inputs, strict=False)
        seconds += time.monotonic() - started
        progress("compiling", number / len(pieces))
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(piece.path), inductor_configs=chosen
        )
        named = {**program.state_dict, **program.constants}
        constants |= {name: value for name, value in named.items() if isinstance(value, Tensor)}
    return [piece.path for piece in pieces], constants, seconds


def _plain(name: ComponentName, model: ModelConfig, weights: Weights) -> _Method:
    """The component as ``v2v.export`` defines it, in FP32 on the CPU."""
    from v2v.export.graphs import METHOD_OF, NETWORK_OF
    from v2v.export.weights import make_network

    network = make_network(NETWORK_OF[name], model)
    network.load_state_dict(weights.state_dict(NETWORK_OF[name]), strict=True, assign=True)
    return _Method(network.float().requires_grad_(False).eval(), METHOD_OF[name])


class _Method(nn.Module):
    """One method of a network as a module."""

    def __init__(self, network: nn.Module, method: str) -> None:
        super().__init__()
        self.network, self.method = network, method

    def forward(self, *inputs: Any) -> Tensor | tuple[Tensor, ...]:
        output: Tensor | tuple[Tensor, ...] = getattr(self.network, self.method)(*inputs)
        return output


def _to_compile(name: ComponentName, model: ModelConfig, plain: _Method, options: BuildOptions) -> nn.Module:
    """What the compiler gets: on a GPU the fused network, where there is one."""
    network: Any = plain.network
    precision = torch.float16 if options.precision == "fp16" else torch.float32
    fused: nn.Module | None = None
    if _fuse(options) and is_unet(name) and model.unet.groups:
        from v2v.engine.inductor.fused.unet import FusedUNet

        fused = FusedUNet(network, name)
    autoencoder = model.autoencoder
    if _fuse(options) and name.startswith("vae") and autoencoder.groups and autoencoder.attention:
        from v2v.engine.inductor.fused.autoencoder import FusedDecoder, FusedEncoder

        fused = FusedEncoder(network) if name == "vae_encoder" else FusedDecoder(network)
    if fused is None:
        fused = _Method(copy.deepcopy(network), plain.method)
    made: Any = fused.to(options.device, precision).requires_grad_(False).eval()
    if options.fp8 and is_unet(name):
        from v2v.engine.inductor.fused.fp8 import quantise

        quantise(made)
    module: nn.Module = made
    return module


def _check_fp8_model(model: ModelConfig) -> None:
    from v2v.engine.inductor.fused.fp8 import MULTIPLE

    if not model.unet.groups:
        raise BuildError(
            f"model {model.name} has no norms, which keep numbers within FP8's range: leave out --option fp8=yes"
        )
    if model.unet.width % MULTIPLE:
        raise BuildError(
            f"FP8 needs a UNet whose width is a multiple of {MULTIPLE}; that of {model.name} is {model.unet.width}: "
            "leave out --option fp8=yes"
        )


def _fuse(options: BuildOptions) -> bool:
    return options.device == "cuda" and options.extra.get("fused", "yes") != "no"


def _sample_inputs(component: Component, model: ModelConfig, device: str) -> tuple[Tensor, ...]:
    from v2v.export.graphs import sample_inputs

    made = sample_inputs(component, model.text_encoder.vocabulary)
    return tuple(torch.from_numpy(made[tensor.name]).to(device) for tensor in component.inputs)


def _reference(plain: nn.Module, inputs: tuple[Tensor, ...], device: str) -> list[Tensor]:
    """The plain network's outputs in FP32, or in half where a GPU has no room (about 40 GB at full size, estimated)."""
    plain = plain.to(device)
    try:
        return _evaluate(plain, inputs, torch.float32)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return _evaluate(plain.half(), inputs, torch.float16)


def _evaluate(module: nn.Module, inputs: tuple[Tensor, ...], precision: torch.dtype) -> list[Tensor]:
    with torch.inference_mode():
        outputs = module(*(x.to(precision) if x.is_floating_point() else x for x in inputs))
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _relative_error(found: Tensor, expected: Tensor) -> float:
    difference = found.double() - expected.double()
    return float(difference.norm() / expected.double().norm())


@contextmanager
def _remembered_analyses() -> Iterator[None]:
    """Let PyTorch find out only once what a Triton kernel writes to, not at each of its hundreds of calls."""
    from torch._higher_order_ops import triton_kernel_wrap as wrap

    names = [n for n in ("identify_mutated_tensors", "identify_accessed_tensors") if hasattr(wrap, n)]
    originals = {name: getattr(wrap, name) for name in names}

    def remembering(analyse: Any) -> Any:
        known: dict[Any, Any] = {}

        def look_up(kernel: Any, arguments: Any, descriptors: Any) -> Any:
            function = kernel
            while not hasattr(function, "params"):
                function = function.fn
            constants = {p.name for p in function.params if p.is_constexpr}
            described = tuple(
                (name, value if name in constants else str(type(value))) for name, value in arguments.items()
            )
            key = (id(kernel), described, str(descriptors))
            if key not in known:
                known[key] = analyse(kernel, arguments, descriptors)
            return known[key]

        return look_up

    for name in names:
        setattr(wrap, name, remembering(originals[name]))
    try:
        yield
    finally:
        for name in names:
            setattr(wrap, name, originals[name])


# Files ------------------------------------------------------------------------------------------------------


def _open(code: Path) -> Any:
    """Load machine code without ``aoti_load_package``.

    That imports PyTorch's compiler, which takes seconds, and finds out what vectors the CPU has, which on a machine
    that has not done so before means running a C++ compiler for up to a minute.
    """
    package, single_threaded, runners, current_gpu = str(code), True, 1, -1
    return torch._C._aoti.AOTIModelPackageLoader(package, "model", single_threaded, runners, current_gpu)


def _save(component: Component, codes: list[Path], constants: Mapping[str, Tensor]) -> Path:
    """Write the weights that ``codes`` ask for, in the order they name them, and what they belong to."""
    with _quiet():
        names = dict.fromkeys(name for code in codes for name in _open(code).get_constant_fqns())
    path = codes[0].with_name(f"{component.name}.safetensors")
    described = json.dumps(asdict(component))
    save_file({name: constants[name].contiguous() for name in names}, path, metadata={"component": described})
    return path


def _load(component: Component, path: Path, device: str) -> dict[str, Tensor]:
    with safe_open(path, framework="pt", device=device) as file:
        found = (file.metadata() or {}).get("component")
        if found != json.dumps(asdict(component)):
            raise EngineError(f"{path} is not the {component.name} expected: it was built for {found}")
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


# Small things -----------------------------------------------------------------------------------------------


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


def _cpu() -> str:
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep PyTorch's remarks on its own interfaces from the user's terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
