"""Many videos in one command: names settled first, engines loaded once, one failure stops nothing."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import av
import pytest

from tests.patience import takes_at_most
from tests.runtime.clips import make_video, times
from tests.runtime.films.test_pool import alive, workers_of
from tests.stand_ins.command import Run, start
from v2v.core.errors import UsageError
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.films.batch import Job, plan_jobs, read_prompts

FAST = ("--scale", 1, "--steps", 1)


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")


def outputs(*inputs: object, folder: Path, codec: str = "h264") -> dict[str, str]:
    jobs = plan_jobs([str(given) for given in inputs], folder, codec, "", None)
    return {job.source.name: job.output.name for job in jobs}


def comment(path: Path) -> dict:
    with av.open(str(path)) as opened:
        return json.loads(opened.metadata["comment"])


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder of three videos, the second of which is none."""
    folder = tmp_path / "clips"
    folder.mkdir()
    make_video(folder / "a.mp4", frames=3)
    (folder / "b.mkv").write_bytes(b"not a video at all")
    make_video(folder / "c.mkv", frames=4)
    (folder / "notes.txt").write_text("not a video either")
    return folder


def test_one_failure_is_told_and_stops_nothing(run: Run, stand_in_engines: Path, clips: Path) -> None:
    target = clips.parent / "out"
    done = run(clips, "-o", target, "--engines", stand_in_engines, *FAST)
    assert done.code == 2
    assert sorted(path.name for path in target.iterdir()) == ["a.mp4", "c.mkv"]
    assert times(target / "a.mp4") == times(clips / "a.mp4")
    assert times(target / "c.mkv") == times(clips / "c.mkv")
    assert "b.mkv cannot be read" in done.err
    assert done.lines[-1].startswith(f"error: 1 of 3 videos failed: {clips / 'b.mkv'}")


