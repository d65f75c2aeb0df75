"""Frames in, enhanced frames out: the steps of a whole run.

A video is cut into segments. Each is encoded frame by frame, noised, denoised as a whole and decoded again; the next
one is shown the last frames of the one before it. Everything between the upload of a frame's bytes and the download
of the enhanced ones stays on the device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from v2v.core.errors import EngineError, V2VError
from v2v.device import Array, Device, Frame
from v2v.engine.backend import Engines
from v2v.engine.choose import Unbuilt
from v2v.runtime.between import repeated
from v2v.runtime.diffusion import noise
from v2v.runtime.diffusion.estimate import Work, canvas_of
from v2v.runtime.diffusion.guidance import Guidance
from v2v.runtime.diffusion.latents import Canvas, FrameDecoder, FrameEncoder, tiles_of
from v2v.runtime.diffusion.loaded import LoadedEngines, Memory, can_reuse
from v2v.runtime.diffusion.progress import Progress, Report, Step
from v2v.runtime.diffusion.prompt import Tokenizer
from v2v.runtime.diffusion.sampling import DenoisingLoop, Hint, NumericalError, noised
from v2v.runtime.diffusion.segments import Carry, Segment, overlap, segments, shared_frames
from v2v.runtime.diffusion.settings import Plan, Settings, plan
from v2v.runtime.diffusion.solvers import SOLVERS
from v2v.runtime.diffusion.tensors import Frames
from v2v.runtime.diffusion.windows import Span, chunks, joined

_LONG_REHEARSAL = 0.5  # seconds

# Frames of the pieces of STAR's and VEnhancer's authors; how much longer the last one may be.
_CHUNK, _TO_THE_END = 32, {"cut": 1.25, "fade": 1.33}


def check_reuse(plan: Plan, engines: Engines | Unbuilt) -> None:
    """Refuse to reuse features with engines that leave none.

    Raises:
        EngineError: with the command that builds engines that do.
    """
    if plan.reuse > 1 and not can_reuse(engines):
        raise EngineError(
            f"--reuse {plan.reuse}: engine set {engines.facts['engines']} was built without --reuse; "
            f"build another with: {engines.command_with_reuse}"
        )


def check_between(plan: Plan, engines: Engines | Unbuilt) -> None:
    """Refuse to make frames between frames where no two frames of the source fit into a window.

    Raises:
        EngineError: names the least window.
    """
    if plan.between >= engines.window.frames:
        raise EngineError(
            f"--interpolate {plan.between}: needs engines that take at least {plan.between + 1} frames, and "
            f"{engines.facts['engines']} takes {engines.window.frames}; build others with --frames"
        )


def with_room_between(
    frames: Iterable[Frame], cuts: Collection[int], times: int
) -> tuple[Iterator[Frame], Collection[int]]:
    """Frames with each repeated ``times`` times, and where the cuts are then, known when their frame is taken."""
    moved: set[int] = set()

    def give() -> Iterator[Frame]:
        for number, given in enumerate(repeated(frames, times, lambda n: n in cuts)):
            if given.starts_shot:
                moved.add(number)
            yield given.item

    return give(), moved


def _seconds_of(work: Callable[[], None]) -> float:
    """What ``work`` takes; of short work the second time, as the first makes things ready."""
    for _ in range(2):
        started = time.monotonic()
        work()
        seconds = time.monotonic() - started
        if seconds > _LONG_REHEARSAL:
            break
    return seconds


class VideoToVideo(LoadedEngines):
    """An engine set, loaded on a device and ready to enhance videos.

    v2v = VideoToVideo.load("engines/small")
    for frame in v2v(frames, "a bunny in a meadow", seed=7):
        ...
    """

    def __init__(self, engines: Engines, device: Device, memory: Memory = "high") -> None:
        super().__init__(engines, device, memory)
        self._prepared: tuple[Plan, tuple[int, int, int], DenoisingLoop] | None = None
        self._encode_prompts = lru_cache(maxsize=8)(self._run_text_encoder)

    def __call__(
        self,
        frames: Iterable[Any],
        settings: Settings | str = "",
        *,
        total: int | None = None,
        cuts: Collection[int] = (),
        progress: Callable[[Progress], None] = lambda now: None,
        on_step: Callable[[Step], None] | None = None,
        **changes: Any,
    ) -> Iterator[Any]:
        """Enhance ``frames``, giving out one frame for each taken in; memory does not grow with their number.

        Args:
            frames: [H, W, 3] RGB, all of one size, uint8 in 0..255 or uint16 in 0..65535; arrays, or PyTorch's tensors
                on any device, for which tensors on the CPU come out.
            settings: what to do, or just a prompt; what is not given is left to the model's defaults.
            total: number of frames, where known, for the estimate of time left.
            cuts: numbers of the frames that start a new shot. It may grow while frames are taken, as long as a
                cut is known when its frame is.
            progress: called after every frame encoded or decoded and every evaluation of the UNet.
            on_step: called with the latents after every step, for which the device is waited for.
            changes: single settings, by the names in :class:`Settings`: ``v2v(frames, "a red fox", steps=20)``.

        Raises:
            TypeError: there is no such setting.
            V2VError: a setting out of range.
            NumericalError: a latent or a picture became NaN or Inf.
        """
        settings = Settings(settings) if isinstance(settings, str) else settings
        settings = replace(settings, **changes)
        report = Report(progress, total, on_step=on_step)
        carry: Carry | None = None
        taken = frames = Frames(frames)
        parity, between = settings.parity, settings.interpolate or 1
        if between > 1:
            frames, cuts = with_room_between(frames, cuts, between)
        for segment in segments(
            self.window,
            frames,
            cuts,
            whole=parity,
            most=self.model.parity.frames if parity else None,
            multiple=between,
        ):
            source = segment.frames[0].shape
            segment_plan = plan(settings, self.model, (source[0], source[1]), can_reuse(self.engines))
            pictures, carry = self.enhance(segment, segment_plan, carry, report)
            for picture in pictures:
                report.frames_done += 1
                yield taken.like_given(picture)

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
        carried_frames = 0 if carry is None else len(carry.latents)
        canvas = canvas_of(plan, self.model, self.window)
        frames = max(carried_frames + len(segment.frames) + len(segment.ahead), self.window.frames)
        frames += -(frames - self.window.frames) % plan.between  # windows begin at frames of the source
        loop = self._loop(plan, (frames, *canvas.latent))
        source = noise.keyed(plan.seed, (self.model.unet.latent_channels, *canvas.latent))
        frame_numbers = range(segment.first - carried_frames, segment.first - carried_frames + frames)

        stop = carried_frames + len(segment.frames)
        last = slice(max(stop - shared_frames(self.window, plan.between), 0), stop)
        self._encode(segment, plan, canvas, source, loop.x, carried_frames, report)
        clean = self._clean(loop, carry, last)
        if (shown := loop.shown) is not None:
            self.device.copy(loop.x, shown)
        diffusion = noise.canvas(source, frame_numbers, noise.DIFFUSION)
        carried = self._add_noise(plan, loop, diffusion, carry if self.model.carries == "finished" else None)
        contexts = self._encode_prompts(plan.prompt, plan.negative_prompt, plan.parity)
        loop.use(self._unet())
        hint = None if shown is None else self._hint(shown, segment, plan, source, frame_numbers, stop)
        report.begin("denoise", segment, len(loop.updates), loop.evaluations)
        latents = loop.run(
            contexts,
            lambda step: noise.canvas(source, frame_numbers, step),
            report.step,
            segment.first - carried_frames,
            carried,
            hint,
            self._watching(report, segment, frame_numbers[0], loop),
            report.evaluated,
        )
        if carry is not None:
            self._fade_over(carry.ahead, self.device.view(latents, slice(carried_frames, frames)))
        finished = self.device.download(self.device.view(latents, last))
        if carry is not None:  # the network's view of finished frames is not what was given out
            in_last = max(carried_frames - last.start, 0)
            finished[:in_last] = carry.latents[carried_frames - in_last :]
        fresh = self.device.view(latents, slice(carried_frames, stop))
        ahead = self.device.download(self.device.view(latents, slice(stop, stop + len(segment.ahead))))
        return self._decode(fresh, segment, plan, canvas, report), Carry(finished, ahead, clean)

    def rehearse(self, plan: Plan) -> Work:
        """Seconds of a unit of each kind of work, from one of each: a tile, an evaluation of the UNet, a tile.

        Where tiles take no time to speak of, those of a whole picture are measured, with what else it costs.
        """
        window = replace(plan, size=(self.window.height, self.window.width), parity=False)
        canvas = canvas_of(window, self.model, self.window)
        loop = self._loop(window, (self.window.frames, *canvas.latent))
        loop.use(self._unet())
        contexts = self._encode_prompts(plan.prompt, plan.negative_prompt, plan.parity)
        encode, decode = self._rehearse_pictures(plan, canvas)
        evaluation = _seconds_of(partial(loop.rehearse, contexts))
        whole = canvas_of(replace(plan, parity=False), self.model, self.window)
        tiles = tiles_of(whole.latent, canvas.latent)
        if (encode + decode) * tiles < _LONG_REHEARSAL:
            encode, decode = (seconds / tiles for seconds in self._rehearse_pictures(plan, whole))
        return Work(encode, evaluation, decode)

    def _rehearse_pictures(self, plan: Plan, canvas: Canvas) -> tuple[float, float]:
        """Seconds of encoding and of decoding a black picture on a canvas."""
        device, scale = self.device, self.model.latent_scale
        frame = np.zeros((*canvas.size, 3), np.uint8)
        drawn = np.zeros((self.model.unet.latent_channels, *canvas.latent), np.float32)
        latents = device.empty((1, *drawn.shape), np.float32)
        encode = FrameEncoder(device, self._engine("vae_encoder"), canvas, scale, antialias=True)
        decode = FrameDecoder(
            device, self._engine("vae_decoder"), canvas, scale, colors=plan.color, truncate=False
        )

        def encode_one() -> None:
            encode(frame, drawn, latents)
            device.synchronize()

        def decode_one() -> None:
            for decoded in decode.clip(latents, [frame], 0):
                decoded.result()

        return _seconds_of(encode_one), _seconds_of(decode_one)

    @staticmethod
    def _watching(
        report: Report, segment: Segment, first: int, loop: DenoisingLoop
    ) -> Callable[[int, npt.NDArray[np.float32]], None] | None:
        """What tells ``report.on_step`` of the latents, if it is to be told."""
        tell, updates = report.on_step, loop.updates
        if tell is None:
            return None
        return lambda k, latents: tell(
            Step(segment.index, first, k + 1, len(updates), updates[k].sigma, latents)
        )

    def _clean(self, loop: DenoisingLoop, carry: Carry | None, last: slice) -> npt.NDArray[np.float32] | None:
        """Complete the source's latents, which :attr:`loop.x` still is, by those of carried frames.

        Returns those of the ``last`` frames, for the next segment. None: the model has no use for them.
        """
        if loop.shown is None and self.model.carries == "finished":
            return None
        if carry is not None:
            assert carry.source is not None, "a segment's carry is that of the same model"
            self.device.upload(carry.source, self.device.view(loop.x, slice(0, len(carry.source))))
        latents: npt.NDArray[np.float32] = self.device.download(self.device.view(loop.x, last))
        return latents

    def _hint(
        self,
        shown: Array,
        segment: Segment,
        plan: Plan,
        source: noise.Source,
        frame_numbers: range,
        stop: int,
    ) -> Hint:
        """What the control branch sees: the source's frames, or of a model with key frames those alone, with noise."""
        if not self.model.interpolates:
            return Hint(shown)
        device = self.device
        offset = segment.offset - (segment.first - frame_numbers[0])  # in its shot, of the first frame here
        there = stop + len(segment.ahead)
        keys = np.array([n < there and (offset + n) % plan.between == 0 for n in range(len(frame_numbers))])
        level = (plan.hint_noise or 0) - 1
        alpha, s = plan.schedule.noising(level) if level >= 0 else (1.0, 0.0)
        for number, is_key in enumerate(keys):
            latent = device.view(shown, slice(number, number + 1))
            if not is_key:
                device.zero(latent)
            elif level >= 0:
                drawn = device.upload(source(frame_numbers[number], noise.HINT)[None])
                device.combine([(alpha, latent), (s, drawn)], latent)
        return Hint(shown, keys, max(level, 0), plan.up_scale or 1)

    def _fade_over(self, earlier: npt.NDArray[np.float32], latents: Array) -> None:
        """Cross-fade from the earlier segment's view of the first frames to this one's, as between windows."""
        for index in range(len(earlier)):
            share = (len(earlier) - index) / (len(earlier) + 1)
            later = self.device.view(latents, slice(index, index + 1))
            before = self.device.upload(earlier[index : index + 1])
            self.device.combine([(share, before), (1 - share, later)], later)

    def _encode(
        self,
        segment: Segment,
        plan: Plan,
        canvas: Canvas,
        source: noise.Source,
        latents: Array,
        carried_frames: int,
        report: Report,
    ) -> None:
        """Frames -> clean latents behind the carried ones; the last is repeated to the end of the canvas."""
        device = self.device
        report.begin("encode", segment, len(segment.frames) + len(segment.ahead))
        encode = FrameEncoder(
            device, self._engine("vae_encoder"), canvas, self.model.latent_scale, antialias=not plan.parity
        )
        device.zero(latents)
        index = carried_frames
        for index, frame in enumerate((*segment.frames, *segment.ahead), start=carried_frames):
            number = segment.first - carried_frames + index
            repeat = (segment.offset + index - carried_frames) % plan.between
            if repeat and index > carried_frames and not plan.parity:  # the same picture again
                device.copy(device.view(latents, index - 1), device.view(latents, index))
                continue
            encode(frame, source(number, noise.POSTERIOR), device.view(latents, index))
            report.step(index - carried_frames + 1)
        for padding in range(index + 1, latents.shape[0]):
            device.copy(device.view(latents, index), device.view(latents, padding))
        device.check(latents, 0)
        device.synchronize()
        if failure := device.failure():
            number = failure.frame - carried_frames + segment.first
            raise NumericalError(
                f"a latent became NaN or Inf in component vae_encoder, frame {number}; "
                "engines built with --option vae_encoder=fp32 may avoid it"
            )

    def _add_noise(
        self, plan: Plan, loop: DenoisingLoop, noise_values: npt.NDArray[np.float32], carry: Carry | None
    ) -> tuple[Array, Array] | None:
        """Clean latents -> the noisy ones that the solver starts from, in place; returns carried latents and noise."""
        device, schedule = self.device, plan.schedule
        sigma = loop.updates[0].sigma
        diffusion = device.upload(noise_values)
        if plan.parity:  # the reference starts from sigma z_t, not z_t / alpha: its first input is 2.8 % low
            alpha, s = schedule.noising(schedule.start(plan.strength))
            device.combine([(sigma * alpha, loop.x), (sigma * s, diffusion)], loop.x)
        else:
            device.combine(noised(loop.x, sigma, diffusion), loop.x)
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
        for index, queued in enumerate(decode.clip(latents, segment.frames, segment.first)):
            if pending is not None:
                yield self._checked(pending.result())
            report.step(index + 1)
            pending = queued
        if pending is not None:
            yield self._checked(pending.result())

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
        return Tokenizer(self.engines.tokenizer_path, self.model.words)

    def _loop(self, plan: Plan, extent: tuple[int, int, int]) -> DenoisingLoop:
        """The denoising loop for ``plan`` and ``extent``; consecutive segments of one shape share it.

        Only one loop is held at a time: making another for a segment of another shape, as the last one of a shot, is
        cheaper than the memory of two.
        """
        if self._prepared is not None and self._prepared[:2] == (plan, extent):
            return self._prepared[2]
        self._free_loop()  # before other buffers are made
        check_reuse(plan, self.engines)
        loop = DenoisingLoop(
            self.device,
            self._unet(),
            plan.schedule,
            SOLVERS[plan.solver](plan.sigmas),
            Guidance(plan.guidance, plan.guidance_rescale, plan.guidance_interval),
            extent,
            overlap(self.window, plan.between),
            plan.reuse,
            plan.between,
            self._chunks(plan, extent[0]),
        )
        self._prepared = plan, extent, loop
        return loop

    def _chunks(self, plan: Plan, frames: int) -> list[Span] | None:
        """How the authors' code takes a longer video apart; None where it does not, or is not followed.

        Raises:
            V2VError: engines of this window cannot take its pieces.
        """
        how, held = self.model.parity.chunks, self.window.frames
        if not plan.parity or how == "none" or frames == held:
            return None
        between = plan.between
        longest = (_CHUNK - 1) // between * between + 1  # begins and ends with a frame of the source
        overlap = (_CHUNK // 2 - 1) // between * between + 1
        pieces = chunks(frames, longest, overlap, _TO_THE_END[how])
        lengths = sorted({stop - start for start, stop in pieces})
        if lengths != [held]:
            raise V2VError(
                f"--parity: the authors' code takes {frames} frames apart into pieces of "
                f"{' and '.join(map(str, lengths))}, and these engines take {held}; build others with --frames, or "
                "choose another --end"
            )
        return joined(pieces, fade=how == "fade")

    def _free_loop(self) -> None:
        if self._prepared is not None:
            self._prepared[2].close()
            self._prepared = None

    def close(self) -> None:
        """Free the memory of engines and buffers."""
        self._free_loop()
        super().close()
