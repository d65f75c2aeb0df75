"""A model with the real one's shapes and a few numbers for weights."""

from __future__ import annotations

from dataclasses import replace

from v2v.core.components import Window, window_for
from v2v.core.configs import (
    MODELS,
    AutoencoderConfig,
    Defaults,
    ImageEncoderConfig,
    ModelConfig,
    TextEncoderConfig,
    UNetConfig,
)

MODEL = ModelConfig(
    "stand-in",
    unet=UNetConfig(width=32, context_width=8),
    autoencoder=AutoencoderConfig(width=32),
    text_encoder=TextEncoderConfig(width=8, heads=2, layers=2),
    latent_scale=0.5,
    defaults=Defaults(steps=3, short_side=None, scale=1.0, guidance=2.0, strength=0.3),
)
WINDOW = Window(4, 80, 64)


def like(name: str) -> ModelConfig:
    """The stand-in with all that makes a published model of that name another, but the size."""
    row = MODELS[name]
    return replace(
        row,
        name=f"stand-in-{name}",
        unet=replace(MODEL.unet, gated=row.unet.gated, control=row.unet.control),
        autoencoder=replace(MODEL.autoencoder, decoder_frames=row.autoencoder.decoder_frames),
        text_encoder=MODEL.text_encoder,
        latent_scale=MODEL.latent_scale,
        defaults=replace(row.defaults, scale=1.0),
    )


FIRST_STAGE = ModelConfig(
    "stand-in-first",
    unet=UNetConfig(width=32, context_width=8, row_padding=1),
    autoencoder=AutoencoderConfig(width=32),
    text_encoder=None,
    latent_scale=0.5,
    defaults=Defaults(steps=3, solver="ddim", guidance=2.0, short_side=None, window=(4, 64, 128)),
    image_encoder=ImageEncoderConfig(size=28, width=16, heads=2, layers=1, context_width=8),
    schedule="scaled linear",
    offset_noise=0.1,
    fps=8,
)
FIRST_STAGE_WINDOW = window_for(FIRST_STAGE)


def narrow(name: str) -> ModelConfig:
    """A published model's networks, all parts of them, as narrow and shallow as they go, to be built in a minute.

    What the authors' code makes of every size is left out: it makes nothing smaller than 1280x720.
    """
    row = MODELS[name]
    unet = UNetConfig(
        width=32,
        multipliers=(1, 2),
        blocks=1,
        head_size=16,
        stem_heads=2,
        context_width=32,
        attention=(True, False),
        temporal_stages=1,
        gated=row.unet.gated,
        control=row.unet.control,
    )
    autoencoder = AutoencoderConfig(
        width=32, multipliers=(1, 1), blocks=1, patch=4, decoder_frames=row.autoencoder.decoder_frames
    )
    return replace(
        row,
        name=f"narrow-{name}",
        unet=unet,
        autoencoder=autoencoder,
        text_encoder=TextEncoderConfig(width=32, heads=2, layers=2),
        defaults=replace(row.defaults, scale=1.0),
        parity=replace(row.parity, white_margin=False, area=None),
    )
