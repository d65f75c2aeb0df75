"""What the TensorRT backend is, what its engines need to load, and whether they do.

A plan is for one version of the library, and (unless built as portable) for one model of GPU. Its options
(``v2v-build-engines --option NAME=VALUE``):

- ``library``: ``tensorrt`` or ``tensorrt_rtx``; by default whichever is installed, TensorRT first
- ``portable``: ``same_gpu`` (default), ``same_compute_capability`` or ``ampere_plus``; the wider, the slower. TensorRT
  for RTX always compiles for every compute capability that it has
- ``tactics``: how many candidate kernels are tried for one layer; fewer compile sooner
- ``tactic_memory``: GiB on the GPU that a candidate may use while it is tried
- ``workspace``: GiB of scratch that one layer may use (also ``--workspace``)
- ``optimization_level``: the compiler's effort, 0 to 5, by default 3; 5 times the most kernels (also
  ``--optimization-level``)
- ``weight_streaming``: ``yes`` leaves weights that the card has no room for in the host's memory
- ``profiling``: ``detailed`` keeps in the plan what each layer is, for NVIDIA's profilers and its engine inspector
- ``shared``: ``yes`` makes of what no prompt changes in a UNet an engine of its own, which a guided step runs once
- ``fp8``: ``yes`` computes products of the UNet in FP8, see :mod:`v2v.engine.tensorrt.fp8`
- ``bf16``: ``yes`` computes in BF16 instead of FP16, see :mod:`v2v.engine.tensorrt.bf16`
- ``graphs``: a folder that keeps the graphs, and in trtexec.sh the lines with which TensorRT's tool compiles them
- ``plans``: a folder with ``<component>.plan``, made by those lines: they are taken as they are
"""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from v2v.core.components import Component, ComponentName, Precision, is_unet
from v2v.core.errors import BuildError, EngineError, MachineError
from v2v.core.files import link_or_copy, write_whole
from v2v.core.progress import PhaseProgress
from v2v.device.gpus import DRIVERS, Gpu, cuda_version, find_gpu
from v2v.engine import fp8
from v2v.engine.backend import TOLERANCE, BuildOptions, Compatibility, Compiled, Source
from v2v.engine.cutting import split
from v2v.engine.store import timing_cache_folder
from v2v.engine.tensorrt import bf16
from v2v.engine.tensorrt.builder import Limits, TensorRTOptions, build_plan, limits, trtexec
from v2v.engine.tensorrt.doublings import double_at_once
from v2v.engine.tensorrt.fp8 import quantise
from v2v.engine.tensorrt.library import (
    AMPERE_AND_LATER,
    FP32_CAPABILITY,
    RTX,
    SAME_GPU,
    Library,
    Portability,
    load_library,
    runs_on,
)
from v2v.engine.tensorrt.rehearsed import rehearsed
from v2v.engine.tensorrt.rewrites import flatten_frames
from v2v.engine.tensorrt.runner import PlanRecord, SharingPlans, TensorRTEngine, record_path

_logger = logging.getLogger(__name__)
_BLOCK = 1 << 24
_FIRST_CUDA = 13  # of sets that do not say which their library was made for


