"""The description of an engine set, ``manifest.json``, as dataclasses.

The manifest is written last and holds everything needed to decide, without loading anything, whether the set
serves a run and what to type to build another.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

import msgspec

from v2v.core.components import ComponentName, Tensor, Window, component_names
from v2v.core.configs import MODELS, ModelConfig, facts_of
from v2v.core.errors import EngineError
from v2v.engine.backend import BuildOptions

FORMAT = 1
"""Rises when an older v2v could no longer read a manifest correctly."""

MANIFEST = "manifest.json"

FP16_RANGE = 65504.0
"""The largest number that FP16 holds."""


@dataclass(frozen=True)
class StoredFile:
    """A file of an engine set; ``name`` is relative to the set's folder.

    Raises:
        ValueError: a name that leads out of the folder, or a size or digest that nothing has.
    """

    name: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        path = PurePosixPath(self.name)
        if path.is_absolute() or ".." in path.parts or "\\" in self.name or not path.parts:
            raise ValueError(f"'{self.name}' is no name of a file inside the engine set")
        if self.bytes < 0 or not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError(f"the size or the digest of '{self.name}' cannot be right")


@dataclass(frozen=True)
class WeightsRecord:
    """Where the weights came from."""

    source: str  # as given: a folder, "hf:ORG/NAME", "random:0"
    kind: str  # "random", "published" or "trained"
    identity: str  # hex sha256 of their content


@dataclass(frozen=True)
class BackendRecord:
    """What compiled the components, and what must stay the same for them to load."""

    name: str
    version: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class ComponentRecord:
    """A compiled component."""

    files: tuple[StoredFile, ...]  # the one to load first
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    error: float  # relative L2 error of the exported graph against PyTorch, on random input
    export_seconds: float
    compile_seconds: float
    # The largest numbers inside, in FP32 on a picture and a prompt, by what makes them: of a component in FP16 whose
    # weights are not random.
    largest: Mapping[str, float] = field(default_factory=dict)

    @property
    def too_large(self) -> str:
        """What makes the largest number, and which, if FP16 holds no more than four times as much; else nothing."""
        place, number = max(self.largest.items(), key=lambda each: each[1], default=("", 0.0))
        return f"'{place}' comes to {number:.0f}" if number > FP16_RANGE / 4 else ""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what an engine set holds: the same recipe gives an interchangeable set."""

    model: ModelConfig
    weights: WeightsRecord
    window: Window
    options: BuildOptions
    backend: BackendRecord

    @property
    def identity(self) -> str:
        """Hex sha256 over every fact of the recipe except the name under which the weights were found."""
        facts = facts_of(self)
        facts["weights"] = self.weights.identity
        facts["format"] = FORMAT
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def difference(self, other: Recipe) -> str | None:
        """The first of the facts that a person chooses in which ``other`` differs; None where all are the same."""
        for fact, mine, theirs in (
            ("model", self.model.name, other.model.name),
            ("window", self.window, other.window),
            ("precision", self.options.precision, other.options.precision),
            ("device", self.options.device, other.options.device),
            ("backend", self.backend.name, other.backend.name),
            ("hash of the weights", self.weights.identity, other.weights.identity),
        ):
            if mine != theirs:
                return f"its {fact} is {theirs}, wanted is {mine}"
        if self.model != other.model:
            return f"its configuration of the model {self.model.name} differs"
        return None if self.options == other.options else "it was built with other options"

    @property
    def fp8(self) -> bool:
        """Whether products of the UNet are computed in FP8."""
        return bool(self.backend.facts.get("fp8"))

    @property
    def bf16(self) -> bool:
        """Whether BF16 takes the place of FP16."""
        return bool(self.backend.facts.get("bf16"))

    @property
    def name(self) -> str:
        """Folder name that a person can read; its last part tells apart what the rest leaves out."""
        parts = [
            self.model.name,
            self.weights.kind,
            str(self.window),
            self.options.precision,
            *(f"{name.replace('_', '-')}-{precision}" for name, precision in self.options.mixed),
            "fp8" if self.fp8 else "",
            "bf16" if self.bf16 else "",
            self.options.device,
            "reuse" if self.options.reuse else "",
            f"{self.backend.name}-{self.backend.version}",
            str(self.backend.facts.get("label", "")),
            self.identity[:8],
        ]
        return "-".join(part for part in parts if part)

    @property
    def command(self) -> str:
        """The command that builds this recipe."""
        size = f"{self.window.width}x{self.window.height}"
        arguments = ["v2v-build-engines", self.model.name, "--weights", self.weights.source]
        arguments += ["--size", size, "--frames", str(self.window.frames), "--backend", self.backend.name]
        arguments += ["--device", self.options.device, "--precision", self.options.precision]
        arguments += ["--reuse"] if self.options.reuse else []
        for key, value in (*self.options.mixed, *self.options.extra.items()):
            arguments += ["--option", f"{key}={value}"]
        return shlex.join(arguments)


