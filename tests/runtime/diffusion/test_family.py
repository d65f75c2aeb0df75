"""How STAR's and VEnhancer's authors take long films apart, their sizes and words; test_golden_runs.py has the rest."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.runtime.diffusion.test_solvers import frames_first, relative_error
from v2v.core.configs import MODELS
from v2v.core.errors import V2VError
from v2v.device.cpu import CpuDevice
from v2v.engine.store import packaged_tokenizer
from v2v.runtime.between import repeated
from v2v.runtime.diffusion.colors import match_statistics
from v2v.runtime.diffusion.latents import Canvas
from v2v.runtime.diffusion.prompt import PromptCut, Tokenizer
from v2v.runtime.diffusion.schedule import Schedule
from v2v.runtime.diffusion.settings import Settings, plan
from v2v.runtime.diffusion.solvers import SOLVERS, solve
from v2v.runtime.diffusion.windows import chunks, joined, starts

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "star-venhancer"
GEOMETRY = json.loads((GOLDEN / "geometry.json").read_text())
PROMPTS = json.loads((GOLDEN / "prompts.json").read_text(encoding="utf-8"))
STAR, VENHANCER = MODELS["star-light"], MODELS["venhancer"]
EXACT = Schedule(exact=True)
ERROR = 1e-5


def case_of(file, case):
    return {k.partition(".")[2]: v for k, v in load_file(GOLDEN / file).items() if k.split(".")[0] == case}


class Toy:
    """The golden files' network behind guidance, piece by piece; pieces are joined by ``spans``' weights."""

    def __init__(self, hint, spans):
        self.hint, self.spans, self.device = hint, spans, CpuDevice()
        self.timesteps, self.estimates = [], []

    def __call__(self, x, sigma, out):
        c = EXACT.coefficients(sigma)
        self.timesteps.append(c.timestep)
        out[...] = 0
        for span in self.spans:
            part = slice(span.start, span.start + len(span.weights))
            x_in = np.moveaxis(x[part], 1, 0)[None] * np.float32(c.scale)
            hint = np.moveaxis(self.hint[part], 1, 0)[None]
            common = 0.2 * np.sin(c.timestep / 97) + 0.1 * hint + 0.1 * x_in.mean(2, keepdims=True)
            conditional, unconditional = (
                (k * np.tanh(1.3 * x_in) + common).astype(np.float32) for k in (0.5, 0.4)
            )
            velocity = np.empty_like(x_in)
            self.device.guide(conditional, unconditional, 7.5, 0.2, velocity)
            estimate = frames_first(np.float32(c.alpha) * x_in - np.float32(c.s) * velocity)
            out[part] += estimate * span.weights[:, None, None, None]
        self.estimates.append(out.copy())


def hint_of(golden, mask):
    """For every frame: the golden hint of its number, or nothing."""
    hints = frames_first(golden["hint"])
    return np.stack([hints[number] if number >= 0 else np.zeros_like(hints[0]) for number in mask])


def run(golden, sigmas, mask, spans):
    """The largest relative error of the first, the middle and the last estimate."""
    sigma = sigmas[0]
    x = frames_first(golden["xt"]) * np.float32(sigma if np.isfinite(sigma) else 1)
    toy = Toy(hint_of(golden, mask), spans)
    draws = iter(golden["step_noise"])
    solve(toy, x, SOLVERS["dpmpp_2m_sde"](sigmas), lambda k: frames_first(next(draws)), CpuDevice())
    assert toy.timesteps == golden["timesteps"].tolist()
    assert next(draws, None) is None, "every golden draw is used"
    found = {"first_x0": toy.estimates[0], "mid_x0": toy.estimates[len(toy.estimates) // 2], "out": x}
    return max(relative_error(value, frames_first(golden[name])) for name, value in found.items())


def single(frames):
    return joined([(0, frames)], fade=False)


def long_run(model):
    """A golden film of several pieces: its numbers, the noise levels, its mask, its pieces, whether they are faded."""
    golden = case_of(f"sampler_{'star' if model is STAR else 'venhancer'}.safetensors", "chunks")
    sigmas = plan(Settings(parity=True), model, (180, 320)).sigmas
    mask = golden.get("mask", range(golden["x0"].shape[2]))
    return golden, sigmas, mask, golden["chunks"].tolist(), model.parity.chunks == "fade"


@pytest.mark.parametrize("model", [STAR, VENHANCER], ids=lambda model: model.name)
def test_long_films_are_the_authors(model):
    golden, sigmas, mask, pieces, fade = long_run(model)
    assert run(golden, sigmas, mask, joined(pieces, fade=fade)) < ERROR


def joined_later(pieces, fade):
    """Cut one frame later, or faded from a share of the later piece on."""
    spans = joined(pieces, fade=fade)
    for earlier, later in pairwise(spans):
        shared = earlier.start + len(earlier.weights) - later.start
        if fade:
            rise = np.arange(1, shared + 1) / (shared + 1)
            later.weights[:shared], earlier.weights[-shared:] = rise, 1 - rise
        else:
            later.weights[shared // 2], earlier.weights[shared // 2 - shared] = 0, 1
    return spans


PIECES_WITH_FAULTS = {
    "cut for faded, or faded for cut": lambda pieces, fade: joined(pieces, fade=not fade),
    "joined one frame later": joined_later,
    "in one piece": lambda pieces, fade: single(pieces[-1][1]),
    "pieces that begin one frame later": lambda pieces, fade: joined(
        [(a + (a > 0), b + (b < pieces[-1][1])) for a, b in pieces], fade=fade
    ),
}


@pytest.mark.parametrize("fault", PIECES_WITH_FAULTS)
@pytest.mark.parametrize("model", [STAR, VENHANCER], ids=lambda model: model.name)
def test_the_numbers_of_long_films_notice(model, fault):
    golden, sigmas, mask, pieces, fade = long_run(model)
    assert run(golden, sigmas, mask, PIECES_WITH_FAULTS[fault](pieces, fade)) > 1.5 * ERROR


def test_the_numbers_of_long_films_notice_hints_counted_from_the_piece():
    golden, sigmas, mask, pieces, fade = long_run(VENHANCER)
    (_, first_end), (second, _) = pieces
    counted = [n - mask[second] if n >= 0 and f >= first_end else n for f, n in enumerate(mask)]
    assert run(golden, sigmas, counted, joined(pieces, fade=fade)) > 1.5 * ERROR


def test_a_run_may_begin_at_a_level_without_signal():
    """As that of VEnhancer's first release."""
    golden = case_of("sampler_venhancer_first.safetensors", "first_inf8")
    sigmas = EXACT.trailing(999, 8)
    np.testing.assert_allclose(sigmas, golden["sigmas"], rtol=3e-5)  # theirs are single precision
    numbers = iter(range(golden["hint"].shape[2]))
    mask = [next(numbers) if each == 0 else -1 for each in golden["mask"]]  # 0: a frame of the source
    assert run(golden, sigmas, mask, single(len(mask))) < ERROR


