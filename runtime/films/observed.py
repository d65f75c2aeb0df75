"""What can be told of a run when it is over: what it did when, and how the frames look before and after."""

from __future__ import annotations

from dataclasses import dataclass, field

from v2v.runtime.diffusion.estimate import Work
from v2v.runtime.diffusion.progress import Report, Span
from v2v.runtime.diffusion.segments import Segment
from v2v.runtime.films.looks import BothLooks


@dataclass(frozen=True)
class SegmentSeen:
    """A segment of the film: its frames, and whether an earlier run had finished it."""

    index: int
    first: int
    frames: int
    continues: bool  # the shot of the segment before
    made_earlier: bool

    @classmethod
    def of(cls, segment: Segment, *, made_earlier: bool) -> SegmentSeen:
        """What is told of ``segment``."""
        return cls(segment.index, segment.first, len(segment.frames), segment.continues, made_earlier)


@dataclass
class Observed:
    """Filled while a film is enhanced.

    Attributes:
        rehearse: measure before the film what work costs, if that is a small part of it.
        measures: look at the frames before and after.
        earlier: what work cost in an earlier run, if that is known.
        report: of the time.
        segments: of the film, in order.
        looks: of the segments that this run has made, by number.
    """

    rehearse: bool = False
    measures: bool = False
    earlier: Work | None = None
    report: Report = field(default_factory=Report)
    segments: list[SegmentSeen] = field(default_factory=list)
    looks: dict[int, BothLooks] = field(default_factory=dict)

    @property
    def spans(self) -> list[Span]:
        """What was done when."""
        return self.report.spans
