"""Whole runs of the product on the golden files' networks give the authors' numbers; and what the numbers notice.

Everything from the first picture to the last latents is the product's, with ``--parity``: sizes, frames between frames,
noise levels, the start, the hint, guidance, the solver. The golden files' clean latents are what the encoder makes of
the pictures, and their noise is what is drawn.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.runtime.diffusion.test_solvers import frames_first, relative_error
from tests.stand_ins.arrays import NumpyEngine
from v2v.core.components import Component, Window, components
from v2v.core.configs import MODELS, ModelConfig
from v2v.device.cpu import CpuDevice
from v2v.engine.backend import LooseEngines
from v2v.engine.store import packaged_tokenizer
from v2v.runtime.diffusion import noise, pipeline, settings
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.diffusion.progress import Step
from v2v.runtime.diffusion.prompt import Tokenizer
from v2v.runtime.diffusion.sampling import Hint
from v2v.runtime.diffusion.schedule import Coefficients, Schedule
from v2v.runtime.diffusion.settings import Settings
from v2v.runtime.diffusion.solvers import SOLVERS, Solver, Update

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
ERROR = 1e-5


@dataclass(frozen=True)
class Case:
    """A golden run: where its numbers are, and what the product is asked for."""

    file: str
    name: str
    model: str
    asked: Settings

    @property
    def numbers(self) -> dict[str, np.ndarray]:
        stored = load_file(GOLDEN / f"{self.file}.safetensors")
        return {k.partition(".")[2]: v for k, v in stored.items() if k.partition(".")[0] == self.name}


PLAIN, OF_STAR = "sampler", "star-venhancer/sampler_star"
OF_VENHANCER, OF_ITS_FIRST = (
    "star-venhancer/sampler_venhancer",
    "star-venhancer/sampler_venhancer_first",
)
CASES = {
    f"{case.model} {case.name}": case
    for case in (
        Case(PLAIN, "fast", "ms-vid2vid-xl", Settings()),
        Case(PLAIN, "fast8", "ms-vid2vid-xl", Settings(steps=8, guidance=3.0, guidance_rescale=0.0)),
        Case(PLAIN, "heun", "ms-vid2vid-xl", Settings(steps=50, solver="heun")),
        Case(OF_STAR, "fast", "star-light", Settings()),
        Case(OF_STAR, "normal", "star-heavy", Settings(grid="normal")),
        Case(OF_VENHANCER, "fast", "venhancer", Settings(interpolate=3)),
        Case(OF_VENHANCER, "one_chunk", "venhancer", Settings()),
        Case(OF_ITS_FIRST, "first45", "venhancer", Settings(interpolate=2, steps=45)),
    )
}


read_tokenizer = functools.cache(Tokenizer)  # reading it takes longer than a run


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("golden") / "tokenizer.json"
    path.write_bytes(packaged_tokenizer())
    return path


@dataclass
class Made:
    """What a run went through."""

    timesteps: list[int] = field(default_factory=list)  # of evaluations under the prompt
    told: set[tuple[int, int]] = field(default_factory=set)  # the hint's noise level, and the enlargement
    steps: list[Step] = field(default_factory=list)

    def error(self, golden: dict[str, np.ndarray]) -> float:
        """The largest relative error of the first, the middle and the last estimate."""
        places = {"first_x0": 0, "mid_x0": len(self.steps) // 2, "out": -1}
        return max(
            float(relative_error(self.steps[place].latents, frames_first(golden[name])))
            for name, place in places.items()
        )


def row(name: str, pixels: tuple[int, int]) -> ModelConfig:
    """A model without its least size."""
    model = MODELS[name]
    size = None if model.parity.size is None else pixels
    return replace(model, parity=replace(model.parity, size=size, white_margin=False, area=None))


def toy(made: Made, alone: bool) -> Callable[..., np.ndarray]:
    """The golden files' network: one that takes frames one by one, or one that sees the hint and all frames."""

    def velocity(
        latents: np.ndarray,
        timestep: np.ndarray,
        context: np.ndarray,
        hint: np.ndarray | None = None,
        keys: np.ndarray | None = None,
        hint_timestep: Any = 0,
        enlargement: Any = 0,
    ) -> np.ndarray:
        share = context[0, 0, 0]
        if share == np.float32(0.5):
            made.timesteps.append(int(timestep[0]))
        out = share * np.tanh(1.3 * latents) + 0.2 * np.sin(timestep[0] / 97)
        if alone:
            return out
        assert hint is not None
        if keys is not None:
            made.told.add((int(hint_timestep[0]), int(enlargement[0])))
            hint = hint * keys[:, None, :, None, None]
        return out + 0.1 * hint + 0.1 * latents.mean(2, keepdims=True)

    return velocity


