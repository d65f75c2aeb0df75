"""How long a run will take: the work that is left, by what a unit of each kind of work has cost lately."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from v2v.core.components import Window
from v2v.core.configs import ModelConfig
from v2v.runtime.diffusion.latents import Canvas, tiles_of
from v2v.runtime.diffusion.segments import look_ahead, overlap, segment_length, shared_frames
from v2v.runtime.diffusion.settings import Plan
from v2v.runtime.diffusion.windows import starts

Kind = Literal["encode", "denoise", "decode"]
KINDS: tuple[Kind, ...] = ("encode", "denoise", "decode")

_HORIZON = 5.0  # seconds of work after which what was measured counts a third
_KNOWN = 3.0  # seconds of one kind of work after which a change of its cost is one of the machine's speed
# Shares of a run, where nothing was measured yet of a kind of work.
_SHARES: Mapping[Kind, float] = {"encode": 0.1, "denoise": 0.7, "decode": 0.2}


@dataclass(frozen=True)
class Work:
    """An amount of work: tiles encoded, evaluations of the UNet in one window, tiles decoded."""

    encode: float = 0.0
    denoise: float = 0.0
    decode: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.encode + other.encode, self.denoise + other.denoise, self.decode + other.decode)

    def of(self, kind: Kind) -> float:
        """The amount of one kind."""
        return {"encode": self.encode, "denoise": self.denoise, "decode": self.decode}[kind]

    def seconds(self, costs: Work) -> float:
        """What it takes where a unit of each kind takes the seconds in ``costs``."""
        return sum(self.of(kind) * costs.of(kind) for kind in KINDS)


@dataclass(frozen=True)
class FilmWork:
    """The work on a film of one shot, whose segments are all as long as they can be but the last."""

    frames: int
    segments: int
    whole: Work
    frame: Work  # of one frame that is encoded, and decoded
    canvas: tuple[int, int, int]  # latents of the longest segment: frames, rows, columns


def canvas_of(plan: Plan, model: ModelConfig, window: Window) -> Canvas:
    """Where pictures of ``plan`` lie among the latents."""
    made = Canvas.with_margin if plan.parity and model.parity.white_margin else Canvas.of
    return made(plan.size, (window.latent_height, window.latent_width), window.factor)


def film_work(plan: Plan, model: ModelConfig, window: Window, frame_bytes: int, frames: int) -> FilmWork:
    """The work on ``frames`` frames of a source, each of so many bytes; cuts make it more."""
    canvas, between = canvas_of(plan, model, window), plan.between
    tiles = tiles_of(canvas.latent, (window.latent_height, window.latent_width))
    shared = shared_frames(window, between)
    length = frames if plan.parity else segment_length(window, frame_bytes, between)
    whole, first, count, extent = Work(), 0, 0, 0
    while first < frames:
        carried = shared if first else 0
        held = min(length - carried, frames - first)
        ahead = look_ahead(window) if first + held < frames else 0
        new = max(held - ahead, 1)
        extent = max(extent, carried + held, window.frames)
        whole += Work(
            tiles * held / between,
            _windows(canvas, window, carried + held, between) * sum(plan.evaluations),
            tiles * new,
        )
        first, count = first + new, count + 1
    return FilmWork(frames, count, whole, Work(tiles / between, 0, tiles), (extent, *canvas.latent))


def _windows(canvas: Canvas, window: Window, frames: int, between: int) -> int:
    lengths = max(frames, window.frames), *canvas.latent
    sizes = window.frames, window.latent_height, window.latent_width
    axes = zip(lengths, sizes, overlap(window, between), strict=True)
    return math.prod(len(starts(length, size, shared)) for length, size, shared in axes)


class _Cost:
    """Seconds of a unit of one kind of work, what was measured lately counting most."""

    def __init__(self, seconds: float, weight: float = 1.0) -> None:
        self._seconds, self._units, self.measured = seconds * weight, weight, 0.0

    @property
    def each(self) -> float:
        return self._seconds / self._units

    @property
    def is_known(self) -> bool:
        return self.measured >= _KNOWN

    def add(self, units: float, seconds: float) -> None:
        keep = math.exp(-seconds / _HORIZON)
        self._seconds, self._units = self._seconds * keep + seconds, self._units * keep + units
        self.measured += seconds

    def scale(self, times: float) -> None:
        self._seconds *= times


class Estimate:
    """Seconds that work will take.

    A kind of work that costs more than it did shows that the machine has become slower, so that the others will cost
    more too.

    Args:
        costs: seconds of a unit of each kind, if they were measured beforehand.
        earlier: they were measured in an earlier run, and the machine may be slower or faster now.
    """

    def __init__(self, costs: Work | None = None, *, earlier: bool = False) -> None:
        self._earlier = earlier
        self._costs: dict[Kind, _Cost] = {}
        if costs is not None:
            self._costs = {kind: _Cost(costs.of(kind)) for kind in KINDS if costs.of(kind) > 0}

    def has(self, kind: Kind) -> bool:
        """Whether that kind of work was measured."""
        return kind in self._costs

    def took(self, kind: Kind, units: float, seconds: float) -> None:
        """``units`` of work took ``seconds``."""
        if units <= 0 or seconds <= 0:
            return
        cost = self._costs.setdefault(kind, _Cost(seconds / units))
        before, known = cost.each, cost.is_known
        cost.add(units, seconds)
        for other, its in self._costs.items():
            if other != kind and (known or (self._earlier and not its.measured)):
                its.scale(cost.each / before)

    def costs(self) -> Work | None:
        """Seconds of a unit of each kind, if all of them were measured in this run."""
        if not all(kind in self._costs and self._costs[kind].measured for kind in KINDS):
            return None
        return Work(**{kind: self._costs[kind].each for kind in KINDS})

    def seconds(self, work: Work) -> float | None:
        """What ``work`` will take, with a usual share for kinds never measured; None if nothing was measured."""
        known = [kind for kind in KINDS if kind in self._costs]
        if not known:
            return None
        sum_known = sum(work.of(kind) * self._costs[kind].each for kind in known)
        unknown = sum(_SHARES[kind] for kind in KINDS if kind not in known and work.of(kind))
        return sum_known / (1 - unknown)
