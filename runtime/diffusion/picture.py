"""A picture as CLIP is shown it: its middle square, 224 pixels wide, standardised."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

# Of each channel over the pictures that CLIP was trained with, levels 0..1.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STANDARD_DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)

Picture = npt.NDArray[np.uint8]
"""``[H, W, 3]``, RGB."""


def clip_image(picture: Picture, side: int, *, parity: bool = False) -> npt.NDArray[np.float32]:
    """``[H, W, 3]`` -> ``[1, 3, side, side]``, standardised.

    The picture is averaged to twice the size, the square in its middle is cut out and halved by a filter as wide as
    four pixels. In between levels are exact; in parity mode they are bytes, as the reference's, and the short side may
    come out a pixel too short, which gives the square a black first row or column.
    """
    cut = (_bytes_square if parity else _exact_square)(picture, 2 * side, side)
    image = ((cut.astype(np.float32) / np.float32(255)).clip(0, 1) - MEAN) / STANDARD_DEVIATION
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None])


def _bytes_square(picture: Picture, square: int, side: int) -> npt.NDArray[np.uint8]:
    """As the reference, rounding included, by the library that it uses too."""
    height, width = picture.shape[:2]
    scale = min(width / square, height / square)
    resized = Image.fromarray(picture).resize(
        (int(width // scale), int(height // scale)), Image.Resampling.BOX
    )
    return np.asarray(_middle(resized, square).resize((side, side), Image.Resampling.BILINEAR))


def _exact_square(picture: Picture, square: int, side: int) -> npt.NDArray[np.float32]:
    """The same filters on floating-point levels; the short side is the square's.

    Only what the square shows is averaged: of a narrow strip the whole would be gigabytes.
    """
    height, width = picture.shape[:2]
    scale = min(width, height) / square
    columns, rows = round(width / scale), round(height / scale)
    left, top = (columns - square) // 2, (rows - square) // 2
    x, y = width / columns, height / rows  # of the picture, to one of the averaged
    shown = left * x, top * y, min((left + square) * x, width), min((top + square) * y, height)
    channels = []
    for channel in np.moveaxis(picture, -1, 0).astype(np.float32):
        averaged = Image.fromarray(channel).resize((square, square), Image.Resampling.BOX, box=shown)
        channels.append(np.asarray(averaged.resize((side, side), Image.Resampling.BILINEAR)))
    return np.stack(channels, -1)


def _middle(image: Image.Image, square: int) -> Image.Image:
    left, top = (image.width - square) // 2, (image.height - square) // 2
    return image.crop((left, top, left + square, top + square))
