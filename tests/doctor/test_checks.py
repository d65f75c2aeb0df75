"""Every way in which a check can end is a result: it passes, fails, crashes, hangs, lacks memory, does not apply."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from v2v.core.errors import EngineError
from v2v.doctor.checks import Check, Examination, Skipped


def passes(number: int, step: Any) -> dict[str, int]:
    step("counting")
    return {"twice": 2 * number}


def fails(step: Any) -> None:
    step("loading")
    print("what the library had to say")
    step("comparing")
    raise EngineError("it is not the same")


def crashes(step: Any) -> None:
    step("running")
    os.kill(os.getpid(), signal.SIGSEGV)


def is_killed(step: Any) -> None:
    step("compiling")
    os.kill(os.getpid(), signal.SIGKILL)


def lacks_memory(step: Any) -> None:
    step("running")
    raise RuntimeError("CUDA error: out of memory")


def hangs(step: Any) -> None:
    step("replaying")
    time.sleep(1000)


def does_not_apply(step: Any) -> Skipped:
    return Skipped("there is no GPU here")


@pytest.fixture
def examination(tmp_path: Path) -> Examination:
    return Examination(1000, tmp_path)


def test_facts_arrive_and_steps_are_told(tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    outcome = Examination(1000, tmp_path, lambda *words: told.append(words)).run(Check("sum", passes, (21,)))
    assert (outcome.state, outcome.facts, outcome.step) == ("passed", {"twice": 42}, "")
    assert told == [("sum", "starting"), ("sum", "counting")]


@pytest.mark.parametrize(
    ("work", "step", "reason"),
    [
        (fails, "comparing", "it is not the same"),
        (crashes, "running", "it crashed: its process died of SIGSEGV"),
        (is_killed, "compiling", "out of memory: its process was killed, most likely for want of memory"),
        (lacks_memory, "running", "out of memory: RuntimeError: CUDA error: out of memory"),
    ],
)
def test_a_failure_names_its_step_and_the_next_check_runs(
    examination: Examination, work: Any, step: str, reason: str
) -> None:
    outcome = examination.run(Check("it", work))
    assert (outcome.state, outcome.step, outcome.reason) == ("failed", step, reason)
    assert examination.run(Check("next", passes, (1,))).state == "passed"
    assert examination.failed == [outcome]


def test_what_a_library_wrote_before_it_failed_is_kept(examination: Examination) -> None:
    assert "what the library had to say" in examination.run(Check("it", fails)).log
    assert any("Segmentation fault" in line for line in examination.run(Check("crash", crashes)).log)


def test_a_hang_is_ended(examination: Examination) -> None:
    outcome = examination.run(Check("it", hangs, limit=3))
    assert (outcome.state, outcome.step) == ("failed", "replaying")
    assert outcome.reason == "it hangs: it did not end within 3 seconds"


@pytest.mark.slow
def test_what_the_time_in_all_cuts_off_has_not_failed(tmp_path: Path) -> None:
    examination = Examination(6, tmp_path)
    assert examination.run(Check("long", hangs)).state == "skipped"
    left_out = examination.run(Check("after it", passes, (1,)))
    assert (left_out.state, left_out.reason) == (
        "skipped",
        "the 6 seconds were over; --time gives it more",
    )


def test_a_check_may_not_apply(examination: Examination) -> None:
    assert examination.run(Check("it", does_not_apply)).reason == "there is no GPU here"
    assert examination.run(Check("it", fails, skip="it needs PyTorch")).reason == "it needs PyTorch"
    assert examination.failed == []
