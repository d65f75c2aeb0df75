"""Frames in, enhanced frames out: the story of a whole run.

A video is cut into segments. Each is encoded frame by frame, noised, denoised as a whole and decoded again; the next
one is shown the last frames of the one before it. Everything between the upload of a frame's bytes and the download
of the enhanced ones stays on the device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from v2v.core.components import ComponentName, Window, is_unet
from v2v.core.configs import Defaults
from v2v.device import Array, Device, Frame
from v2v.device.cpu import CpuDevice
from v2v.engine.backend import Engine, EngineError, V2VError
from v2v.engine.store import EngineSet
from v2v.runtime.diffusion import noise
from v2v.runtime.diffusion.colors import ColorMatch
from v2v.runtime.diffusion.deepcache import UNetEngines, evaluations_in_full
from v2v.runtime.diffusion.latents import Canvas, FrameDecoder, FrameEncoder
from v2v.runtime.diffusion.prompt import Tokenizer
from v2v.runtime.diffusion.sampling import DenoisingLoop, Guidance, NumericalError
from v2v.runtime.diffusion.schedule import Schedule
from v2v.runtime.diffusion.solvers import SOLVERS

Memory = Literal["high", "low"]

# Neighbouring windows share a quarter of their frames, rows and columns; so do neighbouring segments of a shot.
_OVERLAP = 4
# Frames that a segment is shown of the next one, where windows share as many. With two the step between segments on a
# still picture is that between any two frames; with none it was 9 % larger (small model, windows of 8 frames).
_LEAST_AHEAD = 2
# A segment is this many windows long: long enough that seams are rare, short enough that its frames fit in memory.
_WINDOWS_PER_SEGMENT = 3
_SEGMENT_BYTES = 1 << 30  # of decoded frames, as long as a window is not more than that
# What the reference makes of every clip.
PARITY_FRAMES = 32
PARITY_SIZE = (720, 1280)
# What ``fast`` asks for (benchmarks/NOTES.md has the reasons): about 22 evaluations of the UNet instead of 60, and of
# those every second one on features of the one before where the engines can. No more steps than the model makes.
_FAST_STEPS, _FAST_SOLVER, _FAST_INTERVAL, _FAST_REUSE = 12, "dpmpp_2m", (0.08, 0.56), 2


@dataclass(frozen=True)
class Settings:
    """What a run may be told; None leaves a value to the model's defaults.

    ``strength`` is the noise level, 0..1 of the 1000 levels; guidance acts only at the levels inside
    ``guidance_interval``, which spares the other steps their second evaluation. Every ``reuse``-th evaluation is made
    in full, the others on its deep features, with engines that can. ``fast`` stands for a combination of fewer steps,
    a solver for few steps, a narrow interval and reuse; whatever is said besides holds instead. ``size`` is the
    output's (height, width) in pixels; without it ``scale`` times the input's. ``depth`` is the bits of a component
    wanted: with 8 the pictures given out are uint8, with more uint16, with None as the frames taken in. ``parity``
    follows the reference in its oddities too: 1280x720 by stretching without antialiasing, the first 32 frames, its
    schedule's rounding, its start, its colours and truncated bytes.
    """

    prompt: str = ""
    negative_prompt: str | None = None
    steps: int | None = None
    solver: str | None = None
    strength: float | None = None
    guidance: float | None = None
    guidance_rescale: float | None = None
    guidance_interval: tuple[float, float] | None = None
    reuse: int | None = None
    fast: bool = False
    seed: int = 666  # as published
    size: tuple[int, int] | None = None
    scale: float | None = None
    color: ColorMatch = "wavelet"
    depth: int | None = None
    parity: bool = False


@dataclass(frozen=True)
class Plan:
    """:class:`Settings` made whole for one model and one source: nothing is left to a default."""

    prompt: str
    negative_prompt: str | None
    steps: int
    solver: str
    strength: float
    guidance: float
    guidance_rescale: float
    guidance_interval: tuple[float, float]
    reuse: int
    seed: int
    size: tuple[int, int]
    color: ColorMatch
    depth: int | None
    parity: bool

    @property
    def schedule(self) -> Schedule:
        """Noise levels and the way that grids take through them."""
        return Schedule(exact=self.parity)

    @property
    def levels(self) -> type[np.uint8 | np.uint16] | None:
        """Type of the levels of the pictures given out; None for that of the frames taken in."""
        return None if self.depth is None else np.uint16 if self.depth > 8 else np.uint8

    @property
    def sigmas(self) -> list[float]:
        """Noise-to-signal ratios of the run, falling to 0."""
        schedule = self.schedule
        grids = {"dpmpp_2m_sde": schedule.trailing, "dpmpp_2m": schedule.reaching, "heun": schedule.leading}
        return grids[self.solver](schedule.start(self.strength), self.steps)

    @property
    def evaluations(self) -> tuple[int, int]:
        """Of the UNet in one window: (in full, on the features of another)."""
        guidance = Guidance(self.guidance, self.guidance_rescale, self.guidance_interval)
        guided = [
            guidance.acts(self.schedule.timestep(row.sigma)) for row in SOLVERS[self.solver](self.sigmas)
        ]
        in_full = evaluations_in_full(guided, self.reuse)
        counts = [
            sum(1 + g for g, f in zip(guided, in_full, strict=True) if f is kind) for kind in (True, False)
        ]
        return counts[0], counts[1]


def plan(settings: Settings, defaults: Defaults, source: tuple[int, int], reuse: bool = False) -> Plan:
    """Fill in a model's defaults for a source of (height, width) pixels and engines that can ``reuse`` features or not.

    Raises:
        V2VError: a value out of range; names the flag and what it takes.
    """
    given = {
        name: value for name in Plan.__dataclass_fields__ if (value := getattr(settings, name)) is not None
    }
    usual = {name: getattr(defaults, name) for name in Plan.__dataclass_fields__ if hasattr(defaults, name)}
    made = Plan(
        **{
            "negative_prompt": None,
            "depth": None,
            "guidance_interval": (0.0, 1.0),
            "reuse": 1,
            **usual,
            **(_fast(defaults, reuse) if settings.fast else {}),
            **given,
            "size": output_size(settings, defaults, source),
        }
    )
    if made.parity and settings.fast:
        raise V2VError(
            "--fast and --parity contradict each other: the reference takes 30 steps; leave one of them out"
        )
    if made.parity:
        made = replace(made, size=PARITY_SIZE, color="none", depth=None)
    _check(made)
    return made


def _fast(defaults: Defaults, reuse: bool) -> dict[str, Any]:
    return {
        "steps": min(defaults.steps, _FAST_STEPS),
        "solver": _FAST_SOLVER,
        "guidance_interval": _FAST_INTERVAL,
        "reuse": _FAST_REUSE if reuse else 1,
    }


def can_reuse(engine_set: EngineSet) -> bool:
    """Whether the set's UNet can go on from the features of an earlier evaluation."""
    return "unet_outer" in engine_set.manifest.components


