"""A file that is far larger than one of its kind can be is refused before its content is read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from v2v.benchmarks.results import Results
from v2v.core.errors import V2VError
from v2v.engine.backend import backend
from v2v.engine.manifest import MANIFEST
from v2v.engine.store import TOKENIZER, EngineSet
from v2v.runtime.diffusion.prompt import Tokenizer
from v2v.runtime.films.batch import read_prompts

READERS: dict[str, Callable[[Path], object]] = {
    MANIFEST: lambda path: EngineSet.open(path.parent),
    TOKENIZER: Tokenizer,
    "results.json": Results.read,
    "prompts.json": read_prompts,
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_is_far_too_large_is_refused(stand_in_engines: Path, tmp_path: Path, name: str) -> None:
    path = Path(shutil.copytree(stand_in_engines, tmp_path / "engines")) / name
    path.touch()
    os.truncate(path, 1 << 40)  # a hole, which takes no room
    with pytest.raises(V2VError, match=rf"{name}.* more than \d+ MiB"):
        READERS[name](path)


def test_a_graph_that_is_far_too_large_is_refused(stand_in_engines: Path, tmp_path: Path) -> None:
    component = EngineSet.open(stand_in_engines).component("unet")
    path = tmp_path / "unet.onnx"
    path.touch()
    os.truncate(path, 1 << 40)
    with pytest.raises(V2VError, match=f"unet.onnx.* {1 << 40} bytes"):
        backend("onnxruntime").load(component, [path], "cpu")
