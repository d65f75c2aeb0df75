"""A whole film from file to file: segment by segment, each kept when it is done, joined at the end.

Decoding, the engines and encoding are at work at once: while one segment is denoised, the frames of the next are read
and the pictures of the one before encoded. However long the film, what waits between them is bounded, and memory holds
one segment more, or with several workers a bounded number. However the run ends, the
same command goes on with what is not finished and gives the same bytes as a run that was never disturbed.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from v2v.engine.backend import Engines
from v2v.engine.choose import Unbuilt
from v2v.runtime.background import ahead
from v2v.runtime.diffusion.estimate import FilmWork, film_work
from v2v.runtime.diffusion.progress import Progress, Report
from v2v.runtime.diffusion.segments import Carry, Segment, segments
from v2v.runtime.diffusion.settings import Plan
from v2v.runtime.films.journal import Journal
from v2v.runtime.films.observed import Observed, SegmentSeen
from v2v.runtime.films.pool import Team
from v2v.runtime.films.task import EnhancedSegment, Task
from v2v.runtime.media import image_sequence as folders
from v2v.runtime.media.encoding import Encoding
from v2v.runtime.media.image_sequence import FolderWriter
from v2v.runtime.media.muxing import writing
from v2v.runtime.media.reader import VideoInfo, VideoReader
from v2v.runtime.media.stream_plan import StreamPlan
from v2v.runtime.media.timestamps import Timestamp, Timestamps
from v2v.runtime.media.writer import VideoWriter

# Bytes of decoded frames that wait for the engines, and the least and the most frames.
_AHEAD, _FRAMES_AHEAD = 256 << 20, (8, 256)
# Evaluations of the UNet, of which one more is a small price for knowing how long they will take.
_WORTH_A_REHEARSAL = 8
_LONG = 1 << 12  # frames: a film of many segments


@dataclass(frozen=True)
class Target:
    """Where a film goes and how it is written there."""

    path: Path
    encoding: Encoding
    described: Mapping[str, Any]  # all that decides what it shows, by name: its comment
    overwrite: bool = False
    restart: bool = False  # do not go on with what an earlier run has left
    streams: StreamPlan | None = None  # of all but the pictures; None: decided when it is written


def enhance_film(
    team: Team,
    reader: VideoReader,
    target: Target,
    plan: Plan,
    progress: Callable[[Progress], None] = lambda now: None,
    afterwards: Callable[[int], None] = lambda frames: None,
    observed: Observed | None = None,
) -> int:
    """Enhance what ``reader`` gives into ``target``; returns the number of frames.

    ``afterwards`` is called with it when the film is there; if the run is ended before that is done, the journal tells
    the next run (:func:`v2v.runtime.films.journal.finished_run`). ``observed`` is filled with what happens.

    Raises:
        MediaError: the output cannot be written.
        JournalError: an earlier run of other settings left its work beside the output.
        NumericalError: a latent or a picture became NaN or Inf.
        WorkerError: no worker is left.
    """
    observed = observed or Observed()
    stamps = Timestamps()
    with (
        writing(target.path),
        Journal(target.path, journal_facts(reader.path, target.described), restart=target.restart) as journal,
    ):
        enhance_segments(team, reader, plan, target.encoding, journal, stamps.append, progress, observed)
        observed.report.begin_writing()
        with _writer(target, reader, journal, len(stamps), parity=plan.parity) as writer:
            writer.join(journal.segments(), stamps)
        observed.report.end_writing()
        afterwards(len(stamps))
        journal.discard()
    return len(stamps)


class Keeper(Protocol):
    """Whoever keeps finished segments."""

    def finished(self, index: int) -> bool:
        """Whether segment ``index`` is done."""

    def finish(self, index: int, segment: EnhancedSegment) -> None:
        """Keep what was made of segment ``index``."""

    def carry(self, index: int) -> Carry:
        """What the finished segment ``index`` hands to the next."""


def enhance_segments(
    team: Team,
    reader: VideoReader,
    plan: Plan,
    encoding: Encoding,
    keeper: Keeper,
    show_at: Callable[[Timestamp], None],
    progress: Callable[[Progress], None] = lambda now: None,
    observed: Observed | None = None,
) -> int:
    """Enhance what ``reader`` gives, segment by segment, for ``keeper``; returns the number of frames.

    ``show_at`` is called with each frame's time, in order, before its segment is begun. ``observed`` is filled with
    what happens.
    """
    observed = observed or Observed()
    _foresee(team, reader, plan, progress, observed)
    count = 0
    with (
        closing(ahead(reader.frames(), frames_ahead(reader.info), reader.stop)) as frames,
        _Chains(
            team, keeper, plan, encoding, observed, preview=reader.time_range.preview is not None
        ) as chains,
    ):
        for segment in segments(
            team.engines.window,
            frames,
            reader.cuts,
            whole=plan.parity,
            most=most_frames(plan, team.engines),
            first_number=reader.first_number,
            multiple=plan.between,
        ):
            for _ in segment.frames:
                show_at(reader.timestamps.popleft())
            count += len(segment.frames)
            made_earlier = keeper.finished(segment.index)
            observed.segments.append(SegmentSeen.of(segment, made_earlier=made_earlier))
            if made_earlier:
                chains.skip(segment)
            else:
                chains.add(segment)
        chains.finish()
    return count


def _foresee(
    team: Team,
    reader: VideoReader,
    plan: Plan,
    progress: Callable[[Progress], None],
    observed: Observed,
) -> None:
    """Begin the report: with the work that is to come and what it costs, by a rehearsal or an earlier run."""
    frames, film = frames_of(reader.info, plan, team.engines), work_on(reader.info, plan, team.engines)
    observed.report = Report(progress, frames, reader.first_number)
    worth = observed.rehearse and frames is not None and film.whole.denoise >= _WORTH_A_REHEARSAL
    costs = team.rehearse(plan) if worth else None
    observed.report.foresee(film, costs or observed.earlier, earlier=costs is None)


def work_on(source: VideoInfo, plan: Plan, engines: Engines | Unbuilt) -> FilmWork:
    """The work on a film, a long one where its source does not say how many frames it has."""
    frames = frames_of(source, plan, engines) or _LONG
    return film_work(plan, engines.model, engines.window, frame_bytes(source), frames)


def frames_of(source: VideoInfo, plan: Plan, engines: Engines | Unbuilt) -> int | None:
    """How many frames of a film are enhanced; None where its source does not say how many it has."""
    frames, most = source.frames, most_frames(plan, engines)
    return (frames if most is None else min(frames or most, most)) or None


def most_frames(plan: Plan, engines: Engines | Unbuilt) -> int | None:
    """How many frames are read at most, where parity says so."""
    return engines.model.parity.frames if plan.parity else None


def frame_bytes(source: VideoInfo) -> int:
    """Of a decoded frame."""
    return source.height * source.width * 3 * (2 if source.depth > 8 else 1)


def frames_ahead(source: VideoInfo) -> int:
    """How many frames are decoded while the engines are at work: a whole segment of small ones, a few large ones."""
    least, most = _FRAMES_AHEAD
    return min(max(_AHEAD // frame_bytes(source), least), most)


@dataclass(frozen=True)
class _AtWork:
    """A segment that was handed to the team."""

    index: int
    frames: int
    room: int  # bytes of frames that it takes
    done: Future[EnhancedSegment]
    encoding: bool  # all that is left to do


class _Chains:
    """Hands segments to a team, each once the segment that it continues is finished, and the results to a keeper.

    On an exception it cancels the segments that have not begun; those that only have to be encoded it finishes.
    """

    def __init__(
        self,
        team: Team,
        keeper: Keeper,
        plan: Plan,
        encoding: Encoding,
        observed: Observed,
        *,
        preview: bool = False,
    ) -> None:
        self._team, self._keeper, self._preview = team, keeper, preview
        self._plan, self._encoding = plan, encoding
        self._observed, self._report = observed, observed.report
        self._at_work: dict[Future[None], _AtWork] = {}  # by when it is in the journal
        self._waiting: dict[int, Segment] = {}  # for the segment before them
        self._carries: dict[int, Carry] = {}  # of the last segment, if it is not in the journal yet
        self._frames_done = 0
        self._keeping = threading.Lock()
        self._ended = False

    def __enter__(self) -> _Chains:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for work in self._at_work.values():
                if not work.encoding:
                    work.done.cancel()
            wait(journaled for journaled, work in self._at_work.items() if work.encoding)
        finally:
            with self._keeping:
                self._ended = True
            unused = (
                *(work.room for work in self._at_work.values()),
                *map(_bytes_of, self._waiting.values()),
            )
            self._team.room.take(-sum(unused))

    def skip(self, segment: Segment) -> None:
        """A segment that an earlier run has finished."""
        self._frames_done += len(segment.frames)
        self._report.skip(len(segment.frames))

    def add(self, segment: Segment) -> None:
        """Take one more segment; returns when there is room for the next."""
        self._team.room.take(_bytes_of(segment))
        before = segment.index - 1
        if segment.continues and before not in self._carries and not self._keeper.finished(before):
            self._waiting[segment.index] = segment
        else:
            self._start(segment)
        self._go_on(wait(self._at_work, timeout=0).done)
        while self._team.room.full and self._at_work:
            self._go_on(wait(self._at_work, return_when=FIRST_COMPLETED).done)

    def finish(self) -> None:
        """Wait for all that was added."""
        while self._at_work:
            self._go_on(wait(self._at_work, return_when=FIRST_COMPLETED).done)

    def _start(self, segment: Segment) -> None:
        carry = None
        if segment.continues:
            carry = self._carries.get(segment.index - 1) or self._keeper.carry(segment.index - 1)
        task = Task(segment, carry, self._plan, self._encoding, self._preview, self._observed.measures)
        job = self._team.submit(task, self._report)
        waiting_bytes = _bytes_of(segment)
        if job.carry is not None:  # its frames are not needed any more
            self._carries = {segment.index: job.carry}
            self._team.room.take(-waiting_bytes)
            waiting_bytes = 0
        index, journaled = segment.index, Future[None]()  # the segment itself must not be held
        job.done.add_done_callback(lambda future: self._keep(index, future, journaled))
        self._at_work[journaled] = _AtWork(
            index, len(segment.frames), waiting_bytes, job.done, job.carry is not None
        )

    def _keep(self, index: int, future: Future[EnhancedSegment], journaled: Future[None]) -> None:
        """Put a finished segment into the journal, in whatever thread finished it."""
        with self._keeping:  # so that the first to fail is known before those behind it
            try:
                if not self._ended:
                    self._keeper.finish(index, enhanced := future.result())
                    if enhanced.looks is not None:
                        self._observed.looks[index] = enhanced.looks
            except BaseException as error:  # whatever it is belongs to the thread that waits
                journaled.set_exception(error)
            else:
                journaled.set_result(None)

    def _go_on(self, finished: Iterable[Future[None]]) -> None:
        """Count segments that are kept, and start those that waited for them; raises what went wrong first."""
        for journaled in sorted(finished, key=lambda each: self._at_work[each].index):
            journaled.result()
            work = self._at_work.pop(journaled)
            self._team.room.take(-work.room)
            self._frames_done += work.frames
            self._report.finished(work.index, self._frames_done)
            if (following := self._waiting.pop(work.index + 1, None)) is not None:
                self._start(following)


def _bytes_of(segment: Segment) -> int:
    return sum(frame.nbytes for frame in segment.frames)


def _writer(
    target: Target, reader: VideoReader, journal: Journal, frames: int, *, parity: bool
) -> VideoWriter | FolderWriter:
    note = json.dumps(target.described)

    def complete() -> None:
        journal.complete(frames)

    if target.encoding.makes_folder:
        return FolderWriter(
            target.path,
            reader.path,
            note,
            reader.info.profile,
            partial=journal.joined,
            complete=complete,
        )
    return VideoWriter(
        target.path,
        reader,
        overwrite=target.overwrite,
        note=note,
        encoding=target.encoding,
        parity=parity,
        partial=journal.joined,
        complete=complete,
        streams=target.streams,
    )


# What the description calls otherwise than a flag.
_NAMES = {"made_with": "version of v2v", "engines": "engine set", "model": "model", "weights": "weights"}


def journal_facts(source: Path, described: Mapping[str, Any]) -> dict[str, str]:
    """The same by the names of flags, and the source's fingerprint: what a journal is held against."""
    flags = {_NAMES.get(name, f"--{name.replace('_', '-')}"): str(value) for name, value in described.items()}
    facts = {"input": fingerprint(source), **flags}
    return {name: value.encode("utf-8", "backslashreplace").decode() for name, value in facts.items()}


def fingerprint(path: Path) -> str:
    """Size and digest of a file's beginning and end: enough to notice another file without reading all of it."""
    if path.is_dir():
        return folders.fingerprint(path)
    block = 1 << 20
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(block))
        file.seek(max(size - block, 0))
        digest.update(file.read(block))
    return f"{path.name}, {size} bytes, sha256 {digest.hexdigest()[:16]}"
