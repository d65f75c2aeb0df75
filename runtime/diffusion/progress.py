"""The progress of a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

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


# Rough shares of a segment's time, for an estimate of the whole: they matter until the first segment is done.
_STAGES = {"encode": (0.0, 0.1), "denoise": (0.1, 0.7), "decode": (0.8, 0.2)}


class Report:
    """Turns the steps of the stages into :class:`Progress`, for ``total`` frames in all, from ``first_number`` on."""

    def __init__(
        self,
        progress: Callable[[Progress], None] = lambda now: None,
        total: int | None = None,
        first_number: int = 0,
        on_step: Callable[[Step], None] | None = None,
    ) -> None:
        self._progress, self._total, self._first = progress, total, first_number
        self.on_step = on_step
        self._began = time.monotonic()
        self.frames_done = 0
        self._now = Progress("encode", 0, 0, 1, 0, total, None, 0.0)

    def begin(self, stage: Literal["encode", "denoise", "decode"], segment: Segment, steps: int) -> None:
        """A stage of ``steps`` begins."""
        self._segment = segment
        self._now = replace(self._now, stage=stage, segment=segment.index, steps=steps)
        self.step(0)

    def step(self, step: int) -> None:
        """The stage has done ``step`` of its steps."""
        self._now = replace(
            self._now,
            step=step,
            frames_done=self.frames_done,
            fraction=self._fraction(step),
            seconds=time.monotonic() - self._began,
        )
        self._progress(self._now)

    def finished(self, segment: int, frames: int) -> None:
        """``segment`` was finished, perhaps elsewhere and out of turn; ``frames`` are done in all."""
        if frames <= self.frames_done:
            return
        self.frames_done = frames
        self._now = replace(
            self._now,
            stage="finish",
            segment=segment,
            step=frames,
            steps=self._total or frames,
            frames_done=frames,
            fraction=min(frames / self._total, 1.0) if self._total else None,
            seconds=time.monotonic() - self._began,
        )
        self._progress(self._now)

    def _fraction(self, step: int) -> float | None:
        if not self._total:
            return None
        earlier, share = _STAGES[self._now.stage]
        within = earlier + share * step / max(self._now.steps, 1)
        before = self._segment.first - self._first
        return min((before + within * len(self._segment.frames)) / self._total, 1.0)
