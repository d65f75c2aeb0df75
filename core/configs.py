"""Hyper-parameters of every model, in one table.

A model is its networks plus the defaults a run starts from. This file needs nothing but the standard
library, so that building, loading and running can all read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

CLIP_CONTEXT = 77
"""Tokens of a prompt, start and end included."""

CLIP_VOCABULARY = 49408
"""Tokens that there are; the last two are start and end."""

# Marks a field that models built by earlier versions did not have: see :func:`facts_of`.
_ADDED = {"added": True}

# Marks a field that decides nothing of what is built, and so never identifies a model.
_OF_RUNS = {"identifies": False}

ControlName = Literal["none", "every frame", "key frames"]
"""What steers a UNet besides its prompt: nothing, a hint for every frame, or hints for some frames."""

ScheduleName = Literal["shifted cosine", "scaled linear"]
"""The noise levels that a model was trained with: ``v2v.runtime.diffusion.schedule`` knows their numbers."""

GridName = Literal["fast", "normal"]
"""The noise levels that a run goes through: far apart in the beginning, or as its solver spreads its steps."""

ColorName = Literal["wavelet", "adain", "none"]
CarryName = Literal["finished", "source"]


_LARGEST = 1 << 20  # no network has a larger number of anything
_MAY_BE_NONE = ("groups", "attention", "gated", "stem_heads", "encoder_width", "sees_source")


def _check_numbers(config: UNetConfig | AutoencoderConfig | TextEncoderConfig) -> None:
    """Raises ValueError if a number is none that a network can have; it may come from a file that anybody made."""
    for name, value in vars(config).items():
        if isinstance(value, str):
            continue
        numbers = value if isinstance(value, tuple) else (value,)
        least = 0 if name in _MAY_BE_NONE else 1
        if not numbers or not all(least <= number <= _LARGEST for number in numbers):
            raise ValueError(f"no network has {name} {value}")


@dataclass(frozen=True)
class UNetConfig:
    """The spatio-temporal UNet that predicts velocity (reference: ``Vid2VidSDUNet``)."""

    width: int = 320  # channels of the first level
    multipliers: tuple[int, ...] = (1, 2, 4, 4)  # channels of each level, in units of width
    blocks: int = 2  # residual blocks per level on the way down; one more on the way up
    head_size: int = 64
    # Heads of the temporal transformer right after the first convolution; 0: there is none.
    stem_heads: int = 8
    context_width: int = 1024
    latent_channels: int = 4
    # Levels whose blocks end in a spatial and a temporal transformer (the middle always has them). Attention
    # over a frame is quadratic in its positions, which a CPU can only afford on the coarse levels.
    attention: tuple[bool, ...] = (True, True, True, False)
    groups: int = 32  # of every group norm; 0: no group norms
    # Rows that halving adds above and below a map; doubling drops all but one of them again.
    row_padding: int = field(default=2, metadata=_ADDED)
    # Convolutions over three frames at the end of a residual block.
    temporal_stages: int = field(default=4, metadata=_ADDED)
    # Whether gates, made of the strongest and the mean channel, weigh tokens before they attend (STAR).
    gated: bool = field(default=False, metadata=_ADDED)
    # A second encoder, which sees a hint and adds to the skip connections.
    control: ControlName = field(default="none", metadata=_ADDED)

    @property
    def rows_remainder(self) -> int:
        """Latent rows by which a legal height exceeds a multiple of ``2 ** halvings``."""
        return 2 * (self.row_padding - 1)

    def __post_init__(self) -> None:
        _check_numbers(self)


@dataclass(frozen=True)
class AutoencoderConfig:
    """The Stable Diffusion autoencoder with a KL bottleneck."""

    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2  # residual blocks per level of the encoder; one more in the decoder
    latent_channels: int = 4
    groups: int = 32  # of every group norm; 0: no group norms
    attention: bool = True  # one attention over all positions in the middle of encoder and decoder
    # Frames that the decoder takes at once and mixes (AutoencoderKLTemporalDecoder); 1: frames one by one.
    decoder_frames: int = field(default=1, metadata=_ADDED)
    # Pixels along each side that become channels before the first convolution, and pixels again behind the last one
    # (Shi et al. 2016, https://arxiv.org/abs/1609.05158).
    patch: int = field(default=1, metadata=_ADDED)
    # The encoder's width, where it differs from the decoder's; 0: it does not.
    encoder_width: int = field(default=0, metadata=_ADDED)
    # Whether the decoder is shown the frame that is enhanced, and adds to it: what the frame has is not lost.
    sees_source: bool = field(default=False, metadata=_ADDED)

    def __post_init__(self) -> None:
        _check_numbers(self)

    @property
    def temporal(self) -> bool:
        """Whether the decoder mixes frames."""
        return self.decoder_frames > 1

    @property
    def factor(self) -> int:
        """Pixels per latent position along each side."""
        return int(self.patch * 2 ** (len(self.multipliers) - 1))


@dataclass(frozen=True)
class TextEncoderConfig:
    """The OpenCLIP text tower, read before its last block."""

    width: int = 1024
    heads: int = 16
    layers: int = 24
    vocabulary: int = CLIP_VOCABULARY
    context: int = CLIP_CONTEXT

    def __post_init__(self) -> None:
        _check_numbers(self)


@dataclass(frozen=True)
class ImageEncoderConfig:
    """The OpenCLIP image tower, and the layers that make a context of what it sees."""

    size: int = 224  # pixels of the picture's sides
    patch: int = 14  # pixels of a patch's sides
    width: int = 1280
    heads: int = 16
    layers: int = 32
    embedding: int = 1024  # numbers that the tower makes of a picture
    hidden: int = 1280  # of the context layers
    tokens: int = 4  # of the context
    context_width: int = 1024


@dataclass(frozen=True)
class Defaults:
    """What a run uses where the user says nothing."""

    steps: int = 30
    solver: str = "dpmpp_2m_sde"
    strength: float = 0.599  # noise level as a share of the 1000 levels
    guidance: float = 7.5
    guidance_rescale: float = 0.2
    short_side: int | None = 720  # output's short side in pixels; None: scale decides
    scale: float = 1.0  # output size over input size where short_side is None
    # Short side past which scale enlarges nothing; a source that has more stays as large as it is. None: no such end.
    most_short_side: int | None = field(default=None, metadata=_OF_RUNS)
    window: tuple[int, int, int] = (32, 720, 1280)  # frames, height, width in pixels
    grid: GridName = field(default="normal", metadata=_ADDED)
    color: ColorName = field(default="wavelet", metadata=_ADDED)
    hint_noise: int = field(default=0, metadata=_ADDED)  # noise levels of 1000 that the hint gets, 0: none
    up_scale: int = field(default=8, metadata=_ADDED)  # that a UNet with key frames is told

    def __post_init__(self) -> None:
        sides = [side for side in (self.short_side, self.most_short_side) if side is not None]
        if not (0 < self.scale <= 100 and all(1 <= side <= 1 << 15 for side in sides)):
            raise ValueError(f"no model has scale {self.scale} and a short side of {sides}")


@dataclass(frozen=True)
class Words:
    """The constant words of a model's prompts, to the letter as its weights were tuned with.

    ``usual`` is what the authors' code says of a video of which nothing is said; ``positive`` follows what is said.
    """

    positive: str
    negative: str
    usual: str = ""


_MS_WORDS = Words(
    ", cinematic, High Contrast, highly detailed, unreal engine, taken using a Canon EOS R camera, "
    "hyper detailed photo - realistic maximum detail, 32k, Color Grading, ultra HD, extreme "
    "meticulous detailing, skin pore detailing, hyper sharpness, perfect without deformations, "
    "Unreal Engine 5, 4k render",
    "worst quality, normal quality, low quality, low res, blurry, text, watermark, logo, banner, "
    "extra digits, cropped, jpeg artifacts, signature, username, error, sketch ,duplicate, ugly, "
    "monochrome, horror, geometry, mutation, disgusting",
)
_VENHANCER_WORDS = Words(
    "Cinematic, High Contrast, highly detailed, taken using a Canon EOS R camera,   hyper detailed photo - "
    "realistic maximum detail, 32k, Color Grading, ultra HD, extreme meticulous detailing,  skin pore detailing, "
    "hyper sharpness, perfect without deformations.",
    "painting, oil painting, illustration, drawing, art, sketch, oil painting, cartoon, CG Style, 3D render, "
    "unreal engine, blurring, dirty, messy, worst quality, low quality, frames, watermark, signature, "
    "jpeg artifacts, deformed, lowres, over-smooth",
    usual="a good video",
)


@dataclass(frozen=True)
class Parity:
    """What the authors' code makes of every video; ``--parity`` does the same."""

    frames: int | None = 32  # of a video that are taken; None: all
    size: tuple[int, int] | None = (
        720,
        1280,
    )  # (height, width) that it is stretched to; None: the scale decides
    area: tuple[int, int] | None = None  # pixels of a picture, least and most, between which the scale stays
    white_margin: bool = False  # padded with white, to 1280x720 at least and to sides that the UNet takes
    color: ColorName = "none"
    chunks: Literal["none", "cut", "fade"] = "none"  # how longer videos are taken apart and joined
    rate: int | None = 8  # frames a second of what is written; None: the source's
    crf: int = 17
    preset: str | None = None


