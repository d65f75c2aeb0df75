"""The time left is told within 20 % from the tenth second on, on a machine that a clock of its own stands for."""

from __future__ import annotations

import numpy as np
import pytest

from v2v.core.components import window_for
from v2v.core.configs import MODELS
from v2v.runtime.diffusion.estimate import Work, film_work
from v2v.runtime.diffusion.progress import Report
from v2v.runtime.diffusion.segments import segments
from v2v.runtime.diffusion.settings import Settings, plan

SMALL = MODELS["small"]
WINDOW = window_for(SMALL)
FRAMES = 200
COSTS = Work(encode=0.2, denoise=4.0, decode=0.6)  # seconds


class Machine:
    """Runs films by the numbers: each unit of work takes its cost, and longer once it has become slower."""

    def __init__(self, slower_from: float = float("inf"), times: float = 2.0) -> None:
        self.now, self.slower_from, self.times = 0.0, slower_from, times

    def work(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds * (self.times if self.now >= self.slower_from else 1.0)

    def run(
        self, costs: Work | None, *, earlier: bool = False, real: Work = COSTS, cuts: set[int] = frozenset()
    ):
        """Enhance a film; returns (seconds, seconds left as told) of every sign of progress."""
        told = []
        made = plan(Settings(size=(720, 1280)), SMALL, (360, 640))
        frame = np.zeros((360, 640, 3), np.uint8)
        film = film_work(made, SMALL, WINDOW, frame.nbytes, FRAMES)
        report = Report(lambda now: told.append((self.now, now.seconds_left)), FRAMES, clock=lambda: self.now)
        report.foresee(film, costs, earlier=earlier)
        for segment in segments(WINDOW, [frame] * FRAMES, cuts):
            held = len(segment.frames) + len(segment.ahead)
            report.begin("encode", segment, held)
            for step in range(held):
                self.work(real.encode * film.frame.encode)
                report.step(step + 1)
            alone = film_work(made, SMALL, WINDOW, frame.nbytes, held + (4 if segment.continues else 0))
            evaluations = round(alone.whole.denoise)
            report.begin("denoise", segment, 1, [evaluations])
            for evaluation in range(evaluations):
                self.work(real.denoise)
                report.evaluated(evaluation + 1)
            report.step(1)
            report.begin("decode", segment, len(segment.frames))
            for step in range(len(segment.frames)):
                self.work(real.decode * film.frame.decode)
                report.frames_done += 1
                report.step(step + 1)
        assert report.frames_done == FRAMES
        return told


def worst(told, since: float, end: float) -> float:
    """The largest error as a share of the time that was left; of the last seconds, of five seconds."""
    errors = [abs(left - (end - now)) / max(end - now, 5) for now, left in told if now >= since]
    assert len(errors) > 100
    return max(errors)


def test_within_a_fifth_from_the_tenth_second_on() -> None:
    machine = Machine()
    told = machine.run(COSTS)
    assert machine.now > 600
    assert worst(told, 10, machine.now) < 0.2


def test_a_rehearsal_that_was_off_is_put_right_by_the_work_itself() -> None:
    machine = Machine()
    told = machine.run(Work(COSTS.encode * 1.1, COSTS.denoise * 0.9, COSTS.decode * 0.85))
    assert worst(told, 10, machine.now) < 0.2


def test_what_an_earlier_run_has_measured_is_put_right_for_a_machine_that_is_slower_now() -> None:
    machine = Machine(0)
    told = machine.run(COSTS, earlier=True)
    assert worst(told, 10, machine.now) < 0.2


@pytest.mark.parametrize("moment", [15, 100, 240, 300, 333, 412])
def test_a_machine_that_becomes_half_as_fast_is_noticed_within_seconds(moment: float) -> None:
    machine = Machine(moment)
    told = machine.run(COSTS)
    assert worst(told, moment + 25, machine.now) < 0.2


def test_cuts_make_more_work_and_more_time() -> None:
    cuts = set(range(20, FRAMES, 20))
    machine = Machine()
    told = machine.run(COSTS, cuts=cuts)
    plain = Machine()
    plain.run(COSTS)
    assert machine.now > plain.now
    assert worst(told, machine.now / 3, machine.now) < 0.2


def test_without_a_rehearsal_usual_shares_stand_in_until_each_kind_of_work_was_done() -> None:
    machine = Machine()
    told = machine.run(None)
    first = next(left for _, left in told if left is not None)
    assert 0 < first < 10 * machine.now
    decoded_once = next(now for now, _ in told if now > 0.5 * machine.now)
    assert worst(told, decoded_once, machine.now) < 0.2
