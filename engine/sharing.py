"""A UNet of two engines, made of the halves that :func:`v2v.engine.cutting.split` makes of its graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from v2v.core.components import Component
from v2v.engine.backend import Engine, Prompted


class SharingEngine(Engine):
    """What no prompt changes runs once, the rest for every prompt.

    What the first hands over lies in memory of this engine's own, at fixed addresses: runs may be captured, and follow
    one another on one stream.
    """

    def __init__(self, component: Component, shared: Engine, rest: Engine, handed: Mapping[str, Any]) -> None:
        """``handed`` are arrays of the engines' device, one for each output of ``shared``."""
        self.component = component
        self._shared, self._rest, self._handed = shared, rest, dict(handed)

    def run(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], stream: int = 0) -> None:
        """As that of the halves."""
        self.run_prompts({}, [(inputs, outputs)], stream)

    def run_prompts(self, common: Mapping[str, Any], prompts: Sequence[Prompted], stream: int = 0) -> None:
        """See :class:`v2v.engine.backend.Engine`; raises as :meth:`run` does."""
        self._shared.run({**common, **prompts[0][0]}, self._handed, stream)
        for inputs, outputs in prompts:
            self._rest.run({**common, **inputs, **self._handed}, outputs, stream)

    def layer_seconds(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], stream: int = 0
    ) -> dict[str, float]:
        """As that of the halves, of both."""
        shared = self._shared.layer_seconds(inputs, self._handed, stream)
        return shared | self._rest.layer_seconds({**inputs, **self._handed}, outputs, stream)

    def close(self) -> None:
        """Close both halves, and let go of what lies between them."""
        self._shared.close()
        self._rest.close()
        self._handed = {}
