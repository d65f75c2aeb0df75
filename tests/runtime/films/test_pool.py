"""Workers change how long a film takes and nothing else, whatever becomes of them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from tests.core.test_abort import catches
from tests.runtime.clips import make_video, picture
from tests.stand_ins.command import start as start_command
from v2v.core.errors import EngineError
from v2v.device import gpus
from v2v.engine.store import EngineSet
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.diffusion.settings import Settings, plan
from v2v.runtime.films.film import Target, enhance_film
from v2v.runtime.films.pool import Alone, Pool, Room, WorkerLost
from v2v.runtime.films.processes import Process, local_pool
from v2v.runtime.films.task import EnhancedSegment, SegmentJob, Task, WorkerError, enhance_task
from v2v.runtime.media.encoding import EncodingError
from v2v.runtime.media.reader import VideoReader
from v2v.runtime.media.writer import encoding_for

SHOTS = (
    25,
    12,
    30,
    5,
)  # frames: the first and the third take two segments, the second of which needs the first


def make_film(path: Path) -> Path:
    """A film of several shots."""
    shades = (0, 150, 60, 200)
    pictures = [
        (picture(n).astype(int) // 4 + shade).astype(np.uint8)
        for shade, length in zip(shades, SHOTS, strict=True)
        for n in range(length)
    ]
    return make_video(path, pictures=pictures, sounds=1)


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return make_film(tmp_path / "in.mkv")


@pytest.fixture
def engine_set(stand_in_engines: Path) -> EngineSet:
    return EngineSet.open(stand_in_engines)


def enhance(team, film: Path, output: Path, progress=lambda told: None) -> bytes:
    with VideoReader(film, find_cuts=True) as reader:
        made = plan(
            Settings(prompt="a fox", steps=2, scale=1.0),
            team.engines.model,
            (reader.info.height, reader.info.width),
        )
        enhance_film(team, reader, Target(output, encoding_for(reader.info), {}), made, progress)
    return output.read_bytes()


@pytest.fixture
def expected(engine_set: EngineSet, film: Path, tmp_path: Path) -> bytes:
    """What one process makes."""
    return enhance(Alone(VideoToVideo.load(engine_set)), film, tmp_path / "alone.mp4")


def in_hand(pool: Pool, place: int) -> Process:
    """The worker in ``place``, once it has something to do."""
    deadline = time.monotonic() + 120
    while place not in pool.busy:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return pool.workers[place]


def test_two_workers_one_killed_in_mid_run_make_the_same_bytes(engine_set, film, expected, tmp_path):
    told = []

    def kill_one(now):
        told.append(now)
        if len(told) == 1:
            victim = in_hand(pool, 0)
            victim.process.kill()

    with local_pool(engine_set, 2, "cpu", "high") as pool:
        while pool.ready < 2:
            time.sleep(0.01)
        os.kill(pool.workers[0].process.pid, signal.SIGSTOP)  # so that it cannot finish what it has in hand
        made = enhance(pool, film, tmp_path / "out.mp4", kill_one)
    assert made == expected
    assert pool.lost == 1
    assert [now.frames_done for now in told][-1] == sum(SHOTS)
    assert sorted(now.segment for now in told) == list(range(6))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".out")] == []


def test_no_process_outlives_the_pool(engine_set):
    with local_pool(engine_set, 2, "cpu", "high") as pool:
        processes = [worker.process for worker in pool.workers if worker]
    for process in processes:
        process.join(60)
        assert process.exitcode is not None


@pytest.mark.slow
def test_a_process_ends_when_the_one_that_started_it_is_killed(stand_in_engines, film, tmp_path):
    """In the middle of work that takes minutes: that it would end when it asks for more does not help."""
    command = start_command(
        *(film, "-o", tmp_path / "out.mp4", "--engines", stand_in_engines, "--workers", 2),
        *("--scale", 8, "--steps", 900),
    )
    found = workers_of(command)
    while not (tmp_path / ".out.mp4.v2v").exists() or sum(map(seconds_at_work, found)) < 8:
        assert command.poll() is None, command.communicate()
        time.sleep(0.05)
    command.kill()
    deadline = time.monotonic() + 120
    while any(alive(pid) for pid in found) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [pid for pid in found if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    command.communicate()
    assert not left


def seconds_at_work(pid: int) -> float:
    """Of a process, on any core."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def workers_of(command: subprocess.Popen[str]) -> list[int]:
    """Numbers of the processes that a command with two workers has started, once all are there."""
    threads = Path(f"/proc/{command.pid}/task")
    if not (threads / str(command.pid) / "children").exists():
        command.kill()
        pytest.skip("this system does not tell a process' children")
    found: list[int] = []
    deadline = time.monotonic() + 120
    while len(found) < 3:  # with Python's resource tracker
        assert time.monotonic() < deadline
        assert command.poll() is None, command.communicate()
        time.sleep(0.05)
        with contextlib.suppress(FileNotFoundError):
            found = [int(pid) for t in threads.iterdir() for pid in (t / "children").read_text().split()]
    return found


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


