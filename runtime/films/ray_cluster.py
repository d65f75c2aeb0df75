"""Workers on other machines, through Ray: https://docs.ray.io

    v2v-run film.mkv -o out.mkv --ray auto             # or ray://head:10001, or "local" for a cluster made here
    v2v-run films/ -o out/ --ray auto --workers 8

This process reads and writes the videos; frames of a segment go to a worker, encoded pictures come back. Each worker
loads the engine set by its path, so the set must lie at the same place everywhere (a shared file system), and v2v
of the same version must be installed there. Workers of one kind (the same GPU, or the same processor) make the bytes
of one process; others make the same pictures up to rounding.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from v2v.core.abort import take_signals
from v2v.core.errors import V2VError, first_line
from v2v.core.version import __version__
from v2v.engine.store import EngineSet
from v2v.runtime.diffusion.loaded import Memory
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.films.pool import Pool, Worker, WorkerLost, answer_of, unwrapped
from v2v.runtime.films.task import EnhancedSegment, Task, WorkerError, enhance_task

try:
    import ray
    import ray.exceptions
except ImportError as error:
    raise WorkerError("--ray needs Ray, which is not installed here; pip install 'v2v[ray]'") from error
except Exception as error:  # it does not go together with another library that is here
    raise WorkerError(f"--ray: Ray cannot be imported here ({type(error).__name__}: {error})") from error

LOCAL = "local"
_START = 600.0  # seconds that a worker may take until its engines are loaded
_GLANCE = 5.0  # seconds after which one looks whether the cluster is still there


def cluster_pool(address: str, engine_set: EngineSet, count: int | None, device: str, memory: Memory) -> Pool:
    """A pool of ``count`` workers on the cluster at ``address``, one GPU each on "cuda".

    With no ``count``, one for each GPU, or for each machine on "cpu", where the engines use all cores.

    Raises:
        WorkerError: no cluster at that address, or it has fewer GPUs or cores than workers.
    """
    ours = connect(address, count)
    resources = ray.cluster_resources()
    kind = "GPU" if device == "cuda" else "CPU"
    there = int(resources.get(kind, 0))
    count = count or (there if device == "cuda" else len(ray.nodes()))
    if there < max(count, 1):
        raise WorkerError(
            f"--ray {address}: the cluster has {there} {kind}s, too few for {max(count, 1)} workers"
        )

    def start() -> Worker:
        return RayWorker(engine_set.path.resolve(), device, memory)

    return _ClusterPool(engine_set, [start] * count, ours)


def connect(address: str, cores: int | None) -> bool:
    """Join the cluster at ``address``, or start one of so many ``cores`` for "local".

    False if this program is connected already: then that cluster is used.

    Raises:
        WorkerError: no cluster answers there.
    """
    if ray.is_initialized():
        return False
    _check_reachable(address)
    # GPUs are given by --workers alone: without this, later versions hide them from tasks that ask for none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    here: dict[str, Any] = {"include_dashboard": False, "num_cpus": cores or 1}
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **(here if address == LOCAL else {}),
        )
    except Exception as error:  # Ray's own, those of its network, of its processes and of its files
        with suppress(Exception):
            ray.shutdown()  # what has begun to run
        what = "no cluster could be started here" if address == LOCAL else "no cluster answers there"
        raise WorkerError(f"--ray {address}: {what} ({type(error).__name__}: {first_line(error)})") from error
    take_signals()  # Ray has handlers that print where they were called
    return True


def _check_reachable(address: str) -> None:
    """Ray ends the whole process where nobody answers, so ask first."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise WorkerError(f"--ray {address}: no cluster answers there ({error})") from error


class _ClusterPool(Pool):
    """Leaves the cluster at the end if it has joined it; one that was started here ends then."""

    def __init__(self, engine_set: EngineSet, start: Sequence[Callable[[], Worker]], ours: bool) -> None:
        super().__init__(engine_set, start)
        self._ours = ours

    def close(self) -> None:
        """See :class:`Pool`."""
        super().close()
        if self._ours:
            ray.shutdown()


class RayWorker:
    """A :class:`v2v.runtime.films.pool.Worker` somewhere in the cluster."""

    def __init__(self, engine_set: Path, device: str, memory: Memory) -> None:
        # Ray sets the number of NumPy's threads to 1, and with another number sums may round differently.
        threads = os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count())
        actor: Any = ray.remote(_Actor)
        self._actor: Any = actor.options(
            num_cpus=1,
            num_gpus=int(device == "cuda"),
            max_restarts=0,  # the pool starts a new one, and knows what the lost one had in hand
            runtime_env={"env_vars": {"OMP_NUM_THREADS": threads}},
        ).remote(str(engine_set), device, memory, __version__)

    def wait_until_ready(self) -> None:
        """See :class:`v2v.runtime.films.pool.Worker`.

        Ray waits for ever for a worker on a cluster whose machines are gone, so this looks for them meanwhile.
        """
        loaded, began = self._actor.load.remote(), time.monotonic()
        while not ray.wait([loaded], timeout=_GLANCE)[0]:
            if not any(node["Alive"] for node in ray.nodes()):
                raise WorkerError(
                    "the Ray cluster was lost: none of its machines answers any more; what is finished is kept, "
                    "and the same command goes on with it"
                )
            if time.monotonic() - began > _START:
                raise WorkerError(f"no machine of the cluster had a worker ready in {_START:.0f} seconds")
        self._wait_for(loaded)

    def enhance(self, task: Task) -> EnhancedSegment:
        """See :class:`v2v.runtime.films.pool.Worker`."""
        done: EnhancedSegment = self._wait_for(self._actor.enhance.remote(task))
        return done

    def process_id(self) -> int:
        """Of the worker's process, on its machine."""
        number: int = self._wait_for(self._actor.process_id.remote())
        return number

    def end(self) -> None:
        """See :class:`v2v.runtime.films.pool.Worker`."""
        ray.kill(self._actor)

    @staticmethod
    def _wait_for(answer: Any) -> Any:
        try:
            return unwrapped(ray.get(answer))
        except ray.exceptions.RayError as error:
            raise WorkerLost(f"Ray lost it ({type(error).__name__})") from error


class _Actor:
    """What runs in the cluster. Answers are made by :func:`answer_of`: Ray's own errors name no cause to people."""

    def __init__(self, engine_set: str, device: str, memory: Memory, version: str) -> None:
        self._engine_set, self._device, self._memory, self._version = engine_set, device, memory, version
        self._v2v: VideoToVideo | None = None

    def process_id(self) -> int:
        return os.getpid()

    def load(self) -> Any:
        return answer_of(self._load)

    def _load(self) -> None:
        if (here := __version__) != self._version:
            raise WorkerError(
                f"{platform.node()} has v2v {here}, the run was started with {self._version}; "
                "install the same version everywhere"
            )
        self._v2v = VideoToVideo.load(self._engine_set, self._device, self._memory)

    def enhance(self, task: Task) -> Any:
        return answer_of(self._enhance(task))

    def _enhance(self, task: Task) -> Callable[[], EnhancedSegment]:
        def work() -> EnhancedSegment:
            if self._v2v is None:
                raise V2VError("the worker has no engines")
            return enhance_task(self._v2v, task)

        return work
