"""The share of a detail that a solver leaves, by the strength of the detail.

    python -m v2v.benchmarks.studies.few_steps -o FOLDER

For data that are normal with a standard deviation c, the best denoiser is known: D = c² / (c² + sigma²) x. Solvers are
linear, so the standard deviation of what they make of such data can be computed, not sampled; over c it is 1 for a
perfect solver. Faint details (small c) are those that few steps lose: no network is needed to see it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from v2v.runtime.diffusion.schedule import Schedule
from v2v.runtime.diffusion.solvers import SOLVERS, Update

SPREADS = (0.06, 0.12, 0.25, 0.5, 1.0, 2.0)
_START = 599  # of a run with the full model's strength
_SCHEDULE = Schedule()
_CASES: tuple[tuple[str, str, Callable[[int, int], list[float]], int], ...] = (
    ("dpmpp_2m_sde", "trailing", _SCHEDULE.trailing, 30),
    ("dpmpp_2m_sde", "trailing", _SCHEDULE.trailing, 12),
    ("dpmpp_2m_sde", "reaching", _SCHEDULE.reaching, 12),
    ("dpmpp_2m", "trailing", _SCHEDULE.trailing, 30),
    ("dpmpp_2m", "trailing", _SCHEDULE.trailing, 12),
    ("dpmpp_2m", "reaching", _SCHEDULE.reaching, 12),
    ("dpmpp_2m", "reaching", _SCHEDULE.reaching, 8),
    ("heun", "leading", _SCHEDULE.leading, 6),
)


def share_left(updates: Sequence[Update], spread: float) -> float:
    """Standard deviation of the result over ``spread``, which is that of the data.

    x and history are followed as combinations of independent normal numbers: the datum, the first noise, and one
    noise for each row.
    """
    x, history = np.zeros((2, len(updates) + 2))
    x[0], x[1] = spread, updates[0].sigma
    for k, row in enumerate(updates):
        denoised = x * spread**2 / (spread**2 + row.sigma**2)
        new = row.x_x * x + row.x_denoised * denoised + row.x_history * history
        new[2 + k] += row.x_noise
        history = row.history_x * x + row.history_denoised * denoised + row.history_history * history
        x = new
    return float(np.linalg.norm(x) / spread)


def report() -> dict[str, Any]:
    """All cases."""
    cases = [
        {
            "solver": solver,
            "grid": name,
            "steps": steps,
            "last_sigma": round(grid(_START, steps)[-2], 4),
            "left": {str(c): round(share_left(SOLVERS[solver](grid(_START, steps)), c), 3) for c in SPREADS},
        }
        for solver, name, grid, steps in _CASES
    ]
    return {
        "what": "share of a detail's standard deviation that is left, by that standard deviation",
        "cases": cases,
    }


def main() -> None:
    """Print a table and write ``few-steps.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, help="folder for few-steps.json")
    arguments = parser.parse_args()
    results = report()
    print("solver        grid      steps  last sigma  " + "  ".join(f"c={c:<4}" for c in SPREADS))
    for case in results["cases"]:
        shares = "  ".join(f"{share:6.3f}" for share in case["left"].values())
        print(f"{case['solver']:13} {case['grid']:9} {case['steps']:5}  {case['last_sigma']:10.3f}  {shares}")
    if arguments.output:
        (arguments.output / "few-steps.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