def test_engines_are_loaded_once(
    run: Run, stand_in_engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [make_video(tmp_path / f"{name}.mp4", frames=2) for name in "abc"]
    loads = []
    load = VideoToVideo.load
    monkeypatch.setattr(VideoToVideo, "load", lambda *given: loads.append(given) or load(*given))
    done = run(*sources, "-o", tmp_path / "out", "--engines", stand_in_engines, *FAST)
    assert done.code == 0, done.err
    assert len(loads) == 1


def test_json_lists_every_video(run: Run, stand_in_engines: Path, clips: Path) -> None:
    done = run(clips, "-o", clips.parent / "out", "--engines", stand_in_engines, *FAST, "--json")
    a, b, c = json.loads(done.out)["videos"]
    assert [video["status"] for video in (a, b, c)] == ["done", "failed", "done"]
    assert (a["frames"], c["frames"]) == (3, 4)
    assert a["settings"] == comment(clips.parent / "out" / "a.mp4")
    assert "cannot be read" in b["error"]


def test_the_same_command_leaves_what_it_has_made(run: Run, stand_in_engines: Path, clips: Path) -> None:
    target = clips.parent / "out"
    command = (clips / "*.m*", "-o", target, "--engines", stand_in_engines, *FAST)
    run(*command)
    before = (target / "a.mp4").stat().st_mtime_ns
    make_video(clips / "b.mkv", frames=2)
    done = run(*command)
    assert done.code == 0, done.err
    assert (target / "a.mp4").stat().st_mtime_ns == before
    assert sum("done before" in line for line in done.lines) == 2
    assert (target / "b.mkv").exists()
    assert run(*command, "--overwrite").code == 0
    assert (target / "a.mp4").stat().st_mtime_ns > before


def test_what_was_made_otherwise_is_a_failure_and_stays(
    run: Run, stand_in_engines: Path, tmp_path: Path
) -> None:
    source = make_video(tmp_path / "a.mp4", frames=2)
    other = make_video(tmp_path / "b.mp4", frames=2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.mp4").write_bytes(b"precious")
    command = (source, other, "-o", tmp_path / "out", "--engines", stand_in_engines, *FAST)
    done = run(*command)
    assert done.code == 2
    assert "a.mp4 already exists" in done.err
    assert (tmp_path / "out" / "a.mp4").read_bytes() == b"precious"
    seen = (tmp_path / "out" / "b.mp4").read_bytes()
    for change in (("--seed", 5), ("--crf", 30)):
        assert "b.mp4 already exists" in run(*command, *change).err
    assert (tmp_path / "out" / "b.mp4").read_bytes() == seen


def test_each_video_has_its_prompt(run: Run, stand_in_engines: Path, tmp_path: Path) -> None:
    sources = [make_video(tmp_path / f"{name}.mp4", frames=2) for name in "abc"]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"# what they show\n\na.mp4: a fox: red\n{sources[1]}: two hares\n")
    out = tmp_path / "out"
    settings = ("--engines", stand_in_engines, *FAST, "--prompt", "an animal", "--prompt-file", prompts)
    done = run(*sources, "-o", out, *settings)
    assert done.code == 0, done.err
    made = [comment(out / source.name)["prompt"] for source in sources]
    assert made == ["a fox: red", "two hares", "an animal"]


def test_workers_share_videos_and_make_the_same_bytes(
    run: Run, stand_in_engines: Path, tmp_path: Path
) -> None:
    sources = [make_video(tmp_path / f"{name}.mp4", frames=25) for name in "abc"]
    for folder, workers in (("one", 1), ("two", 2)):
        done = run(
            *sources, "-o", tmp_path / folder, "--engines", stand_in_engines, *FAST, "--workers", workers
        )
        assert done.code == 0, done.err
    for source in sources:
        one, two = (tmp_path / folder / source.name for folder in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_ctrl_c_ends_all_workers_and_leaves_nothing_half_written(
    stand_in_engines: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for name in "abc":
        make_video(tmp_path / "in" / f"{name}.mp4", frames=60)
    settings = ("--engines", stand_in_engines, "--scale", 4, "--steps", 500, "--workers", 2)

    def attempt(number: int) -> float:
        out = tmp_path / f"out-{number}"
        process = start(tmp_path / "in", "-o", out, *settings)
        found = workers_of(process)
        while not out.exists() or not list(out.iterdir()):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        seconds = time.monotonic() - began
        assert process.returncode == 130
        while any(alive(pid) for pid in found):
            assert time.monotonic() - began < 60
            time.sleep(0.05)
        assert list(out.iterdir()) == []
        return seconds

    takes_at_most(2, attempt)


def test_outputs_keep_names_and_endings_where_the_codec_can(tmp_path: Path) -> None:
    clips, out = tmp_path / "clips", tmp_path / "out"
    touch(clips / "a.mp4", clips / "b.webm", clips / "c.MOV")
    assert outputs(clips, folder=out) == {"a.mp4": "a.mp4", "b.webm": "b.mkv", "c.MOV": "c.MOV"}
    assert outputs(clips, folder=out, codec="ffv1") == {"a.mp4": "a.mkv", "b.webm": "b.mkv", "c.MOV": "c.mkv"}
    assert outputs(clips, folder=out, codec="png") == {"a.mp4": "a", "b.webm": "b", "c.MOV": "c"}


def test_beside_the_sources_outputs_get_a_suffix_and_are_no_sources(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4", tmp_path / "b.mkv")
    expected = {"a.mp4": "a-v2v.mp4", "b.mkv": "b-v2v.mkv"}
    assert outputs(tmp_path, folder=tmp_path) == expected
    touch(tmp_path / "a-v2v.mp4")
    assert outputs(tmp_path, folder=tmp_path) == expected


def test_patterns_and_folders_are_taken_in_order_and_once(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "a.mp4", tmp_path / "in" / "deep" / "b.mp4", tmp_path / "in" / "a.srt")
    assert list(
        outputs(tmp_path / "in" / "**" / "*", tmp_path / "in" / "a.mp4", folder=tmp_path / "out")
    ) == [
        "a.mp4",
        "b.mp4",
    ]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (("missing.mp4",), "missing.mp4: no such file"),
        (("*.avi",), "nothing has such a name"),
        (("one/a.mp4", "two/a.mp4"), "would both become"),
        (("one/a.mp4", "-"), "- stands for a single video"),
        (("mixed",), "holds both videos and pictures"),
        (("one/a.mp4", "out/a.mp4"), "would become"),
    ],
)
def test_names_that_cannot_work_are_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    touch(*map(Path, ("one/a.mp4", "two/a.mp4", "out/a.mp4", "mixed/a.mp4", "mixed/a.jpg")))
    with pytest.raises(UsageError, match=said):
        plan_jobs(inputs, Path("out"), "h264", "", None)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", "a.mp4: a fox, red\n"),
        ("p.csv", 'a.mp4,"a fox, red"\n'),
        ("p.json", '{"a.mp4": "a fox, red"}'),
    ],
)
def test_prompt_files_of_three_formats(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_prompts(tmp_path / name) == {"a.mp4": "a fox, red"}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.txt", "a.mp4: a fox\na.mp4: a hare", "'a.mp4' is there twice"),
        ("p.json", '{"a.mp4": "a fox", "a.mp4": "a hare"}', "'a.mp4' is there twice"),
        ("p.txt", "just words", "line 1 is not a name and a prompt"),
        ("p.csv", "a.mp4,a fox,red", "line 1 is not a name and a prompt"),
        ("p.json", '["a"]', "one object of names and prompts"),
        ("p.json", "{", "cannot be used"),
        ("p.json", '{"a.mp4": 5}', "Expected `str`, got `int`"),
        ("p.json", '{"a.mp4": ' + "[" * 100_000, "one object of names and prompts"),
        ("p.json", '"' + "x" * (16 << 20), "more than 16 MiB"),
        ("p.csv", "a.mp4," + "x" * 200_000, "field larger than field limit"),
        ("p.txt", "a.mp4: \udcff", "cannot be used"),
        ("p.txt", "z.mp4: a fox", "'z.mp4': no input has that name"),
    ],
)
def test_prompt_files_that_cannot_be_used_are_told(tmp_path: Path, name: str, text: str, said: str) -> None:
    touch(tmp_path / "a.mp4")
    (tmp_path / name).write_text(text, errors="surrogateescape")
    with pytest.raises(UsageError, match=said):
        plan_jobs([str(tmp_path / "a.mp4")], tmp_path / "out", "h264", "", tmp_path / name)


def test_a_prompt_for_all_others(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    (job,) = plan_jobs([str(tmp_path / "a.mp4")], tmp_path / "out", "h264", "a fox", None)
    assert job == Job(tmp_path / "a.mp4", tmp_path / "out" / "a.mp4", "a fox")
