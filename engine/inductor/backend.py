"""PyTorch's compiler ahead of time (AOTInductor): the GPU backend where there is no TensorRT.

It compiles networks, not graphs: on a GPU the UNet and the autoencoder are the fused ones of
fused/, whose kernels no graph format has names for. A component becomes ``<name>.pt2``, machine code
that nothing compiles again, and ``<name>.safetensors``, its weights, which go from the disk to the device without a
detour. A fused UNet becomes two pieces of code: what no prompt changes, which the two evaluations of a guided step
share, and the rest.
"""

from __future__ import annotations

import copy
import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from v2v.core.components import Component, ComponentName, inputs_behind, is_unet, shared_inputs
from v2v.core.configs import ModelConfig
from v2v.core.errors import BuildError, first_line
from v2v.core.progress import PhaseProgress
from v2v.core.samples import relative_error, sample_inputs
from v2v.device.gpus import cuda_devices
from v2v.engine import fp8
from v2v.engine.backend import TOLERANCE, BuildOptions, Compatibility, Compiled, Source
from v2v.engine.inductor.runner import InductorEngine
from v2v.engine.inductor.torch_internals import (
    compile_package,
    in_packages,
    open_package,
    quiet,
    remembered_analyses,
)

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


@dataclass(frozen=True)
class InductorOptions:
    """The options that only this backend has, ``v2v-build-engines --option NAME=yes|no``."""

    fused: (
        bool  # networks made of few operations with kernels of their own; on a GPU yes where nothing is said
    )
    fp8: bool = False  # products in FP8

    @classmethod
    def read(cls, options: BuildOptions) -> InductorOptions:
        """Read a build's ``extra`` options.

        Raises:
            BuildError: an option that this backend does not have, or a value other than yes and no.
        """
        meanings = {
            "fused": "networks made of few operations with kernels of their own",
            "fp8": "products in FP8",
        }
        for key, value in options.extra.items():
            if key not in meanings or value not in ("yes", "no"):
                listing = ", ".join(f"{choice}=yes|no ({meaning})" for choice, meaning in meanings.items())
                raise BuildError(f"backend inductor has no option {key}={value}; it has {listing}")
        switches = {key: value == "yes" for key, value in options.extra.items()}
        return cls(fused=switches.get("fused", True), fp8=switches.get("fp8", False))


