"""The operations of the CPU device, which specify those of every other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from v2v.device import Nonfinite
from v2v.device.cpu import CpuDevice

device = CpuDevice()
rng = np.random.default_rng(0)


def prepared(frame, size, *, offset=(0, 0), count=None, antialias=False):
    out = np.full((1, 3, *(count or size)), np.nan, np.float32)
    device.prepare_frame(frame, size, out, offset=offset, antialias=antialias)
    return out[0]


def reference_resize(frame, size):
    """The reference's resize, written out pixel by pixel (bilinear, align_corners false, no antialias)."""
    image = frame.astype(np.float64) / 255 * 2 - 1
    out = np.empty((*size, 3))
    for y in range(size[0]):
        for x in range(size[1]):
            sy = max((y + 0.5) * frame.shape[0] / size[0] - 0.5, 0)
            sx = max((x + 0.5) * frame.shape[1] / size[1] - 0.5, 0)
            y0, x0 = int(sy), int(sx)
            y1, x1 = min(y0 + 1, frame.shape[0] - 1), min(x0 + 1, frame.shape[1] - 1)
            top = image[y0, x0] * (1 - sx + x0) + image[y0, x1] * (sx - x0)
            bottom = image[y1, x0] * (1 - sx + x0) + image[y1, x1] * (sx - x0)
            out[y, x] = top * (1 - sy + y0) + bottom * (sy - y0)
    return np.moveaxis(out, 2, 0)


sides = st.integers(1, 12)


@budget(deadline=None, max_examples=40)
@given(sides, sides, sides, sides)
def test_resize_is_the_references(h0, w0, h, w):
    frame = rng.integers(0, 256, (h0, w0, 3), np.uint8)
    np.testing.assert_allclose(prepared(frame, (h, w)), reference_resize(frame, (h, w)), atol=2e-6)


@budget(deadline=None, max_examples=40)
@given(sides, sides, sides, sides, st.booleans())
def test_a_flat_frame_stays_flat(h0, w0, h, w, antialias):
    frame = np.full((h0, w0, 3), (0, 100, 255), np.uint8)
    expected = np.array([-1, 100 / 255 * 2 - 1, 1])[:, None, None]
    out = prepared(frame, (h, w), antialias=antialias)
    np.testing.assert_allclose(out, np.broadcast_to(expected, out.shape), atol=1e-6)


def test_antialias_averages_what_plain_bilinear_skips():
    lines = np.zeros((64, 64, 3), np.uint8)
    lines[:, 3::8] = 255  # plain bilinear to a quarter looks at columns 1 and 2 of every four
    plain, smooth = (prepared(lines, (16, 16), antialias=antialias) for antialias in (False, True))
    assert (plain == -1).all()
    assert smooth.mean() == pytest.approx(-1 + 2 / 8, abs=0.02)


def test_antialias_changes_nothing_when_scaling_up():
    frame = rng.integers(0, 256, (9, 11, 3), np.uint8)
    np.testing.assert_array_equal(prepared(frame, (20, 30), antialias=True), prepared(frame, (20, 30)))


@pytest.mark.parametrize("antialias", [False, True])
def test_an_offset_shows_another_part_and_edges_repeat(antialias):
    frame = rng.integers(0, 256, (20, 30, 3), np.uint8)
    whole = prepared(frame, (12, 16), antialias=antialias)
    part = prepared(frame, (12, 16), offset=(-2, 5), count=(16, 14), antialias=antialias)
    np.testing.assert_array_equal(part[:, 2:14, :11], whole[:, :, 5:])
    np.testing.assert_array_equal(part[:, 0], part[:, 2])
    np.testing.assert_array_equal(part[:, :, 13], part[:, :, 10])


def test_posterior_is_mean_plus_deviation_times_noise():
    mean, log_variance = rng.standard_normal((2, 4, 3, 5)).astype(np.float32)
    log_variance[0, 0, 0], log_variance[0, 0, 1] = 99, -99  # clipped to 20 and -30
    noise = rng.standard_normal((1, 4, 1, 3, 5)).astype(np.float32)
    out = np.empty_like(noise)
    device.sample_posterior(np.concatenate([mean, log_variance])[None], noise, 0.5, out)
    expected = 0.5 * (mean + np.exp(np.clip(log_variance, -30, 20) / 2) * noise[0, :, 0])
    np.testing.assert_allclose(out[0, :, 0], expected, rtol=1e-5)


