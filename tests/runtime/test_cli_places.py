"""Videos come from and go to more than files: folders of pictures, and pipes."""

from __future__ import annotations

import json
import os
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.runtime.clips import make_video, packets, picture, pixels_of, psnr, times
from tests.stand_ins.command import SAMPLE, Run, start

FAST = ("--scale", 1, "--steps", 1, "--strength", 0.001)


def save(path: Path, pixels: np.ndarray) -> None:
    codec = {".png": "png", ".jpg": "mjpeg"}[path.suffix]
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as output:
        stream = output.add_stream(codec, rate=1)
        stream.height, stream.width = pixels.shape[:2]
        stream.pix_fmt = "rgb24" if codec == "png" else "yuvj420p"
        output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))


def make_folder(folder: Path, count: int = 12) -> Path:
    """Pictures whose names do not sort as text: frame 2 comes before frame 10."""
    folder.mkdir()
    for number in range(count):
        save(folder / f"frame {number}.png", picture(number))
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_a_folder_of_pictures_is_a_video(run: Run, stand_in_engines: Path, tmp_path: Path) -> None:
    folder, output = make_folder(tmp_path / "in"), tmp_path / "out.mkv"
    done = run(folder, "-o", output, "--engines", stand_in_engines, *FAST, "--rate", "30000/1001")
    assert done.code == 0, done.err
    assert [round(t * 1000) for t in times(output)] == [round(n * 1001 / 30) for n in range(12)]
    for number, shown in enumerate(pixels_of(output)):
        assert psnr(shown, picture(number)) > 20
        assert psnr(shown, picture(number)) > psnr(shown, picture((number + 3) % 12))


def test_the_usual_rate_is_25(run: Run, stand_in_engines: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    run(make_folder(tmp_path / "in", 3), "-o", output, "--engines", stand_in_engines, *FAST)
    assert times(output) == [Fraction(n, 25) for n in range(3)]


def test_pictures_of_another_kind_are_left_out_and_told(
    run: Run, stand_in_engines: Path, tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "in", 3)
    save(folder / "thumbnail.jpg", picture(0))
    done = run(folder, "-o", tmp_path / "out.mp4", "--engines", stand_in_engines, *FAST)
    assert done.code == 0
    assert "only its .png files are used, not the others (1 .jpg)" in done.err
    assert len(times(tmp_path / "out.mp4")) == 3


def test_a_folder_of_pictures_comes_out(run: Run, stand_in_engines: Path, tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4", frames=12, sounds=1)
    done = run(source, "-o", f"{tmp_path}/out/", "--engines", stand_in_engines, *FAST)
    assert done.code == 0, done.err
    names = [f"{number:06d}.png" for number in range(1, 13)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*names, "settings.json"]
    for number, name in enumerate(names):
        (shown,) = pixels_of(tmp_path / "out" / name)
        assert psnr(shown, picture(number)) > 20
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["seed"] == 666
    assert "no place for the sound" in done.err
    assert not list(tmp_path.glob(".out*"))


def test_what_came_out_goes_in_again(run: Run, stand_in_engines: Path, tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4", frames=3)
    run(source, "-o", f"{tmp_path}/out/", "--engines", stand_in_engines, *FAST)
    done = run(tmp_path / "out", "-o", tmp_path / "again.mp4", "--engines", stand_in_engines, *FAST)
    assert done.code == 0, done.err
    assert len(times(tmp_path / "again.mp4")) == 3


def test_a_folder_that_holds_something_is_never_replaced(
    run: Run, stand_in_engines: Path, tmp_path: Path
) -> None:
    source = make_video(tmp_path / "in.mp4", frames=3)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    done = run(source, "-o", f"{tmp_path}/out/", "--engines", stand_in_engines, *FAST, "--overwrite")
    assert done.code == 2
    assert "the folder is not empty" in done.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--rate", "25"), "--rate is for folders of pictures"),
        (("--rate", "fast"), "--rate must be pictures per second"),
        (("--rate", "1/0"), "--rate must be pictures per second"),
    ],
)
def test_a_rate_that_makes_no_sense_is_told(
    run: Run, stand_in_engines: Path, tmp_path: Path, flags: tuple[str, ...], said: str
) -> None:
    source = make_video(tmp_path / "in.mp4", frames=3)
    done = run(source, "-o", tmp_path / "out.mp4", "--engines", stand_in_engines, *flags)
    assert done.code == 2
    assert said in done.err


def test_an_empty_folder_is_told(run: Run, stand_in_engines: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    done = run(tmp_path / "in", "-o", tmp_path / "out.mp4", "--engines", stand_in_engines)
    assert done.code == 2
    assert "is a folder without pictures" in done.err


def test_from_a_pipe_into_a_pipe(stand_in_engines: Path, tmp_path: Path) -> None:
    arguments = ("-", "-o", "-", "--engines", stand_in_engines, "--size", "160x90", "--steps", 1)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with SAMPLE.open("rb") as source:
        process = start(*arguments, stdin=source, text=False, env={**os.environ, "TMPDIR": str(temporary)})
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    result = tmp_path / "result.mkv"
    result.write_bytes(out)
    assert times(result) == [Fraction(n, 25) for n in range(50)]
    assert [digest for _, digest in packets(result, "audio")] == [d for _, d in packets(SAMPLE, "audio")]
    assert list(temporary.glob("v2v-*")) == []


def test_nothing_useful_in_a_pipe_is_told(stand_in_engines: Path, tmp_path: Path) -> None:
    process = start("-", "-o", tmp_path / "out.mp4", "--engines", stand_in_engines, stdin=subprocess.PIPE)
    _, err = process.communicate("hello", timeout=60)
    assert process.returncode == 2
    assert "not a video" in err
    assert len(err.strip().splitlines()) == 1


def test_json_and_a_video_do_not_share_the_standard_output(run: Run, stand_in_engines: Path) -> None:
    done = run(SAMPLE, "-o", "-", "--engines", stand_in_engines, "--json")
    assert done.code == 2
    assert "--json and -o -" in done.err