class InductorBackend:
    """Satisfies :class:`v2v.engine.backend.Backend`."""

    name = "inductor"

    def __init__(self) -> None:
        self.version = torch.__version__.partition("+")[0]
        gpu = cuda_devices() > 0 and torch.cuda.is_available() and find_spec("triton") is not None
        self.devices: tuple[str, ...] = ("cuda", "cpu") if gpu else ("cpu",)

    def build(self, source: Source, folder: Path, options: BuildOptions, progress: PhaseProgress) -> Compiled:
        """Compile a component's network and compare it with the plain one in FP32.

        Raises:
            BuildError: no such device here, the compiler fails, or its numbers are wrong.
        """
        from v2v.export.graphs import TOLERANCE as TOLERANCE_OF_EXPORTS
        from v2v.export.weights import METHOD_OF

        component, model = source.component, source.model
        if options.device not in self.devices:
            raise BuildError(f"PyTorch {torch.__version__} has no {options.device} here to compile for")
        own_options = self._check(options)
        if own_options.fp8:
            fp8.check_model(model)
        plain = _Method(source.network(), METHOD_OF[component.name])
        inputs = _sample_inputs(component, model, options.device)
        module = _to_compile(component.name, model, plain, options, own_options)
        try:
            with (
                torch.inference_mode(False),
                torch.no_grad(),
                quiet(),
                remembered_analyses(),
                in_packages(),
            ):
                codes, constants = _compile(
                    _pieces(component, module, inputs, folder), options.device, progress
                )
        except Exception as error:  # a compiler's errors have no common class
            advice = "; --option fused=no compiles the plain network instead" if own_options.fused else ""
            raise BuildError(
                f"{component.name} does not compile in PyTorch: {first_line(error)}{advice}"
            ) from error
        del module
        files = [*codes, save(component, codes, constants)]
        del constants
        progress("checking", 0.0)
        engine = self.load(component, files, options.device)
        actual = engine.evaluate(inputs)
        engine.close()
        expected = _reference(plain, inputs, options.device)
        difference = max(
            relative_error(output.cpu().numpy(), reference.cpu().numpy())
            for output, reference in zip(actual, expected, strict=True)
        )
        in_fp8 = own_options.fp8 and is_unet(component.name)
        tolerance = fp8.TOLERANCE if in_fp8 else TOLERANCE_OF_EXPORTS[options.precision]
        if not difference <= tolerance:
            raise BuildError(
                f"{component.name}: the compiled component differs from PyTorch by {difference:.1e} (relative), "
                f"more than the {tolerance:.0e} allowed; it was not kept"
            )
        progress("checking", 1.0)
        return Compiled(files, difference)

    def facts(self, options: BuildOptions) -> dict[str, Any]:
        """Machine code needs the PyTorch it was made by, and the GPU or the CPU's instructions.

        Raises:
            BuildError: ``options`` ask for what this backend or this GPU does not have.
        """
        own_options = self._check(options)
        if options.device == "cuda" and "cuda" in self.devices:
            capability = ".".join(map(str, torch.cuda.get_device_capability()))
            return {
                "torch": torch.__version__,
                "gpu": torch.cuda.get_device_name(),
                "compute_capability": capability,
                "label": f"sm{capability.replace('.', '')}",
                **({"fp8": True} if own_options.fp8 else {}),
            }
        return {"torch": torch.__version__, "cpu": _cpu(), "label": _cpu().split()[-1].lower()}

    def tolerance(self, name: ComponentName, options: BuildOptions) -> float:
        """See :class:`v2v.engine.backend.Backend`."""
        return fp8.TOLERANCE if is_unet(name) and self._check(options).fp8 else TOLERANCE[options.precision]

    def _check(self, options: BuildOptions) -> InductorOptions:
        own_options = InductorOptions.read(options)
        if not own_options.fp8:
            return own_options
        fp8.check_options(options)
        if not own_options.fused:
            raise BuildError("--option fp8=yes is a choice of the fused network: leave out --option fused=no")
        if "cuda" in self.devices:
            fp8.check_gpu(torch.cuda.get_device_name(), torch.cuda.get_device_capability())
        return own_options

    def fits(self, facts: Mapping[str, Any], device: str) -> Compatibility:
        """Whether the machine code of a set runs here."""
        if device not in self.devices:
            return Compatibility(False, f"PyTorch {torch.__version__} does not run on {device} here")
        if ("gpu" in facts) != (device == "cuda"):
            return Compatibility(False, f"it was compiled for {'cuda' if 'gpu' in facts else 'cpu'}")
        here = self.facts(BuildOptions(device=device))
        for fact, title in (
            ("torch", "PyTorch"),
            ("compute_capability", "compute capability"),
            ("cpu", "CPU instructions"),
        ):
            if facts.get(fact) != here.get(fact):
                return Compatibility(False, f"it needs {title} {facts.get(fact)}, here is {here.get(fact)}")
        return Compatibility(True)

    def load(self, component: Component, files: list[Path], device: str) -> InductorEngine:
        """Load machine code and weights.

        Raises:
            EngineError: the files do not hold ``component``, or PyTorch cannot load them.
        """
        return InductorEngine(component, files, device)


# Building ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Piece:
    """A part of a component that is compiled on its own."""

    module: nn.Module
    inputs: tuple[Any, ...]  # of that module
    path: Path