class TensorRTBackend:
    """Satisfies :class:`v2v.engine.backend.Backend`."""

    name = "tensorrt"

    def __init__(self) -> None:
        self._library = load_library()
        self.version = self._library.version
        gpu, capabilities = _gpu_or_none(), self._library.capabilities
        usable = gpu is not None and (not capabilities or gpu.capability in capabilities)
        self.devices: tuple[str, ...] = ("cuda",) if usable else ()

    def build(self, source: Source, folder: Path, options: BuildOptions, progress: PhaseProgress) -> Compiled:
        """Compile a component's graph for the GPU of this machine; TensorRT for RTX needs none.

        Ctrl-C stops the builder at its next step. The timing cache in the store's folder is used and updated.

        Returns:
            The plan, and a record of its size and needs.

        Raises:
            BuildError: an unknown option, a graph that TensorRT does not take, or too little memory; the message
                names the component, the layer where known, and what to try.
        """
        library, own_options = self._library_and_options(options)
        component = source.component
        prepared = self._prepared(source, own_options, progress)
        graph = source.graph()
        compiler = self._compiler(library, own_options, options, progress)
        if own_options.graphs is not None:
            _keep_graph(graph.path, Path(own_options.graphs).expanduser(), compiler.line)
        path, error = _in_faster_forms(graph.path, in_bf16=own_options.bf16), graph.error
        if prepared is not None:
            rewrite, error = prepared
            path, plain = path.with_name(f"{component.name}_rewritten.onnx"), path
            rewrite(plain, path)
        if not (own_options.shared and component.name == "unet"):
            return Compiled(compiler.compile(component, path, folder / f"{component.name}.plan"), error)
        shared, rest = split(component, path)
        return Compiled(
            [
                *compiler.compile(rest.component, rest.path, folder / f"{component.name}.plan"),
                *compiler.compile(shared.component, shared.path, folder / f"{component.name}_shared.plan"),
            ],
            error,
        )

    def _prepared(
        self, source: Source, own_options: TensorRTOptions, progress: PhaseProgress
    ) -> tuple[Callable[[Path, Path], Any], float] | None:
        """What writes a component's graph in other numbers, and the error that they bring; None: it stays as it is.

        Raises:
            BuildError: the model cannot have them, or the error is too large.
        """
        if own_options.fp8:
            fp8.check_model(source.model)
        if own_options.fp8 and is_unet(source.component.name):
            rehearsal, error = rehearsed(
                source,
                "FP8",
                fp8.TOLERANCE,
                lambda given, path: quantise(given.graph, path, given.largest),
                progress,
            )
            return partial(quantise, largest=rehearsal.largest), error
        if own_options.bf16 and source.precision == "fp16":
            _, error = rehearsed(
                source, "BF16", bf16.TOLERANCE, lambda given, path: bf16.imitate(given.graph, path), progress
            )
            return bf16.widen, error
        return None

    def _compiler(
        self, library: Library, own_options: TensorRTOptions, options: BuildOptions, progress: PhaseProgress
    ) -> _Compiler:
        gpu = _gpu_or_none()
        first = _first_capability(options.precision, own_options)
        limit = replace(limits(gpu.memory if gpu else None, own_options), capability=first)
        cache = timing_cache_folder() / f"{library.name}-{library.version}-{_label(gpu)}.timing"
        portability = library.portability(own_options.portable)
        plans = None if own_options.plans is None else Path(own_options.plans).expanduser()
        return _Compiler(library, limit, portability, cache, plans, progress)

    def facts(self, options: BuildOptions) -> dict[str, Any]:
        """Library, version, GPU, compute capability, driver and portability; works without a GPU, which is None."""
        if options.precision != "fp16":
            raise BuildError(
                f"backend tensorrt builds with --precision fp16, not {options.precision}: its fused attention takes "
                "nothing wider; --option vae_decoder=fp32 gives the decoder alone more"
            )
        library, own_options = self._library_and_options(options)
        portability = library.portability(own_options.portable)
        gpu = _gpu_or_none()
        widest: Precision = "fp32" if options.mixed else options.precision
        capabilities = library.capabilities_from(_first_capability(widest, own_options))
        if gpu is not None and library.times_kernels and (problem := _old_driver(gpu)):
            raise BuildError(problem)
        _check_numbers(options, own_options, library, gpu)
        return {
            "library": library.name,
            "version": library.version,
            "gpu": gpu.name if gpu else None,
            "compute_capability": _dotted(gpu.capability) if gpu else None,
            "driver": gpu.driver if gpu else None,
            "portable": portability != SAME_GPU,
            "portability": portability,
            "label": "rtx" if library.is_rtx else _label(gpu),
            **({"capabilities": [*map(_dotted, capabilities)]} if library.is_rtx else {}),
            **({"fp8": True} if own_options.fp8 else {}),
            **({"bf16": True} if own_options.bf16 else {}),
            **({"cuda": cuda} if (cuda := cuda_version()) != _FIRST_CUDA else {}),
        }

    def tolerance(self, name: ComponentName, options: BuildOptions) -> float:
        """See :class:`v2v.engine.backend.Backend`."""
        own_options = TensorRTOptions.read(options.extra)
        if own_options.fp8 and is_unet(name):
            return fp8.TOLERANCE
        in_bf16 = own_options.bf16 and options.precision == "fp16"
        return bf16.TOLERANCE if in_bf16 else TOLERANCE[options.precision]

    def fits(self, facts: Mapping[str, Any], device: str) -> Compatibility:
        """Whether engines built under ``facts`` load on ``device`` here and now; needs no GPU to say no."""
        try:
            library = load_library(str(facts["library"]))
        except (ImportError, EngineError) as error:
            return Compatibility(False, f"it needs {facts['library']} {facts['version']}: {error}")
        if library.version != facts["version"]:
            return Compatibility(
                False, f"it was built by {library.name} {facts['version']}, here is {library.version}"
            )
        built, here = facts.get("cuda", _FIRST_CUDA), cuda_version()
        if built != here:
            return Compatibility(
                False, f"it was built for CUDA {built}, the packages here are for CUDA {here}"
            )
        try:
            gpu = find_gpu(device)
        except EngineError as error:
            return Compatibility(False, str(error), rebuild=not isinstance(error, MachineError))
        if problem := _old_driver(gpu):
            return Compatibility(False, problem, rebuild=False)
        return _fits_gpu(facts, gpu)

    def load(self, component: Component, files: list[Path], device: str) -> TensorRTEngine | SharingPlans:
        """Load a plan onto ``device`` and check its inputs and outputs against ``component``.

        Raises:
            MachineError: no GPU, or not enough memory on it.
            EngineError: of another version or component, or refused by TensorRT.
        """
        plan = files[0]
        record = PlanRecord.read(record_path(plan))
        try:
            library = load_library(record.library)
        except ImportError as error:
            raise EngineError(f"{plan} needs {record.library} {record.version}: {error}") from error
        gpu = find_gpu(device)
        _make_current(gpu)
        shapes = zlib.crc32(
            repr(component).encode()
        )  # what is compiled just in time depends on, the weights apart
        jit = timing_cache_folder() / f"{component.name}-{shapes:08x}-{library.version}-{_label(gpu)}.jit"
        if len(files) > 2:
            return self._load_parts(component, files, library, gpu, jit if library.is_rtx else None)
        return TensorRTEngine(component, plan, library, gpu, jit if library.is_rtx else None)

    def _load_parts(
        self, component: Component, files: list[Path], library: Library, gpu: Gpu, jit: Path | None
    ) -> SharingPlans:
        """A UNet of two plans."""
        parts = []
        for number, plan in enumerate(files[::2]):
            described = PlanRecord.read(record_path(plan)).component
            if described is None:
                raise EngineError(f"{record_path(plan)} does not say what its plan takes and gives")
            own = jit.with_name(f"{number}-{jit.name}") if jit is not None else None
            parts.append(TensorRTEngine(described, plan, library, gpu, own))
        rest, shared = parts
        return SharingPlans(component, shared, rest)

    def _library_and_options(self, options: BuildOptions) -> tuple[Library, TensorRTOptions]:
        """The library that ``options`` ask for, after a look at all of them."""
        own_options = TensorRTOptions.read(options.extra)
        if options.device != "cuda":
            raise BuildError(f"backend tensorrt builds for --device cuda, not {options.device}")
        library = self._library
        if own_options.library is not None:
            try:
                library = load_library(own_options.library)
            except ImportError as error:
                raise BuildError(f"option library={own_options.library}: {error}") from error
        rewritten = {"shared": own_options.shared, "fp8": own_options.fp8, "bf16": own_options.bf16}
        if any(rewritten.values()) and (own_options.graphs or own_options.plans):
            choice = next(name for name, chosen in rewritten.items() if chosen)
            raise BuildError(
                f"option {choice}=yes makes graphs of its own, and options graphs and plans are of exported ones"
            )
        if library.is_rtx and (own_options.graphs or own_options.plans):
            raise BuildError(
                "options graphs and plans are for trtexec, the tool of TensorRT, not of TensorRT for RTX"
            )
        return library, own_options


