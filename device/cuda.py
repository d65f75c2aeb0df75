"""The device that is an NVIDIA GPU: cuda-python for memory, streams and graphs, kernels for the fused work.

Everything is queued on one stream, in the order of the calls; noise arrives on a second one. The CUDA context
is the device's primary one, which PyTorch, ONNX Runtime and TensorRT use too, so engines work on these arrays
directly.
"""

from __future__ import annotations

import ctypes
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from v2v.core.errors import EngineError, first_line
from v2v.device import Nonfinite, StepRow, kernels
from v2v.device.resize import taps

try:
    from cuda.bindings import driver
    from cuda.core import Device as Gpu
    from cuda.core import EventOptions, LaunchConfig, LegacyPinnedMemoryResource, launch
except ImportError as error:
    raise EngineError(
        f"--device cuda needs cuda-python, which is not installed here ({error}); "
        "install it with: pip install 'v2v[cuda]'"
    ) from error

if TYPE_CHECKING:
    from cuda.core import Buffer, Event, Kernel, Stream
    from cuda.core.graph import Graph

_THREADS = 256  # of a block; the kernels' launch bounds say the same
_GROUP = 8  # elements that a thread handles
_STATISTICS_BLOCKS = 1024  # at most; Scratch in guidance.cu has room for so many
_SCRATCH_BYTES = 8 + 4 * 8 * _STATISTICS_BLOCKS
_FRAME_ROWS, _FRAME_THREADS = 4, 128  # that a block of prepare_frame makes at a time, and its threads
_FRAME_BLOCKS = 8  # of prepare_frame that a multiprocessor has registers for; launch bounds in pixels.cu
_FRAME_TAPS = 3  # at most, of kernels that send source rows ahead
_SHARED_BYTES = 48 * 1024  # what a block gets without asking
_NOTHING_FOUND = np.uint64(2**64 - 1)


