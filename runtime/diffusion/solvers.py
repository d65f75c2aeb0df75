"""Solvers of the diffusion's ODE and SDE.

``x`` is the noisy latent over alpha, so that ``x = x0 + sigma eps``; sigmas fall to 0; the denoiser estimates ``x0``.
Every step of the solvers here is linear in (x, D, history, noise), so a solver is a function from sigmas to a table
of coefficients, one row for each evaluation of the network. A solver knows nothing of guidance, text, windows or
devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

from v2v.device import Array, Device
from v2v.runtime.diffusion.schedule import Schedule


class Update(NamedTuple):
    """One evaluation D = denoiser(x, sigma) and the new x and history, both computed from the old ones.

    x'       = ``x_x`` x + ``x_denoised`` D + ``x_history`` history + ``x_noise`` noise
    history' = ``history_x`` x + ``history_denoised`` D + ``history_history`` history
    """

    sigma: float
    x_x: float = 0.0
    x_denoised: float = 0.0
    x_history: float = 0.0
    x_noise: float = 0.0
    history_x: float = 0.0
    history_denoised: float = 0.0
    history_history: float = 0.0


def dpmpp_2m_sde(sigmas: Sequence[float]) -> list[Update]:
    """DPM-Solver++(2M) SDE, midpoint, eta 1 (Lu et al. 2022, https://arxiv.org/abs/2211.01095)."""
    return _dpmpp_2m(sigmas, eta=1)


def dpmpp_2m(sigmas: Sequence[float]) -> list[Update]:
    """DPM-Solver++(2M), midpoint (Lu et al. 2022, algorithm 2): the ODE's solver, which draws no noise."""
    return _dpmpp_2m(sigmas, eta=0)


def _dpmpp_2m(sigmas: Sequence[float], eta: int) -> list[Update]:
    """``eta`` is the share of the SDE's noise.

    With r = sigma'/sigma, h = -ln r and k = r^(1 + eta):
    x' = k x + (1 - k) (D + h / (2 h_last) (D - D_last)) + sigma' sqrt(1 - r^(2 eta)) noise.
    """
    updates = []
    last_h = math.inf  # no step yet: the second-order term vanishes
    for sigma, next_sigma in pairwise(sigmas):
        if next_sigma == 0:
            updates.append(Update(sigma, x_denoised=1))
            break
        if math.isinf(sigma):  # x is the noise itself, and leaves no history
            updates.append(Update(sigma, x_x=next_sigma, x_denoised=1))
            continue
        r = next_sigma / sigma
        h = -math.log(r)
        k = r ** (1 + eta)
        second = (1 - k) * h / (2 * last_h)
        updates.append(
            Update(
                sigma,
                x_x=k,
                x_denoised=1 - k + second,
                x_history=-second,
                x_noise=next_sigma * math.sqrt(1 - r ** (2 * eta)),
                history_denoised=1,
            )
        )
        last_h = h
    return updates


def heun(sigmas: Sequence[float]) -> list[Update]:
    """Heun's second-order method (Karras et al. 2022, https://arxiv.org/abs/2206.00364, algorithm 1), no churn.

    With d = (x - D) / sigma: x_euler = x + (sigma' - sigma) d, then x' = x + (sigma' - sigma) (d + d_euler) / 2.
    Between the two evaluations of a step, history holds x + (sigma' - sigma) d / 2. The last step is Euler's.
    """
    updates = []
    for sigma, next_sigma in pairwise(sigmas):
        if next_sigma == 0:
            updates.append(Update(sigma, x_denoised=1))
            break
        r = next_sigma / sigma
        updates.append(
            Update(sigma, x_x=r, x_denoised=1 - r, history_x=(1 + r) / 2, history_denoised=(1 - r) / 2)
        )
        half = (next_sigma - sigma) / (2 * next_sigma)
        updates.append(Update(next_sigma, x_x=half, x_denoised=-half, x_history=1))
    return updates


def ddim(sigmas: Sequence[float]) -> list[Update]:
    """DDIM, eta 0 (Song et al. 2021, https://arxiv.org/abs/2010.02502): with r = sigma'/sigma, x' = r x + (1 - r) D."""
    return [
        Update(sigma, x_x=following / sigma, x_denoised=1 - following / sigma)
        for sigma, following in pairwise(sigmas)
    ]


@dataclass(frozen=True)
class Solver:
    """A table of updates for given sigmas, and the way through the noise levels that it was made for."""

    table: Callable[[Sequence[float]], list[Update]]
    grid: Callable[
        [Schedule, int, int], list[float]
    ]  # (schedule, first timestep, steps) -> falling sigmas, the last of which is where noise ends, mostly 0

    def __call__(self, sigmas: Sequence[float]) -> list[Update]:
        """One row for each evaluation of the network."""
        return self.table(sigmas)


SOLVERS = {
    "dpmpp_2m_sde": Solver(dpmpp_2m_sde, Schedule.trailing),
    "dpmpp_2m": Solver(dpmpp_2m, Schedule.reaching),
    "heun": Solver(heun, Schedule.leading),
    "ddim": Solver(ddim, Schedule.strided),
}
"""By the name used on the command line."""


class Denoiser(Protocol):
    """Writes into ``out`` the estimate of ``x0`` that the network makes from ``x`` at ``sigma``."""

    def __call__(self, x: Array, sigma: float, out: Array) -> None: ...


def solve(
    denoiser: Denoiser,
    x: Array,
    updates: Sequence[Update],
    noise: Callable[[int], Array],
    device: Device,
    callback: Callable[[int, Array], None] = lambda evaluation, denoised: None,
    buffers: tuple[Array, Array, Array] | None = None,
) -> None:
    """Follow a solver's table from ``x`` to its end, in place.

    ``noise(k)`` gives the standard normal array for row k where the row uses one; ``callback(k, D)`` is called after
    each denoising. ``buffers`` are three arrays like ``x`` to work in, whatever they hold; without them some are made.
    """
    denoised, history, other = buffers or [device.empty(x.shape, x.dtype) for _ in range(3)]
    for k, row in enumerate(updates):
        denoiser(x, row.sigma, denoised)
        callback(k, denoised)
        device.combine(
            [(row.history_x, x), (row.history_denoised, denoised), (row.history_history, history)], out=other
        )
        terms = [(row.x_x, x), (row.x_denoised, denoised), (row.x_history, history)]
        if row.x_noise:
            terms.append((row.x_noise, noise(k)))
        device.combine(terms, out=x)
        history, other = other, history
