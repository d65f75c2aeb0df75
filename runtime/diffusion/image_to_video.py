"""A picture in, the frames of a film out: the first stage of the pair, which makes what the second enhances.

The picture is never encoded as an image and is not the first frame. What the image encoder sees in its middle square
guides the UNet, and the film is made of noise alone, by the same loop as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from v2v.core.configs import ModelConfig
from v2v.core.errors import V2VError
from v2v.device import Array, Frame
from v2v.runtime.diffusion import noise
from v2v.runtime.diffusion.guidance import Guidance
from v2v.runtime.diffusion.latents import Canvas, FrameDecoder
from v2v.runtime.diffusion.loaded import LoadedEngines
from v2v.runtime.diffusion.picture import Picture, clip_image
from v2v.runtime.diffusion.progress import Progress, Report
from v2v.runtime.diffusion.sampling import DenoisingLoop
from v2v.runtime.diffusion.schedule import LEVELS, Schedule
from v2v.runtime.diffusion.segments import Segment, overlap
from v2v.runtime.diffusion.settings import Settings, check_range
from v2v.runtime.diffusion.solvers import SOLVERS, Update

Contexts = tuple[Array, Array]
"""Of the picture, and of no picture: ``[1, tokens, C]`` each."""

MOST_FRAMES = 1000


@dataclass(frozen=True)
class Animation:
    """How a picture becomes a film; None leaves a value to the model.

    ``frames`` are those of the film, at the rate that the model knows. ``parity`` follows the reference in its oddities
    too: how it prepares the picture, the number of steps, noise that is left at the end, truncated bytes.
    """

    frames: int | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int = Settings.seed
    parity: bool = False


@dataclass(frozen=True)
class AnimationPlan:
    """:class:`Animation` made whole for one model."""

    frames: int
    steps: int
    guidance: float
    seed: int
    parity: bool

    @classmethod
    def of(cls, asked: Animation, model: ModelConfig) -> AnimationPlan:
        """Fill in the model's defaults.

        Raises:
            V2VError: a value out of range; names the flag and what it takes.
        """
        usual = model.defaults
        made = cls(
            usual.window[0] if asked.frames is None else asked.frames,
            usual.steps if asked.steps is None else asked.steps,
            usual.guidance if asked.guidance is None else asked.guidance,
            asked.seed,
            asked.parity,
        )
        for flag, value, low, high in (
            ("--frames", made.frames, 1, MOST_FRAMES),
            ("--steps-first", made.steps, 2, LEVELS),
            ("guidance", made.guidance, 0, 100),
            ("--seed", made.seed, 0, 2**64 - 1),
        ):
            check_range(flag, value, low, high)
        return made

    def schedule(self, model: ModelConfig) -> Schedule:
        """The model's noise levels and the way of a run through them."""
        return Schedule(exact=self.parity, name=model.schedule)

    def updates(self, model: ModelConfig) -> list[Update]:
        """The solver's table, from the level with most noise down."""
        solver = SOLVERS[model.defaults.solver]
        return solver(solver.grid(self.schedule(model), LEVELS - 1, self.steps))


