"""Threads that read ahead and work behind lose nothing, hide nothing and end."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from tests.patience import takes_at_most
from v2v.runtime.background import Behind, ahead


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.mark.parametrize("count", [0, 1, 50])
def test_everything_comes_out_in_order(count):
    assert list(ahead(range(count), 3)) == list(range(count))


def test_the_end_comes_at_once():
    def attempt(_: int) -> float:
        began = time.monotonic()
        for _ in range(20):
            assert list(ahead([1], 3)) == [1]
        return time.monotonic() - began

    takes_at_most(1, attempt)


def test_it_reads_ahead_but_not_further_than_its_depth():
    taken = []
    items = ahead((taken.append(i) or i for i in range(100)), 4)
    assert next(items) == 0
    time.sleep(0.3)
    assert 4 <= len(taken) <= 6  # waiting in the queue, the one given out, one in hand
    items.close()


def test_a_failure_comes_after_what_came_before_it():
    def failing():
        yield 1
        yield 2
        raise OSError("disk on fire")

    out = []
    with pytest.raises(OSError, match="on fire"):
        for item in ahead(failing(), 5):
            out.append(item)
    assert out == [1, 2]


def test_an_endless_source_can_be_left():
    assert list(itertools.islice(ahead(itertools.count(), 2), 3)) == [0, 1, 2]


def test_work_handed_over_is_done_in_order_before_the_block_ends():
    done = []
    with Behind(limit=100) as thread:
        for i in range(20):
            thread.hand_over(lambda i=i: (time.sleep(0.005), done.append(i)), 40)
    assert done == list(range(20))


def test_results_and_failures_come_with_each_piece_of_work():
    def full():
        raise OSError("disk full")

    with Behind(limit=1) as thread:
        failed, fine = thread.hand_over(full), thread.hand_over(lambda: 5)
        with pytest.raises(OSError, match="disk full"):
            failed.result()
        assert fine.result() == 5


def test_no_more_waits_than_the_limit_but_a_large_piece_gets_through():
    """Whoever hands over is stopped exactly as long as there is no room."""
    go_on, handed_over = threading.Event(), []

    def hand_over_all(thread):
        for size in (40, 40, 40, 500, 1):
            thread.hand_over(go_on.wait if not handed_over else lambda: None, size)
            handed_over.append(size)

    with Behind(limit=100) as thread:
        giver = threading.Thread(target=hand_over_all, args=(thread,))
        giver.start()
        giver.join(0.3)
        assert handed_over == [40, 40]
        go_on.set()
        giver.join(10)
        assert handed_over == [40, 40, 40, 500, 1]


def test_leaving_by_an_exception_drops_what_waits():
    done = []

    def slow():
        time.sleep(0.05)
        done.append(1)

    with pytest.raises(KeyboardInterrupt), Behind(limit=100) as thread:
        for _ in range(50):
            thread.hand_over(slow, 1)
        raise KeyboardInterrupt
    assert len(done) < 10


def test_nothing_is_read_any_more_when_ctrl_c_came_while_the_thread_was_being_started(monkeypatch):
    """The file may be closed by then, and reading a closed one ends the process."""
    taken, begin = [], threading.Event()
    start = threading.Thread.start

    def interrupted(thread):
        run = thread.run
        thread.run = lambda: (begin.wait(), run())
        start(thread)
        raise KeyboardInterrupt

    def items():
        taken.append("one")
        yield 1

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(ahead(items(), 1))
    begin.set()
    for thread in threading.enumerate():
        if thread.name == "v2v-ahead":
            thread.join(10)
    assert taken == []
