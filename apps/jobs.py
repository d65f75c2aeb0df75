"""A queue of jobs that is kept on disk: what was asked for, what became of it, and the files of both.

    FOLDER/
    ├── lock                 held by the one process that works on this queue
    ├── token                what is asked of others, where none was given (:mod:`v2v.apps.options`)
    ├── uploads/             what is on its way in; emptied at the start
    └── 3f0c…/               a job
        ├── job.json         written anew with each change of its state; without it the folder is no job
        ├── source.mp4       what was uploaded; a source that lies on this machine is read where it is
        ├── result.mp4       once it is complete; while it is made, its journal lies beside it
        ├── compare.html     before and after
        └── log              what the job's process said

Each job is done by a process of its own (:mod:`v2v.apps.work`): what ends that process, a GPU's fault or a broken
film, fails the job and nothing else. When this process is killed the other one ends too; whoever opens the queue next
does the job again, which goes on with what its journal has.

No name that somebody gives becomes a path: folders are named by random numbers and files by what they are to the job.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import filelock
import msgspec

from v2v.apps.job import (
    FIXED,
    OVER,
    Job,
    Progress,
    State,
    Told,
    check_content,
    check_options,
    container_for,
    shown_name,
)
from v2v.core.errors import UsageError, V2VError
from v2v.core.files import read_limited, sync

_ID = re.compile(r"[0-9a-f]{16}")
_ENDING = re.compile(r"\.[a-z0-9]{1,5}")
_LARGEST_JSON = 1 << 20  # bytes; of job.json, and of a line that a job's process says
_LOG_END = 1 << 16  # bytes of the log in which the error is looked for
_STARTS = 5  # begun so often and never ended, a job may be what takes the whole service down
_PATIENCE = 10.0  # seconds that a job's process may take to end
_TOLD_TO_END = (129, 130, 143)  # exit codes: a signal that may have been meant for this process as well


class NoSuchJob(V2VError):
    """There is no job of that number."""


class Refused(V2VError):
    """The queue is full, or has no room on the disk."""


class Conflict(V2VError):
    """The job is not in a state in which that can be done."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the queue takes in and keeps."""

    upload: int = 4 << 30  # bytes of a source
    disk: int = 100 << 30  # bytes of all jobs; the oldest that are over go first
    waiting: int = 100  # jobs
    kept: int = 1000  # jobs, the oldest that are over go first