def test_bytes_round_or_truncate():
    levels = np.array([-2, -1, 0, 0.999, 1, 2], np.float32)
    image = np.broadcast_to(levels, (1, 3, 1, 6)).copy()
    out = np.empty((1, 6, 3), np.uint8)
    device.image_to_bytes(image, out, truncate=True)
    assert out[0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]
    device.image_to_bytes(image, out, truncate=False)
    assert out[0, :, 0].tolist() == [0, 0, 128, 255, 255, 255]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_every_level_survives_the_way_there_and_back(kind):
    side = 1 << np.iinfo(kind).bits // 2
    frame = np.arange(side * side, dtype=kind).reshape(side, side)[..., None].repeat(3, axis=2)
    out = np.empty_like(frame)
    device.image_to_bytes(prepared(frame, (side, side))[None], out, truncate=False)
    np.testing.assert_array_equal(out, frame)


def test_sixteen_bits_use_all_of_their_range():
    frame = np.array([[0, 257 * 100, 65535]], np.uint16)[..., None].repeat(3, axis=2)
    same = np.array([[0, 100, 255]], np.uint8)[..., None].repeat(3, axis=2)
    np.testing.assert_allclose(prepared(frame, (1, 3)), prepared(same, (1, 3)), atol=1e-7)
    out = np.empty((1, 6, 3), np.uint16)
    image = np.broadcast_to(np.array([-2, -1, 0, 0.999, 1, 2], np.float32), (1, 3, 1, 6)).copy()
    device.image_to_bytes(image, out, truncate=False)
    assert out[0, :, 0].tolist() == [0, 0, 32768, 65502, 65535, 65535]
    device.image_to_bytes(image, out, truncate=True)
    assert out[0, :, 0].tolist() == [0, 0, 32767, 65502, 65535, 65535]


@pytest.mark.parametrize("antialias", [False, True])
def test_sixteen_bits_keep_what_eight_would_round_away(antialias):
    frame = rng.integers(0, 1 << 16, (20, 30, 3), np.uint16)
    exact = prepared(frame, (9, 40), antialias=antialias)
    rounded = prepared((frame // 257).astype(np.uint8), (9, 40), antialias=antialias)
    fine = prepared((frame % 257).astype(np.uint16), (9, 40), antialias=antialias)
    np.testing.assert_allclose(exact, rounded + fine + 1, atol=2e-6)
    assert np.abs(exact - rounded).max() > 1e-3


def test_windows_are_taken_and_added_where_they_belong():
    canvas = rng.standard_normal((6, 4, 10, 12)).astype(np.float32)
    window = np.empty((1, 4, 3, 5, 6), np.float32)
    device.take_window(canvas, (2, 4, 5), 2.0, window)
    np.testing.assert_array_equal(window[0, 3, 1], 2 * canvas[3, 3, 4:9, 5:11])
    total = np.zeros_like(canvas)
    weights = rng.random((3, 5, 6)).astype(np.float32)
    device.add_window(window, weights, (2, 4, 5), total)
    np.testing.assert_allclose(
        total[2:5, :, 4:9, 5:11], 2 * canvas[2:5, :, 4:9, 5:11] * weights[:, None], rtol=1e-6
    )
    assert np.count_nonzero(total) == weights.size * 4


@pytest.mark.parametrize("rescale", [0.0, 0.2, 1.0])
def test_guidance_with_rescale(rescale):
    positive, negative = rng.standard_normal((2, 1, 4, 3, 5, 6)).astype(np.float32)
    out = np.empty_like(positive)
    device.guide(positive, negative, 7.5, rescale, out)
    plain = negative + 7.5 * (positive - negative)
    expected = plain * (rescale * positive.std(ddof=1) / plain.std(ddof=1) + 1 - rescale)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    if rescale == 1.0:
        assert out.std() == pytest.approx(positive.std(), rel=1e-5)


def test_combine_may_write_over_a_term_and_ignores_zero_coefficients():
    x, y = rng.standard_normal((2, 7)).astype(np.float32)
    expected = 2 * x - y
    device.combine([(2.0, x), (-1.0, y), (0.0, np.full(7, np.nan, np.float32))], x)
    np.testing.assert_allclose(x, expected, rtol=1e-6)


def test_the_first_failure_is_told_once():
    canvas = np.zeros((4, 2, 2, 2), np.float32)
    device.check(canvas, 0)
    canvas[2, 0, 0, 0] = np.inf
    device.check(canvas, 5)
    canvas[1, 0, 0, 0] = np.nan
    device.check(canvas, 6)
    assert device.failure() == Nonfinite(5, 2)
    assert device.failure() is None


def test_a_feed_is_first_in_first_out_and_holds_two():
    feed = device.feed((2,), np.float32)
    out = np.empty(2, np.float32)
    with pytest.raises(RuntimeError, match="nothing"):
        feed.take(out)
    feed.put(np.array([1, 1], np.float32))
    feed.put(np.array([2, 2], np.float32))
    with pytest.raises(RuntimeError, match="two"):
        feed.put(out)
    feed.take(out)
    assert out.tolist() == [1, 1]
