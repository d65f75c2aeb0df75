"""Cuts are found where they are, and nowhere else."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest

from tests.runtime.clips import picture
from v2v.runtime.media.shots import ShotDetector


def film(*shots):
    """Frames of shots (count, seed), each a moving pattern of its own; and the numbers of their first frames."""
    frames, firsts = [], []
    for count, seed in shots:
        firsts.append(len(frames))
        colours = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
        background = colours.repeat(16, axis=0).repeat(16, axis=1)
        frames += [np.roll(background, 2 * n, axis=1) for n in range(count)]
    return frames, set(firsts[1:])


def cuts_in(frames):
    detector, found = ShotDetector(), set()
    for number, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame.pts, frame.time_base = number, Fraction(1, 25)
        if detector(frame):
            found.add(number)
    return found


@pytest.mark.parametrize("shots", [[(12, 1)], [(9, 1), (11, 2)], [(5, 1), (4, 2), (8, 3), (20, 4)]])
def test_every_cut_is_found(shots):
    frames, expected = film(*shots)
    assert cuts_in(frames) == expected


def test_motion_and_fading_are_no_cuts():
    moving = [picture(n, 128, 96) for n in range(20)]
    fading = [(moving[-1] * (1 - n / 20)).astype(np.uint8) for n in range(20)]
    assert cuts_in(moving + fading) == set()


def test_a_change_of_size_in_the_middle_does_not_stop_it():
    small = [picture(n, 64, 48) for n in range(4)]
    assert cuts_in([picture(0, 128, 96), *small]) <= {1}
