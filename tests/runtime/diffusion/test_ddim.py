"""The first stage's noise levels and DDIM, as rows of the one loop's table, give the reference's numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.runtime.diffusion.test_solvers import frames_first, relative_error
from v2v.core.configs import MODELS
from v2v.device.cpu import CpuDevice
from v2v.runtime.diffusion.image_to_video import Animation, AnimationPlan
from v2v.runtime.diffusion.schedule import Schedule
from v2v.runtime.diffusion.solvers import Update, ddim, solve

MODEL = MODELS["ms-image2video"]
GOLDEN = load_file(
    Path(__file__).parents[2] / "data" / "golden" / "image-to-video" / "i2v_sampler.safetensors"
)
EXACT = Schedule(exact=True, name="scaled linear")


def run(case: str, updates: list[Update]) -> tuple[np.ndarray, list[int], list[np.ndarray]]:
    """The golden file's network behind guidance: v(x, t, c) = c tanh(1.3 x) + 0.2 sin(t / 97)."""
    guidance = float(GOLDEN[f"{case}.guidance"][0])
    timesteps, estimates = [], []

    def denoise(x: np.ndarray, sigma: float, out: np.ndarray) -> None:
        c = EXACT.coefficients(sigma)
        timesteps.append(c.timestep)
        z = x * np.float32(c.scale)
        given, none = (k * np.tanh(1.3 * z) + 0.2 * np.sin(c.timestep / 97) for k in (0.5, 0.4))
        out[...] = c.alpha * z - c.s * (none + guidance * (given - none))
        estimates.append(out.copy())

    x = frames_first(GOLDEN[f"{case}.noise"]) * np.float32((updates[0].sigma ** 2 + 1) ** 0.5)
    solve(denoise, x, updates, lambda k: pytest.fail("DDIM draws no noise"), CpuDevice())
    return x * np.float32(EXACT.noising(0)[0]), timesteps, estimates


def test_noise_levels_are_the_references() -> None:
    np.testing.assert_allclose(1 - EXACT.levels**2, GOLDEN["alphas_cumprod"], rtol=1e-12)
    assert EXACT.sigma(999) == pytest.approx(14.614641, rel=1e-6)
    assert [EXACT.timestep(EXACT.sigma(t)) for t in (0, 1, 501, 999)] == [0, 1, 501, 999]


@pytest.mark.parametrize("case", ["ddim10", "ddim30", "ddim50"])
def test_golden_trajectories(case: str) -> None:
    made = AnimationPlan.of(Animation(steps=int(case[4:]), parity=True), MODEL)
    out, timesteps, estimates = run(case, made.updates(MODEL))
    assert timesteps == GOLDEN[f"{case}.timesteps"].tolist()
    assert relative_error(estimates[0], frames_first(GOLDEN[f"{case}.first_x0"])) < 1e-5
    middle = frames_first(GOLDEN[f"{case}.mid_x0"])
    assert relative_error(estimates[len(estimates) // 2], middle) < 1e-5
    assert relative_error(out, frames_first(GOLDEN[f"{case}.out"])) < 1e-5


@pytest.mark.parametrize("fault", ["a step is missing", "noise is taken away to the end", "another schedule"])
def test_the_golden_trajectory_notices_faults(fault: str) -> None:
    sigmas = EXACT.strided(999, 50)
    if fault == "a step is missing":
        del sigmas[25]
    elif fault == "noise is taken away to the end":
        sigmas[-1] = 0.0
    else:
        sigmas = [1.001 * sigma for sigma in sigmas]
    out, *_ = run("ddim50", ddim(sigmas))
    assert relative_error(out, frames_first(GOLDEN["ddim50.out"])) > 1e-4


def test_by_default_there_are_as_many_steps_as_asked_for_and_no_noise_is_left() -> None:
    for steps in (2, 30, 37, 50):
        updates = AnimationPlan.of(Animation(steps=steps), MODEL).updates(MODEL)
        assert len(updates) == steps
        assert updates[-1].x_x == 0
        assert updates[-1].x_denoised == 1
    assert len(AnimationPlan.of(Animation(steps=30, parity=True), MODEL).updates(MODEL)) == 31
    usual, exact = (AnimationPlan.of(Animation(parity=p), MODEL).updates(MODEL) for p in (False, True))
    assert usual[:-1] == exact[:-1]


def test_offset_noise_is_the_references() -> None:
    made = GOLDEN["offset.noise"] + np.float32(MODEL.offset_noise) * GOLDEN["offset.offset"]
    np.testing.assert_array_equal(made, GOLDEN["offset.out"])
