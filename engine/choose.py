"""Choose the engine set of a run, and the defaults of a build."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from v2v.core.components import ComponentName, Precision, Window, component_names, window_for
from v2v.core.configs import MODELS, ModelConfig
from v2v.core.console import one_of
from v2v.core.errors import BuildError, EngineError
from v2v.core.progress import BuildProgress, Listener
from v2v.core.published import PUBLISHED, PURPOSES
from v2v.device.gpus import cuda_devices, see_only
from v2v.engine.backend import BACKENDS, BuildOptions, backend
from v2v.engine.build import build_engine_set
from v2v.engine.store import EngineSet, NoEngineSet, Wanted, engines_root, find
from v2v.export import packaged

Device = Literal["cpu", "cuda"]


def named_device(text: str | None) -> Device | None:
    """The device that ``--device`` names; after "cuda:1" CUDA shows the second GPU alone.

    Raises:
        UsageError: there is no such device, or it is too late to choose a GPU.
    """
    if text is not None and text.startswith("cuda:"):
        see_only(text.removeprefix("cuda:"))
        return "cuda"
    return None if text is None else one_of("--device", text, get_args(Device))


# Where no model is named, the first of these whose engines are there is used; one is built if need be.
_PREFERENCE = sorted(
    (n for n in PURPOSES if PURPOSES[n].rank is not None), key=lambda n: PURPOSES[n].rank or 0
)


_BUILT_ON_DEMAND = next(name for name, purpose in PURPOSES.items() if purpose.on_demand)


def default_device() -> str:
    """CUDA where the driver shows a GPU and a backend is installed that runs on it, else the CPU."""
    if cuda_devices():
        for name in BACKENDS:
            try:
                if "cuda" in backend(name).devices:
                    return "cuda"
            except EngineError:
                continue
    return "cpu"


def default_backend(device: str) -> str:
    """The preferred backend among those installed here that run on ``device``.

    Raises:
        EngineError: there is none.
    """
    if device == "cpu":
        return "onnxruntime"  # the others exist for GPUs
    reasons = []
    for name in BACKENDS:
        try:
            if device in backend(name).devices:
                return name
            reasons.append(f"{name} does not run on {device} here")
        except EngineError as error:
            reasons.append(str(error))
    raise EngineError(f"no backend for {device}: {'; '.join(reasons)}")


def default_precision(device: str) -> Precision:
    """FP32 on a CPU, where half precision is computed by conversion; FP16 on a GPU."""
    return "fp32" if device == "cpu" else "fp16"


def default_weights(model: ModelConfig) -> str:
    """The weights of ``model`` where the user names none: those in the package; for the small model random ones.

    Raises:
        BuildError: they do not come with this package.
    """
    trained = packaged.FOLDER / f"{model.name}.safetensors"
    if trained.is_file():
        return str(trained)
    if model.name == _BUILT_ON_DEMAND:
        return "random:0"
    raise BuildError(
        f"the weights of {model.name} do not come with v2v: name them with --weights, a folder with the "
        "published files or of safetensors, or hf:ORG/NAME (random:0 makes some up, to try things out)"
    )


def choose_engines(
    named: str | None, wanted: Wanted, listener: Listener, *, fast: bool = False, reuse: int | None = None
) -> EngineSet:
    """The engine set to use: the one named, else the best in the store, else the small model's, built now.

    Among sets that are the same otherwise, what is asked for decides: one built with --reuse to ``reuse`` features, and
    to be ``fast`` also one with FP8.

    Raises:
        EngineError: the named set does not fit ``wanted``, or none does and it is not the small model's.
        BuildError: the small model's engines cannot be built here.
    """
    return _choose(named, wanted, listener, partial(_find_or_build, wanted, listener), fast, reuse)


def _choose(
    named: str | None,
    wanted: Wanted,
    listener: Listener,
    best: Callable[[], EngineSet],
    fast: bool,
    reuse: int | None,
) -> EngineSet:
    """As :func:`choose_engines`, ``best`` giving the set where none is named."""
    if named is not None:
        engine_set = _open(named)
        engine_set.require(wanted)
    else:
        engine_set = best()
        if fast or (reuse or 1) > 1:
            engine_set = _specialised(engine_set, wanted, fast=fast, reuse=reuse != 1)
    if engine_set.model.takes_pictures:
        raise EngineError(
            f"engine set {engine_set.name} is of model {engine_set.model.name}, which makes a film of a picture and "
            "enhances none; name another, or --engines-first for a picture"
        )
    _tell(engine_set, listener)
    return engine_set


def choose_first_stage(named: str | None, wanted: Wanted, listener: Listener) -> EngineSet:
    """The engine set that makes a film of a picture: the one named, else the best in the store.

    Of ``wanted`` backend and device count.

    Raises:
        EngineError: the named set is not of such a model, or there is none; the message says how to build one.
    """
    if named is not None:
        engine_set = _open(named)
        engine_set.require(Wanted(device=wanted.device))
        if not engine_set.model.takes_pictures:
            raise EngineError(
                f"--engines-first {named}: model {engine_set.model.name} makes no film of a picture"
            )
    else:
        engine_set = _find_first_stage(wanted)
    _tell(engine_set, listener)
    return engine_set


def _find_first_stage(wanted: Wanted) -> EngineSet:
    names = [name for name, model in MODELS.items() if model.takes_pictures]
    for name in names:
        try:
            return find(Wanted(model=name, backend=wanted.backend, device=wanted.device))
        except NoEngineSet as error:
            none = error
    published = PUBLISHED[names[-1]]
    raise NoEngineSet(
        f"a picture becomes a film by model {names[-1]}, and {none} --weights hf:{published.repository} "
        f"(downloads {published.size}; licence of the weights: {published.licence})"
    )


def _open(named: str) -> EngineSet:
    """The set of that name in the store, or the one in that folder."""
    in_store = engines_root() / named
    return EngineSet.open(in_store if in_store.is_dir() and not Path(named).exists() else Path(named))


def _tell(engine_set: EngineSet, listener: Listener) -> None:
    recipe = engine_set.manifest.recipe
    listener.say(f"engine set {engine_set.name}: {recipe.model.name} on {recipe.backend.name}")
    if recipe.weights.kind == "random":
        warnings.warn(
            f"the weights of model {recipe.model.name} are random numbers: its pictures mean nothing",
            stacklevel=3,
        )


@dataclass(frozen=True)
class Unbuilt:
    """Engines that a run would build first."""

    model: ModelConfig
    device: str
    path: None = None

    @property
    def window(self) -> Window:
        """What the UNet will take at once."""
        return window_for(self.model)

    @property
    def names(self) -> Collection[ComponentName]:
        """The components that will be built."""
        return component_names(self.model)

    @property
    def facts(self) -> dict[str, str]:
        """As far as they are known."""
        return {"model": self.model.name, "engines": "to be built"}

    @property
    def command_with_reuse(self) -> str:
        """What builds the same with a UNet that can go on from the features of an earlier evaluation."""
        return f"v2v-build-engines {self.model.name} --reuse"


def foresee_engines(
    named: str | None, wanted: Wanted, listener: Listener, *, fast: bool = False, reuse: int | None = None
) -> EngineSet | Unbuilt:
    """As :func:`choose_engines`, but nothing is built.

    Raises:
        EngineError: as there.
    """
    try:
        return _choose(named, wanted, listener, partial(_find, wanted), fast, reuse)
    except NoEngineSet:
        if named is not None or not _may_be_built(wanted):
            raise
        return Unbuilt(MODELS[_BUILT_ON_DEMAND], wanted.device or default_device())


def _specialised(engine_set: EngineSet, wanted: Wanted, *, fast: bool, reuse: bool) -> EngineSet:
    """The set like ``engine_set`` that was built with --reuse or FP8 as asked; ``engine_set`` where there is none."""
    recipe = engine_set.manifest.recipe
    sibling = Wanted(
        model=recipe.model.name,
        window=recipe.window,
        backend=recipe.backend.name,
        precision=recipe.options.precision,
        device=wanted.device,
        weights=recipe.weights.identity,
    )
    for reusing in (True, False) if reuse else (False,):
        for fp8 in (True, False) if fast else (recipe.fp8,):
            with contextlib.suppress(NoEngineSet):
                return find(replace(sibling, reuse=reusing, fp8=fp8))
    return engine_set


def _find(wanted: Wanted) -> EngineSet:
    """The best set of the first model that has one.

    Raises:
        NoEngineSet: none has.
    """
    *others, last = _PREFERENCE if wanted.model is None else [wanted.model]
    for name in others:
        with contextlib.suppress(NoEngineSet):
            return find(Wanted(model=name, backend=wanted.backend, device=wanted.device))
    return find(Wanted(model=last, backend=wanted.backend, device=wanted.device))


def _may_be_built(wanted: Wanted) -> bool:
    """Whether the small model's engines would do, which a run builds where there are none."""
    return wanted.model in (None, _BUILT_ON_DEMAND)


