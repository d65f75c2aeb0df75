"""The denoising loop over one segment: the UNet behind guidance and windows, driven by a solver's table."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from v2v.core.errors import V2VError
from v2v.device import Array, Device, Feed, Pending
from v2v.runtime.background import ahead
from v2v.runtime.diffusion.deepcache import Evaluation, UNetEngines, evaluations_in_full
from v2v.runtime.diffusion.guidance import Guidance
from v2v.runtime.diffusion.schedule import Schedule
from v2v.runtime.diffusion.solvers import Update, solve
from v2v.runtime.diffusion.windows import Span, Tile, tiles

# Boundaries between windows take these places in turn, step by step, so that no seam stays where it is. The last
# evaluation, whose boundaries are those of the result, fades as wide as it can.
_PHASES = (0.0, 0.5, 1.0, 0.25, 0.75)


_OF_HINTS = ("hint", "keys", "hint_timestep", "enlargement")
"""Inputs of a UNet with a control branch."""


class NumericalError(V2VError):
    """NaN or Inf appeared where there should be a picture."""


@dataclass(frozen=True)
class Hint:
    """What a UNet with a control branch is shown of the source.

    Attributes:
        latents: ``[T, Z, h, w]`` of all frames, those without a hint included.
        keys: of a model with key frames: which frames have a hint, ``[T]``.
        timestep: the noise level of the hint, 0..999.
        enlargement: how much the source was enlarged.
    """

    latents: Array
    keys: npt.NDArray[np.bool_] | None = None
    timestep: int = 0
    enlargement: int = 1


class DenoisingLoop:
    """Buffers and tables for segments of one extent ``(T, h, w)`` in latent positions, not smaller than the window.

    Everything is allocated here; running allocates nothing and, but for a thread that draws noise, does nothing on the
    host.
    """

    def __init__(
        self,
        device: Device,
        unet: UNetEngines,
        schedule: Schedule,
        updates: list[Update],
        guidance: Guidance,
        extent: tuple[int, int, int],
        overlap: tuple[int, int, int],
        reuse: int = 1,
        multiple: int = 1,
        time: Sequence[Span] | None = None,
    ) -> None:
        """``multiple`` is of the frames that windows start at; ``time`` places them along frames in another way."""
        latents = unet.full.component.inputs[0]
        _, channels, *window = latents.shape
        self.device, self._unet, self.guidance = device, unet, guidance
        self.updates = updates
        self.extent = extent
        self._coefficients = [schedule.coefficients(update.sigma) for update in updates]

        canvas = (extent[0], channels, *extent[1:])
        self.x, self.history, self.noise = (device.empty(canvas, np.float32) for _ in range(3))
        self.total = device.empty(canvas, np.float32)  # what the windows' velocities add up to
        self._denoised, self._other = (device.empty(canvas, np.float32) for _ in range(2))
        self.scaled, self.conditional = (device.empty(latents.shape, latents.dtype) for _ in range(2))
        self._guided = [guidance.acts(c.timestep) for c in self._coefficients]
        self.unconditional = device.empty(latents.shape, latents.dtype) if any(self._guided) else None
        self.velocity = device.empty(latents.shape, np.float32)
        self._feed = device.feed(canvas, np.float32)
        self._supply: _Supply | None = None  # of the latest run

        self._timesteps = device.upload(np.array([[c.timestep] for c in self._coefficients], np.int64))
        self._timestep = device.empty((1,), np.int64)

        self._told = {
            tensor.name: device.empty(tensor.shape, tensor.dtype)
            for tensor in unet.full.component.inputs
            if tensor.name in _OF_HINTS
        }
        self.shown = device.empty(canvas, np.float32) if self._told else None  # to be a hint's latents
        self._hint: Hint | None = None
        self._keys: dict[int, Array] = {}  # by the frame that a window starts at
        self._multiple, self._time = multiple, time
        self._plans = [self._plan(tuple(window), overlap, phase) for phase in _PHASES]
        self._last_plan = self._plan(tuple(window), overlap, None)
        self._in_full = evaluations_in_full(self._guided, reuse)
        self.evaluations = self._count_evaluations()
        self._features = self._make_features()
        self._captured: dict[Hashable, Callable[[], None]] = {}  # by kind of work
        self._contexts: tuple[Array, Array] | None = None

    def _count_evaluations(self) -> list[int]:
        """Evaluations of the UNet in all windows, finished when each row of the table is."""
        counts = [len(self._windows(row)) * (1 + guided) for row, guided in enumerate(self._guided)]
        return [*accumulate(counts)]

    def _windows(self, row: int) -> list[tuple[Tile, Array]]:
        """The windows of a row of the table; they stay in place as long as their features are used."""
        last = row == len(self._coefficients) - 1
        return self._last_plan if last else self._plans[(sum(self._in_full[: row + 1]) - 1) % len(_PHASES)]

    def rehearse(self, contexts: tuple[Array, Array]) -> None:
        """Evaluate the UNet once in one window of zeros, and wait for it."""
        for array in (self.scaled, *self._told.values()):
            self.device.zero(array)
        self._select(0)
        self._evaluate(contexts, guided=False, in_full=True)
        self.device.synchronize()

    def use(self, unet: UNetEngines) -> None:
        """Run on ``unet`` from now on: the same engines, perhaps loaded again."""
        if unet != self._unet:
            self._unet, self._captured = unet, {}

    def close(self) -> None:
        """Drop the captured work, which refers to this loop; Python then frees its memory with the last reference."""
        self._captured = {}

    def run(
        self,
        contexts: tuple[Array, Array],
        noise: Callable[[int], npt.NDArray[np.float32]],
        progress: Callable[[int], None],
        first: int = 0,
        carried: tuple[Array, Array] | None = None,
        hint: Hint | None = None,
        watch: Callable[[int, npt.NDArray[np.float32]], None] | None = None,
        on_window: Callable[[int], None] = lambda evaluations: None,
    ) -> Array:
        """Denoise :attr:`x` in place from the first sigma to 0 and return it.

        Args:
            contexts: the prompt's and the negative prompt's ``[1, 77, C]``.
            noise: (row of the table) -> standard normal ``[T, Z, h, w]`` on the host; called by another thread.
            progress: called with the number of evaluations finished, not far behind the device.
            first: number of the canvas' first frame in the video, for messages.
            carried: ``(latents, noise)`` ``[K, Z, h, w]`` of the first K frames, which the segment before has finished:
                the network sees them at every noise level as they are (Lugmayr et al. 2022, RePaint, eq. 8a).
            hint: where the UNet has a control branch.
            watch: called after each evaluation with the row of the table and the estimate of the clean latents, for
                which the device is waited for.
            on_window: where the device waits for nothing, called after each window with the evaluations of the UNet
                that are finished, of :attr:`evaluations`.

        Raises:
            NumericalError: a latent became NaN or Inf; names the step and the frame.
        """
        if contexts is not self._contexts:
            self._captured, self._contexts = {}, contexts
        self._take_hint(hint)
        pace = _Pace(self.device, self._timestep, progress)
        draws = [k for k, update in enumerate(self.updates) if update.x_noise]
        with closing(ahead(map(noise, draws), depth=2)) as drawn:
            if self._supply is not None:
                self._supply.drop()
            self._supply = supply = _Supply(self._feed, self.noise, drawn)
            told = on_window if self.device.synchronous else lambda evaluations: None
            self._solve(contexts, supply, pace, carried, watch, told)
            pace.finish()
        self._raise_if_nonfinite(first)
        return self.x

    def _solve(
        self,
        contexts: tuple[Array, Array],
        supply: _Supply,
        pace: _Pace,
        carried: tuple[Array, Array] | None,
        watch: Callable[[int, npt.NDArray[np.float32]], None] | None,
        on_window: Callable[[int], None],
    ) -> None:
        """Follow the solver's table; in every step the windows' velocities add up to one velocity of the whole segment.

        What a window costs, its evaluations and guidance, is captured once and serves all windows.
        """
        device = self.device
        evaluation = done = 0

        def guide(guided: bool, in_full: bool, window_index: int) -> None:
            unconditional = self._evaluate(contexts, guided, in_full, window_index)
            device.guide(
                self.conditional, unconditional, self.guidance.scale, self.guidance.rescale, self.velocity
            )

        def denoise(x: Array, sigma: float, out: Array) -> None:
            nonlocal evaluation, done
            c, kind = self._coefficients[evaluation], (self._guided[evaluation], self._in_full[evaluation])
            if carried is not None:
                latents, noise = carried
                device.combine(noised(latents, sigma, noise), device.view(x, slice(0, latents.shape[0])))
            self._select(evaluation)
            device.zero(self.total)
            for window_index, (tile, weights) in enumerate(self._windows(evaluation)):
                device.take_window(x, tile.start, c.scale, self.scaled)
                self._show_hint(tile)
                work = partial(guide, *kind, window_index)
                self._queue(("window", *kind, *map(id, self._features[window_index])), work)
                device.add_window(self.velocity, weights, tile.start, self.total)
                done += 1 + kind[0]
                on_window(done)
            # Velocity -> x0: Karras et al. 2022, eq. 7, with c_skip = alpha / sqrt(sigma^2 + 1), c_out = -s.
            device.combine([(c.alpha * c.scale, x), (-c.s, self.total)], out)
            device.check(out, evaluation)
            supply.refill()
            evaluation += 1

        def next_noise(k: int) -> Array:
            supply.next()
            return self.noise

        def after(k: int, denoised: Array) -> None:
            pace.mark(k)
            if watch is not None:
                watch(k, device.download(denoised))

        buffers = self._denoised, self.history, self._other
        solve(denoise, self.x, self.updates, next_noise, device, after, buffers)

    def _queue(self, kind: Hashable, work: Callable[[], None]) -> None:
        """Queue ``work``, all of it at once if work of this kind was queued before."""
        if kind in self._captured:
            self._captured[kind]()
        else:
            work()
            self._captured[kind] = self.device.capture(work)

    def _evaluate(
        self, contexts: tuple[Array, Array], guided: bool, in_full: bool, window_index: int = 0
    ) -> Array | None:
        """Run the UNet on :attr:`scaled` under the prompt and, if guided, the negative one; returns the latter's.

        ``window_index`` is the number of the window among those of the step.
        """
        unconditional = self.unconditional if guided else None
        velocities = self.conditional, unconditional
        evaluations = [
            Evaluation(context, velocity, features)
            for context, velocity, features in zip(
                contexts, velocities, self._features[window_index], strict=True
            )
            if velocity is not None
        ]
        common = {"latents": self.scaled, "timestep": self._timestep, **self._told}
        self._unet.run(common, evaluations, in_full=in_full, stream=self.device.stream)
        return unconditional

    def _take_hint(self, hint: Hint | None) -> None:
        """Make ``hint`` the one that windows are shown."""
        device, told = self.device, self._told
        self._hint = hint
        if hint is None or "keys" not in told:
            return
        assert hint.keys is not None, "a model with key frames is told which they are"
        device.upload(np.array([hint.timestep]), told["hint_timestep"])
        device.upload(np.array([hint.enlargement]), told["enlargement"])
        frames, kind = told["keys"].shape[1], told["keys"].dtype
        first_frames = {tile.start[0] for plan in (*self._plans, self._last_plan) for tile, _ in plan}
        self._keys = {
            first: device.upload(np.ascontiguousarray(hint.keys[None, first : first + frames].astype(kind)))
            for first in first_frames
        }

    def _show_hint(self, tile: Tile) -> None:
        """The part of the hint that lies in a window."""
        if self._hint is None:
            return
        self.device.take_window(self._hint.latents, tile.start, 1.0, self._told["hint"])
        if "keys" in self._told:
            self.device.copy(self._keys[tile.start[0]], self._told["keys"])

    def _make_features(self) -> list[tuple[Array | None, Array | None]]:
        """For each window of a step, where the UNet leaves its features under the prompt and the negative one."""
        windows, features = max(map(len, self._plans)), self._unet.features
        if features is None:
            return [(None, None)] * windows
        if all(self._in_full):  # never read again
            scrap = self.device.empty(features.shape, features.dtype)
            return [(scrap, scrap)] * windows
        prompts = 1 + any(self._guided)
        arrays = [
            [self.device.empty(features.shape, features.dtype) for _ in range(prompts)]
            for _ in range(windows)
        ]
        return [(each[0], each[-1]) for each in arrays]

    def _select(self, k: int) -> None:
        """Make the timestep of row ``k`` the one that the network is given."""
        self.device.copy(self.device.view(self._timesteps, k), self._timestep)

    def _plan(
        self, window: tuple[int, ...], overlap: tuple[int, int, int], phase: float | None
    ) -> list[tuple[Tile, Array]]:
        size = window[0], window[1], window[2]
        placed = tiles(self.extent, size, overlap, phase, multiple=self._multiple, time=self._time)
        return [(tile, self.device.upload(tile.weights)) for tile in placed]

    def _raise_if_nonfinite(self, first: int) -> None:
        self.device.synchronize()
        failure = self.device.failure()
        if failure is not None:
            raise NumericalError(
                f"the latents became NaN or Inf in component unet, step {failure.label + 1} of {len(self.updates)}, "
                f"frame {first + failure.frame}; an FP32 engine set, a lower guidance or another seed may avoid it"
            )


def noised(latents: Array, sigma: float, noise: Array) -> list[tuple[float, Array]]:
    """What to combine to ``latents`` with ``sigma`` of noise, over alpha; if it is infinite, to noise alone."""
    return [(0.0, latents), (1.0, noise)] if math.isinf(sigma) else [(1.0, latents), (sigma, noise)]


class _Supply:
    """Sends the noise of coming steps while the device works on earlier ones."""

    def __init__(self, feed: Feed, out: Array, drawn: Iterator[npt.NDArray[np.float32]]) -> None:
        self._feed, self._out, self._drawn = feed, out, drawn
        self._waiting = 0
        self.refill(1)

    def next(self) -> None:
        """Make the next noise the current one."""
        self._feed.take(self._out)
        self._waiting -= 1

    def drop(self) -> None:
        """Take what a run that was left has sent and not used."""
        while self._waiting:
            self.next()

    def refill(self, least: int = 2) -> None:
        """Send until ``least`` of those left are on their way; best called when the device has work."""
        while self._waiting < least and (noise := next(self._drawn, None)) is not None:
            self._feed.put(noise)
            self._waiting += 1


class _Pace:
    """Keeps the host at most two steps ahead of the device, so that progress is reported when it happens."""

    def __init__(self, device: Device, probe: Array, progress: Callable[[int], None]) -> None:
        self._device, self._probe, self._progress = device, probe, progress
        self._marks: deque[tuple[int, Pending]] = deque()

    def mark(self, k: int) -> None:
        self._marks.append((k, self._device.fetch(self._probe)))
        while len(self._marks) > (0 if self._device.synchronous else 2):
            self._tell()

    def finish(self) -> None:
        while self._marks:
            self._tell()

    def _tell(self) -> None:
        k, pending = self._marks.popleft()
        pending.result()
        self._progress(k + 1)
