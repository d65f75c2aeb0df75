"""The components of a model: their inputs, outputs, types and shapes for a window."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from v2v.core.configs import ModelConfig
from v2v.core.errors import BuildError

ComponentName = Literal[
    "text_encoder", "image_encoder", "vae_encoder", "unet", "unet_full", "unet_outer", "vae_decoder"
]
Precision = Literal["fp16", "fp32"]

COMPONENTS: tuple[ComponentName, ...] = ("text_encoder", "vae_encoder", "unet", "vae_decoder")
"""Of an ordinary engine set of a model that enhances videos; :func:`component_names` knows those of every set."""

_MOST = 64  # of a window's factor and levels, which come from a file that anybody may have made


@dataclass(frozen=True)
class Window:
    """Frames x height x width, in pixels, that the UNet engine takes at once.

    Raises:
        ValueError: a side that the UNet cannot take; the message names the nearest sizes that it can. Or a number
            that no model has.
    """

    frames: int
    height: int
    width: int
    factor: int = 8  # pixels per latent position
    levels: int = 3  # halvings inside the UNet
    # Latent rows beyond a multiple of 2 ** levels. Where halving pads rows by 2 and doubling drops the first and the
    # last, three levels return to the same height only if it is 2 modulo 8 (reference, UNet, last line).
    rows_remainder: int = field(default=2, metadata={"added": True})

    def __post_init__(self) -> None:
        if not (1 <= self.factor <= _MOST and 0 <= self.levels <= _MOST):
            raise ValueError(f"no model has factor {self.factor} and levels {self.levels}")
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
        return self.factor * self.rows_remainder % self.step

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


def component_names(model: ModelConfig, reuse: bool = False) -> tuple[ComponentName, ...]:
    """The components of an engine set of ``model``, in the order in which they are built.

    One that can ``reuse`` deep features (DeepCache, Ma et al. 2024, https://arxiv.org/abs/2312.00858) has
    ``unet_full`` and ``unet_outer`` in the place of ``unet``.
    """
    encoders: tuple[ComponentName, ...] = (
        ("image_encoder",) if model.takes_pictures else ("text_encoder", "vae_encoder")
    )
    unet: tuple[ComponentName, ...] = ("unet_full", "unet_outer") if reuse else ("unet",)
    return (*encoders, *unet, "vae_decoder")


PROMPTED = ("context", "features")
"""Inputs of a UNet that differ from one prompt to the next."""


def shared_inputs(component: Component) -> list[int]:
    """Places of the inputs of a UNet that are the same for all prompts."""
    return [place for place, tensor in enumerate(component.inputs) if tensor.name not in PROMPTED]


def inputs_behind(component: Component) -> list[int]:
    """Places of the inputs of the part of a UNet that comes behind what all prompts share."""
    return [place for place, tensor in enumerate(component.inputs) if tensor.name in ("timestep", *PROMPTED)]


def is_unet(name: ComponentName) -> bool:
    """Whether a component is the UNet in one of its forms."""
    return name.startswith("unet")


def component(name: ComponentName, model: ModelConfig, window: Window, precision: Precision) -> Component:
    """Describe one component of ``model`` for ``window``; see :func:`components`."""
    return components(model, window, precision, reuse=name in ("unet_full", "unet_outer"))[name]


def components(
    model: ModelConfig, window: Window, precision: Precision, reuse: bool = False
) -> dict[ComponentName, Component]:
    """Describe the components of ``model`` for ``window``.

    Every floating-point input and output has the engine set's precision. Guidance and latents are FP32 in the
    runtime, which converts at the engines' borders.

    - ``text_encoder``: ``ids [1, 77]`` -> ``context [1, 77, C]``
    - ``image_encoder``: ``image [1, 3, S, S]``, standardised -> ``contexts [2, tokens, C]``, of it and of no picture
    - ``vae_encoder``: ``image [1, 3, H, W]`` in -1..1 -> ``moments [1, 2Z, h, w]`` (mean, log variance)
    - ``unet``: ``latents [1, Z, F, h, w]``, ``timestep [1]``, ``context`` -> ``velocity [1, Z, F, h, w]``
    - ``unet`` of a model with a control branch: further inputs ``hint [1, Z, F, h, w]``, scaled; with key frames also
      ``keys [1, F]``, 1 where a frame has a hint and else 0, ``hint_timestep [1]`` and ``enlargement [1]``
    - ``unet_full``: the same, and ``features [1, F, h, w, C]``, what enters its last block
    - ``unet_outer``: ``latents``, ``timestep``, ``context``, ``features`` -> ``velocity``; first and last block only
    - ``vae_decoder``: ``latents [N, Z, h, w]`` (unscaled) -> ``image [N, 3, H, W]`` in about -1..1, N frames of a clip
      where the decoder mixes them and else 1; one that sees the source also takes ``source [N, 3, H, W]`` in -1..1
    """
    real = "float16" if precision == "fp16" else "float32"
    z, h, w = model.unet.latent_channels, window.latent_height, window.latent_width
    tokens, context_width = model.context
    context = Tensor("context", real, (1, tokens, context_width))
    contexts = Tensor("contexts", real, (2, tokens, context_width))
    side = model.image_encoder.size if model.image_encoder else 0
    image = Tensor("image", real, (1, 3, window.height, window.width))
    clip = model.autoencoder.decoder_frames
    latents = Tensor("latents", real, (clip, z, h, w))
    source = (Tensor("source", real, (clip, *image.shape[1:])),) if model.autoencoder.sees_source else ()
    video_latents = (1, z, window.frames, h, w)
    hint: tuple[Tensor, ...] = ()
    if model.unet.control != "none":
        hint = (Tensor("hint", real, video_latents),)
    if model.unet.control == "key frames":
        keys = Tensor("keys", real, (1, window.frames))
        hint = (*hint, keys, *(Tensor(name, "int64", (1,)) for name in ("hint_timestep", "enlargement")))
    to_unet = (Tensor("latents", real, video_latents), Tensor("timestep", "int64", (1,)), context, *hint)
    velocity = Tensor("velocity", real, video_latents)
    width = model.unet.width * model.unet.multipliers[0]
    features = Tensor("features", real, (1, window.frames, h, w, width))
    described = (
        Component("text_encoder", (Tensor("ids", "int64", (1, tokens)),), (context,)),
        Component("image_encoder", (Tensor("image", real, (1, 3, side, side)),), (contexts,)),
        Component("vae_encoder", (image,), (Tensor("moments", real, (1, 2 * z, h, w)),)),
        Component("unet", to_unet, (velocity,)),
        Component("unet_full", to_unet, (velocity, features)),
        Component("unet_outer", (*to_unet, features), (velocity,)),
        Component(
            "vae_decoder",
            (latents, *source),
            (Tensor("image", real, (clip, *image.shape[1:])),),
        ),
    )
    names = component_names(model, reuse)
    return {component.name: component for component in described if component.name in names}


def window_for(model: ModelConfig, size: tuple[int, int] | None = None, frames: int | None = None) -> Window:
    """The window of ``size`` (width, height, in pixels) and ``frames``; where None, the model's default.

    Raises:
        BuildError: a size that the UNet cannot take.
    """
    default_frames, default_height, default_width = model.defaults.window
    width, height = size or (default_width, default_height)
    try:
        return Window(
            default_frames if frames is None else frames,
            height,
            width,
            factor=model.autoencoder.factor,
            levels=len(model.unet.multipliers) - 1,
            rows_remainder=model.unet.rows_remainder,
        )
    except ValueError as error:
        raise BuildError(str(error)) from error
