"""One segment's work: enhance it, encode it."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from v2v.core.errors import V2VError
from v2v.device import Frame
from v2v.runtime.background import Behind
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.diffusion.progress import Report
from v2v.runtime.diffusion.segments import Carry, Segment
from v2v.runtime.diffusion.settings import Plan
from v2v.runtime.films.looks import BothLooks
from v2v.runtime.films.preview import side_by_side
from v2v.runtime.media.encoding import Encoding, EncodingError, SegmentEncoder
from v2v.runtime.media.errors import FFmpegError

ENCODER_BYTES = 256 << 20  # bytes of enhanced frames that wait for the encoder


class WorkerError(V2VError):
    """Workers cannot be started, or keep ending; the message says which and why."""


@dataclass(frozen=True)
class Task:
    """A segment to enhance and all that its bytes depend on, apart from the engine set."""

    segment: Segment
    carry: Carry | None  # of the segment before, if this one continues its shot
    plan: Plan
    encoding: Encoding
    preview: bool = False  # the source beside each picture
    measured: bool = False  # how the frames look before and after is wanted too


@dataclass(frozen=True)
class EnhancedSegment:
    """A segment's enhanced pictures, encoded, and what the next segment needs of it.

    ``order`` is that of :class:`v2v.runtime.media.encoding.EncodedSegment`.
    """

    pictures: bytes
    order: tuple[int, ...]
    carry: Carry
    looks: BothLooks | None = None  # of its frames, if wanted


@dataclass(frozen=True)
class SegmentJob:
    """A segment that somebody enhances.

    ``carry`` is there where its pictures are finished and only their encoding may still be under way: the next
    segment need not wait for that.
    """

    done: Future[EnhancedSegment]
    carry: Carry | None = None


def enhance_task(v2v: VideoToVideo, task: Task, report: Report | None = None) -> EnhancedSegment:
    """Do the work; ``report`` is told of every picture.

    Raises:
        NumericalError: a latent or a picture became NaN or Inf.
        EncodingError: this machine cannot encode as asked.
    """
    with Behind(ENCODER_BYTES) as encoders:
        return begin_task(v2v, task, encoders, report).done.result()


def begin_task(v2v: VideoToVideo, task: Task, encoders: Behind, report: Report | None = None) -> SegmentJob:
    """Do the work but for the encoding, which is handed over to ``encoders``.

    Raises:
        NumericalError: a latent or a picture became NaN or Inf.
        EncodingError: this machine cannot encode as asked, if that is known already; else it comes with the job.
    """
    report = report or Report()
    pictures, carry = v2v.enhance(task.segment, task.plan, task.carry, report)
    encoder = _Encoder(task.encoding, encoders, report)
    looks = BothLooks() if task.measured else None
    try:
        for frame, picture in zip(task.segment.frames, pictures, strict=True):
            if looks is not None:
                looks.add(frame, picture)
            encoder.write(side_by_side(frame, picture) if task.preview else picture)
            report.frames_done += 1
    except BaseException:
        encoder.abort()
        raise
    return SegmentJob(encoder.finish(carry, looks), carry)


class _Encoder:
    """Encodes a segment in the thread of a :class:`Behind`."""

    def __init__(self, encoding: Encoding, thread: Behind, report: Report) -> None:
        self._codec, self._thread, self._report = encoding.codec, thread, report
        self._file, self._opened = io.BytesIO(), ExitStack()
        self._encoder = self._opened.enter_context(SegmentEncoder(self._file, encoding))
        self._failure: Exception | None = None

    def write(self, picture: Frame) -> None:
        """Hand over the next picture; what went wrong with one before is raised here."""
        if self._failure is not None:
            raise self._failure
        self._thread.hand_over(partial(self._try, partial(self._write, picture)), picture.nbytes)

    def _write(self, picture: Frame) -> None:
        started = time.monotonic()
        self._encoder.write(picture)
        self._report.encoded(1, time.monotonic() - started)

    def finish(self, carry: Carry, looks: BothLooks | None) -> Future[EnhancedSegment]:
        """Hand over the end."""

        def work() -> EnhancedSegment:
            self._try(self._opened.close)
            if self._failure is not None:
                raise self._failure
            return EnhancedSegment(self._file.getvalue(), self._encoder.order, carry, looks)

        return self._thread.hand_over(work)

    def abort(self) -> None:
        """Nothing more will come, and what is there is not wanted."""
        stopped = self._failure = WorkerError("the run was stopped")
        self._thread.hand_over(partial(self._opened.__exit__, WorkerError, stopped, None))

    def _try(self, work: Callable[[], None]) -> None:
        if self._failure is not None:
            return
        try:
            work()
        except FFmpegError as error:  # in memory, where no disk can be full
            self._failure = EncodingError(
                f"--codec {self._codec}: its encoder does not work on this machine ({error.strerror}); "
                "choose another codec"
            )
            self._failure.__cause__ = error
        except Exception as error:
            self._failure = error
