"""Solvers of the probability-flow ODE and SDE, each one function of (denoiser, x, sigmas, noise).

``x`` is the noisy latent over alpha, so that ``x = x0 + sigma eps``; ``sigmas`` falls to 0; the denoiser writes its
estimate of ``x0``. A solver knows nothing of guidance, text, windows or where its arrays live: ``device`` lends it
memory and linear combinations. It overwrites ``x``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Protocol

from v2v.runtime.device import Array, Device

Noise = Callable[[int], Array]
"""The k-th standard normal array of x's shape."""

Callback = Callable[[int, Array], None]
"""Called after each denoising with the evaluation's index and the estimate of x0."""


class Denoiser(Protocol):
    """Writes the estimate of ``x0`` that the network makes from ``x`` at ``sigma``."""

    def __call__(self, x: Array, sigma: float, out: Array) -> None: ...


def _ignore(evaluation: int, denoised: Array) -> None:
    pass


def dpmpp_2m_sde(
    denoiser: Denoiser,
    x: Array,
    sigmas: Sequence[float],
    noise: Noise,
    device: Device,
    callback: Callback = _ignore,
) -> Array:
    """DPM-Solver++(2M) SDE, midpoint, eta 1 (Lu et al. 2022, https://arxiv.org/abs/2211.01095).

    One denoising a step; ``len(sigmas) - 2`` draws of noise. Returns the array that holds the result.
    """
    denoised, previous = _like(x, device), _like(x, device)
    last_h = math.inf  # no step yet: the second-order term vanishes
    for k, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        denoiser(x, sigma, denoised)
        callback(k, denoised)
        if next_sigma == 0:
            return denoised
        r = next_sigma / sigma
        h = -math.log(r)
        second = 0.5 * (1 - r**2) * h / last_h
        terms = [(r**2, x), (1 - r**2 + second, denoised), (next_sigma * math.sqrt(1 - r**2), noise(k))]
        if second:
            terms.append((-second, previous))
        device.combine(terms, out=x)
        denoised, previous, last_h = previous, denoised, h
    return x


def heun(
    denoiser: Denoiser,
    x: Array,
    sigmas: Sequence[float],
    noise: Noise,
    device: Device,
    callback: Callback = _ignore,
) -> Array:
    """Heun's second-order method (Karras et al. 2022, https://arxiv.org/abs/2206.00364, algorithm 1), no churn.

    Two denoisings a step, one in the last; no noise is drawn. Returns the array that holds the result.
    """
    denoised, corrected, euler = _like(x, device), _like(x, device), _like(x, device)
    evaluation = 0
    for sigma, next_sigma in pairwise(sigmas):
        denoiser(x, sigma, denoised)
        callback(evaluation, denoised)
        evaluation += 1
        if next_sigma == 0:
            return denoised
        r = next_sigma / sigma
        device.combine([(r, x), (1 - r, denoised)], out=euler)  # x + (next - sigma) (x - D) / sigma
        denoiser(euler, next_sigma, corrected)
        callback(evaluation, corrected)
        evaluation += 1
        # x + (next - sigma) (d + d') / 2 with d = (x - D) / sigma and d' = (euler - D') / next
        step = (next_sigma - sigma) / 2
        device.combine(
            [
                (1 + step / sigma, x),
                (-step / sigma, denoised),
                (step / next_sigma, euler),
                (-step / next_sigma, corrected),
            ],
            out=x,
        )
    return x


def _like(x: Array, device: Device) -> Any:
    return device.empty(x.shape, x.dtype)


SOLVERS = {"dpmpp_2m_sde": dpmpp_2m_sde, "heun": heun}
"""By the name used on the command line."""

EVALUATIONS: dict[str, Callable[[int], int]] = {
    "dpmpp_2m_sde": lambda steps: steps,
    "heun": lambda steps: 2 * steps - 1,
}
"""Denoisings that a solver makes in so many steps."""
