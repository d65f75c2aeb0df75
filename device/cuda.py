"""The device that is an NVIDIA GPU: cuda-python for memory, streams and graphs, kernels for the fused work.

Everything is queued on one stream, in the order of the calls; noise arrives on a second one. The CUDA context
is the device's primary one, which PyTorch, ONNX Runtime and TensorRT use too, so engines work on these arrays
directly.
"""

from __future__ import annotations

import ctypes
import math
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from v2v.core.errors import EngineError, first_line
from v2v.device import Nonfinite, kernels
from v2v.device.gpus import cuda_version
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

THREADS = 256  # of a block; the kernels' launch bounds say the same
_GROUP = 8  # elements that a thread handles
_STATISTICS_BLOCKS = 1024  # at most; Scratch in guidance.cu has room for so many
SCRATCH_BYTES = 8 + 4 * 8 * _STATISTICS_BLOCKS
_FRAME_THREADS = 128  # of a block of prepare_frame
_FRAME_ROWS, _FRAME_COLUMNS = 4, 2  # that a thread of it makes
_FRAME_STEP = 2  # source rows that a thread reads at a time
_FRAME_SPANS = (2, 3, 5)  # source columns that it has kernels for: to the same size, enlarged, to two thirds
ALL_FINITE = np.uint64(2**64 - 1)


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
        self.allocations = 0  # pieces of memory asked for so far, on the device and pinned
        self.capture_refused: str | None = None  # why the last work that was to be captured was not
        self._pinned = _PinnedPool(self)
        self.object_codes = {name: self._load(name) for name in kernels.FILES}
        self._kernel = lru_cache(maxsize=None)(self._find_kernel)
        self._taps = lru_cache(maxsize=256)(self._make_taps)
        self._tiles = lru_cache(maxsize=256)(self._make_tiles)

        self._scratch = self.empty((SCRATCH_BYTES,), np.uint8)
        self.zero(self._scratch)
        # The lowest (label, frame) that was not finite, and the host's memory where kernels say that there is one.
        self._nonfinite = self.upload(np.full(1, ALL_FINITE))
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
            if self.capture_refused is None:
                warnings.warn(
                    "what a window costs cannot be captured as one CUDA graph, so the run is slower "
                    f"({first_line(error)})",
                    stacklevel=2,
                )
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
        vertical = (frame.shape[0], size[0], offset[0], height, antialias)
        horizontal = (frame.shape[1], size[1], offset[1], width, antialias)
        scale = 2 / np.iinfo(frame.dtype).max
        rows = self._tiles(*vertical, size=_FRAME_ROWS, step=_FRAME_STEP, scale=scale)
        columns = self._tiles(*horizontal, size=_FRAME_COLUMNS)
        span = columns.span if columns.span in _FRAME_SPANS else 0
        self._launch(
            self._kernel("prepare_frame", out.dtype, frame.dtype, span),
            (-(-columns.count // _FRAME_THREADS), rows.count),
            frame.pointer,
            _int(frame.shape[0]),
            _int(frame.shape[1]),
            out.pointer,
            _int(height),
            _int(width),
            *rows.arguments,
            *columns.arguments,
            threads=_FRAME_THREADS,
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
            self._statistics(conditional, unconditional, guidance, rescale)
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

    def combine(self, terms: Sequence[tuple[float, CudaArray]], out: CudaArray) -> None:
        nonzero = [(coefficient, array) for coefficient, array in terms if coefficient]
        if not nonzero:
            self.zero(out)
            return
        halves = sum(1 << k for k, (_, array) in enumerate(nonzero) if array.dtype == np.float16)
        halves |= (out.dtype == np.float16) << 7
        pairs = [part for coefficient, array in nonzero for part in (array.pointer, _float(coefficient))]
        kernel = self._kernel("combine", len(nonzero))
        self._each(kernel, out.size, out.pointer, _int(halves), out.size, *pairs)

    def check(self, array: CudaArray, label: int) -> None:
        kernel = self._kernel("find_nonfinite", array.dtype)
        frame = array.size // array.shape[0]
        report = (self._nonfinite.pointer, self._flag_memory.pointer)
        self._each(kernel, array.size, array.pointer, array.size, frame, _int(label), *report)

    def failure(self) -> Nonfinite | None:
        if not self._flag[0]:
            return None
        # A run ends here anyway, so wait for all that is queued: it may have found something lower.
        lowest = int(self.download(self._nonfinite)[0])
        self.upload(np.full(1, ALL_FINITE), self._nonfinite)
        self._flag[0] = 0  # nothing is under way that could set it
        return Nonfinite(lowest >> 32, lowest & 0xFFFFFFFF)

    # Launching ----------------------------------------------------------------------------------------------
    def _launch(
        self, kernel: Kernel, blocks: tuple[int, int], *arguments: Any, threads: int = THREADS
    ) -> None:
        launch(self.cuda_stream, LaunchConfig(grid=blocks, block=threads), kernel, *arguments)

    def _each(self, kernel: Kernel, elements: int, *arguments: Any) -> None:
        """One thread for each group of elements."""
        self._launch(kernel, (max(-(-elements // (_GROUP * THREADS)), 1), 1), *arguments)

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
            first < 0 or first + size > extent
            for first, size, extent in zip(start, window[2:], (canvas[0], *canvas[2:]), strict=True)
        ):
            raise ValueError(f"a window {list(window)} at {start} leaves its canvas {list(canvas)}")
        geometry = (channels, frames, height, width, canvas[2], canvas[3], *start)
        threads = channels * frames * height * -(-width // _GROUP)
        self._each(kernel, threads * _GROUP, *arguments, *map(_int, geometry))

    def _statistics(
        self, conditional: CudaArray, unconditional: CudaArray, guidance: float, rescale: float
    ) -> None:
        # No more blocks than run at once: a second wave would wait for the first.
        most = min(4 * self.gpu.properties.multiprocessor_count, _STATISTICS_BLOCKS)
        blocks = min(-(-conditional.size // (_GROUP * THREADS)), most)
        self._launch(
            self._kernel("statistics", conditional.dtype),
            (blocks, 1),
            conditional.pointer,
            unconditional.pointer,
            conditional.size,
            _float(guidance),
            _float(rescale),
            self._scratch.pointer,
        )

    def _move(self, source: int, target: int, nbytes: int, stream: Stream) -> None:
        _check(driver.cuMemcpyAsync(target, source, nbytes, stream.handle))

    def _find_kernel(self, name: str, *variant: npt.DTypeLike | int) -> Kernel:
        file = next(file for file, names in kernels.FILES.items() if name in names)
        types = (str(part) if isinstance(part, int) else np.dtype(part).name for part in variant)
        return self.object_codes[file].get_kernel("_".join((name, *types)))

    def _load(self, name: str) -> Any:
        try:
            return kernels.load(name, self.capability)
        except Exception as error:
            raise EngineError(
                f"--device cuda: the kernels cannot be compiled for {self.gpu.name} ({first_line(error)}); "
                f"install NVIDIA's run-time compiler with: pip install 'v2v[cuda{12 if cuda_version() == 12 else ''}]'"
            ) from error

    def _make_taps(self, *geometry: Any) -> _Taps:
        return _Taps(*map(self.upload, taps(*geometry)))

    def _make_tiles(self, *geometry: Any, size: int, step: int = 1, scale: float = 1.0) -> _Tiles:
        first, weights = _in_tiles(*taps(*geometry), size, step)
        return _Tiles(self.upload(first), self.upload(weights * np.float32(scale)))


@dataclass(frozen=True)
class _Taps:
    """Geometry of one axis of a resize on the device."""

    indices: CudaArray  # [count, K] int32
    weights: CudaArray  # [count, K] float32

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.indices.pointer, self.weights.pointer, _int(self.indices.shape[1])


@dataclass(frozen=True)
class _Tiles:
    """The same for threads that make several neighbouring pixels; see Axis in pixels.cu."""

    first: CudaArray  # [tiles] int32
    weights: CudaArray  # [tiles, span, pixels of a tile] float32

    @property
    def count(self) -> int:
        return self.first.size

    @property
    def span(self) -> int:
        return self.weights.shape[1]

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.first.pointer, self.weights.pointer, _int(self.span)


def _in_tiles(
    indices: npt.NDArray[np.int32], weights: npt.NDArray[np.float32], size: int, step: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Regroup taps ``[count, K]`` by tiles of ``size`` neighbouring pixels.

    Returns the first source pixel behind each tile, ``[tiles]``, and the weights ``[tiles, span, size]`` that it and
    the next ones have in the tile's pixels. The span is the smallest multiple of ``step`` that serves all tiles;
    what rounding up adds has weights of 0 and may lie behind the last source pixel.
    """
    number = indices.shape[1]
    tiles = -(-len(indices) // size)
    pixels = np.minimum(np.arange(tiles * size), len(indices) - 1)  # the last tile may repeat the last pixel
    indices, weights = indices[pixels].reshape(tiles, -1), weights[pixels].reshape(tiles, -1)
    used = weights != 0
    first = np.where(used, indices, indices.max()).min(axis=1)
    last = np.where(used, indices, 0).max(axis=1)
    span = int((last - first).max()) + 1
    first = np.minimum(first, last.max() + 1 - span)
    dense = np.zeros((tiles, -(-span // step) * step, size), np.float32)
    tile, tap = used.nonzero()
    np.add.at(dense, (tile, indices[tile, tap] - first[tile], tap // number), weights[tile, tap])
    return first.astype(np.int32), dense


class _Pinned:
    """Page-locked memory, and the event after which it may be used again."""

    def __init__(self, nbytes: int, event: Event) -> None:
        self._memory = LegacyPinnedMemoryResource().allocate(nbytes)
        self.pointer = int(self._memory.handle)
        self.bytes = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(self.pointer))
        self.event = event


class _PinnedPool:
    """Page-locked memory on loan, in powers of two."""

    _SLOTS_PER_SIZE = 4  # of one size that wait for the device before more are made

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._free: dict[int, deque[_Pinned]] = {}
        # The smallest size is made now: the denoising loop fetches one number a step to keep pace with the device.
        for slot in [self.take(1) for _ in range(self._SLOTS_PER_SIZE)]:
            self.give(slot)

    def take(self, nbytes: int) -> _Pinned:
        size = max(1 << (nbytes - 1).bit_length(), 4096) if nbytes else 4096
        free = self._free.setdefault(size, deque())
        if free and (len(free) >= self._SLOTS_PER_SIZE or free[0].event.is_done):
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
        self._consumed = [device.gpu.create_event() for _ in range(self._DEPTH)]
        for event in self._consumed:  # the memory exists from here on
            device.cuda_stream.record(event)
        self._puts = self._takes = 0

    def put(self, host: npt.NDArray[Any]) -> None:
        if self._puts - self._takes >= self._DEPTH:
            raise RuntimeError("two arrays are waiting to be taken already")
        index = self._puts % self._DEPTH
        array, slot = self._arrays[index], self._pinned[index]
        if host.size != array.size:
            raise ValueError(f"{list(host.shape)} does not fit into {list(array.shape)}")
        slot.event.sync()  # the copy before the last has left this memory long ago
        slot.bytes[: array.nbytes].view(array.dtype)[:] = host.reshape(-1)
        self._stream.wait(self._consumed[index])
        self._device._move(slot.pointer, array.pointer, array.nbytes, self._stream)
        self._stream.record(slot.event)
        self._puts += 1

    def take(self, out: CudaArray) -> None:
        if self._takes == self._puts:
            raise RuntimeError("nothing was put")
        index = self._takes % self._DEPTH
        stream = self._device.cuda_stream
        stream.wait(self._pinned[index].event)
        self._device.copy(self._arrays[index], out)
        stream.record(self._consumed[index])
        self._takes += 1


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