def engines_of(
    case: Case, golden: dict[str, np.ndarray], made: Made, tokenizer: Path
) -> tuple[LooseEngines, tuple[int, int]]:
    """Engines that make of pictures and words what the golden run began with."""
    _, _, frames, rows, columns = golden["x0"].shape
    pixels = rows * 8, columns * 8
    model = row(case.model, pixels)
    unwanted = read_tokenizer(tokenizer, model.words).negative()
    clean = iter(frames_first(golden["x0"]) / np.float32(model.latent_scale))

    def text_encoder(ids: np.ndarray) -> np.ndarray:
        return np.full((1, *model.context), 0.4 if np.array_equal(ids, unwanted) else 0.5, np.float32)

    def vae_encoder(image: np.ndarray) -> np.ndarray:
        mean = next(clean)[None]
        return np.concatenate([mean, np.full_like(mean, -np.inf)], 1)  # the latents themselves, no sample

    functions = {
        "text_encoder": text_encoder,
        "vae_encoder": vae_encoder,
        "unet": toy(made, alone=case.file == PLAIN),
        "vae_decoder": lambda latents: 0,
    }

    def make(component: Component, device: str) -> NumpyEngine:
        return NumpyEngine(component, functions[component.name])

    window = Window(frames, *pixels, levels=0, rows_remainder=0)
    described = components(model, window, "fp32")
    return LooseEngines(model, window, described, tokenizer, {"engines": "golden"}, make), pixels


