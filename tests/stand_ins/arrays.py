"""The stand-in model's engines in a few lines of NumPy, to run in this process and to change one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.stand_ins.model import MODEL, WINDOW
from v2v.core.components import components
from v2v.engine.backend import Engine, LooseEngines
from v2v.engine.store import TOKENIZER, packaged_tokenizer


class NumpyEngine(Engine):
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


class SharingEngine(NumpyEngine):
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


def local_velocity(latents, timestep, context):
    """Of each position by itself, the prompt and the step."""
    return (np.tanh(latents) * 0.1 + 0.05 * context.mean() + np.sin(timestep[0] / 97) * 0.1).astype(
        latents.dtype
    )


def velocity(latents, timestep, context):
    """Of all that the UNet is given: what one frame, a prompt or a step changes can be seen in every frame."""
    return local_velocity(latents, timestep, context) + 0.3 * latents.mean(axis=2, keepdims=True)


def deep_features(latents, timestep, context):
    """Of each position by itself, [1, F, h, w, C]."""
    deep = local_velocity(2 * latents, timestep, context).mean(axis=1)
    return np.repeat(deep[..., None], MODEL.unet.width, axis=-1)


def outer_velocity(latents, timestep, context, features):
    return (0.5 * local_velocity(latents, timestep, context) + features[None, ..., 0]).astype(latents.dtype)


def full_velocity(latents, timestep, context):
    features = deep_features(latents, timestep, context)
    return outer_velocity(latents, timestep, context, features), features


FUNCTIONS = {
    "text_encoder": encode_text,
    "vae_encoder": encode_image,
    "unet": velocity,
    "unet_full": full_velocity,
    "unet_outer": outer_velocity,
    "vae_decoder": decode_latents,
}


class NumpyEngines(LooseEngines):
    """Engines of the functions above, by component, or of those given; ``loads`` notes each that was loaded."""

    def __init__(self, folder: Path, window=WINDOW, reuse=False, kind=NumpyEngine, model=MODEL, **functions):
        functions = {**FUNCTIONS, **functions}
        loads = []

        def make(component, device):
            assert device == "cpu"
            loads.append(kind(component, functions[component.name]))
            return loads[-1]

        tokenizer = folder / TOKENIZER
        tokenizer.write_bytes(packaged_tokenizer())
        facts = {"model": model.name, "weights": "none", "engines": "NumPy"}
        described = components(model, window, "fp32", reuse)
        super().__init__(model, window, described, tokenizer, facts, make)
        object.__setattr__(self, "loads", loads)

    def loaded(self, name):
        """The last engine of a component."""
        return [engine for engine in self.loads if engine.component.name == name][-1]
