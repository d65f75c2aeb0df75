"""Sample inputs of components, at random or as they occur in a run, and the error of their outputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from v2v.core.components import Component, Tensor
from v2v.core.configs import ModelConfig

Arrays = dict[str, npt.NDArray[Any]]

PROMPT = "two people walking along a beach, highly detailed"
_PROMPT_IDS = (49406, 1237, 1047, 3941, 2528, 320, 2117, 267, 5302, 12609, 49407)  # CLIP's tokens of it


def sample_inputs(component: Component, vocabulary: int, seed: int = 0) -> Arrays:
    """Random input like what the component gets in a run: token ids, a time step, a picture, normal latents."""
    generator = np.random.default_rng(seed)
    samples: Arrays = {}
    for tensor in component.inputs:
        if tensor.name == "ids":
            samples[tensor.name] = generator.integers(0, vocabulary, tensor.shape)
        elif tensor.name == "keys":
            samples[tensor.name] = (np.arange(tensor.shape[1])[None] % 2 == 0).astype(tensor.dtype)
        elif tensor.dtype == "int64":
            samples[tensor.name] = generator.integers(0, 1000, tensor.shape)
        elif tensor.name in ("image", "source"):
            samples[tensor.name] = generator.uniform(-1, 1, tensor.shape).astype(tensor.dtype)
        else:
            samples[tensor.name] = generator.standard_normal(tensor.shape).astype(tensor.dtype)
    return samples


class Occurring:
    """The inputs of a model's components as they occur in a run, one component after another.

    A picture is encoded, its latents are noised as a run begins, the prompt is :data:`PROMPT`, and the decoder is given
    latents of the autoencoder's own spread. A model that takes pictures begins with noise alone. Each component is
    asked for its :meth:`inputs` in the order of an engine set, and what it makes of them, in a precision that can be
    trusted, is handed to :meth:`keep`.

    :attr:`left` is the share of a run that is still to come, 1 at its beginning: of the noise level as well.
    """

    def __init__(self, model: ModelConfig) -> None:
        self._model = model
        self._outputs: Arrays = {}
        self.left = 1.0

    def inputs(self, component: Component) -> Arrays:
        """Arrays of the shapes and types of ``component``'s inputs.

        Raises:
            KeyError: a component before it was not run.
        """
        return {tensor.name: self._input(tensor).astype(tensor.dtype) for tensor in component.inputs}

    def keep(self, outputs: Arrays) -> None:
        """Take what a component computed, for those that come after it."""
        self._outputs |= outputs

    def _input(self, tensor: Tensor) -> npt.NDArray[Any]:
        model, shape = self._model, tensor.shape
        if tensor.name == "ids":
            ids = np.zeros(shape, np.int64)
            ids[0, : len(_PROMPT_IDS)] = _PROMPT_IDS
            return np.minimum(ids, model.vocabulary - 1)
        if tensor.name == "timestep":
            return np.full(shape, round(999 * model.defaults.strength * self.left))
        if tensor.name in ("hint_timestep", "enlargement"):
            told = {"hint_timestep": max(model.defaults.hint_noise - 1, 0)}
            return np.full(shape, told.get(tensor.name, model.defaults.up_scale))
        if tensor.name == "keys":
            every_second: npt.NDArray[Any] = np.arange(shape[1])[None] % 2 == 0
            return every_second
        if tensor.name in ("image", "source"):
            return np.concatenate([picture(shape[-2], shape[-1])] * shape[0])
        if tensor.name == "context" and model.takes_pictures:
            return self._outputs["contexts"][:1]
        if tensor.name not in ("latents", "hint"):
            return self._outputs[tensor.name]
        if model.takes_pictures:
            drawn = np.random.default_rng(1).standard_normal(shape)
            return drawn if len(shape) == 5 else drawn / model.latent_scale
        mean = self._outputs["moments"][:, : model.unet.latent_channels].astype(np.float32)
        if len(shape) == 4:
            return np.concatenate([mean] * shape[0])
        moving = np.stack([np.roll(mean, frame, -1) for frame in range(shape[2])], 2) * model.latent_scale
        if tensor.name == "hint":
            return moving
        noise = np.random.default_rng(1).standard_normal(shape)
        # Of a cosine schedule, whose variance stays.
        angle = model.defaults.strength * self.left * math.pi / 2
        noised: npt.NDArray[Any] = math.cos(angle) * moving + math.sin(angle) * noise
        return noised


def picture(height: int, width: int) -> npt.NDArray[np.float32]:
    """A picture ``[1, 3, height, width]`` in -1..1: nature's spectrum (1/f), and black, white and saturated areas.

    It needs no file, so that every installation has the same.
    """
    generator = np.random.default_rng(0)
    fx, fy = np.fft.rfftfreq(width), np.fft.fftfreq(height)[:, None]
    spectrum = np.fft.rfft2(generator.standard_normal((3, height, width)))
    waves = np.fft.irfft2(spectrum / np.maximum(np.hypot(fx, fy), 1 / max(height, width)), (height, width))
    image = 0.4 * waves / waves.std()
    colours = ((-1, -1, -1), (1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))
    for colour, corner in zip(colours, generator.uniform(0, 0.8, (len(colours), 2)), strict=True):
        top, left = (corner * (height, width)).astype(int)
        image[:, top : top + height // 5, left : left + width // 5] = np.array(colour)[:, None, None]
    clipped: npt.NDArray[np.float32] = np.clip(image, -1, 1)[None].astype(np.float32)
    return clipped


def relative_error(actual: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """L2 norm of the difference over that of ``expected``; infinite where something is not finite."""
    if actual.shape != expected.shape or not np.isfinite(actual).all() or not np.isfinite(expected).all():
        return math.inf
    difference = np.linalg.norm(actual.astype(np.float64) - expected.astype(np.float64))
    return float(difference / max(np.linalg.norm(expected.astype(np.float64)), np.finfo(np.float64).tiny))
