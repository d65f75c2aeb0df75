"""A picture on the command line becomes a film: made by the first stage, enhanced by the second."""

from __future__ import annotations

import json
import signal
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from tests.runtime.clips import times
from tests.stand_ins import command
from v2v.engine.store import EngineSet
from v2v.engine.verify import verify_engine_set
from v2v.runtime.diffusion.image_to_video import ImageToVideo
from v2v.runtime.media.lossless import write_lossless
from v2v.runtime.media.reader import VideoReader
from v2v.runtime.media.still import read_picture


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    levels = np.random.default_rng(3).integers(0, 256, (45, 80, 3), np.uint8)
    path = tmp_path / "fox.png"
    Image.fromarray(levels).save(path)
    return path


@pytest.fixture
def engines(stand_in_engines: Path, first_stage_engines: Path) -> tuple[Any, ...]:
    """What names both engine sets, and a size that is made in no time."""
    return "--engines", stand_in_engines, "--engines-first", first_stage_engines


SMALL = ("--size", "128x80", "--steps", 1)


def frames_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as opened:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in opened.decode(video=0)])


def beside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in ("store", "fox.png"))


def test_a_picture_becomes_a_film(run: command.Run, engines: Any, picture: Path, tmp_path: Path) -> None:
    told = run(picture, "-o", tmp_path / "film.mp4", "--prompt", "a fox runs", *SMALL, *engines, "--json")
    assert told.code == 0, told.err
    report = json.loads(told.out)
    assert (report["frames"], report["settings"]["prompt"]) == (4, "a fox runs")
    assert report["first_stage"]["engine_set"] == str(engines[-1])
    assert report["first_stage"]["seconds"] > 0
    assert report["settings"]["cuts"] is False  # a film made of one picture is one shot
    assert times(tmp_path / "film.mp4") == [Fraction(n, 8) for n in range(4)]
    assert frames_of(tmp_path / "film.mp4").shape == (4, 80, 128, 3)
    assert beside(tmp_path) == ["film.mp4"]


def test_the_first_film_can_be_kept_and_is_what_python_makes(
    run: command.Run, engines: Any, first_stage_engines: Path, picture: Path, tmp_path: Path
) -> None:
    asked = ("--frames", 6, "--steps-first", 5, "--seed", 4, "--first-stage", tmp_path / "first.mkv")
    told = run(picture, "-o", tmp_path / "film.mp4", *asked, *SMALL, *engines)
    assert told.code == 0, told.err
    made = ImageToVideo.load(first_stage_engines)(read_picture(picture), frames=6, steps=5, seed=4)
    np.testing.assert_array_equal(frames_of(tmp_path / "first.mkv"), np.stack(list(made)))
    assert len(times(tmp_path / "film.mp4")) == 6
    with av.open(str(tmp_path / "first.mkv")) as opened:
        facts = json.loads(opened.metadata["COMMENT"])
    assert (facts["frames"], facts["steps"], facts["seed"], facts["model"]) == (6, 5, 4, "stand-in-first")
    # What was made of the same is taken, what was not is not replaced unasked.
    again = run(picture, "-o", tmp_path / "again.mp4", *asked, *SMALL, *engines)
    assert again.code == 0, again.err
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "film.mp4").read_bytes()
    other = run(picture, "-o", tmp_path / "other.mp4", *asked, *SMALL, *engines, "--seed", 5)
    assert other.code == 2
    assert "first.mkv already exists and was not made of this" in other.err


