"""A model with the real one's shapes and a few numbers for weights."""

from __future__ import annotations

from v2v.core.components import Window
from v2v.core.configs import AutoencoderConfig, Defaults, ModelConfig, TextEncoderConfig, UNetConfig

MODEL = ModelConfig(
    "stand-in",
    unet=UNetConfig(width=32, context_width=8),
    autoencoder=AutoencoderConfig(width=32),
    text_encoder=TextEncoderConfig(width=8, heads=2, layers=2),
    latent_scale=0.5,
    defaults=Defaults(steps=3, short_side=None, scale=1.0, guidance=2.0, strength=0.3),
)
WINDOW = Window(4, 80, 64)