@dataclass(frozen=True, eq=False)
class CudaArray:
    """Contiguous device memory. PyTorch and CuPy read it through ``__cuda_array_interface__``, without a
    copy.

    Whoever reads it that way must queue its work on the device's stream, or wait for that stream first.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    pointer: int
    memory: Buffer = field(repr=False)  # kept alive as long as any view of it

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.size * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "strides": None,
            "version": 3,
        }


class CudaDevice:
    """One GPU; see :class:`v2v.device.Device` for what each operation does.

    To be used by one thread at a time, the one that made it.

    Raises:
        EngineError: no driver, no GPU, or no way to get kernels for it; says what to install.
    """

    name = "cuda"
    synchronous = False

    def __init__(self, index: int = 0) -> None:
        try:
            self.gpu = Gpu(index)
            self.gpu.set_current()
        except Exception as error:
            raise EngineError(
                f"--device cuda: no NVIDIA GPU can be used here ({first_line(error)}); "
                "check with nvidia-smi that the driver runs, or use --device cpu"
            ) from error
        capability = self.gpu.compute_capability
        self.capability = (capability.major, capability.minor)
        self.cuda_stream = self.gpu.create_stream()
        self.stream = int(self.cuda_stream.handle)
        self._uploads = self.gpu.create_stream()
        self._shared_bytes = self.gpu.properties.max_shared_memory_per_multiprocessor
        self._shared_reserved = self.gpu.properties.reserved_shared_memory_per_block
        self.allocations = 0  # pieces of memory asked for so far, on the device and pinned
        self.capture_refused: str | None = None  # why the last work that was to be captured was not
        self._pinned = _PinnedPool(self)
        self._kernels = {name: self._load(name) for name in kernels.FILES}
        self._kernel = lru_cache(maxsize=None)(self._find_kernel)
        self._taps = lru_cache(maxsize=256)(self._make_taps)
        self._frame_tables = lru_cache(maxsize=256)(self._make_frame_tables)

        self._scratch = self.empty((_SCRATCH_BYTES,), np.uint8)
        self.zero(self._scratch)
        # The lowest (label, frame) that was not finite, and the host's memory where kernels say that there is one.
        self._found = self.upload(np.full(1, _NOTHING_FOUND))
        self._flag_memory = self._pinned.take(4)
        self._flag = self._flag_memory.bytes[:4].view(np.int32)
        self._flag[0] = 0
        self.synchronize()

    # Memory -------------------------------------------------------------------------------------------------
    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> CudaArray:
        kind = np.dtype(dtype)
        self.allocations += 1
        memory = self.gpu.allocate(max(math.prod(shape) * kind.itemsize, 1), stream=self.cuda_stream)
        return CudaArray(tuple(shape), kind, int(memory.handle), memory)

    def zero(self, out: CudaArray) -> None:
        _check(driver.cuMemsetD8Async(out.pointer, 0, out.nbytes, self.stream))

    def upload(self, host: npt.NDArray[Any], out: CudaArray | None = None) -> CudaArray:
        if out is None:
            out = self.empty(np.shape(host), host.dtype)
        data = np.ascontiguousarray(host, out.dtype)
        if data.size != out.size:
            raise ValueError(f"{list(data.shape)} does not fit into {list(out.shape)}")
        slot = self._pinned.take(data.nbytes)
        slot.bytes[: data.nbytes] = data.reshape(-1).view(np.uint8)
        self._move(slot.pointer, out.pointer, data.nbytes, self.cuda_stream)
        self._pinned.give(slot, self.cuda_stream)
        return out

    def download(self, array: CudaArray) -> npt.NDArray[Any]:
        return self.fetch(array).result()

    def view(self, array: CudaArray, index: int | slice) -> CudaArray:
        if isinstance(index, int):
            index = slice(index, index + 1)
        start, stop, step = index.indices(array.shape[0])
        if step != 1:
            raise ValueError("a view must be contiguous")
        shape = (max(stop - start, 0), *array.shape[1:])
        offset = start * math.prod(array.shape[1:]) * array.dtype.itemsize
        return CudaArray(shape, array.dtype, array.pointer + offset, array.memory)

    def reshape(self, array: CudaArray, shape: Sequence[int]) -> CudaArray:
        if math.prod(shape) != array.size:
            raise ValueError(f"{list(array.shape)} cannot become {list(shape)}")
        return CudaArray(tuple(shape), array.dtype, array.pointer, array.memory)

    def synchronize(self) -> None:
        self.cuda_stream.sync()

    def copy(self, source: CudaArray, out: CudaArray) -> None:
        if source.nbytes != out.nbytes:
            raise ValueError(f"{list(source.shape)} does not fit into {list(out.shape)}")
        self._move(source.pointer, out.pointer, out.nbytes, self.cuda_stream)

    def fetch(self, array: CudaArray) -> _Fetched:
        slot = self._pinned.take(array.nbytes)
        self._move(array.pointer, slot.pointer, array.nbytes, self.cuda_stream)
        self.cuda_stream.record(slot.event)
        return _Fetched(self._pinned, slot, array.shape, array.dtype)

    def feed(self, shape: Sequence[int], dtype: npt.DTypeLike) -> _Feed:
        return _Feed(self, tuple(shape), np.dtype(dtype))

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        builder = self.cuda_stream.create_graph_builder()
        builder.begin_building("relaxed")  # an engine's library may do as it likes on other streams meanwhile
        try:
            try:
                work()
            finally:
                builder.end_building()
            graph = builder.complete()
            # Else the first launch does it, with the device waiting. Uploading waits for what its stream has queued: it
            # has a stream of its own.
            graph.upload(self._uploads)
            self.cuda_stream.wait(self._uploads)
            return _Replay(graph, self.cuda_stream, work)
        except Exception as error:  # an engine that waits for the host: its work can only be done again
            self.capture_refused = first_line(error)
            return work

    # Pixels and latents -------------------------------------------------------------------------------------
    def prepare_frame(
        self,
        frame: CudaArray,
        size: tuple[int, int],
        out: CudaArray,
        *,
        offset: tuple[int, int],
        antialias: bool,
    ) -> None:
        height, width = out.shape[2:]
        table = self._frame_tables(*frame.shape[:2], *size, *offset, height, width, antialias, frame.dtype)
        tiles, groups = -(-width // table.tile), -(-height // _FRAME_ROWS)
        # As many blocks as run at once, so that each goes on from group to group; what it waits for was sent before.
        at_once = min(_FRAME_BLOCKS, self._shared_bytes // (table.shared + self._shared_reserved))
        ways = at_once * self.gpu.properties.multiprocessor_count // tiles
        self._launch(
            self._kernel("prepare_frame", out.dtype, frame.dtype, table.variant),
            (tiles, max(min(ways, groups), 1)),
            (
                frame.pointer,
                *map(_int, frame.shape[:2]),
                out.pointer,
                _int(height),
                _int(width),
                *table.rows.arguments,
                *table.columns.arguments,
                _int(table.tile),
                _int(table.weighed_pitch),
                _int(table.raw_pitch),
                _int(table.raw_rows),
            ),
            threads=_FRAME_THREADS,
            shared=table.shared,
        )

    def resize(self, image: CudaArray, out: CudaArray) -> None:
        height, width = out.shape[2:]
        rows = self._taps(image.shape[2], height, 0, height, True)
        columns = self._taps(image.shape[3], width, 0, width, True)
        self._each(
            self._kernel("resize", image.dtype),
            out.size * _GROUP,  # one thread for each pixel
            image.pointer,
            _int(image.shape[2]),
            _int(image.shape[3]),
            out.pointer,
            _int(height),
            _int(width),
            out.size,
            *rows.arguments,
            *columns.arguments,
        )

    def sample_posterior(self, moments: CudaArray, noise: CudaArray, scale: float, out: CudaArray) -> None:
        kernel = self._kernel("sample_posterior", moments.dtype)
        self._each(kernel, out.size, moments.pointer, noise.pointer, out.pointer, _float(scale), out.size)

    def image_to_bytes(self, image: CudaArray, out: CudaArray, *, truncate: bool) -> None:
        kernel, pixels = self._kernel("image_to_bytes", image.dtype, out.dtype), out.size // 3
        self._each(kernel, pixels, image.pointer, out.pointer, pixels, _int(truncate))

    # The denoising loop -------------------------------------------------------------------------------------
    def take_window(
        self, canvas: CudaArray, start: tuple[int, int, int], scale: float, out: CudaArray
    ) -> None:
        kernel = self._kernel("take_window", out.dtype)
        arguments = (canvas.pointer, out.pointer, _float(scale))
        self._window(kernel, out.shape, canvas.shape, start, arguments)

    def add_window(
        self, velocity: CudaArray, weights: CudaArray, start: tuple[int, int, int], total: CudaArray
    ) -> None:
        kernel = self._kernel("add_window", velocity.dtype)
        arguments = (velocity.pointer, weights.pointer, total.pointer)
        self._window(kernel, velocity.shape, total.shape, start, arguments)

    def guide(
        self,
        conditional: CudaArray,
        unconditional: CudaArray | None,
        guidance: float,
        rescale: float,
        out: CudaArray,
    ) -> None:
        rescaled = unconditional is not None and rescale != 0
        if unconditional is not None and rescaled:
            self._statistics(conditional, unconditional, 0, guidance, rescale)
        self._each(
            self._kernel("guide", conditional.dtype),
            out.size,
            conditional.pointer,
            _pointer(unconditional),
            out.pointer,
            out.size,
            _float(guidance),
            self._scratch.pointer if rescaled else 0,
        )

    def advance(
        self,
        row: CudaArray,
        conditional: CudaArray,
        unconditional: CudaArray | None,
        x: CudaArray,
        history: CudaArray,
        noise: CudaArray,
        scaled: CudaArray,
    ) -> None:
        if row.size != len(StepRow._fields):
            raise ValueError(f"a row has {len(StepRow._fields)} coefficients, not {row.size}")
        if unconditional is not None:
            self._statistics(conditional, unconditional, row.pointer, 0.0, 0.0)
        frames, channels, *rest = x.shape
        plane = math.prod(rest)
        self._each(
            self._kernel("advance", conditional.dtype),
            frames * channels * -(-plane // _GROUP) * _GROUP,
            row.pointer,
            conditional.pointer,
            _pointer(unconditional),
            x.pointer,
            history.pointer,
            noise.pointer,
            scaled.pointer,
            _int(channels),
            _int(frames),
            _int(plane),
            self._scratch.pointer,
            self._found.pointer,
            self._flag_memory.pointer,
        )

    def combine(self, terms: Sequence[tuple[float, CudaArray]], out: CudaArray) -> None:
        counting = [(coefficient, array) for coefficient, array in terms if coefficient]
        if not counting:
            self.zero(out)
            return
        halves = sum(1 << k for k, (_, array) in enumerate(counting) if array.dtype == np.float16)
        halves |= (out.dtype == np.float16) << 7
        pairs = [part for coefficient, array in counting for part in (array.pointer, _float(coefficient))]
        kernel = self._kernel("combine", len(counting))
        self._each(kernel, out.size, out.pointer, _int(halves), out.size, *pairs)

    def check(self, array: CudaArray, label: int) -> None:
        kernel = self._kernel("find_nonfinite", array.dtype)
        frame = array.size // array.shape[0]
        found = (self._found.pointer, self._flag_memory.pointer)
        self._each(kernel, array.size, array.pointer, array.size, frame, _int(label), *found)

    def failure(self) -> Nonfinite | None:
        if not self._flag[0]:
            return None
        # A run ends here anyway, so wait for all that is queued: it may have found something lower.
        found = int(self.download(self._found)[0])
        self.upload(np.full(1, _NOTHING_FOUND), self._found)
        self._flag[0] = 0  # nothing is under way that could set it
        return Nonfinite(found >> 32, found & 0xFFFFFFFF)

    # Launching ----------------------------------------------------------------------------------------------
    def _launch(
        self,
        kernel: Kernel,
        grid: tuple[int, ...],
        arguments: Sequence[Any],
        threads: int = _THREADS,
        shared: int = 0,
    ) -> None:
        launch(
            self.cuda_stream, LaunchConfig(grid=grid, block=threads, shmem_size=shared), kernel, *arguments
        )

    def _each(self, kernel: Kernel, elements: int, *arguments: Any) -> None:
        """One thread for each group of elements."""
        self._launch(kernel, (max(-(-elements // (_GROUP * _THREADS)), 1),), arguments)

    def _window(
        self,
        kernel: Kernel,
        window: tuple[int, ...],
        canvas: tuple[int, ...],
        start: tuple[int, int, int],
        arguments: Sequence[Any],
    ) -> None:
        _, channels, frames, height, width = window
        if any(
            first < 0 or first + size > whole
            for first, size, whole in zip(start, window[2:], (canvas[0], *canvas[2:]), strict=True)
        ):
            raise ValueError(f"a window {list(window)} at {start} leaves its canvas {list(canvas)}")
        place = (channels, frames, height, width, canvas[2], canvas[3], *start)
        threads = channels * frames * height * -(-width // _GROUP)
        self._each(kernel, threads * _GROUP, *arguments, *map(_int, place))

    def _statistics(
        self, conditional: CudaArray, unconditional: CudaArray, row: int, guidance: float, rescale: float
    ) -> None:
        # No more blocks than run at once: a second wave would wait for the first.
        most = min(4 * self.gpu.properties.multiprocessor_count, _STATISTICS_BLOCKS)
        blocks = min(-(-conditional.size // (_GROUP * _THREADS)), most)
        self._launch(
            self._kernel("statistics", conditional.dtype),
            (blocks,),
            (
                conditional.pointer,
                unconditional.pointer,
                conditional.size,
                row,
                _float(guidance),
                _float(rescale),
                self._scratch.pointer,
            ),
        )

    def _move(self, source: int, target: int, nbytes: int, stream: Stream) -> None:
        _check(driver.cuMemcpyAsync(target, source, nbytes, stream.handle))

    def _find_kernel(self, name: str, *variant: npt.DTypeLike | int) -> Kernel:
        file = next(file for file, names in kernels.FILES.items() if name in names)
        parts = (str(part) if isinstance(part, int) else np.dtype(part).name for part in variant)
        return self._kernels[file].get_kernel("_".join((name, *parts)))

    def _load(self, name: str) -> Any:
        try:
            return kernels.load(name, self.capability)
        except Exception as error:
            raise EngineError(
                f"--device cuda: the kernels cannot be compiled for {self.gpu.name} ({first_line(error)}); "
                "install NVIDIA's run-time compiler with: pip install nvidia-cuda-nvrtc"
            ) from error

    def _make_taps(self, *geometry: Any) -> _Taps:
        indices, weights = taps(*geometry)
        return _Taps(self.upload(indices), self.upload(weights))

    def _make_frame_tables(
        self,
        source_height: int,
        source_width: int,
        resized_height: int,
        resized_width: int,
        top: int,
        left: int,
        height: int,
        width: int,
        antialias: bool,
        levels: np.dtype[Any],
    ) -> _FrameTables:
        plan = _FramePlan.of(
            taps(source_height, resized_height, top, height, antialias),
            taps(source_width, resized_width, left, width, antialias),
            (source_height, source_width),
            levels,
        )
        rows, columns = (
            _Axis(self.upload(_entries(*axis)), axis[1].shape[1]) for axis in (plan.rows, plan.columns)
        )
        return _FrameTables(rows, columns, plan.tile, plan.weighed_pitch, plan.raw_pitch, plan.raw_rows)


@dataclass(frozen=True)
class _Taps:
    """Geometry of one axis of a resize on the device."""

    indices: CudaArray  # [count, K] int32
    weights: CudaArray  # [count, K] float32

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.indices.pointer, self.weights.pointer, _int(self.indices.shape[1])


@dataclass(frozen=True)
class _Axis:
    """Geometry of one axis for prepare_frame: see Axis in pixels.cu."""

    entries: CudaArray
    taps: int

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.entries.pointer, _int(self.entries.shape[1] // 4), _int(self.taps)


@dataclass(frozen=True)
class _FrameTables:
    """What prepare_frame in pixels.cu needs to know of a geometry."""

    rows: _Axis
    columns: _Axis
    tile: int  # columns that a block makes at a time
    weighed_pitch: int  # floats of a row of their source pixels
    raw_pitch: int  # bytes of the same
    raw_rows: int  # source rows that are sent ahead; 0: none

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a block."""
        return _frame_shared(self.weighed_pitch, self.raw_pitch, self.raw_rows)

    @property
    def variant(self) -> int:
        """Number of weights that the kernel is made for; 0 for any."""
        return self.rows.taps if self.raw_rows else 0


