"""Noise levels and time steps of the models' diffusion.

A noisy latent is ``z_t = alpha_t z_0 + s_t eps`` with ``alpha² + s² = 1``. Solvers work on the noise-to-signal ratio
``sigma = s / alpha`` (Karras et al. 2022, https://arxiv.org/abs/2206.00364), where ``x = z_t / alpha_t``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from v2v.core.configs import ScheduleName

Floats = npt.NDArray[np.float64]

LEVELS = 1000
USUAL_STEPS = 30  # of the reference
# The log signal-to-noise ratio of the base schedule runs between +-15; its two ends are then moved for the higher
# resolution by these factors (Hoogeboom et al. 2023, https://arxiv.org/abs/2301.11093, "shifted cosine").
_LOGSNR_END = 15.0
_SHIFT_NOISY, _SHIFT_CLEAN = 2.0, 4.0
# Ends of Stable Diffusion's schedule: the variance that a level adds, whose root rises evenly ("scaled linear").
_BETA_CLEAN, _BETA_NOISY = 0.00085, 0.012


@dataclass(frozen=True)
class Coefficients:
    """What the denoiser needs at one sigma: ``D = alpha x_in - s v`` with ``x_in = scale x``."""

    scale: float  # 1 / sqrt(sigma² + 1)
    timestep: int  # the integer that the network is given
    alpha: float
    s: float


@dataclass(frozen=True)
class Schedule:
    """The fixed table of 1000 noise levels and the grids that runs take through it.

    ``exact`` keeps the reference's oddity: the network's integer time step also selects alpha and s, while the
    solver's sigma belongs to the fractional one. Otherwise grids are made of whole time steps and the two agree.
    """

    exact: bool = False
    name: ScheduleName = "shifted cosine"

    @cached_property
    def levels(self) -> Floats:
        """``s`` for t = 0..999, rising.

        Shifted cosine ends at 1 (zero terminal SNR, Lin et al. 2023, arXiv:2305.08891), scaled linear at 0.9977.
        """
        return _scaled_linear() if self.name == "scaled linear" else _shifted_cosine()

    @cached_property
    def _log_sigmas(self) -> Floats:
        s = self.levels[self.levels < 1]  # a last level without signal would have an infinite sigma
        return np.asarray(np.log(s / np.sqrt(1 - s**2)))

    def noising(self, timestep: int) -> tuple[float, float]:
        """``(alpha, s)`` of a whole time step in 0..999."""
        s = float(self.levels[timestep])
        return float(np.sqrt(1 - s**2)), s

    def sigma(self, timestep: float) -> float:
        """Noise-to-signal ratio at a time step, interpolated in its logarithm between whole ones.

        Infinite at a last level that has no signal; what lies beyond the last that has some counts as that one.
        """
        if self.levels[-1] == 1 and timestep >= len(self.levels) - 1:
            return float("inf")
        return float(np.exp(np.interp(timestep, np.arange(len(self._log_sigmas)), self._log_sigmas)))

    def timestep(self, sigma: float) -> int:
        """The whole time step nearest to ``sigma``; halves round to even, as the reference."""
        return int(np.rint(np.interp(np.log(sigma), self._log_sigmas, np.arange(len(self._log_sigmas)))))

    def coefficients(self, sigma: float) -> Coefficients:
        """Scaling of the network's input and output at ``sigma``; where that is infinite, of a latent as it is."""
        if sigma == float("inf"):
            return Coefficients(1.0, len(self._log_sigmas), 0.0, 1.0)
        timestep = self.timestep(sigma)
        return Coefficients(float(1 / np.sqrt(sigma**2 + 1)), timestep, *self.noising(timestep))

    def start(self, strength: float) -> int:
        """The time step at which a run of ``strength`` (0..1, share of the 1000 levels) starts.

        Raises:
            ValueError: strength outside 0.001..0.998 (the last level holds no signal to keep).
        """
        timestep = round(strength * LEVELS)
        if not 1 <= timestep <= LEVELS - 2:
            raise ValueError(f"strength must lie between 0.001 and 0.998, not {strength}")
        return timestep

    def trailing(self, start: int, steps: int) -> list[float]:
        """Sigmas for DPM-Solver++: ``steps`` of them from time step ``start`` down, then 0.

        The reference divides ``0..start`` into ``steps + 1`` parts and drops the last noisy point.
        """
        return self._sigmas([start - k * (start + 1) / (steps + 1) for k in range(steps)])

    def two_paces(self, start: int) -> list[float]:
        """Sigmas for few steps from much noise: 100 time steps apart down to 500, then 45.5 apart, then 0.

        Of a ``start`` below 899 those that lie below it.
        """
        fine = [500 - k * 501 / 11 for k in range(11)]
        timesteps = [899.0, 799.0, 699.0, 599.0, *fine[:-1]]  # the reference drops the last noisy point
        return self._sigmas([float(start), *(t for t in timesteps if t < start)])

    def leading(self, start: int, steps: int) -> list[float]:
        """Sigmas for Heun's method: ``steps`` of them, ``(start + 1) / steps`` time steps apart, then 0."""
        return self._sigmas([start - k * (start + 1) / steps for k in range(steps)])

    def reaching(self, start: int, steps: int) -> list[float]:
        """Sigmas for few steps: ``steps`` of them, evenly from time step ``start`` to where 30 of :meth:`trailing` end.

        The last evaluation takes away all noise that is left, and with it detail that is fainter than that noise:
        the fewer steps :meth:`trailing` makes, the more. From 30 steps on the two are the same.
        """
        if steps == 1:
            return self._sigmas([start])
        usual = max(steps, USUAL_STEPS)
        last = start - (usual - 1) * (start + 1) / (usual + 1)
        return self._sigmas([start - k * (start - last) / (steps - 1) for k in range(steps)])

    def strided(self, start: int, steps: int) -> list[float]:
        """Sigmas for DDIM: time steps 1 and up at equal distances below ``start``, falling, then where noise is to end.

        There are ``steps`` of them, and the end is 0. The reference (``exact``) goes by whole distances,
        ``(start + 1) // steps``, which may give more steps, and ends at time step 0: a little noise stays.
        """
        levels = start + 1
        if self.exact:
            timesteps = [min(1 + t, start) for t in range(0, levels, levels // steps)]
            return [self.sigma(t) for t in (*reversed(timesteps), 0)]
        return self._sigmas([1 + k * levels / steps for k in reversed(range(steps))])

    def _sigmas(self, timesteps: list[float]) -> list[float]:
        if not self.exact:
            timesteps = sorted({max(round(t), 0) for t in timesteps}, reverse=True)
        return [self.sigma(t) for t in timesteps] + [0.0]


def _shifted_cosine() -> Floats:
    u = 1.0 - np.arange(LEVELS) / (LEVELS - 1)
    a, b = np.arctan(np.exp(_LOGSNR_END / 2)), np.arctan(np.exp(-_LOGSNR_END / 2))
    cosine = -2 * np.log(np.tan(a + u * (b - a)))
    logsnr = cosine - 2 * (u * np.log(_SHIFT_NOISY) + (1 - u) * np.log(_SHIFT_CLEAN))
    s = np.sqrt(1.0 / (1.0 + np.exp(logsnr)))
    return np.asarray(s[0] + (1 - s[0]) / (s[-1] - s[0]) * (s - s[0]))


def _scaled_linear() -> Floats:
    betas = np.linspace(np.sqrt(_BETA_CLEAN), np.sqrt(_BETA_NOISY), LEVELS) ** 2
    return np.asarray(np.sqrt(1 - np.cumprod(1 - betas)))
