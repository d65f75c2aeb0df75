"""The teams that enhance segments: this process alone, or a pool of workers that take segments as they come.

A segment needs the one whose shot it continues and nothing else, so shots are enhanced side by side, and so are
films. Workers come back in any order and may be lost: what a lost one had in hand is done again by another. A
segment's bytes depend on its :class:`Task` alone, so the result is that of one process.
"""

from __future__ import annotations

import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

from v2v.core.errors import V2VError
from v2v.engine.backend import Engines
from v2v.runtime.background import Behind
from v2v.runtime.diffusion.estimate import Work
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.diffusion.progress import Report
from v2v.runtime.diffusion.settings import Plan
from v2v.runtime.films.task import ENCODER_BYTES, EnhancedSegment, SegmentJob, Task, WorkerError, begin_task

_WAITING = 1 << 30  # bytes of decoded frames that all films together may have read for the workers
_LOSSES = 3  # in a row, after which a segment or a worker is given up


class WorkerLost(Exception):
    """A worker has ended without an answer; what it had in hand must be done again."""


class Room:
    """How many bytes of frames wait or are at work, in all films together."""

    def __init__(self, limit: int) -> None:
        self._limit, self.taken, self._lock = limit, 0, threading.Lock()

    @property
    def full(self) -> bool:
        """Whether no more frames should be read."""
        return self.taken >= self._limit

    def take(self, count: int) -> None:
        """``count`` bytes have been read; negative: are no longer needed."""
        with self._lock:
            self.taken += count


class Team(Protocol):
    """Whoever enhances segments."""

    engines: Engines
    room: Room
    size: int  # films worth having at work at once

    def submit(self, task: Task, report: Report) -> SegmentJob:
        """Enhance a segment, now or later; ``report`` is told of what comes before the end, where it can be."""

    def rehearse(self, plan: Plan) -> Work | None:
        """Seconds of a unit of each kind of work, measured now; None where that cannot be done in passing."""

    def close(self) -> None:
        """Stop; segments that are not done end with an exception."""


class Alone:
    """The process itself, which does one segment after the other, each when it is handed in.

    A thread encodes the pictures of one segment while the engines are at the next; ``encoders`` is that thread, where
    it is to be watched.
    """

    def __init__(self, v2v: VideoToVideo, encoders: Behind | None = None) -> None:
        self.v2v, self.engines = v2v, v2v.engines
        self.room, self.size = Room(1), 1
        self._encoders = encoders or Behind(ENCODER_BYTES)

    def submit(self, task: Task, report: Report) -> SegmentJob:
        """Enhance the segment before returning; its pictures may still be waiting for the encoder."""
        try:
            return begin_task(self.v2v, task, self._encoders, report)
        except Exception as error:
            failed: Future[EnhancedSegment] = Future()
            failed.set_exception(error)
            return SegmentJob(failed)

    def rehearse(self, plan: Plan) -> Work | None:
        """Measured with the engines of this process, unless they would have to be loaded one by one for it."""
        return self.v2v.rehearse(plan) if self.v2v.memory == "high" else None

    def close(self) -> None:
        """Free the engines' memory."""
        self._encoders.close()
        self.v2v.close()


class Worker(Protocol):
    """Somebody who enhances one segment at a time, with engines of its own."""

    def wait_until_ready(self) -> None:
        """Return when the engines are loaded.

        Raises:
            WorkerLost: it has ended.
            V2VError: the engines do not run there.
        """

    def enhance(self, task: Task) -> EnhancedSegment:
        """Enhance a segment.

        Raises:
            WorkerLost: it has ended.
            V2VError: as :func:`enhance_task`.
        """

    def end(self) -> None:
        """Stop at once, from any thread."""


@dataclass
class _Order:
    """A task on its way through the pool."""

    task: Task
    future: Future[EnhancedSegment] = field(default_factory=Future)
    losses: int = 0


