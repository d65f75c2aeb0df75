"""Work in a process of its own: it answers, it fails, it dies, and this process goes on."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest

from v2v.benchmarks.machine import host_peak
from v2v.core.errors import EngineError, V2VError
from v2v.core.isolate import Killed, Late, in_fresh_process


def nothing(text, share):
    pass


def answer(question, tell):
    tell("thinking", 0.5)
    return question * 2, os.getpid()


def count(most, tell):
    yield from range(1, most + 1)


def refuse(tell):
    raise EngineError("this set does not run here")


def stumble(tell):
    raise ZeroDivisionError("a bug in a library\nwith details")


def die(tell):
    os.kill(os.getpid(), signal.SIGKILL)


def hang(tell):
    time.sleep(1000)


def allocate(size, tell):
    kept = bytearray(size)
    return host_peak() - len(kept)


def test_arguments_and_results_travel_and_progress_is_told():
    told = []
    result, process = in_fresh_process(answer, "so", tell=lambda *values: told.append(values))
    assert result == "soso"
    assert process != os.getpid()
    assert told == [("thinking", 0.5)]


def test_an_error_for_people_arrives_as_one():
    with pytest.raises(V2VError, match="this set does not run here"):
        in_fresh_process(refuse, tell=nothing)


def test_any_other_error_arrives_in_one_line():
    with pytest.raises(V2VError, match=r"^ZeroDivisionError: a bug in a library$"):
        in_fresh_process(stumble, tell=nothing)


def test_a_killed_process_is_told():
    with pytest.raises(Killed, match="killed, most likely for want of memory"):
        in_fresh_process(die, tell=nothing)


def test_what_hangs_is_ended():
    with pytest.raises(Late, match="did not end within 2 seconds"):
        in_fresh_process(hang, tell=nothing, limit=2)
    assert multiprocessing.active_children() == []


def test_an_interruption_ends_the_process():
    def interrupt(text, share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_fresh_process(answer, "so", tell=interrupt)
    assert multiprocessing.active_children() == []


def test_peak_memory_is_that_process_own():
    ballast = bytearray(300_000_000)
    rest = in_fresh_process(allocate, 50_000_000, tell=nothing)
    assert 0 < rest < 200_000_000
    assert len(ballast) == 300_000_000


def test_what_it_yields_arrives_as_it_comes_and_the_last_is_its_answer():
    taken = []
    assert in_fresh_process(count, 3, tell=nothing, take=taken.append) == 3
    assert taken == [1, 2, 3]
