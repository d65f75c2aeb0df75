"""Sample inputs of components, and the error of their outputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from v2v.core.components import Component


def sample_inputs(component: Component, vocabulary: int, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """Random input like what the component gets in a run: token ids, a time step, a picture, normal latents."""
    generator = np.random.default_rng(seed)
    samples: dict[str, npt.NDArray[Any]] = {}
    for tensor in component.inputs:
        if tensor.name == "ids":
            samples[tensor.name] = generator.integers(0, vocabulary, tensor.shape)
        elif tensor.name == "timestep":
            samples[tensor.name] = generator.integers(0, 1000, tensor.shape)
        elif tensor.name == "image":
            samples[tensor.name] = generator.uniform(-1, 1, tensor.shape).astype(tensor.dtype)
        else:
            samples[tensor.name] = generator.standard_normal(tensor.shape).astype(tensor.dtype)
    return samples


def relative_error(actual: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """L2 norm of the difference over that of ``expected``; infinite where something is not finite."""
    if actual.shape != expected.shape or not np.isfinite(actual).all() or not np.isfinite(expected).all():
        return math.inf
    difference = np.linalg.norm(actual.astype(np.float64) - expected.astype(np.float64))
    return float(difference / max(np.linalg.norm(expected.astype(np.float64)), np.finfo(np.float64).tiny))
