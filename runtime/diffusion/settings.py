"""The settings of a run, and the plan that they make for one model and one source."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np

from v2v.core.configs import ColorName, Defaults, GridName, ModelConfig
from v2v.core.errors import V2VError
from v2v.runtime.diffusion.deepcache import evaluations_in_full
from v2v.runtime.diffusion.guidance import Guidance
from v2v.runtime.diffusion.schedule import Schedule
from v2v.runtime.diffusion.solvers import SOLVERS

MOST_BETWEEN = 8  # frames that each frame of the source may become


# What ``fast`` asks for (benchmarks/NOTES.md has the reasons): about 22 evaluations of the UNet instead of 60, and of
# those every second one on features of the one before where the engines can. No more steps than the model makes.
_FAST_STEPS, _FAST_SOLVER, _FAST_INTERVAL, _FAST_REUSE = 12, "dpmpp_2m", (0.08, 0.56), 2


@dataclass(frozen=True)
class Settings:
    """The settings of a run; None leaves a value to the model's defaults.

    ``strength`` is the noise level, 0..1 of the 1000 levels; guidance acts only at the levels inside
    ``guidance_interval``, which spares the other steps their second evaluation. ``grid`` "fast" goes through 14 levels,
    far apart in the beginning, whatever ``steps`` are; with ``steps`` alone it is "normal". Every ``reuse``-th
    evaluation is made
    in full, the others on its deep features, with engines that can. ``fast`` stands for a combination of fewer steps,
    a solver for few steps, a narrow interval and reuse; whatever is said besides holds instead. ``size`` is the
    output's (height, width) in pixels; without it ``scale`` times the input's. ``depth`` is the bits of a component
    wanted: with 8 the pictures given out are uint8, with more uint16, with None as the frames taken in. ``parity``
    follows the reference in its oddities too: its sizes without antialiasing, the frames that it takes, its schedule's
    rounding, its start, its colours and truncated bytes.

    Of a model that makes frames between those of its source: every frame of the source becomes ``interpolate`` frames,
    ``hint_noise`` of 1000 levels are added to what it is shown of the source, and ``up_scale`` is how much it is
    told that the source was enlarged.
    """

    prompt: str = ""
    negative_prompt: str | None = None
    steps: int | None = None
    solver: str | None = None
    strength: float | None = None
    guidance: float | None = None
    guidance_rescale: float | None = None
    guidance_interval: tuple[float, float] | None = None
    reuse: int | None = None
    fast: bool = False
    seed: int = 666  # as published
    size: tuple[int, int] | None = None
    scale: float | None = None
    color: ColorName | None = None
    depth: int | None = None
    parity: bool = False
    grid: GridName | None = None
    interpolate: int | None = None
    hint_noise: int | None = None
    up_scale: int | None = None


@dataclass(frozen=True)
class Plan:
    """:class:`Settings` made whole for one model and one source: nothing is left to a default."""

    prompt: str
    negative_prompt: str | None
    steps: int
    solver: str
    strength: float
    guidance: float
    guidance_rescale: float
    guidance_interval: tuple[float, float]
    reuse: int
    seed: int
    size: tuple[int, int]
    color: ColorName
    depth: int | None
    parity: bool
    grid: GridName
    interpolate: int | None  # of this and what follows None where the model has no such thing
    hint_noise: int | None
    up_scale: int | None

    @property
    def schedule(self) -> Schedule:
        """Noise levels and the way that grids take through them."""
        return Schedule(exact=self.parity)

    @property
    def between(self) -> int:
        """Frames that each frame of the source becomes."""
        return self.interpolate or 1

    @property
    def levels(self) -> type[np.uint8 | np.uint16] | None:
        """Type of the levels of the pictures given out; None for that of the frames taken in."""
        return None if self.depth is None else np.uint16 if self.depth > 8 else np.uint8

    @property
    def sigmas(self) -> list[float]:
        """Noise-to-signal ratios of the run, falling to 0."""
        schedule = self.schedule
        if self.grid == "fast":
            return schedule.two_paces(schedule.start(self.strength))
        return SOLVERS[self.solver].grid(schedule, schedule.start(self.strength), self.steps)

    @property
    def evaluations(self) -> tuple[int, int]:
        """Of the UNet in one window: (in full, on the features of another)."""
        guidance = Guidance(self.guidance, self.guidance_rescale, self.guidance_interval)
        guided = [
            guidance.acts(self.schedule.timestep(row.sigma)) for row in SOLVERS[self.solver](self.sigmas)
        ]
        in_full = evaluations_in_full(guided, self.reuse)
        counts = [
            sum(1 + g for g, f in zip(guided, in_full, strict=True) if f is kind) for kind in (True, False)
        ]
        return counts[0], counts[1]


def plan(settings: Settings, model: ModelConfig, source: tuple[int, int], reuse: bool = False) -> Plan:
    """Fill in a model's defaults for a source of (height, width) pixels and engines that can ``reuse`` features or not.

    Raises:
        V2VError: a value out of range, or one that this model has not; names the flag and what it takes.
    """
    defaults = model.defaults
    explicit = {
        name: value for name in Plan.__dataclass_fields__ if (value := getattr(settings, name)) is not None
    }
    model_defaults = {
        name: getattr(defaults, name) for name in Plan.__dataclass_fields__ if hasattr(defaults, name)
    }
    filled = Plan(
        **{
            "negative_prompt": None,
            "depth": None,
            "guidance_interval": (0.0, 1.0),
            "reuse": 1,
            "interpolate": 1,
            **model_defaults,
            **({"grid": "normal"} if settings.steps or settings.solver else {}),
            **(_fast(defaults, reuse) if settings.fast else {}),
            **explicit,
            "size": output_size(settings, defaults, source),
        }
    )
    if filled.parity and settings.fast:
        raise V2VError(
            "--fast and --parity contradict each other: the reference takes 30 steps; leave one of them out"
        )
    if filled.parity:
        size = parity_size(settings, model, source)
        filled = replace(filled, size=size, color=model.parity.color, depth=None)
    if filled.grid == "fast":
        if settings.steps not in (None, len(filled.sigmas) - 1):
            raise V2VError(
                "--grid fast and --steps contradict each other: its steps are fixed; leave one of them out"
            )
        filled = replace(filled, steps=len(filled.sigmas) - 1)
    _check(filled, model)
    if not model.interpolates:
        filled = replace(filled, interpolate=None, hint_noise=None, up_scale=None)
    return filled


def _fast(defaults: Defaults, reuse: bool) -> dict[str, Any]:
    return {
        "steps": min(defaults.steps, _FAST_STEPS),
        "solver": _FAST_SOLVER,
        "grid": "normal",
        "guidance_interval": _FAST_INTERVAL,
        "reuse": _FAST_REUSE if reuse else 1,
    }


def output_size(settings: Settings, defaults: Defaults, source: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the output: ``settings.size``, or the source's aspect at the usual size, in even numbers."""
    if settings.size is not None:
        return settings.size
    scale = settings.scale
    if scale is None:
        scale = _usual_scale(defaults, min(source))
    elif not 0 < scale <= 100:
        raise V2VError(f"--scale {scale}: must lie above 0 and up to 100")
    height, width = (max(round(side * scale / 2) * 2, 2) for side in source)
    return height, width


