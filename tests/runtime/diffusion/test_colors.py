"""Colours come from the source, detail stays the model's."""

from __future__ import annotations

import numpy as np
import pytest

from v2v.device.cpu import CpuDevice
from v2v.runtime.diffusion.colors import LowFrequencies, match_statistics

device = CpuDevice()
rng = np.random.default_rng(0)


def as_picture(frame):
    out = np.empty((1, 3, *frame.shape[:2]), np.float32)
    device.prepare_frame(frame, frame.shape[:2], out, offset=(0, 0), antialias=False)
    return out


def low_matched(picture, frame):
    size = picture.shape[2:]
    LowFrequencies(device, size, size, (0, 0))(picture, frame, antialias=True)
    return picture


def ramp(height=96, width=128):
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 / width, y * 255 / height, np.full_like(x, 80)], axis=2).astype(np.uint8)


@pytest.mark.parametrize("shift", [(0.2, -0.1, 0.05), (-0.3, 0.0, 0.3)])
def test_wavelet_undoes_a_colour_cast_and_keeps_detail(shift):
    source = ramp()
    detail = rng.choice([-0.1, 0.1], (1, 3, 96, 128)).astype(np.float32)
    cast = as_picture(source) + detail + np.array(shift, np.float32)[:, None, None]
    matched = low_matched(cast, source)
    assert np.abs((matched - as_picture(source) - detail).mean(axis=(2, 3))).max() < 0.003
    assert np.corrcoef((matched - as_picture(source)).ravel(), detail.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("picture", [ramp(), np.full((50, 70, 3), 128, np.uint8)])
def test_a_faithful_picture_is_left_alone(picture):
    matched = low_matched(as_picture(picture), picture)
    np.testing.assert_allclose(matched, as_picture(picture), atol=1e-5)


def test_wavelet_follows_a_source_of_another_size():
    source = ramp(48, 64)
    matched = low_matched(np.zeros((1, 3, 96, 128), np.float32), source)
    inner = (slice(None), slice(None), slice(32, -32), slice(32, -32))
    np.testing.assert_allclose(matched[inner], as_picture(ramp())[inner], atol=0.02)


def test_adain_gives_each_channel_the_sources_mean_and_contrast():
    source = rng.integers(60, 200, (40, 50, 3), np.uint8)
    picture = np.clip(source[::2, ::2] * 0.5 + 90, 0, 255).astype(np.uint8)
    matched = match_statistics(picture, source)
    assert matched.mean(axis=(0, 1)) == pytest.approx(source.mean(axis=(0, 1)), abs=1)
    assert matched.std(axis=(0, 1)) == pytest.approx(source.std(axis=(0, 1)), rel=0.05)


def test_adain_of_16_bits_is_adain_of_8_with_finer_steps():
    source = rng.integers(60, 200, (40, 50, 3), np.uint8)
    picture = np.clip(source[::2, ::2] * 0.5 + 90, 0, 255).astype(np.uint8)
    coarse = match_statistics(picture, source)
    for deep_picture, deep_source in ((True, True), (True, False), (False, True)):
        matched = match_statistics(
            picture.astype(np.uint16) * 257 if deep_picture else picture,
            source.astype(np.uint16) * 257 if deep_source else source,
        )
        assert matched.dtype == (np.uint16 if deep_picture else np.uint8)
        assert np.abs(matched / (257 if deep_picture else 1) - coarse).max() <= 0.5


def test_wavelet_follows_a_source_of_16_bits():
    source = ramp()
    matched = low_matched(as_picture(source) + np.float32(0.2), source.astype(np.uint16) * 257)
    np.testing.assert_allclose(matched, as_picture(source), atol=0.003)


def test_adain_survives_a_flat_picture():
    flat = np.full((8, 8, 3), 7, np.uint8)
    assert (match_statistics(flat, np.full((8, 8, 3), 99, np.uint8)) == 99).all()
