"""Time stamps of pictures: kept where they are sane, mended where they are not, regular or not."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest

from v2v.runtime.media.timestamps import PictureTimes, Timestamp, Timestamps, is_constant

TICK = Fraction(1, 90_000)
NTSC = Fraction(30_000, 1001)  # 3003 ticks a picture


def picture(pts: int | None, duration: int | None = 0) -> Any:
    return SimpleNamespace(pts=pts, duration=duration)


def starts(times: PictureTimes, *given: int | None) -> list[int]:
    return [times.stamp(picture(pts)).start for pts in given]


def test_a_film_keeps_its_stamps_in_order() -> None:
    stamps = Timestamps()
    for start in (0, 3, 2**40):
        stamps.append(Timestamp(start, start + 1))
    assert len(stamps) == 3
    assert list(stamps) == [(0, 1), (3, 4), (2**40, 2**40 + 1)]
    assert stamps[-1].duration == 2**40 + 1


def test_sane_stamps_are_kept() -> None:
    times = PictureTimes(NTSC, TICK)
    assert starts(times, 0, 3003, 6006, 20_000) == [0, 3003, 6006, 20_000]
    assert times.count == 4
    assert times.longest == 13_994 * TICK
    assert times.usual == 3003 * TICK
    assert times.end == 23_003 * TICK


def test_the_first_picture_is_never_before_0() -> None:
    assert starts(PictureTimes(NTSC, TICK), -500, 3003) == [0, 3003]
    assert starts(PictureTimes(NTSC, TICK), None, 3003) == [0, 3003]
    assert starts(PictureTimes(NTSC, TICK), 700) == [700]


def test_a_picture_without_a_stamp_or_with_one_that_does_not_grow_follows_the_one_before() -> None:
    times = PictureTimes(NTSC, TICK)
    assert starts(times, 0, None, 3003, 1, 9009 + 7) == [0, 3003, 6006, 9009, 9016]
    times = PictureTimes(NTSC, TICK)
    assert times.stamp(picture(0, 100)) == (0, 100)
    assert times.stamp(picture(None, 40)) == (100, 40)  # by the duration of the one before
    assert times.stamp(picture(100, None)) == (140, 0)
    assert times.end == (140 + 3003) * TICK


def test_the_end_goes_by_the_last_picture_s_own_duration() -> None:
    times = PictureTimes(NTSC, TICK)
    assert times.end == 3003 * TICK  # of none
    times.stamp(picture(10, 50))
    assert times.end == 60 * TICK


def test_a_step_is_never_less_than_a_tick() -> None:
    times = PictureTimes(Fraction(1000), Fraction(1, 25))
    assert times.usual == Fraction(1, 25)
    assert starts(times, 0, None, None) == [0, 1, 2]
    assert PictureTimes(Fraction(24), Fraction(1, 1000)).usual == Fraction(42, 1000)  # the nearest


@pytest.mark.parametrize(
    ("given", "regular"),
    [
        ([0, 3003, 6006, 9009, 12_012, 15_015], True),
        ([0, 3002, 6006, 9008, 12_012, 15_014], True),  # as exactly as a coarse clock tells
        (
            [0, 3003, 9009, 12_012, 15_015, 18_018, 21_021, 24_024, 27_027, 30_030, 33_033],
            True,
        ),  # one missing
        ([0, 3003, 9009, 12_012, 20_000, 23_003], False),
        ([0, 3005, 6010, 9015, 12_020, 15_025], False),
        ([0, 1, 2, 3, 4, 5], False),
    ],
)
def test_a_frame_rate_looks_constant_give_or_take_what_is_missing(given: list[int], regular: bool) -> None:
    times = PictureTimes(NTSC, TICK)
    starts(times, *given)
    assert times.regular == regular


@pytest.mark.parametrize(
    ("given", "constant"),
    [
        ([500 + 3003 * n for n in range(40)], True),
        ([500 + 3003 * n + n % 2 for n in range(40)], True),
        ([500 + 3003 * n + 2 * (n == 20) for n in range(40)], False),
        ([500 + 3004 * n for n in range(40)], False),
        ([500 + 3002 * n for n in range(40)], False),
        ([7], True),
    ],
)
def test_whether_pictures_follow_each_other_at_a_rate(given: list[int], constant: bool) -> None:
    assert is_constant([Timestamp(start, 0) for start in given], TICK, NTSC) == constant
