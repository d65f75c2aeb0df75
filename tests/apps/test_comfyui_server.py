"""v2v's nodes in the real ComfyUI. V2V_COMFYUI names a checkout of it, with a virtual environment that has v2v."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from tests.apps.browser import tab
from tests.apps.comfy_server import WORKFLOWS, ComfyUI, python_of
from tests.runtime.clips import make_video, times

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def comfyui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    if not (place := os.environ.get("V2V_COMFYUI")):
        pytest.skip("V2V_COMFYUI names no checkout of ComfyUI")
    checkout = Path(place)
    tried = subprocess.run([python_of(checkout), "-c", "import v2v, aiohttp, torch"], capture_output=True)
    if tried.returncode != 0:
        pytest.skip(f"{python_of(checkout)} cannot run ComfyUI with v2v: {tried.stderr.decode()[-300:]}")
    server = ComfyUI(checkout, tmp_path_factory.mktemp("comfyui"))
    make_video(server.base / "input" / "in.mp4", frames=20, sounds=1)
    make_video(server.base / "input" / "long.mp4", frames=200, sounds=1)
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(server.base / "input" / "picture.png")
    yield server
    server.stop()


@pytest.fixture
def prompt_of(comfyui: ComfyUI, stand_in_engines: Path, first_stage_engines: Path) -> Any:
    """Lends a function that makes an example workflow quick, and changes inputs of its enhancing node."""

    def make(workflow: str, source: str | None = None, **changes: Any) -> dict[str, Any]:
        prompt = comfyui.prompt_of(workflow)
        for node in prompt.values():
            kind, inputs = node["class_type"], node["inputs"]
            if kind == "V2VLoadEngines":
                inputs["engines"] = changes.get("engines", str(stand_in_engines))
            elif kind == "V2VLoadFirstEngines":
                inputs["engines"] = str(first_stage_engines)
            elif kind.startswith("V2VEnhance"):
                more = {name: value for name, value in changes.items() if name != "engines"}
                inputs |= {"steps": 1, "scale": 2.0, **more}
            elif kind == "LoadVideo" and source is not None:
                inputs["file"] = source
        return prompt

    return make


def files(comfyui: ComfyUI, result: dict[str, Any]) -> list[Path]:
    """The files that a prompt has put into the output folder, as ComfyUI's page is told."""
    shown = [image for output in result["outputs"].values() for image in output["images"]]
    return [comfyui.base / "output" / image["subfolder"] / image["filename"] for image in shown]


def kinds(path: Path) -> list[str]:
    with av.open(str(path)) as opened:
        return [stream.type for stream in opened.streams]


def pictures(path: Path) -> np.ndarray:
    with av.open(str(path)) as opened:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in opened.decode(video=0)])


def test_a_video_file_is_enhanced_the_same_twice(comfyui: ComfyUI, prompt_of: Any) -> None:
    (first,) = files(comfyui, comfyui.do(prompt_of("enhance_video", filename_prefix="first")))
    number = comfyui.send(prompt_of("enhance_video", filename_prefix="second"))
    (second,) = files(comfyui, comfyui.result(number))
    assert first.read_bytes() == second.read_bytes()
    assert kinds(first) == ["video", "audio"]
    assert pictures(first).shape == (20, 96, 128, 3)
    assert times(first) == times(comfyui.base / "input" / "in.mp4")
    told = [e["data"]["value"] for e in comfyui.told(number) if e["type"] == "progress"]
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0, 1000)
    assert len(set(told)) > 5


def test_an_interrupted_video_is_gone_on_with(comfyui: ComfyUI, prompt_of: Any) -> None:
    prompt = prompt_of("enhance_video", "long.mp4", filename_prefix="long/interrupted", steps=20)
    number = comfyui.send(prompt)
    folder = comfyui.base / "output" / "long"
    comfyui.interrupt_when(lambda: any(folder.glob(".*/00001.json")))
    result = comfyui.result(number)
    assert "execution_interrupted" in [name for name, _ in result["status"]["messages"]]
    assert [path for path in folder.iterdir() if path.suffix == ".mp4" and path.is_file()] == []
    again = comfyui.send(prompt)
    (finished,) = files(comfyui, comfyui.result(again))
    told = [e["data"]["value"] for e in comfyui.told(again) if e["type"] == "progress"]
    assert told[0] > 0  # what was finished was not done again
    whole = prompt_of("enhance_video", "long.mp4", filename_prefix="whole", steps=20)
    (expected,) = files(comfyui, comfyui.do(whole))
    assert finished.read_bytes() == expected.read_bytes()
    assert list(folder.iterdir()) == [finished]


