"""What ``--verify`` finds; the command itself is in test_build_cli.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from v2v.core.components import Component, Tensor
from v2v.core.errors import EngineError
from v2v.device.cpu import CpuDevice
from v2v.engine.backend import Engine
from v2v.engine.verify import check_replay

LATENTS = Tensor("latents", "float16", (1, 4))
DOUBLE = Component("unet", (LATENTS,), (Tensor("velocity", "float16", (1, 4)),))
INPUTS = {"latents": np.arange(4, dtype=np.float16)[None]}


class Doubling(Engine):
    """Its runs can be replayed: each with its own arrays, or, where it ``forgets``, all with those of the last."""

    component = DOUBLE

    def __init__(self, forgets: bool) -> None:
        self.forgets = forgets
        self.runs: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = []

    def run(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], stream: int = 0) -> None:
        self.runs.append((inputs, outputs))
        np.multiply(inputs["latents"], 2, out=outputs["velocity"])


class Capturing(CpuDevice):
    """A captured graph as a library has it that looks its parameters up when it is replayed."""

    def __init__(self, engine: Doubling) -> None:
        super().__init__()
        self.engine = engine

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.engine.runs.clear()
        work()
        captured = list(self.engine.runs)

        def replay() -> None:
            for run in captured:
                self.engine.run(*(captured[-1] if self.engine.forgets else run))

        return replay


def test_a_replay_with_the_arrays_of_another_run_is_found() -> None:
    engine = Doubling(forgets=True)
    with pytest.raises(EngineError, match="unet gives another 'velocity' when a captured run is replayed"):
        check_replay(engine, INPUTS, Capturing(engine))


def test_a_replay_with_the_same_bytes_passes() -> None:
    engine = Doubling(forgets=False)
    check_replay(engine, INPUTS, Capturing(engine))
    assert len(engine.runs) == 2 + 2 * 2  # the capture, and two replays of two bindings
