"""Classifier-free guidance: its scale, rescale and interval of noise levels."""

from __future__ import annotations

from dataclasses import dataclass

from v2v.runtime.diffusion.schedule import LEVELS


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho & Salimans 2022) with rescale (Lin et al. 2023, section 3.4).

    ``interval`` are the noise levels, as shares of the 1000, at which guidance acts (Kynkäänniemi et al. 2024,
    https://arxiv.org/abs/2404.07724): outside of it the negative prompt need not be evaluated.
    """

    scale: float
    rescale: float
    interval: tuple[float, float] = (0.0, 1.0)

    def acts(self, timestep: int) -> bool:
        """Whether the unconditional estimate counts; at scale 1 it cancels out."""
        low, high = self.interval
        return self.scale != 1 and low <= timestep / LEVELS <= high
