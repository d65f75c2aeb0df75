"""What a run has finished, kept beside its output until all is done: an interrupted film goes on where it stopped.

    film.mp4                the output, once it is complete
    .film.mp4.v2v/          beside it, while the run lasts
    ├── journal.json        every fact that decides the result: input, settings, engine set
    ├── 00000.mov           pictures of a finished segment, encoded
    ├── 00000.carry         what the next segment needs of it (safetensors)
    ├── 00000.json          sizes and SHA-256 of both; written last: a segment counts only with it
    ├── joined.part         the output while segments are joined
    ├── complete.json       what the output is known by, written before it gets its name
    └── lock                held by the process that works here

A segment's bytes depend on its frames, the facts and the carry alone, so a resumed run gives the same file.

Power may fail at any moment, so each thing is on the disk before the next one relies on it: a file's content before
its name, carry and pictures before their record, the joined film before ``complete.json``, that before the output's
name, and the output's name before the journal goes.

Nothing in the folder is trusted. A segment is taken over if its record names its place and the facts of this run, and
both files are what the record says; else it is made again. A JSON file holds the SHA-256 of its content. No link is
followed, and nothing is removed or replaced that has not the name and the kind of what a run puts here.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import warnings
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

import filelock
import msgspec
import numpy as np
import safetensors
import safetensors.numpy

from v2v.core.abort import removed_on_abort
from v2v.core.errors import V2VError
from v2v.core.files import NO_LINK, hidden_sibling, new_file, sync
from v2v.runtime.diffusion.segments import Carry
from v2v.runtime.films.task import EnhancedSegment
from v2v.runtime.media.encoding import EncodedSegment

_FACTS, _COMPLETE, _JOINED, _LOCK = "journal.json", "complete.json", "joined.part", "lock"
# Of every version: what an earlier one has left is removed too.
_OURS = re.compile(
    r"(?:journal\.json|complete\.json|\d{5,9}\.(?:mov|carry|json|npz))(?:\.part)?|joined\.part|lock", re.ASCII
)
_RECORD = re.compile(r"(\d{5,9})\.json", re.ASCII)
_UNVERIFIABLE = re.compile(r"\d{5,9}\.npz", re.ASCII)  # carries of versions that kept no digests
_LARGEST_JSON = 1 << 24  # bytes

T = TypeVar("T")


class JournalError(V2VError):
    """The journal of an earlier run does not fit this one; the message says which fact differs and what to do."""


class _StoredFile(msgspec.Struct, frozen=True):
    """A file as it was written."""

    bytes: int
    sha256: str


class _Record(msgspec.Struct, frozen=True):
    """A finished segment; ``order`` is that of :class:`EncodedSegment`."""

    segment: int
    facts: str
    pictures: _StoredFile
    carry: _StoredFile
    order: tuple[int, ...]


class FinishedRun(msgspec.Struct, frozen=True):
    """A run whose output has its name, but which was ended before it had cleared up."""

    frames: int
    facts: str  # :func:`digest_of` those that decided the result
    output: tuple[int, int]  # what the file or folder is known by


class _Sealed(msgspec.Struct, frozen=True):
    """How a JSON file is kept: a damaged one tells itself."""

    sha256: str
    content: msgspec.Raw


class _Damaged(Exception):
    """A file of the journal is not what was written; the message says how."""


class Journal:
    """The finished segments of one run; a context manager that holds the folder's lock.

    Left with the output complete (:meth:`discard`), or before anything was finished, the folder goes; otherwise it
    stays for the next run of the same command.

    Args:
        output: the file that the run makes.
        facts: name -> value of everything that decides the result.
        restart: throw away what an earlier run has left.

    Raises:
        JournalError: another process works on this output, an earlier run left a journal with other facts, or what is
            there was not made by a run.
    """

    def __init__(self, output: Path, facts: Mapping[str, str], *, restart: bool = False) -> None:
        self.output, self.facts = output, dict(facts)
        self.folder = journal_folder(output)
        self._digest = digest_of(facts)
        self._restart = restart
        self._finished: dict[int, _Record] = {}
        self._discarded = False
        self._lock = filelock.FileLock(self.folder / _LOCK)
        self._abort_cleanup = ExitStack()  # as long as nothing is finished, an abort leaves nothing behind

    def __enter__(self) -> Journal:
        try:
            with suppress(FileExistsError):
                self.folder.mkdir(mode=0o700)
            _check_folder(self.folder)
            sync(self.folder.parent)
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise JournalError(
                f"another run is writing {self.output}; wait for it, or choose another -o"
            ) from None
        except OSError as error:
            with suppress(OSError):
                self.folder.rmdir()  # if there is nothing in it
            raise JournalError(
                f"cannot write {self.output}: {error.strerror} in folder {self.output.parent}; "
                "choose another place with -o"
            ) from error
        try:
            self._begin()
        except BaseException:  # an earlier run's work, if there is some, must not be lost for it
            if any(map(_RECORD.fullmatch, _names(self.folder))):
                self._lock.release()
            else:
                self.discard()
            raise
        if not self._finished and len(_names(self.folder)) == len(os.listdir(self.folder)):  # noqa: PTH208
            self._abort_cleanup.enter_context(removed_on_abort(self.folder))
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if not self._finished:
                self.discard()
        finally:
            self._abort_cleanup.close()
            self._lock.release()

    def _begin(self) -> None:
        """Take over the segments that an earlier run has finished and that verify; remove the rest."""
        if self._restart:
            self._empty()
        if any(_UNVERIFIABLE.fullmatch(name) for name in _names(self.folder)):
            self._tell(
                "was begun by an earlier version of v2v, whose work cannot be verified: it is made again"
            )
            self._empty()
        names = _names(self.folder)
        records = [int(match[1]) for name in names if (match := _RECORD.fullmatch(name))]
        records = [index for index in records if _record(index) in names]  # one name each
        if records:
            self._compare_facts()
        for index in records:
            try:
                self._finished[index] = self._verified(index)
            except (_Damaged, OSError) as error:
                self._tell(
                    f"is unfinished, and what was kept of its segment {index} {error}: it is made again"
                )
        self._remove(*(name for name in _names(self.folder) if not self._belongs(name)))
        self._write(_FACTS, _sealed(self.facts))

    def _compare_facts(self) -> None:
        try:
            earlier = _read_json(self.folder / _FACTS, dict[str, str])
        except (_Damaged, OSError):
            return  # each segment's record tells whether it is of this run
        for name in sorted(self.facts.keys() | earlier.keys()):
            then, now = earlier.get(name), self.facts.get(name)
            if then != now:
                raise JournalError(
                    f"{self.output} is unfinished, and its {name} was {then} when it was begun, but is {now} now; "
                    "go on with what it was, or begin anew with --restart"
                )

    def _verified(self, index: int) -> _Record:
        record = _read_json(self.folder / _record(index), _Record)
        if (record.segment, record.facts) != (index, self._digest):
            raise _Damaged(f"is of another run or place ({_record(index)})")
        if sorted(record.order) != [*range(len(record.order))]:
            raise _Damaged(f"holds something else ({_record(index)})")
        for name, stored in ((_pictures(index), record.pictures), (_carry(index), record.carry)):
            with _opened(self.folder / name) as file:
                _check_size(file, stored, name)
                digest = hashlib.sha256()
                while block := file.read(1 << 20):
                    digest.update(block)
            if digest.hexdigest() != stored.sha256:
                raise _Damaged(f"is damaged ({name})")
        return record

    def _belongs(self, name: str) -> bool:
        """Whether a file of ours is of a segment that was taken over, or of no segment."""
        index = re.match(r"\d{5,9}(?=\.)", name, re.ASCII)
        of_this = index is not None and int(index[0]) in self._finished and not name.endswith(".part")
        return of_this or name in (_LOCK, _COMPLETE, _FACTS)

    def _tell(self, message: str) -> None:
        warnings.warn(f"{self.output} {message}", stacklevel=2)

    def _empty(self) -> None:
        """Remove everything of ours from the folder but the lock; what somebody else put there stays."""
        self._finished.clear()
        self._remove(*(name for name in _names(self.folder) if name not in (_LOCK, _COMPLETE)))

    def _remove(self, *names: str) -> None:
        for name in names:
            path = self.folder / name
            if name == _JOINED and path.is_dir():  # of pictures
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def look(self) -> int:
        """How many segments an earlier run has finished that this one would take over; changes nothing.

        Raises:
            JournalError: as on entering, for an earlier run of other facts.
        """
        if self._restart or not self.folder.is_dir():
            return 0
        _check_folder(self.folder)
        names = _names(self.folder)
        records = {int(match[1]) for name in names if (match := _RECORD.fullmatch(name))}
        if any(_UNVERIFIABLE.fullmatch(name) for name in names) or not records:
            return 0
        self._compare_facts()
        count = 0
        for index in records:
            with suppress(_Damaged, OSError):
                self._verified(index)
                count += 1
        return count

    def finished(self, index: int) -> bool:
        """Whether segment ``index`` is done."""
        return index in self._finished

    def finish(self, index: int, segment: EnhancedSegment) -> None:
        """Keep what was made of segment ``index``."""
        tensors = {"latents": segment.carry.latents, "ahead": segment.carry.ahead}
        if segment.carry.source is not None:
            tensors["source"] = segment.carry.source
        carry = safetensors.numpy.save(tensors)
        stored = {}
        for name, content in ((_carry(index), carry), (_pictures(index), segment.pictures)):
            self._write(name, content)
            stored[name] = _StoredFile(len(content), hashlib.sha256(content).hexdigest())
        record = _Record(index, self._digest, stored[_pictures(index)], stored[_carry(index)], segment.order)
        self._abort_cleanup.close()
        self._write(_record(index), _sealed(record))
        self._finished[index] = record

    def carry(self, index: int) -> Carry:
        """What the finished segment ``index`` hands to the next.

        Raises:
            JournalError: it was damaged while the run lasted.
        """
        stored = self._finished[index].carry
        try:
            with _opened(self.folder / _carry(index)) as file:
                _check_size(file, stored, _carry(index))
                content = file.read()
            if hashlib.sha256(content).hexdigest() != stored.sha256:
                raise _Damaged(f"is damaged ({_carry(index)})")
            tensors = safetensors.numpy.load(content)
            latents, ahead, source = tensors["latents"], tensors["ahead"], tensors.get("source")
            if any(each.ndim != 4 or each.dtype != np.float32 for each in tensors.values()):
                raise _Damaged(f"holds something else ({_carry(index)})")
        except (_Damaged, OSError, KeyError, safetensors.SafetensorError) as error:
            raise self._damage(index, error) from error
        return Carry(latents, ahead, source)

    def segments(self) -> list[EncodedSegment]:
        """All finished segments, as far as they follow one another from the first.

        Raises:
            JournalError: one was damaged while the run lasted.
        """
        encoded: list[EncodedSegment] = []
        while (index := len(encoded)) in self._finished:
            try:
                record = self._verified(index)
            except (_Damaged, OSError) as error:
                raise self._damage(index, error) from error
            encoded.append(EncodedSegment(self.folder / _pictures(index), record.order))
        return encoded

    def _damage(self, index: int, error: Exception) -> JournalError:
        return JournalError(
            f"{self.folder}: what was kept of segment {index} {error}; run the command again, which makes it anew"
        )

    @property
    def joined(self) -> Path:
        """Where the output lies, a file or a folder, until it gets its name."""
        return self.folder / _JOINED

    def complete(self, frames: int) -> None:
        """:attr:`joined` is whole and on the disk, and will get its name now: see :func:`finished_run`."""
        self._write(_COMPLETE, _sealed(FinishedRun(frames, self._digest, _identity(self.joined))))

    def discard(self) -> None:
        """Remove the journal: the output is complete, or nothing worth keeping was made."""
        if self._discarded:
            return
        self._discarded = True
        self._empty()
        self._lock.release()
        with suppress(OSError):
            (self.folder / _LOCK).unlink(missing_ok=True)
            (self.folder / _COMPLETE).unlink(
                missing_ok=True
            )  # last: until then the next run knows what to do
            self.folder.rmdir()

    def _write(self, name: str, content: bytes) -> None:
        partial = self.folder / f"{name}.part"
        partial.unlink(missing_ok=True)
        # New, so that it is a file, whatever anybody puts there at this moment.
        with os.fdopen(new_file(partial), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.folder / name)
        sync(self.folder)


def finished_run(output: Path) -> FinishedRun | None:
    """The run that was ended when ``output`` had its name already, or None if there was no such run."""
    try:
        run = _read_json(journal_folder(output) / _COMPLETE, FinishedRun)
        return run if run.output == _identity(output) else None
    except (_Damaged, OSError):
        return None


def sweep(output: Path) -> None:
    """Remove the folder of a run that was ended between the last two steps of clearing up: nothing is left in it."""
    with suppress(OSError):
        journal_folder(output).rmdir()


def clear_up(output: Path) -> None:
    """Remove what a :func:`finished_run` has left.

    Raises:
        JournalError: it has not ended, but is about to.
    """
    with Journal(output, {}, restart=True) as journal:
        journal.discard()


def journal_folder(output: Path) -> Path:
    """Where the work on ``output`` is kept until it is complete."""
    return hidden_sibling(output, ".v2v")


def digest_of(facts: Mapping[str, str]) -> str:
    """SHA-256 over all of ``facts``."""
    return hashlib.sha256(msgspec.json.encode(sorted(facts.items()))).hexdigest()


def _record(index: int) -> str:
    return f"{index:05d}.json"


def _pictures(index: int) -> str:
    return f"{index:05d}.mov"


def _carry(index: int) -> str:
    return f"{index:05d}.carry"


def _names(folder: Path) -> list[str]:
    """What is in ``folder`` under a name of ours."""
    return sorted(name for name in os.listdir(folder) if _OURS.fullmatch(name))  # noqa: PTH208 (names alone)


def _check_folder(folder: Path) -> None:
    """Refuse a folder that no run has made, or in which something has a name of ours and is of another kind."""
    expected = {_JOINED: (stat.S_ISREG, stat.S_ISDIR)}
    if not stat.S_ISDIR(folder.lstat().st_mode):
        raise JournalError(f"{folder} is in the way, and not a folder that a run has made; move it away")
    for name in _names(folder):
        mode = (folder / name).lstat().st_mode
        if not any(is_kind(mode) for is_kind in expected.get(name, (stat.S_ISREG,))):
            kind = "a link" if stat.S_ISLNK(mode) else "no file"
            raise JournalError(f"{folder / name} is {kind}, which no run puts there; move it away")


_NO_WAIT = getattr(os, "O_NONBLOCK", 0)


def _opened(path: Path) -> BinaryIO:
    """A regular file, opened without following a link or waiting for a pipe."""
    try:
        handle = os.open(path, os.O_RDONLY | NO_LINK | _NO_WAIT)
    except FileNotFoundError:
        raise _Damaged(f"is gone ({path.name})") from None
    file = os.fdopen(handle, "rb")
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        file.close()
        raise _Damaged(f"is no file ({path.name})")
    return file


def _check_size(file: BinaryIO, stored: _StoredFile, name: str) -> None:
    if (size := os.fstat(file.fileno()).st_size) != stored.bytes:
        raise _Damaged(f"has {size} bytes instead of {stored.bytes} ({name})")


def _sealed(content: object) -> bytes:
    raw = msgspec.json.format(msgspec.json.encode(content), indent=2)
    return msgspec.json.encode(_Sealed(hashlib.sha256(raw).hexdigest(), msgspec.Raw(raw)))


def _read_json(path: Path, kind: type[T]) -> T:
    with _opened(path) as file:
        content = file.read(_LARGEST_JSON)
    try:
        sealed = msgspec.json.decode(content, type=_Sealed)
        if hashlib.sha256(sealed.content).hexdigest() != sealed.sha256:
            raise _Damaged(f"is damaged ({path.name})")
        return msgspec.json.decode(sealed.content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _Damaged(f"is damaged ({path.name})") from error


def _identity(path: Path) -> tuple[int, int]:
    """What a file or folder keeps when it gets another name."""
    facts = path.stat()
    return facts.st_ino, facts.st_mtime_ns
