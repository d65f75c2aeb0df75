"""Where a film cuts from one shot to the next, found with FFmpeg's scene filter."""

from __future__ import annotations

import av
import av.filter

from v2v.runtime.media.filters import filter_graph

# FFmpeg's scene score, 0..1, above which a picture starts a new shot. FFmpeg's own documentation suggests 0.3 to 0.5;
# a cut that is missed smears two shots into each other, one too many only loses a little context.
_THRESHOLD = 0.3
_WIDTH = 256  # pictures are looked at this small: a cut shows at any size


class ShotDetector:
    """Tells, picture by picture, which one starts a new shot."""

    def __init__(self) -> None:
        self._graph: av.filter.Graph | None = None
        self._geometry: tuple[int, int, str] | None = None

    def __call__(self, frame: av.VideoFrame) -> bool:
        """Whether ``frame`` starts a shot other than that of the frame before it; the first one does not."""
        geometry = (frame.width, frame.height, frame.format.name)
        if self._graph is None or geometry != self._geometry:
            self._graph, self._geometry = _scene_graph(frame), geometry
        self._graph.push(frame)
        starts_shot = False
        while True:
            try:
                self._graph.pull()
            except (BlockingIOError, EOFError):
                return starts_shot
            starts_shot = True


def _scene_graph(frame: av.VideoFrame) -> av.filter.Graph:
    height = max(round(frame.height * _WIDTH / frame.width / 2) * 2, 2)
    scale = ("scale", f"{_WIDTH}:{height}:flags=area")
    return filter_graph(frame, scale, ("select", f"gt(scene,{_THRESHOLD})"))
