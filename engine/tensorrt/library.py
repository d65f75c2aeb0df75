"""TensorRT and TensorRT for RTX behind one face: everything in which they differ is in this file.

Both have the same Python API under two module names. TensorRT compiles on the GPU that will run the engine, by
timing kernels there. TensorRT for RTX compiles for a family of GPUs without needing one, and finishes the work with
a short just-in-time step when an engine is loaded.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from v2v.core.errors import EngineError

MODULES = {"tensorrt": ("tensorrt",), "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
"""The two libraries in order of preference, and under which names Python finds them: where the package
``tensorrt_rtx``, which does no more than import its bindings, is not installed, they do as well."""

# Where an engine may run besides the GPU it was built on.
Portability = str
SAME_GPU: Portability = "same_gpu"  # the same model of GPU
SAME_CAPABILITY: Portability = "same_compute_capability"
AMPERE_AND_LATER: Portability = "ampere_plus"
RTX: Portability = "rtx"
PORTABILITIES = (SAME_GPU, SAME_CAPABILITY, AMPERE_AND_LATER)

_logger = logging.getLogger(__name__)
_logger.addHandler(logging.NullHandler())  # silent unless somebody asks: v2v-build-engines --verbose

_OLDEST = (10, 14)  # the first TensorRT with IAttention
FP32_CAPABILITY = (8, 0)
"""The first for which TensorRT for RTX compiles products of matrices in FP32: there are none for Turing."""


@dataclass(frozen=True)
class Message:
    """A line of the library's log."""

    severity: int  # 0 internal error, 1 error, 2 warning, 3 information, 4 detail
    text: str

    @property
    def is_error(self) -> bool:
        """Whether it tells of a failure."""
        return self.severity <= 1