class Scripted:
    """A worker in this process that ends at what it is told to."""

    def __init__(self, engine_set, ends_at=(), refuses=None):
        self.v2v, self.ends_at, self.refuses = VideoToVideo.load(engine_set), ends_at, refuses

    def wait_until_ready(self):
        if self.refuses:
            raise self.refuses

    def enhance(self, task: Task) -> EnhancedSegment:
        if task.segment.index in self.ends_at:
            raise WorkerLost("scripted")
        return enhance_task(self.v2v, task)

    def end(self):
        pass


def test_a_segment_that_ends_every_worker_is_told(engine_set, film, tmp_path):
    starts = [lambda: Scripted(engine_set, ends_at=[2])] * 2
    with (
        Pool(engine_set, starts) as pool,
        pytest.raises(WorkerError, match="frames 25 to 36: 3 workers ended"),
    ):
        enhance(pool, film, tmp_path / "out.mp4")


def test_with_no_worker_left_the_run_ends_and_goes_on_later(engine_set, film, expected, tmp_path):
    output = tmp_path / "out.mp4"
    with Pool(engine_set, [lambda: Scripted(engine_set, ends_at=[3])]) as pool, pytest.raises(WorkerError):
        enhance(pool, film, output)
    with Pool(engine_set, [lambda: Scripted(engine_set)]) as pool:
        assert enhance(pool, film, output) == expected


def test_engines_that_load_nowhere_end_the_run_at_once(engine_set):
    refusal = EngineError("does not run here")
    starts = [lambda: Scripted(engine_set, refuses=refusal)] * 2
    with pytest.raises(EngineError, match="does not run here"), Pool(engine_set, starts):
        pass


def test_one_worker_less_is_told_and_the_others_go_on(engine_set, film, expected, tmp_path):
    refusal = EngineError("does not run here")
    starts = [lambda: Scripted(engine_set), lambda: Scripted(engine_set, refuses=refusal)]
    with (
        pytest.warns(UserWarning, match="one worker less: does not run here"),
        Pool(engine_set, starts) as pool,
    ):
        assert enhance(pool, film, tmp_path / "out.mp4") == expected


def test_an_error_in_a_worker_is_the_error_of_the_run(engine_set, film, tmp_path):
    with local_pool(engine_set, 1, "cpu", "high") as pool, VideoReader(film) as reader:
        made = plan(Settings(steps=2, scale=1.0), engine_set.model, (48, 64))
        encoding = dataclasses.replace(encoding_for(reader.info), codec="h264_nvenc")
        with pytest.raises(EncodingError, match=r"--codec h264_nvenc: .* machine"):
            enhance_film(pool, reader, Target(tmp_path / "out.mp4", encoding, {}), made)
    assert not list(tmp_path.glob("*out.mp4*"))


