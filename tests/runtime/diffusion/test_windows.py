"""Windows cover everything, and blending equal windows gives back the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from v2v.runtime.diffusion.windows import spans, starts, tiles

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
