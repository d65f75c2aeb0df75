"""An engine set from somebody else reads its own files alone, loads what its manifest says, and stops no other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.stand_ins.sets import CopyBackend, build, install
from v2v.core.errors import EngineError
from v2v.engine.manifest import MANIFEST
from v2v.engine.store import EngineSet, Wanted, find, list_sets


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> EngineSet:
    install(CopyBackend(), monkeypatch)
    return build().engine_set


def edit(found: EngineSet, where: tuple[str | int, ...], value: Any) -> None:
    """Change one entry of the manifest."""
    data = json.loads((found.path / MANIFEST).read_text())
    inner = data
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    (found.path / MANIFEST).write_text(json.dumps(data))


UNET = ("components", "unet", "files", 0, "name")


@pytest.mark.parametrize("where", [UNET, ("tokenizer", "name")])
@pytest.mark.parametrize("how", ["absolute", "above"])
def test_a_name_in_a_manifest_stays_inside_its_folder(
    built: EngineSet, tmp_path: Path, where: tuple[str | int, ...], how: str
) -> None:
    data: Any = json.loads((built.path / MANIFEST).read_text())
    for key in where:
        data = data[key]
    outside = tmp_path / "outside"
    shutil.copy(built.path / data, outside)
    edit(built, where, str(outside) if how == "absolute" else f"../../{outside.name}")
    (built.path.parent.parent / outside.name).write_bytes(outside.read_bytes())
    with pytest.raises(EngineError, match=MANIFEST):
        EngineSet.open(built.path)


def test_a_link_that_leads_out_of_the_folder_is_refused(built: EngineSet, tmp_path: Path) -> None:
    moved = shutil.move(built.path / "tokenizer.json", tmp_path / "tokenizer.json")
    (built.path / "tokenizer.json").symlink_to(moved)
    with pytest.raises(EngineError, match=r"tokenizer\.json"):
        EngineSet.open(built.path)


def test_an_engine_that_is_not_what_the_manifest_says_is_not_loaded(built: EngineSet) -> None:
    file = built.path / "unet" / "unet.onnx"
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.write_bytes(content)
    with pytest.raises(EngineError, match=r"unet\.onnx is damaged"):
        EngineSet.open(built.path).load("unet", "cpu")


NONSENSE = [
    (("recipe", "window", "frames"), "four"),
    (("recipe", "window", "height"), 81),
    (("recipe", "backend", "name"), 5),
    (("recipe", "backend", "facts"), []),
    (("recipe", "options", "precision"), None),
    (("components",), []),
    (("components", "unet", "files"), "unet"),
    (("components", "unet", "inputs"), [{"name": 1}]),
    (("components", "unet", "error"), "small"),
    (("tokenizer",), None),
    (("tokenizer", "bytes"), "many"),
    (("created",), 2020),
    (("recipe", "model", "unet", "width"), -1),
    (("recipe", "model"), "small"),
    (("recipe", "window", "levels"), 2**62),
    (("recipe", "window", "factor"), 0),
    (("recipe", "model", "unet", "multipliers"), []),
    (("recipe", "model", "unet", "head_size"), 2**62),
    (("recipe", "model", "latent_scale"), 0),
    (("recipe", "model", "defaults", "scale"), 1e308),
    (("recipe", "backend", "facts"), {}),
    (("created",), "yesterday"),
    (("created",), "0001-01-01T00:00:00+14:00"),
]


@pytest.mark.parametrize(("where", "value"), NONSENSE)
def test_a_bad_set_stops_no_other(built: EngineSet, where: tuple[str, ...], value: Any) -> None:
    good = build(weights="random:1").engine_set
    edit(built, where, value)
    found = list(list_sets())
    assert len(found) == 2
    assert good in found
    assert find(Wanted(model=good.manifest.recipe.model.name)) == good


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"format": ' * 5000, "\ufeff", "nul\0", '{"format": 1e999}']
)
def test_a_manifest_of_nonsense_stops_no_other(built: EngineSet, text: str) -> None:
    good = build(weights="random:1").engine_set
    (built.path / MANIFEST).write_text(text)
    found = list(list_sets())
    assert len(found) == 2
    assert good in found
    assert find(Wanted(model=good.manifest.recipe.model.name)) == good
