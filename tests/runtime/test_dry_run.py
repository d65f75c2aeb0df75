"""``--dry-run`` tells what the run would do, and changes nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.runtime.clips import make_video
from tests.stand_ins.command import Run
from v2v.runtime.films.journal import journal_folder

QUICK = ("--steps", 1, "--scale", 2)


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """All that is in a folder: a change of anything shows."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    } | {str(path.relative_to(folder)): (b"", 0) for path in folder.rglob("*") if path.is_dir()}


@pytest.fixture(autouse=True)
def nothing_known(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No run before those of the test has told how long its work took."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return make_video(tmp_path / "in.mkv", frames=60, sounds=1)


@pytest.fixture
def dry(run: Run, stand_in_engines: Path, tmp_path: Path) -> Any:
    """The command, which must leave the folder as it is; returns (exit code, its JSON, what it said)."""

    def call(*arguments: Any) -> tuple[int, Any, str]:
        before = files(tmp_path)
        done = run(*arguments, "--engines", stand_in_engines, *QUICK, "--dry-run", "--json")
        assert files(tmp_path) == before
        return done.code, json.loads(done.out) if done.out else None, done.err

    return call


def test_one_video(dry: Any, film: Path, tmp_path: Path) -> None:
    code, told, _ = dry(film, "-o", tmp_path / "out.mp4", "--compare", tmp_path / "page.html")
    assert code == 0
    assert told["does"] == "make it"
    assert told["writes"] == [str(tmp_path / "out.mp4"), str(tmp_path / "page.html")]
    assert (told["frames"], told["source_size"], told["size"]) == (60, "64x48", "128x96")
    assert told["segments"] > 1
    assert told["seconds"] > 0
    assert told["seconds_by"] == "by one window that was tried"
    assert [stream["index"] for stream in told["streams"]] == [1]
    assert told["memory"]["latents"] > 0
    assert told["settings"]["codec"] == "h264"


def test_it_foresees_what_the_run_then_does(
    run: Run, dry: Any, stand_in_engines: Path, film: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.mp4"
    _, told, _ = dry(film, "-o", out)
    done = run(film, "-o", out, "--engines", stand_in_engines, *QUICK, "--json")
    made = json.loads(done.out)
    assert (made["settings"], made["frames"]) == (told["settings"], told["frames"])
    code, told, err = dry(film, "-o", out)
    assert (code, told) == (2, None)
    assert "already exists" in err
    _, told, _ = dry(film, "-o", out, "--overwrite")
    assert told["does"] == "replace what is there"
    assert told["seconds_by"] == "by the last run of these engines on this machine"


def test_it_says_where_an_unfinished_run_would_go_on(
    dry: Any, run: Run, stand_in_engines: Path, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.mp4"

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("v2v.runtime.media.writer.VideoWriter.join", stop)
        run(film, "-o", out, "--engines", stand_in_engines, *QUICK)
    finished = len([*journal_folder(out).glob("*.carry")])
    assert finished > 1
    _, told, _ = dry(film, "-o", out)
    assert told["does"] == f"make it, going on behind {finished} finished segments"
    code, _, err = dry(film, "-o", out, "--seed", 7)
    assert code == 2
    assert "--seed" in err
    _, told, _ = dry(film, "-o", out, "--seed", 7, "--restart")
    assert told["does"] == "make it"


def test_what_the_run_would_refuse_is_refused(dry: Any, film: Path, tmp_path: Path) -> None:
    for arguments, why in (
        ((film, "-o", film, "--overwrite"), "the input itself"),
        ((film, "-o", tmp_path / "out.avi"), "out.avi"),
        ((film, "-o", tmp_path / "out.mp4", "--strength", 3), "--strength 3"),
        ((tmp_path / "missing.mkv", "-o", tmp_path / "out.mp4"), "missing.mkv"),
        (("-", "-o", tmp_path / "out.mp4"), "--dry-run"),
        ((film, "-o", tmp_path / "out.mp4", "--compare", film), "the input itself"),
    ):
        code, told, err = dry(*arguments)
        assert (code, told) == (2, None)
        assert why in err


def test_the_standard_output_may_be_named(dry: Any, film: Path) -> None:
    code, told, _ = dry(film, "-o", "-")
    assert (code, told["output"], told["writes"], told["does"]) == (0, "-", ["-"], "make it")
    assert [stream["becomes"] for stream in told["streams"]] == ["kept"]
    code, told, _ = dry(film, "-o", "-", "--codec", "y4m")
    assert (code, told["settings"]["codec"]) == (0, "y4m")
    assert "left out" in told["streams"][0]["becomes"]


def test_a_pipe_is_not_read_whatever_its_name(dry: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    pipe = tmp_path_factory.mktemp("pipes") / "in.mkv"
    os.mkfifo(pipe)
    code, told, err = dry(pipe, "-o", "-")
    assert (code, told) == (2, None)
    assert "from a pipe that is possible only once" in " ".join(err.split())


def test_a_batch_has_a_row_for_each_video(dry: Any, run: Run, film: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.mkv").write_bytes(b"no video")
    code, told, err = dry(film, tmp_path / "broken.mkv", "-o", tmp_path / "made")
    assert code == 2
    assert "1 of 2 videos would fail" in err
    good, bad = told["videos"]
    assert (good["does"], good["output"]) == ("make it", str(tmp_path / "made" / "in.mkv"))
    assert bad["status"] == "failed"
    assert not (tmp_path / "made").exists()


def test_it_is_told_in_words_too(run: Run, stand_in_engines: Path, film: Path, tmp_path: Path) -> None:
    done = run(film, "-o", tmp_path / "out.mp4", "--engines", stand_in_engines, *QUICK, "--dry-run")
    assert done.code == 0
    for name, value in (
        ("reads", "in.mkv, 64x48"),
        ("writes", "out.mp4"),
        ("pictures", "60 frames of 128x96"),
    ):
        assert any(line.startswith(name) and value in line for line in done.out.splitlines())
    done = run(
        film, film.parent / "i*.mkv", "-o", tmp_path / "many", "--engines", stand_in_engines, "--dry-run"
    )
    assert done.code == 0
    assert "make it" in done.out


def test_engines_that_a_run_would_build_are_not_built(
    run: Run, film: Path, tmp_path: Path, own_store: Path
) -> None:
    done = run(film, "-o", tmp_path / "out.mp4", "--dry-run", "--json", "--device", "cpu")
    told = json.loads(done.out)
    assert (told["engine_set"], told["model"], told["seconds"]) == ("to be built first", "small", None)
    assert not own_store.exists()


def test_a_picture(run: Run, stand_in_engines: Path, first_stage_engines: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "in.png")
    before = files(tmp_path)
    done = run(
        *(tmp_path / "in.png", "-o", tmp_path / "out.mp4", "--first-stage", tmp_path / "first.mkv"),
        *(
            "--engines",
            stand_in_engines,
            "--engines-first",
            first_stage_engines,
            *QUICK,
            "--dry-run",
            "--json",
        ),
    )
    told = json.loads(done.out)
    assert files(tmp_path) == before
    assert told["writes"] == [str(tmp_path / "out.mp4"), str(tmp_path / "first.mkv")]
    assert told["first_stage"]["engines"]
    assert told["seconds"] is None
