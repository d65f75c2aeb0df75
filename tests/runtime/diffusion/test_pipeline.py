"""The story of a run: one frame out for each frame in, whatever the number, the size and the cuts."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from tests.stand_ins.arrays import FUNCTIONS, NumpyEngines, decode_latents, local_velocity, no_velocity
from tests.stand_ins.model import MODEL
from v2v.core.components import Window
from v2v.core.configs import MODELS
from v2v.core.errors import V2VError
from v2v.device.cpu import CpuDevice
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.diffusion.sampling import DenoisingLoop, NumericalError
from v2v.runtime.diffusion.schedule import Schedule
from v2v.runtime.diffusion.segments import segments
from v2v.runtime.diffusion.settings import Settings, output_size, plan


def clip(count, height=72, width=60, seed=0):
    """A smooth moving picture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / 20
    phase = rng.uniform(0, 6, 3)
    return [
        np.stack([127 + 100 * np.sin(y + p + n / 5) * np.cos(x - n / 7) for p in phase], axis=2).astype(
            np.uint8
        )
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def v2v(tmp_path_factory):
    return VideoToVideo(NumpyEngines(tmp_path_factory.mktemp("set")), CpuDevice())


def run(v2v, frames, cuts=(), **settings):
    return list(v2v(frames, Settings(**settings), cuts=cuts))


@pytest.mark.parametrize("count", [1, 2, 4, 5, 10, 11, 33])
def test_as_many_frames_come_out_as_go_in(v2v, count):
    out = run(v2v, clip(count))
    assert [frame.shape for frame in out] == [(72, 60, 3)] * count
    assert all(frame.dtype == np.uint8 for frame in out)


@budget(max_examples=15, deadline=None)
@given(st.integers(1, 150), st.integers(1, 150), st.integers(1, 3))
def test_any_size_comes_out_as_asked(v2v, height, width, count):
    out = run(v2v, clip(count, 17, 23), size=(height, width), steps=1)
    assert [frame.shape for frame in out] == [(height, width, 3)] * count


def test_same_seed_same_bytes_and_another_seed_others(v2v):
    first, again, other = (run(v2v, clip(6), seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(np.asarray(first, int) - np.asarray(other, int)).max() > 0


def test_prompts_reach_the_network(v2v):
    plain, prompted, negative = (
        run(v2v, clip(4), **words) for words in ({}, {"prompt": "a red fox"}, {"negative_prompt": "rain"})
    )
    assert (np.asarray(plain) != np.asarray(prompted)).any()
    assert (np.asarray(plain) != np.asarray(negative)).any()


def test_a_prompt_and_single_settings_do_without_a_settings_object(v2v):
    short = list(v2v(clip(3), "a red fox", steps=2, seed=3))
    np.testing.assert_array_equal(short, run(v2v, clip(3), prompt="a red fox", steps=2, seed=3))
    with pytest.raises(TypeError, match="stepz"):
        list(v2v(clip(1), stepz=2))


def test_without_guidance_the_negative_prompt_is_not_run(tmp_path):
    engines = NumpyEngines(tmp_path)
    v2v = VideoToVideo(engines, CpuDevice())
    v2v.load_all()
    unet = engines.loaded("unet")
    run(v2v, clip(4), guidance=1.0, steps=3)
    assert unet.calls == 3
    run(v2v, clip(4), guidance=2.0, steps=3)
    assert unet.calls == 3 + 6


def test_guidance_in_an_interval_spares_the_other_steps_their_second_evaluation(tmp_path):
    engines = NumpyEngines(tmp_path)
    v2v = VideoToVideo(engines, CpuDevice())
    v2v.load_all()
    unet = engines.loaded("unet")
    steps = plan(Settings(steps=6), MODEL, (8, 8))
    inside = sum(0.1 <= steps.schedule.timestep(sigma) / 1000 <= 0.2 for sigma in steps.sigmas[:-1])
    assert 0 < inside < 6
    run(v2v, clip(4), steps=6, guidance_interval=(0.1, 0.2))
    assert unet.calls == 6 + inside
    whole, none, plain = (
        run(v2v, clip(4), **words) for words in ({}, {"guidance_interval": (0.9, 1.0)}, {"guidance": 1.0})
    )
    np.testing.assert_array_equal(none, plain)
    assert (np.asarray(whole) != np.asarray(none)).any()


def test_cutting_into_windows_does_not_show_where_the_network_is_local(tmp_path):
    """A network that works position by position gives the same picture in one window or in many."""
    small = VideoToVideo(NumpyEngines(tmp_path, Window(4, 80, 64), unet=local_velocity), CpuDevice())
    large = VideoToVideo(NumpyEngines(tmp_path, Window(10, 208, 192), unet=local_velocity), CpuDevice())
    frames = clip(10, 208, 192)
    few, many = (np.asarray(run(v2v, frames, guidance_rescale=0.0), int) for v2v in (large, small))
    assert np.abs(few - many).max() <= 1


def test_a_segment_is_shown_the_end_of_the_one_before_but_nothing_across_a_cut(tmp_path):
    def average(latents, timestep, context):
        return 0.9 * (latents - latents.mean(axis=2, keepdims=True))

    v2v = VideoToVideo(NumpyEngines(tmp_path, unet=average), CpuDevice())
    dark, grey, bright = (np.full((72, 60, 3), level, np.uint8) for level in (60, 130, 190))
    length = 4 * 3 - 1 * 2  # of a segment with these windows
    after_dark, after_grey = (
        run(v2v, [first] * length + [bright] * 3, color="none")[length:] for first in (dark, grey)
    )
    assert np.mean(after_dark) < np.mean(after_grey) - 1
    after_dark, after_grey = (
        run(v2v, [first] * length + [bright] * 3, cuts={length}, color="none")[length:]
        for first in (dark, grey)
    )
    np.testing.assert_array_equal(after_dark, after_grey)


@pytest.mark.parametrize(("carries", "shown"), [("finished", "latents"), ("source", "source")])
def test_a_segment_is_shown_frames_as_finished_or_their_source_once_more(tmp_path, carries, shown):
    def average(latents, timestep, context):
        return 0.9 * (latents - latents.mean(axis=2, keepdims=True))

    model = dataclasses.replace(MODEL, carries=carries)
    v2v = VideoToVideo(NumpyEngines(tmp_path, model=model, unet=average), CpuDevice())
    first, second, *_ = segments(v2v.window, clip(20))
    settings = plan(Settings(color="none"), model, (72, 60))
    pictures, carry = v2v.enhance(first, settings)
    list(pictures)
    usual = np.asarray(list(v2v.enhance(second, settings, carry)[0]))
    for kept in ("latents", "source"):
        if getattr(carry, kept) is None:
            continue
        others = dataclasses.replace(carry, **{kept: getattr(carry, kept) + 1})
        changed = np.asarray(list(v2v.enhance(second, settings, others)[0])) != usual
        assert changed.any() == (kept == shown)


def test_buffers_of_one_shape_are_gone_before_those_of_another_are_made(tmp_path, monkeypatch):
    """At once, not when Python's collector comes by: at 720p they are hundreds of megabytes."""
    alive = weakref.WeakSet()

    class Counted(DenoisingLoop):
        def __init__(self, *arguments):
            assert not alive
            alive.add(self)
            super().__init__(*arguments)

    monkeypatch.setattr("v2v.runtime.diffusion.pipeline.DenoisingLoop", Counted)
    made = VideoToVideo(NumpyEngines(tmp_path), CpuDevice())
    gc.disable()
    try:
        assert len(run(made, clip(29), cuts={13})) == 29  # segments of three shapes
        assert len(alive) == 1
        made.close()
        assert not alive
    finally:
        gc.enable()


@pytest.mark.parametrize("cuts", [set(), {3}, {1, 2}, {10}, {9, 10, 11, 25}])
def test_segments_hold_every_frame_once_and_no_cut_inside(v2v, cuts):
    frames = clip(31, 8, 8)
    found = list(segments(v2v.window, frames, cuts))
    assert [f.tobytes() for s in found for f in s.frames] == [f.tobytes() for f in frames]
    for segment in found:
        inside = range(segment.first + 1, segment.first + len(segment.frames))
        assert not cuts & set(inside)
        assert segment.continues == (segment.first > 0 and segment.first not in cuts)


def test_frames_are_taken_no_further_ahead_than_a_segment(v2v):
    taken = 0

    def source():
        nonlocal taken
        for frame in clip(60, 8, 8):
            taken += 1
            yield frame

    enhanced = v2v(source(), Settings(steps=1))
    next(enhanced)
    assert taken <= 11


def test_parity_is_32_frames_of_1280x720(tmp_path):
    v2v = VideoToVideo(NumpyEngines(tmp_path, Window(8, 720, 1280)), CpuDevice())
    out = run(v2v, clip(34, 36, 40), parity=True, steps=1)
    assert len(out) == 32
    assert out[0].shape == (720, 1280, 3)


@pytest.mark.parametrize("component", ["vae_encoder", "unet", "vae_decoder"])
def test_nan_stops_the_run_and_is_named(tmp_path, component):
    def broken(**inputs):
        result = FUNCTIONS[component](**inputs).copy()
        result[..., -1, -1] = np.nan
        return result

    v2v = VideoToVideo(NumpyEngines(tmp_path, **{component: broken}), CpuDevice())
    with pytest.raises(NumericalError, match=rf"{component}.*frame 0"):
        run(v2v, clip(6))


def test_low_memory_never_holds_text_encoder_autoencoder_and_unet_together(tmp_path):
    engines = NumpyEngines(tmp_path)
    v2v = VideoToVideo(engines, CpuDevice(), memory="low")
    frames = clip(13)
    alive = []
    for _ in v2v(frames, progress=lambda told: alive.append([e for e in engines.loads if not e.closed])):
        pass
    assert max(map(len, alive)) == 1
    expected = VideoToVideo(NumpyEngines(tmp_path), CpuDevice())
    np.testing.assert_array_equal(run(v2v, frames), run(expected, frames))


def test_progress_rises_to_the_end(v2v):
    told = []
    list(v2v(clip(23), Settings(), total=23, progress=told.append))
    fractions = [p.fraction for p in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert {p.stage for p in told} == {"encode", "denoise", "decode"}
    assert told[-1].segment == 2


def test_no_velocity_and_little_noise_leave_the_picture_alone(tmp_path):
    v2v = VideoToVideo(NumpyEngines(tmp_path, unet=no_velocity), CpuDevice())
    flat = np.full((80, 64, 3), (30, 120, 220), np.uint8)
    out = np.asarray(run(v2v, [flat] * 4, strength=0.001, steps=1), int)
    sigma = Schedule().sigma(1)
    five_deviations = 5 * sigma / MODEL.latent_scale * 127.5
    assert np.abs(out - flat).max() <= five_deviations + 1


def test_settings_left_out_come_from_the_model():
    made = plan(Settings(steps=7), MODEL, (100, 50))
    assert (made.steps, made.strength, made.solver, made.guidance) == (7, 0.3, "dpmpp_2m_sde", 2.0)


def test_output_size_follows_the_aspect():
    defaults = dataclasses.replace(MODEL.defaults, short_side=720)
    assert output_size(Settings(), defaults, (1080, 1920)) == (720, 1280)
    assert output_size(Settings(), defaults, (640, 360)) == (1280, 720)
    assert output_size(Settings(scale=2.0), defaults, (101, 64)) == (202, 128)
    assert output_size(Settings(size=(99, 55)), defaults, (10, 10)) == (99, 55)


@pytest.mark.parametrize(
    ("source", "usual"),
    [
        ((180, 320), (360, 640)),  # twice
        ((360, 640), (720, 1280)),
        ((480, 854), (720, 1280)),  # not past 720 rows
        ((1080, 1920), (1080, 1920)),  # and nothing becomes smaller
        ((1280, 720), (1280, 720)),
    ],
)
def test_the_small_model_doubles_up_to_720_rows_and_leaves_larger_sources_as_large_as_they_are(source, usual):
    defaults = MODELS["small"].defaults
    assert output_size(Settings(), defaults, source) == usual
    assert output_size(Settings(scale=2.0), defaults, source) == (2 * source[0], 2 * source[1])


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"steps": 0}, "--steps 0"),
        ({"strength": 1.0}, "--strength 1.0"),
        ({"guidance": -1.0}, "--guidance -1.0"),
        ({"guidance_rescale": 1.5}, "--guidance-rescale 1.5"),
        ({"guidance_interval": (0.5, 0.1)}, "--guidance-interval 0.5"),
        ({"seed": -1}, "--seed -1"),
        ({"solver": "magic"}, "--solver magic"),
        ({"size": (0, 10)}, "--size 0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(settings, flag):
    with pytest.raises(V2VError, match=flag):
        plan(Settings(**settings), MODEL, (10, 10))


def test_decoder_sees_unscaled_latents(tmp_path):
    seen = []

    def watch(latents):
        seen.append(np.abs(latents).max())
        return decode_latents(latents)

    v2v = VideoToVideo(NumpyEngines(tmp_path, vae_decoder=watch, unet=no_velocity), CpuDevice())
    white = np.full((80, 64, 3), 255, np.uint8)
    run(v2v, [white] * 4, strength=0.001, steps=1)
    assert max(seen) == pytest.approx(1.0, abs=0.05)


def test_segments_of_large_frames_are_shorter_so_that_memory_holds_one(v2v, monkeypatch):
    def lengths(limit):
        monkeypatch.setattr("v2v.runtime.diffusion.segments.SEGMENT_BYTES", limit)
        return [len(segment.frames) for segment in segments(v2v.window, clip(22, 8, 8))]

    frame = 8 * 8 * 3
    assert lengths(1 << 30) == [9, 8, 5]
    assert lengths(8 * frame) == [6, 5, 5, 6]
    assert lengths(frame) == [3, *[2] * 8, 3]