def _find_or_build(wanted: Wanted, listener: Listener) -> EngineSet:
    try:
        return _find(wanted)
    except NoEngineSet:
        if not _may_be_built(wanted):
            raise
    model = MODELS[_BUILT_ON_DEMAND]
    listener.say(f"there are no engines for model {model.name} yet: building them once")
    return build_default(model, wanted, listener)


def build_default(
    model: ModelConfig, wanted: Wanted, listener: Listener, weights: str | None = None
) -> EngineSet:
    """Build engines of ``model`` as ``wanted`` asks; what it leaves open has the defaults of a build.

    Raises:
        BuildError, EngineError: as :func:`~v2v.engine.build.build_engine_set`.
    """
    device = wanted.device or default_device()
    with listener.build() as progress:
        return build_engine_set(
            model,
            weights=weights or default_weights(model),
            window=wanted.window or window_for(model),
            backend_name=wanted.backend or default_backend(device),
            options=BuildOptions(precision=wanted.precision or default_precision(device), device=device),
            progress=progress,
        ).engine_set


def open_or_build(name: str, device: str | None, weights: str | None, progress: BuildProgress) -> EngineSet:
    """The engine set of that name or in that folder, or the best of the model of that name; built where there is none.

    Raises:
        EngineError: there is no such model or set, or it does not run here.
        BuildError: it cannot be built.
    """
    if name not in MODELS:
        return _open(name)
    wanted = Wanted(model=name, device=device)
    if weights is None:
        with contextlib.suppress(NoEngineSet):
            return find(wanted)
    return build_default(MODELS[name], wanted, _Builder(progress), weights)


class _Builder:
    """Listens to a build alone."""

    def __init__(self, progress: BuildProgress) -> None:
        self._progress = progress

    def say(self, message: str) -> None:
        """Nobody reads it."""

    def build(self) -> contextlib.AbstractContextManager[BuildProgress]:
        """The function that is told."""
        return contextlib.nullcontext(self._progress)
