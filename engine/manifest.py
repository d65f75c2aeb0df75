"""What an engine set says about itself: ``manifest.json``, as dataclasses.

The manifest is written last and holds everything needed to decide, without loading anything, whether the set
serves a run and what to type to build another.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from v2v.core.components import ComponentName, Tensor, Window, component_names
from v2v.core.configs import ModelConfig
from v2v.core.errors import EngineError
from v2v.engine.backend import BuildOptions

FORMAT = 1
"""Rises when an older v2v could no longer read a manifest correctly."""

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class StoredFile:
    """A file of an engine set; ``name`` is relative to the set's folder."""

    name: str
    bytes: int
    sha256: str


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
        facts = asdict(self)
        facts["weights"] = self.weights.identity
        facts["format"] = FORMAT
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def difference(self, other: Recipe) -> str | None:
        """The first fact that a person chooses in which ``other`` differs; None where it is the same."""
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
    def name(self) -> str:
        """Folder name that a person can read; its last part tells apart what the rest leaves out."""
        parts = [
            self.model.name,
            self.weights.kind,
            str(self.window),
            self.options.precision,
            "fp8" if self.options.fp8 else "",
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
        frames = ":".join(map(str, self.options.frames or (self.window.frames,)))
        words = ["v2v-build-engines", self.model.name, "--weights", self.weights.source]
        words += ["--size", size, "--frames", frames, "--backend", self.backend.name]
        words += ["--device", self.options.device, "--precision", self.options.precision]
        if self.options.workspace_bytes is not None:
            words += ["--workspace", f"{self.options.workspace_bytes / 2**30:g}"]
        words += ["--reuse"] if self.options.reuse else []
        if self.options.optimization_level is not None:
            words += ["--optimization-level", str(self.options.optimization_level)]
        for key, value in self.options.extra.items():
            words += ["--option", f"{key}={value}"]
        return shlex.join(words)


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
            data = json.loads(text)
            version = int(data["format"])
        except (ValueError, TypeError, KeyError) as error:
            raise EngineError(f"is damaged ({_cause(error)})") from error
        if version > FORMAT:
            raise EngineError(
                f"has format {version}, and this version of v2v reads up to {FORMAT}; "
                "update v2v, or rebuild the set"
            )
        try:
            recipe = _recipe(data["recipe"])
            names = component_names(recipe.options.reuse)
            return cls(
                recipe=recipe,
                components={name: _component(data["components"][name]) for name in names},
                tokenizer=StoredFile(**data["tokenizer"]),
                seconds=float(data["seconds"]),
                created=str(data["created"]),
                v2v=str(data["v2v"]),
                format=version,
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise EngineError(
                f"was written by another version of v2v or is damaged ({_cause(error)})"
            ) from error


def _cause(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _recipe(data: dict[str, Any]) -> Recipe:
    options = dict(data["options"])
    if options["frames"] is not None:
        options["frames"] = tuple(options["frames"])
    return Recipe(
        model=ModelConfig.from_json(data["model"]),
        weights=WeightsRecord(**data["weights"]),
        window=Window(**data["window"]),
        options=BuildOptions(**options),
        backend=BackendRecord(**data["backend"]),
    )


def _component(data: dict[str, Any]) -> ComponentRecord:
    def tensors(values: list[dict[str, Any]]) -> tuple[Tensor, ...]:
        return tuple(Tensor(v["name"], v["dtype"], tuple(v["shape"])) for v in values)

    return ComponentRecord(
        files=tuple(StoredFile(**file) for file in data["files"]),
        inputs=tensors(data["inputs"]),
        outputs=tensors(data["outputs"]),
        error=float(data["error"]),
        export_seconds=float(data["export_seconds"]),
        compile_seconds=float(data["compile_seconds"]),
    )
