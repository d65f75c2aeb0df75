"""The UNet in full, or its outer blocks alone on the deep features of an earlier evaluation.

DeepCache (Ma et al. 2024, https://arxiv.org/abs/2312.00858): from one step to the next, what enters the UNet's last
block changes little, and it is nearly all of the work. An evaluation in full leaves it behind; others nearby take it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from v2v.core.components import Tensor
from v2v.device import Array
from v2v.engine.backend import Engine, Prompted


class Evaluation(NamedTuple):
    """Under one prompt: what is read, what is written, and what one of the two is done to."""

    context: Array  # [1, tokens, C]
    velocity: Array  # [1, Z, F, h, w]
    features: Array | None  # [1, F, h, w, C]; None of engines that leave none


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
        common: Mapping[str, Array],
        evaluations: Sequence[Evaluation],
        *,
        in_full: bool,
        stream: int,
    ) -> None:
        """Make ``evaluations``, all with the inputs ``common``; in full they leave features, else they take them."""
        engine = self.full if in_full else self.outer
        assert engine is not None
        prompts: list[Prompted] = []
        for context, velocity, features in evaluations:
            inputs, outputs = {"context": context}, {"velocity": velocity}
            if features is not None:
                (outputs if in_full else inputs)["features"] = features
            prompts.append((inputs, outputs))
        engine.run_prompts(common, prompts, stream)


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
