"""What the command promises: a whole video comes out, told what happened, the same for the same seed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.runtime.clips import color_tags, make_video, packets, pixels_of, psnr, times
from tests.stand_ins import sets
from tests.stand_ins.command import SAMPLE, WINDOW, Run, build_engines, start
from tests.stand_ins.model import MODEL
from v2v.core.components import Window
from v2v.core.configs import MODELS, Defaults, ModelConfig
from v2v.engine.build import Exporter
from v2v.engine.store import EngineSet, list_sets

SIZE = ("--size", "160x90", "--steps", "2")


def comment(path: Path) -> dict:
    with av.open(str(path)) as opened:
        return json.loads(opened.metadata["comment"])


def test_the_sample_clip_comes_out_whole(run: Run, stand_in_engines: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    done = run(SAMPLE, "-o", output, "--engines", stand_in_engines, *SIZE, "--strength", "0.001")
    assert done.code == 0, done.err
    assert times(output) == times(SAMPLE)
    assert len(times(output)) == 50
    assert packets(output, "audio") == packets(SAMPLE, "audio")
    before = [frame[::2, ::2] for frame in pixels_of(SAMPLE)]
    after = pixels_of(output)
    assert {frame.shape for frame in after} == {(90, 160, 3)}
    for one, other in zip(before, after, strict=True):
        assert psnr(one, other) > 18  # the stand-in's autoencoder keeps one colour per 8x8 pixels
        assert np.abs(one.mean(axis=(0, 1)) - other.mean(axis=(0, 1))).max() < 6


def test_without_options_the_aspect_is_kept_at_the_models_size(
    run: Run, stand_in_engines: Path, tmp_path: Path
) -> None:
    source = make_video(tmp_path / "in.mp4", size=(48, 64), frames=1)
    run(source, "-o", tmp_path / "out.mp4", "--engines", stand_in_engines, "--steps", "1", "--scale", "1.5")
    with av.open(str(tmp_path / "out.mp4")) as opened:
        assert (opened.streams.video[0].width, opened.streams.video[0].height) == (72, 96)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(
    run: Run, stand_in_engines: Path, tmp_path: Path
) -> None:
    source = make_video(tmp_path / "in.mp4", frames=10, sounds=1)
    outputs = [tmp_path / f"{name}.mp4" for name in ("one", "two", "three")]
    for output, seed in zip(outputs, (1, 1, 2), strict=True):
        done = run(
            source, "-o", output, "--engines", stand_in_engines, "--scale", 2, "--seed", seed, "--steps", 3
        )
        assert done.code == 0, done.err
    one, two, _ = (output.read_bytes() for output in outputs)
    assert one == two
    first, _, other = (pixels_of(output) for output in outputs)
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_parity_gives_32_frames_of_1280x720_at_8_a_second_without_sound(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    engines = build_engines(tmp_path, Window(32, 720, 1280))
    done = run(SAMPLE, "-o", output, "--engines", engines, "--parity", "--steps", "1")
    assert done.code == 0, done.err
    assert times(output) == [Fraction(n, 8) for n in range(32)]
    with av.open(str(output)) as opened:
        assert [stream.type for stream in opened.streams] == ["video"]
        video = opened.streams.video[0]
        assert (video.width, video.height, video.average_rate) == (1280, 720, 8)


@pytest.mark.parametrize(
    "frames", [1, WINDOW.frames - 1, WINDOW.frames, WINDOW.frames + 1, 5 * WINDOW.frames + 3]
)
def test_a_clip_of_any_length_keeps_its_length(
    run: Run, stand_in_engines: Path, tmp_path: Path, frames: int
) -> None:
    source = make_video(tmp_path / "in.mkv", frames=frames)
    output = tmp_path / "out.mkv"
    assert run(source, "-o", output, "--engines", stand_in_engines, "--scale", 1, "--steps", 1).code == 0
    assert times(output) == times(source)


def test_a_rotated_phone_video_comes_out_upright(run: Run, stand_in_engines: Path, tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4", frames=3, size=(128, 80), rotation=90)
    output = tmp_path / "out.mp4"
    run(source, "-o", output, "--engines", stand_in_engines, "--scale", 1, "--steps", 1, "--strength", 0.001)
    with av.open(str(source)) as opened:
        upright = np.rot90(next(opened.decode(video=0)).to_ndarray(format="rgb24"))
    assert psnr(pixels_of(output)[0], upright) > 20


@pytest.mark.parametrize(
    ("codec", "ending", "formats"),
    [
        ("h264", ".mp4", ("yuv420p", "yuv420p10le")),
        ("hevc", ".mp4", ("yuv420p", "yuv420p10le")),
        ("av1", ".mp4", ("yuv420p", "yuv420p10le")),
        ("ffv1", ".mkv", ("yuv444p", "yuv444p10le")),
    ],
)
@pytest.mark.parametrize("deep", [False, True], ids=["8-bit", "10-bit"])
def test_color_tags_aspect_and_depth_survive(
    run: Run,
    stand_in_engines: Path,
    tmp_path: Path,
    codec: str,
    ending: str,
    formats: tuple[str, str],
    deep: bool,
) -> None:
    tags = {"colorspace": 9, "color_primaries": 9, "color_trc": 16, "color_range": 1}
    if not deep:
        tags = {"colorspace": 1, "color_primaries": 1, "color_trc": 1, "color_range": 1}
    pix_fmt = "yuv420p10le" if deep else "yuv420p"
    source = make_video(
        tmp_path / "in.mp4", frames=20, size=(128, 64), colors=tags, aspect=Fraction(4, 3), pix_fmt=pix_fmt
    )
    output = tmp_path / f"out{ending}"
    done = run(
        *(source, "-o", output, "--engines", stand_in_engines, "--codec", codec),
        *("--scale", 1, "--steps", 1, "--strength", 0.001),
    )
    assert done.code == 0, done.err
    assert color_tags(output) == color_tags(source)
    assert [round(1000 * t) for t in times(output)] == [100 * n for n in range(20)]
    with av.open(str(output)) as opened:
        video = opened.streams.video[0]
        assert video.pix_fmt == formats[deep]
        if codec == "ffv1":
            assert "out.mkv: its pixels are 4/3 as wide as high" in done.err
        else:
            assert video.sample_aspect_ratio == Fraction(4, 3)
        if codec == "hevc":
            assert video.codec_context.codec_tag == "hvc1"
    assert psnr(pixels_of(output)[10], pixels_of(source)[10]) > 18
    assert "Svt[" not in done.err


def test_seed_and_settings_are_in_the_file(run: Run, stand_in_engines: Path, tmp_path: Path) -> None:
    source, output = make_video(tmp_path / "in.mp4", frames=2), tmp_path / "out.mp4"
    run(source, "-o", output, "--engines", stand_in_engines, "--prompt", "a rabbit", "--seed", 7, *SIZE)
    kept = comment(output)
    assert kept["prompt"] == "a rabbit"
    assert kept["seed"] == 7
    assert kept["steps"] == 2
    assert kept["size"] == "160x90"
    assert kept["model"] == "stand-in"
    assert kept["weights"].startswith("random ")


def test_json_tells_what_was_done(run: Run, stand_in_engines: Path, tmp_path: Path) -> None:
    source, output = make_video(tmp_path / "in.mp4", frames=2), tmp_path / "out.mp4"
    done = run(source, "-o", output, "--engines", stand_in_engines, *SIZE, "--json")
    told = json.loads(done.out)
    assert told["output"] == str(output)
    assert told["frames"] == 2
    assert told["engine_set"] == str(stand_in_engines)
    assert told["settings"] == comment(output)
    assert any("random" in warning for warning in told["warnings"])


def test_made_up_weights_are_told_every_time_even_if_quiet(
    run: Run, stand_in_engines: Path, tmp_path: Path
) -> None:
    source = make_video(tmp_path / "in.mp4", frames=2)
    arguments = (source, "-o", tmp_path / "out.mp4", "--engines", stand_in_engines, *SIZE, "--overwrite")
    for _ in range(2):
        done = run(*arguments, "--quiet")
        assert done.out == ""
        assert len(done.lines) == 1
        assert "random numbers" in done.lines[0]
    assert "random numbers" in run(*arguments).err


def test_progress_shows_frames_steps_and_time_left(stand_in_engines: Path, tmp_path: Path) -> None:
    """On a terminal, of which the test holds the other end."""
    source = make_video(tmp_path / "in.mp4", frames=20)
    ours, theirs = os.openpty()
    process = start(
        *(source, "-o", tmp_path / "out.mp4", "--engines", stand_in_engines, "--scale", 2),
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "160"},
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how a terminal ends
        while more := os.read(ours, 1 << 16):
            shown += more
    os.close(ours)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"\d+/20 frames, (encode|denoise|decode) \d+/\d+ .*left: ", text), text


def test_engines_are_found_by_their_name_in_the_store(
    run: Run, stand_in_engines: Path, tmp_path: Path, own_store: Path
) -> None:
    shutil.copytree(stand_in_engines, own_store / "mine")
    source = make_video(tmp_path / "in.mp4", frames=2)
    done = run(source, "-o", tmp_path / "out.mp4", "--engines", "mine", *SIZE)
    assert done.code == 0, done.err
    assert "engine set mine" in done.err


def test_a_first_run_builds_the_small_models_engines_once(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = Defaults(steps=1, short_side=None, window=(WINDOW.frames, WINDOW.height, WINDOW.width))
    base = MODEL
    small = ModelConfig("small", base.unet, base.autoencoder, base.text_encoder, defaults=defaults)
    monkeypatch.setitem(MODELS, "small", small)
    monkeypatch.setattr(Exporter, "default", classmethod(lambda cls: sets.ONNX))
    # The packaged weights fit the real model.
    monkeypatch.setattr("v2v.engine.choose.default_weights", lambda model: "random:0")
    source = make_video(tmp_path / "in.mp4", frames=2)

    first = run(source, "-o", tmp_path / "first.mp4", "--device", "cpu")
    assert first.code == 0, first.err
    assert "building" in first.err
    (built,) = list_sets()
    assert isinstance(built, EngineSet)
    second = run(source, "-o", tmp_path / "second.mp4", "--device", "cpu")
    assert second.code == 0, second.err
    assert "building" not in second.err
    assert (tmp_path / "first.mp4").read_bytes() == (tmp_path / "second.mp4").read_bytes()


def test_the_real_small_model_enhances_a_clip(run: Run, small_engine_set: EngineSet, tmp_path: Path) -> None:
    source, output = make_video(tmp_path / "in.mp4", frames=5, sounds=1), tmp_path / "out.mp4"
    done = run(source, "-o", output, "--engines", small_engine_set.path, "--prompt", "a rabbit", "--steps", 2)
    assert done.code == 0, done.err
    assert times(output) == times(source)
    assert packets(output, "audio") == packets(source, "audio")
    with av.open(str(output)) as opened:
        assert (opened.streams.video[0].width, opened.streams.video[0].height) == (128, 96)


def test_the_shell_completes_options() -> None:
    environment = {
        **os.environ,
        "_V2V_RUN_COMPLETE": "complete_bash",
        "COMP_WORDS": "v2v-run --st",
        "COMP_CWORD": "1",
    }
    script = "import sys; sys.argv = ['v2v-run']; from v2v.runtime.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert {"--start", "--steps", "--strength"} <= set(done.stdout.split())


def test_without_arguments_it_says_what_is_missing(run: Run) -> None:
    told = run()
    assert told.code == 2
    assert "Missing argument 'INPUT...'" in told.err
