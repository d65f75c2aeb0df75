"""An engine set on a device: engines loaded when they are needed, and let go of where memory is short."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, TypeVar

from v2v.core.components import ComponentName, is_unet
from v2v.core.errors import EngineError
from v2v.core.progress import BuildProgress
from v2v.device import Device, Frame, open_device
from v2v.engine.backend import Engine, Engines
from v2v.engine.choose import Unbuilt, open_or_build
from v2v.engine.store import EngineSet
from v2v.runtime.diffusion.deepcache import UNetEngines
from v2v.runtime.diffusion.sampling import NumericalError

Memory = Literal["high", "low"]
Self = TypeVar("Self", bound="LoadedEngines")


def can_reuse(engines: Engines | Unbuilt) -> bool:
    """Whether the UNet can go on from the features of an earlier evaluation."""
    return "unet_outer" in engines.names


class LoadedEngines:
    """What pipelines share. ``takes_pictures`` says for which kind of model one is."""

    takes_pictures = False

    def __init__(self, engines: Engines, device: Device, memory: Memory = "high") -> None:
        self.engines, self.device, self.memory = engines, device, memory
        self.model, self.window = engines.model, engines.window
        if self.model.takes_pictures != self.takes_pictures:
            takes, wanted = ("pictures", "videos") if self.model.takes_pictures else ("videos", "pictures")
            raise EngineError(f"model {self.model.name} makes films of {takes}, not of {wanted}")
        self._loaded: dict[ComponentName, Engine] = {}

    @classmethod
    def load(
        cls: type[Self], engine_set: EngineSet | Path | str, device: str = "auto", memory: Memory = "high"
    ) -> Self:
        """Open an engine set on ``device``: "cpu", "cuda", or "auto" for the one that it was built for.

        With ``memory`` "low" the encoders, the UNet and the decoder are never in memory together.

        Raises:
            EngineError: the set is damaged, does not run here, or is of a model for something else; names the reason
                and, where it helps, the command that rebuilds it.
        """
        if not isinstance(engine_set, EngineSet):
            engine_set = EngineSet.open(Path(engine_set))
        if device == "auto":
            device = engine_set.device
        made = cls(engine_set, open_device(device), memory)
        if memory == "high":
            made.load_all()
        return made

    @classmethod
    def from_pretrained(
        cls: type[Self],
        name: str | os.PathLike[str],
        *,
        weights: str | None = None,
        device: str | None = None,
        memory: Memory = "high",
        progress: BuildProgress = lambda component, phase, share: None,
    ) -> Self:
        """Open the engines of a model, which are built first if there are none.

        Args:
            name: a model, as "small" or "ms-vid2vid-xl", or an engine set: its folder, or its name in the store.
            weights: where a build takes them from, as ``v2v-build-engines --weights``; "small" has its own.
            device: "cpu" or "cuda"; None for the one that the engines were or would be built for.
            memory: as :meth:`load`.
            progress: told how far a build is: component, phase, and its share.

        Raises:
            EngineError: there is no such model or set, or it does not run here.
            BuildError: there are no engines, and they cannot be built.
        """
        found = open_or_build(os.fspath(name), device, weights, progress)
        return cls.load(found, device or "auto", memory)

    def load_all(self) -> None:
        """Load every engine now, so that nothing has to be waited for later."""
        for name in self.engines.names:
            self._engine(name)

    def _unet(self) -> UNetEngines:
        if can_reuse(self.engines):
            return UNetEngines(self._engine("unet_full"), self._engine("unet_outer"))
        return UNetEngines(self._engine("unet"))

    def _engine(self, name: ComponentName) -> Engine:
        """The component's engine, loaded if it is not; with low memory, the others are unloaded first."""
        if name not in self._loaded:
            if self.memory == "low":
                self.device.synchronize()
                for other in list(self._loaded):
                    if not (is_unet(name) and is_unet(other)):
                        self._loaded.pop(other).close()
            self._loaded[name] = self.engines.load(name, self.device.name)
        return self._loaded[name]

    def _checked(self, picture: Frame) -> Frame:
        """A decoded picture, unless something has become NaN or Inf on the way to it."""
        if failure := self.device.failure():
            raise NumericalError(
                f"a picture became NaN or Inf in component vae_decoder, frame {failure.label}; "
                "engines built with --option vae_decoder=fp32 may avoid it"
            )
        return picture

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the memory of engines."""
        for name in list(self._loaded):
            self._loaded.pop(name).close()
