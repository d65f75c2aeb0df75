"""Engine sets of the stand-in model: built of graphs of a few lines, or by a backend that only copies files."""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.stand_ins.graphs import onnx_model
from tests.stand_ins.model import MODEL, WINDOW
from v2v.core.components import Component, ComponentName, Precision, Window, components
from v2v.core.configs import ModelConfig
from v2v.engine.backend import BACKENDS, BuildOptions, Compatibility, Compiled, Graph, Source
from v2v.engine.build import Built, Exporter, build_engine_set


@dataclass(frozen=True)
class StandInWeights:
    """Weights that are nothing but their name."""

    source: str
    model: ModelConfig = MODEL

    @property
    def kind(self) -> str:
        return self.source.partition(":")[0]

    @property
    def identity(self) -> str:
        return hashlib.sha256(self.source.encode()).hexdigest()


@dataclass(frozen=True)
class StandInGraph:
    """As :class:`v2v.export.graphs.Graph`."""

    path: Path
    error: float = 1.25e-6


def load_weights(source: str, model: ModelConfig, progress: Any = None) -> StandInWeights:
    return StandInWeights(source, model)


def save_safetensors(weights: StandInWeights, folder: Path) -> None:
    folder.mkdir()
    (folder / "unet.safetensors").write_text(weights.source)


def export_bytes(
    name: ComponentName,
    model: ModelConfig,
    weights: StandInWeights,
    window: Window,
    precision: str,
    folder: Path,
    progress: Any,
) -> StandInGraph:
    """A "graph" that no library reads, with its weights beside it."""
    path = folder / f"{name}.onnx"
    path.write_bytes(f"{name} {window}".encode() * 100)
    (folder / f"{name}.onnx.data").write_bytes(weights.source.encode() * 1000)
    return StandInGraph(path)


def export_onnx(
    name: ComponentName,
    model: ModelConfig,
    weights: StandInWeights,
    window: Window,
    precision: str,
    folder: Path,
    progress: Any,
) -> StandInGraph:
    """A real graph, with its weights in a file beside it."""
    import onnx

    component = components(model, window, precision)[name]
    path = folder / f"{name}.onnx"
    onnx.save(
        onnx_model(component, model),
        path,
        save_as_external_data=True,
        location=f"{name}.onnx.data",
        size_threshold=60,  # shapes stay in the graph: ONNX Runtime must see them to infer types
    )
    return StandInGraph(path)


def source_of(
    component: Component, graph: Graph | Path, model: ModelConfig = MODEL, window: Window = WINDOW
) -> Source:
    """A component whose graph is there already, and which has no network."""
    made = StandInGraph(graph) if isinstance(graph, Path) else graph
    precision: Precision = "fp16" if component.outputs[0].dtype == "float16" else "fp32"
    return Source(component, model, window, precision, lambda: made, lambda: None)


BYTES = Exporter(load_weights, export_bytes, save_safetensors)
ONNX = Exporter(load_weights, export_onnx, save_safetensors)


@dataclass
class CopyBackend:
    """A backend that copies what it is given; what it says of itself can be changed by a test."""

    name: str = "copy"
    version: str = "1.0"
    devices: tuple[str, ...] = ("cpu",)
    gpu: str | None = None
    driver: str = "500"
    pause: float = 0.0  # seconds that compiling takes
    compiled: Callable[[str], None] = lambda name: None
    loaded: list[str] = field(default_factory=list)

    def build(self, source: Source, folder: Path, options: BuildOptions, progress: Any) -> Compiled:
        graph = source.graph()
        time.sleep(self.pause)
        self.compiled(source.component.name)
        (folder / "scratch.tmp").write_bytes(b"left behind by a careless compiler")
        made_of = sorted(graph.path.parent.iterdir())
        return Compiled([shutil.copyfile(path, folder / path.name) for path in made_of], graph.error)

    def facts(self, options: BuildOptions) -> dict[str, Any]:
        fp8 = {"fp8": True} if options.extra.get("fp8") == "yes" else {}
        return {"gpu": self.gpu, "driver": self.driver, "version": self.version, **fp8}

    def tolerance(self, name: ComponentName, options: BuildOptions) -> float:
        return 1e-3

    def fits(self, facts: dict[str, Any], device: str) -> Compatibility:
        if device not in self.devices:
            return Compatibility(False, f"there is no {device} here")
        for fact, here in (("version", self.version), ("gpu", self.gpu)):
            if facts[fact] != here:
                return Compatibility(False, f"its {fact} is {facts[fact]}, here is {here}")
        return Compatibility(True)

    def load(self, component: Component, files: list[Path], device: str) -> Any:
        self.loaded.append(component.name)
        return files


def install(backend: CopyBackend, monkeypatch: pytest.MonkeyPatch | None = None) -> CopyBackend:
    """Make ``backend`` one of v2v's, under its name."""
    module = ModuleType(f"stand_in_backend_{backend.name}")
    module.make = lambda: backend  # type: ignore[attr-defined]
    if monkeypatch is None:
        sys.modules[module.__name__] = module
        BACKENDS[backend.name] = f"{module.__name__}:make"
    else:
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(BACKENDS, backend.name, f"{module.__name__}:make")
    return backend


def build(
    output: Path | None = None,
    *,
    backend: str = "copy",
    exporter: Exporter = BYTES,
    weights: str = "random:0",
    window: Window = WINDOW,
    options: BuildOptions | None = None,
    model: ModelConfig = MODEL,
    **more: Any,
) -> Built:
    """Build an engine set of the stand-in model, or of another one."""
    return build_engine_set(
        model,
        weights=weights,
        window=window,
        backend_name=backend,
        options=options or BuildOptions(),
        output=output,
        exporter=exporter,
        **more,
    )
