"""A program written for the reference's pipeline runs on this one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.runtime.clips import make_video, times
from tests.stand_ins import model
from tests.stand_ins.command import SAMPLE
from v2v.core.configs import MODELS
from v2v.core.errors import V2VError
from v2v.runtime.modelscope import pipeline


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_video(tmp_path / "clip.mp4", frames=2, sounds=1)


def test_the_references_own_call(stand_in_engines: Path, clip: Path, tmp_path: Path) -> None:
    enhance = pipeline("video-to-video", model=str(stand_in_engines))
    result = enhance({"video_path": str(clip), "text": "a rabbit"}, output_video=str(tmp_path / "out.mp4"))
    assert result == {"output_video": str(tmp_path / "out.mp4")}
    assert times(tmp_path / "out.mp4") == [0, Fraction(1, 8)]
    with av.open(result["output_video"]) as opened:
        assert [stream.type for stream in opened.streams] == ["video"]
        video = opened.streams.video[0]
        assert (video.width, video.height, video.average_rate) == (1280, 720, 8)


def test_without_text_and_output_it_chooses_a_new_file(stand_in_engines: Path, clip: Path) -> None:
    path = Path(pipeline(model=stand_in_engines)({"video_path": str(clip)}, steps=1)["output_video"])
    assert len(times(path)) == 2
    shutil.rmtree(path.parent)


def test_it_is_the_same_as_parity_on_the_command_line(
    run, stand_in_engines: Path, clip: Path, tmp_path: Path
) -> None:
    enhance = pipeline("video-to-video", model=str(stand_in_engines))
    enhance({"video_path": str(clip), "text": "a rabbit"}, tmp_path / "one.mkv", steps=2)
    told = run(
        *(clip, "-o", tmp_path / "two.mkv", "--engines", stand_in_engines, "--parity"),
        *("--prompt", "a rabbit", "--steps", 2),
    )
    assert told.code == 0, told.err
    pictures = []
    for name in ("one.mkv", "two.mkv"):
        with av.open(str(tmp_path / name)) as opened:
            pictures.append([bytes(packet) for packet in opened.demux(video=0) if packet.size])
    assert pictures[0] == pictures[1]


def test_engines_are_found_by_the_models_name(
    stand_in_engines: Path, clip: Path, own_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.stand_ins.model import MODEL

    monkeypatch.setitem(MODELS, "stand-in", MODEL)
    shutil.copytree(stand_in_engines, own_store / "some-name")
    assert callable(pipeline("video-to-video", model="stand-in", device="cpu"))


@pytest.mark.parametrize("model", ["damo/Video-to-Video", "ms-vid2vid-xl"])
def test_without_engines_it_says_how_to_build_them(model: str) -> None:
    with pytest.raises(V2VError, match="v2v-build-engines ms-vid2vid-xl"):
        pipeline("video-to-video", model=model)


def test_mistakes_are_told(stand_in_engines: Path, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(
        V2VError, match="no pipeline for task 'text-to-speech' here, only for video-to-video and"
    ):
        pipeline("text-to-speech", model=stand_in_engines)
    with pytest.raises(V2VError, match="neither an engine set's folder nor one of"):
        pipeline("video-to-video", model=tmp_path)
    enhance = pipeline("video-to-video", model=stand_in_engines)
    with pytest.raises(V2VError, match="needs a 'video_path'"):
        enhance({"text": "a rabbit"})
    with pytest.raises(V2VError, match="already exists"):
        enhance({"video_path": str(SAMPLE)}, output_video=clip)


def test_the_published_demos_two_calls(
    stand_in_engines: Path,
    first_stage_engines: Path,
    own_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A picture, a film of it, and that film enhanced, by the names and arguments of the demo."""
    for name, folder, stand_in in (
        ("ms-image2video", first_stage_engines, model.FIRST_STAGE),
        ("ms-vid2vid-xl", stand_in_engines, model.MODEL),
    ):
        shutil.copytree(folder, own_store / name)
        manifest = own_store / name / "manifest.json"
        manifest.write_text(manifest.read_text().replace(f'"{stand_in.name}"', f'"{name}"'))
        monkeypatch.setitem(MODELS, name, replace(stand_in, name=name))
    levels = np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8)
    image = Image.fromarray(levels)
    image.save(tmp_path / "fox.png")
    animate = pipeline(task="image-to-video", model="damo/Image-to-Video", model_revision="v1.1.0")
    enhance = pipeline(task="video-to-video", model="damo/Video-to-Video", model_revision="v1.1.0")
    film = animate(str(tmp_path / "fox.png"), output_video=str(tmp_path / "film.mp4"))["output_video"]
    assert times(Path(film)) == [Fraction(n, 8) for n in range(4)]
    video_input = {"video_path": film, "text": "a fox in the snow"}
    path = enhance(video_input, output_video=str(tmp_path / "out.mp4"))["output_video"]
    with av.open(path) as opened:
        video = opened.streams.video[0]
        assert (video.width, video.height, video.average_rate, video.frames) == (1280, 720, 8, 4)
    # Pillow's images and BGR arrays are the same picture.
    for number, given in enumerate((image, levels[..., ::-1])):
        again = animate(given, output_video=tmp_path / f"{number}.mp4")["output_video"]
        assert Path(again).read_bytes() == Path(film).read_bytes()
    with pytest.raises(V2VError, match="makes films of pictures, not of videos"):
        pipeline("video-to-video", model=first_stage_engines)
