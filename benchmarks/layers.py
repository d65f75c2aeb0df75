"""How long each layer of an engine set takes, as the backend's library tells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from v2v.core.components import ComponentName
from v2v.core.samples import sample_inputs
from v2v.device import open_device
from v2v.engine.store import EngineSet
from v2v.engine.verify import Binding


@dataclass(frozen=True)
class LayerTimes:
    """The layers of a component, the slowest first, and the seconds of one run of each."""

    component: ComponentName
    seconds: dict[str, float]

    @property
    def total(self) -> float:
        """Of all layers."""
        return sum(self.seconds.values())


def layer_times(engine_set: EngineSet, device: str) -> Iterator[LayerTimes]:
    """Load each component on ``device`` and let its layers be timed on made-up inputs.

    Raises:
        EngineError: the backend tells no times of layers, or the set does not load.
    """
    opened = open_device(device)
    for name in engine_set.names:
        engine = engine_set.load(name, device)
        try:
            inputs = sample_inputs(engine.component, max(engine_set.model.vocabulary, 1))
            seconds = Binding(engine, inputs, opened).layer_seconds()
        finally:
            engine.close()
        yield LayerTimes(name, dict(sorted(seconds.items(), key=lambda each: -each[1])))
