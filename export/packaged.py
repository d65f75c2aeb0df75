"""Graphs that come with the package: the small model at its usual window, ready without PyTorch and ONNX.

    v2v/export/data/
    ├── small.safetensors            the trained weights, FP16
    └── small/
        ├── index.json               what the graphs were made from, and where each weight goes
        └── unet.onnx …              the four graphs for a CPU, FP32, without their weights

An exported graph reads its weights from a file beside it, each at an offset that the graph records. Here that file
is written from the packaged weights, converted to FP32, which is all that an export at this window would change.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file

import v2v.export
from v2v.core.components import ComponentName, Precision, Window
from v2v.core.configs import ModelConfig
from v2v.core.errors import BuildError
from v2v.core.progress import PhaseProgress

FOLDER = Path(v2v.export.__file__).parent / "data"
"""Weights that come with the package, ``<model>.safetensors``, and folders of graphs named after the model."""

INDEX = "index.json"


@dataclass(frozen=True)
class PackagedWeights:
    """As :class:`v2v.export.weights.Weights`, of the file that comes with the package."""

    source: str
    identity: str
    model: ModelConfig
    kind: str = "trained"


@dataclass(frozen=True)
class PackagedGraph:
    """As :class:`v2v.export.graphs.Graph`."""

    path: Path
    error: float  # found when the graph was exported
    seconds: float


def fits(model: ModelConfig, weights: str, window: Window, precision: Precision) -> bool:
    """Whether the packaged graphs are what an export of all this would give."""
    index = FOLDER / model.name / INDEX
    if not index.is_file() or not _is_packaged(weights, model):
        return False
    described = json.loads(index.read_text(encoding="utf-8"))
    return bool(
        precision == "fp32"
        and described["model"] == json.loads(json.dumps(model.to_json()))
        and described["window"] == str(window)
    )


def _is_packaged(weights: str, model: ModelConfig) -> bool:
    return Path(weights).expanduser().resolve() == (FOLDER / f"{model.name}.safetensors").resolve()


def load_weights(source: str, model: ModelConfig, progress: PhaseProgress | None = None) -> PackagedWeights:
    """Identify the packaged weights, as :func:`v2v.export.weights.load_weights` would."""
    digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()
    return PackagedWeights(source, hashlib.sha256(json.dumps([digest] * 3).encode()).hexdigest(), model)


def export_component(
    name: ComponentName,
    model: ModelConfig,
    weights: PackagedWeights,
    window: Window,
    precision: Precision,
    folder: Path,
    progress: PhaseProgress | None = None,
) -> PackagedGraph:
    """Write ``folder/<name>.onnx`` and its weights, as :func:`v2v.export.graphs.export_component` would.

    Raises:
        BuildError: the weights' file is damaged, or not the one that the graphs were made with.
    """
    started = time.monotonic()
    described = json.loads((FOLDER / model.name / INDEX).read_text(encoding="utf-8"))["components"][name]
    path = folder / f"{name}.onnx"
    try:
        tensors = load_file(weights.source)
    except (OSError, SafetensorError) as error:
        raise BuildError(
            f"{weights.source}: cannot be read as safetensors ({error}); install v2v again"
        ) from error
    with path.with_name(f"{path.name}.data").open("wb") as file:
        for tensor, offset, length in described["weights"]:
            values = tensors.get(tensor)
            if values is None or 4 * values.size != length:
                raise BuildError(
                    f"{weights.source} is not the file that the graphs beside it were made with ({tensor}); "
                    "install v2v again"
                )
            file.seek(offset)
            file.write(values.astype("<f4").tobytes())
    shutil.copyfile(FOLDER / model.name / path.name, path)
    return PackagedGraph(path, described["error"], time.monotonic() - started)


def plain_network(name: ComponentName, model: ModelConfig, weights: PackagedWeights) -> Any:
    """As :func:`v2v.export.graphs.plain_network`; this one needs PyTorch."""
    from v2v.export.graphs import plain_network
    from v2v.export.weights import load_weights

    return plain_network(name, model, load_weights(weights.source, model))
