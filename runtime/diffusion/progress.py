"""The progress of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from v2v.runtime.diffusion.estimate import KINDS, Estimate, FilmWork, Kind, Work
from v2v.runtime.diffusion.segments import Segment


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    ``step`` of ``steps`` counts frames while encoding and decoding, evaluations while denoising. Where other processes
    do the work, only finished segments are reported: stage "finish", frames done of all.
    """

    stage: Literal["encode", "denoise", "decode", "finish"]
    segment: int
    step: int
    steps: int
    frames_done: int  # frames given out
    frames_total: int | None
    fraction: float | None  # of the whole run, 0..1, where the total is known
    seconds: float  # since the run began
    seconds_left: float | None = None  # as far as can be told
    is_measured: bool = False  # whether every kind of work that is left was measured, or is a usual share


@dataclass(frozen=True)
class Step:
    """What a segment has become after a step.

    Attributes:
        segment: its number.
        first: number of the film's frame that the first of the latents belongs to; frames that an earlier segment has
            finished, and frames of the next one, are among them.
        step: how many steps were taken, of ``steps``.
        sigma: the noise-to-signal ratio that this step began at.
        latents: the clean latents as the network sees them now, ``[T, 4, h, w]``, FP32, scaled.
    """

    segment: int
    first: int
    step: int
    steps: int
    sigma: float
    latents: npt.NDArray[np.float32]


# Shares of a segment of its frames that count as done.
_STAGES = {"encode": (0.0, 0.1), "denoise": (0.1, 0.7), "decode": (0.8, 0.2)}


@dataclass(frozen=True)
class Span:
    """A stretch of time that a run spent on one stage of a segment, in seconds since the run began."""

    stage: str
    segment: int
    begin: float
    end: float