@pytest.mark.parametrize("parity", [(), ("--parity",)])
def test_first_engines_are_closed_before_the_second_are_loaded(
    run: command.Run,
    engines: Any,
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    parity: Any,
) -> None:
    from v2v.runtime.diffusion.loaded import LoadedEngines

    order: list[str] = []
    load, close = LoadedEngines.load_all, LoadedEngines.close
    monkeypatch.setattr(
        LoadedEngines, "load_all", lambda s: (order.append(f"load {s.model.name}"), load(s))[1]
    )
    monkeypatch.setattr(
        LoadedEngines, "close", lambda s: (order.append(f"close {s.model.name}"), close(s))[1]
    )
    size = () if parity else ("--size", "128x80")
    told = run(picture, "-o", tmp_path / "film.mp4", "--frames", 1, "--steps", 1, *size, *parity, *engines)
    assert told.code == 0, told.err
    assert order[:3] == ["load stand-in-first", "close stand-in-first", "load stand-in"]


def test_a_killed_run_goes_on_behind_the_first_stage_and_gives_the_same_bytes(
    run: command.Run, engines: Any, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / name for name in ("killed", "whole")]
    arguments = ("--size", "1280x720", "--steps", 1, "--frames", 3, *engines)
    for folder in folders:
        folder.mkdir()
    killed, whole = (folder / "film.mp4" for folder in folders)
    process = command.start(picture, "-o", killed, *arguments)
    first = killed.with_name(".film.mp4.first.mkv")
    while not first.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not killed.exists()
    told = run(picture, "-o", whole, *arguments)
    assert told.code == 0, told.err
    monkeypatch.setattr(ImageToVideo, "load", lambda *_: pytest.fail("the first stage is done already"))
    told = run(picture, "-o", killed, *arguments)
    assert told.code == 0, told.err
    assert killed.read_bytes() == whole.read_bytes()
    assert frames_of(killed).shape == (3, 720, 1280, 3)
    assert beside(folders[0]) == beside(folders[1]) == ["film.mp4"]


def test_a_run_killed_in_the_first_stage_leaves_nothing_of_it_and_begins_anew(
    run: command.Run, engines: Any, picture: Path, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("killed", "whole")]
    arguments = (*SMALL, "--steps-first", 900, "--frames", 4, *engines)
    for folder in folders:
        folder.mkdir()
    killed, whole = (folder / "film.mp4" for folder in folders)
    process = command.start(picture, "-o", killed, *arguments)
    while not killed.with_name("..film.mp4.first.mkv.part").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not killed.exists()
    assert not killed.with_name(".film.mp4.first.mkv").exists()
    told = run(picture, "-o", whole, *arguments)
    assert told.code == 0, told.err
    told = run(picture, "-o", killed, *arguments)
    assert told.code == 0, told.err
    assert killed.read_bytes() == whole.read_bytes()
    assert beside(folders[0]) == beside(folders[1]) == ["film.mp4"]


