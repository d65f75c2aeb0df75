"""Nothing is written where something is read or written otherwise, whatever names lead there; said before the work."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.runtime.clips import make_video
from tests.stand_ins.command import Run
from v2v.core.errors import UsageError
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.films import enhance as films
from v2v.runtime.films.places import Place, check_places

FAST = ("--scale", 1, "--steps", 1)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_video(tmp_path / "clip.mp4", frames=3)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-o", "out.mp4", "--compare", "clip.mp4"), "--compare clip.mp4 is the input itself"),
        (("-o", "out.mp4", "--compare", "linked"), "--compare linked is the input itself"),
        (("-o", "out.mp4", "--compare", "hard.html"), "--compare hard.html is the input itself"),
        (("-o", "out.mp4", "--compare", "sub/../clip.mp4"), "is the input itself"),
        (("-o", "out.mp4", "--compare", "out.mp4"), "--compare out.mp4 is -o itself"),
        (("-o", "out.mp4", "--compare", "here/out.mp4"), "--compare here/out.mp4 is -o itself"),
        (("-o", "clip.mp4"), "-o clip.mp4 is the input itself"),
        (("-o", "linked.mp4"), "-o linked.mp4 is the input itself"),
        (("-o", "pipe.mp4"), "-o pipe.mp4 is a pipe or a device"),
        (("-o", "out.mp4", "--compare", "/dev/null"), "--compare /dev/null is a pipe or a device"),
        (("-o", "out.mp4", "--compare", "engines/manifest.json"), "lies in the engine set engines"),
        (("-o", "engines/out.mp4"), "-o engines/out.mp4 lies in the engine set engines"),
        (("-o", "round.mp4"), "round.mp4: its links lead"),
        (("-o", "out.mp4", "--compare", ".out.mp4.v2v"), "--compare .out.mp4.v2v is the folder"),
    ],
)
def test_a_place_that_is_taken_is_refused_and_stays(
    run: Run,
    stand_in_engines: Path,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(stand_in_engines, "engines")
    Path("sub").mkdir()
    Path("here").symlink_to(".")
    Path("linked").symlink_to(clip)
    Path("linked.mp4").symlink_to(clip)
    Path("hard.html").hardlink_to(clip)
    Path("round.mp4").symlink_to("round.mp4")
    os.mkfifo("pipe.mp4")
    before = content(tmp_path)
    monkeypatch.setattr(VideoToVideo, "load", lambda *given: pytest.fail("the work began"))
    for more in ((), ("--overwrite",)):
        done = run("clip.mp4", *options, "--engines", "engines", *FAST, *more)
        assert done.code == 2, done.err
        assert said in done.err or (not more and "already exists" in done.err)
        assert content(tmp_path) == before


def test_an_output_among_the_pictures_that_are_read_is_refused(
    run: Run, stand_in_engines: Path, clip: Path, tmp_path: Path
) -> None:
    assert run(clip, "-o", f"{tmp_path}/frames/", "--engines", stand_in_engines, *FAST).code == 0
    done = run(tmp_path / "frames", "-o", tmp_path / "frames" / "out.mp4", "--engines", stand_in_engines)
    assert done.code == 2
    assert "lies in the input" in done.err


def test_an_input_in_a_journal_is_refused(
    run: Run, stand_in_engines: Path, clip: Path, tmp_path: Path
) -> None:
    kept = tmp_path / ".out.mp4.v2v" / "00000.mov"
    kept.parent.mkdir()
    shutil.copy(clip, kept)
    done = run(kept, "-o", tmp_path / "out.mp4", "--engines", stand_in_engines, *FAST)
    assert done.code == 2
    assert "lies in the folder of what is finished" in done.err
    assert kept.exists()


def test_in_a_batch_too(run: Run, stand_in_engines: Path, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    prompts = tmp_path / "out" / "clip.mp4"
    prompts.write_text("clip.mp4: a fox\n")
    other = make_video(tmp_path / "other.mp4", frames=2)
    given = (clip, other, "-o", tmp_path / "out", "--engines", stand_in_engines, *FAST)
    done = run(*given, "--prompt-file", prompts, "--overwrite")
    assert done.code == 2
    assert "is the prompt file itself" in done.err
    assert prompts.read_text() == "clip.mp4: a fox\n"
    assert not (tmp_path / "out" / "other.mp4").exists()


def test_two_readers_of_one_file_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    read = [Place(tmp_path / "a", "the input"), Place(tmp_path / "b", "the prompt file")]
    check_places([Place(tmp_path / "c", "-o")], read)
    with pytest.raises(UsageError, match=r"-o .*b is the input itself"):
        check_places([Place(tmp_path / "b", "-o")], read[:1])


def test_a_link_is_followed_and_stays_one(
    run: Run, stand_in_engines: Path, clip: Path, tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir()
    output, page = tmp_path / "out.mp4", tmp_path / "page.html"
    output.symlink_to(tmp_path / "real" / "film.mp4")
    page.symlink_to(tmp_path / "real" / "page.html")
    given = (clip, "-o", output, "--engines", stand_in_engines, *FAST, "--compare", page)
    done = run(*given)
    assert done.code == 0, done.err
    assert f"is a link; what is written is {tmp_path / 'real' / 'film.mp4'}" in done.err
    assert f"is a link; what is written is {tmp_path / 'real' / 'page.html'}" in done.err
    before = (tmp_path / "real" / "film.mp4").read_bytes()
    assert "already exists" in run(*given).err
    assert run(*given, "--overwrite", "--seed", 5).code == 0
    assert (tmp_path / "real" / "film.mp4").read_bytes() != before
    assert output.is_symlink()
    assert page.is_symlink()
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == ["film.mp4", "page.html"]


@pytest.mark.parametrize("more", [(), ("--overwrite",)])
def test_a_run_that_was_killed_between_film_and_page_goes_on_with_the_page(
    run: Run,
    stand_in_engines: Path,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, ...],
) -> None:
    output, page = tmp_path / "out.mp4", tmp_path / "page.html"
    given = (clip, "-o", output, "--engines", stand_in_engines, *FAST, "--compare", page, *more)
    kill_before_the_page(run, monkeypatch, given)
    made = output.stat().st_mtime_ns
    assert not page.exists()
    done = run(*given)
    assert done.code == 0, done.err
    assert "3 frames" in done.err
    assert output.stat().st_mtime_ns == made
    assert page.read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "out.mp4", "page.html"]


def test_another_run_is_not_taken_for_the_one_that_was_killed(
    run: Run, stand_in_engines: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, page = tmp_path / "out.mp4", tmp_path / "page.html"
    options = ("-o", output, "--engines", stand_in_engines, *FAST, "--compare", page)
    other = make_video(tmp_path / "other.mp4", frames=4)
    for given in ((other, *options), (clip, *options, "--seed", 5)):
        kill_before_the_page(run, monkeypatch, (clip, *options))
        before = output.read_bytes()
        assert "already exists" in run(*given).err
        assert output.read_bytes() == before
        output.unlink()
    assert not page.exists()


def kill_before_the_page(run: Run, monkeypatch: pytest.MonkeyPatch, given: tuple[object, ...]) -> None:
    def killed(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(films, "write_page", killed)
        assert run(*given).code == 70
