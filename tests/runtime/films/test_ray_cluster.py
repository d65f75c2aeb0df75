"""A Ray cluster changes how long a film takes and nothing else, even if it loses a worker."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.runtime.films.test_pool import alive, enhance, in_hand, make_film
from tests.stand_ins.command import Run, start
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


@pytest.mark.parametrize(
    "error",
    [ConnectionError("refused"), TimeoutError("slow"), OSError(28, "No space left"), AttributeError("x")],
)
def test_a_cluster_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    from v2v.runtime.films import ray_cluster

    def fails(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray_cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_cluster.ray, "init", fails)
    monkeypatch.setattr(ray_cluster.ray, "shutdown", lambda: None)
    with pytest.raises(
        WorkerError, match=f"--ray local: no cluster could be started here .{type(error).__name__}"
    ):
        ray_cluster.connect("local", 1)


def family(mark: str) -> dict[int, str]:
    """Processes that live and have inherited ``mark``, and what each is called."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if f"V2V_TEST={mark}".encode() in (entry / "environ").read_bytes() and alive(int(entry.name)):
                found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "accident", ["SIGTERM", "SIGTERM at the start", "SIGKILL", "a killed raylet", "a killed GCS"]
)
def test_no_process_of_a_cluster_made_here_outlives_the_run(
    stand_in_engines: Path, tmp_path: Path, accident: str
) -> None:
    film, mark = make_film(tmp_path / "in.mkv"), str(tmp_path)
    process = start(
        *(film, "-o", tmp_path / "out.mp4", "--engines", stand_in_engines, "--scale", 4, "--steps", 900),
        *("--ray", "local", "--workers", 2),
        env={**os.environ, "V2V_TEST": mark},
    )
    awaited = "gcs_server" if accident.endswith("start") else "ray::_Actor.enhance"
    while not any(awaited in called for called in family(mark).values()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    killed = {"a killed raylet": "/raylet/raylet", "a killed GCS": "gcs_server"}.get(accident)
    if killed:
        os.kill(next(each for each, called in family(mark).items() if killed in called), signal.SIGKILL)
    else:
        process.send_signal(signal.Signals[accident.split()[0]])
    _, err = process.communicate(timeout=300)
    if accident == "a killed GCS" and (tmp_path / "out.mp4").exists():
        # The work was done before Ray had noticed, which it may still do when its parts are ended.
        assert process.returncode in (0, 2), err
        assert family(mark) == {}
        return
    expected = 2 if killed else -9 if accident == "SIGKILL" else 143
    assert process.returncode == expected, err
    told = (
        "Ray has ended this run" in err or "the Ray cluster was lost" in err
    )  # by the supervisor or by the run
    assert told == (expected == 2)
    assert "Traceback" not in err
    assert "***" not in err  # what Ray prints of a signal
    if accident == "SIGKILL":  # nobody is left to clear up at once
        deadline = time.monotonic() + 120
        while family(mark) and time.monotonic() < deadline:
            time.sleep(0.1)
    assert family(mark) == {}
    assert not (tmp_path / "out.mp4").exists()
