"""Load a TensorRT plan and run it on the runtime's own buffers.

Errors give the reason; the store, which knows how a set was built, adds the command that rebuilds it.

Engines own their weights. Scratch memory, which is several gigabytes, belongs to nobody: all engines of a set use
the same block, so they must run one after the other, on one stream.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import re
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from v2v.core.components import Component, Tensor
from v2v.core.errors import EngineError, MachineError, first_line
from v2v.device.gpus import Gpu, call
from v2v.engine.backend import Engine, checked
from v2v.engine.sharing import SharingEngine
from v2v.engine.tensorrt.builder import describe, driver_advice
from v2v.engine.tensorrt.library import Library

# What lies beside a plan ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlanRecord:
    """A plan's needs and origin, in a JSON file beside it: known before any of its gigabytes are read."""

    library: str
    version: str
    scratch_bytes: int | None
    weight_bytes: int | None
    layers: Mapping[str, int]
    component: Component | None = None  # what the plan takes and gives, where that is a part of one

    def write(self, path: Path) -> None:
        """Store the record."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> PlanRecord:
        """Inverse of :meth:`write`.

        Raises:
            EngineError: missing or damaged.
        """
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except (OSError, msgspec.MsgspecError) as error:
            raise EngineError(f"{path} cannot be read ({first_line(error)})") from error


def record_path(plan: Path) -> Path:
    """Where the record of ``plan`` lies."""
    return plan.with_suffix(".json")


def largest_scratch(plan: Path) -> int:
    """Bytes of scratch that the hungriest engine needs in the set that ``plan`` is part of, as recorded.

    The engines of a set lie in folders side by side. A thirty-second more, because what an engine asks for when it
    is loaded may be rounded differently from what the builder logged.
    """
    sizes = [0]
    for path in plan.parent.parent.glob("*/*.plan"):
        try:
            sizes.append(PlanRecord.read(record_path(path)).scratch_bytes or 0)
        except EngineError:
            continue  # it will be told when that engine is loaded
    return max(sizes) * 33 // 32


# Memory -----------------------------------------------------------------------------------------------------------


class Scratch:
    """A block of device memory, freed when the last engine that uses it lets go."""

    def __init__(self, gpu: Gpu, size: int) -> None:
        from cuda.bindings import driver as cu

        self.size = size
        try:
            self.pointer = int(call(cu.cuMemAlloc(size)))
        except RuntimeError as error:
            raise MachineError(
                f"{gpu.name} has no {size / 2**30:.1f} GiB of memory left for the engines' scratch ({error}); "
                "run with --memory low, close other programs that use the GPU, or build for a smaller --size or "
                "fewer --frames"
            ) from error
        self._free = weakref.finalize(self, cu.cuMemFree, self.pointer)


_shared: weakref.WeakValueDictionary[int, Scratch] = weakref.WeakValueDictionary()


def shared_scratch(gpu: Gpu, need: int) -> Scratch:
    """The block that engines on ``gpu`` share, at least ``need`` bytes.

    A block never moves or grows under an engine that has it (captured graphs hold its address). The first engine of
    a set asks for the most that the set needs, so one block serves all.
    """
    block = _shared.get(gpu.ordinal)
    if block is None or block.size < need:
        block = _shared[gpu.ordinal] = Scratch(gpu, max(need, 1))
    return block


# Engines ----------------------------------------------------------------------------------------------------------


_CONTEXTS = 64
"""Execution contexts that an engine keeps, one for each tuple of buffers.

