"""v2v's nodes for ComfyUI: what they give, tell, and leave behind, on what stands in for ComfyUI."""

from __future__ import annotations

import asyncio
import io
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import v2v
from tests.installation import tomllib
from tests.runtime.clips import make_video, picture, times
from v2v.runtime.diffusion.loaded import LoadedEngines

torch = pytest.importorskip("torch", reason="ComfyUI has PyTorch")
comfy = pytest.importorskip("tests.stand_ins.comfy")

NODES = comfy.NODES
WORKFLOWS = sorted((NODES / "example_workflows").glob("*.json"))
DEFAULTS = {"prompt": "", "negative_prompt": "", "steps": 0, "strength": 0.0, "guidance": 0.0, "scale": 0.0}
DEFAULTS |= {"fast": False, "seed": v2v.Settings.seed}
FILE = {**DEFAULTS, "filename_prefix": "films/fox", "format": "mp4"}


@pytest.fixture
def page() -> Any:
    """What is seen of a node that is executed."""
    return comfy.Watched()


@pytest.fixture
def nodes(page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The nodes by their names, in a ComfyUI whose folders are in ``tmp_path``."""
    package = comfy.import_nodes(tmp_path, page, monkeypatch)
    extension = asyncio.run(package.comfy_entrypoint())
    return {node.define_schema().node_id: node for node in asyncio.run(extension.get_node_list())}


@pytest.fixture
def engines(nodes: dict[str, Any], stand_in_engines: Path) -> v2v.VideoToVideo:
    return loaded(nodes["V2VLoadEngines"], stand_in_engines)


def loaded(node: Any, folder: Path) -> Any:
    (engines,) = node.execute(str(folder), "auto", "high").result
    return engines


def levels(count: int = 4) -> np.ndarray:
    return np.stack([picture(number) for number in range(count)])


def images(count: int = 4) -> Any:
    return torch.from_numpy(levels(count)).float() / 255


def made_files(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "output").rglob("*") if path.is_file())


def streams(path: Path) -> list[str]:
    with av.open(str(path)) as opened:
        return [stream.type for stream in opened.streams]


# What nodes say of themselves ---------------------------------------------------------------------------------


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_example_workflows_fit_the_nodes(nodes: dict[str, Any], file: Path) -> None:
    drawn = json.loads(file.read_text())
    by_id = {node["id"]: node for node in drawn["nodes"]}
    ours = [node for node in drawn["nodes"] if node["type"] in nodes]
    assert ours
    for node in ours:
        schema = nodes[node["type"]].define_schema()
        assert [(i["name"], i["type"]) for i in node["inputs"]] == [(i.id, i.io_type) for i in schema.inputs]
        assert [o["type"] for o in node["outputs"]] == [o.io_type for o in schema.outputs]
        left = list(node["widgets_values"])
        for asked in schema.inputs:
            if "options" in asked.more:
                assert left.pop(0) in asked.more["options"]
            elif "default" in asked.more:
                assert isinstance(left.pop(0), (type(asked.more["default"]), int))
            if asked.more.get("control_after_generate"):
                assert left.pop(0) == "fixed"
        assert left == []
    for _, source, slot, target, into, kind in drawn["links"]:
        assert by_id[source]["outputs"][slot]["type"] == by_id[target]["inputs"][into]["type"] == kind


def test_the_folder_is_of_v2vs_version() -> None:
    facts = tomllib.loads((NODES / "pyproject.toml").read_text())
    assert facts["project"]["version"] == v2v.__version__
    assert facts["tool"]["comfy"]["DisplayName"] == "v2v"


# Frames -------------------------------------------------------------------------------------------------------


def test_frames_are_those_that_python_makes(nodes: dict[str, Any], engines: Any, page: Any) -> None:
    asked = {"prompt": "a fox", "steps": 2, "strength": 0.4, "guidance": 3.0, "scale": 2.0, "seed": 2**64 - 1}
    with_alpha = torch.cat([images(), torch.ones(4, 48, 64, 1)], dim=-1)
    (made,) = nodes["V2VEnhanceImages"].execute(engines, with_alpha, **{**DEFAULTS, **asked}).result
    expected = np.stack(list(engines(levels(), v2v.Settings(**asked))))
    assert (made.dtype, made.shape) == (torch.float32, (4, 96, 128, 3))
    np.testing.assert_array_equal((made * 255).round().byte().numpy(), expected)
    assert page.values == sorted(page.values)
    assert page.values[-1] == 1000
    shown = [np.asarray(image) for _, image, _ in page.previews]
    np.testing.assert_array_equal(np.stack(shown), expected)


def test_what_is_left_as_it_is_the_model_decides(nodes: dict[str, Any], engines: Any) -> None:
    (made,) = nodes["V2VEnhanceImages"].execute(engines, images(), **DEFAULTS).result
    expected = np.stack(list(engines(levels())))
    np.testing.assert_array_equal((made * 255).round().byte().numpy(), expected)


def test_an_interrupt_ends_frames_and_the_engines_go_on(
    nodes: dict[str, Any], engines: Any, page: Any
) -> None:
    page.at = lambda value: value > 100
    with pytest.raises(comfy.InterruptProcessingException):
        nodes["V2VEnhanceImages"].execute(engines, images(), **DEFAULTS)
    assert page.values[-1] < 1000
    page.at = lambda value: False
    test_what_is_left_as_it_is_the_model_decides(nodes, engines)


def test_a_build_is_followed_and_can_be_interrupted(
    nodes: dict[str, Any], page: Any, own_store: Path
) -> None:
    page.at = lambda value: True
    with pytest.raises(comfy.InterruptProcessingException), torch.inference_mode():
        nodes["V2VLoadEngines"].execute("small", "cpu", "low")
    assert len(page.values) == 1


# Files --------------------------------------------------------------------------------------------------------


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return make_video(tmp_path / "in.mp4", frames=40, sounds=1)


def enhance(nodes: dict[str, Any], engines: Any, video: Any, **changes: Any) -> Any:
    return nodes["V2VEnhanceVideo"].execute(engines, video, **{**FILE, "steps": 1, "scale": 2.0, **changes})


def test_a_file_becomes_the_file_that_python_makes(
    nodes: dict[str, Any], engines: Any, stand_in_engines: Path, film: Path, page: Any, tmp_path: Path
) -> None:
    asked = {"steps": 1, "scale": 2.0, "prompt": "a fox", "strength": 0.2, "fast": True}
    given = enhance(nodes, engines, comfy.VideoFromFile(str(film)), **asked)
    v2v.enhance(film, tmp_path / "python.mp4", engines=stand_in_engines, **asked)
    (made,) = made_files(tmp_path)
    assert made.read_bytes() == (tmp_path / "python.mp4").read_bytes()
    assert given.result[0].get_stream_source() == str(made)
    (shown,) = given.ui["images"]
    assert tmp_path / "output" / shown["subfolder"] / shown["filename"] == made
    assert (page.values[0], page.values[-1]) == (0, 1000)


def test_engines_are_not_held_twice(
    nodes: dict[str, Any], engines: Any, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    load, close = LoadedEngines.load_all, LoadedEngines.close
    monkeypatch.setattr(LoadedEngines, "load_all", lambda s: (order.append("load"), load(s))[1])
    monkeypatch.setattr(LoadedEngines, "close", lambda s: (order.append("close"), close(s))[1])
    enhance(nodes, engines, comfy.VideoFromFile(str(film)))
    assert order[:2] == ["close", "load"]


def test_after_an_interrupt_the_same_goes_on_and_another_is_not_in_its_way(
    nodes: dict[str, Any], engines: Any, film: Path, page: Any, tmp_path: Path
) -> None:
    video = comfy.VideoFromFile(str(film))
    page.at = lambda value: value > 700
    with pytest.raises(comfy.InterruptProcessingException):
        enhance(nodes, engines, video)
    assert list((tmp_path / "output").rglob("*.mp4")) == []
    page.at = lambda value: False
    enhance(nodes, engines, video, seed=5)
    (path,) = seen_files(tmp_path)
    other = path.read_bytes()
    path.unlink()
    page.values.clear()
    enhance(nodes, engines, video)
    assert page.values[0] > 0  # what was finished was not done again
    (first,) = made_files(tmp_path)
    enhance(nodes, engines, video)
    _, second = made_files(tmp_path)
    assert first.read_bytes() == second.read_bytes() != other


def seen_files(tmp_path: Path) -> list[Path]:
    """Those that people see: the interrupted one's are hidden."""
    return [path for path in made_files(tmp_path) if path.parent == tmp_path / "output" / "films"]


def in_memory(film: Path) -> Any:
    return comfy.VideoFromFile(io.BytesIO(film.read_bytes()))


def a_stretch(film: Path) -> Any:
    return comfy.VideoFromFile(str(film), duration=1.0)


def of_frames(film: Path) -> Any:
    return comfy.VideoFromComponents(images(12), Fraction(10))


@pytest.mark.parametrize(
    ("video", "frames", "kinds"),
    [(in_memory, 40, ["video", "audio"]), (a_stretch, 10, ["video", "audio"]), (of_frames, 12, ["video"])],
)
def test_what_is_no_file_is_enhanced_too(
    nodes: dict[str, Any], engines: Any, film: Path, tmp_path: Path, video: Any, frames: int, kinds: list[str]
) -> None:
    enhance(nodes, engines, video(film), format="mkv")
    (made,) = made_files(tmp_path)
    assert (made.suffix, len(times(made)), streams(made)) == (".mkv", frames, kinds)
    assert list((tmp_path / "temp").iterdir()) == []


# A picture ----------------------------------------------------------------------------------------------------


def test_a_picture_becomes_frames(nodes: dict[str, Any], first_stage_engines: Path, page: Any) -> None:
    first = loaded(nodes["V2VLoadFirstEngines"], first_stage_engines)
    node = nodes["V2VImageToVideo"]
    made, fps = node.execute(first, images(1), frames=6, steps=0, seed=3).result
    with v2v.ImageToVideo.load(first_stage_engines) as animator:
        expected = np.stack(list(animator(levels(1)[0], frames=6, seed=3)))
    np.testing.assert_array_equal((made * 255).round().byte().numpy(), expected)
    assert (fps, page.values[-1], len(page.previews)) == (8.0, 1000, 6)
    again, _ = node.execute(first, images(1), frames=6, steps=0, seed=3).result
    assert torch.equal(made, again)
    with pytest.raises(v2v.V2VError, match="2 came"):
        node.execute(first, images(2), frames=0, steps=0, seed=3)