@dataclass(frozen=True)
class ModelConfig:
    """A named model: its networks and the defaults of a run.

    What guides the UNet is a text, read by the text encoder, or a picture, read by the image encoder. A model that is
    given a picture makes a film of noise alone: its source is never encoded.
    """

    name: str
    unet: UNetConfig = field(default_factory=UNetConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    text_encoder: TextEncoderConfig | None = field(default_factory=TextEncoderConfig)
    latent_scale: float = 0.18215  # latents are the autoencoder's times this
    defaults: Defaults = field(default_factory=Defaults)
    image_encoder: ImageEncoderConfig | None = field(default=None, metadata=_ADDED)
    schedule: ScheduleName = field(default="shifted cosine", metadata=_ADDED)
    # Standard deviation of a number for each channel and frame, added to the noise that a film is made of.
    offset_noise: float = field(default=0.0, metadata=_ADDED)
    # Frames per second that a UNet which is told of them is always told; part of its weights when they are read.
    fps: int | None = field(default=None, metadata=_ADDED)
    words: Words = field(default=_MS_WORDS, metadata=_ADDED)
    # Of a segment's frames that the one before has made: whether the UNet is shown those, or their source once more.
    carries: CarryName = field(default="finished", metadata=_ADDED)
    parity: Parity = field(default=Parity(), metadata=_ADDED)

    @property
    def interpolates(self) -> bool:
        """Whether it can make frames between those of its source."""
        return self.unet.control == "key frames"

    @property
    def with_plain_decoder(self) -> ModelConfig:
        """The same with a decoder that takes frames one by one, where weights of the other are not given."""
        return replace(self, autoencoder=replace(self.autoencoder, decoder_frames=1))

    @property
    def takes_pictures(self) -> bool:
        """Whether a picture guides it, from noise alone; else a text, from a video."""
        return self.image_encoder is not None

    @property
    def context(self) -> tuple[int, int]:
        """Tokens of what guides the UNet, and numbers of each."""
        if self.image_encoder is not None:
            return self.image_encoder.tokens, self.image_encoder.context_width
        assert self.text_encoder is not None, f"model {self.name} has no encoder"
        return self.text_encoder.context, self.text_encoder.width

    @property
    def vocabulary(self) -> int:
        """Tokens that its text encoder knows."""
        return 0 if self.text_encoder is None else self.text_encoder.vocabulary

    def __post_init__(self) -> None:
        if not 1e-6 < self.latent_scale < 1e6:
            raise ValueError(f"no model has latent_scale {self.latent_scale}")

    def to_json(self) -> dict[str, Any]:
        """What identifies the model, plain values alone; see :func:`facts_of`."""
        facts: dict[str, Any] = facts_of(self)
        return facts


def facts_of(value: Any) -> Any:
    """As ``dataclasses.asdict``, without fields that decide nothing or were added later and hold their default.

    So what was built before they were there is described, and identified, as it was then.
    """
    if is_dataclass(value):
        return {
            each.name: facts_of(getattr(value, each.name))
            for each in fields(value)
            if each.metadata.get("identifies", True)
            and not (each.metadata.get("added") and getattr(value, each.name) == each.default)
        }
    if isinstance(value, Mapping):
        return {name: facts_of(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(facts_of, value))
    return value


_CONTROLLED = Defaults(steps=15, strength=0.899, short_side=None, scale=4.0, grid="fast")

MODELS = {
    config.name: config
    for config in (
        ModelConfig("ms-vid2vid-xl"),
        # The first stage of the same pair, which makes the film that ms-vid2vid-xl enhances (reference:
        # ``Img2VidSDUNet``).
        ModelConfig(
            "ms-image2video",
            unet=UNetConfig(row_padding=1),
            text_encoder=None,
            image_encoder=ImageEncoderConfig(),
            defaults=Defaults(
                steps=50,
                solver="ddim",
                strength=1.0,
                guidance=3.0,
                guidance_rescale=0.0,
                short_side=None,
                window=(32, 256, 448),
            ),
            schedule="scaled linear",
            offset_noise=0.1,
            fps=8,
        ),
        # STAR (Xie et al. 2025, https://arxiv.org/abs/2501.02976): restores videos from the world; trained twice.
        *(
            ModelConfig(
                name,
                unet=UNetConfig(gated=True, control="every frame"),
                autoencoder=AutoencoderConfig(decoder_frames=3),
                defaults=replace(_CONTROLLED, color="wavelet"),
                words=_VENHANCER_WORDS,
                parity=Parity(
                    None,
                    None,
                    white_margin=True,
                    color="adain",
                    chunks="cut",
                    rate=None,
                    crf=0,
                    preset="ultrafast",
                ),
            )
            for name in ("star-light", "star-heavy")
        ),
        # VEnhancer (He et al. 2024, https://arxiv.org/abs/2407.07667): enlarges made-up videos in space and in time.
        ModelConfig(
            "venhancer",
            unet=UNetConfig(control="key frames"),
            autoencoder=AutoencoderConfig(decoder_frames=5),
            defaults=replace(_CONTROLLED, color="none", hint_noise=200),
            words=_VENHANCER_WORDS,
            parity=Parity(
                None,
                None,
                area=(720 * 1280 * 3 // 2, 1152 * 2048),
                white_margin=True,
                chunks="fade",
                rate=None,
            ),
        ),
        # Shaped for two CPU cores: all maps have a quarter of the picture's sides or less, a narrow UNet attends to
        # frames on its coarsest level only, and one evaluation per window. The decoder adds to the frame that it is
        # shown, so that nothing is lost that the source had. No group norms: they cost a CPU as much as the
        # convolutions, and tie what a tile looks like to all that is in it (training/README.md).
        ModelConfig(
            "small",
            unet=UNetConfig(
                width=32,
                multipliers=(1, 2, 2),
                blocks=1,
                head_size=32,
                stem_heads=0,
                context_width=64,
                latent_channels=16,
                attention=(False, False, False),
                temporal_stages=2,
                groups=0,
            ),
            autoencoder=AutoencoderConfig(
                width=80,
                multipliers=(1,),
                blocks=1,
                latent_channels=16,
                groups=0,
                attention=False,
                patch=4,
                encoder_width=32,
                sees_source=True,
            ),
            text_encoder=TextEncoderConfig(width=64, heads=2, layers=3),
            latent_scale=0.283940,
            carries="source",
            defaults=Defaults(
                steps=1,
                strength=0.015,
                guidance=1.0,
                guidance_rescale=0.0,
                short_side=None,
                scale=2.0,
                most_short_side=720,
                color="none",
                window=(16, 360, 640),
            ),
        ),
    )
}
