"""What a run has finished, kept beside its output until all is done: an interrupted film goes on where it stopped.

    film.mp4                the output, once it is complete
    .film.mp4.v2v/          beside it, while the run lasts
    ├── journal.json        every fact that decides the result: input, settings, engine set
    ├── 00000.mov           pictures of a finished segment, encoded
    ├── 00000.npz           what the next segment needs of it; written first: the pictures count only with it
    ├── joined.part         the output while segments are joined
    ├── complete.json       what the output will be known by, written before it gets its name
    └── lock                held by the process that works here

A segment's bytes depend on its frames, the facts and the carry alone, so a resumed run gives the same file.

Power may fail at any moment, so each thing is on the disk before the next one relies on it: a file's content before
its name, the carry before the pictures, the joined film before ``complete.json``, that before the output's name, and
the output's name before the journal goes.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from v2v.core.abort import removed_on_abort
from v2v.core.errors import V2VError
from v2v.core.files import sync
from v2v.runtime.diffusion.segments import Carry
from v2v.runtime.films.task import Done
from v2v.runtime.media.encoding import EncodedSegment

_FACTS = "journal.json"
_COMPLETE = "complete.json"


class JournalError(V2VError):
    """The journal of an earlier run does not fit this one; the message says which fact differs and what to do."""


class Journal:
    """The finished segments of one run; a context manager that holds the folder's lock.

    Left with the output complete (:meth:`discard`), or before anything was finished, the folder goes; otherwise it
    stays for the next run of the same command.

    Args:
        output: the file that the run makes.
        facts: name -> value of everything that decides the result.
        restart: throw away what an earlier run has left.

    Raises:
        JournalError: another process works on this output, or an earlier run left a journal with other facts.
    """

    def __init__(self, output: Path, facts: dict[str, str], *, restart: bool = False) -> None:
        self.output, self.facts = output, facts
        self.folder = _folder(output)
        self._restart = restart
        self._lock = filelock.FileLock(self.folder / "lock")
        self._worthless = ExitStack()  # as long as nothing is finished, an abort leaves nothing behind

    def __enter__(self) -> Journal:
        try:
            self.folder.mkdir(exist_ok=True)
            sync(self.folder.parent)
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise JournalError(
                f"another run is writing {self.output}; wait for it, or choose another -o"
            ) from None
        except OSError as error:
            raise JournalError(
                f"cannot write {self.output}: {error.strerror} in folder {self.output.parent}; "
                "choose another place with -o"
            ) from error
        try:
            self._begin()
        except JournalError:  # an earlier run's work, which is not ours to remove
            self._lock.release()
            raise
        except BaseException:
            self.discard()
            raise
        if not self._anything_finished():
            self._worthless.enter_context(removed_on_abort(self.folder))
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if not self._anything_finished():
                self.discard()
        finally:
            self._worthless.close()
            self._lock.release()

    def _begin(self) -> None:
        if self._restart:
            self._empty()
        written = _read(self.folder / _FACTS)
        if written is None or not self._anything_finished():
            self._empty()
            self._write(_FACTS, json.dumps(self.facts, indent=2).encode())
            return
        for name in sorted(self.facts.keys() | written.keys()):
            then, now = written.get(name), self.facts.get(name)
            if then != now:
                raise JournalError(
                    f"{self.output} is unfinished, and its {name} was {then} when it was begun, but is {now} now; "
                    "go on with what it was, or begin anew with --restart"
                )

    def _empty(self) -> None:
        """Remove everything of ours from the folder; what somebody else put there stays."""
        for pattern in ("*.mov", "*.npz", "*.part", _FACTS):
            for path in self.folder.glob(pattern):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)

    def _anything_finished(self) -> bool:
        return any(self.finished(int(file.stem)) for file in self.folder.glob("[0-9]*.mov"))

    def finished(self, index: int) -> bool:
        """Whether segment ``index`` is done."""
        return self.pictures(index).exists() and self._carry(index).exists()

    def pictures(self, index: int) -> Path:
        """The file with the encoded pictures of segment ``index``."""
        return self.folder / f"{index:05d}.mov"

    def finish(self, index: int, done: Done) -> None:
        """Keep what was made of segment ``index``."""
        with (self.folder / f"{index:05d}.npz.part").open("wb") as file:
            np.savez(file, latents=done.carry.latents, ahead=done.carry.ahead, order=np.array(done.order))
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(self._carry(index))
        self._worthless.close()
        self._write(self.pictures(index).name, done.pictures)

    def carry(self, index: int) -> Carry:
        """What the finished segment ``index`` hands to the next."""
        with np.load(self._carry(index)) as stored:
            return Carry(stored["latents"], stored["ahead"])

    def segments(self) -> list[EncodedSegment]:
        """All finished segments, as far as they follow one another from the first."""
        found: list[EncodedSegment] = []
        while self.finished(len(found)):
            with np.load(self._carry(len(found))) as stored:
                order = tuple(int(picture) for picture in stored["order"])
            found.append(EncodedSegment(self.pictures(len(found)), order))
        return found

    @property
    def joined(self) -> Path:
        """Where the output lies, a file or a folder, until it gets its name."""
        return self.folder / "joined.part"

    def complete(self, frames: int) -> None:
        """:attr:`joined` is whole and on the disk, and will get its name now: if the run ends, :func:`settle` knows."""
        self._write(_COMPLETE, json.dumps({"frames": frames, "output": _identity(self.joined)}).encode())

    def discard(self) -> None:
        """Remove the journal: the output is complete, or nothing worth keeping was made."""
        self._empty()
        self._lock.release()
        with suppress(OSError):
            (self.folder / "lock").unlink(missing_ok=True)
            (self.folder / _COMPLETE).unlink(
                missing_ok=True
            )  # last: until then the next run knows what to do
            self.folder.rmdir()

    def _carry(self, index: int) -> Path:
        return self.folder / f"{index:05d}.npz"

    def _write(self, name: str, content: bytes) -> None:
        partial = self.folder / f"{name}.part"
        partial.write_bytes(content)
        sync(partial)
        partial.replace(self.folder / name)
        sync(self.folder)


def settle(output: Path) -> int | None:
    """Clear up after a run that was ended when its output had its name already; returns its number of frames.

    None if there was no such run.

    Raises:
        JournalError: the run has not ended, but is about to.
    """
    told = _read(_folder(output) / _COMPLETE)
    if told is None or not output.exists() or told.get("output") != _identity(output):
        return None
    with Journal(output, _read(_folder(output) / _FACTS) or {}) as journal:
        journal.discard()
    return int(told["frames"])


def _folder(output: Path) -> Path:
    return output.with_name(f".{output.name}.v2v")


def _read(file: Path) -> dict[str, Any] | None:
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None


def _identity(path: Path) -> list[int]:
    """What a file or folder keeps when it gets another name."""
    found = path.stat()
    return [found.st_ino, found.st_mtime_ns]
