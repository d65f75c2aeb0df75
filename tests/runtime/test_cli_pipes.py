"""``ffmpeg ... -f yuv4mpegpipe - | v2v-run - -o - | ffplay -``, with real pipes and processes."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
import pytest
from PIL import Image

from tests.patience import takes_at_most
from tests.runtime import y4m
from tests.runtime.clips import make_video, packets, picture, pixels_of, times
from tests.stand_ins.command import Run, start

FAST = ("--scale", 2, "--steps", 1)


def through(content: bytes, *options: Any, **more: Any) -> tuple[bytes, str]:
    """What comes out of ``v2v-run - -o -`` and what it says, when all of ``content`` goes in."""
    process = start("-", "-o", "-", *options, stdin=subprocess.PIPE, text=False, **more)
    out, err = process.communicate(content, timeout=120)
    assert process.returncode == 0, err
    return out, err.decode()


@pytest.mark.parametrize(("kind", "depth"), [("420jpeg", 8), ("422p10", 10)])
def test_y4m_into_y4m(stand_in_engines: Path, kind: str, depth: int) -> None:
    content = y4m.film(12, kind=kind, rate="24000:1001", aspect="16:15", more="XCOLORRANGE=FULL")
    out, _ = through(content, "--codec", "y4m", "--engines", stand_in_engines, *FAST)
    said, frames = y4m.parsed(out)
    assert (said["W"], said["H"], said["F"], said["A"]) == ("128", "96", "24000:1001", "16:15")
    assert (said["C"], said["COLORRANGE"]) == ("420mpeg2" if depth == 8 else "420p10", "FULL")
    assert len(frames) == 12


def test_a_pipe_gives_the_pictures_of_a_file(run: Run, stand_in_engines: Path, tmp_path: Path) -> None:
    film = make_video(tmp_path / "in.mkv", frames=40, sounds=1)
    options = ("--engines", stand_in_engines, *FAST)
    assert run(film, "-o", tmp_path / "file.mkv", *options).code == 0
    (tmp_path / "piped.mkv").write_bytes(through(film.read_bytes(), *options)[0])
    process = start(film, "-o", "-", *options, text=False)
    (tmp_path / "half.mkv").write_bytes(process.communicate(timeout=120)[0])
    for other in ("piped.mkv", "half.mkv"):
        np.testing.assert_array_equal(pixels_of(tmp_path / other), pixels_of(tmp_path / "file.mkv"))
        assert times(tmp_path / other) == times(tmp_path / "file.mkv")
        assert packets(tmp_path / other, "audio") == packets(film, "audio")


def test_three_programs_in_a_row_work_at_once(stand_in_engines: Path, tmp_path: Path) -> None:
    """The last of them has a picture while the first still waits to send the rest; nothing is kept on the disk."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    options = ("--codec", "y4m", "--engines", stand_in_engines, "--scale", 1, "--steps", 1)
    environment = {**os.environ, "TMPDIR": str(temporary)}
    process = start("-", "-o", "-", *options, stdin=subprocess.PIPE, text=False, bufsize=0, env=environment)
    sending: IO[Any] = process.stdin  # type: ignore[assignment]
    receiving: IO[Any] = process.stdout  # type: ignore[assignment]
    for number in range(40):
        sending.write((b"" if number else y4m.header()) + y4m.picture(number))
    first = b""
    while len(first) < 10_000:  # two pictures
        first += receiving.read(10_000)
    assert first.startswith(b"YUV4MPEG2 W64 H48")
    assert list(temporary.iterdir()) == []
    rest, _ = process.communicate(b"".join(y4m.picture(number) for number in range(40, 50)), timeout=60)
    assert len(y4m.parsed(first + rest)[1]) == 50


def test_whoever_has_seen_enough_ends_it_quietly(stand_in_engines: Path) -> None:
    options = ("--engines", stand_in_engines, *FAST)
    process = start("-", "-o", "-", *options, stdin=subprocess.PIPE, text=False)
    sending: IO[Any] = process.stdin  # type: ignore[assignment]
    receiving: IO[Any] = process.stdout  # type: ignore[assignment]

    def send() -> None:
        try:
            sending.write(y4m.header())
            for number in range(10_000):
                sending.write(y4m.picture(number))
        except BrokenPipeError:
            ended.append(number)

    ended: list[int] = []
    producer = threading.Thread(target=send)
    producer.start()
    receiving.read(1000)
    receiving.close()
    assert process.wait(timeout=60) == 1
    producer.join()
    assert ended
    said = process.stderr.read().decode() if process.stderr else ""
    assert "error" not in said
    assert "Traceback" not in said
    assert "Exception" not in said