class Pool:
    """Workers that share the segments of any number of films; a context manager that ends them.

    Args:
        engines: what the workers run.
        start: for each worker a function that starts it, and starts it again when it was lost.

    Raises:
        V2VError: on entering, if no worker can be started.
    """

    def __init__(self, engines: Engines, start: Sequence[Callable[[], Worker]]) -> None:
        self.engines, self.room = engines, Room(_WAITING)
        self.workers: list[Worker | None] = [None] * len(start)
        self.busy: set[int] = set()  # places of the workers that have something in hand
        self.size = len(start)
        self.lost = 0  # workers, so far
        self._start = start
        self._orders: deque[_Order] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.ready = 0  # workers that have loaded their engines, so far
        self._given_up: list[Exception] = []  # why each worker that is not there any more went
        self._threads = [
            threading.Thread(target=self._serve, args=(index,), name=f"v2v-worker-{index}", daemon=True)
            for index in range(len(start))
        ]

    def __enter__(self) -> Pool:
        for thread in self._threads:
            thread.start()
        try:
            with self._changed:
                while not self.ready and len(self._given_up) < len(self._threads):
                    self._changed.wait()
                if not self.ready:
                    raise self._given_up[0]
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, task: Task, report: Report) -> SegmentJob:
        """Queue a segment for the next worker that is free."""
        order = _Order(task)
        with self._changed:
            if len(self._given_up) == len(self._threads):
                order.future.set_exception(self._given_up[-1])
            else:
                self._orders.append(order)
                self._changed.notify_all()
        return SegmentJob(order.future)

    def rehearse(self, plan: Plan) -> None:
        """The engines are elsewhere."""

    def close(self) -> None:
        """End all workers, whatever they do."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
            workers = list(self.workers)
        for worker in workers:
            if worker is not None:
                worker.end()
        for thread in self._threads:
            thread.join()
        self._fail_all(WorkerError("the run was stopped"))

    def _serve(self, index: int) -> None:
        """Run worker number ``index`` and, where it is lost, its successors until the pool closes."""
        in_a_row = 0
        while not self._closed:
            try:
                worker = self._hire(index)
                while (order := self._next_order()) is not None:
                    self.busy.add(index)
                    self._do(worker, order)
                    self.busy.discard(index)
                    in_a_row = 0
            except WorkerLost as loss:
                self.busy.discard(index)
                in_a_row += 1
                self.lost += not self._closed  # whom close() ends, perhaps before it was ready, is not lost
                if in_a_row < _LOSSES or self._closed:
                    continue
                error: Exception = WorkerError(f"worker {index + 1} has ended {in_a_row} times: {loss}")
            except Exception as failure:  # whatever it is, nobody may wait for this worker
                error = failure
            else:
                return
            self._give_up(error)
            return

    def _hire(self, index: int) -> Worker:
        with self._changed:
            if self._closed:
                raise WorkerLost
            worker = self.workers[index] = self._start[index]()
        worker.wait_until_ready()
        with self._changed:
            self.ready += 1
            self._changed.notify_all()
        return worker

    def _next_order(self) -> _Order | None:
        with self._changed:
            while not self._closed:
                while self._orders:
                    order = self._orders.popleft()
                    if order.future.running() or order.future.set_running_or_notify_cancel():
                        return order
                self._changed.wait()
        return None

    def _do(self, worker: Worker, order: _Order) -> None:
        try:
            enhanced = worker.enhance(order.task)
        except WorkerLost as loss:
            self._do_again(order, loss)
            raise
        except Exception as error:
            order.future.set_exception(error)
            return
        order.future.set_result(enhanced)

    def _do_again(self, order: _Order, loss: WorkerLost) -> None:
        order.losses += 1
        if order.losses == _LOSSES:
            first, count = order.task.segment.first, len(order.task.segment.frames)
            order.future.set_exception(
                WorkerError(f"frames {first} to {first + count - 1}: {_LOSSES} workers ended at them; {loss}")
            )
            return
        with self._changed:
            self._orders.appendleft(order)
            self._changed.notify_all()

    def _give_up(self, error: Exception) -> None:
        with self._changed:
            self._given_up.append(error)
            alone = len(self._given_up) == len(self._threads)
            self._changed.notify_all()
        if alone:
            self._fail_all(error)
        elif not self._closed:
            warnings.warn(f"going on with one worker less: {error}", stacklevel=2)

    def _fail_all(self, error: Exception) -> None:
        with self._changed:
            orders = list(self._orders)
            self._orders.clear()
        for order in orders:
            if order.future.running() or order.future.set_running_or_notify_cancel():
                order.future.set_exception(error)


@dataclass(frozen=True)
class Failure:
    """What went wrong at a worker: an error for people, or the traceback of a bug."""

    error: V2VError | None
    trace: str


def answer_of(work: Callable[[], Any]) -> Any:
    """What ``work`` returns, or a :class:`Failure`, which can be sent however the exception was made."""
    try:
        return work()
    except V2VError as error:
        return Failure(error, "")
    except Exception:
        return Failure(None, traceback.format_exc())


def unwrapped(answer: Any) -> Any:
    """The result in a worker's answer; raises the error of a :class:`Failure`."""
    if isinstance(answer, Failure):
        raise answer.error or RuntimeError(f"a worker failed:\n{answer.trace}")
    return answer