@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``."""

    recipe: Recipe
    components: Mapping[ComponentName, ComponentRecord]
    tokenizer: StoredFile
    seconds: float  # whole build, weights and export included
    created: str  # ISO 8601, UTC
    v2v: str  # version of the package that built it
    format: int = FORMAT

    def __post_init__(self) -> None:
        try:
            _ = self.created_here
        except OverflowError as error:
            raise ValueError(f"nothing was made at {self.created}") from error

    @property
    def created_here(self) -> datetime:
        """When it was built, by the clock of this machine."""
        return datetime.fromisoformat(self.created).astimezone()

    @property
    def gpu(self) -> str | None:
        """Name of the GPU that the engines were compiled for; None where they are not tied to one."""
        gpu = self.recipe.backend.facts.get("gpu")
        return None if gpu is None else str(gpu)

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """Every file of the set but the manifest."""
        return (*(file for record in self.components.values() for file in record.files), self.tokenizer)

    def to_json(self) -> str:
        """The text of ``manifest.json``."""
        data = asdict(self)
        return json.dumps({"format": data.pop("format"), "gpu": self.gpu, **data}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Inverse of :meth:`to_json`.

        Raises:
            EngineError: not a manifest, or one of a newer format. The message is the cause alone; who reads
                the file adds its path.
        """
        try:
            data = msgspec.json.decode(text)
            version = msgspec.convert(data, _Format).format
        except (msgspec.MsgspecError, RecursionError) as error:
            raise EngineError(f"is damaged ({error})") from error
        if version > FORMAT:
            raise EngineError(
                f"has format {version}, and this version of v2v reads up to {FORMAT}; "
                "update v2v, or rebuild the set"
            )
        try:
            manifest = msgspec.convert(_modernised(data), cls)
        except (msgspec.MsgspecError, TypeError, KeyError, AttributeError) as error:
            raise EngineError(f"was written by another version of v2v or is damaged ({error})") from error
        for name in component_names(manifest.recipe.model, manifest.recipe.options.reuse):
            if name not in manifest.components:
                raise EngineError(f"was written by another version of v2v or is damaged ({name} is missing)")
        return manifest


@dataclass(frozen=True)
class _Format:
    """What every version of the file has."""

    format: int


def _modernised(data: Any) -> Any:
    """What versions before 0.2 wrote: TensorRT's options among everybody's, FP8 as an option alone.

    They also had ranges of frames, which no run made use of, and a small model that enlarged whatever the size.
    """
    model = data["recipe"]["model"]
    if model["name"] in MODELS:
        usual = MODELS[model["name"]].defaults.most_short_side
        model.get("defaults", {}).setdefault("most_short_side", usual)
    options, facts = data["recipe"]["options"], data["recipe"]["backend"]["facts"]
    for old, new, text in (
        ("workspace_bytes", "workspace", lambda count: f"{count / 2**30:g}"),
        ("optimization_level", "optimization_level", str),
    ):
        if (value := options.pop(old, None)) is not None:
            options["extra"][new] = text(value)
    options.pop("frames", None)
    options["extra"].pop("frames", None)
    if options["extra"].get("fp8") == "yes":
        facts["fp8"] = True
    return data