_AxisTaps = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]
"""First source pixels ``[count]`` and the weights ``[count, K]`` of K neighbours from there on."""


@dataclass(frozen=True)
class _FramePlan:
    """How prepare_frame in pixels.cu goes about a geometry."""

    rows: _AxisTaps
    columns: _AxisTaps  # their weights take levels to -1..1
    tile: int
    weighed_pitch: int
    raw_pitch: int
    raw_rows: int

    @classmethod
    def of(
        cls, row_taps: _AxisTaps, column_taps: _AxisTaps, source: tuple[int, int], levels: np.dtype[Any]
    ) -> _FramePlan:
        """Plan for the ``taps`` of both axes of a source of (height, width) pixels with ``levels``.

        Raises:
            ValueError: even two columns are made of more pixels than a block can hold.
        """
        rows, columns = _dense(*row_taps, source[0]), _dense(*column_taps, source[1])
        most = max(rows[1].shape[1], columns[1].shape[1])
        rows, columns = _dense(*row_taps, source[0], most), _dense(*column_taps, source[1], most)
        columns = columns[0], columns[1] * np.float32(2 / np.iinfo(levels).max)
        number = rows[1].shape[1]
        starts = rows[0][::_FRAME_ROWS]
        ends = (
            rows[0][np.minimum(np.arange(len(starts)) * _FRAME_ROWS + _FRAME_ROWS, len(rows[0])) - 1] + number
        )
        raw_rows = int((ends - starts).max())
        worth_sending = number == columns[1].shape[1] <= _FRAME_TAPS and raw_rows <= _FRAME_ROWS * number
        for sent in (raw_rows, 0) if worth_sending else (0,):
            for tile in (2 * _FRAME_THREADS, 128, 64, 32, 16, 8, 4, 2):  # two columns a thread
                pitches = _pitches(columns, tile, levels.itemsize)
                if _frame_shared(*pitches, sent) <= _SHARED_BYTES:
                    return cls(rows, columns, tile, *pitches, sent)
        raise ValueError("the picture is scaled down further than a GPU block can hold: resize it before")


