"""The UNet in full, or its outer blocks alone on the deep features of an earlier evaluation.

DeepCache (Ma et al. 2024, https://arxiv.org/abs/2312.00858): from one step to the next, what enters the UNet's last
block changes little, and it is nearly all of the work. An evaluation in full stores it; the ones after it reuse it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from v2v.core.components import Tensor
from v2v.device import Array
from v2v.engine.backend import Engine, Prompted


class Evaluation(NamedTuple):
    """The arrays of one evaluation under one prompt; in full it writes ``features``, else it reads them."""

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
        """The features that an evaluation in full writes; None of a set that was built without --reuse."""
        return None if self.outer is None else self.full.component.outputs[1]

    def run(
        self,
        common: Mapping[str, Array],
        evaluations: Sequence[Evaluation],
        *,
        in_full: bool,
        stream: int,
    ) -> None:
        """Run ``evaluations``, all with the inputs ``common``; in full they write features, else they read them."""
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
    there are no features for it to reuse, and the count begins anew.
    """
    in_full: list[bool] = []
    last = 0
    for k, with_negative in enumerate(guided):
        in_full.append(k == 0 or k - last >= every or (with_negative and not guided[last]))
        last = k if in_full[-1] else last
    return in_full
