"""Solvers against known solutions; test_golden_runs.py holds them against the reference's numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from v2v.device.cpu import CpuDevice
from v2v.runtime.diffusion.schedule import Schedule
from v2v.runtime.diffusion.solvers import SOLVERS, solve

GOLDEN = load_file(Path(__file__).parents[2] / "data" / "golden" / "sampler.safetensors")


def frames_first(array):
    """[1, Z, T, h, w] of the golden file -> canvas [T, Z, h, w]."""
    return np.ascontiguousarray(np.moveaxis(array[0], 1, 0))


def relative_error(value, expected):
    return np.linalg.norm(value - expected) / np.linalg.norm(expected)


def toy_denoiser(schedule):
    """A network that predicts v = 0.5 tanh(1.3 x)."""

    def denoise(x, sigma, out):
        c = schedule.coefficients(sigma)
        x_in = x * np.float32(c.scale)
        out[...] = np.float32(c.alpha) * x_in - np.float32(c.s * 0.5) * np.tanh(1.3 * x_in)

    return denoise


def test_noise_levels_are_the_references():
    np.testing.assert_allclose(Schedule().levels, GOLDEN["sigmas"], atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_perfect_denoiser_gives_back_the_clean_latents(solver):
    schedule = Schedule()
    clean = np.random.default_rng(1).standard_normal((3, 4, 6, 8)).astype(np.float32)
    noise = np.random.default_rng(2).standard_normal(clean.shape).astype(np.float32)
    sigmas = schedule.trailing(599, 6)

    def perfect(x, sigma, out):
        out[...] = clean

    x = clean + np.float32(sigmas[0]) * noise
    solve(perfect, x, SOLVERS[solver](sigmas), lambda k: noise, CpuDevice())
    np.testing.assert_allclose(x, clean, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_buffers_held_does_not_matter(solver):
    schedule = Schedule()
    start, noise = np.random.default_rng(1).standard_normal((2, 3, 4, 6, 8)).astype(np.float32)
    sigmas = schedule.trailing(599, 6)
    results = []
    for buffers in (None, tuple(np.full_like(start, np.nan) for _ in range(3))):
        x = start.copy()
        updates = SOLVERS[solver](sigmas)
        solve(gaussian_denoiser(0.7), x, updates, lambda k: noise, CpuDevice(), buffers=buffers)
        results.append(x)
    np.testing.assert_array_equal(*results)
    assert np.isfinite(results[0]).all()


def gaussian_denoiser(spread):
    """The exact denoiser of data that are normal with that standard deviation."""

    def denoise(x, sigma, out):
        out[...] = x * (spread**2 / (spread**2 + sigma**2))

    return denoise


def test_dpmpp_2m_takes_the_steps_of_the_variance_preserving_formulation():
    """Algorithm 2 of Lu et al. 2022 in z = alpha x, with log-SNR differences and data predictions."""
    schedule = Schedule()
    sigmas = schedule.reaching(599, 7)
    denoiser = toy_denoiser(schedule)
    x = np.random.default_rng(3).standard_normal((2, 4, 6, 8)).astype(np.float32) * np.float32(sigmas[0])
    found = x.copy()
    solve(denoiser, found, SOLVERS["dpmpp_2m"](sigmas), lambda k: 1 / 0, CpuDevice())

    levels = [schedule.noising(schedule.timestep(sigma)) for sigma in sigmas[:-1]]
    z, estimates = x.astype(np.float64) * levels[0][0], []
    for k, (alpha, s) in enumerate(levels):
        estimate = np.empty_like(x)
        denoiser((z / alpha).astype(np.float32), sigmas[k], estimate)
        estimates.append(estimate.astype(np.float64))
        if k + 1 == len(levels):
            z = estimates[-1]
            break
        next_alpha, next_s = levels[k + 1]
        h = np.log(next_alpha / next_s) - np.log(alpha / s)
        combined = estimates[-1]
        if k > 0:
            last_alpha, last_s = levels[k - 1]
            ratio = (np.log(alpha / s) - np.log(last_alpha / last_s)) / h
            combined = (1 + 1 / (2 * ratio)) * estimates[-1] - 1 / (2 * ratio) * estimates[-2]
        z = (next_s / s) * z - next_alpha * np.expm1(-h) * combined
    assert relative_error(found, z) < 1e-5


def test_dpmpp_2m_is_of_second_order_and_needs_no_noise():
    start, end, spread = 4.0, 0.5, 1.3
    exact = np.sqrt((spread**2 + end**2) / (spread**2 + start**2))  # of the ODE; then D at the end
    errors = []
    for steps in (16, 32, 64):
        sigmas = [start * (end / start) ** (k / steps) for k in range(steps + 1)]
        x = np.ones((1, 1, 1, 1))
        updates = SOLVERS["dpmpp_2m"]([*sigmas, 0.0])
        assert not any(update.x_noise for update in updates)
        solve(gaussian_denoiser(spread), x, updates, lambda k: 1 / 0, CpuDevice())
        errors.append(abs(x.item() - exact * spread**2 / (spread**2 + end**2)))
    assert errors[0] / errors[1] > 3.3 and errors[1] / errors[2] > 3.3


def test_few_steps_end_where_many_do():
    schedule = Schedule()
    assert schedule.reaching(599, 30) == schedule.trailing(599, 30)
    assert schedule.reaching(599, 50) == schedule.trailing(599, 50)
    for steps in (2, 8, 12):
        sigmas = schedule.reaching(599, steps)
        assert len(sigmas) == steps + 1
        assert sigmas[0] == schedule.sigma(599)
        assert sigmas[-2] == schedule.trailing(599, 30)[-2] < schedule.trailing(599, steps)[-2]


@pytest.mark.parametrize("steps", [1, 2, 30])
def test_grids_start_at_the_strength_and_end_clean(steps):
    schedule = Schedule()
    for grid in (schedule.trailing, schedule.leading, schedule.reaching):
        sigmas = grid(300, steps)
        assert len(sigmas) == steps + 1
        assert sigmas[0] == pytest.approx(schedule.sigma(300))
        assert sigmas[-1] == 0
        assert all(a > b for a, b in zip(sigmas, sigmas[1:], strict=False))


def test_whole_time_steps_make_alpha_and_sigma_agree():
    schedule = Schedule()
    for sigma in schedule.trailing(599, 30)[:-1]:
        c = schedule.coefficients(sigma)
        assert c.s / c.alpha == pytest.approx(sigma, rel=1e-9)


@pytest.mark.parametrize("strength", [0.0, 1.0, -0.2, 7])
def test_strength_without_noise_or_signal_is_refused(strength):
    with pytest.raises(ValueError, match=r"0\.001 and 0\.998"):
        Schedule().start(strength)
