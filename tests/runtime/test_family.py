"""STAR and VEnhancer on the command line, on engines that are steered and decode as theirs, and run in no time."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.runtime.clips import make_video, picture, times
from tests.stand_ins import command
from v2v.engine.store import EngineSet
from v2v.engine.verify import verify_engine_set
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.diffusion.settings import Settings

NAMES = ("star-light", "venhancer")


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("family")
    return {name: command.build_like(folder, name) for name in NAMES}


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """More frames than three windows hold, with sound."""
    return make_video(tmp_path / "clip.mp4", frames=25, size=(64, 48), sounds=1)


def frames_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as opened:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in opened.decode(video=0)])


def sounds_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as opened:
        return [bytes(packet) for packet in opened.demux(audio=0) if packet.size]


def report(told: command.Result) -> dict:
    assert told.code == 0, told.err
    return json.loads(told.out)


@pytest.mark.parametrize("name", NAMES)
def test_a_video_is_enhanced(run: command.Run, sets: dict, clip: Path, tmp_path: Path, name: str) -> None:
    output = tmp_path / "out.mp4"
    made = report(run(clip, "-o", output, "--engines", sets[name], "--json"))
    assert made["frames"] == 25
    assert made["settings"]["size"] == "64x48"
    assert (made["settings"]["grid"], made["settings"]["steps"]) == ("fast", 14)
    assert made["settings"]["interpolate"] == (1 if name == "venhancer" else None)
    assert times(output) == times(clip)
    assert sounds_of(output) == sounds_of(clip)
    again = tmp_path / "again.mp4"
    report(run(clip, "-o", again, "--engines", sets[name], "--json", "--memory", "low"))
    assert again.read_bytes() == output.read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_several_workers_and_a_batch_give_the_same_bytes(
    run: command.Run, sets: dict, clip: Path, tmp_path: Path, name: str
) -> None:
    report(run(clip, "-o", tmp_path / "one.mp4", "--engines", sets[name], "--json"))
    other = shutil.copy(clip, tmp_path / "other.mp4")
    made = report(run(clip, other, "-o", tmp_path / "two", "--engines", sets[name], "--workers", 2, "--json"))
    assert [video["status"] for video in made["videos"]] == ["done", "done"]
    np.testing.assert_array_equal(frames_of(tmp_path / "two" / "clip.mp4"), frames_of(tmp_path / "one.mp4"))
    np.testing.assert_array_equal(frames_of(tmp_path / "two" / "other.mp4"), frames_of(tmp_path / "one.mp4"))


def test_frames_are_made_between_frames_at_exact_times(
    run: command.Run, sets: dict, clip: Path, tmp_path: Path
) -> None:
    output, other = tmp_path / "out.mp4", tmp_path / "other.mp4"
    made = report(run(clip, "-o", output, "--engines", sets["venhancer"], "--interpolate", 3, "--json"))
    assert made["frames"] == 24 * 3 + 1
    assert made["settings"]["interpolate"] == 3
    assert times(output) == [Fraction(n, 30) for n in range(73)]
    assert times(output)[::3] == times(clip)
    assert sounds_of(output) == sounds_of(clip)
    report(run(clip, "-o", other, "--engines", sets["venhancer"], "--fps", 30, "--json"))
    assert other.read_bytes() == output.read_bytes()


def test_times_that_are_not_even_are_divided_evenly(run: command.Run, sets: dict, tmp_path: Path) -> None:
    shown = [0, 60, 90, 300, 330]  # of 600 a second
    source = make_video(tmp_path / "uneven.mp4", frames=5, pts=shown)
    report(
        run(source, "-o", tmp_path / "out.mp4", "--engines", sets["venhancer"], "--interpolate", 2, "--json")
    )
    expected = [0, 30, 60, 75, 90, 195, 300, 315, 330]
    assert times(tmp_path / "out.mp4") == [Fraction(t, 600) for t in expected]


def test_a_cut_stays_a_cut(run: command.Run, sets: dict, tmp_path: Path) -> None:
    pictures = [picture(n) for n in range(6)] + [picture(n)[::-1] // 5 for n in range(6)]
    source = make_video(tmp_path / "cut.mp4", pictures=pictures)
    output = tmp_path / "out.mp4"
    made = report(run(source, "-o", output, "--engines", sets["venhancer"], "--interpolate", 2, "--json"))
    assert made["frames"] == 2 * (5 * 2 + 1)
    found = times(output)
    assert found[10:12] == [Fraction(5, 10), Fraction(6, 10)]  # the last of a shot stays as long as it did
    assert found[1] == Fraction(1, 20)


@pytest.mark.parametrize("between", [1, 2, 3])
def test_a_run_that_was_cut_off_goes_on_with_the_same_bytes(
    run: command.Run, sets: dict, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: int
) -> None:
    arguments = ("--engines", sets["venhancer"], "--interpolate", between, "--no-cuts", "--json")
    report(run(clip, "-o", tmp_path / "whole.mp4", *arguments))
    enhance, calls = VideoToVideo.enhance, []

    def fails_later(self, segment, *rest):
        calls.append(segment.index)
        if segment.index == 1:
            raise KeyboardInterrupt
        return enhance(self, segment, *rest)

    monkeypatch.setattr(VideoToVideo, "enhance", fails_later)
    assert run(clip, "-o", tmp_path / "out.mp4", *arguments).code == 130
    monkeypatch.setattr(VideoToVideo, "enhance", enhance)
    assert calls == [0, 1]
    report(run(clip, "-o", tmp_path / "out.mp4", *arguments))
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_the_hint_is_seen(sets: dict, name: str) -> None:
    """The stand-in is pulled towards its hint: without one a dark film and a bright one come out alike."""
    pictures = [np.full((48, 64, 3), level, np.uint8) for level in (40, 200)]
    with VideoToVideo.load(EngineSet.open(sets[name])) as v2v:
        dark, bright = (
            np.stack(list(v2v([shown] * 9, Settings(color="none", guidance=1.0, steps=4))))
            for shown in pictures
        )
    assert bright.mean() - dark.mean() > 20


def test_noise_and_enlargement_are_told(sets: dict) -> None:
    frames = [picture(n) for n in range(9)]
    with VideoToVideo.load(EngineSet.open(sets["venhancer"])) as v2v:
        usual = np.stack(list(v2v(frames, Settings(steps=3))))
        for changes in ({"hint_noise": 0}, {"hint_noise": 100}, {"up_scale": 2}, {"interpolate": 2}):
            other = np.stack(list(v2v(frames, Settings(steps=3, **changes))))
            assert other.shape[0] == (17 if "interpolate" in changes else 9)
            assert (other[:9] != usual).any(), changes


def test_windows_that_hold_no_two_frames_of_the_source_are_refused(
    run: command.Run, sets: dict, clip: Path, tmp_path: Path
) -> None:
    told = run(clip, "-o", tmp_path / "out.mp4", "--engines", sets["venhancer"], "--interpolate", 8)
    assert told.code == 2
    assert "--interpolate 8: needs engines that take at least 9 frames" in " ".join(told.err.split())
    told = run(clip, "-o", tmp_path / "out.mp4", "--engines", sets["star-light"], "--interpolate", 2)
    assert told.code == 2
    assert "model stand-in-star-light makes no frames between frames" in " ".join(told.err.split())
    told = run(clip, "-o", tmp_path / "out.mp4", "--fps", 20, "--interpolate", 2)
    assert told.code == 2
    assert "--fps and --interpolate say the same" in told.err


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 24])
@pytest.mark.parametrize("name", NAMES)
def test_films_of_any_length(sets: dict, name: str, count: int) -> None:
    with VideoToVideo.load(EngineSet.open(sets[name])) as v2v:
        made = list(v2v([picture(n) for n in range(count)], Settings(steps=2)))
    assert len(made) == count


def test_parity_takes_pieces_that_the_engines_can_take(sets: dict) -> None:
    frames = [picture(n) for n in range(9)]
    with VideoToVideo.load(EngineSet.open(sets["star-light"])) as v2v:
        (made,) = {each.shape for each in v2v(frames[:8], Settings(parity=True, scale=2.0))}
        assert made == (96, 128, 3)
        with pytest.raises(
            Exception, match="takes 9 frames apart into pieces of 9, and these engines take 8"
        ):
            list(v2v(frames, Settings(parity=True)))


def test_parity_writes_as_the_authors_do(run: command.Run, sets: dict, tmp_path: Path) -> None:
    source = make_video(tmp_path / "clip.mp4", frames=8, size=(64, 48), sounds=1)
    output = tmp_path / "out.mp4"
    made = report(run(source, "-o", output, "--engines", sets["star-light"], "--parity", "--json"))
    assert times(output) == times(source), "at the source's rate"
    assert (made["settings"]["crf"], made["settings"]["color"], made["settings"]["size"]) == (
        0,
        "adain",
        "64x48",
    )
    with av.open(str(output)) as opened:
        assert not opened.streams.audio


@pytest.mark.parametrize("name", NAMES)
def test_engines_are_verified_as_others(sets: dict, name: str) -> None:
    verified = verify_engine_set(EngineSet.open(sets[name]), "cpu")
    assert [each.component for each in verified] == ["text_encoder", "vae_encoder", "unet", "vae_decoder"]