def test_pictures_named_one_by_one_are_a_batch(
    run: command.Run, engines: Any, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "bird.jpg"
    Image.new("RGB", (64, 64), (200, 30, 30)).save(other)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "films"
    told = run(picture, other, tmp_path / "broken.png", "-o", out, *SMALL, *engines, "--json")
    assert told.code == 2
    assert "broken.png cannot be read as a picture" in told.err
    assert beside(out) == ["bird.mp4", "fox.mp4"]
    assert (frames_of(out / "bird.mp4") != frames_of(out / "fox.mp4")).any()
    alone = run(picture, "-o", tmp_path / "alone.mp4", *SMALL, *engines)
    assert alone.code == 0, alone.err
    np.testing.assert_array_equal(frames_of(tmp_path / "alone.mp4"), frames_of(out / "fox.mp4"))
    before = (out / "fox.mp4").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(ImageToVideo, "load", lambda *_: pytest.fail("both films are there already"))
        again = run(picture, other, "-o", out, *SMALL, *engines)
        changed = run(picture, other, "-o", out, *SMALL, *engines, "--steps-first", 7)
    assert again.code == 0, again.err
    assert again.err.count("done before") == 2
    assert beside(out) == ["bird.mp4", "fox.mp4"]
    assert changed.code == 2
    assert all(f"{name}.mp4 already exists" in changed.err for name in ("bird", "fox"))
    assert (out / "fox.mp4").read_bytes() == before


def test_a_folder_of_pictures_stays_a_film(
    run: command.Run, stand_in_engines: Path, picture: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    picture.rename(folder / "1.png")
    told = run(folder, "-o", tmp_path / "film.mp4", *SMALL, "--engines", stand_in_engines)
    assert told.code == 0, told.err
    assert len(times(tmp_path / "film.mp4")) == 1


def test_without_engines_it_says_how_to_build_them(
    run: command.Run, stand_in_engines: Path, picture: Path, tmp_path: Path
) -> None:
    told = run(picture, "-o", tmp_path / "film.mp4", "--engines", stand_in_engines)
    assert told.code == 2
    for said in (
        "v2v-build-engines ms-image2video --weights hf:ali-vilab/MS-Image2Video",
        "14.8 GB",
        "CC BY-NC-ND 4.0: no commercial use",
    ):
        assert said in told.err
    assert beside(tmp_path) == []


def test_mistakes_are_told_before_anything_is_made(
    run: command.Run,
    engines: Any,
    stand_in_engines: Path,
    first_stage_engines: Path,
    picture: Path,
    tmp_path: Path,
) -> None:
    film = tmp_path / "film.mp4"
    for arguments, message in (
        (("--first-stage", tmp_path / "first.mp4"), "in a file .mkv"),
        (("--start", "1"), "--start is for videos"),
        (("--frames", 0), "--frames 0: must lie between 1 and"),
        (("--codec", "h265"), "there is no such codec"),
        (("--steps", 0), "--steps 0: must lie between"),
        (("-o", tmp_path / "film.xyz"), "needs a name that ends in"),
    ):
        told = run(picture, "-o", film, *engines, *arguments)
        assert told.code == 2
        assert message in told.err
    told = run(command.SAMPLE, "-o", film, "--engines", stand_in_engines, "--frames", 3)
    assert "--frames is for a picture that becomes a film, and no INPUT is one" in told.err
    told = run(command.SAMPLE, "-o", film, "--engines", first_stage_engines)
    assert "makes a film of a picture and enhances none" in told.err
    told = run(picture, "-o", film, "--engines", stand_in_engines, "--engines-first", stand_in_engines)
    assert "model stand-in makes no film of a picture" in told.err
    assert beside(tmp_path) == []


# Files ------------------------------------------------------------------------------------------------------


def test_pictures_are_read_upright_and_in_rgb(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    image = Image.fromarray(levels)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned to the right
    image.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "turned.png"), np.rot90(levels, -1))
    clear = image.copy()
    clear.putalpha(7)
    clear.save(tmp_path / "clear.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "clear.png"), levels)
    image.quantize(24).save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "palette.png"), image.quantize(24).convert("RGB"))
    deep = np.arange(24, dtype=np.uint16).reshape(4, 6) * 2600
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "deep.png")[..., 1], deep // 256)


def test_a_lossless_film_gives_back_its_frames_and_the_same_bytes(tmp_path: Path) -> None:
    frames = list(np.random.default_rng(0).integers(0, 256, (5, 64, 128, 3), np.uint8))
    for name in ("one.mkv", "two.mkv"):
        assert write_lossless(tmp_path / name, frames, Fraction(8), "a note") == 5
    assert (tmp_path / "one.mkv").read_bytes() == (tmp_path / "two.mkv").read_bytes()
    for parity in (False, True):
        with VideoReader(tmp_path / "one.mkv", parity=parity) as reader:
            assert reader.info.frame_rate == 8
            np.testing.assert_array_equal(list(reader.frames()), frames)
    assert sorted(path.name for path in tmp_path.glob("*mkv*")) == ["one.mkv", "two.mkv"]


def test_engines_of_the_first_stage_are_verified_like_others(first_stage_engines: Path) -> None:
    found = verify_engine_set(EngineSet.open(first_stage_engines), "cpu")
    assert [one.component for one in found] == ["image_encoder", "unet", "vae_decoder"]