The captured work of one segment needs two, one for each prompt; where windows keep features of their own (``--reuse``),
two for each window, and so many windows' features would fill 19 GB at full size.
"""


class TensorRTEngine(Engine):
    """A plan on a GPU.

    Before a run is captured into a CUDA graph it must have run once outside with the same arrays: TensorRT sets itself
    up then. An execution context belongs to one tuple of arrays and is never bound to others, because a captured graph
    may look its parameters up in the context when it is replayed. All contexts work in the same scratch, so they are
    small.
    """

    def __init__(
        self, component: Component, plan: Path, library: Library, gpu: Gpu, jit_cache: Path | None = None
    ) -> None:
        self.component = component
        self._library = library
        self._jit_cache = jit_cache
        self._engine: Any = None
        self._engine = deserialize(library, component, plan)
        check_engine(library, self._engine, component, plan)
        if self._engine.streamable_weights_size:  # built so; before contexts and scratch, which depend on it
            self._engine.weight_streaming_budget_v2 = self._engine.get_weight_streaming_automatic_budget()
        need = int(self._engine.device_memory_size_v2)
        self._scratch: Scratch | None = shared_scratch(gpu, max(need, largest_scratch(plan)))
        self._jit_code = jit_cache.read_bytes() if jit_cache is not None and jit_cache.is_file() else b""
        self._config, self._jit = library.runtime_config(self._engine, self._jit_code)
        self._contexts: dict[tuple[int, ...], Any] = {}  # by addresses, the one that was used last at the end
        try:
            self._unbound: Any = (
                self._new_context()
            )  # whether one can be made shows when the engine is loaded
        except EngineError:
            self.close()
            raise
        self._save_jit()  # now, not when the engine is closed: few processes end in good order

    def run(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], stream: int = 0) -> None:
        """Queue one run on ``stream``; arrays are those of the device, with ``shape``, ``dtype`` and ``pointer``.

        Raises:
            EngineError: an array is missing or has another type or shape, the engine is closed, TensorRT fails, or it
                cannot be captured though it is about to be.
        """
        context = self._context(self._addresses(inputs, outputs))
        if self._library.is_rtx:
            self._check_capture(context, stream)
        with self._library.capture() as messages:
            if not context.execute_async_v3(stream):
                raise _failure(self.component, "failed", messages)

    def layer_seconds(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], stream: int = 0
    ) -> dict[str, float]:
        """See :class:`v2v.engine.backend.Engine`: layers as TensorRT joined them.

        ``--option profiling=detailed`` at the build makes their names say more.
        """
        addresses = self._addresses(inputs, outputs)
        context = self._bound(self._new_context(), addresses)
        profiler = _profiler(self._library.api)
        context.profiler = profiler
        with self._library.capture() as messages:
            for _ in range(2):  # the first sets itself up
                profiler.seconds.clear()
                if not context.execute_async_v3(stream):
                    raise _failure(self.component, "failed", messages)
        seconds: dict[str, float] = profiler.seconds
        return seconds

    def close(self) -> None:
        """Free weights and contexts, and the scratch with the last engine, once queued runs are done."""
        if self._engine is None:
            return
        from cuda.bindings import driver as cu

        cu.cuCtxSynchronize()
        self._save_jit()
        self._contexts, self._unbound = {}, None  # before the engine that they refer to
        self._config = self._jit = None
        self._engine = self._scratch = None

    def _check_capture(self, context: Any, stream: int) -> None:
        from cuda.bindings import driver as cu

        idle = cu.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE
        if call(cu.cuStreamIsCapturing(stream)) != idle and not context.is_stream_capturable(stream):
            raise EngineError(
                f"TensorRT for RTX does not let {self.component.name} be captured in a CUDA graph"
            )

    def _addresses(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> tuple[int, ...]:
        if self._engine is None:
            raise EngineError(f"the engine {self.component.name} is closed")
        return tuple(
            int(checked(self.component, tensor, arrays).pointer)
            for described, arrays in ((self.component.inputs, inputs), (self.component.outputs, outputs))
            for tensor in described
        )

    def _context(self, addresses: tuple[int, ...]) -> Any:
        """The context of these arrays; of too many the one goes that was asked for longest ago."""
        context = self._contexts.pop(addresses, None)
        if context is None:
            if len(self._contexts) == _CONTEXTS:
                from cuda.bindings import driver as cu

                cu.cuCtxSynchronize()  # a queued run may still use it
                del self._contexts[next(iter(self._contexts))]
            context = self._bound(self._unbound or self._new_context(), addresses)
            self._unbound = None
        self._contexts[addresses] = context
        return context

    def _bound(self, context: Any, addresses: tuple[int, ...]) -> Any:
        """``context``, which from now on works on the arrays at ``addresses``."""
        for tensor, address in zip(self._tensors, addresses, strict=True):
            if not context.set_tensor_address(tensor.name, address):
                raise EngineError(
                    f"TensorRT does not take the buffer for '{tensor.name}' of {self.component.name}"
                )
        return context

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        return (*self.component.inputs, *self.component.outputs)

    def _new_context(self) -> Any:
        """A context that works in the scratch, bound to no arrays yet."""
        assert self._scratch is not None
        with self._library.capture() as messages:
            context = self._engine.create_execution_context(self._config)
        if context is None:
            raise _failure(self.component, "cannot be made ready to run", messages)
        context.set_device_memory(self._scratch.pointer, self._scratch.size)
        return context

    def _save_jit(self) -> None:
        """Keep what was compiled just in time, so that the next load is quick."""
        if self._jit is None or self._jit_cache is None:
            return
        code = bytes(self._jit.serialize())
        if code == self._jit_code:
            return
        self._jit_code = code
        try:
            self._jit_cache.parent.mkdir(parents=True, exist_ok=True)
            fresh = self._jit_cache.with_suffix(
                f".{os.getpid()}"
            )  # another process may save its own meanwhile
            fresh.write_bytes(code)
            fresh.replace(self._jit_cache)
        except OSError:
            return  # it only costs time


@dataclass(frozen=True)
class _Handed:
    """Device memory for what one part of an engine hands to the other."""

    shape: tuple[int, ...]
    dtype: str
    pointer: int


class SharingPlans(SharingEngine):
    """A UNet of two plans."""

    def __init__(self, component: Component, shared: TensorRTEngine, rest: TensorRTEngine) -> None:
        from cuda.bindings import driver as cu

        super().__init__(component, shared, rest, {})
        for tensor in shared.component.outputs:
            size = math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
            try:
                pointer = int(call(cu.cuMemAlloc(size)))
            except RuntimeError as error:
                self.close()
                raise MachineError(
                    f"there is no {size / 2**20:.0f} MiB left on the GPU for what {component.name} keeps between "
                    f"prompts ({error}); run with --memory low, or build without --option shared=yes"
                ) from error
            self._handed[tensor.name] = _Handed(tensor.shape, tensor.dtype, pointer)

    def close(self) -> None:
        """Free both parts, and what lies between them, once queued runs are done."""
        from cuda.bindings import driver as cu

        handed = [*self._handed.values()]
        super().close()
        for each in handed:
            cu.cuMemFree(each.pointer)


def _profiler(api: Any) -> Any:
    """What TensorRT tells the time of every layer; several of one name are added up."""

    class Profiler(api.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.seconds: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.seconds[layer_name] = self.seconds.get(layer_name, 0.0) + ms / 1000

    return Profiler()


def deserialize(library: Library, component: Component, plan: Path) -> Any:
    """The engine in the file ``plan``, whose digest the engine set checks.

    Raises:
        MachineError: the driver or the GPU's memory does not do.
        EngineError: of another version, or refused by TensorRT.
    """
    record = PlanRecord.read(record_path(plan))
    if (record.library, record.version) != (library.name, library.version):
        raise EngineError(
            f"{plan} was built by {record.library} {record.version}, here is {library.name} {library.version}"
        )
    with library.capture() as messages:
        runtime = library.api.Runtime(library.log)
        with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            engine = runtime.deserialize_cuda_engine(data)
            reasons = library.why_invalid(runtime, data) if engine is None else ""
        if engine is None:
            raise _failure(component, f"({plan}) is refused by {library.title}", messages, reasons)
    return engine


def check_engine(library: Library, engine: Any, component: Component, plan: Path) -> None:
    """Compare an engine's inputs and outputs with ``component``.

    Raises:
        EngineError: names the first that differs.
    """
    mode = library.api.TensorIOMode
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    have = {
        name: (
            engine.get_tensor_mode(name) == mode.INPUT,
            describe(library, name, engine.get_tensor_dtype(name), engine.get_tensor_shape(name)),
        )
        for name in names
    }
    for is_input, expected in ((True, component.inputs), (False, component.outputs)):
        for tensor in expected:
            kind, actual = have.get(tensor.name, (is_input, None))
            if kind != is_input or actual != tensor:
                listing = ", ".join(str(actual) for _, actual in have.values())
                raise EngineError(
                    f"{plan} is not the {component.name} expected: {tensor} is missing among {listing}"
                )
    if unknown := sorted(set(have) - {t.name for t in (*component.inputs, *component.outputs)}):
        raise EngineError(f"{plan} is not the {component.name} expected: it also has '{unknown[0]}'")


def _failure(component: Component, problem: str, messages: list[Any], reasons: str = "") -> EngineError:
    """What went wrong with ``component``, by TensorRT's log and ``reasons``: in one line, with what helps."""
    logged = [" ".join(message.text.split()) for message in messages if message.is_error]
    causes = [reasons] * bool(reasons) + logged
    said = f"{component.name} {problem}: {'; '.join(causes[:2]) or 'TensorRT gives no reason'}"
    if re.search(r"(out ?of|gpu) ?memory", " ".join(causes), re.IGNORECASE):
        return MachineError(f"{said}; run with --memory low, or close other programs that use the GPU")
    if re.search(r"\bcuda|driver", " ".join(causes), re.IGNORECASE):
        return MachineError(f"{said}; {driver_advice()}")
    return EngineError(said)
