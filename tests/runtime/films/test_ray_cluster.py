"""A Ray cluster changes how long a film takes and nothing else, even if it loses a worker."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.runtime.command import Run
from tests.runtime.films.test_pool import enhance, in_hand, make_film
from v2v.engine.store import EngineSet
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.films.pool import Alone
from v2v.runtime.films.task import WorkerError

pytest.importorskip("ray", reason="Ray is not installed: no wheel for this Python, or left out")


def test_no_cluster_is_told(run: Run, stand_in_engines: Path, tmp_path: Path) -> None:
    film = make_film(tmp_path / "in.mkv")
    done = run(film, "-o", tmp_path / "out.mp4", "--engines", stand_in_engines, "--ray", "127.0.0.1:1")
    assert done.code == 2
    assert "--ray 127.0.0.1:1: no cluster answers there" in done.err
    assert not (tmp_path / "out.mp4").exists()


@pytest.fixture(scope="module")
def cluster() -> Iterator[ModuleType]:
    """A cluster on this machine that has room for two workers."""
    from v2v.runtime.films import ray_cluster as cluster

    assert cluster.connect(cluster.LOCAL, 2)
    yield cluster
    cluster.ray.shutdown()


def test_a_cluster_that_loses_a_worker_in_mid_run_makes_the_same_bytes(
    cluster: ModuleType, stand_in_engines: Path, tmp_path: Path
) -> None:
    engine_set = EngineSet.open(stand_in_engines)
    film = make_film(tmp_path / "in.mkv")
    expected = enhance(Alone(VideoToVideo.load(engine_set)), film, tmp_path / "alone.mp4")
    killed = []
    with cluster.cluster_pool(cluster.LOCAL, engine_set, 2, "cpu", "high") as pool:
        while pool.ready < 2:
            time.sleep(0.01)
        victim = pool.workers[0].process_id()
        os.kill(victim, signal.SIGSTOP)  # so that it cannot finish what it has in hand

        def kill_one(now):
            if not killed:
                in_hand(pool, 0)
                os.kill(victim, signal.SIGKILL)
                killed.append(now.segment)

        made = enhance(pool, film, tmp_path / "out.mp4", kill_one)
        assert pool.lost == 1
    assert killed
    assert made == expected


def test_the_command_runs_on_a_cluster(
    cluster: ModuleType, run: Run, stand_in_engines: Path, tmp_path: Path
) -> None:
    film = make_film(tmp_path / "in.mkv")
    settings = ("--engines", stand_in_engines, "--scale", 1, "--steps", 1)
    assert run(film, "-o", tmp_path / "one.mp4", *settings).code == 0
    done = run(film, "-o", tmp_path / "two.mp4", *settings, "--ray", "auto")
    assert done.code == 0, done.err
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()


def test_a_cluster_too_small_is_told(cluster: ModuleType, stand_in_engines: Path) -> None:
    with pytest.raises(WorkerError, match=r"the cluster has 0 GPUs, too few for 1 workers"):
        cluster.cluster_pool(cluster.LOCAL, EngineSet.open(stand_in_engines), 1, "cuda", "high")
