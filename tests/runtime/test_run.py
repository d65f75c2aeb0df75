"""``v2v.enhance`` from Python does what ``v2v-run`` does, and can be followed and cancelled."""

from __future__ import annotations

import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import v2v
from tests.runtime.clips import make_video, times
from tests.stand_ins.command import Run
from v2v.runtime.diffusion.progress import Progress
from v2v.runtime.films.journal import journal_folder

FRAMES = 60  # several segments


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return make_video(tmp_path / "in.mp4", frames=FRAMES, sounds=1)


def test_it_makes_the_bytes_of_the_command(
    run: Run, stand_in_engines: Path, film: Path, tmp_path: Path
) -> None:
    told: list[Progress] = []
    made = v2v.enhance(
        film,
        tmp_path / "python.mkv",
        "a red fox",
        engines=stand_in_engines,
        steps=2,
        size=(128, 96),
        start=0.5,
        end="0:03",
        codec="ffv1",
        guidance_interval=(0.0, 0.9),
        on_progress=told.append,
    )
    typed = ("--prompt", "a red fox", "--engines", stand_in_engines, "--steps", 2, "--size", "128x96")
    typed += ("--start", "0.5", "--end", "0:03", "--codec", "ffv1", "--guidance-interval", "0.0:0.9")
    assert run(film, "-o", tmp_path / "typed.mkv", *typed).code == 0
    assert (tmp_path / "python.mkv").read_bytes() == (tmp_path / "typed.mkv").read_bytes()
    assert (made.frames, made.settings["prompt"]) == (25, "a red fox")
    assert told[-1].fraction == 1.0


def test_numbers_are_given_as_numbers(run: Run, stand_in_engines: Path, film: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"steps": 2, "scale": 2.0, "end": 1, "strength": 0.4, "guidance": 3.0}
    v2v.enhance(film, tmp_path / "python.mkv", engines=stand_in_engines, codec="ffv1", **asked)
    typed = [word for name, value in asked.items() for word in (f"--{name}", value)]
    typed += ["--engines", stand_in_engines, "--codec", "ffv1"]
    assert run(film, "-o", tmp_path / "typed.mkv", *typed).code == 0
    assert (tmp_path / "python.mkv").read_bytes() == (tmp_path / "typed.mkv").read_bytes()


def test_a_picture_becomes_a_film(stand_in_engines: Path, first_stage_engines: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "fox.png")
    engines = {"engines": stand_in_engines, "engines_first": first_stage_engines}
    made = v2v.enhance(tmp_path / "fox.png", tmp_path / "fox.mp4", steps=1, size=(128, 80), **engines)
    assert made.first_stage["engine_set"] == str(first_stage_engines)
    assert times(tmp_path / "fox.mp4") == [Fraction(n, 8) for n in range(4)]


def test_what_is_finished_when_a_run_is_cancelled_is_kept(
    stand_in_engines: Path, film: Path, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"engines": stand_in_engines, "steps": 1, "scale": 2.0}
    undisturbed: list[Progress] = []
    v2v.enhance(film, tmp_path / "whole.mp4", on_progress=undisturbed.append, **asked)
    output, cancel, told = tmp_path / "out.mp4", threading.Event(), []

    def progress(now: Progress) -> None:
        told.append(now)
        deadline = time.monotonic() + 60
        while now.segment and not cancel.is_set() and time.monotonic() < deadline:
            if journal_folder(output).joinpath("00000.json").exists():  # another thread writes it
                cancel.set()
            time.sleep(0.01)

    with pytest.raises(v2v.Cancelled, match="what is finished is kept"):
        v2v.enhance(film, output, on_progress=progress, cancel=cancel, **asked)
    assert not output.exists()
    told.clear()
    v2v.enhance(film, output, on_progress=progress, **asked)
    assert len(told) < len(undisturbed)
    assert output.read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_cancelled_before_it_began_it_makes_nothing(
    stand_in_engines: Path, film: Path, tmp_path: Path
) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(v2v.Cancelled):
        v2v.enhance(film, tmp_path / "out.mp4", engines=stand_in_engines, steps=1, cancel=cancel)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "store") == ["in.mp4"]