def test_steps_alone_choose_the_normal_grid():
    assert plan(Settings(), STAR, (180, 320)).grid == "fast"
    assert plan(Settings(), STAR, (180, 320)).evaluations == (28, 0)
    made = plan(Settings(steps=15), STAR, (180, 320))
    assert (made.grid, made.steps, made.evaluations) == ("normal", 15, (30, 0))
    assert plan(Settings(grid="normal"), STAR, (180, 320)).steps == 15
    with pytest.raises(V2VError, match="--grid fast and --steps contradict"):
        plan(Settings(grid="fast", steps=15), STAR, (180, 320))
    told = plan(Settings(grid="fast", steps=14), STAR, (180, 320))  # as a film's comment says
    assert told == plan(Settings(), STAR, (180, 320))
    lower = plan(Settings(strength=0.6), STAR, (180, 320))
    assert [lower.schedule.timestep(sigma) for sigma in lower.sigmas[:3]] == [600, 599, 500]
    assert plan(Settings(), MODELS["ms-vid2vid-xl"], (180, 320)).grid == "normal"


# Sizes ------------------------------------------------------------------------------------------------------


def test_sizes_are_the_authors():
    for case in GEOMETRY["star_target"]:
        made = plan(Settings(parity=True, scale=case["scale"]), STAR, tuple(case["size"]))
        assert list(made.size) == case["target"]
    for case in GEOMETRY["venhancer_target"]:
        made = plan(Settings(parity=True, scale=case["scale"]), VENHANCER, tuple(case["size"]))
        assert list(made.size) == case["target"], case
    assert plan(Settings(), VENHANCER, (180, 320)).size == (720, 1280), "no least size without --parity"


def test_margins_are_the_authors():
    for case in GEOMETRY["pad"]:
        canvas = Canvas.with_margin(tuple(case["size"]), (1, 1), 8)
        assert list(canvas.pixels) == case["padded"], case
        assert list(canvas.corner) == [case["top"], case["left"]], case
        assert canvas.white