class JobQueue:
    """The jobs of a folder, and the threads that see to them; a context manager.

    Args:
        folder: made if it is not there.
        fixed: options of ``v2v-run`` that all jobs have, as engines and device.
        lanes: environment variables of each process that works at the same time as the others.

    Raises:
        UsageError: the folder cannot be used, or another process works on it.
    """

    def __init__(
        self,
        folder: Path,
        fixed: Mapping[str, Any] | None = None,
        limits: Limits | None = None,
        lanes: Sequence[Mapping[str, str]] = ({},),
    ) -> None:
        self.folder, self.limits = folder.absolute(), limits or Limits()
        self._fixed = dict(fixed or {})
        self._changed = threading.Condition()
        self._jobs: dict[str, Job] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._cancelled: set[str] = set()
        self._closed = False
        self._lock = self._take_folder()
        self._load()
        self._threads = [
            threading.Thread(target=self._work, args=(dict(lane),), daemon=True, name="v2v-jobs")
            for lane in lanes
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> JobQueue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def uploads(self) -> Path:
        """A folder for what is on its way in, on the same disk."""
        return self.folder / "uploads"

    def jobs(self) -> list[Job]:
        """Snapshots of all jobs, newest first."""
        with self._changed:
            return [_copy(job) for job in reversed(self._jobs.values())]

    def get(self, job_id: str) -> Job:
        """A snapshot of a job.

        Raises:
            NoSuchJob: there is none.
        """
        with self._changed:
            return _copy(self._find(job_id))

    def ahead_of(self, job_id: str) -> int:
        """How many jobs are done before a queued one."""
        with self._changed:
            waiting = [job.id for job in self._jobs.values() if job.state == "queued"]
            return waiting.index(job_id) if job_id in waiting else 0

    def path_of(self, job: Job, name: Literal["source", "result", "compare", "log"]) -> Path:
        """A file of a job, whether it is there or not."""
        names = {"source": job.source, "result": job.result, "compare": "compare.html", "log": "log"}
        return self.folder / job.id / names[name]  # an absolute source stays what it is

    def submit(
        self,
        name: str,
        options: Mapping[str, Any],
        *,
        take: Callable[[Path], None] | None = None,
        source: Path | None = None,
        size: int = 0,
        container: str | None = None,
    ) -> Job:
        """Put a job at the end of the queue.

        Args:
            name: what the person calls the source.
            options: of ``v2v-run``, by their names in :class:`RunOptions`; None is as if it were not there.
            take: puts the source at the path that it is given.
            source: a file of this machine instead, which is read where it is.
            size: bytes that ``take`` will put there, as far as they are known.
            container: mp4, mkv or mov; None goes by the name.

        Raises:
            UsageError: the options cannot be read or contradict each other, or the source is no video.
            Refused: the queue is full, or there is no room.
        """
        name = shown_name(name)
        given = {key: value for key, value in options.items() if value not in (None, "")}
        result = f"result.{container_for(container, name, given)}"
        check_options(given, name, result)
        self.has_room(size)
        ending = Path(name).suffix.lower()
        job_id = secrets.token_hex(8)
        job = Job(
            job_id,
            name,
            str(source) if source else f"source{ending if _ENDING.fullmatch(ending) else ''}",
            result,
            given,
            time.time(),
        )
        place = self.folder / job_id
        place.mkdir()
        try:
            if take is not None:
                take(self.path_of(job, "source"))
            check_content(self.path_of(job, "source"), name)
            job.size = _size_of(place)
            if take is not None:
                sync(self.path_of(job, "source"))
            self._make_room(job.size)
            with self._changed:
                self._save(job)
                sync(self.folder)
                self._jobs[job.id] = job
                self._changed.notify_all()
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        return _copy(job)

    def cancel(self, job_id: str) -> Job:
        """End a job; what is finished of it is kept, and :meth:`resume` goes on with it.

        Raises:
            NoSuchJob: there is none.
            Conflict: it is over.
        """
        with self._changed:
            job = self._find(job_id)
            if job.state in OVER:
                raise Conflict(f"{job.name} is {job.state}: there is nothing to cancel")
            if job.state == "queued":
                self._end(job, "cancelled")
            else:
                self._cancelled.add(job_id)
                if (process := self._processes.get(job_id)) is not None:
                    _ask_to_end(process)
            return _copy(job)

    def resume(self, job_id: str) -> Job:
        """Put a job that failed or was cancelled into the queue again.

        Raises:
            NoSuchJob: there is none.
            Conflict: it is queued, running or done.
        """
        with self._changed:
            job = self._find(job_id)
            if job.state not in ("failed", "cancelled"):
                raise Conflict(f"{job.name} is {job.state}; what failed or was cancelled can be resumed")
            job.state, job.error, job.ended, job.starts = "queued", "", None, 0
            self._jobs[job_id] = self._jobs.pop(job_id)
            job.created = time.time()
            self._save(job)
            self._changed.notify_all()
            return _copy(job)

    def delete(self, job_id: str) -> None:
        """Remove a job that is not running, with its files.

        Raises:
            NoSuchJob: there is none.
            Conflict: it is running.
        """
        with self._changed:
            job = self._find(job_id)
            if job.state == "running":
                raise Conflict(f"{job.name} is running; cancel it first")
            self._remove(job)

    def close(self) -> None:
        """End the processes; what they were at is queued when the folder is opened again."""
        with self._changed:
            self._closed = True
            for job in self._jobs.values():
                if job.state == "running":
                    job.state, job.starts = "queued", job.starts - 1
                    self._save(job)
            for process in self._processes.values():
                _ask_to_end(process)
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(_PATIENCE)
        self._lock.release()

    # What is on the disk

    def _take_folder(self) -> filelock.BaseFileLock:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.folder / "lock")
            lock.acquire(timeout=0)
            shutil.rmtree(self.uploads, ignore_errors=True)
            self.uploads.mkdir()
        except filelock.Timeout:
            raise UsageError(
                f"--folder {self.folder}: another service works on these jobs; end it, or name another folder"
            ) from None
        except OSError as error:
            raise UsageError(f"--folder {self.folder}: {error.strerror}") from error
        return lock

    def _load(self) -> None:
        found = []
        for place in self.folder.iterdir():
            if not _ID.fullmatch(place.name) or place.is_symlink() or not place.is_dir():
                continue
            try:
                job = msgspec.json.decode(read_limited(place / "job.json", _LARGEST_JSON), type=Job)
            except FileNotFoundError:  # an upload that never ended, or a job that was being removed
                shutil.rmtree(place, ignore_errors=True)
                continue
            except (OSError, ValueError, msgspec.DecodeError):
                continue  # not ours to judge: it stays where it is
            if job.id == place.name:
                found.append(job)
        for job in sorted(found, key=lambda job: job.created):
            self._jobs[job.id] = job
            if job.state == "running":
                job.state = "queued"
                if job.starts >= _STARTS:
                    self._end(
                        job, "failed", f"it was begun {job.starts} times, and the service ended each time"
                    )

    def _save(self, job: Job) -> None:
        path = self.folder / job.id / "job.json"
        fresh = path.with_suffix(".part")
        fresh.write_bytes(msgspec.json.encode(job))
        sync(fresh)
        fresh.replace(path)
        sync(path.parent)

    def _remove(self, job: Job) -> None:
        place = self.folder / job.id
        (place / "job.json").unlink(missing_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        del self._jobs[job.id]

    def has_room(self, size: int) -> None:
        """Look before an upload whether it can be taken at all; nothing is removed for it yet.

        Raises:
            Refused: it cannot.
        """
        if size > self.limits.upload:
            raise Refused(f"the file has {gib(size)}; at most {gib(self.limits.upload)} are taken")
        with self._changed:
            going_on = [job for job in self._jobs.values() if job.state not in OVER]
        if sum(job.state == "queued" for job in going_on) >= self.limits.waiting:
            raise Refused(f"{self.limits.waiting} jobs are waiting already; try again later")
        if sum(job.size for job in going_on) + _size_of(self.uploads) + size > self.limits.disk:
            raise Refused(f"what waits fills the {gib(self.limits.disk)} of the service; try again later")

    def _make_room(self, size: int) -> None:
        """Remove the oldest jobs that are over, as many as must go for one of ``size`` more bytes."""
        with self._changed:
            total = sum(job.size for job in self._jobs.values()) + size
            for job in [job for job in self._jobs.values() if job.state in OVER]:
                if total <= self.limits.disk and len(self._jobs) < self.limits.kept:
                    return
                total -= job.size
                self._remove(job)

    # What is done

    def _find(self, job_id: str) -> Job:
        if (job := self._jobs.get(job_id)) is None:
            raise NoSuchJob("there is no such job; it may have been deleted")
        return job

    def _end(self, job: Job, state: State, error: str = "") -> None:
        job.state, job.error, job.ended, job.news = state, error, time.time(), ""
        job.size = _size_of(self.folder / job.id)
        self._save(job)
        self._changed.notify_all()

    def _work(self, lane: dict[str, str]) -> None:
        """What a thread does: one job after the other."""
        while True:
            with self._changed:
                while not self._closed and not any(job.state == "queued" for job in self._jobs.values()):
                    self._changed.wait()
                if self._closed:
                    return
                job = next(job for job in self._jobs.values() if job.state == "queued")
                job.state, job.started, job.error, job.warnings = "running", time.time(), "", []
                job.progress, job.starts = Progress(), job.starts + 1
            try:
                self._do(job, lane)
            except Exception as error:  # a full disk, say: the queue goes on
                with self._changed:
                    job.state, job.error = "failed", str(error)
                    with suppress(OSError):
                        self._end(job, "failed", str(error))

    def _do(self, job: Job, lane: dict[str, str]) -> None:
        with self.path_of(job, "log").open("wb") as log:
            with self._changed:
                self._save(job)
                if self._closed:
                    return
                process = self._processes[job.id] = subprocess.Popen(
                    [sys.executable, "-m", "v2v.apps.work", str(self.folder / job.id)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env={**os.environ, **lane, FIXED: json.dumps(self._fixed)},
                    start_new_session=True,  # Ctrl-C is for this process, which passes it on
                )
                if job.id in self._cancelled:
                    _ask_to_end(process)
            try:
                done = self._follow(job, process)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_PATIENCE)
            finally:
                process.kill()
                code = process.wait()
                with self._changed:
                    del self._processes[job.id]
        self._judge(job, done, code)

    def _judge(self, job: Job, done: bool, code: int) -> None:
        """What has become of a job whose process has ended."""
        with self._changed:
            cancelled = job.id in self._cancelled
            self._cancelled.discard(job.id)
            if done:
                self._end(job, "done")
            elif cancelled:
                self._end(job, "cancelled")
            elif code in _TOLD_TO_END and self._changed.wait_for(lambda: self._closed, _PATIENCE / 2):
                pass  # the whole service was told to end
            elif not self._closed:
                self._end(job, "failed", _error_in(self.path_of(job, "log")) or _manner_of_death(code))

    def _follow(self, job: Job, process: subprocess.Popen[bytes]) -> bool:
        """Take in what the process says until it ends; whether the job is done."""
        assert process.stdout is not None
        done = False
        with process.stdout as lines:
            while line := lines.readline(_LARGEST_JSON):
                try:
                    told = msgspec.json.decode(line, type=Told)
                except msgspec.DecodeError:
                    continue
                with self._changed:
                    job.warnings = told.warnings
                    job.news = told.news
                    job.progress = told.progress
                    if told.done:
                        done, job.frames, job.settings = True, told.frames, told.settings
        return done


def gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / (1 << 30):.3g} GiB"


def _ask_to_end(process: subprocess.Popen[bytes]) -> None:
    """Close what the process listens to: it ends as by Ctrl-C; a thread sees to it that it does."""
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.close()

    def insist() -> None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)
            return
        process.kill()

    threading.Thread(target=insist, daemon=True).start()


def _error_in(log: Path) -> str:
    """The last error that the process has told."""
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - _LOG_END, 0))
        lines = file.read().decode(errors="replace").splitlines()
    mark = "error: "
    return next((line[len(mark) :] for line in reversed(lines) if line.startswith(mark)), "")


def _manner_of_death(code: int) -> str:
    if code == -9:
        return "its process was killed, most likely for want of memory"
    return f"its process ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}"


def _size_of(place: Path) -> int:
    total = 0
    for path in place.rglob("*"):
        with suppress(FileNotFoundError):  # it has gone meanwhile
            total += path.lstat().st_size
    return total


def _copy(job: Job) -> Job:
    return msgspec.structs.replace(job)
