"""The one place that knows each component's inputs, outputs, types and shapes for a window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from v2v.export.models.configs import ModelConfig

ComponentName = Literal["text_encoder", "vae_encoder", "unet", "vae_decoder"]
Precision = Literal["fp16", "fp32"]

COMPONENTS: tuple[ComponentName, ...] = ("text_encoder", "vae_encoder", "unet", "vae_decoder")

# The UNet's downsampling convolutions pad rows by 2 and its upsampling drops the first and last row, so three
# levels of it return to the same height only when the latent height is 2 modulo 8 (reference, UNet, last line).
_LATENT_ROWS_REMAINDER = 2


@dataclass(frozen=True)
class Window:
    """Frames x height x width, in pixels, that the UNet engine takes at once.

    Raises:
        ValueError: a side that the UNet cannot take; the message names the nearest sizes that it can.
    """

    frames: int
    height: int
    width: int
    factor: int = 8  # pixels per latent position
    levels: int = 3  # halvings inside the UNet

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ValueError(f"a window needs at least one frame, not {self.frames}")
        for side, size, remainder in (
            ("height", self.height, self.row_remainder),
            ("width", self.width, 0),
        ):
            step = self.step
            if size < step or size % step != remainder:
                below = (size - remainder) // step * step + remainder
                near = [s for s in (below, below + step) if s >= step]
                raise ValueError(
                    f"a window's {side} must be a multiple of {step} plus {remainder}, not {size}; "
                    f"nearest: {' or '.join(map(str, near))}"
                )

    @property
    def step(self) -> int:
        """Pixels from one legal size to the next."""
        return int(self.factor * 2**self.levels)

    @property
    def row_remainder(self) -> int:
        """Pixels by which a legal height exceeds a multiple of :attr:`step`."""
        return self.factor * _LATENT_ROWS_REMAINDER % self.step

    @property
    def latent_height(self) -> int:
        """Rows of the latent."""
        return self.height // self.factor

    @property
    def latent_width(self) -> int:
        """Columns of the latent."""
        return self.width // self.factor

    def __str__(self) -> str:
        return f"{self.width}x{self.height}x{self.frames}"


@dataclass(frozen=True)
class Tensor:
    """One input or output of a component."""

    name: str
    dtype: str  # NumPy's name: float16, float32, int64
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Component:
    """What a graph and the engine made from it take and return."""

    name: ComponentName
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def components(model: ModelConfig, window: Window, precision: Precision) -> dict[ComponentName, Component]:
    """Describe the four components of ``model`` for ``window``.

    Every floating-point input and output has the engine set's precision. Guidance and latents are FP32 in the
    runtime, which converts at the engines' borders.

    - ``text_encoder``: ``ids [1, 77]`` -> ``context [1, 77, C]``
    - ``vae_encoder``: ``image [1, 3, H, W]`` in -1..1 -> ``moments [1, 2Z, h, w]`` (mean, log variance)
    - ``unet``: ``latents [1, Z, F, h, w]``, ``timestep [1]``, ``context`` -> ``velocity [1, Z, F, h, w]``
    - ``vae_decoder``: ``latents [1, Z, h, w]`` (unscaled) -> ``image [1, 3, H, W]`` in about -1..1
    """
    real = "float16" if precision == "fp16" else "float32"
    z, h, w = model.unet.latent_channels, window.latent_height, window.latent_width
    tokens = model.text_encoder.context
    context = Tensor("context", real, (1, tokens, model.text_encoder.width))
    image = Tensor("image", real, (1, 3, window.height, window.width))
    video_latents = (1, z, window.frames, h, w)
    described = (
        Component("text_encoder", (Tensor("ids", "int64", (1, tokens)),), (context,)),
        Component("vae_encoder", (image,), (Tensor("moments", real, (1, 2 * z, h, w)),)),
        Component(
            "unet",
            (Tensor("latents", real, video_latents), Tensor("timestep", "int64", (1,)), context),
            (Tensor("velocity", real, video_latents),),
        ),
        Component("vae_decoder", (Tensor("latents", real, (1, z, h, w)),), (image,)),
    )
    return {component.name: component for component in described}