@dataclass(frozen=True)
class Library:
    """One of the two modules, imported."""

    name: str
    version: str
    api: Any
    log: Any  # an ILogger; see capture()

    @property
    def is_rtx(self) -> bool:
        """Whether this is TensorRT for RTX."""
        return self.name == "tensorrt_rtx"

    @property
    def times_kernels(self) -> bool:
        """Whether it tries kernels on the GPU while it compiles, so that limits and timing caches matter."""
        return not self.is_rtx

    @property
    def title(self) -> str:
        """Name and version for people."""
        return f"{'TensorRT for RTX' if self.is_rtx else 'TensorRT'} {self.version}"

    def portability(self, requested: str | None) -> Portability:
        """Where an engine built with this library runs; ``requested`` is one of :data:`PORTABILITIES` or None.

        Raises:
            EngineError: no such portability.
        """
        if self.is_rtx:
            return RTX
        if requested is None:
            return SAME_GPU
        if requested not in PORTABILITIES:
            raise EngineError(f"portable={requested} is unknown; choose from {', '.join(PORTABILITIES)}")
        return requested

    @property
    def capabilities(self) -> tuple[tuple[int, int], ...]:
        """The compute capabilities that TensorRT for RTX compiles for; TensorRT takes that of the GPU here."""
        names = self.api.ComputeCapability.__members__ if self.is_rtx else ()
        return tuple((int(name[2:-1]), int(name[-1])) for name in names if name.startswith("SM"))

    def capabilities_from(self, first: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Of :attr:`capabilities` ``first`` and later ones."""
        return tuple(each for each in self.capabilities if each >= first)

    def new_network(self, builder: Any) -> Any:
        """A strongly typed network: the types in the graph are the types that run.

        The flag's number differs between versions; TensorRT for RTX has nothing but strongly typed networks.
        """
        flag = getattr(self.api.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return builder.create_network(0 if flag is None else 1 << int(flag))

    def set_portability(self, config: Any, portability: Portability, first: tuple[int, int]) -> None:
        """Tell the builder which GPUs the engine is for; what it needs came with the capability ``first``."""
        if self.is_rtx:
            capabilities = self.capabilities_from(first)
            config.num_compute_capabilities = len(capabilities)
            for index, (major, minor) in enumerate(capabilities):
                config.set_compute_capability(getattr(self.api.ComputeCapability, f"SM{major}{minor}"), index)
        level = {SAME_CAPABILITY: "SAME_COMPUTE_CAPABILITY", AMPERE_AND_LATER: "AMPERE_PLUS"}.get(portability)
        if level is not None:
            config.hardware_compatibility_level = getattr(self.api.HardwareCompatibilityLevel, level)

    def runtime_config(self, engine: Any, runtime_cache: bytes) -> tuple[Any, Any]:
        """How execution contexts of ``engine`` are made (without memory of their own), and their runtime cache.

        The cache holds what TensorRT for RTX compiled just in time, from earlier runs (``runtime_cache``) and from
        this one; None with TensorRT, which has no such step.
        """
        strategy = self.api.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self.is_rtx:
            return strategy, None
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        cache = config.create_runtime_cache()
        if runtime_cache:
            cache.deserialize(runtime_cache)
        config.set_runtime_cache(cache)
        return config, cache

    def why_invalid(self, runtime: Any, plan: Any) -> str:
        """Why TensorRT for RTX refuses a plan on this machine; empty where it does not say, as TensorRT never does."""
        if not self.is_rtx:
            return ""
        _, reasons = runtime.get_engine_validity(plan)
        known = self.api.EngineInvalidityDiagnostics.__members__.items()
        return ", ".join(
            name.lower().replace("_", " ").replace("unsupported cc", "unsupported compute capability")
            for name, reason in known
            if reasons & int(reason.value)
        )

    @contextmanager
    def capture(self) -> Iterator[list[Message]]:
        """Collect what the library logs meanwhile."""
        before, self.log.messages = self.log.messages, []
        try:
            yield self.log.messages
        finally:
            self.log.messages = before


def runs_on(portability: Portability, built: tuple[int, int] | None, here: tuple[int, int]) -> bool:
    """Whether an engine built on compute capability ``built`` runs on ``here``; the same model of GPU aside.

    What TensorRT for RTX compiled runs on the capabilities that it was compiled for, see :attr:`Library.capabilities`.
    """
    if portability == AMPERE_AND_LATER:
        return here >= (8, 0)
    return here == built


def load_library(name: str | None = None) -> Library:
    """Import TensorRT or TensorRT for RTX (``name`` None: whichever is there, TensorRT first).

    Raises:
        ImportError: not installed.
        EngineError: installed, but too old.
    """
    names = tuple(MODULES) if name is None else (name,)
    for candidate in names:
        # A manifest, which may come from anywhere, must not choose what is imported.
        api = _import_first(MODULES.get(candidate, ()))
        if api is None:
            continue
        version = str(api.__version__)
        if candidate == "tensorrt" and numbers(version)[:2] < _OLDEST:
            oldest = ".".join(map(str, _OLDEST))
            raise EngineError(
                f"TensorRT {version} is too old: {oldest} or later is needed; "
                f"update it with: pip install -U 'tensorrt>={oldest}'"
            )
        return Library(candidate, version, api, _log(api))
    raise ImportError(f"no module named {' or '.join(names)}")


def _import_first(modules: tuple[str, ...]) -> Any:
    """The first of ``modules`` that is installed; None where none is."""
    for module in modules:
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
    return None


def numbers(version: str) -> tuple[int, ...]:
    """``"10.14.1.48"`` -> ``(10, 14, 1, 48)``."""
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0]))


_LOGS: dict[ModuleType, Any] = {}


def _log(api: Any) -> Any:
    """The one logger of a library: TensorRT keeps the first it is given, for the life of the process."""
    if api not in _LOGS:

        class Log(api.ILogger):  # type: ignore[misc]
            """Keeps messages for whoever is capturing, and passes warnings and errors on to Python's log."""

            def __init__(self) -> None:
                super().__init__()
                self.messages: list[Message] = []

            def log(self, severity: Any, text: str) -> None:
                # Details run to hundreds of thousands of lines for a large network.
                if int(severity) <= int(api.ILogger.INFO):
                    self.messages.append(Message(int(severity), text))
                if int(severity) <= int(api.ILogger.WARNING):
                    _logger.warning("%s", " ".join(text.split()))

        _LOGS[api] = Log()
    return _LOGS[api]
