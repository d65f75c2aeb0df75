"""Enhance one video into a pipe: each segment goes out as soon as it is finished, and nothing is kept.

The way is that of :mod:`v2v.runtime.films.film`, with the pipe in the place of the journal. So a run that was cut off
cannot go on.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager

from v2v.runtime.diffusion.progress import Progress
from v2v.runtime.diffusion.segments import Carry
from v2v.runtime.films.enhance import Crew, Enhanced, Request, decide
from v2v.runtime.films.film import enhance_segments
from v2v.runtime.films.speeds import observing
from v2v.runtime.films.task import EnhancedSegment
from v2v.runtime.media.encoding import EncodedSegment
from v2v.runtime.media.pipe_in import Source
from v2v.runtime.media.pipe_out import PipeWriter, pipe_writer, piped_name
from v2v.runtime.media.stdio import StandardOutput
from v2v.runtime.media.timestamps import Timestamp
from v2v.runtime.media.writer import streams_for


def enhance_into_pipe(
    request: Request,
    source: Source,
    crew: Crew,
    follow: Callable[[], AbstractContextManager[Callable[[Progress], None]]],
) -> Enhanced:
    """Enhance ``source`` to the standard output, after all that could stop it has been looked at.

    ``follow`` lends a function that is told how far the work is. The crew works alone, one segment after the other.

    Raises:
        V2VError: the source cannot be read, the output not written, the request cannot be met, or the work failed.
        BrokenPipeError: nobody reads the output any more.
    """
    output, path = StandardOutput(), piped_name(request.codec)
    with request.open(source) as reader, observing(crew.engine_set, crew.device) as observed:
        run_plan, encoding, facts = decide(request, reader, crew.engine_set)
        encoding.check(path, *run_plan.size)
        streams = streams_for(reader, path, parity=run_plan.parity, convert=request.convert)
        team, started = crew.team, time.monotonic()
        writer = pipe_writer(output, reader, encoding, json.dumps(facts), streams, parity=run_plan.parity)
        with follow() as show, writer:
            outgoing = _Outgoing(writer)

            def progress(now: Progress) -> None:
                output.check()
                show(now)

            frames = enhance_segments(
                team, reader, run_plan, encoding, outgoing, outgoing.show_at, progress, observed
            )
    return Enhanced(frames, time.monotonic() - started, crew.engine_set.path, facts)


class _Outgoing:
    """Takes the place of a journal: writes each finished segment, and keeps its carry until the next one is."""

    def __init__(self, writer: PipeWriter) -> None:
        self._writer = writer
        self._stamps: deque[Timestamp] = deque()  # of frames that were read and are not written
        self._last = -1
        self._carry: Carry | None = None

    def show_at(self, stamp: Timestamp) -> None:
        """When the next frame is shown."""
        self._stamps.append(stamp)

    def finished(self, index: int) -> bool:
        """Whether segment ``index`` was written."""
        return index <= self._last

    def finish(self, index: int, segment: EnhancedSegment) -> None:
        """Write segment ``index``."""
        assert index == self._last + 1, "whoever works for a pipe finishes one segment after the other"
        stamps = [self._stamps.popleft() for _ in segment.order]
        self._writer.add(EncodedSegment(segment.pictures, segment.order), stamps)
        self._last, self._carry = index, segment.carry

    def carry(self, index: int) -> Carry:
        """What segment ``index``, the last one, hands to the next."""
        assert index == self._last
        assert self._carry is not None
        return self._carry