@dataclass(frozen=True)
class _Compiler:
    """What all plans of a component are compiled with."""

    library: Library
    limit: Limits
    portability: Portability
    timing_cache: Path
    plans: Path | None  # a folder to take plans from
    progress: PhaseProgress

    def compile(self, component: Component, graph: Path, path: Path) -> list[Path]:
        """Make the plan ``path`` of ``graph``, and the record beside it."""
        record = PlanRecord(self.library.name, self.library.version, None, None, {}, component)
        if not self.library.is_rtx:
            _logger.warning("the same by TensorRT's own tool: %s", self.line(graph, path))
        if self.plans is not None:
            _take_plan(self.plans / path.name, path)
        else:
            plan = build_plan(
                self.library, component, graph, self.limit, self.portability, self.timing_cache, self.progress
            )
            _write(path, memoryview(plan.data), self.progress)
            record = replace(
                record,
                scratch_bytes=plan.activation_bytes,
                weight_bytes=plan.weight_bytes,
                layers=plan.layers,
            )
        record.write(record_path(path))
        return [path, record_path(path)]

    def line(self, graph: Path, plan: Path) -> str:
        """What compiles ``graph`` with TensorRT's own tool."""
        return trtexec(graph, plan, self.limit, self.portability)


def _check_numbers(
    options: BuildOptions, own_options: TensorRTOptions, library: Library, gpu: Gpu | None
) -> None:
    """Refuse FP8 and BF16 where they cannot be."""
    here = gpu if library.times_kernels else None
    if own_options.fp8:
        fp8.check_options(options)
        if here is not None:
            fp8.check_gpu(here.name, here.capability)
        if library.portability(own_options.portable) == AMPERE_AND_LATER:
            raise BuildError(
                "--option portable=ampere_plus is for cards that have no FP8 as well: leave it or --option fp8=yes out"
            )
    if own_options.bf16 and here is not None:
        fp8.check_gpu(here.name, here.capability, "BF16", bf16.CAPABILITY)
    if own_options.bf16 and (own_options.fp8 or own_options.shared):
        other = "fp8" if own_options.fp8 else "shared"
        raise BuildError(f"--option bf16=yes and {other}=yes were never tried together: leave one out")


