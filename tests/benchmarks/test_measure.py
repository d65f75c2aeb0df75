"""Measuring a real engine set of the small model on the CPU."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.benchmarks import made
from v2v.benchmarks.machine import ceilings, host_peak, machine
from v2v.benchmarks.measure import (
    Measurement,
    OpenEngineSet,
    build_times,
    measure,
    standard_clip,
    variations,
    write_clip,
)
from v2v.benchmarks.results import Figure, Span, Stage
from v2v.benchmarks.session import OpenBaseline, SessionPlan, openers
from v2v.benchmarks.trace import ENGINE_STAGES
from v2v.core.components import window_for
from v2v.core.configs import MODELS
from v2v.runtime.media.reader import VideoReader


@pytest.fixture(scope="module")
def found(small_engine_set, tmp_path_factory):
    """One measurement, for all tests here: the last result, what was told, and all results."""
    told = []
    opener = OpenEngineSet("a set", small_engine_set.path, "cpu")
    job = Measurement(opener, repeats=2, steps=3, sweeps=("frames",))
    folder = tmp_path_factory.mktemp("bench")
    results = list(measure(job, folder, lambda *values: told.append(values)))
    return results[-1], told, results


def test_everything_but_repeats_and_sweeps_comes_at_once(found):
    *_, results = found
    assert [(len(result.run.samples), len(result.sweeps)) for result in results] == [(1, 0), (2, 0), (2, 1)]
    assert results[0].stages == results[-1].stages
    assert results[0].first_step == results[-1].first_step


def test_every_stage_of_the_run_is_there(found):
    measured, *_ = found
    frames, steps = measured.clip.frames, measured.clip.steps
    calls = {stage.name: stage.calls for stage in measured.stages}
    assert calls["VAE encode"] == calls["VAE decode"] == frames
    assert measured.evaluations == calls["UNet evaluation"] == steps  # guidance is off in the small model
    assert calls["video decode"] >= frames
    assert calls["video encode"] == frames + 1
    assert calls["solver"] >= steps
    assert all(stage.seconds.low > 0 for stage in measured.stages if stage.calls > 1)


def test_the_stages_fill_the_run_that_was_watched(found):
    measured, *_ = found
    video = ("video decode", "video encode")  # by threads of their own, beside the rest
    total = sum(stage.total for stage in measured.stages)
    beside = sum(stage.total for stage in measured.stages if stage.name in video)
    end = max(span.start + span.seconds for span in measured.timeline)
    assert total > 0.8 * end
    assert total - beside < 1.2 * end


def test_times_are_of_as_many_runs_as_asked_for_and_in_order(found):
    measured, *_ = found
    assert len(measured.run.samples) == 2
    unet = next(stage for stage in measured.stages if stage.name == "UNet evaluation")
    assert min(measured.run.samples) > unet.seconds.low
    assert measured.first_step.median > measured.load.median > 0


def test_memory_size_and_build_are_told(found, small_engine_set):
    measured, *_ = found
    assert 50e6 < measured.host_bytes.median <= host_peak()
    assert measured.gpu_bytes is None
    assert measured.engine_bytes == small_engine_set.bytes
    assert measured.build.seconds == small_engine_set.manifest.seconds
    assert measured.subject.engine_set == small_engine_set.name
    assert measured.subject.weights == "random"


def test_a_sweep_covers_less_and_more_than_a_window(found):
    measured, *_ = found
    (sweep,) = measured.sweeps
    frames = measured.clip.frames
    assert [point.value for point in sweep.points] == [frames // 2, frames, 2 * frames, 4 * frames]
    assert all(len(point.seconds.samples) == 2 for point in sweep.points)
    assert sweep.points[-1].seconds.median > sweep.points[0].seconds.median


def test_progress_rises_to_the_end(found):
    _, told, _ = found
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_the_clip_fills_a_window_from_half_its_size():
    model = MODELS["ms-vid2vid-xl"]
    clip = standard_clip(model, window_for(model), None)
    assert (clip.frames, clip.height, clip.width, clip.steps) == (32, 720, 1280, 30)
    assert (clip.source_height, clip.source_width) == (360, 640)


def test_sweeps_vary_one_thing():
    clip = dataclasses.replace(made.CLIP, steps=30)
    for over, fields in (("frames", {"frames"}), ("pixels", {"height", "width"}), ("steps", {"steps"})):
        values = [value for value, _ in variations(clip, over)]
        assert values == sorted(set(values))
        for _, changed in variations(clip, over):
            before, after = dataclasses.asdict(clip), dataclasses.asdict(changed)
            assert {name for name in before if before[name] != after[name]} <= fields


def test_the_generated_clip_moves(tmp_path):
    write_clip(tmp_path / "clip.mp4", 3, 36, 40)
    with VideoReader(tmp_path / "clip.mp4") as reader:
        frames = [frame.astype(int) for frame in reader.frames()]
    assert [frame.shape for frame in frames] == [(36, 40, 3)] * 3
    assert all(np.abs(a - b).mean() > 1 for a, b in zip(frames, frames[1:], strict=False))


def test_baselines_are_measured_once_for_each_window(small_engine_set):
    plan = SessionPlan((small_engine_set,) * 2, ("eager", "compile"), None, None, 1, None, ())
    subjects = openers(plan)
    assert [subject.kind for subject in subjects] == ["eager", "compile", "engines", "engines"]
    assert len({subject.name for subject in subjects}) == 4
    assert all(isinstance(subject, OpenBaseline) for subject in subjects[:2])
    assert subjects[0].weights == "random:0"


def test_sets_of_several_windows_and_models_carry_both_in_their_names(small_engine_set):
    manifest = small_engine_set.manifest
    recipe = manifest.recipe
    others = [
        dataclasses.replace(recipe, window=window_for(recipe.model, (96, 88), 8)),
        dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, name="tiny")),
    ]
    sets = [
        dataclasses.replace(small_engine_set, manifest=dataclasses.replace(manifest, recipe=one))
        for one in (recipe, *others)
    ]
    names = [
        subject.name for subject in openers(SessionPlan(tuple(sets), ("eager",), None, None, 1, None, ()))
    ]
    assert names == [
        "PyTorch eager, small, 80x72x4 (cpu)",
        "PyTorch eager, small, 96x88x8 (cpu)",
        "PyTorch eager, tiny, 80x72x4 (cpu)",
        "ONNX Runtime fp32, small, 80x72x4 (cpu)",
        "ONNX Runtime fp32, small, 96x88x8 (cpu)",
        "ONNX Runtime fp32, tiny, 80x72x4 (cpu)",
    ]


def test_building_with_torch_compile_is_what_first_calls_take_beyond_later_ones(small_engine_set, tmp_path):
    opened = OpenEngineSet("small", small_engine_set.path, "cpu").open(tmp_path)
    stages = tuple(Stage(name, 3, Figure((0.5, 0.5, 0.5)), 1.5) for name in ENGINE_STAGES.values())
    first = [Span("device", name, 0.0, 20.5) for name in ENGINE_STAGES.values()]
    later = [Span("device", name, 30.0, 0.5) for name in ENGINE_STAGES.values()]
    build = build_times("compile", opened, first + later, stages)
    assert build.compile == pytest.approx(dict.fromkeys(small_engine_set.manifest.components, 20.0))
    assert build.seconds == pytest.approx(80.0)
    assert build_times("eager", opened, first, stages) is None


def test_ceilings_are_those_of_a_computer():
    found = ceilings("cpu")
    assert 1e8 < found.copy_bytes_per_second.median < 2e12
    assert 1e8 < found.product_flops_per_second.median < 1e14


def test_the_machine_describes_itself():
    here = machine()
    assert here.cores >= 1
    assert here.memory_bytes > 1e8
    assert here.versions["numpy"] == np.__version__
