"""A picture is prepared as the reference does, or without its roundings."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from v2v.runtime.diffusion.picture import MEAN, STANDARD_DEVIATION, clip_image

GOLDEN = load_file(
    Path(__file__).parents[2] / "data" / "golden" / "image-to-video" / "i2v_picture.cases.safetensors"
)
CASES = sorted({key.split(".")[0] for key in GOLDEN})
SEED = 11


def picture(width: int, height: int, seed: int = SEED) -> np.ndarray:
    noise = np.random.default_rng([seed, width, height]).integers(0, 128, (height, width, 3))
    x, y = np.arange(width) * 127 // max(width - 1, 1), np.arange(height) * 127 // max(height - 1, 1)
    noise[..., 0] += x
    noise[..., 1] += y[:, None]
    noise[..., 2] += 64
    return noise.astype(np.uint8)


def levels(image: np.ndarray) -> np.ndarray:
    """Back to levels, as floats."""
    return (image[0].transpose(1, 2, 0) * STANDARD_DEVIATION + MEAN) * 255


@pytest.mark.parametrize("case", CASES)
def test_parity_is_the_references_to_the_byte(case: str) -> None:
    made = picture(*map(int, GOLDEN[f"{case}.size"]))
    assert zlib.crc32(made.tobytes()) == int(GOLDEN[f"{case}.crc_picture"].item())
    image = clip_image(made, 224, parity=True)
    np.testing.assert_array_equal(np.rint(levels(image)).astype(np.uint8), GOLDEN[f"{case}.rgb"])
    if case == "0":
        np.testing.assert_array_equal(image[0], GOLDEN["0.image"])


def test_parity_keeps_the_black_line_and_the_default_has_none() -> None:
    white = np.full((720, 1280, 3), 255, np.uint8)
    assert levels(clip_image(white, 224, parity=True))[0].max() < 250
    np.testing.assert_allclose(levels(clip_image(white, 224)), 255, atol=1e-3)


def takes_the_exact_size(case: str) -> bool:
    """Whether the reference's size in between is the rounded one, so that it has no black line either."""
    sides = [int(side) for side in GOLDEN[f"{case}.size"]]
    scale = min(sides) / 448
    return all(int(side // scale) == round(side / scale) for side in sides)


@pytest.mark.parametrize("case", [*filter(takes_the_exact_size, CASES)])
def test_the_default_differs_by_roundings_alone(case: str) -> None:
    size = [int(side) for side in GOLDEN[f"{case}.size"]]
    difference = np.abs(levels(clip_image(picture(*size), 224)) - GOLDEN[f"{case}.rgb"])
    assert difference.max() < 1.6
    assert difference.mean() < 0.35


@pytest.mark.parametrize(("height", "width"), [(10, 700), (37, 90), (448, 448), (3000, 451)])
def test_any_shape_gives_a_square(height: int, width: int) -> None:
    grey = np.full((height, width, 3), 100, np.uint8)
    for parity in (False, True):
        image = clip_image(grey, 224, parity=parity)
        assert image.shape == (1, 3, 224, 224)
        assert image.dtype == np.float32
    np.testing.assert_allclose(levels(clip_image(grey, 224)), 100, atol=1e-3)


def test_of_a_narrow_strip_only_the_square_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it would be 448 x 2,240,000 pixels."""
    resize, sizes = Image.Image.resize, []

    def watched(self: Image.Image, size: tuple[int, int], *given: Any, **more: Any) -> Image.Image:
        sizes.append(size)
        return resize(self, size, *given, **more)

    monkeypatch.setattr(Image.Image, "resize", watched)
    strip = np.repeat(np.arange(5000) * 255 // 4999, 3).reshape(1, 5000, 3).astype(np.uint8)
    np.testing.assert_allclose(levels(clip_image(strip, 224)), 127, atol=1)
    assert max(width * height for width, height in sizes) == 448 * 448
