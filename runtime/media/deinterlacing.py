"""Interlaced video to whole frames, with FFmpeg's bwdif: one frame for each, at its own time.

A frame of interlaced video holds two moments, one in its odd and one in its even lines. bwdif keeps the lines of the
first and fills in the others from those above and below and from the frames before and after, so still parts keep
all their lines. The second moment is left out: the film keeps its frame rate and time stamps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import av
import av.filter

from v2v.runtime.media.filters import filter_graph

_BWDIF = ("bwdif", "mode=send_frame:parity=auto:deint=interlaced")


class Deinterlacer:
    """Makes whole frames of those that say they are interlaced; what comes before the first of them is left alone.

    ``on_interlaced`` is called when there is one. Frames that are whole stay so in between as well.
    """

    def __init__(self, on_interlaced: Callable[[], None] = lambda: None) -> None:
        self._on_interlaced = on_interlaced
        self._graph: av.filter.Graph | None = None
        self._geometry: tuple[int, int, str] | None = None
        self._pending: deque[av.VideoFrame] = deque()  # given to the filter, which is a frame behind

    def __call__(self, frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        """As many frames as are taken in."""
        for frame in frames:
            geometry = (frame.width, frame.height, frame.format.name)
            if self._graph is not None and geometry != self._geometry:
                yield from self._drained()
            if self._graph is None:
                if not frame.interlaced_frame:
                    yield frame
                    continue
                self._on_interlaced()
                self._graph, self._geometry = filter_graph(frame, _BWDIF), geometry
            self._pending.append(frame)
            self._graph.push(frame)
            yield from self._filtered()
        yield from self._drained()

    def _filtered(self) -> Iterator[av.VideoFrame]:
        """What the filter has finished, under the time stamps that went in."""
        while self._graph is not None and self._pending:
            try:
                frame = self._graph.pull()
            except (BlockingIOError, EOFError):
                return
            assert isinstance(frame, av.VideoFrame)
            interlaced = self._pending.popleft()
            frame.pts, frame.duration = interlaced.pts, interlaced.duration
            if interlaced.time_base is not None:
                frame.time_base = interlaced.time_base
            yield frame

    def _drained(self) -> Iterator[av.VideoFrame]:
        """End the filter; the rest of its frames."""
        if self._graph is not None:
            self._graph.push(None)
            yield from self._filtered()
            self._graph = None