def _dense(
    indices: npt.NDArray[np.int32], weights: npt.NDArray[np.float32], size: int, least: int = 1
) -> _AxisTaps:
    """Taps of a source of ``size`` as neighbours, as few as can be, but ``least`` where the source has so many."""
    counts = weights != 0
    first = np.where(counts, indices, size).min(axis=1)
    last = np.where(counts, indices, -1).max(axis=1)
    number = max(int((last - first).max()) + 1, min(least, size))
    first = np.minimum(first, size - number)
    dense = np.zeros((len(indices), number), np.float32)
    places = np.nonzero(counts)
    np.add.at(dense, (places[0], indices[places] - first[places[0]]), weights[places])
    return first.astype(np.int32), dense


def _entries(first: npt.NDArray[np.int32], weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """``[count, 4 n]``: the first source pixel's bits, then the weights."""
    count, number = weights.shape
    table = np.zeros((count, -(-(number + 1) // 4) * 4), np.float32)
    table[:, 0] = first.view(np.float32)
    table[:, 1 : number + 1] = weights
    return table


def _pitches(columns: _AxisTaps, tile: int, size: int) -> tuple[int, int]:
    """Floats and bytes of a row of the source samples, of ``size`` bytes, that ``tile`` columns are made of."""
    first, weights = columns
    lefts = np.arange(0, len(first), tile)
    whole = 16 // size  # samples: what is sent starts at a multiple of 16 bytes
    begin = first[lefts] * 3 // whole * whole
    end = (first[np.minimum(lefts + tile, len(first)) - 1] + weights.shape[1]) * 3
    samples = int(-(-(end - begin).max() // whole) * whole)
    return samples, samples * size


def _frame_shared(weighed_pitch: int, raw_pitch: int, raw_rows: int) -> int:
    """Bytes of shared memory: weighed rows, and two parts' source rows."""
    return _FRAME_ROWS * weighed_pitch * 4 + 2 * raw_rows * raw_pitch


class _Pinned:
    """Page-locked memory, and the event after which it may be used again."""

    def __init__(self, nbytes: int, event: Event) -> None:
        self._memory = LegacyPinnedMemoryResource().allocate(nbytes)
        self.pointer = int(self._memory.handle)
        self.bytes = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(self.pointer))
        self.event = event


class _PinnedPool:
    """Page-locked memory on loan, in powers of two."""

    _KEPT = 4  # of one size that wait for the device before more are made

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._free: dict[int, deque[_Pinned]] = {}
        for slot in [self.take(1) for _ in range(self._KEPT)]:  # what keeps a loop's pace needs these
            self.give(slot)

    def take(self, nbytes: int) -> _Pinned:
        size = max(1 << (nbytes - 1).bit_length(), 4096) if nbytes else 4096
        free = self._free.setdefault(size, deque())
        if free and (len(free) >= self._KEPT or free[0].event.is_done):
            slot = free.popleft()
            slot.event.sync()
            return slot
        self._device.allocations += 1
        # Blocking: a host that waits leaves its processor to those who decode and encode.
        return _Pinned(size, self._device.gpu.create_event(EventOptions(blocking_sync=True)))

    def give(self, slot: _Pinned, stream: Stream | None = None) -> None:
        """Return it; what was queued on ``stream`` so far may still use it."""
        if stream is not None:
            stream.record(slot.event)
        self._free[len(slot.bytes)].append(slot)


class _Fetched:
    """A copy on its way to the host; see :class:`v2v.device.Pending`."""

    def __init__(
        self, pool: _PinnedPool, slot: _Pinned, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self._pool, self._slot, self._shape, self._dtype = pool, slot, shape, dtype
        self._result: npt.NDArray[Any] | None = None

    def result(self) -> npt.NDArray[Any]:
        if self._result is None:
            self._slot.event.sync()
            nbytes = math.prod(self._shape) * self._dtype.itemsize
            self._result = self._slot.bytes[:nbytes].copy().view(self._dtype).reshape(self._shape)
            self._pool.give(self._slot)
        return self._result


class _Feed:
    """Two arrays on their way to the device; see :class:`v2v.device.Feed`.

    Each has its pinned memory, so that the host may go on, and its place on the device, so that the copy
    overlaps with the step before. ``take`` copies once more within the device: a captured graph reads a fixed
    address.
    """

    _DEPTH = 2

    def __init__(self, device: CudaDevice, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._device = device
        self._stream = device.gpu.create_stream()
        self._arrays = [device.empty(shape, dtype) for _ in range(self._DEPTH)]
        self._pinned = [device._pinned.take(self._arrays[0].nbytes) for _ in range(self._DEPTH)]
        self._taken = [device.gpu.create_event() for _ in range(self._DEPTH)]
        for event in self._taken:  # the memory exists from here on
            device.cuda_stream.record(event)
        self._put = self._took = 0

    def put(self, host: npt.NDArray[Any]) -> None:
        if self._put - self._took >= self._DEPTH:
            raise RuntimeError("two arrays are waiting to be taken already")
        place = self._put % self._DEPTH
        array, slot = self._arrays[place], self._pinned[place]
        if host.size != array.size:
            raise ValueError(f"{list(host.shape)} does not fit into {list(array.shape)}")
        slot.event.sync()  # the copy before the last has left this memory long ago
        slot.bytes[: array.nbytes].view(array.dtype)[:] = host.reshape(-1)
        self._stream.wait(self._taken[place])
        self._device._move(slot.pointer, array.pointer, array.nbytes, self._stream)
        self._stream.record(slot.event)
        self._put += 1

    def take(self, out: CudaArray) -> None:
        if self._took == self._put:
            raise RuntimeError("nothing was put")
        place = self._took % self._DEPTH
        stream = self._device.cuda_stream
        stream.wait(self._pinned[place].event)
        self._device.copy(self._arrays[place], out)
        stream.record(self._taken[place])
        self._took += 1


@dataclass(frozen=True)
class _Replay:
    """A captured graph; calling it queues all of it."""

    graph: Graph
    stream: Stream
    work: Callable[[], None]  # what was recorded, with the arrays that the graph points to

    def __call__(self) -> None:
        self.graph.launch(self.stream)


def _int(value: int) -> ctypes.c_int:
    return ctypes.c_int(value)


def _float(value: float) -> ctypes.c_float:
    return ctypes.c_float(value)


def _pointer(array: CudaArray | None) -> int:
    return 0 if array is None else array.pointer


def _check(answer: tuple[Any, ...]) -> None:
    if answer[0] != driver.CUresult.CUDA_SUCCESS:
        _, text = driver.cuGetErrorString(answer[0])
        raise EngineError(f"the GPU reports an error: {text.decode() if text else answer[0].name}")
