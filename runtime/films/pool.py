"""Who does the work: this process alone, or a pool of workers that take segments as they come.

A segment needs the one whose shot it continues and nothing else, so shots are enhanced side by side, and so are
films. Workers come back in any order and may be lost: what a lost one had in hand is done again by another. A
segment's bytes depend on its :class:`Task` alone, so the result is that of one process.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import av

from v2v.device import Frame
from v2v.engine.backend import V2VError, cuda_devices
from v2v.engine.store import EngineSet
from v2v.runtime.background import Behind
from v2v.runtime.diffusion.pipeline import Carry, Memory, Plan, Report, Segment, VideoToVideo
from v2v.runtime.films.preview import side_by_side
from v2v.runtime.media.encoding import Encoding, EncodingError, SegmentEncoder

_BEHIND = 256 << 20  # bytes of enhanced frames that wait for the encoder
_WAITING = 1 << 30  # bytes of decoded frames that all films together may have read for the workers
_LOSSES = 3  # in a row, after which a segment or a worker is given up


class WorkerError(V2VError):
    """Workers cannot be started, or keep ending; the message says which and why."""


class WorkerLost(Exception):
    """A worker has ended without an answer; what it had in hand must be done again."""


@dataclass(frozen=True)
class Task:
    """A segment to enhance and all that its bytes depend on, apart from the engine set."""

    segment: Segment
    carry: Carry | None  # of the segment before, if this one continues its shot
    plan: Plan
    encoding: Encoding
    preview: bool = False  # the source beside each picture


@dataclass(frozen=True)
class Done:
    """A segment's enhanced pictures, encoded, and what the next segment needs of it.

    ``order`` is that of :class:`v2v.runtime.media.encoding.EncodedSegment`.
    """

    pictures: bytes
    order: tuple[int, ...]
    carry: Carry


@dataclass(frozen=True)
class Job:
    """A segment that somebody enhances.

    ``carry`` is there where its pictures are finished and only their encoding may still be under way: the next
    segment need not wait for that.
    """

    done: Future[Done]
    carry: Carry | None = None


def enhance_task(v2v: VideoToVideo, task: Task, report: Report | None = None) -> Done:
    """Do the work; ``report`` is told of every picture.

    Raises:
        NumericalError: a latent or a picture became NaN or Inf.
        EncodingError: this machine cannot encode as asked.
    """
    with Behind(_BEHIND) as encoders:
        return begin_task(v2v, task, encoders, report).done.result()


def begin_task(v2v: VideoToVideo, task: Task, encoders: Behind, report: Report | None = None) -> Job:
    """Do the work but for the encoding, which is handed over to ``encoders``.

    Raises:
        NumericalError: a latent or a picture became NaN or Inf.
        EncodingError: this machine cannot encode as asked, if that is known already; else it comes with the job.
    """
    report = report or Report()
    pictures, carry = v2v.enhance(task.segment, task.plan, task.carry, report)
    encoder = _Encoder(task.encoding, encoders)
    try:
        for frame, picture in zip(task.segment.frames, pictures, strict=True):
            encoder.write(side_by_side(frame, picture) if task.preview else picture)
            report.frames_done += 1
    except BaseException:
        encoder.abort()
        raise
    return Job(encoder.finish(carry), carry)


class _Encoder:
    """Encodes a segment in the thread of a :class:`Behind`."""

    def __init__(self, encoding: Encoding, thread: Behind) -> None:
        self._codec, self._thread = encoding.codec, thread
        self._file, self._opened = io.BytesIO(), ExitStack()
        self._encoder = self._opened.enter_context(SegmentEncoder(self._file, encoding))
        self._failure: Exception | None = None

    def write(self, picture: Frame) -> None:
        """Hand over the next picture; what went wrong with one before is raised here."""
        if self._failure is not None:
            raise self._failure
        self._thread.hand_over(partial(self._try, partial(self._encoder.write, picture)), picture.nbytes)

    def finish(self, carry: Carry) -> Future[Done]:
        """Hand over the end."""

        def work() -> Done:
            self._try(self._opened.close)
            if self._failure is not None:
                raise self._failure
            return Done(self._file.getvalue(), self._encoder.order, carry)

        return self._thread.hand_over(work)

    def abort(self) -> None:
        """Nothing more will come, and what is there is not wanted."""
        stopped = self._failure = WorkerError("the run was stopped")
        self._thread.hand_over(partial(self._opened.__exit__, WorkerError, stopped, None))

    def _try(self, work: Callable[[], None]) -> None:
        if self._failure is not None:
            return
        try:
            work()
        except av.FFmpegError as error:  # in memory, where no disk can be full
            self._failure = EncodingError(
                f"--codec {self._codec}: its encoder does not work on this machine ({error.strerror}); "
                "choose another codec"
            )
            self._failure.__cause__ = error
        except Exception as error:
            self._failure = error


class Room:
    """How many bytes of frames wait or are at work, in all films together."""

    def __init__(self, limit: int) -> None:
        self._limit, self._taken, self._lock = limit, 0, threading.Lock()

    @property
    def full(self) -> bool:
        """Whether no more frames should be read."""
        return self._taken >= self._limit

    def take(self, count: int) -> None:
        """``count`` bytes have been read; negative: are no longer needed."""
        with self._lock:
            self._taken += count


class Team(Protocol):
    """Whoever enhances segments."""

    engine_set: EngineSet
    room: Room
    size: int  # films worth having at work at once

    def submit(self, task: Task, report: Report) -> Job:
        """Enhance a segment, now or later; ``report`` is told of what comes before the end, where it can be."""

    def close(self) -> None:
        """Stop; segments that are not done end with an exception."""


class Alone:
    """The process itself, which does one segment after the other, each when it is handed in.

    A thread encodes the pictures of one segment while the engines are at the next.
    """

    def __init__(self, v2v: VideoToVideo) -> None:
        self.v2v, self.engine_set = v2v, v2v.engine_set
        self.room, self.size = Room(1), 1
        self._encoders = Behind(_BEHIND)

    def submit(self, task: Task, report: Report) -> Job:
        """Enhance the segment before returning; its pictures may still be waiting for the encoder."""
        try:
            return begin_task(self.v2v, task, self._encoders, report)
        except Exception as error:
            failed: Future[Done] = Future()
            failed.set_exception(error)
            return Job(failed)

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

    def enhance(self, task: Task) -> Done:
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
    future: Future[Done] = field(default_factory=Future)
    losses: int = 0


class Pool:
    """Workers that share the segments of any number of films; a context manager that ends them.

    Args:
        engine_set: what the workers run.
        start: for each worker a function that starts it, and starts it again when it was lost.

    Raises:
        V2VError: on entering, if no worker can be started.
    """

    def __init__(self, engine_set: EngineSet, start: Sequence[Callable[[], Worker]]) -> None:
        self.engine_set, self.room = engine_set, Room(_WAITING)
        self.workers: list[Worker | None] = [None] * len(start)
        self.busy: set[int] = set()  # places of the workers that have something in hand
        self.size = len(start)
        self.lost = 0  # workers, so far
        self._start = start
        self._orders: deque[_Order] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._ready = 0
        self._given_up: list[V2VError] = []  # why each worker that is not there any more went
        self._threads = [
            threading.Thread(target=self._serve, args=(place,), name=f"v2v-worker-{place}", daemon=True)
            for place in range(len(start))
        ]

    def __enter__(self) -> Pool:
        for thread in self._threads:
            thread.start()
        try:
            with self._changed:
                while not self._ready and len(self._given_up) < len(self._threads):
                    self._changed.wait()
                if not self._ready:
                    raise self._given_up[0]
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, task: Task, report: Report) -> Job:
        """Queue a segment for the next worker that is free."""
        order = _Order(task)
        with self._changed:
            if len(self._given_up) == len(self._threads):
                order.future.set_exception(self._given_up[-1])
            else:
                self._orders.append(order)
                self._changed.notify_all()
        return Job(order.future)

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

    def _serve(self, place: int) -> None:
        """One worker's life, and those of its successors."""
        in_a_row = 0
        while not self._closed:
            try:
                worker = self._hire(place)
                while (order := self._next_order()) is not None:
                    self.busy.add(place)
                    self._do(worker, order)
                    self.busy.discard(place)
                    in_a_row = 0
            except WorkerLost as loss:
                self.busy.discard(place)
                in_a_row += 1
                self.lost += not self._closed  # whom close() ends, perhaps before it was ready, is not lost
                if in_a_row < _LOSSES or self._closed:
                    continue
                error: V2VError = WorkerError(f"worker {place + 1} has ended {in_a_row} times: {loss}")
            except V2VError as refused:
                error = refused
            else:
                return
            self._give_up(error)
            return

    def _hire(self, place: int) -> Worker:
        with self._changed:
            if self._closed:
                raise WorkerLost
            worker = self.workers[place] = self._start[place]()
        worker.wait_until_ready()
        with self._changed:
            self._ready += 1
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
            done = worker.enhance(order.task)
        except WorkerLost as loss:
            self._do_again(order, loss)
            raise
        except Exception as error:
            order.future.set_exception(error)
            return
        order.future.set_result(done)

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

    def _give_up(self, error: V2VError) -> None:
        with self._changed:
            self._given_up.append(error)
            alone = len(self._given_up) == len(self._threads)
            self._changed.notify_all()
        if alone:
            self._fail_all(error)
        elif not self._closed:
            warnings.warn(f"going on with one worker less: {error}", stacklevel=2)

    def _fail_all(self, error: V2VError) -> None:
        with self._changed:
            orders = list(self._orders)
            self._orders.clear()
        for order in orders:
            if order.future.running() or order.future.set_running_or_notify_cancel():
                order.future.set_exception(error)


