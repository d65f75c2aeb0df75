"""What few steps lose, computed: against sampling, and what the grid of dpmpp_2m is for."""

from __future__ import annotations

import numpy as np
import pytest

from v2v.benchmarks.studies.few_steps import report, share_left
from v2v.device.cpu import CpuDevice
from v2v.runtime.diffusion.schedule import Schedule
from v2v.runtime.diffusion.solvers import SOLVERS, solve


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_share_is_that_of_a_run(solver):
    spread, rng = 0.5, np.random.default_rng(0)
    updates = SOLVERS[solver](Schedule().trailing(599, 6))

    def denoise(x, sigma, out):
        out[...] = x * (spread**2 / (spread**2 + sigma**2))

    x = spread * rng.standard_normal(200_000) + updates[0].sigma * rng.standard_normal(200_000)
    solve(denoise, x, updates, lambda k: rng.standard_normal(200_000), CpuDevice())
    assert share_left(updates, spread) == pytest.approx(x.std() / spread, rel=0.01)


def test_few_steps_on_their_own_grid_lose_no_more_than_many():
    cases = {(case["solver"], case["grid"], case["steps"]): case["left"] for case in report()["cases"]}
    full = cases["dpmpp_2m_sde", "trailing", 30]
    for faint in ("0.12", "0.25"):
        assert cases["dpmpp_2m", "reaching", 12][faint] == pytest.approx(full[faint], abs=0.02)
        assert cases["dpmpp_2m_sde", "trailing", 12][faint] < full[faint] - 0.2
