"""Noise belongs to the frame: it depends on (seed, frame, draw) and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from v2v.runtime.diffusion import noise

SHAPE = (4, 18, 32)


def test_a_frame_has_its_noise_whatever_is_drawn_before():
    source = noise.keyed(7, SHAPE)
    late = source(100, 3)
    source(1, 0)
    np.testing.assert_array_equal(source(100, 3), late)
    np.testing.assert_array_equal(noise.canvas(source, range(98, 102), 3)[2], late)


def test_seed_frame_and_draw_each_change_it():
    base = noise.keyed(7, SHAPE)(5, 2)
    for other in (
        noise.keyed(8, SHAPE)(5, 2),
        noise.keyed(7, SHAPE)(6, 2),
        noise.keyed(7, SHAPE)(5, 3),
        noise.keyed(7, SHAPE)(5, noise.POSTERIOR),
        noise.keyed(7, SHAPE)(5, noise.DIFFUSION),
    ):
        assert abs(np.corrcoef(base.ravel(), other.ravel())[0, 1]) < 0.1


def test_it_is_standard_normal():
    values = noise.canvas(noise.keyed(0, SHAPE), range(50), 0)
    assert values.dtype == np.float32
    assert values.mean() == pytest.approx(0, abs=0.01)
    assert values.std() == pytest.approx(1, abs=0.01)


def test_it_stays_the_same_across_versions_and_machines():
    drawn = noise.keyed(666, (1, 1, 4))(2, 1).ravel()
    np.testing.assert_allclose(drawn, EXPECTED, rtol=1e-6)


EXPECTED = [
    -0.27492559,
    -0.21191414,
    1.3796622,
    0.59969664,
]  # NumPy 2.5's Philox and ziggurat; they have not changed since 1.17


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_beyond_64_bits_are_refused(seed):
    with pytest.raises(ValueError, match="seed"):
        noise.keyed(seed, SHAPE)
