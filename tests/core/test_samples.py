"""Inputs as they occur in a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from v2v.core.components import component_names, components, window_for
from v2v.core.configs import MODELS
from v2v.core.samples import PROMPT, Occurring, picture
from v2v.engine.store import packaged_tokenizer
from v2v.runtime.diffusion.prompt import Tokenizer

SMALL = MODELS["small"]
WINDOW = window_for(SMALL, (80, 72), 4)


def occurring_inputs(spread: float, *, reuse: bool = False, model=SMALL):  # type: ignore[no-untyped-def]
    """What each component is given, where the autoencoder's latents have a standard deviation of ``spread``."""
    occurring = Occurring(model)
    given = {}
    described = components(model, WINDOW, "fp16", reuse)
    for name in component_names(model, reuse):
        given[name] = occurring.inputs(described[name])
        outputs = {t.name: np.ones(t.shape, t.dtype) for t in described[name].outputs}
        if name == "vae_encoder":
            shape = outputs["moments"].shape
            outputs["moments"] = (np.random.default_rng(3).standard_normal(shape) * spread).astype("float16")
        occurring.keep(outputs)
    return given


def test_every_input_has_its_shape_and_type() -> None:
    for reuse in (False, True):
        described = components(SMALL, WINDOW, "fp16", reuse)
        for name, given in occurring_inputs(1.0, reuse=reuse).items():
            expected = [(t.name, t.shape, t.dtype) for t in described[name].inputs]
            assert [(name, a.shape, a.dtype.name) for name, a in given.items()] == expected


def test_the_decoder_is_given_latents_as_the_autoencoder_makes_them() -> None:
    """Not scaled, and so several times wider than normal ones where the published autoencoder is concerned."""
    model = replace(SMALL, latent_scale=0.18215)
    given = occurring_inputs(5.5, model=model)
    assert given["vae_decoder"]["latents"].astype(float).std() == pytest.approx(5.5, rel=0.05)
    assert given["unet"]["latents"].astype(float).std() == pytest.approx(1.0, rel=0.05)


def test_the_text_encoder_is_given_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(packaged_tokenizer())
    expected = Tokenizer(tmp_path / "tokenizer.json").encode(PROMPT)
    np.testing.assert_array_equal(occurring_inputs(1.0)["text_encoder"]["ids"], expected)


def test_the_picture_uses_its_whole_range_and_is_always_the_same() -> None:
    image = picture(72, 80)
    assert image.shape == (1, 3, 72, 80) and image.dtype == np.float32
    assert (image.min(), image.max()) == (-1, 1)
    assert 0.2 < image.std() < 0.8
    np.testing.assert_array_equal(image, picture(72, 80))


def test_a_model_that_takes_pictures_is_given_noise_and_what_its_encoder_makes() -> None:
    model = MODELS["ms-image2video"]
    described = components(model, window_for(model, (128, 64), 2), "fp16")
    occurring = Occurring(model)
    given = {}
    for name in component_names(model):
        given[name] = occurring.inputs(described[name])
        outputs = {t.name: np.ones(t.shape, t.dtype) for t in described[name].outputs}
        occurring.keep(outputs)
        assert [(t.shape, t.dtype) for t in described[name].inputs] == [
            (a.shape, a.dtype.name) for a in given[name].values()
        ]
    assert given["unet"]["context"].all()
    assert given["unet"]["timestep"] == 999
    assert given["unet"]["latents"].astype(float).std() == pytest.approx(1.0, rel=0.05)
    assert given["vae_decoder"]["latents"].astype(float).std() == pytest.approx(1 / 0.18215, rel=0.1)