def drawn(golden: dict[str, np.ndarray], between: int) -> noise.Source:
    """The golden run's noise, by frame and draw; that of the hint is stored for frames of the source alone."""
    of_start = frames_first(golden["noise"])
    of_steps = [frames_first(each) for each in golden.get("step_noise", [])]
    of_hint = frames_first(golden["hint_noise"]) if "hint_noise" in golden else None

    def source(frame: int, draw: int) -> np.ndarray:
        if draw == noise.POSTERIOR:
            return np.zeros_like(of_start[frame])
        if draw == noise.DIFFUSION:
            return of_start[frame]
        if draw == noise.HINT:
            assert of_hint is not None
            return of_hint[frame // between]
        return of_steps[draw][frame] if draw < len(of_steps) else np.zeros_like(of_start[frame])

    return source


def enhance(case: Case, golden: dict[str, np.ndarray], tokenizer: Path, patch: pytest.MonkeyPatch) -> Made:
    made = Made()
    engines, (height, width) = engines_of(case, golden, made, tokenizer)
    patch.setattr(pipeline, "Tokenizer", read_tokenizer)
    between = case.asked.interpolate or 1
    frames = (golden["x0"].shape[2] - 1) // between + 1
    source = drawn(golden, between)
    patch.setattr(noise, "keyed", lambda seed, shape: source)
    pictures = [np.zeros((height, width, 3), np.uint8)] * frames
    v2v = VideoToVideo(engines, CpuDevice())
    asked = replace(case.asked, parity=True, scale=1.0)
    assert len(list(v2v(pictures, asked, on_step=made.steps.append))) == golden["x0"].shape[2]
    return made


@pytest.mark.parametrize("name", CASES)
def test_runs_give_the_authors_numbers(name: str, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    golden = case.numbers
    made = enhance(case, golden, tokenizer, monkeypatch)
    assert made.timesteps == golden["timesteps"].astype(int).tolist()
    if "sigmas" in golden:  # in single precision
        np.testing.assert_allclose([step.sigma for step in made.steps], golden["sigmas"][:-1], rtol=3e-5)
    assert made.error(golden) < ERROR
    assert made.told == ({(199, 8)} if case.model == "venhancer" else set())


# Faults that the numbers notice -----------------------------------------------------------------------------

Fault = Callable[[pytest.MonkeyPatch], None]


def coefficients(change: Callable[[Coefficients, float], Coefficients]) -> Fault:
    """Other numbers for the network's input and output than those of a level, after ``change(theirs, sigma)``."""
    original = Schedule.coefficients
    return lambda patch: patch.setattr(
        Schedule, "coefficients", lambda self, sigma: change(original(self, sigma), sigma)
    )


def unscaled_alpha(c: Coefficients, sigma: float) -> Coefficients:
    """x0 = alpha x - s v, where x is not what the network was given."""
    return replace(c, alpha=c.alpha / c.scale)


def start(change: Callable[[float, float], tuple[float, float]]) -> Fault:
    """Another (alpha, s) where noise is added, not where it is taken away."""
    noising, theirs = Schedule.noising, Schedule.coefficients

    def patched(patch: pytest.MonkeyPatch) -> None:
        asked: list[bool] = []

        def told(self: Schedule, sigma: float) -> Coefficients:
            asked.append(True)
            try:
                return theirs(self, sigma)
            finally:
                asked.pop()

        patch.setattr(Schedule, "coefficients", told)
        patch.setattr(
            Schedule,
            "noising",
            lambda self, t: noising(self, t) if asked or t < 599 else change(*noising(self, t)),
        )

    return patched


def updates(change: Callable[[Update], Update]) -> Fault:
    """Another table of each solver."""

    def patched(patch: pytest.MonkeyPatch) -> None:
        for name, solver in list(SOLVERS.items()):
            table = solver.table

            def changed(sigmas: Any, table: Any = table) -> list[Update]:
                return [change(update) for update in table(sigmas)]

            patch.setitem(SOLVERS, name, Solver(changed, solver.grid))

    return patched


def sigmas(change: Callable[[list[float]], list[float]]) -> Fault:
    original = settings.Plan.sigmas.fget
    assert original is not None
    return lambda patch: patch.setattr(settings.Plan, "sigmas", property(lambda self: change(original(self))))


def guidance(change: Callable[..., tuple[Any, ...]]) -> Fault:
    """Other arguments of guidance, after ``change(conditional, unconditional, scale, rescale)``."""
    original = CpuDevice.guide
    return lambda patch: patch.setattr(
        CpuDevice, "guide", lambda self, *given: original(self, *change(*given[:4]), given[4])
    )


def guided_by_frame(patch: pytest.MonkeyPatch) -> None:
    """The deviations that rescale goes by are those of a frame, not of the film."""
    original = CpuDevice.guide

    def by_frame(self: CpuDevice, conditional: Any, unconditional: Any, *numbers: Any) -> None:
        *numbers, out = numbers
        for frame in range(out.shape[2]):
            part = (slice(None), slice(None), slice(frame, frame + 1))
            original(self, conditional[part], unconditional[part], *numbers, out[part])

    patch.setattr(CpuDevice, "guide", by_frame)


def other_noise(change: Callable[[int, int], tuple[int, int]]) -> Fault:
    """Noise of another frame or draw, after ``change(frame, draw)``."""
    original = noise.canvas

    def canvas(source: noise.Source, frames: Any, number: int) -> Any:
        return original(lambda frame, draw: source(*change(frame, draw)), frames, number)

    return lambda patch: patch.setattr(noise, "canvas", canvas)


def hint(change: Callable[[Hint], Hint]) -> Fault:
    return lambda patch: patch.setattr(pipeline, "Hint", lambda *given: change(Hint(*given)))


def noised_hint(shown: Hint) -> Hint:
    alpha, s = Schedule(exact=True).noising(199)
    drawn = np.random.default_rng(1).standard_normal(shown.latents.shape, np.float32)
    return replace(shown, latents=np.float32(alpha) * np.asarray(shown.latents) + np.float32(s) * drawn)


def hint_scaled_as_the_input(patch: pytest.MonkeyPatch) -> None:
    original, scales = CpuDevice.take_window, [1.0]

    def take(self: CpuDevice, canvas: Any, start: Any, scale: float, out: Any) -> None:
        scales.append(scale if scale != 1 else scales[-1])
        original(self, canvas, start, scales[-1], out)

    patch.setattr(CpuDevice, "take_window", take)


def hint_level(change: Callable[[Schedule], tuple[float, float]]) -> Fault:
    """Another (alpha, s) of the hint."""
    original = Schedule.noising

    def noising(self: Schedule, timestep: int) -> tuple[float, float]:
        return change(self) if timestep == 199 else original(self, timestep)

    return lambda patch: patch.setattr(Schedule, "noising", noising)


def hint_noise_of_the_start(patch: pytest.MonkeyPatch) -> None:
    """What was drawn for the hint is what was drawn for the start."""
    patch.setattr(noise, "HINT", noise.DIFFUSION)


COMMON: dict[str, Fault] = {
    "velocity to x0 with alpha for alpha times scale": coefficients(unscaled_alpha),
    "velocity to x0 without s": coefficients(lambda c, sigma: replace(c, s=1.0)),
    "velocity added, not taken away": coefficients(lambda c, sigma: replace(c, s=-c.s)),
    "the network is given x itself": coefficients(
        lambda c, sigma: replace(c, scale=1.0, alpha=c.alpha * c.scale)
    ),
    "the network is told the next time step": coefficients(
        lambda c, sigma: replace(c, timestep=c.timestep - 1)
    ),
    "start of z over alpha": start(lambda alpha, s: (1 / (s / alpha), 1.0)),
    "start one level later": lambda patch: patch.setattr(
        Schedule, "start", lambda self, strength, start=Schedule.start: start(self, strength) - 1
    ),
    "start of noise alone": start(lambda alpha, s: (0.0, s)),
    "evenly falling sigmas": sigmas(
        lambda given: [*np.geomspace(given[0], given[-2], len(given) - 1).tolist(), 0.0]
    ),
    "one step fewer": sigmas(lambda given: [*given[:-2], 0.0]),
    "first order": updates(
        lambda u: (
            u._replace(x_denoised=u.x_denoised + u.x_history, x_history=0.0)
            if u.history_denoised == 1
            else u._replace(x_x=1.0, x_denoised=0.0, x_history=0.0)
            if u.x_history
            else u
        )
    ),
    "guidance 7": guidance(lambda given, none, scale, rescale: (given, none, scale - 0.5, rescale)),
    "prompts swapped": guidance(lambda given, none, scale, rescale: (none, given, scale, rescale)),
    "no negative prompt": guidance(lambda given, none, scale, rescale: (given, None, scale, rescale)),
    "start's noise of other frames": other_noise(
        lambda frame, draw: (max(frame, 1) - 1, draw) if draw == noise.DIFFUSION else (frame, draw)
    ),
}
FRACTIONAL: dict[str, Fault] = {
    "alpha and s of the sigma, not of the whole time step": coefficients(
        lambda c, sigma: replace(c, alpha=(1 + sigma**2) ** -0.5, s=sigma * (1 + sigma**2) ** -0.5)
    ),
    "whole time steps": lambda patch: patch.setattr(
        settings, "Schedule", lambda exact: Schedule(exact=False)
    ),
}
"""What a grid of whole time steps does not show."""

RESCALED: dict[str, Fault] = {
    "no rescale": guidance(lambda given, none, scale, rescale: (given, none, scale, 0.0)),
    "rescale by the deviation of the negative prompt": guidance(
        lambda given, none, scale, rescale: (none, given, 1 - scale, rescale)
    ),
}
DRAWN: dict[str, Fault] = {
    "no noise on the way": updates(lambda u: u._replace(x_noise=0.0)),
    "noise of the step before": other_noise(
        lambda frame, draw: (frame, draw - 1 if 0 < draw < 1000 else draw)
    ),
    "as much noise as there is": updates(
        lambda u: u._replace(x_noise=(u.x_noise**2 / max(1 - u.x_x, 1e-9)) ** 0.5)
    ),
}
FAST_GRID: dict[str, Fault] = {
    "normal grid": lambda patch: patch.setattr(
        Schedule, "two_paces", lambda self, start: self.trailing(start, 14)
    ),
    "the last noisy level kept": sigmas(
        lambda given: [*given[:-1], Schedule(exact=True).sigma(500 - 10 * 501 / 11), 0.0]
    ),
}
HINTED: dict[str, Fault] = {
    "deviations of each frame": guided_by_frame,
    "no hint": hint(lambda shown: replace(shown, latents=0 * np.asarray(shown.latents))),
    "hint scaled as the input": hint_scaled_as_the_input,
    "hint of other frames": hint(
        lambda shown: replace(shown, latents=np.asarray(shown.latents)[::-1].copy())
    ),
}
OF_CLEAN_HINTS: dict[str, Fault] = {"hint noised": hint(noised_hint)}
KEYED: dict[str, Fault] = {
    "hint without noise": hint_level(lambda schedule: (1.0, 0.0)),
    "hint at level 200": hint_level(lambda schedule: schedule.noising(200)),
    "hint's noise that of the start": hint_noise_of_the_start,
    "keys one frame late": hint(lambda shown: replace(shown, keys=np.roll(shown.keys, 1))),
}
NOTICED = {
    "ms-vid2vid-xl fast": COMMON | FRACTIONAL | RESCALED | DRAWN,
    "ms-vid2vid-xl heun": COMMON | RESCALED,
    "star-light fast": COMMON | FRACTIONAL | RESCALED | DRAWN | FAST_GRID | HINTED | OF_CLEAN_HINTS,
    "venhancer fast": COMMON | FRACTIONAL | RESCALED | DRAWN | FAST_GRID | HINTED | KEYED,
}


@pytest.mark.parametrize(
    ("name", "fault"), [(name, fault) for name, faults in NOTICED.items() for fault in faults]
)
def test_the_numbers_notice(name: str, fault: str, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = CASES[name].numbers
    NOTICED[name][fault](monkeypatch)
    assert enhance(CASES[name], golden, tokenizer, monkeypatch).error(golden) > 1.5 * ERROR
