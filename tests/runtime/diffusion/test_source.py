"""A decoder that is shown the frame that is enhanced gets it tile by tile, as the encoder saw it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.stand_ins.arrays import NumpyEngine
from tests.stand_ins.model import MODEL, WINDOW
from v2v.core.components import components
from v2v.device.cpu import CpuDevice
from v2v.runtime.diffusion.latents import Canvas, FrameDecoder

SEEING = replace(MODEL, autoencoder=replace(MODEL.autoencoder, sees_source=True))
Z = MODEL.unet.latent_channels


def decoder(canvas: Canvas, function: object) -> FrameDecoder:
    engine = NumpyEngine(components(SEEING, WINDOW, "fp32")["vae_decoder"], function)
    return FrameDecoder(CpuDevice(), engine, canvas, 1.0, colors="none", truncate=False)


def canvas_of(height: int, width: int) -> Canvas:
    return Canvas.of((height, width), (WINDOW.latent_height, WINDOW.latent_width), WINDOW.factor)


@pytest.mark.parametrize("extra", [(-10, -6), (0, 0), (37, 51)])
def test_what_it_is_shown_lies_where_the_picture_does(extra: tuple[int, int]) -> None:
    """Smaller than a tile, of its size, larger: what is shown, given back, is the frame itself."""
    height, width = WINDOW.height + extra[0], WINDOW.width + extra[1]
    canvas = canvas_of(height, width)
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    latents = np.zeros((1, Z, *canvas.latent), np.float32)
    back = decoder(canvas, lambda latents, source: source)(latents, frame, 0).result()
    assert np.abs(back.astype(int) - frame).max() <= 1  # tiles are cross-faded in floats


def test_it_is_shown_the_frame_at_the_size_of_the_result() -> None:
    canvas = canvas_of(WINDOW.height, WINDOW.width)
    frame = np.full((WINDOW.height // 2, WINDOW.width // 2, 3), 51, np.uint8)
    latents = np.full((1, Z, *canvas.latent), 0.25, np.float32)

    def add(latents: np.ndarray, source: np.ndarray) -> np.ndarray:
        assert source == pytest.approx(51 / 127.5 - 1, abs=1e-6)
        return source + latents[:, :1].repeat(3, 1).repeat(8, 2).repeat(8, 3)

    made = decoder(canvas, add)(latents, frame, 0).result()
    assert (made == round(51 + 0.25 * 127.5)).all()
