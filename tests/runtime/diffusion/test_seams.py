"""Nothing shows where windows, tiles and segments meet: no grid in space, no flicker in time.

With the trained small model, in PyTorch, at windows so small that every kind of seam is there many times.
"""

from __future__ import annotations

from collections.abc import Callable

import av
import numpy as np
import pytest

from tests.stand_ins.command import SAMPLE
from v2v.core.components import window_for
from v2v.core.configs import MODELS
from v2v.device.cpu import CpuDevice
from v2v.engine.choose import default_weights
from v2v.runtime.diffusion.pipeline import Frame, VideoToVideo
from v2v.runtime.diffusion.segments import segments
from v2v.runtime.diffusion.settings import Settings
from v2v.runtime.diffusion.windows import starts

WIDTH, HEIGHT = 80, 72  # of a window
Make = Callable[[int], VideoToVideo]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The small model with its trained weights at windows of so many frames."""
    pytest.importorskip("torch", reason="networks of any window need PyTorch")
    from v2v.benchmarks.torch_engines import baseline_engines
    from v2v.export.weights import load_weights

    def make(frames: int) -> VideoToVideo:
        model = MODELS["small"]
        folder = tmp_path_factory.mktemp("trained")
        window = window_for(model, (WIDTH, HEIGHT), frames)
        weights = load_weights(default_weights(model), model)
        engines = baseline_engines(folder, "eager", model, window, weights, "cpu")
        return VideoToVideo(engines, CpuDevice())

    return make


def seams(length: int, window: int) -> set[int]:
    """Pixels at which what two windows or two tiles share begins or ends, along one axis."""
    found: set[int] = set()
    for overlap in (window // 8 // 4, min(window // 8 // 2, 4)):
        placed = starts(length // 8, window // 8, overlap)
        for earlier, later in zip(placed, placed[1:], strict=False):
            found |= {8 * later, 8 * earlier + window}
    return found


@pytest.mark.parametrize("what", ["grey", "ramp"])
def test_no_grid_shows_on_a_flat_grey_and_on_a_smooth_ramp(trained: Make, what: str) -> None:
    """The mean of all rows, or columns, steps no more within a latent of a seam than it does elsewhere."""
    height, width = 136, 176
    y, x = np.mgrid[0:height, 0:width]
    level = 30 + 114 * x / width + 76 * y / height if what == "ramp" else np.full((height, width), 128.0)
    picture = np.repeat(np.rint(257 * level)[..., None], 3, axis=2).astype(
        np.uint16
    )  # rounding makes steps too
    out = list(trained(2)([picture] * 2, Settings(size=(height, width), color="none")))
    shown = np.asarray(out, np.float64).mean(axis=(0, 3)) / 257
    for profile, window in ((shown.mean(axis=0), WIDTH), (shown.mean(axis=1), HEIGHT)):
        steps = np.diff(profile)
        steps = np.abs(steps - np.median(steps))
        inside = range(8, len(steps) - 8)  # a picture's own border is no seam
        near = {n for n in inside if any(abs(n + 1 - seam) <= 8 for seam in seams(len(profile), window))}
        elsewhere = [steps[n] for n in inside if n not in near]
        assert len(near) > 20 and len(elsewhere) > 10
        assert max(steps[n] for n in near) <= 1.25 * max(elsewhere)
        assert max(steps[n] for n in near) < 0.1  # levels of 255; steps of 0.5 to 1.0 were seen before


def changes(frames: list[Frame]) -> np.ndarray:
    """Mean absolute difference of each frame from the one before it."""
    return np.abs(np.diff(np.asarray(frames, np.float64), axis=0)).mean(axis=(1, 2, 3))


def crop_of_the_sample() -> list[Frame]:
    with av.open(str(SAMPLE)) as film:
        return [frame.to_ndarray(format="rgb24")[70:106, 140:180].copy() for frame in film.decode(video=0)]


def at_segments(v2v: VideoToVideo, frames: list[Frame]) -> list[int]:
    """The changes, as :func:`changes` counts them, from one segment to the next."""
    return [segment.first - 1 for segment in segments(v2v.window, frames)][1:]


def test_a_still_picture_flickers_no_more_between_segments_than_inside(trained: Make) -> None:
    v2v = trained(8)
    frames = [crop_of_the_sample()[10]] * 54
    found = changes(list(v2v(frames)))
    between = at_segments(v2v, frames)
    inside = np.delete(found, between)
    assert len(between) == 3
    assert found[between].mean() <= np.percentile(inside, 95)  # 9 % above the mean, and above all, before
    assert found[between].mean() <= 1.04 * inside.mean()


def test_the_sample_clip_changes_no_more_between_segments_than_where_all_of_it_is_one_window(
    trained: Make,
) -> None:
    v2v, frames = trained(8), crop_of_the_sample()
    more = changes(list(v2v(frames))) - changes(list(trained(len(frames))(frames)))
    between = at_segments(v2v, frames)
    assert len(between) == 2
    assert more[between].max() <= np.percentile(np.delete(more, between), 95)
