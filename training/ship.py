"""Put trained weights into the package: ``python -m training.ship WEIGHTS.safetensors``.

Besides the weights, the package gets the small model's four graphs at its usual window, so that running it needs
neither PyTorch nor ONNX (see :mod:`v2v.export.packaged`). Needs the ``export`` extra.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import onnx

from v2v.core.components import COMPONENTS, window_for
from v2v.core.configs import MODELS
from v2v.export.graphs import export_component
from v2v.export.packaged import FOLDER, INDEX
from v2v.export.weights import load_weights


def places(graph: Path) -> list[tuple[str, int, int]]:
    """Name, offset and length in bytes of every weight that ``graph`` reads from the file beside it."""
    found = []
    for tensor in onnx.load(graph, load_external_data=False).graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            found.append((tensor.name, int(entries["offset"]), int(entries["length"])))
    return found


def ship(weights: Path, name: str = "small") -> None:
    """Copy ``weights`` into the package and export the graphs from them."""
    model = MODELS[name]
    window = window_for(model)
    target, folder = FOLDER / f"{name}.safetensors", FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    if weights.resolve() != target.resolve():
        shutil.copyfile(weights, target)
    loaded = load_weights(str(target), model)
    described: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for component in COMPONENTS:
            graph = export_component(component, model, loaded, window, "fp32", Path(scratch))
            shutil.copyfile(graph.path, folder / graph.path.name)
            described[component] = {"error": graph.error, "weights": places(graph.path)}
            print(
                f"{component}: {graph.path.stat().st_size / 1e3:.0f} kB, error {graph.error:.1e}", flush=True
            )
    index = {"model": model.to_json(), "window": str(window), "components": described}
    (folder / INDEX).write_text(json.dumps(index) + "\n", encoding="utf-8")


def main() -> None:
    """Ship."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path, help="what training.train export wrote")
    ship(parser.parse_args().weights)


if __name__ == "__main__":
    main()