class Slow:
    """A team that finishes the newest segment first, and remembers how much it was given."""

    def __init__(self, engine_set, limit):
        self.engines, self.room, self.size = engine_set, Room(limit), 1
        self.alone = Alone(VideoToVideo.load(engine_set))
        self.most = 0
        self.orders: list[tuple[Task, Future]] = []
        self.lock = threading.Lock()

    def submit(self, task, report):
        future: Future = Future()
        with self.lock:
            self.orders.append((task, future))
            self.most = max(self.most, self.room.taken)
        threading.Timer(0.2, self.finish_newest).start()
        return SegmentJob(future)

    def finish_newest(self):
        with self.lock:
            task, future = self.orders.pop()
            future.set_result(enhance_task(self.alone.v2v, task))


def test_segments_may_be_finished_in_any_order_in_bounded_memory(engine_set, film, expected, tmp_path):
    frame = 64 * 48 * 3
    limit, segment = 40 * frame, 20 * frame
    team = Slow(engine_set, limit)
    assert enhance(team, film, tmp_path / "out.mp4") == expected
    assert team.most < limit + segment
    assert team.room.taken == 0


class Held:
    """A team that has begun the first segment that it was given, and is told when it fails."""

    def __init__(self, engine_set):
        self.engines, self.room, self.size = engine_set, Room(1 << 30), 1
        self.given: list[tuple[Task, Future]] = []

    def submit(self, task, report):
        future: Future = Future()
        self.given.append((task, future))
        if len(self.given) == 1:
            future.set_running_or_notify_cancel()
        if len(self.given) == len(SHOTS):
            self.given[1][1].set_exception(WorkerError("scripted"))
        return SegmentJob(future)


def test_a_film_that_fails_leaves_nothing_to_a_team_that_others_share(engine_set, film, tmp_path):
    team = Held(engine_set)
    with pytest.raises(WorkerError, match="scripted"):
        enhance(team, film, tmp_path / "out.mp4")
    assert team.room.taken == 0
    begun, _, *waiting = [future for _, future in team.given]
    assert [future.cancelled() for future in waiting] == [True, True]
    done = enhance_task(VideoToVideo.load(engine_set), team.given[0][0])
    begun.set_result(done)  # in a worker, when the film has been given up and its folder may be another run's
    assert [path.name for path in tmp_path.iterdir() if "out.mp4" in path.name] == []


def test_more_workers_than_gpus_are_refused(engine_set, monkeypatch):
    monkeypatch.setattr(gpus, "cuda_devices", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-abc")
    assert gpus.visible_gpus() == ["5", "GPU-abc"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert gpus.visible_gpus() == ["0", "1"]
    with pytest.raises(WorkerError, match="--workers 3: only 2"):
        local_pool(engine_set, 3, "cuda", "high")


def test_a_worker_that_cannot_even_be_started_ends_the_run(engine_set):
    def start():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with pytest.raises(BlockingIOError), Pool(engine_set, [start] * 2):
        pass


def begun(stand_in_engines: Path, film: Path, output: Path) -> subprocess.Popen[str]:
    """A command with two workers, in a group of its own, as soon as it sees to signals."""
    process = start_command(
        *(film, "-o", output, "--workers", 2, "--engines", stand_in_engines), start_new_session=True
    )
    while not catches(process.pid, signal.SIGTERM):
        time.sleep(0.005)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("seconds", [0, 0.3])
def test_a_signal_while_the_command_is_imported_is_quiet(
    stand_in_engines: Path, film: Path, tmp_path: Path, seconds: float, number: signal.Signals
) -> None:
    process = begun(stand_in_engines, film, tmp_path / "out.mp4")
    time.sleep(seconds)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "Traceback" not in err and "rror" not in err  # what had begun by then may have said so


def test_ctrl_c_is_not_heard_by_workers_that_begin(
    stand_in_engines: Path, film: Path, tmp_path: Path
) -> None:
    process = begun(stand_in_engines, film, tmp_path / "out.mp4")
    found = workers_of(process)
    while not any("/numpy/" in Path(f"/proc/{pid}/maps").read_text() for pid in found):  # it imports
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