@pytest.mark.parametrize("sent", [0, 4, 40])
def test_ctrl_c_while_it_waits_for_more(stand_in_engines: Path, sent: int) -> None:
    def attempt(number: int) -> float:
        process = start(
            "-", "-o", "-", "--engines", stand_in_engines, *FAST, stdin=subprocess.PIPE, text=False
        )
        sending: IO[Any] = process.stdin  # type: ignore[assignment]
        if sent:
            sending.write(y4m.header() + b"".join(y4m.picture(each) for each in range(sent)))
            sending.flush()
        time.sleep(2 + number)
        stopped = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        taken = time.monotonic() - stopped
        said = process.stderr.read().decode() if process.stderr else ""
        assert "Traceback" not in said
        assert "Exception" not in said
        sending.close()
        return taken

    takes_at_most(2, attempt)


def test_what_is_cut_short_is_told_and_what_came_is_used(stand_in_engines: Path) -> None:
    out, said = through(y4m.film(9)[:-5], "--codec", "y4m", "--engines", stand_in_engines, *FAST)
    assert len(y4m.parsed(out)[1]) == 8
    assert "is damaged or cut short: 8 frames could be read and are used" in " ".join(said.split())


def test_a_file_is_written_from_a_pipe_as_before(stand_in_engines: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    process = start(
        "-", "-o", output, "--engines", stand_in_engines, *FAST, stdin=subprocess.PIPE, text=False
    )
    _, said = process.communicate(y4m.film(12), timeout=60)
    assert process.returncode == 0, said
    assert times(output) == [Fraction(number, 25) for number in range(12)]


def test_the_page_on_a_run_may_be_on_what_came_in_by_a_pipe(stand_in_engines: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    options = ("-o", tmp_path / "out.mp4", "--report", page, "--engines", stand_in_engines, *FAST)
    process = start("-", *options, stdin=subprocess.PIPE, text=False)
    _, said = process.communicate(y4m.film(12), timeout=60)
    assert process.returncode == 0, said
    assert "<b>12</b>frames" in page.read_text()


def test_a_picture_becomes_a_film_in_a_pipe(
    stand_in_engines: Path, first_stage_engines: Path, tmp_path: Path
) -> None:
    Image.fromarray(picture(0)).save(tmp_path / "picture.png")
    engines = ("--engines", stand_in_engines, "--engines-first", first_stage_engines)
    options = ("--frames", 4, "--steps-first", 2, "--steps", 1, "--scale", 1)
    process = start(tmp_path / "picture.png", "-o", "-", *engines, *options, text=False)
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    (tmp_path / "out.mkv").write_bytes(out)
    with av.open(str(tmp_path / "out.mkv")) as opened:
        assert len(list(opened.decode(video=0))) > 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-o", "-", "--workers", 2), "--workers: workers finish a film's parts in any order"),
        (("-o", "-", "--ray", "local"), "--ray: workers finish a film's parts in any order"),
        (("-o", "-", "--codec", "png"), "--codec png makes a folder of pictures; name one with -o"),
        (("-o", "-", "--compare", "page.html"), "--compare needs files"),
        (("-o", "-", "--report", "page.html"), "--report is on one video: name one for INPUT, and a file"),
        (("-o", "-", "--json"), "--json and -o - both write to the standard output"),
        (("-o", "-", "--dry-run", "--workers", 2), "--workers: workers finish a film's parts in any order"),
        (("-o", "out.mkv", "--codec", "y4m"), "--codec y4m is for pipes: give -o -"),
        (("-o", "-", "--codec", "y4m", "--crf", 3), "--crf 3: codec y4m has no such setting"),
    ],
)
def test_what_does_not_go_with_a_pipe_is_one_line(
    run: Run, stand_in_engines: Path, tmp_path: Path, options: tuple[Any, ...], said: str
) -> None:
    film = make_video(tmp_path / "in.mkv", frames=2)

    done = run(film, *options, "--engines", stand_in_engines)

    assert done.code == 2
    assert said in done.lines[-1]


def test_the_middle_of_a_pipe_is_not_known(stand_in_engines: Path) -> None:
    command = ("-", "-o", "-", "--preview", "1", "--engines", stand_in_engines)
    process = start(*command, stdin=subprocess.PIPE, text=False)
    _, said = process.communicate(y4m.film(50), timeout=60)
    assert process.returncode == 2
    assert "say from where, as --start 0" in " ".join(said.decode().split())