def check_reuse(plan: Plan, engine_set: EngineSet) -> None:
    """Refuse to reuse features with engines that leave none.

    Raises:
        EngineError: with the command that builds engines that do.
    """
    if plan.reuse > 1 and not can_reuse(engine_set):
        recipe = engine_set.manifest.recipe
        command = replace(recipe, options=replace(recipe.options, reuse=True)).command
        raise EngineError(
            f"--reuse {plan.reuse}: engine set {engine_set.path} was built without --reuse; "
            f"build another with: {command}"
        )


def output_size(settings: Settings, defaults: Defaults, source: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the output: as told, or the source's aspect at the model's usual size, even numbers."""
    if settings.size is not None:
        return settings.size
    scale = settings.scale
    if scale is None:
        scale = defaults.scale if defaults.short_side is None else defaults.short_side / min(source)
    elif not 0 < scale <= 100:
        raise V2VError(f"--scale {scale}: must lie above 0 and up to 100")
    height, width = (max(round(side * scale / 2) * 2, 2) for side in source)
    return height, width


def _check(plan: Plan) -> None:
    if plan.solver not in SOLVERS:
        raise V2VError(f"--solver {plan.solver}: there is no such solver; choose from {', '.join(SOLVERS)}")
    if plan.color not in get_args(ColorMatch):
        raise V2VError(f"--color {plan.color}: choose from {', '.join(get_args(ColorMatch))}")
    for flag, value, low, high in (
        ("--steps", plan.steps, 1, 998),
        ("--strength", plan.strength, 0.001, 0.998),
        ("--guidance", plan.guidance, 0, 100),
        ("--guidance-rescale", plan.guidance_rescale, 0, 1),
        ("--guidance-interval", plan.guidance_interval[0], 0, plan.guidance_interval[1]),
        ("--guidance-interval", plan.guidance_interval[1], plan.guidance_interval[0], 1),
        ("--reuse", plan.reuse, 1, 998),
        ("--seed", plan.seed, 0, 2**64 - 1),
        ("--depth", plan.depth or 8, 8, 16),
        ("--size", min(plan.size), 1, 2**15),
        ("--size", max(plan.size), 1, 2**15),
    ):
        if not low <= value <= high:
            raise V2VError(f"{flag} {value}: must lie between {low} and {high}")


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    ``step`` of ``steps`` counts frames while encoding and decoding, evaluations while denoising. Where others do
    the work, all that is told is which segments are finished: stage "finish", frames done of all.
    """

    stage: Literal["encode", "denoise", "decode", "finish"]
    segment: int
    step: int
    steps: int
    frames_done: int  # frames given out
    frames_total: int | None
    fraction: float | None  # of the whole run, 0..1, where the total is known
    seconds: float  # since the run began


@dataclass(frozen=True)
class Carry:
    """What a segment hands to the next: the finished latents ``[K, Z, h, w]`` of its last K frames.

    ``ahead`` ``[A, Z, h, w]`` are what it made of the frames that followed, :attr:`Segment.ahead`.
    """

    latents: npt.NDArray[np.float32]
    ahead: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Segment:
    """New frames that are denoised together, the first of them number ``first`` of the video."""

    index: int
    first: int
    frames: list[Frame]
    continues: bool  # the shot that the previous segment ended in
    ahead: list[Frame] = field(default_factory=list)  # those that follow in the shot, for context alone


class VideoToVideo:
    """An engine set, loaded on a device and ready to enhance videos.

    v2v = VideoToVideo.load("engines/small")
    for frame in v2v(frames, "a bunny in a meadow", seed=7):
        ...
    """

    def __init__(self, engine_set: EngineSet, device: Device, memory: Memory = "high") -> None:
        self.engine_set, self.device, self.memory = engine_set, device, memory
        recipe = engine_set.manifest.recipe
        self.model, self.window = recipe.model, recipe.window
        self._engines: dict[ComponentName, Engine] = {}
        self._prepared: tuple[Plan, tuple[int, int, int], DenoisingLoop] | None = None
        self._encode_prompts = lru_cache(maxsize=8)(self._run_text_encoder)

    @classmethod
    def load(
        cls, engine_set: EngineSet | Path | str, device: str = "auto", memory: Memory = "high"
    ) -> VideoToVideo:
        """Open an engine set on ``device``: "cpu", "cuda", or "auto" for the one that it was built for.

        With ``memory`` "low" the text encoder, the autoencoder and the UNet are never in memory together.

        Raises:
            EngineError: the set is damaged or does not run here; names the reason and the command that rebuilds it.
        """
        if not isinstance(engine_set, EngineSet):
            engine_set = EngineSet.open(Path(engine_set))
        if device == "auto":
            device = engine_set.manifest.recipe.options.device
        made = cls(engine_set, open_device(device), memory)
        if memory == "high":
            for name in engine_set.manifest.components:
                made._engine(name)
        return made

    def __call__(
        self,
        frames: Iterable[Frame],
        settings: Settings | str = "",
        *,
        total: int | None = None,
        cuts: Collection[int] = (),
        progress: Callable[[Progress], None] = lambda told: None,
        **changes: Any,
    ) -> Iterator[Frame]:
        """Enhance ``frames``, giving out one frame for each taken in; memory does not grow with their number.

        Args:
            frames: [H, W, 3] RGB, all of one size, uint8 in 0..255 or uint16 in 0..65535.
            settings: what to do, or just a prompt; what is not given is left to the model's defaults.
            total: number of frames, where known, for the estimate of time left.
            cuts: numbers of the frames that start a new shot. It may grow while frames are taken, as long as a
                cut is known when its frame is.
            progress: told after every frame encoded or decoded and every evaluation of the UNet.
            changes: single settings, by the names in :class:`Settings`: ``v2v(frames, "a red fox", steps=20)``.

        Raises:
            TypeError: there is no such setting.
            V2VError: a setting out of range.
            NumericalError: a latent or a picture became NaN or Inf.
        """
        settings = Settings(settings) if isinstance(settings, str) else settings
        settings = replace(settings, **changes)
        report = Report(progress, total)
        carry: Carry | None = None
        for segment in segments(self.window, frames, cuts, parity=settings.parity):
            source = segment.frames[0].shape
            made = plan(settings, self.model.defaults, (source[0], source[1]), can_reuse(self.engine_set))
            pictures, carry = self.enhance(segment, made, carry, report)
            for picture in pictures:
                report.frames_done += 1
                yield picture

    def enhance(
        self, segment: Segment, plan: Plan, carry: Carry | None = None, report: Report | None = None
    ) -> tuple[Iterator[Frame], Carry]:
        """Denoise one segment; returns its enhanced frames, decoded as they are taken, and what the next one needs.

        Take all frames before the next segment is enhanced: both use the same buffers.

        ``carry`` is that of the previous segment; it is used if the segment continues its shot. The same segment,
        plan and carry give the same bytes, whatever was enhanced before.
        """
        report = report or Report()
        carry = carry if segment.continues else None
        known = 0 if carry is None else len(carry.latents)
        canvas = Canvas.of(
            plan.size, (self.window.latent_height, self.window.latent_width), self.window.factor
        )
        frames = max(known + len(segment.frames) + len(segment.ahead), self.window.frames)
        loop = self._loop(plan, (frames, *canvas.latent))
        source = noise.keyed(plan.seed, (self.model.unet.latent_channels, *canvas.latent))
        numbers = range(segment.first - known, segment.first - known + frames)

        self._encode(segment, plan, canvas, source, loop.x, known, report)
        held = self._add_noise(plan, loop, noise.canvas(source, numbers, noise.DIFFUSION), carry)
        contexts = self._encode_prompts(plan.prompt, plan.negative_prompt, plan.parity)
        loop.use(self._unet())
        report.begin("denoise", segment, len(loop.updates))
        latents = loop.run(
            contexts,
            lambda step: noise.canvas(source, numbers, step),
            report.step,
            segment.first - known,
            held,
        )
        if carry is not None:
            self._fade_over(carry.ahead, self.device.view(latents, slice(known, frames)))
        stop = known + len(segment.frames)
        shared = shared_frames(self.window)
        last = self.device.download(self.device.view(latents, slice(max(stop - shared, 0), stop)))
        if carry is not None:  # the network's view of finished frames is not what was given out
            kept = max(known - max(stop - shared, 0), 0)
            last[:kept] = carry.latents[known - kept :]
        new = self.device.view(latents, slice(known, stop))
        ahead = self.device.download(self.device.view(latents, slice(stop, stop + len(segment.ahead))))
        return self._decode(new, segment, plan, canvas, report), Carry(last, ahead)

    def _fade_over(self, earlier: npt.NDArray[np.float32], latents: Array) -> None:
        """Cross-fade from the earlier segment's view of the first frames to this one's, as between windows."""
        for place in range(len(earlier)):
            share = (len(earlier) - place) / (len(earlier) + 1)
            own = self.device.view(latents, slice(place, place + 1))
            before = self.device.upload(earlier[place : place + 1])
            self.device.combine([(share, before), (1 - share, own)], own)

    def _encode(
        self,
        segment: Segment,
        plan: Plan,
        canvas: Canvas,
        source: noise.Source,
        latents: Array,
        known: int,
        report: Report,
    ) -> None:
        """Frames -> clean latents behind the ``known`` carried ones; the last is repeated to the canvas' end."""
        device = self.device
        report.begin("encode", segment, len(segment.frames) + len(segment.ahead))
        encode = FrameEncoder(
            device, self._engine("vae_encoder"), canvas, self.model.latent_scale, antialias=not plan.parity
        )
        device.zero(latents)
        place = known
        for place, frame in enumerate((*segment.frames, *segment.ahead), start=known):
            number = segment.first - known + place
            encode(frame, source(number, noise.POSTERIOR), device.view(latents, place))
            report.step(place - known + 1)
        for padding in range(place + 1, latents.shape[0]):
            device.copy(device.view(latents, place), device.view(latents, padding))
        device.check(latents, 0)
        device.synchronize()
        if failure := device.failure():
            raise NumericalError(
                f"a latent became NaN or Inf in component vae_encoder, frame {failure.frame - known + segment.first}; "
                "an FP32 engine set may avoid it"
            )

    def _add_noise(
        self, plan: Plan, loop: DenoisingLoop, draw: npt.NDArray[np.float32], carry: Carry | None
    ) -> tuple[Array, Array] | None:
        """Clean latents -> the solver's start, in place; returns the carried frames' latents and noise."""
        device, schedule = self.device, plan.schedule
        sigma = loop.updates[0].sigma
        diffusion = device.upload(draw)
        if plan.parity:  # the reference starts from sigma z_t, not z_t / alpha: its first input is 2.8 % low
            alpha, s = schedule.noising(schedule.start(plan.strength))
            device.combine([(sigma * alpha, loop.x), (sigma * s, diffusion)], loop.x)
        else:
            device.combine([(1.0, loop.x), (sigma, diffusion)], loop.x)
        if carry is None:
            return None
        return device.upload(carry.latents), device.view(diffusion, slice(0, len(carry.latents)))

    def _decode(
        self, latents: Array, segment: Segment, plan: Plan, canvas: Canvas, report: Report
    ) -> Iterator[Frame]:
        """Latents -> pictures; each is fetched while the next is being decoded."""
        device = self.device
        report.begin("decode", segment, len(segment.frames))
        decode = FrameDecoder(
            device,
            self._engine("vae_decoder"),
            canvas,
            self.model.latent_scale,
            colors=plan.color,
            truncate=plan.parity,
            levels=plan.levels or segment.frames[0].dtype,
        )
        pending = None
        for place, frame in enumerate(segment.frames):
            queued = decode(device.view(latents, place), frame, segment.first + place)
            if pending is not None:
                yield self._checked(pending.result())
            report.step(place + 1)
            pending = queued
        if pending is not None:
            yield self._checked(pending.result())

    def _checked(self, picture: Frame) -> Frame:
        if failure := self.device.failure():
            raise NumericalError(
                f"a picture became NaN or Inf in component vae_decoder, frame {failure.label}; "
                "an FP32 engine set may avoid it"
            )
        return picture

    def _run_text_encoder(
        self, prompt: str, negative_prompt: str | None, parity: bool
    ) -> tuple[Array, Array]:
        """Prompts -> contexts ``[1, 77, C]`` of the prompt with its quality words and of the negative prompt."""
        tokenizer = self._tokenizer
        engine = self._engine("text_encoder")
        context = engine.component.outputs[0]
        contexts = []
        for ids in (tokenizer.positive(prompt, parity=parity), tokenizer.negative(negative_prompt)):
            out = self.device.empty(context.shape, context.dtype)
            engine.run({"ids": self.device.upload(ids)}, {"context": out}, self.device.stream)
            contexts.append(out)
        return contexts[0], contexts[1]

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer(self.engine_set.tokenizer_path)

    def _loop(self, plan: Plan, extent: tuple[int, int, int]) -> DenoisingLoop:
        """Buffers, tables and captured steps, which serve all segments of one shape that follow one another.

        Only one set of buffers is ever held: a segment of another shape, the last one of a shot, is worth its making.
        """
        if self._prepared is not None and self._prepared[:2] == (plan, extent):
            return self._prepared[2]
        self._free_loop()  # before other buffers are made
        check_reuse(plan, self.engine_set)
        window = (self.window.frames, self.window.latent_height, self.window.latent_width)
        loop = DenoisingLoop(
            self.device,
            self._unet(),
            plan.schedule,
            SOLVERS[plan.solver](plan.sigmas),
            Guidance(plan.guidance, plan.guidance_rescale, plan.guidance_interval),
            extent,
            (shared_frames(self.window), window[1] // _OVERLAP, window[2] // _OVERLAP),
            plan.reuse,
        )
        self._prepared = plan, extent, loop
        return loop

    def _free_loop(self) -> None:
        if self._prepared is not None:
            self._prepared[2].close()
            self._prepared = None

    def _unet(self) -> UNetEngines:
        if can_reuse(self.engine_set):
            return UNetEngines(self._engine("unet_full"), self._engine("unet_outer"))
        return UNetEngines(self._engine("unet"))

    def _engine(self, name: ComponentName) -> Engine:
        """The component's engine, loaded if it is not; with low memory, the others are unloaded first."""
        if name not in self._engines:
            if self.memory == "low":
                self.device.synchronize()
                for other in list(self._engines):
                    if not (is_unet(name) and is_unet(other)):
                        self._engines.pop(other).close()
            self._engines[name] = self.engine_set.load(name, self.device.name)
        return self._engines[name]

    def close(self) -> None:
        """Free the memory of engines and buffers."""
        self._free_loop()
        for name in list(self._engines):
            self._engines.pop(name).close()


def segments(
    window: Window,
    frames: Iterable[Frame],
    cuts: Collection[int] = (),
    *,
    parity: bool = False,
    first_number: int = 0,
) -> Iterator[Segment]:
    """Collect frames into segments of a few windows, none of which spans a cut.

    ``first_number`` is the first frame's in the film; ``cuts`` count from that frame.
    """
    shared = shared_frames(window)
    length = PARITY_FRAMES
    waiting: list[Frame] = []
    index, first, continues = 0, 0, False
    for number, frame in enumerate(frames):
        if parity and number == PARITY_FRAMES:
            break
        if number == 0 and not parity:
            windows = min(max(_SEGMENT_BYTES // (frame.nbytes * window.frames), 1), _WINDOWS_PER_SEGMENT)
            length = window.frames * windows - shared * (windows - 1)
        full = len(waiting) == length - (shared if continues else 0)
        if waiting and (full or number in cuts):
            kept = len(waiting) - (0 if number in cuts else look_ahead(window))
            yield Segment(index, first_number + first, waiting[:kept], continues, waiting[kept:])
            index, first, continues, waiting = index + 1, first + kept, number not in cuts, waiting[kept:]
        waiting.append(frame)
    if waiting:
        yield Segment(index, first_number + first, waiting, continues)


def shared_frames(window: Window) -> int:
    """Frames that a segment sees again from the one whose shot it continues."""
    return window.frames // _OVERLAP


def look_ahead(window: Window) -> int:
    """Frames behind a segment that it is shown too, so that its last frames have neighbours on both sides.

    What it makes of them is cross-faded into what the next segment makes of them.
    """
    shared = shared_frames(window)
    return min(shared, max(shared // 2, _LEAST_AHEAD))


def open_device(name: str) -> Device:
    """The device called "cpu" or "cuda".

    Raises:
        EngineError: there is no such device, here or at all.
    """
    if name == "cpu":
        return CpuDevice()
    if name != "cuda":
        raise EngineError(f"--device {name}: there is no such device; choose cpu or cuda")
    from v2v.device.cuda import CudaDevice  # needs cuda-python, which a CPU does not

    return CudaDevice()


# Rough shares of a segment's time, for an estimate of the whole: they matter until the first segment is done.
_STAGES = {"encode": (0.0, 0.1), "denoise": (0.1, 0.7), "decode": (0.8, 0.2)}


class Report:
    """Puts what the stages tell into one :class:`Progress`, for ``total`` frames in all, of ``first_number`` on."""

    def __init__(
        self,
        progress: Callable[[Progress], None] = lambda told: None,
        total: int | None = None,
        first_number: int = 0,
    ) -> None:
        self._progress, self._total, self._first = progress, total, first_number
        self._began = time.monotonic()
        self.frames_done = 0
        self._now = Progress("encode", 0, 0, 1, 0, total, None, 0.0)

    def begin(self, stage: Literal["encode", "denoise", "decode"], segment: Segment, steps: int) -> None:
        """A stage of ``steps`` begins."""
        self._segment = segment
        self._now = replace(self._now, stage=stage, segment=segment.index, steps=steps)
        self.step(0)

    def step(self, step: int) -> None:
        """So many of the stage's steps are done."""
        self._now = replace(
            self._now,
            step=step,
            frames_done=self.frames_done,
            fraction=self._fraction(step),
            seconds=time.monotonic() - self._began,
        )
        self._progress(self._now)

    def finished(self, segment: int, frames: int) -> None:
        """``segment`` was finished, perhaps elsewhere and out of turn; ``frames`` are done in all."""
        if frames <= self.frames_done:
            return
        self.frames_done = frames
        self._now = replace(
            self._now,
            stage="finish",
            segment=segment,
            step=frames,
            steps=self._total or frames,
            frames_done=frames,
            fraction=min(frames / self._total, 1.0) if self._total else None,
            seconds=time.monotonic() - self._began,
        )
        self._progress(self._now)

    def _fraction(self, step: int) -> float | None:
        if not self._total:
            return None
        earlier, share = _STAGES[self._now.stage]
        within = earlier + share * step / max(self._now.steps, 1)
        before = self._segment.first - self._first
        return min((before + within * len(self._segment.frames)) / self._total, 1.0)
