"""A trace sees every call of engines and device, attributes it, and leaves the result alone."""

from __future__ import annotations

import numpy as np
import pytest

from tests.stand_ins.arrays import NumpyEngines, SharingEngine
from v2v.benchmarks.results import Span
from v2v.benchmarks.trace import (
    PIXELS,
    REST,
    SOLVER,
    Trace,
    TracedEngine,
    covered,
    drawable,
    traced,
)
from v2v.core.components import COMPONENTS
from v2v.device.cpu import CpuDevice
from v2v.engine.backend import LooseEngines
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.diffusion.settings import Settings

FRAMES = [np.full((80, 64, 3), 20 * k, np.uint8) for k in range(4)]


@pytest.fixture
def watched(tmp_path):
    """A pipeline over engines of a few lines, and the trace that watches it."""
    engines, device = NumpyEngines(tmp_path), CpuDevice()
    trace = Trace(device)
    wrapped = {name: TracedEngine(engines.load(name, "cpu"), trace) for name in COMPONENTS}
    return VideoToVideo(LooseEngines.of(engines, wrapped), traced(device, trace, captures=True)), trace


def run(v2v, trace, prompt="a fox"):
    return list(v2v(FRAMES, Settings(prompt=prompt, steps=3, guidance=2.0), progress=trace.progress))


def test_every_evaluation_and_frame_is_counted(watched):
    v2v, trace = watched
    with trace.record():
        run(v2v, trace)
    calls = {stage.name: stage.calls for stage in trace.stages(trace.spans())}
    assert calls["text encoder"] == 2
    assert calls["VAE encode"] == calls["VAE decode"] == len(FRAMES)
    assert calls["UNet evaluation"] == 3 * 2
    assert calls[SOLVER] >= 3
    assert calls[PIXELS] >= 4 * len(FRAMES)


def test_evaluations_that_share_work_are_counted_one_by_one_as_equally_long(tmp_path):
    device = CpuDevice()
    trace = Trace(device)
    engine = SharingEngine(NumpyEngines(tmp_path).components["unet"], lambda **inputs: 0)
    latents, timestep, context = (np.zeros(t.shape, t.dtype) for t in engine.component.inputs)
    prompts = [({"context": context}, {"velocity": np.empty_like(latents)})] * 2
    with trace.record():
        TracedEngine(engine, trace).run_prompts({"latents": latents, "timestep": timestep}, prompts)
    assert engine.prompts == [2]
    first, second = trace.spans()
    assert first.stage == second.stage == "UNet evaluation"
    assert first.seconds == second.seconds > 0
    assert second.start == pytest.approx(first.start + first.seconds)


def test_nothing_is_noted_while_it_is_off(watched):
    v2v, trace = watched
    run(v2v, trace)
    assert trace.spans() == []


def test_watching_changes_no_pixel(watched, tmp_path):
    v2v, trace = watched
    with trace.record():
        seen = run(v2v, trace)
    plain = VideoToVideo(NumpyEngines(tmp_path), CpuDevice())
    expected = list(plain(FRAMES, Settings(prompt="a fox", steps=3, guidance=2.0)))
    np.testing.assert_array_equal(seen, expected)


def test_stages_and_the_rest_add_up_to_the_run(watched):
    v2v, trace = watched
    with trace.record():
        run(v2v, trace)
    stages = trace.stages(trace.spans())
    assert stages[-1].name == REST
    assert sum(stage.total for stage in stages) == pytest.approx(trace.seconds, rel=0.05)


def test_recording_again_forgets_the_run_before(watched):
    v2v, trace = watched
    for prompt in ("one", "two"):
        with trace.record():
            run(v2v, trace, prompt)
    assert sum(span.stage == "UNet evaluation" for span in trace.spans()) == 6


def test_a_captured_step_is_taken_apart_only_while_recording():
    device = CpuDevice()
    trace = Trace(device)
    done = []
    device.capture = lambda work: lambda: done.append("captured")
    step = traced(device, trace, captures=True).capture(lambda: done.append("piece by piece"))
    step()
    with trace.record():
        step()
    assert done == ["captured", "piece by piece"]
    step = traced(device, trace, captures=False).capture(lambda: done.append("never captured"))
    step()
    assert done[-1] == "never captured"


def test_taking_items_is_timed_on_the_host():
    trace = Trace(CpuDevice())
    with trace.record():
        assert list(trace.each([1, None, 3], "video decode")) == [1, None, 3]
    assert {(span.track, span.stage) for span in trace.spans()} == {("host", "video decode")}


def test_overlapping_spans_cover_their_union():
    spans = [Span("host", "a", 0, 2), Span("device", "b", 1, 3), Span("device", "b", 6, 1)]
    assert covered(spans) == pytest.approx(5)


def test_a_timeline_is_thinned_without_losing_time():
    spans = [Span("device", ("x", "y")[k % 2], k * 0.01, 0.01) for k in range(5000)]
    shown = drawable(spans, 100)
    assert 1 <= len(shown) <= 100
    assert covered(list(shown)) == pytest.approx(50, rel=0.01)


def test_a_timeline_keeps_gaps_that_can_be_seen():
    spans = [Span("device", "x", 0, 1), Span("device", "x", 5, 1), Span("host", "x", 2, 1)]
    assert drawable(spans) == tuple(spans)