class ImageToVideo(LoadedEngines):
    """An engine set of a model that takes pictures, loaded on a device.

    v2v = ImageToVideo.load("engines/ms-image2video")
    for frame in v2v(picture, seed=7):  # uint8 [H, W, 3] in and out
        ...
    """

    takes_pictures = True

    def __call__(
        self,
        picture: Picture,
        asked: Animation | None = None,
        *,
        progress: Callable[[Progress], None] = lambda told: None,
        **changes: Any,
    ) -> Iterator[Frame]:
        """The frames of a film that ``picture`` guides, of the engines' size.

        Args:
            picture: ``[H, W, 3]``, RGB, uint8. Only the square in its middle counts.
            asked: how; what is not given is left to the model's defaults.
            progress: told after every evaluation of the UNet and every frame decoded.
            changes: single values, by the names in :class:`Animation`: ``v2v(picture, frames=16)``.

        Raises:
            TypeError: there is no such value.
            V2VError: a value out of range, or no such picture.
            NumericalError: a latent or a picture became NaN or Inf.
        """
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise V2VError(f"a picture is uint8 [H, W, 3], not {picture.dtype} {list(picture.shape)}")
        made = AnimationPlan.of(replace(asked or Animation(), **changes), self.model)
        report = Report(progress, made.frames)
        encoder = self.model.image_encoder
        assert encoder is not None
        contexts = self.encode(clip_image(picture, encoder.size, parity=made.parity))
        latents = self.denoise(contexts, self.start(made), made, report)
        yield from self.decode(latents, made, report)

    def encode(self, image: npt.NDArray[np.float32]) -> Contexts:
        """``image [1, 3, S, S]``, standardised -> its context and that of no picture."""
        device, engine = self.device, self._engine("image_encoder")
        (tensor,), (described,) = engine.component.inputs, engine.component.outputs
        contexts = device.empty(described.shape, described.dtype)
        shown = device.upload(image, device.empty(tensor.shape, tensor.dtype))
        engine.run({"image": shown}, {"contexts": contexts}, device.stream)
        return device.view(contexts, 0), device.view(contexts, 1)

    def start(self, made: AnimationPlan) -> npt.NDArray[np.float32]:
        """The noise that a film is made of, ``[T, Z, h, w]``, T not less than the window's frames.

        To noise for each position comes one number for each channel and frame, as the model was trained with.
        """
        channels = self.model.unet.latent_channels
        numbers = range(max(made.frames, self.window.frames))
        size = self.window.latent_height, self.window.latent_width
        own = noise.canvas(noise.keyed(made.seed, (channels, *size)), numbers, noise.DIFFUSION)
        shared = noise.canvas(noise.keyed(made.seed, (channels, 1, 1)), numbers, noise.OFFSET)
        start: npt.NDArray[np.float32] = own + np.float32(self.model.offset_noise) * shared
        return start

    def denoise(
        self,
        contexts: Contexts,
        start: npt.NDArray[np.float32],
        made: AnimationPlan,
        report: Report | None = None,
    ) -> Array:
        """``start [T, Z, h, w]`` -> the film's latents, scaled, of the same shape.

        Raises:
            NumericalError: a latent became NaN or Inf.
        """
        report = report or Report()
        device, schedule, updates = self.device, made.schedule(self.model), made.updates(self.model)
        loop = DenoisingLoop(
            device,
            self._unet(),
            schedule,
            updates,
            Guidance(made.guidance, 0.0),
            (len(start), *start.shape[2:]),
            overlap(self.window),
        )
        # The noise is taken for latents of the first level, although these would hold some signal (reference, 4).
        device.combine([((updates[0].sigma ** 2 + 1) ** 0.5, device.upload(start))], loop.x)
        report.begin("denoise", _whole(made), len(updates))
        try:
            latents = loop.run(contexts, lambda step: start, report.step)
        finally:
            loop.close()
        if made.parity:  # the last step ends at level 0, where some of the noise is left
            device.combine([(schedule.noising(0)[0], latents)], latents)
        return latents

    def decode(self, latents: Array, made: AnimationPlan, report: Report | None = None) -> Iterator[Frame]:
        """Latents -> frames ``[H, W, 3]``, uint8, as many as are wanted.

        Raises:
            NumericalError: a picture became NaN or Inf.
        """
        report = report or Report()
        size = self.window.height, self.window.width
        canvas = Canvas(size, (self.window.latent_height, self.window.latent_width), self.window.factor)
        decode = FrameDecoder(
            self.device,
            self._engine("vae_decoder"),
            canvas,
            self.model.latent_scale,
            colors="none",
            truncate=made.parity,
        )
        report.begin("decode", _whole(made), made.frames)
        for number in range(made.frames):
            picture = self._checked(decode(self.device.view(latents, number), None, number).result())
            report.frames_done += 1
            report.step(number + 1)
            yield picture


def _whole(made: AnimationPlan) -> Segment:
    """The film as one segment, whose frames are only counted."""
    return Segment(0, 0, [np.empty((0, 0, 3), np.uint8)] * made.frames, False)
