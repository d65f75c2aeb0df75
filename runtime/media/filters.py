"""FFmpeg's filters, for pictures one after the other."""

from __future__ import annotations

from fractions import Fraction

import av
import av.filter


def filter_graph(like: av.VideoFrame, *filters: tuple[str, str]) -> av.filter.Graph:
    """A chain of (name, arguments) for pictures of the size, format and time base of ``like``."""
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=like.width,
        height=like.height,
        format=like.format,
        time_base=like.time_base or Fraction(1, 1000),
    )
    chain = [graph.add(name, arguments) for name, arguments in filters]
    graph.link_nodes(source, *chain, graph.add("buffersink")).configure()
    return graph
