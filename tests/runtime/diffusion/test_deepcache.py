"""Evaluations that go on from an earlier one's deep features, and the combination called fast."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.stand_ins import command
from tests.stand_ins.arrays import NumpyEngine, NumpyEngines, SharingEngine, full_velocity
from tests.stand_ins.command import SAMPLE
from tests.stand_ins.model import MODEL
from tests.stand_ins.sets import CopyBackend, build, install
from v2v.core.components import Window
from v2v.core.configs import MODELS, Defaults
from v2v.core.errors import EngineError, V2VError
from v2v.device.cpu import CpuDevice
from v2v.engine.backend import BuildOptions
from v2v.engine.choose import choose_engines
from v2v.engine.store import EngineSet, Wanted
from v2v.runtime.diffusion.deepcache import evaluations_in_full
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.diffusion.settings import Settings, plan
from v2v.runtime.display import Display

LARGE = MODELS["ms-vid2vid-xl"]


def clip(count, height=72, width=60):
    return list(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8))


def run(v2v, frames, **settings):
    return list(v2v(frames, Settings(**settings)))


def plain_velocity(latents, timestep, context):
    return full_velocity(latents, timestep, context)[0]


@pytest.fixture
def reusing(tmp_path):
    return VideoToVideo(NumpyEngines(tmp_path, reuse=True), CpuDevice())


@pytest.mark.parametrize(
    ("guided", "every", "expected"),
    [
        ("-----", 1, "fffff"),
        ("-----", 2, "f.f.f"),
        ("ggggg", 3, "f..f."),
        ("--gg--", 2, "f.f.f."),
        ("---gg-", 2, "f.ff.f"),  # the fourth needs the negative prompt's features, which the third left out
        ("gg----", 4, "f...f."),
    ],
)
def test_features_are_used_until_they_are_old_or_lack_a_prompt(guided, every, expected):
    found = evaluations_in_full([letter == "g" for letter in guided], every)
    assert "".join("f" if full else "." for full in found) == expected


def test_engines_that_can_reuse_give_the_plain_ones_video_when_not_asked_to(tmp_path, reusing):
    plain = VideoToVideo(NumpyEngines(tmp_path, unet=plain_velocity), CpuDevice())
    for frames in (clip(4), clip(9, 100, 90)):  # one window, and several
        np.testing.assert_array_equal(run(reusing, frames), run(plain, frames))


@pytest.mark.parametrize("frames", [clip(4), clip(9, 100, 90)], ids=["one window", "several"])
def test_components_are_called_in_the_order_of_the_plan(reusing, frames):
    calls = []
    for name in ("unet_full", "unet_outer"):
        reusing.load_all()
        engine = reusing.engines.loaded(name)

        def watched(*arguments, name=name, work=engine.function, **inputs):
            calls.append((int(inputs["timestep"][0]), name, float(inputs["context"].mean())))
            return work(*arguments, **inputs)

        engine.function = watched
    run(reusing, frames, steps=5, reuse=2)
    timesteps = list(dict.fromkeys(timestep for timestep, _, _ in calls))
    assert timesteps == sorted(timesteps, reverse=True) and len(timesteps) == 5
    kinds = [{name for timestep, name, _ in calls if timestep == t} for t in timesteps]
    assert kinds == [{"unet_full"}, {"unet_outer"}, {"unet_full"}, {"unet_outer"}, {"unet_full"}]
    for full, outer in zip(timesteps[::2], timesteps[1::2], strict=False):
        prompts = [[mean for t, _, mean in calls if t == step] for step in (full, outer)]
        assert prompts[0] == prompts[1], "the same windows and prompts in the same order"
        assert len(set(prompts[0])) == 2


def test_each_window_and_prompt_has_its_own_features(tmp_path):
    """Reuse of features of each position by itself gives the same picture in one window or in many."""
    small, large = (
        VideoToVideo(NumpyEngines(tmp_path, window, reuse=True), CpuDevice())
        for window in (Window(4, 80, 64), Window(10, 208, 192))
    )
    settings = {"guidance_rescale": 0.0, "steps": 6, "reuse": 3}
    few, many = (np.asarray(run(v2v, clip(10, 208, 192), **settings), int) for v2v in (large, small))
    assert np.abs(few - many).max() <= 1
    full = np.asarray(run(large, clip(10, 208, 192), **{**settings, "reuse": 1}), int)
    assert np.abs(few - full).max() > 1, "reuse shows"


def test_with_low_memory_both_parts_of_the_unet_are_there_at_once(tmp_path):
    engines = NumpyEngines(tmp_path, reuse=True)
    v2v = VideoToVideo(engines, CpuDevice(), memory="low")
    roomy = VideoToVideo(NumpyEngines(tmp_path, reuse=True), CpuDevice())
    np.testing.assert_array_equal(run(v2v, clip(4), steps=4, reuse=2), run(roomy, clip(4), steps=4, reuse=2))
    loaded = [engine.component.name for engine in engines.loads]
    unet = ["unet_full", "unet_outer"]
    assert loaded == [*unet, "vae_encoder", "text_encoder", *unet, "vae_decoder"]
    assert [engine.component.name for engine in engines.loads if not engine.closed] == ["vae_decoder"]


@pytest.mark.parametrize("frames", [clip(4), clip(9, 100, 90)], ids=["one window", "several"])
@pytest.mark.parametrize("reuse", [1, 2])
def test_an_engine_that_takes_both_prompts_of_a_guided_step_gets_both(tmp_path, frames, reuse):
    settings = {"steps": 5, "reuse": reuse, "guidance_interval": (0.15, 1.0)}
    sharing_engines, plain_engines = (
        NumpyEngines(tmp_path, reuse=True, kind=kind) for kind in (SharingEngine, NumpyEngine)
    )
    sharing, plain = (VideoToVideo(engines, CpuDevice()) for engines in (sharing_engines, plain_engines))
    np.testing.assert_array_equal(run(sharing, frames, **settings), run(plain, frames, **settings))
    used = ["unet_full", "unet_outer"][:reuse]
    for name in used:
        both, alone = sharing_engines.loaded(name), plain_engines.loaded(name)
        assert both.calls == alone.calls, name
        assert sum(both.prompts) == both.calls
    given = [prompts for engine in sharing_engines.loads for prompts in engine.prompts]
    assert set(given) == {1, 2}, "unguided steps too"


# On the command line ----------------------------------------------------------------------------------------


def test_engines_built_without_refuse_with_the_command_that_builds_others(run_command, tmp_path):
    out = tmp_path / "out.mp4"
    result = run_command(SAMPLE, "-o", out, "--engines", tmp_path / "stand-in", "--reuse", "2")
    assert result.code == 2
    assert "was built without --reuse" in result.err
    assert "v2v-build-engines stand-in --weights random:0" in result.err and " --reuse" in result.err
    assert not out.exists()


@pytest.fixture
def run_command(monkeypatch, capfd, tmp_path):
    command.build_engines(tmp_path)
    with command.in_process(monkeypatch, capfd) as call:
        yield call


def test_a_program_is_refused_in_the_same_words(tmp_path):
    v2v = VideoToVideo(EngineSet.open(command.build_engines(tmp_path)), CpuDevice())
    with pytest.raises(EngineError, match="was built without --reuse"):
        run(v2v, clip(8), reuse=2)


@pytest.mark.filterwarnings("ignore:the weights of model stand-in")
def test_the_engine_set_that_serves_the_request_best_is_taken(monkeypatch):
    install(CopyBackend(), monkeypatch)
    made = {
        (reuse, fp8): build(options=BuildOptions(reuse=reuse, extra={"fp8": "yes"} if fp8 else {})).engine_set
        for reuse, fp8 in ((False, False), (True, False), (False, True))
    }

    def chosen(**asked):
        return choose_engines(None, Wanted(model="stand-in"), Display(quiet=True), **asked)

    assert chosen() == made[False, False]
    assert chosen(reuse=2) == made[True, False]
    assert chosen(fast=True) == made[True, False]
    assert chosen(fast=True, reuse=1) == made[False, True]
    both = build(options=BuildOptions(reuse=True, extra={"fp8": "yes"})).engine_set
    assert chosen(fast=True) == both
    assert chosen(reuse=2) == made[True, False]
    assert chosen() == made[False, False]


# Fast -------------------------------------------------------------------------------------------------------


def test_fast_is_the_documented_combination():
    full = plan(Settings(), LARGE, (720, 1280))
    fast = plan(Settings(fast=True), LARGE, (720, 1280))
    assert full.evaluations == (60, 0)
    assert fast.evaluations == (22, 0)
    assert fast == replace(full, steps=12, solver="dpmpp_2m", guidance_interval=(0.08, 0.56), reuse=1), (
        "nothing else changes"
    )


def test_fast_reuses_features_where_the_engines_can():
    made = plan(Settings(fast=True), LARGE, (720, 1280), reuse=True)
    assert made.reuse == 2
    in_full, on_features = made.evaluations
    assert in_full + on_features == 22 and in_full < 13


def test_what_is_said_wins_over_fast():
    said = {"steps": 20, "solver": "heun", "guidance_interval": (0.0, 1.0), "reuse": 1}
    made = plan(Settings(fast=True, **said), LARGE, (720, 1280), reuse=True)
    assert made == plan(Settings(**said), LARGE, (720, 1280))


def test_fast_never_makes_more_steps_than_the_model_does():
    assert plan(Settings(fast=True), replace(MODEL, defaults=Defaults(steps=1)), (72, 60)).steps == 1
    assert plan(Settings(fast=True), MODEL, (72, 60)).steps == MODEL.defaults.steps


def test_fast_contradicts_parity():
    with pytest.raises(V2VError, match="--fast and --parity"):
        plan(Settings(fast=True, parity=True), LARGE, (720, 1280))


def test_the_output_says_what_was_done(run_command, tmp_path):
    out = tmp_path / "out.mkv"
    result = run_command(
        SAMPLE,
        "-o",
        out,
        "--engines",
        tmp_path / "stand-in",
        "--fast",
        "--steps",
        "2",
        "--json",
        "--scale",
        "0.2",
    )
    assert result.code == 0, result.err
    for fact in ('"steps": 2', '"solver": "dpmpp_2m"', '"reuse": 1', "0.56"):
        assert fact in result.out
