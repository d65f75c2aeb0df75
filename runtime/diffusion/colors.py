"""Faithful colours: low frequencies come from the source, high ones from the model.

Latent diffusion drifts in colour and brightness. Two ways to bring a picture back, as StableSR (Wang et al. 2023,
https://arxiv.org/abs/2305.07015) offers them: ``wavelet`` exchanges the low frequencies for the source's, ``adain``
(Huang & Belongie 2017, https://arxiv.org/abs/1703.06868) gives each channel the source's mean and contrast.
"""

from __future__ import annotations

import numpy as np

from v2v.device import Array, Device, Frame

# Pixels per position of the coarse picture. Averaging down to it and interpolating back up is a low pass whose
# deviation is about 0.58 times this: what varies more slowly counts as colour, what varies faster as detail.
_COARSE = 16


class LowFrequencies:
    """Exchanges a picture's low frequencies for its source's, on the device (``wavelet``)."""

    def __init__(
        self, device: Device, size: tuple[int, int], pixels: tuple[int, int], corner: tuple[int, int]
    ) -> None:
        """Buffers for pictures of ``size`` that lie at ``corner`` in canvases of ``pixels``, all (height, width)."""
        rows, columns = (max(side // _COARSE, 1) for side in pixels)
        self._device, self._size, self._corner = device, size, corner
        self._source, self._broad = (device.empty((1, 3, *pixels), np.float32) for _ in range(2))
        self._coarse = device.empty((1, 3, rows, columns), np.float32)

    def __call__(self, picture: Array, frame: Frame, *, antialias: bool) -> None:
        """Correct ``picture [1, 3, H, W]`` in place towards ``frame [H0, W0, 3]``."""
        device = self._device
        offset = (-self._corner[0], -self._corner[1])
        device.prepare_frame(
            device.upload(frame), self._size, self._source, offset=offset, antialias=antialias
        )
        device.combine([(1.0, self._source), (-1.0, picture)], self._source)
        device.resize(self._source, self._coarse)
        device.resize(self._coarse, self._broad)
        device.combine([(1.0, picture), (1.0, self._broad)], picture)


def match_statistics(picture: Frame, frame: Frame) -> Frame:
    """``picture [H, W, 3]`` with each channel's mean and standard deviation those of ``frame`` (``adain``).

    Either may be of 8 or of 16 bits; the result is as ``picture``.
    """
    white = int(np.iinfo(picture.dtype).max)
    scale = white / int(np.iinfo(frame.dtype).max)  # from the source's levels to the picture's
    matched = np.empty_like(picture)
    levels = np.arange(white + 1, dtype=np.float64)
    for channel in range(3):
        have, want = picture[..., channel], frame[..., channel]
        deviation = float(have.std())
        flat = deviation <= white * (0.5 / 255)  # nothing there to stretch but rounding
        contrast = 1.0 if flat else scale * float(want.std()) / deviation
        table = (levels - have.mean()) * contrast + scale * want.mean()
        matched[..., channel] = np.rint(np.clip(table, 0, white)).astype(picture.dtype)[have]
    return matched