def test_mistakes_are_those_of_the_command(stand_in_engines: Path, film: Path, tmp_path: Path) -> None:
    def enhance(source: Path = film, **options: Any) -> None:
        v2v.enhance(source, tmp_path / "out.mp4", engines=stand_in_engines, **options)

    with pytest.raises(v2v.V2VError, match="--steps 0: must lie between"):
        enhance(steps=0)
    with pytest.raises(v2v.V2VError, match="--device must be one of"):
        enhance(device="tpu")
    with pytest.raises(TypeError, match="stps"):
        enhance(stps=3)
    (tmp_path / "films").mkdir()
    film.rename(tmp_path / "films" / film.name)
    with pytest.raises(v2v.V2VError, match="several videos"):
        enhance(tmp_path / "films")
    assert not (tmp_path / "out.mp4").exists()


# Frames -----------------------------------------------------------------------------------------------------


def frames_of(count: int, kind: type[np.generic] = np.uint8) -> list[np.ndarray]:
    drawn = np.random.default_rng(0)
    return [drawn.integers(0, np.iinfo(kind).max, (40, 64, 3), kind) for _ in range(count)]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_tensors_come_out_for_tensors(stand_in_engines: Path, kind: type[np.generic]) -> None:
    torch = pytest.importorskip("torch")
    enhancer = v2v.VideoToVideo.load(stand_in_engines)
    asked = {"steps": 1, "scale": 2.0}
    expected = list(enhancer(frames_of(5, kind), **asked))
    made = list(enhancer(map(torch.from_numpy, frames_of(5, kind)), **asked))
    assert all(isinstance(frame, torch.Tensor) for frame in made)
    np.testing.assert_array_equal(np.stack([frame.numpy() for frame in made]), np.stack(expected))


def test_the_latents_of_every_step_are_told_and_change_nothing(stand_in_engines: Path) -> None:
    enhancer = v2v.VideoToVideo.load(stand_in_engines)
    asked = {"steps": 4, "scale": 2.0, "seed": 3}
    told: list[v2v.Step] = []
    made = list(enhancer(frames_of(60), on_step=told.append, **asked))
    np.testing.assert_array_equal(np.stack(made), np.stack(list(enhancer(frames_of(60), **asked))))
    segments = sorted({step.segment for step in told})
    assert len(segments) > 1
    for segment in segments:
        steps = [step for step in told if step.segment == segment]
        assert [step.step for step in steps] == [*range(1, steps[0].steps + 1)]
        sigmas = [step.sigma for step in steps]
        assert sigmas == sorted(sigmas, reverse=True)
        assert {step.latents.shape[1:] for step in steps} == {(4, 10, 16)}
        assert all((a.latents != b.latents).any() for a, b in zip(steps, steps[1:], strict=False))


def test_a_run_can_be_left_at_any_sign_and_the_next_knows_nothing_of_it(stand_in_engines: Path) -> None:
    enhancer, asked = v2v.VideoToVideo.load(stand_in_engines), {"steps": 4, "scale": 2.0}
    told: list[v2v.Progress] = []
    expected = list(enhancer(frames_of(5), progress=told.append, **asked))
    assert {now.stage for now in told} == {"encode", "denoise", "decode"}

    def leave(sign: int) -> None:
        signs = iter(range(sign))

        def progress(now: v2v.Progress) -> None:
            if next(signs, None) is None:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            list(enhancer(frames_of(5), progress=progress, **asked))

    for sign in range(len(told)):
        leave(sign)
        np.testing.assert_array_equal(np.stack(list(enhancer(frames_of(5), **asked))), np.stack(expected))


def test_a_model_is_opened_by_its_name_and_built_once(own_store: Path) -> None:
    told: list[tuple[str, str, float]] = []
    with v2v.VideoToVideo.from_pretrained("small", progress=lambda *now: told.append(now)) as enhancer:
        name = enhancer.engines.facts["engines"]
    assert {component for component, _, _ in told} >= {"unet", "vae_encoder", "vae_decoder"}
    told.clear()
    with v2v.VideoToVideo.from_pretrained(name, device="cpu", progress=lambda *now: told.append(now)):
        pass
    with v2v.VideoToVideo.from_pretrained("small", progress=lambda *now: told.append(now)):
        pass
    assert told == []
    with pytest.raises(v2v.V2VError, match="--weights"):
        v2v.VideoToVideo.from_pretrained("ms-vid2vid-xl")
    with pytest.raises(v2v.V2VError, match="no-such"):
        v2v.VideoToVideo.from_pretrained("no-such-model")