def test_frames_are_enhanced_in_memory_and_shown(comfyui: ComfyUI, prompt_of: Any) -> None:
    before = len(comfyui.told())
    result = comfyui.do(prompt_of("enhance_images", prompt="a red fox"))
    (made,) = files(comfyui, result)
    assert kinds(made) == ["video", "audio"]
    assert pictures(made).shape == (20, 96, 128, 3)
    assert [e for e in comfyui.told()[before:] if e["type"] == "picture" and e["bytes"] > 100]


def test_a_picture_becomes_a_video(comfyui: ComfyUI, prompt_of: Any) -> None:
    (made,) = files(comfyui, comfyui.do(prompt_of("image_to_video")))
    assert pictures(made).shape == (4, 128, 256, 3)
    assert times(made) == [Fraction(n, 8) for n in range(4)]


def test_the_small_model_is_built_where_it_is_missing(comfyui: ComfyUI, prompt_of: Any) -> None:
    result = comfyui.do(prompt_of("enhance_video", engines="small", filename_prefix="small", scale=1.0))
    (made,) = files(comfyui, result)
    assert pictures(made).shape == (20, 48, 64, 3)
    assert any((comfyui.base / "store").iterdir())


def test_the_examples_are_among_comfyuis_templates(comfyui: ComfyUI) -> None:
    templates = comfyui.client.get("/workflow_templates").json()
    assert sorted(templates["comfyui-v2v"]) == sorted(file.stem for file in WORKFLOWS.glob("*.json"))


def test_comfyuis_page_reads_the_examples_as_they_are_sent_here(comfyui: ComfyUI, tmp_path: Path) -> None:
    with tab(tmp_path) as page:
        page.open(str(comfyui.client.base_url), 1400)
        page.wait_for("window.LiteGraph?.registered_node_types.V2VEnhanceVideo && window.app?.graph")
        for file in WORKFLOWS.glob("*.json"):
            page.ask(f"app.loadGraphData({file.read_text()}).then(() => null)")
            sent = json.loads(page.ask("app.graphToPrompt().then((made) => JSON.stringify(made.output))"))
            expected = comfyui.prompt_of(file.stem)
            assert sent.keys() == expected.keys()
            for number, node in expected.items():
                assert sent[number]["class_type"] == node["class_type"]
                assert sent[number]["inputs"] == node["inputs"]


SET = "app.graph._nodes.find((n) => n.type === '{}').widgets.find((w) => w.name === '{}').value = {}"


def test_comfyuis_page_runs_an_example_and_shows_the_video(
    comfyui: ComfyUI, stand_in_engines: Path, tmp_path: Path
) -> None:
    with tab(tmp_path) as page:
        page.open(str(comfyui.client.base_url), 1400)
        page.wait_for("window.LiteGraph?.registered_node_types.V2VEnhanceVideo && window.app?.graph")
        workflow = (WORKFLOWS / "enhance_video.json").read_text()
        page.ask(f"app.loadGraphData({workflow}).then(() => null)")
        page.ask(SET.format("V2VLoadEngines", "engines", json.dumps(str(stand_in_engines))))
        page.ask(SET.format("V2VEnhanceVideo", "filename_prefix", "'shown'"))
        page.ask(SET.format("V2VEnhanceVideo", "scale", 2))
        page.ask("app.queuePrompt(0).then(() => null)")
        video = "[...document.querySelectorAll('video')].find((v) => v.src.includes('filename=shown_'))"
        page.wait_for(f"{video}?.videoWidth === 128")


def test_a_mistake_is_told_in_v2vs_words(comfyui: ComfyUI, prompt_of: Any) -> None:
    result = comfyui.result(comfyui.send(prompt_of("enhance_video", engines="no-such-model")))
    ((_, error),) = [m for m in result["status"]["messages"] if m[0] == "execution_error"]
    assert "no-such-model" in error["exception_message"]
