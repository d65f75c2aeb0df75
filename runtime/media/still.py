"""A single picture from a file, upright and in RGB, as a person sees it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from v2v.runtime.media.errors import MediaError

_DEEP = ("I;16", "I;16B", "I;16L", "I")  # Pillow's names of one channel of 16 bits


def read_picture(path: Path) -> npt.NDArray[np.uint8]:
    """``[H, W, 3]``, uint8, turned as its EXIF data says; transparency is dropped, a palette applied.

    Raises:
        MediaError: no such file, or no picture that can be read.
    """
    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened)
            if upright.mode in _DEEP:
                upright = Image.fromarray((np.asarray(upright) // 256).clip(0, 255).astype(np.uint8))
            return np.asarray(upright.convert("RGB"))
    except FileNotFoundError:
        raise MediaError(f"{path}: no such file") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise MediaError(f"{path} cannot be read as a picture ({error}); give a PNG or JPEG file") from error