def local_pool(engine_set: EngineSet, count: int, device: str, memory: Memory) -> Pool:
    """``count`` processes of this machine; on "cuda" each has a GPU of its own.

    Raises:
        WorkerError: there are fewer GPUs than that.
    """
    gpus: Sequence[str | None] = [None] * count
    if device == "cuda":
        gpus = visible_gpus()
        if len(gpus) < count:
            raise WorkerError(
                f"--workers {count}: only {len(gpus)} of this machine's GPUs can be seen; each worker needs one"
            )

    def start(gpu: str | None) -> Callable[[], Worker]:
        return lambda: Process(engine_set.path, device, memory, gpu)

    return Pool(engine_set, [start(gpu) for gpu in gpus[:count]])


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(number) for number in range(cuda_devices())]
    return [name.strip() for name in named.split(",") if name.strip()][: cuda_devices()]


class Process:
    """A worker in a process of its own, on this machine."""

    def __init__(self, engine_set: Path, device: str, memory: Memory, gpu: str | None = None) -> None:
        # Spawned, not forked: CUDA and the engines' threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_work, args=(theirs, engine_set, device, memory, gpu), daemon=True
        )
        self.process.start()
        theirs.close()

    def wait_until_ready(self) -> None:
        """See :class:`Worker`."""
        self._answer()

    def enhance(self, task: Task) -> Done:
        """See :class:`Worker`."""
        try:
            self._pipe.send(task)
        except OSError as error:
            raise self._loss() from error
        done: Done = self._answer()
        return done

    def end(self) -> None:
        """See :class:`Worker`."""
        self.process.kill()

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._loss() from error
        return given(answer)

    def _loss(self) -> WorkerLost:
        self.process.kill()  # one that cannot be talked to must not go on using the GPU
        self.process.join()
        code = self.process.exitcode or 0
        reason = f"exit code {code}"
        if code < 0:
            with suppress(ValueError):
                reason = signal.Signals(-code).name
            if code == -signal.SIGKILL:
                reason += ", which is also how a machine ends a process when it runs out of memory"
        return WorkerLost(f"its process ended by {reason}")


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


def given(answer: Any) -> Any:
    """An answer that has arrived; a :class:`Failure` is raised."""
    if isinstance(answer, Failure):
        raise answer.error or RuntimeError(f"a worker failed:\n{answer.trace}")
    return answer


def _work(pipe: Any, engine_set: Path, device: str, memory: Memory, gpu: str | None) -> None:
    """A worker's process: load the engines, then answer task after task."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches all processes; the first one ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore")
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    loaded: list[VideoToVideo] = []
    pipe.send(answer_of(lambda: loaded.append(VideoToVideo.load(engine_set, device, memory))))
    with suppress(EOFError):
        while loaded:
            task = pipe.recv()
            pipe.send(answer_of(lambda: enhance_task(loaded[0], task)))  # noqa: B023


def _end_with_parent() -> None:
    """However the first process ends, its workers end too."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
