"""Options from a file, and from a video that says how it was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.clips import make_video, times
from tests.stand_ins.command import SAMPLE, Run

SMALL = ("--size", "128x80", "--steps", 1)


def told_by(done: Any) -> dict[str, Any]:
    assert done.code == 0, done.err
    settings: dict[str, Any] = json.loads(done.out)["settings"]
    return settings


@pytest.mark.parametrize("ending", ["toml", "json"])
def test_options_come_from_a_file_and_the_command_line_wins(
    run: Run, stand_in_engines: Path, tmp_path: Path, ending: str
) -> None:
    options = {
        "prompt": "a red fox",
        "negative-prompt": "fog",
        "steps": 3,
        "size": [128, 80],
        "guidance_interval": [0.1, 0.9],
        "end": 0.2,
        "cuts": False,
        "engines": str(stand_in_engines),
        "json": True,
    }
    file = tmp_path / f"mine.{ending}"
    lines = (f"{name} = {json.dumps(value)}" for name, value in options.items())
    file.write_text(json.dumps(options) if ending == "json" else "\n".join(lines))
    told = told_by(run(SAMPLE, "-o", tmp_path / "out.mp4", "--settings", file, "--steps", 1))
    assert (told["prompt"], told["negative_prompt"], told["steps"]) == ("a red fox", "fog", 1)
    assert (told["size"], told["guidance_interval"], told["cuts"]) == ("128x80", [0.1, 0.9], False)
    assert told["end"] == "0:00:00.2"


def test_input_and_output_may_stand_in_the_file(run: Run, stand_in_engines: Path, tmp_path: Path) -> None:
    film = make_video(tmp_path / "in.mp4", frames=3)
    file = tmp_path / "mine.toml"
    file.write_text(f'input = "{film}"\noutput = "{tmp_path}/out.mkv"\nsteps = 1\nscale = 1.5')
    assert run("--settings", file, "--engines", stand_in_engines).code == 0
    assert len(times(tmp_path / "out.mkv")) == 3


@pytest.mark.parametrize("name", ["first.mp4", "first.mkv", "first/"])
def test_what_was_made_can_be_made_again(
    run: Run, stand_in_engines: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = make_video(tmp_path / "in.mp4", frames=6)
    monkeypatch.setenv("V2V_ENGINES", str(stand_in_engines.parent))
    asked = ("--prompt", "a fox: red", "--seed", 5, "--strength", 0.4, "--start", 0.1, "--no-deinterlace")
    first, second = f"{tmp_path}/{name}", f"{tmp_path}/{name.replace('first', 'second')}"
    told = told_by(run(film, "-o", first, *asked, *SMALL, "--engines", stand_in_engines, "--json"))
    again = told_by(run(film, "-o", second, "--settings", first, "--json"))
    assert again == told
    if not name.endswith("/"):
        assert Path(first).read_bytes() == Path(second).read_bytes()
    else:
        pictures = [sorted(p.read_bytes() for p in Path(each).glob("*.png")) for each in (first, second)]
        assert pictures[0] == pictures[1]


def test_a_run_of_parity_can_be_repeated(
    run: Run, stand_in_engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = make_video(tmp_path / "in.mp4", frames=1)
    monkeypatch.setenv("V2V_ENGINES", str(stand_in_engines.parent))
    first, second = tmp_path / "first.mp4", tmp_path / "second.mp4"
    told = told_by(run(film, "-o", first, "--parity", "--engines", stand_in_engines, "--json"))
    assert told_by(run(film, "-o", second, "--settings", first, "--json")) == told
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.toml", "stpes = 3", "stpes is no option; did you mean steps?"),
        ("a.toml", "settings-file = 'b.toml'", "settings-file is no option"),
        ("a.toml", "steps = ", "a.toml: "),
        ("a.toml", "steps = 'many'", "Invalid value for '--steps'"),
        ("a.toml", "[steps]\na = 1", "steps is a table"),
        ("a.json", "[1]", "there must be names and values"),
        ("a.json", "[" * 100_000, "a.json: "),
        ("a.txt", "steps = 3", "neither .toml nor .json, and no video"),
        ("missing.toml", None, "No such file"),
    ],
)
def test_a_file_that_is_wrong_is_named(
    run: Run, stand_in_engines: Path, tmp_path: Path, name: str, text: str | None, says: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    told = run(SAMPLE, "-o", tmp_path / "o.mp4", "--settings", tmp_path / name, "--engines", stand_in_engines)
    assert told.code == 2
    assert says in told.err
    assert not (tmp_path / "o.mp4").exists()


def test_a_video_that_v2v_has_not_made_is_refused(run: Run, stand_in_engines: Path, tmp_path: Path) -> None:
    told = run(SAMPLE, "-o", tmp_path / "o.mp4", "--settings", SAMPLE, "--engines", stand_in_engines)
    assert told.code == 2
    assert "does not say that v2v has made it" in told.err
