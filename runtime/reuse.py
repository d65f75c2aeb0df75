"""The UNet in full, or its outer blocks alone on the deep features of an earlier evaluation.

DeepCache (Ma et al. 2024, https://arxiv.org/abs/2312.00858): from one step to the next, what enters the UNet's last
block changes little, and it is nearly all of the work. An evaluation in full leaves it behind; others nearby take it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from v2v.engine.backend import Engine
from v2v.engine.components import Tensor
from v2v.runtime.device import Array


@dataclass(frozen=True)
class UNetEngines:
    """Component ``unet``, or ``unet_full`` with ``unet_outer``."""

    full: Engine
    outer: Engine | None = None

    @property
    def features(self) -> Tensor | None:
        """What an evaluation in full leaves behind; None of a set that was built without."""
        return None if self.outer is None else self.full.component.outputs[1]

    def run(
        self,
        inputs: Mapping[str, Array],
        velocity: Array,
        features: Array | None,
        *,
        in_full: bool,
        stream: int,
    ) -> None:
        """Write ``velocity``, and ``features`` where in full; otherwise read them."""
        if features is None:
            self.full.run(inputs, {"velocity": velocity}, stream)
        elif in_full:
            self.full.run(inputs, {"velocity": velocity, "features": features}, stream)
        else:
            assert self.outer is not None
            self.outer.run({**inputs, "features": features}, {"velocity": velocity}, stream)


def evaluations_in_full(guided: Sequence[bool], every: int) -> list[bool]:
    """Which evaluations of a run are made in full: each ``every``-th of them, 1 for all.

    ``guided`` says where the negative prompt is evaluated too. Where the last evaluation in full was without it,
    there are no features to go on from, and the count begins anew.
    """
    found: list[bool] = []
    last = 0
    for k, with_negative in enumerate(guided):
        found.append(k == 0 or k - last >= every or (with_negative and not guided[last]))
        last = k if found[-1] else last
    return found
