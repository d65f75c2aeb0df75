"""Workers that are processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from v2v.device.gpus import visible_gpus
from v2v.engine.store import EngineSet
from v2v.runtime.diffusion.loaded import Memory
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.films.pool import Pool, Worker, WorkerLost, answer_of, unwrapped
from v2v.runtime.films.task import EnhancedSegment, Task, WorkerError, enhance_task


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


class Process:
    """A worker in a process of its own, on this machine."""

    def __init__(self, engine_set: Path, device: str, memory: Memory, gpu: str | None = None) -> None:
        # Spawned, not forked: CUDA and the engines' threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_work, args=(theirs, engine_set, device, memory, gpu), daemon=True
        )
        # Ctrl-C reaches all processes, and the first one ends the others: from its first moment on a worker does not
        # hear it, for it inherits what this thread lets through.
        resource_tracker.ensure_running()  # which would let SIGINT through again
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def wait_until_ready(self) -> None:
        """See :class:`Worker`."""
        self._answer()

    def enhance(self, task: Task) -> EnhancedSegment:
        """See :class:`Worker`."""
        try:
            self._pipe.send(task)
        except OSError as error:
            raise self._loss() from error
        done: EnhancedSegment = self._answer()
        return done

    def end(self) -> None:
        """See :class:`Worker`."""
        self.process.kill()

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._loss() from error
        return unwrapped(answer)

    def _loss(self) -> WorkerLost:
        self.process.kill()  # one that cannot be talked to must not go on using the GPU
        self.process.join()
        code = self.process.exitcode or 0
        reason = f"exit code {code}"
        if code < 0:
            with suppress(ValueError):
                reason = signal.Signals(-code).name
            if code == -9:  # SIGKILL, a name that Windows does not have
                reason += ", which is also how a machine ends a process when it runs out of memory"
        return WorkerLost(f"its process ended by {reason}")


def _work(pipe: Any, engine_set: Path, device: str, memory: Memory, gpu: str | None) -> None:
    """A worker's process: load the engines, then answer task after task."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
