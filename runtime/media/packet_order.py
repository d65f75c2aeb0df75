"""The order in which muxers take packets."""

from __future__ import annotations

from fractions import Fraction

import av.container

from v2v.runtime.media.clock import Packet
from v2v.runtime.media.formats import takes_equal_times

_NOTICED = Fraction(1, 100)  # seconds


class PacketOrder:
    """Puts a stream's packets into the time base of their copy, where decoding times only grow, as muxers need them.

    Where formats allow for it, they may stay the same.
    """

    def __init__(self, output: av.container.OutputContainer) -> None:
        self._step = 0 if takes_equal_times(output) else 1
        self._last: int | None = None
        self.moved = 0
        """Packets so far that were moved by a time one could notice."""

    def __call__(self, packet: Packet) -> None:
        tick = packet.stream.time_base
        ratio = Fraction(packet.time_base) / tick
        pts, dts = (None if time is None else round(time * ratio) for time in (packet.pts, packet.dts))
        if dts is None:
            dts = pts or 0
        if self._last is not None and dts < self._last + self._step:
            moved = self._last + self._step
            self.moved += (moved - dts) * tick > _NOTICED
            dts = moved
        self._last = dts
        packet.dts, packet.pts = dts, dts if pts is None else max(pts, dts)
        packet.duration = round((packet.duration or 0) * ratio)
        packet.time_base = tick
