"""The results of a benchmark, and the JSON that holds them.

``results.json`` is these dataclasses, nested as here and named as here: a :class:`Results` at the top, seconds for
times, bytes for sizes, pixels for pictures. A :class:`Figure` is an object with all its ``samples`` and, for
readers of the file, their ``median``, ``low`` and ``high``. ``format`` rises when an older v2v could no longer read
the file correctly; fields may be added without that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from v2v.core.components import Precision
from v2v.core.errors import V2VError
from v2v.core.files import read_limited

FORMAT = 1
_LARGEST = 64 << 20  # bytes

Kind = Literal["engines", "eager", "compile"]
"""An engine set; PyTorch as the reference runs it; PyTorch compiled by ``torch.compile``."""

Axis = Literal["frames", "pixels", "steps"]


class ResultsError(V2VError):
    """A file of results that cannot be read or written."""


@dataclass(frozen=True)
class Figure:
    """Repeated measurements of one quantity. The spread is where the middle 80 % of the samples lie."""

    samples: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.samples:
            raise ValueError("a figure without samples")

    @property
    def median(self) -> float:
        """Middle of the samples."""
        return float(np.median(self.samples))

    @property
    def low(self) -> float:
        """10th percentile."""
        return float(np.percentile(self.samples, 10))

    @property
    def high(self) -> float:
        """90th percentile."""
        return float(np.percentile(self.samples, 90))


@dataclass(frozen=True)
class Machine:
    """Where it was measured."""

    cpu: str
    cores: int  # that this process may use
    memory_bytes: int
    gpu: str | None
    gpu_memory_bytes: int | None
    driver: str | None  # NVIDIA's
    system: str
    python: str
    versions: Mapping[str, str]  # of the libraries that take part


@dataclass(frozen=True)
class Ceilings:
    """What the hardware of ``device`` reaches at best, measured in the same session."""

    device: str
    precision: Precision
    copy_bytes_per_second: Figure  # bytes read plus bytes written
    product_flops_per_second: (
        Figure | None
    )  # large matrix product in ``precision``; None: nothing to run it with


@dataclass(frozen=True)
class Work:
    """What one call of a component must compute and move at least.

    ``bytes`` is what its convolutions, matrix products and attentions read and write, each once, everything in
    between being free.
    """

    model: str
    window: str
    precision: Precision
    component: str
    flops: float
    bytes: float


@dataclass(frozen=True)
class Clip:
    """The video of the whole runs."""

    frames: int
    source_height: int
    source_width: int
    height: int  # of the output
    width: int
    steps: int


@dataclass(frozen=True)
class Subject:
    """What was measured: an engine set or a baseline on a device."""

    name: str  # in tables and plots
    kind: Kind
    backend: str
    backend_version: str
    device: str
    model: str
    weights: str  # "random", "published" or "trained"
    weights_identity: str
    window: str  # width x height x frames
    precision: Precision
    engine_set: str | None  # its folder's name

    @property
    def key(self) -> tuple[str, ...]:
        """The facts that must agree for two measurements to be comparable; versions may differ."""
        return (self.kind, self.backend, self.device, self.model, self.window, self.precision)


@dataclass(frozen=True)
class Build:
    """How long the engines took to make, once."""

    seconds: float  # all of it
    export: Mapping[str, float]  # component -> seconds
    compile: Mapping[str, float]


ENCODE, EVALUATE, DECODE = "VAE encode", "UNet evaluation", "VAE decode"
TOLD = (ENCODE, EVALUATE, DECODE)
"""Stages that every run has and every report tells."""


@dataclass(frozen=True)
class Stage:
    """One kind of work in a run."""

    name: str
    calls: int  # in the traced run
    seconds: Figure  # of one call
    total: float  # seconds in the traced run


@dataclass(frozen=True)
class Span:
    """When a stage was at work in the traced run; neighbours of one stage are one span."""

    track: Literal["host", "device"]
    stage: str
    start: float
    seconds: float


@dataclass(frozen=True)
class Point:
    """Whole runs with one setting changed."""

    value: int
    seconds: Figure


@dataclass(frozen=True)
class Sweep:
    """Cost against frames of the clip, pixels of a frame of the output, or steps; everything else fixed."""

    over: Axis
    clip: Clip  # what is fixed
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Measured:
    """All measurements of one subject."""

    subject: Subject
    clip: Clip
    load: Figure  # opening the device and loading all engines, in a fresh process
    first_step: Figure  # from the start of loading to the end of the first step of a run
    run: Figure  # decoded, enhanced and encoded, engines loaded
    evaluations: int  # of the UNet in one run
    stages: tuple[Stage, ...]
    timeline: tuple[Span, ...]
    host_bytes: Figure  # peak of the process
    gpu_bytes: Figure | None  # peak of the process; None without a GPU
    engine_bytes: int | None  # on disk
    build: Build | None
    sweeps: tuple[Sweep, ...] = ()

    def __post_init__(self) -> None:
        if missing := set(TOLD) - {stage.name for stage in self.stages}:
            raise ValueError(f"measurements without {' and '.join(sorted(missing))}")

    def stage(self, name: str) -> Stage:
        """The stage of that name, one of :data:`TOLD`."""
        return next(stage for stage in self.stages if stage.name == name)


@dataclass(frozen=True)
class Failed:
    """A subject that could not be measured."""

    name: str
    reason: str


@dataclass(frozen=True)
class Results:
    """One session of ``v2v-bench``."""

    created: str  # ISO 8601, UTC
    v2v: str
    command: str
    repeats: int
    machine: Machine
    ceilings: tuple[Ceilings, ...]
    work: tuple[Work, ...]
    measured: tuple[Measured, ...]
    failed: tuple[Failed, ...]
    format: int = FORMAT

    def ceiling(self, device: str) -> Ceilings | None:
        """The ceilings of ``device``, if they were measured."""
        return next((c for c in self.ceilings if c.device == device), None)

    def to_json(self) -> str:
        """The text of ``results.json``."""
        return json.dumps(_plain(self), indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read ``results.json``, or the one in a folder that v2v-bench wrote.

        Raises:
            ResultsError: not such a file, or one of a newer format.
        """
        file = path / "results.json" if path.is_dir() else path
        try:
            text = read_limited(file, _LARGEST)
            version = msgspec.json.decode(text, type=_Format).format
        except FileNotFoundError:
            raise ResultsError(
                f"{file}: no such file; v2v-bench -o FOLDER writes FOLDER/results.json"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise ResultsError(f"{file} is not a file of v2v-bench's results ({error})") from error
        if version > FORMAT:
            raise ResultsError(
                f"{file} has format {version}, and this version of v2v reads up to {FORMAT}; update v2v"
            )
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.ValidationError as error:
            raise ResultsError(f"{file} is damaged ({error})") from error


@dataclass(frozen=True)
class _Format:
    """What every version of the file begins with."""

    format: int


def _plain(value: Any) -> Any:
    """Dataclasses -> dicts, with a figure's median and spread written out."""
    if isinstance(value, Figure):
        return {
            "median": value.median,
            "low": value.low,
            "high": value.high,
            "samples": list(value.samples),
        }
    if hasattr(value, "__dataclass_fields__"):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
