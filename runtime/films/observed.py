"""What can be told of a run when it is over: what it did when, and how the frames look before and after."""

from __future__ import annotations

from dataclasses import dataclass, field

from v2v.runtime.diffusion.estimate import Work
from v2v.runtime.diffusion.progress import Span
from v2v.runtime.films.looks import BothLooks


@dataclass(frozen=True)
class SegmentSeen:
    """A segment of the film: its frames, and whether an earlier run had finished it."""

    index: int
    first: int
    frames: int
    continues: bool  # the shot of the segment before
    made_earlier: bool


@dataclass
class Observed:
    """Filled while a film is enhanced.

    ``looks`` are there of the segments that this run has made, if ``measures`` asks for them. ``costs`` are those of an
    earlier run before, and those of this one afterwards.
    """

    measures: bool = False
    costs: Work | None = None
    spans: list[Span] = field(default_factory=list)
    segments: list[SegmentSeen] = field(default_factory=list)
    looks: dict[int, BothLooks] = field(default_factory=dict)
