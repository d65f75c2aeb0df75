"""Bad input gets one line that names the file or flag, the cause and the way out; nothing is harmed or left over."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.patience import takes_at_most
from tests.runtime.clips import make_sound, make_video, picture, pixels_of, psnr, times
from tests.stand_ins import sets
from tests.stand_ins.command import SAMPLE, Result, Run, start
from tests.stand_ins.model import WINDOW
from v2v.engine.store import MANIFEST
from v2v.runtime.media.errors import MediaWarning
from v2v.runtime.media.reader import VideoReader

Refused = Callable[..., str]


@pytest.fixture
def refused(run: Run, stand_in_engines: Path, tmp_path: Path) -> Iterator[Refused]:
    """Run the command, see it refuse in the proper way, and return what it said."""

    def call(*arguments: Any, engines: Path | str = stand_in_engines) -> str:
        before = snapshot(tmp_path)
        done = run(*arguments, "--engines", engines, "--steps", 1, "--scale", 1)
        assert snapshot(tmp_path) == before
        return the_one_line(done)

    yield call


_NEWS = ("engine set ", "warning: ", "this will take ")  # the last where the machine is slow


def the_one_line(done: Result) -> str:
    assert done.code == 2, done.err
    errors = [line for line in done.lines if not line.startswith(_NEWS)]
    assert len(errors) == 1, done.err
    assert errors[0].startswith("error: ")
    assert "Traceback" not in done.err
    assert done.out == ""
    return errors[0]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_video(tmp_path / "clip.mp4", frames=4)


# What cannot be read --------------------------------------------------------------------------------------------


def test_no_such_file(refused: Refused, tmp_path: Path) -> None:
    assert "nowhere.mp4: no such file" in refused(tmp_path / "nowhere.mp4", "-o", tmp_path / "out.mp4")


def test_a_folder(refused: Refused, tmp_path: Path) -> None:
    folder = tmp_path / "holiday.mp4"
    folder.mkdir()
    said = refused(folder, "-o", tmp_path / "out.mp4")
    assert "holiday.mp4 is a folder" in said


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("empty.mp4", b"", "empty (0 bytes)"),
        ("noise.mp4", np.random.default_rng(0).bytes(5000), "not a video"),
        ("letter.txt", b"Dear all,\n\nhow are you?\n" * 20, "not a video"),
        ("page.mp4", b"<!doctype html><title>404</title>", "not a video"),
    ],
)
def test_not_a_video(refused: Refused, tmp_path: Path, name: str, content: bytes, cause: str) -> None:
    (tmp_path / name).write_bytes(content)
    said = refused(tmp_path / name, "-o", tmp_path / "out.mp4")
    assert name in said
    assert cause in said


def test_cut_off_before_its_index(refused: Refused, tmp_path: Path) -> None:
    """A recording whose index, at the end of the file, was never written."""
    whole = make_video(tmp_path / "whole.mp4", frames=30).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    said = refused(tmp_path / "cut.mp4", "-o", tmp_path / "out.mp4")
    assert "cut.mp4" in said
    assert "cut off" in said


def test_no_video_stream(refused: Refused, tmp_path: Path) -> None:
    said = refused(make_sound(tmp_path / "song.m4a"), "-o", tmp_path / "out.mp4")
    assert "song.m4a has no video stream, only audio" in said


def test_no_frames(refused: Refused, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "header.mkv"), "w") as output:
        stream = output.add_stream("libx264", rate=10)
        stream.width, stream.height = 64, 48
        output.start_encoding()
    said = refused(tmp_path / "header.mkv", "-o", tmp_path / "out.mp4")
    assert "header.mkv cannot be read: it holds nothing that plays" in said


def test_no_frames_but_sound(refused: Refused, tmp_path: Path) -> None:
    source = make_video(tmp_path / "film.mkv", sounds=1)
    path = tmp_path / "in.mkv"
    with av.open(str(source)) as film, av.open(str(path), "w") as output:
        copies = {stream: output.add_stream_from_template(stream) for stream in film.streams}
        for packet in film.demux(film.streams.audio[0]):
            if packet.size:
                packet.stream = copies[packet.stream]
                output.mux(packet)
    said = refused(path, "-o", tmp_path / "out.mp4")
    assert "in.mkv: no picture could be read, it holds none" in said


def test_no_frame_that_can_be_decoded(refused: Refused, tmp_path: Path) -> None:
    path = make_video(tmp_path / "in.mp4", frames=5)
    content = bytearray(path.read_bytes())
    start, stop = content.find(b"mdat") + 4, content.find(b"moov") - 4
    content[start:stop] = bytes(stop - start)
    path.write_bytes(content)
    said = refused(path, "-o", tmp_path / "out.mp4")
    assert "in.mp4: no picture could be read, its pictures are damaged" in said


# What can be read in part, or is unusual ---------------------------------------------------------------------------


def test_a_file_cut_short_is_used_as_far_as_it_goes(run: Run, stand_in_engines: Path, tmp_path: Path) -> None:
    fast = {"movflags": "+faststart"}  # the index comes first, so that the rest can be missing
    whole = make_video(tmp_path / "whole.mp4", frames=40, container_options=fast).read_bytes()
    cut, output = tmp_path / "cut.mp4", tmp_path / "out.mp4"
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    done = run(cut, "-o", output, "--engines", stand_in_engines, "--steps", 1, "--scale", 1)
    assert done.code == 0, done.err
    count = len(times(output))
    assert 10 < count < 40
    assert f"cut.mp4 is damaged or cut short: {count} of about 40 frames could be read" in done.err


def test_damage_in_the_middle_costs_only_what_it_hit(
    run: Run, stand_in_engines: Path, tmp_path: Path
) -> None:
    every_frame_a_key_frame = {"crf": "10", "g": "1"}
    path, output = tmp_path / "in.mkv", tmp_path / "out.mkv"
    content = bytearray(make_video(path, frames=40, options=every_frame_a_key_frame).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = np.random.default_rng(0).bytes(3000)
    path.write_bytes(content)
    done = run(path, "-o", output, "--engines", stand_in_engines, "--steps", 1, "--scale", 1)
    assert done.code == 0, done.err
    count = len(times(output))
    assert 20 < count < 40
    assert re.search(rf"in.mkv (is|may be) damaged.*: {count} of about 40 frames could be read", done.err)
    assert times(output)[-1] == times(make_video(tmp_path / "whole.mkv", frames=40))[-1]


def test_a_whole_file_is_not_told_to_be_damaged(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", MediaWarning)
        for ending in (".mp4", ".mkv", ".mov", ".avi", ".ts", ".webm"):
            codec = {"codec": "libvpx-vp9", "options": {"crf": "30", "b": "0"}} if ending == ".webm" else {}
            with VideoReader(make_video(tmp_path / f"whole{ending}", frames=7, **codec)) as reader:
                assert len(list(reader.frames())) == 7, ending


@pytest.mark.parametrize("size", [(65, 49), (1, 1), (2, 300)])
def test_odd_and_tiny_pictures_are_enhanced(
    run: Run, stand_in_engines: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    shown = picture(0, *size)
    source = make_video(tmp_path / "in.mkv", pictures=[shown], codec="ffv1", pix_fmt="yuv444p", options={})
    output = tmp_path / "out.mp4"
    done = run(source, "-o", output, "--engines", stand_in_engines, "--steps", 1, "--scale", 2)
    assert done.code == 0, done.err
    assert pixels_of(output)[0].shape == (2 * size[1], 2 * size[0], 3)


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "ending"),
    [("libx264", "yuv420p10le", ".mp4"), ("ffv1", "gray", ".mkv"), ("qtrle", "argb", ".mov")],
    ids=["10-bit", "grey", "alpha"],
)
def test_unusual_pictures_are_enhanced(
    run: Run, stand_in_engines: Path, tmp_path: Path, codec: str, pix_fmt: str, ending: str
) -> None:
    source = make_video(tmp_path / f"in{ending}", frames=3, codec=codec, pix_fmt=pix_fmt, options={})
    output = tmp_path / "out.mp4"
    done = run(
        *(source, "-o", output, "--engines", stand_in_engines, "--steps", 1, "--scale", 1),
        *("--strength", 0.001),
    )
    assert done.code == 0, done.err
    assert times(output) == times(source)
    assert psnr(pixels_of(source)[0], pixels_of(output)[0]) > 18
    assert ("transparency" in done.err) == (pix_fmt == "argb")


# What cannot be written -----------------------------------------------------------------------------------------


def test_output_folder_missing(refused: Refused, clip: Path, tmp_path: Path) -> None:
    said = refused(clip, "-o", tmp_path / "no" / "out.mp4")
    assert f"there is no folder {tmp_path / 'no'}" in said


def test_output_folder_unwritable(refused: Refused, clip: Path) -> None:
    said = refused(clip, "-o", "/proc/out.mp4")  # not even root can write there
    assert "cannot write /proc/out.mp4" in said
    assert "-o" in said


def test_output_is_a_folder(refused: Refused, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "films.mp4").mkdir()
    assert "films.mp4: it is a folder" in refused(clip, "-o", tmp_path / "films.mp4")


def test_output_exists(refused: Refused, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "out.mp4").write_text("precious")
    said = refused(clip, "-o", tmp_path / "out.mp4")
    assert "out.mp4 already exists" in said
    assert "--overwrite" in said


def test_output_is_the_input(refused: Refused, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "link.mp4").symlink_to(clip)
    for name in ("clip.mp4", "link.mp4"):
        assert "is the input itself" in refused(clip, "-o", tmp_path / name, "--overwrite")


def test_a_file_that_appears_during_the_run_is_left_alone(
    run: Run, stand_in_engines: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.mp4"
    from v2v.runtime.media.writer import VideoWriter

    leave = VideoWriter.__exit__

    def leave_late(self: VideoWriter, *raised: Any) -> None:
        output.write_text("precious")
        leave(self, *raised)

    monkeypatch.setattr(VideoWriter, "__exit__", leave_late)
    done = run(clip, "-o", output, "--engines", stand_in_engines, "--steps", 1, "--scale", 1)
    assert done.code == 0
    assert output.read_text() == "precious"
    assert times(tmp_path / "out-1.mp4") == times(clip)
    assert "out-1.mp4" in done.err


@pytest.mark.parametrize("name", ["out.xyz", "out", "out.txt"])
def test_unknown_output_format(refused: Refused, clip: Path, tmp_path: Path, name: str) -> None:
    said = refused(clip, "-o", tmp_path / name)
    assert name in said
    assert ".mkv" in said


def test_overwrite_replaces_only_when_finished(
    run: Run, stand_in_engines: Path, clip: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.mp4"
    output.write_text("old")
    done = run(clip, "-o", output, "--overwrite", "--engines", stand_in_engines, "--steps", 1, "--scale", 1)
    assert done.code == 0
    assert times(output) == times(clip)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["clip.mp4", "out.mp4"]


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))


def test_disk_full(stand_in_engines: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    output.write_text("old")
    process = start(
        *(SAMPLE, "-o", output, "--overwrite", "--engines", stand_in_engines, "--scale", 0.5, "--steps", 1),
        preexec_fn=limit_file_size,
    )
    out, err = process.communicate(timeout=120)
    said = the_one_line(Result(process.returncode, out, err))
    assert f"cannot write {output}" in said
    assert "File too large" in said
    assert snapshot(tmp_path) == {str(output): b"old"}


def test_disk_really_full(stand_in_engines: Path, tmp_path: Path) -> None:
    """On a file system of 64 kB, where the test may make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a small file system")
    try:
        process = start(
            *(SAMPLE, "-o", disk / "out.mp4", "--engines", stand_in_engines, "--scale", 0.5, "--steps", 1)
        )
        out, err = process.communicate(timeout=120)
        assert "No space left on device" in the_one_line(Result(process.returncode, out, err))
        # segments that were finished before the disk was full are kept, to go on with
        assert {path.name for path in disk.iterdir()} <= {".out.mp4.v2v"}
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# Flags ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--steps", 0), "--steps 0: must lie between"),
        (("--strength", 1.5), "--strength 1.5: must lie between"),
        (("--guidance", -1), "--guidance -1.0: must lie between"),
        (("--guidance-rescale", 2), "--guidance-rescale 2.0: must lie between"),
        (("--seed", -1), "--seed -1: must lie between"),
        (("--solver", "euler"), "--solver euler: there is no such solver"),
        (("--color", "sepia"), "--color sepia"),
        (("--size", "big"), "--size must be WIDTHxHEIGHT"),
        (("--size", "0x90"), "--size"),
        (("--size", "161x90"), "--size 161x90: codec h264 needs an even width and height; try --size 162x90"),
        (("--scale", 0), "--scale"),
        (("--scale", "nan"), "--scale"),
        (("--strength", "nan"), "--strength"),
        (("--backend", "magic"), "--backend must be one of"),
        (("--device", "tpu"), "--device must be one of"),
        (("--model", "huge"), "--model must be one of"),
        (("--memory", "none"), "--memory must be one of"),
        (("--no-such-flag",), "No such option"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_a_flag_out_of_range_is_named(
    run: Run, stand_in_engines: Path, clip: Path, tmp_path: Path, flags: tuple[Any, ...], said: str
) -> None:
    done = run(clip, "-o", tmp_path / "out.mp4", "--engines", stand_in_engines, *flags)
    assert said in the_one_line(done)
    assert not (tmp_path / "out.mp4").exists()


def test_a_prompt_beyond_77_tokens_is_told(
    run: Run, stand_in_engines: Path, clip: Path, tmp_path: Path
) -> None:
    prompt = "rabbit " * 75 + "in a meadow"
    done = run(
        *(clip, "-o", tmp_path / "out.mp4", "--engines", stand_in_engines),
        *("--scale", 1, "--steps", 1, "--prompt", prompt, "--json"),
    )
    assert done.code == 0
    assert "'in a meadow'" in done.err
    assert any("'in a meadow'" in warning for warning in json.loads(done.out)["warnings"])


# Engine sets ----------------------------------------------------------------------------------------------------


@pytest.fixture
def own_engines(stand_in_engines: Path, tmp_path: Path) -> Path:
    """A copy of the engine set that a test may damage."""
    return Path(shutil.copytree(stand_in_engines, tmp_path / "engines"))


def change_manifest(engines: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = engines / MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_no_engine_set(refused: Refused, clip: Path, tmp_path: Path) -> None:
    said = refused(clip, "-o", tmp_path / "out.mp4", engines=tmp_path / "none")
    assert "no engine set at" in said
    assert "v2v-build-engines" in said


def test_no_engines_for_the_model(run: Run, clip: Path, tmp_path: Path) -> None:
    said = the_one_line(run(clip, "-o", tmp_path / "out.mp4", "--model", "ms-vid2vid-xl"))
    assert "v2v-build-engines ms-vid2vid-xl" in said


def test_engines_of_another_model(refused: Refused, clip: Path, tmp_path: Path) -> None:
    said = refused(clip, "-o", tmp_path / "out.mp4", "--model", "small")
    assert "its model is stand-in, wanted is small" in said
    assert "v2v-build-engines" in said


def test_engines_of_another_backend(refused: Refused, clip: Path, tmp_path: Path) -> None:
    said = refused(clip, "-o", tmp_path / "out.mp4", "--backend", "inductor")
    assert "its backend is onnxruntime, wanted is inductor" in said


def test_engines_of_another_version(refused: Refused, clip: Path, own_engines: Path, tmp_path: Path) -> None:
    def make_older(manifest: dict[str, Any]) -> None:
        manifest["format"] = 999

    change_manifest(own_engines, make_older)
    said = refused(clip, "-o", tmp_path / "out.mp4", engines=own_engines)
    assert str(own_engines) in said


def test_engines_for_another_window(refused: Refused, clip: Path, tmp_path: Path, own_engines: Path) -> None:
    """Engines whose files are of one window and whose manifest speaks of another."""
    other = sets.build(
        tmp_path / "other", backend="onnxruntime", exporter=sets.ONNX, window=WINDOW
    ).engine_set.path
    shutil.copytree(other / "unet", own_engines / "unet", dirs_exist_ok=True)
    said = refused(clip, "-o", tmp_path / "out.mp4", engines=own_engines)
    assert str(own_engines) in said
    assert "unet" in said


def test_damaged_engines(refused: Refused, clip: Path, own_engines: Path, tmp_path: Path) -> None:
    victim = next((own_engines / "unet").iterdir())
    victim.write_bytes(victim.read_bytes()[:-5])
    said = refused(clip, "-o", tmp_path / "out.mp4", engines=own_engines)
    assert str(victim) in said
    assert "rebuild" in said


# Stopping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_told_to_stop_it_stops_and_leaves_nothing(
    stand_in_engines: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    def attempt(_: int) -> float:
        process = start(
            *(SAMPLE, "-o", tmp_path / "out.mp4", "--engines", stand_in_engines, "--steps", 900),
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        deadline = time.monotonic() + 120
        while not any(tmp_path.glob(".*.v2v")):  # it has begun to write
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)
        told = time.monotonic()
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        seconds = time.monotonic() - told
        assert process.returncode == code
        assert "Traceback" not in err
        assert list(tmp_path.iterdir()) == []
        return seconds

    takes_at_most(2, attempt)
