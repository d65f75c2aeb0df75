"""Engines made of a few lines of NumPy, so that the runtime can be tested without networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from v2v.core.components import Window, components
from v2v.core.configs import (
    AutoencoderConfig,
    Defaults,
    ModelConfig,
    TextEncoderConfig,
    UNetConfig,
)
from v2v.engine.backend import Engine, LooseEngines
from v2v.engine.store import TOKENIZER, packaged_tokenizer

MODEL = ModelConfig(
    "fake",
    unet=UNetConfig(width=32, context_width=8),
    autoencoder=AutoencoderConfig(width=32),
    text_encoder=TextEncoderConfig(width=8, heads=2, layers=2),
    latent_scale=0.5,
    defaults=Defaults(steps=3, short_side=None, scale=1.0, guidance=2.0, strength=0.3),
)

WINDOW = Window(4, 80, 64)


class FakeEngine(Engine):
    """A component whose outputs are ``function(**inputs)``."""

    def __init__(self, component, function):
        self.component, self.function, self.closed = component, function, False
        self.calls = 0

    def run(self, inputs, outputs, stream=0):
        assert not self.closed
        self.calls += 1
        for tensor in self.component.inputs:
            assert inputs[tensor.name].shape == tensor.shape, tensor.name
            assert inputs[tensor.name].dtype == tensor.dtype, tensor.name
        results = self.function(**inputs)
        results = results if isinstance(results, tuple) else (results,)
        assert [*outputs] == [tensor.name for tensor in self.component.outputs]
        for out, result in zip(outputs.values(), results, strict=True):
            out[...] = result

    def close(self):
        self.closed = True


class SharingEngine(FakeEngine):
    """One that notes how many prompts it gets at once."""

    def __init__(self, component, function):
        super().__init__(component, function)
        self.prompts = []

    def run_prompts(self, common, prompts, stream=0):
        self.prompts.append(len(prompts))
        for inputs, outputs in prompts:
            self.run({**common, **inputs}, outputs, stream)


def encode_text(ids):
    return np.repeat(np.sin(ids.astype(np.float32))[..., None], 8, axis=2)


def encode_image(image):
    """Mean colour of each 8x8 block in three channels, brightness in the fourth; hardly any variance."""
    _, _, h, w = image.shape
    blocks = image.reshape(1, 3, h // 8, 8, w // 8, 8).mean(axis=(3, 5))
    mean = np.concatenate([blocks, blocks.mean(axis=1, keepdims=True)], axis=1)
    return np.concatenate([mean, np.full_like(mean, -30)], axis=1)


def decode_latents(latents):
    return latents[:, :3].repeat(8, axis=2).repeat(8, axis=3)


def no_velocity(latents, timestep, context):
    return np.zeros_like(latents)


def some_velocity(latents, timestep, context):
    return (np.tanh(latents) * 0.1 + 0.05 * context.mean() + np.sin(timestep[0] / 97) * 0.1).astype(
        latents.dtype
    )


def deep_features(latents, timestep, context):
    """Of each position by itself, [1, F, h, w, C]."""
    deep = some_velocity(2 * latents, timestep, context).mean(axis=1)
    return np.repeat(deep[..., None], MODEL.unet.width, axis=-1)


def outer_velocity(latents, timestep, context, features):
    return (0.5 * some_velocity(latents, timestep, context) + features[None, ..., 0]).astype(latents.dtype)


def full_velocity(latents, timestep, context):
    features = deep_features(latents, timestep, context)
    return outer_velocity(latents, timestep, context, features), features


FUNCTIONS = {
    "text_encoder": encode_text,
    "vae_encoder": encode_image,
    "unet": some_velocity,
    "unet_full": full_velocity,
    "unet_outer": outer_velocity,
    "vae_decoder": decode_latents,
}


class FakeEngines(LooseEngines):
    """Engines of the functions above, by component, or of those given; ``loads`` notes each that was loaded."""

    def __init__(self, folder: Path, window=WINDOW, reuse=False, kind=FakeEngine, **functions):
        functions = {**FUNCTIONS, **functions}
        loads = []

        def make(component, device):
            assert device == "cpu"
            loads.append(kind(component, functions[component.name]))
            return loads[-1]

        tokenizer = folder / TOKENIZER
        tokenizer.write_bytes(packaged_tokenizer())
        facts = {"model": MODEL.name, "weights": "none", "engines": "fake"}
        described = components(MODEL, window, "fp32", reuse)
        super().__init__(MODEL, window, described, tokenizer, facts, make)
        object.__setattr__(self, "loads", loads)

    def loaded(self, name):
        """The last engine of a component."""
        return [engine for engine in self.loads if engine.component.name == name][-1]
