"""A queue of jobs: each does what ``v2v-run`` does, none harms another, and none is lost."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import v2v
from tests.apps.browser import PATIENCE
from tests.runtime.clips import times
from v2v.apps.job import OVER, Job
from v2v.apps.jobs import Conflict, JobQueue, Limits, NoSuchJob, Refused
from v2v.core.errors import UsageError
from v2v.runtime.films.journal import journal_folder

Opened = Callable[..., JobQueue]


@pytest.fixture
def opened(tmp_path: Path, stand_in_engines: Path, first_stage_engines: Path) -> Iterator[Opened]:
    """Lends a function that opens the queue of this test's folder."""
    queues: list[JobQueue] = []
    fixed = {"engines": str(stand_in_engines), "engines_first": str(first_stage_engines)}

    def open_queue(**options: Any) -> JobQueue:
        queues.append(JobQueue(tmp_path / "jobs", fixed, **options))
        return queues[-1]

    yield open_queue
    for queue in queues:
        queue.close()


@pytest.fixture
def idle(opened: Opened) -> JobQueue:
    """A queue that nobody works on."""
    return opened(lanes=())


def submit(queue: JobQueue, source: Path, name: str = "", **options: Any) -> Job:
    asked = {"steps": 1, **options}
    return queue.submit(name or source.name, asked, take=lambda to: shutil.copyfile(source, to) and None)


def wait(queue: JobQueue, job: Job, until: Callable[[Job], bool] = lambda job: job.state in OVER) -> Job:
    end = time.monotonic() + PATIENCE
    while not until(now := queue.get(job.id)):
        assert time.monotonic() < end, now
        time.sleep(0.02)
    return now


def begun(queue: JobQueue) -> Callable[[Job], bool]:
    """Whether a segment of the job is finished."""

    def look(job: Job) -> bool:
        assert job.state not in OVER, job
        return journal_folder(queue.path_of(job, "result")).joinpath("00000.json").exists()

    return look


def test_a_job_makes_what_the_command_makes(
    opened: Opened, film: Path, stand_in_engines: Path, tmp_path: Path
) -> None:
    queue = opened()
    job = submit(queue, film, prompt="a red fox", scale=2.0)
    seen: list[Job] = []
    done = wait(queue, job, lambda now: seen.append(now) or now.state in OVER)
    assert (done.state, done.error, done.frames) == ("done", "", 40)
    assert done.settings["prompt"] == "a red fox"
    v2v.enhance(film, tmp_path / "own.mp4", "a red fox", engines=stand_in_engines, steps=1, scale=2.0)
    assert queue.path_of(done, "result").read_bytes() == (tmp_path / "own.mp4").read_bytes()
    assert "<video" in queue.path_of(done, "compare").read_text()
    told = [now.progress for now in seen if now.state == "running" and now.progress.fraction]
    assert any(progress.seconds_left is not None for progress in told)
    shares = [progress.fraction for progress in told]
    assert shares == sorted(shares)


def test_a_preview_shows_three_seconds_and_a_picture_becomes_a_film(
    opened: Opened, film: Path, tmp_path: Path
) -> None:
    queue = opened()
    preview = submit(queue, film, preview="3")
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "fox.png")
    picture = submit(queue, tmp_path / "fox.png", size="128x80")
    assert wait(queue, preview).frames == 30
    made = wait(queue, picture)
    assert (made.state, made.error) == ("done", "")
    assert made.download_name == "fox-enhanced.mp4"
    assert len(times(queue.path_of(made, "result"))) == 4


def test_one_broken_film_and_one_killed_process_fail_alone(opened: Opened, film: Path, clip: Path) -> None:
    queue = opened()
    broken, killed, good = (
        queue.submit("broken.mp4", {}, take=lambda to: to.write_bytes(b"\0" * 5000) and None),
        submit(queue, film, steps=50),
        submit(queue, clip),
    )
    wait(queue, killed, lambda job: job.progress.fraction is not None)
    _end_process_of(killed, signal.SIGKILL)
    assert "want of memory" in wait(queue, killed).error
    failed = queue.get(broken.id)
    assert failed.state == "failed"
    assert "source.mp4" in failed.error
    assert wait(queue, good).state == "done"


def _end_process_of(job: Job, number: int) -> None:
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and job.id.encode() in _words(process):
            os.kill(int(process.name), number)


