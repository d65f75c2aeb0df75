"""Threads that read ahead and write behind lose nothing, hide nothing and end."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from v2v.runtime.background import ahead, behind


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.mark.parametrize("count", [0, 1, 50])
def test_everything_comes_out_in_order(count):
    assert list(ahead(range(count), 3)) == list(range(count))


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


def test_everything_handed_over_is_consumed_before_the_block_ends():
    done = []
    with behind(lambda item: (time.sleep(0.005), done.append(item)), 2) as put:
        for i in range(20):
            put(i)
    assert done == list(range(20))


def test_a_consumers_failure_reaches_the_one_who_hands_over():
    def full(item):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), behind(full, 1) as put:
        for i in range(100):
            put(i)


def test_a_failure_on_the_last_item_is_not_lost():
    def full(item):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), behind(full, 4) as put:
        put(1)


def test_leaving_by_an_exception_drops_what_waits():
    done = []

    def slow(item):
        time.sleep(0.05)
        done.append(item)

    with pytest.raises(KeyboardInterrupt), behind(slow, 50) as put:
        for i in range(50):
            put(i)
        raise KeyboardInterrupt
    assert len(done) < 10