def _pieces(component: Component, module: Any, inputs: tuple[Tensor, ...], folder: Path) -> list[_Piece]:
    """The pieces in the order in which they run; the prompt is an input of the last alone."""
    name = component.name
    if not hasattr(module, "unprompted"):
        return [_Piece(module, inputs, folder / f"{name}.pt2")]
    common = tuple(inputs[n] for n in shared_inputs(component))
    behind = (module.unprompted(*common), *(inputs[n] for n in inputs_behind(component)))
    return [
        _Piece(_Method(module, "unprompted"), common, folder / f"{name}.unprompted.pt2"),
        _Piece(_Method(module, "prompted"), behind, folder / f"{name}.prompted.pt2"),
    ]


def _compile(
    pieces: list[_Piece], device: str, progress: PhaseProgress
) -> tuple[list[Path], dict[str, Tensor]]:
    """Machine code of each piece, and the constants that they read, by name."""
    options = {**_OPTIONS, **(_CUDA_OPTIONS if device == "cuda" else {})}
    constants: dict[str, Tensor] = {}
    for number, piece in enumerate(pieces):
        progress("tracing", number / len(pieces))
        program = torch.export.export(piece.module, piece.inputs, strict=False)
        progress("compiling", number / len(pieces))
        compile_package(program, piece.path, options)
        named = {**program.state_dict, **program.constants}
        constants |= {name: value for name, value in named.items() if isinstance(value, Tensor)}
    return [piece.path for piece in pieces], constants


class _Method(nn.Module):
    """One method of a network as a module."""

    def __init__(self, network: nn.Module, method: str) -> None:
        super().__init__()
        self.network, self.method = network, method

    def forward(self, *inputs: Any) -> Tensor | tuple[Tensor, ...]:
        output: Tensor | tuple[Tensor, ...] = getattr(self.network, self.method)(*inputs)
        return output


def _to_compile(
    name: ComponentName,
    model: ModelConfig,
    plain: _Method,
    options: BuildOptions,
    own_options: InductorOptions,
) -> nn.Module:
    """What the compiler gets: on a GPU the fused network, where there is one."""
    network: Any = plain.network
    # Of a decoder that mixes frames there is no fused form.
    fuse = own_options.fused and options.device == "cuda"
    precision = torch.float16 if options.precision == "fp16" else torch.float32
    fused: nn.Module | None = None
    if fuse and is_unet(name) and model.unet.groups:
        from v2v.engine.inductor.fused.unet import FusedUNet

        fused = FusedUNet(network, name)
    autoencoder = model.autoencoder
    mixes = autoencoder.temporal and name == "vae_decoder"
    if fuse and name.startswith("vae") and autoencoder.groups and autoencoder.attention and not mixes:
        from v2v.engine.inductor.fused.autoencoder import FusedDecoder, FusedEncoder

        fused = FusedEncoder(network) if name == "vae_encoder" else FusedDecoder(network)
    if fused is None:
        from v2v.export.models.layers import with_token_epsilons

        fused = _Method(with_token_epsilons(copy.deepcopy(network)), plain.method)
    converted: Any = fused.to(options.device, precision).requires_grad_(False).eval()
    if own_options.fp8 and is_unet(name):
        from v2v.engine.inductor.fused.fp8 import quantise

        quantise(converted)
    module: nn.Module = converted
    return module


def _sample_inputs(component: Component, model: ModelConfig, device: str) -> tuple[Tensor, ...]:
    samples = sample_inputs(component, model.vocabulary)
    return tuple(torch.from_numpy(samples[tensor.name]).to(device) for tensor in component.inputs)


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


# Files ------------------------------------------------------------------------------------------------------


def save(component: Component, codes: list[Path], constants: Mapping[str, Tensor]) -> Path:
    """Write the weights that ``codes`` ask for, in the order they name them, and what they belong to."""
    with quiet():
        names = dict.fromkeys(name for code in codes for name in open_package(code).get_constant_fqns())
    path = codes[0].with_name(f"{component.name}.safetensors")
    described = json.dumps(asdict(component))
    save_file({name: constants[name].contiguous() for name in names}, path, metadata={"component": described})
    return path


# Small things -----------------------------------------------------------------------------------------------


def _cpu() -> str:
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