class Report:
    """Turns the steps of the stages into :class:`Progress`, for ``total`` frames in all, from ``first_number`` on.

    ``clock`` gives seconds.
    """

    def __init__(
        self,
        progress: Callable[[Progress], None] = lambda now: None,
        total: int | None = None,
        first_number: int = 0,
        on_step: Callable[[Step], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._progress, self._total, self._first = progress, total, first_number
        self.on_step = on_step
        self._clock = clock
        self._began = clock()
        self.frames_done = 0
        self.spans: list[Span] = []
        self._now = Progress("encode", 0, 0, 1, 0, total, None, 0.0)
        self._left = _Left(clock)

    def foresee(self, film: FilmWork, costs: Work | None = None, *, earlier: bool = False) -> None:
        """The film's work is about ``film``, and a unit of it took ``costs``, just now or in an ``earlier`` run."""
        self._left = _Left(self._clock, Estimate(costs, earlier=earlier), film)

    @property
    def costs(self) -> Work | None:
        """Seconds of a unit of each kind of work in this run, if each was done."""
        return self._left.estimate.costs()

    def begin(
        self,
        stage: Literal["encode", "denoise", "decode"],
        segment: Segment,
        steps: int,
        evaluations: Sequence[int] | None = None,
    ) -> None:
        """A stage of ``steps`` begins; ``evaluations`` of the UNet are finished after each step."""
        self._segment = segment
        self._now = replace(self._now, stage=stage, segment=segment.index, steps=steps)
        self._left.begin(stage, len(segment.frames), evaluations or range(1, steps + 1))
        now = self._seconds()
        if stage == "encode":  # the time since the segment before went into waiting for frames
            self.spans.append(Span("read", segment.index, self.spans[-1].end if self.spans else 0.0, now))
        self.spans.append(Span(stage, segment.index, now, now))
        self.step(0)

    def step(self, step: int) -> None:
        """The stage has done ``step`` of its steps."""
        self._left.step(step)
        self._tell(step=step, fraction=self._fraction(step))

    def evaluated(self, evaluations: int) -> None:
        """The UNet was evaluated so often since it began at the segment: between two steps."""
        self._left.reach(evaluations)
        self._tell()

    def encoded(self, pictures: int, seconds: float) -> None:
        """A thread beside this one took so long to make a part of a video file of some pictures."""
        self._left.encoded(pictures, seconds)

    def begin_writing(self) -> None:
        """All segments are there, and the film is being joined."""
        now = self._seconds()
        self.spans.append(Span("write", -1, now, now))

    def end_writing(self) -> None:
        """The film is on the disk."""
        self.spans[-1] = replace(self.spans[-1], end=self._seconds())

    def skip(self, frames: int) -> None:
        """An earlier run has finished frames."""
        self.frames_done += frames
        self._left.skipped += frames

    def _seconds(self) -> float:
        return self._clock() - self._began

    def _tell(self, **changes: Any) -> None:
        seconds = self._seconds()
        if self.spans:
            self.spans[-1] = replace(self.spans[-1], end=seconds)
        left = None if self._total is None else self._left.seconds(self._total)
        told: dict[str, Any] = {
            "seconds": seconds,
            "seconds_left": left,
            "is_measured": self._left.is_measured,
        }
        self._now = replace(self._now, frames_done=self.frames_done, **told, **changes)
        self._progress(self._now)

    def finished(self, segment: int, frames: int) -> None:
        """``segment`` was finished, perhaps elsewhere and out of turn; ``frames`` are done in all."""
        if frames <= self.frames_done:
            return
        seconds, earlier = self._seconds(), self._left.skipped
        self.frames_done = frames
        pace = seconds / (frames - earlier)
        self.spans.append(Span("finish", segment, self.spans[-1].end if self.spans else 0.0, seconds))
        self._now = replace(
            self._now,
            stage="finish",
            segment=segment,
            step=frames,
            steps=self._total or frames,
            frames_done=frames,
            fraction=min(frames / self._total, 1.0) if self._total else None,
            seconds=seconds,
            seconds_left=max(self._total - frames, 0) * pace if self._total else None,
            is_measured=True,
        )
        self._progress(self._now)

    def _fraction(self, step: int) -> float | None:
        if not self._total:
            return None
        earlier, share = _STAGES[self._now.stage]
        within = earlier + share * step / max(self._now.steps, 1)
        before = self._segment.first - self._first
        return min((before + within * len(self._segment.frames)) / self._total, 1.0)


class _Left:
    """The work that is left, and what it will take."""

    def __init__(
        self, clock: Callable[[], float], estimate: Estimate | None = None, film: FilmWork | None = None
    ) -> None:
        self._clock, self.estimate = clock, estimate or Estimate()
        self._frame = film.frame if film else Work(1, 0, 1)
        # Work and frames of segments, by which those that have not begun are judged: one of the usual kind at first.
        self._seen: dict[Kind, tuple[float, float]] = {}
        if film is not None and film.frames:
            usual = film.frames / film.segments
            self._seen = {kind: (film.whole.of(kind) / film.segments, usual) for kind in KINDS}
        self.skipped = 0  # frames
        self._begun = 0  # frames of the segments that have begun
        self._stage: Kind = "encode"
        self._frames = 0  # of the segment
        self._ends: Sequence[int] = ()
        self._done, self._since = 0.0, 0.0
        self._pictures, self._encoding = 0, 0.0  # that are in a video file, and what that took

    def begin(self, stage: Kind, frames: int, ends: Sequence[int]) -> None:
        """A stage of a segment of so many ``frames`` begins, its steps at these ``ends`` of its work."""
        if stage == "encode" or not self._begun:
            self._begun += frames
        self._stage, self._frames = stage, frames
        self._ends, self._done, self._since = ends, 0.0, self._clock()
        amount, seen_frames = self._seen.get(stage, (0.0, 0.0))
        self._seen[stage] = amount + self._in_all, seen_frames + frames

    @property
    def is_measured(self) -> bool:
        """Whether each kind of work was done once at least."""
        return all(map(self.estimate.has, KINDS))

    @property
    def _unit(self) -> float:
        return 1.0 if self._stage == "denoise" else self._frame.of(self._stage)

    @property
    def _in_all(self) -> float:
        return self._ends[-1] * self._unit if self._ends else 0.0

    def step(self, step: int) -> None:
        """So many steps are done."""
        if step:
            self.reach(self._ends[step - 1])

    def reach(self, done: float) -> None:
        """So much of the stage's work is done."""
        now = self._clock()
        self.estimate.took(self._stage, (done - self._done) * self._unit, now - self._since)
        if done > self._done:
            self._done, self._since = done, now

    def encoded(self, pictures: int, seconds: float) -> None:
        """What a thread beside has done."""
        self._pictures += pictures
        self._encoding += seconds

    def seconds(self, total: int) -> float | None:
        """Until all of ``total`` frames are done, the slower of two threads deciding."""
        order = KINDS.index(self._stage)
        later = max(total - self.skipped - self._begun, 0)
        amounts: dict[Kind, float] = {}
        for place, kind in enumerate(KINDS):
            amount, frames = self._seen.get(kind, (0.0, 0.0))
            here = self._frames if place > order else 0
            amounts[kind] = (later + here) * (amount / frames if frames else self._frame.of(kind))
        amounts[self._stage] += self._in_all - self._done * self._unit
        left = self.estimate.seconds(Work(**amounts))
        if left is None or not self._pictures:
            return left
        to_write = max(total - self.skipped - self._pictures, 0)
        return max(left, to_write * self._encoding / self._pictures)