def _words(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def test_what_was_cancelled_goes_on_where_it_was(
    opened: Opened, film: Path, stand_in_engines: Path, tmp_path: Path
) -> None:
    queue = opened()
    job = submit(queue, film, scale=2.0)
    waiting = submit(queue, film)
    assert queue.ahead_of(waiting.id) <= 1
    wait(queue, job, begun(queue))
    with pytest.raises(Conflict, match="cancel it first"):
        queue.delete(job.id)
    queue.cancel(waiting.id)
    queue.cancel(job.id)
    assert wait(queue, job).state == "cancelled"
    assert queue.get(waiting.id).state == "cancelled"
    with pytest.raises(Conflict, match="nothing to cancel"):
        queue.cancel(job.id)
    assert not queue.path_of(job, "result").exists()
    queue.resume(job.id)
    seen: list[float] = []
    done = wait(
        queue,
        job,
        lambda now: seen.append(now.progress.fraction or 1.0) or now.state in OVER,  # type: ignore[func-returns-value]
    )
    assert done.state == "done"
    assert min(seen) > 0  # not from the beginning
    v2v.enhance(film, tmp_path / "own.mp4", engines=stand_in_engines, steps=1, scale=2.0)
    assert queue.path_of(job, "result").read_bytes() == (tmp_path / "own.mp4").read_bytes()


def test_a_closed_queue_goes_on_when_it_is_opened_again(opened: Opened, film: Path, clip: Path) -> None:
    queue = opened()
    job, after = submit(queue, film, scale=2.0), submit(queue, clip)
    wait(queue, job, begun(queue))
    with pytest.raises(UsageError, match="another service works"):
        opened()
    queue.close()
    queue = opened()
    assert wait(queue, job).state == "done"
    assert wait(queue, after).state == "done"
    assert [each.id for each in queue.jobs()] == [after.id, job.id]


def test_what_lies_in_the_folder_is_ours_or_left_alone(opened: Opened, clip: Path, tmp_path: Path) -> None:
    queue = opened(lanes=())
    job = submit(queue, clip, "my clip.mp4")
    queue.close()
    for name in ("0" * 16, "1" * 16, "my notes"):
        (tmp_path / "jobs" / name).mkdir()
    (tmp_path / "jobs" / ("1" * 16) / "job.json").write_text("{")
    again = opened(lanes=())
    assert [each.name for each in again.jobs()] == ["my clip.mp4"]
    left = {path.name for path in again.folder.iterdir()}
    assert left == {"lock", "uploads", job.id, "1" * 16, "my notes"}  # an upload that never ended has gone


@pytest.mark.parametrize(
    "name",
    ["../../escaped.mp4", "/etc/escaped.mp4", "C:\\films\\escaped.mp4", "escaped.mp4\0.sh", ".." * 300, ""],
)
def test_names_never_become_paths(idle: JobQueue, clip: Path, tmp_path: Path, name: str) -> None:
    job = submit(idle, clip, name)
    assert "/" not in job.name
    assert "\\" not in job.name
    assert job.name.isprintable()
    files = {path.name for path in (idle.folder / job.id).iterdir()} - {"job.json"}
    assert files <= {"source", "source.mp4", "source.sh"}
    assert not list(tmp_path.rglob("*escaped*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": "many"}, "steps: "),
        ({"strenth": 0.5}, "strenth is no option"),
        ({"engines": "/etc"}, "engines is no option"),
        ({"output": "/etc/passwd"}, "output is no option"),
        ({"model": "nothing"}, "--model must be one of"),
        ({"size": "large"}, "--size must be WIDTHxHEIGHT"),
        ({"codec": "png"}, "a job's result is one file"),
        ({"start": "soon"}, "--start"),
        ({"frames": 16}, "--frames is for a picture"),
        ({"container": "exe"}, "container must be one of"),
    ],
)
def test_mistakes_are_told_before_anything_is_kept(
    idle: JobQueue, clip: Path, options: dict[str, Any], message: str
) -> None:
    container = options.pop("container", None)
    with pytest.raises(UsageError, match=message):
        idle.submit("clip.mp4", options, source=clip, container=container)
    assert idle.jobs() == []
    assert {path.name for path in idle.folder.iterdir()} == {"lock", "uploads"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n" + b"\0" * 600,
        b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        b"<?xml version='1.0'?><MPD></MPD>",
        b"\0" * 100 + b"<MPD profiles='urn:mpeg:dash'>",
        b"just a text",
    ],
)
def test_texts_and_playlists_are_no_videos(idle: JobQueue, content: bytes) -> None:
    with pytest.raises(UsageError, match=r"film\.mp4 is (empty|a text or a playlist)"):
        idle.submit("film.mp4", {}, take=lambda to: to.write_bytes(content) and None)
    assert {path.name for path in idle.folder.iterdir()} == {"lock", "uploads"}


def test_what_is_too_much_is_refused_and_the_oldest_makes_room(opened: Opened, clip: Path) -> None:
    size = clip.stat().st_size
    queue = opened(lanes=(), limits=Limits(upload=2 * size, disk=3 * size - 1, waiting=2))
    with pytest.raises(Refused, match="are taken"):
        queue.submit("large.mp4", {}, take=lambda to: None, size=3 * size)
    first, second = submit(queue, clip), submit(queue, clip)
    with pytest.raises(Refused, match="2 jobs are waiting already"):
        submit(queue, clip)
    queue.cancel(first.id)
    with pytest.raises(Refused, match="what waits fills"):
        queue.has_room(2 * size)
    assert queue.get(first.id).state == "cancelled"  # nothing goes for what is refused
    third = submit(queue, clip)
    with pytest.raises(NoSuchJob):
        queue.get(first.id)
    assert not (queue.folder / first.id).exists()
    assert {job.id for job in queue.jobs()} == {second.id, third.id}


def test_no_more_jobs_are_kept_than_may_be(opened: Opened, clip: Path) -> None:
    queue = opened(lanes=(), limits=Limits(kept=2))
    jobs = [queue.cancel(submit(queue, clip).id) for _ in range(4)]
    assert [job.id for job in queue.jobs()] == [jobs[3].id, jobs[2].id]


@pytest.mark.slow
def test_a_service_that_is_told_to_end_with_all_its_processes_fails_no_job(
    opened: Opened, film: Path
) -> None:
    queue = opened()
    job = submit(queue, film, scale=2.0)
    wait(queue, job, begun(queue))
    _end_process_of(job, signal.SIGTERM)
    queue.close()
    assert wait(opened(), job).state == "done"


def test_a_deleted_job_leaves_nothing(idle: JobQueue, clip: Path) -> None:
    uploaded, here = submit(idle, clip), idle.submit("clip.mp4", {}, source=clip)
    idle.delete(uploaded.id)
    idle.delete(here.id)
    assert {path.name for path in idle.folder.iterdir()} == {"lock", "uploads"}
    assert clip.exists()
    with pytest.raises(NoSuchJob):
        idle.get(here.id)
