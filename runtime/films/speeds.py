"""What a unit of work cost in the last run of each engine set on this machine: for forecasts, never for results.

They are kept in the user's folder for state, by the identity of the set and the device. What cannot be read or written
there is not known.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import platformdirs

from v2v.core.files import read_limited, write_whole
from v2v.engine.store import EngineSet
from v2v.runtime.diffusion.estimate import Work
from v2v.runtime.films.observed import Observed

_LARGEST = 1 << 20  # bytes
_MOST = 1000  # engine sets, of which the first to be written goes first


def _file() -> Path:
    return Path(platformdirs.user_state_dir("v2v")) / "speeds.json"


def _read() -> dict[str, Work]:
    try:
        return msgspec.json.decode(read_limited(_file(), _LARGEST), type=dict[str, Work])
    except (OSError, ValueError, RecursionError):
        return {}


def _key(engine_set: EngineSet, device: str) -> str:
    return f"{engine_set.manifest.recipe.identity} {device}"


def costs_of(engine_set: EngineSet, device: str) -> Work | None:
    """Seconds of a unit of each kind of work, as last measured; None where that is not known."""
    costs = _read().get(_key(engine_set, device))
    return costs if costs and 0 < min(costs.encode, costs.denoise, costs.decode) else None


def keep_costs(engine_set: EngineSet, device: str, costs: Work) -> None:
    """Remember what a run has measured."""
    kept = _read()
    kept.pop(key := _key(engine_set, device), None)
    kept[key] = costs
    with suppress(OSError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        write_whole(_file(), msgspec.json.encode(dict([*kept.items()][-_MOST:])).decode())


@contextmanager
def observing(engine_set: EngineSet, device: str, *, measures: bool = False) -> Iterator[Observed]:
    """Lend what a run is observed with: it knows what work cost in an earlier run, and what work costs is remembered.

    ``measures``: look at the frames before and after, too.
    """
    observed = Observed(True, measures, costs_of(engine_set, device))
    try:
        yield observed
    finally:
        if (costs := observed.report.costs) is not None:
            keep_costs(engine_set, device, costs)