def test_pieces_are_the_authors():
    for case in GEOMETRY["star_chunks"]:
        found = chunks(case["frames"], case["longest"], case["longest"] // 2, 1.25)
        assert [list(piece) for piece in found] == case["chunks"], case
    for case in GEOMETRY["venhancer_chunks"]:
        times = case["inserted"] + 1
        longest, overlap = 31 // times * times + 1, 15 // times * times + 1
        found = chunks(case["frames"], longest, overlap, 1.33)
        assert [list(piece) for piece in found] == case["chunks"], case


def test_frames_between_frames_are_where_the_authors_put_them():
    for case in GEOMETRY["venhancer_mask"]:
        given = list(repeated(range(case["frames"]), case["inserted"] + 1, lambda number: False))
        assert [-1 if each.repeat else each.item for each in given] == case["mask"]


def test_nothing_is_put_between_two_shots():
    given = list(repeated("abcd", 3, lambda number: number == 2))
    assert "".join(each.item for each in given) == "aaabcccd"
    assert [number for number, each in enumerate(given) if each.starts_shot] == [4]
    assert [each.repeat for each in given] == [0, 1, 2, 0, 0, 1, 2, 0]
    assert given[3].following is None
    assert given[0].following == "b"


@pytest.mark.parametrize("times", range(2, 9))
def test_windows_start_at_frames_of_the_source(times):
    for length in range(32, 150):
        padded = length + -(length - 32) % times
        found = starts(padded, 32, max(8 - 8 % times, times), times)
        assert all(start % times == 0 for start in found)
        assert found[-1] + 32 == padded
        assert all(b - a < 32 for a, b in zip(found, found[1:], strict=False))


@pytest.mark.parametrize("fade", [False, True])
def test_pieces_are_joined_by_weights_that_add_up_to_one(fade):
    pieces = chunks(100, 32, 16, 1.25)
    total = np.zeros(100)
    for span in joined(pieces, fade=fade):
        total[span.start : span.start + len(span.weights)] += span.weights
    np.testing.assert_allclose(total, 1, rtol=1e-6)


def test_the_cross_fade_is_the_authors():
    golden = load_file(GOLDEN / "picture.safetensors")
    a, b, out = (golden[f"blend.{name}"] for name in ("a", "b", "out"))
    shared = 4
    spans = joined([(0, a.shape[2]), (a.shape[2] - shared, a.shape[2] - shared + b.shape[2])], fade=True)
    assert (
        relative_error(
            b[:, :, :shared] * spans[1].weights[:shared, None, None]
            + a[:, :, -shared:] * spans[0].weights[-shared:, None, None],
            out[:, :, :shared],
        )
        < 1e-6
    )


def test_colours_are_star_s():
    """The authors take them over before rounding; here levels are matched, which rounds to one of them."""
    golden = load_file(GOLDEN / "picture.safetensors")
    for video, low, expected in zip(
        golden["color.video"], golden["color.low"], golden["color.adain"], strict=True
    ):
        picture = np.rint(video).astype(np.uint8)
        source = np.rint((np.moveaxis(low, 0, 2) * 0.5 + 0.5).clip(0, 1) * 255).astype(np.uint8)
        assert np.abs(match_statistics(picture, source) - expected).max() < 3


# Words ------------------------------------------------------------------------------------------------------


def tokenizer(tmp_path, model):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(packaged_tokenizer())
    return Tokenizer(path, model.words)


@pytest.mark.filterwarnings("ignore::v2v.runtime.diffusion.prompt.PromptCut")
@pytest.mark.parametrize("model", [STAR, VENHANCER], ids=lambda model: model.name)
def test_words_are_the_authors(tmp_path, model):
    assert model.words.positive == PROMPTS["positive"]
    assert model.words.negative == PROMPTS["negative"]
    made = tokenizer(tmp_path, model)
    assert made.negative()[0].tolist() == PROMPTS["negative_ids"]
    for case in PROMPTS["cases"]:
        if case["text"]:  # without, their pipelines say "a good video"
            assert made.positive(case["text"], parity=True)[0].tolist() == case["ids"], case["text"]


def test_words_stand_apart_without_parity(tmp_path):
    made = tokenizer(tmp_path, STAR)
    said = "a good video, " + STAR.words.positive
    assert made.positive("").tolist() == made.encode(said).tolist()
    assert made.positive("a good video").tolist() == made.positive("").tolist()
    glued = made.encode("a good video" + STAR.words.positive).tolist()
    assert made.positive("", parity=True).tolist() == glued != made.positive("").tolist()
    with pytest.warns(PromptCut):
        made.positive("word " * 40)


# What cannot be ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (STAR, {"interpolate": 2}, "--interpolate: model star-light makes no frames between frames"),
        (STAR, {"hint_noise": 100}, "--hint-noise: model star-light"),
        (STAR, {"up_scale": 4}, "--up-scale: model star-light"),
        (VENHANCER, {"interpolate": 9}, "--interpolate 9: must lie between 1 and 8"),
        (VENHANCER, {"hint_noise": 301}, "--hint-noise 301: must lie between 0 and 300"),
        (VENHANCER, {"hint_noise": 0, "parity": True}, "--hint-noise 0: the authors' code takes this"),
        (VENHANCER, {"grid": "fine"}, "--grid fine: choose from fast, normal"),
    ],
)
def test_what_a_model_has_not_is_refused(model, settings, message):
    with pytest.raises(V2VError, match=message):
        plan(Settings(**settings), model, (180, 320))


def test_what_a_model_has_not_is_not_part_of_its_plan():
    made = plan(Settings(), STAR, (180, 320))
    assert (made.interpolate, made.hint_noise, made.up_scale, made.between) == (None, None, None, 1)
    made = plan(Settings(interpolate=3), VENHANCER, (180, 320))
    assert (made.between, made.hint_noise, made.up_scale) == (3, 200, 8)
    assert replace(made, interpolate=1) == plan(Settings(), VENHANCER, (180, 320))