def _usual_scale(defaults: Defaults, short_side: int) -> float:
    """How much a model enlarges a source of that short side where nobody says it."""
    if defaults.short_side is not None:
        return defaults.short_side / short_side
    if defaults.most_short_side is None:
        return defaults.scale
    return max(min(defaults.scale, defaults.most_short_side / short_side), 1.0)


def parity_size(settings: Settings, model: ModelConfig, source: tuple[int, int]) -> tuple[int, int]:
    """(height, width) that the reference makes of a source: fixed, or by the scale, its area within bounds."""
    parity = model.parity
    if parity.size is not None:
        return parity.size
    scale = model.defaults.scale if settings.scale is None else settings.scale
    if parity.area is None:
        return round(source[0] * scale), round(source[1] * scale)
    least, most = parity.area
    area = source[0] * source[1] * scale * scale
    if not least <= area <= most:
        scale = math.sqrt((least if area < least else most) / (source[0] * source[1]))
    height, width = (2 * int(scale * side // 2) for side in source)
    return height, width


def _check(plan: Plan, model: ModelConfig) -> None:
    if not model.interpolates:
        for flag, differs in (
            ("--interpolate", plan.between != 1),
            ("--hint-noise", plan.hint_noise != model.defaults.hint_noise),
            ("--up-scale", plan.up_scale != model.defaults.up_scale),
        ):
            if differs:
                raise V2VError(f"{flag}: model {model.name} makes no frames between frames; leave it out")
    if plan.parity and plan.hint_noise == 0 and model.interpolates:
        raise V2VError(
            "--hint-noise 0: the authors' code takes this for nothing but noise; leave out --parity"
        )
    if plan.solver not in SOLVERS:
        raise V2VError(f"--solver {plan.solver}: there is no such solver; choose from {', '.join(SOLVERS)}")
    if plan.grid not in get_args(GridName):
        raise V2VError(f"--grid {plan.grid}: choose from {', '.join(get_args(GridName))}")
    if plan.color not in get_args(ColorName):
        raise V2VError(f"--color {plan.color}: choose from {', '.join(get_args(ColorName))}")
    for flag, value, low, high in (
        ("--steps", plan.steps, 1, 998),
        ("--strength", plan.strength, 0.001, 0.998),
        ("--guidance", plan.guidance, 0, 100),
        ("--guidance-rescale", plan.guidance_rescale, 0, 1),
        ("--guidance-interval", plan.guidance_interval[0], 0, plan.guidance_interval[1]),
        ("--guidance-interval", plan.guidance_interval[1], plan.guidance_interval[0], 1),
        ("--reuse", plan.reuse, 1, 998),
        ("--seed", plan.seed, 0, 2**64 - 1),
        ("--interpolate", plan.between, 1, MOST_BETWEEN),
        ("--hint-noise", plan.hint_noise or 0, 0, 300),
        ("--up-scale", plan.up_scale or 1, 1, 100),
        ("--depth", plan.depth or 8, 8, 16),
        ("--size", min(plan.size), 1, 2**15),
        ("--size", max(plan.size), 1, 2**15),
    ):
        check_range(flag, value, low, high)


def check_range(flag: str, value: float, low: float, high: float) -> None:
    """Refuse a value out of range.

    Raises:
        V2VError: names the flag and what it takes.
    """
    if not low <= value <= high:
        raise V2VError(f"{flag} {value}: must lie between {low} and {high}")