def _first_capability(precision: Precision, own_options: TensorRTOptions) -> tuple[int, int]:
    """Of the first GPUs that have the numbers that a component computes in."""
    return max(
        (0, 0) if precision == "fp16" else FP32_CAPABILITY,
        fp8.CAPABILITY if own_options.fp8 else (0, 0),
        bf16.CAPABILITY if own_options.bf16 else (0, 0),
    )


def _in_faster_forms(graph: Path, *, in_bf16: bool) -> Path:
    """``graph``, or one beside it with convolutions over frames in two dimensions, and doublings in one.

    TensorRT for RTX has no transposed convolutions in BF16.
    """
    rewrites = {"flat": flatten_frames} if in_bf16 else {"flat": flatten_frames, "doubled": double_at_once}
    for name, rewrite in rewrites.items():
        made = graph.with_name(f"{graph.stem}_{name}.onnx")
        try:
            graph = made if rewrite(graph, made) else graph
        except Exception:  # of a damaged graph: TensorRT's parser says what is wrong with it
            return graph
    return graph


def _keep_graph(graph: Path, folder: Path, line: Callable[[Path, Path], str]) -> None:
    """Put a graph and its weights into ``folder``, and the line that compiles it at the end of trtexec.sh there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in [graph, *sorted(p for p in graph.parent.glob(f"{graph.stem}.*") if p != graph)]:
            (folder / file.name).unlink(missing_ok=True)
            link_or_copy(file, folder / file.name)
        script = folder / "trtexec.sh"
        lines = script.read_text(encoding="utf-8").splitlines() if script.exists() else []
        others = [each for each in lines if f"--onnx={graph.name} " not in each]
        made = line(Path(graph.name), Path(f"{graph.stem}.plan"))
        write_whole(script, "\n".join([*others, made]) + "\n")
    except OSError as error:
        raise BuildError(f"option graphs={folder}: {error.strerror}: {error.filename}") from error


def _take_plan(made: Path, target: Path) -> None:
    try:
        link_or_copy(made, target)
    except OSError as error:
        raise BuildError(
            f"option plans={made.parent}: {made.name} cannot be read ({error.strerror}); --option graphs=FOLDER "
            "writes the lines that make it"
        ) from error


def _fits_gpu(facts: Mapping[str, Any], gpu: Gpu) -> Compatibility:
    portability, built_on = str(facts["portability"]), facts["gpu"]
    if portability == SAME_GPU and built_on != gpu.name:
        return Compatibility(False, f"it was built on {built_on or 'no GPU'}, here is {gpu.name}")
    if portability == RTX and _dotted(gpu.capability) not in facts.get("capabilities", ()):
        return Compatibility(
            False,
            f"it was built for the compute capabilities {', '.join(facts.get('capabilities', ()))}, "
            f"here is {gpu.name} with compute capability {_dotted(gpu.capability)}",
        )
    if portability == RTX:
        return Compatibility(True)
    capability = facts["compute_capability"]
    built_capability = tuple(int(part) for part in str(capability).split(".")) if capability else None
    if not runs_on(portability, built_capability, gpu.capability):  # type: ignore[arg-type]
        return Compatibility(
            False,
            f"it was built for {_REACH[portability].format(capability)}, "
            f"here is {gpu.name} with compute capability {_dotted(gpu.capability)}",
        )
    return Compatibility(True)


_REACH = {
    SAME_GPU: "compute capability {}",
    "same_compute_capability": "compute capability {}",
    "ampere_plus": "compute capability 8.0 and later",
}


def _gpu_or_none() -> Gpu | None:
    try:
        return find_gpu()
    except EngineError:
        return None


def _old_driver(gpu: Gpu) -> str:
    """What is wrong with a driver that does not run what the packages were made for; empty where it does."""
    cuda = cuda_version()
    if int(gpu.driver.split(".")[0]) >= cuda:
        return ""
    older = ", or install v2v's extras for CUDA 12" if cuda > 12 and gpu.driver.startswith("12.") else ""
    return (
        f"the NVIDIA driver of {gpu.name} runs CUDA {gpu.driver} at most, and the packages here need CUDA {cuda}; "
        f"update the driver to {DRIVERS[cuda]} or later{older}"
    )


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def _label(gpu: Gpu | None) -> str:
    """A GPU in a file name: ``rtx-4090-sm89``."""
    if gpu is None:
        return "no-gpu"
    name = re.sub(r"\b(nvidia|geforce|gpu)\b", "", gpu.name.lower())
    parts = re.findall(r"[a-z0-9]+", name)
    return "-".join([*parts, f"sm{gpu.capability[0]}{gpu.capability[1]}"])


def _write(path: Path, data: memoryview, progress: PhaseProgress) -> None:
    """Write gigabytes in blocks."""
    with path.open("wb") as file:
        for start in range(0, len(data), _BLOCK):
            file.write(data[start : start + _BLOCK])
            progress("storing", min(start + _BLOCK, len(data)) / len(data))


def _make_current(gpu: Gpu) -> None:
    from cuda.core import Device

    Device(gpu.ordinal).set_current()
