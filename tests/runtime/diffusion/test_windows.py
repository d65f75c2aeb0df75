"""Windows cover everything, and blending equal windows gives back the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from v2v.runtime.diffusion.windows import chunks, joined, spans, starts, tiles

axes = st.integers(1, 40).flatmap(
    lambda window: st.tuples(
        st.integers(window, 200), st.just(window), st.integers(0, window - 1), st.none() | st.floats(0, 1)
    )
)


@given(axes)
def test_spans_cover_the_axis_and_their_weights_add_up_to_one(axis):
    length, window, _, _ = axis
    total = np.zeros(length)
    for span in spans(*axis):
        assert 0 <= span.start <= length - window
        assert (span.weights >= 0).all()
        total[span.start : span.start + window] += span.weights
    np.testing.assert_allclose(total, 1, atol=1e-6)


@given(axes)
def test_neighbours_share_at_least_the_overlap_and_no_window_is_wasted(axis):
    length, window, overlap, _ = axis
    placed = starts(length, window, overlap)
    assert placed[0] == 0
    assert placed[-1] == length - window
    assert all(b - a <= window - overlap and b > a for a, b in zip(placed, placed[1:], strict=False))
    fewest = 1 + -(-(length - window) // (window - overlap))
    assert len(placed) == fewest


def test_a_boundary_moves_with_the_phase_inside_the_shared_part():
    def middle(phase):
        later = spans(24, 16, 8, phase)[1]
        return later.start + int(np.searchsorted(later.weights[:8], 0.5))

    places = [middle(phase) for phase in (0.0, 0.5, 1.0)]
    assert places == sorted(set(places))
    assert 8 <= places[0] and places[-1] <= 16


@budget(deadline=None)
@given(st.tuples(*[st.integers(4, 20)] * 3), st.floats(0, 1))
def test_blending_crops_of_a_picture_gives_the_picture(extent, phase):
    whole = np.random.default_rng(0).standard_normal(extent)
    window = tuple(min(side, 7) for side in extent)
    blended = np.zeros(extent)
    for tile in tiles(extent, window, (2, 3, 1), phase):
        box = tuple(slice(a, a + size) for a, size in zip(tile.start, window, strict=True))
        blended[box] += tile.weights * whole[box]
    np.testing.assert_allclose(blended, whole, atol=1e-5)


@pytest.mark.parametrize(("length", "window", "overlap"), [(3, 4, 0), (8, 4, 4), (8, 4, -1)])
def test_impossible_windows_are_refused(length, window, overlap):
    with pytest.raises(ValueError, match=r"window|overlap"):
        starts(length, window, overlap)


@pytest.mark.parametrize(
    ("phase", "rise"),
    [
        (None, [0, 0, 1 / 5, 2 / 5, 3 / 5, 4 / 5, 1, 1]),  # over the middle half of what they share
        (0.0, [0, 0, 1 / 3, 2 / 3, 1, 1, 1, 1]),  # over a quarter, at its beginning
        (0.5, [0, 0, 0, 1 / 3, 2 / 3, 1, 1, 1]),
        (1.0, [0, 0, 0, 0, 1 / 3, 2 / 3, 1, 1]),  # at its end
    ],
)
def test_neighbours_are_faded_where_the_phase_says(phase, rise):
    earlier, later = spans(24, 16, 8, phase)
    assert (earlier.start, later.start) == (0, 8)
    np.testing.assert_allclose(later.weights, [*rise, *[1] * 8], atol=1e-6)
    np.testing.assert_allclose(earlier.weights, [*[1] * 8, *(1 - np.array(rise))], atol=1e-6)


def test_positions_are_subdivided_in_space_and_not_in_time():
    placed = tiles((12, 10, 8), (5, 6, 8), (2, 2, 0), subdivisions=4)
    assert {tile.weights.shape for tile in placed} == {(5, 24, 32)}
    total = np.zeros((12, 40, 32))
    for f, y, x in {tile.start for tile in placed}:
        tile = next(tile for tile in placed if tile.start == (f, y, x))
        total[f : f + 5, 4 * y : 4 * y + 24, 4 * x : 4 * x + 32] += tile.weights
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_windows_begin_at_multiples_in_time_alone():
    placed = tiles((21, 13, 9), (9, 6, 9), (3, 2, 0), multiple=4)
    assert sorted({tile.start[0] for tile in placed}) == [0, 8, 12]
    assert sorted({tile.start[1] for tile in placed}) == [0, 4, 7]


def test_long_videos_are_taken_apart_as_the_authors_do():
    assert chunks(32, 32, 16, 1.25) == [(0, 32)]
    assert chunks(40, 32, 16, 1.25) == [(0, 40)]  # all that is left, within a quarter more
    assert chunks(41, 32, 16, 1.25) == [(0, 32), (16, 41)]
    assert chunks(100, 32, 16, 1.25) == [(0, 32), (16, 48), (32, 64), (48, 80), (64, 100)]


@pytest.mark.parametrize(
    ("fade", "rise"), [(False, [0, 0, 0, 1, 1, 1]), (True, [0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])]
)
def test_pieces_are_cut_in_the_middle_of_what_they_share_or_faded_over_it(fade, rise):
    pieces = joined([(0, 10), (4, 14), (8, 20)], fade=fade)
    assert [piece.start for piece in pieces] == [0, 4, 8]
    np.testing.assert_allclose(pieces[0].weights, [*[1] * 4, *(1 - np.array(rise))], atol=1e-6)
    np.testing.assert_allclose(pieces[2].weights, [*rise, *[1] * 6], atol=1e-6)
