"""STAR and VEnhancer from file to file on engines of their networks, built of random weights as any others."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

pytest.importorskip("torch", reason="building engines needs PyTorch")

from tests.runtime.clips import make_video, picture, pixels_of, times
from tests.runtime.films.test_kill import JOURNAL, Moment, kill_at
from tests.runtime.test_family import report, sounds_of
from tests.stand_ins import command
from tests.stand_ins.model import narrow
from v2v.benchmarks.torch_engines import baseline_engines
from v2v.core.components import window_for
from v2v.device.cpu import CpuDevice
from v2v.engine.backend import BuildOptions
from v2v.engine.build import build_engine_set
from v2v.engine.store import EngineSet
from v2v.engine.verify import verify_engine_set
from v2v.export.weights import load_weights
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.diffusion.settings import Settings

pytestmark = pytest.mark.slow  # a narrow UNet takes half a minute to export

NAMES = ("star-light", "star-heavy", "venhancer")
FRAMES = 12  # of two segments
WEIGHTS = "random:3"

Build = Callable[..., EngineSet]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A set of a narrow model; that of star-heavy can reuse features, as star-light's networks are the same."""
    made: dict[tuple[str, str], EngineSet] = {}

    def get(name: str, backend: str = "onnxruntime") -> EngineSet:
        if (name, backend) not in made:
            model = narrow(name)
            made[name, backend] = build_engine_set(
                model,
                weights=WEIGHTS,
                window=window_for(model, (64, 48), 4),
                backend_name=backend,
                options=BuildOptions(precision="fp32", device="cpu", reuse=name == "star-heavy"),
                output=tmp_path_factory.mktemp("narrow") / name,
            ).engine_set
        return made[name, backend]

    return get


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_video(tmp_path / "clip.mp4", frames=FRAMES, size=(64, 48), sounds=1)


def asked(engines: EngineSet, *more: Any) -> tuple[Any, ...]:
    return ("--engines", engines.path, "--steps", 2, "--no-cuts", "--json", *more)


@pytest.mark.parametrize("name", NAMES)
def test_a_film_goes_from_file_to_file(
    run: command.Run, build: Build, clip: Path, tmp_path: Path, name: str
) -> None:
    output = tmp_path / "out.mp4"
    more = ("--reuse", 2) if name == "star-heavy" else ("--scale", 1.5) if name == "star-light" else ()
    made = report(run(clip, "-o", output, *asked(build(name), *more)))
    width, height = (96, 72) if "--scale" in more else (64, 48)
    assert (made["frames"], made["settings"]["size"]) == (FRAMES, f"{width}x{height}")
    assert times(output) == times(clip)
    assert sounds_of(output) == sounds_of(clip)
    frames = np.stack(pixels_of(output))
    assert frames.shape == (FRAMES, height, width, 3)
    assert frames.std() > 5


def test_frames_are_made_between_frames(run: command.Run, build: Build, clip: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    made = report(run(clip, "-o", output, *asked(build("venhancer"), "--interpolate", 2)))
    assert made["frames"] == 2 * FRAMES - 1 == len(pixels_of(output))
    assert times(output) == [Fraction(n, 20) for n in range(2 * FRAMES - 1)]
    assert sounds_of(output) == sounds_of(clip)


@pytest.mark.parametrize(("name", "more"), [("star-light", ()), ("venhancer", ("--interpolate", 2))])
def test_a_killed_run_goes_on_to_the_same_bytes(
    run: command.Run, build: Build, clip: Path, tmp_path: Path, name: str, more: tuple[Any, ...]
) -> None:
    report(run(clip, "-o", tmp_path / "whole.mp4", *asked(build(name), *more)))
    output = tmp_path / "out.mp4"
    given = (clip, "-o", output, *asked(build(name), *more))
    process = command.start(*given, start_new_session=True)
    assert kill_at(Moment(0, "00000.json"), output, process)
    assert not output.exists()
    assert output.with_name(JOURNAL.format(output.name)).exists()
    assert report(run(*given))["frames"]
    assert output.read_bytes() == (tmp_path / "whole.mp4").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_parity_writes_as_the_authors_do(run: command.Run, build: Build, tmp_path: Path, name: str) -> None:
    source = make_video(tmp_path / "clip.mp4", frames=4, size=(64, 48), sounds=1)
    output = tmp_path / "out.mp4"
    made = report(
        run(source, "-o", output, "--engines", build(name).path, "--parity", "--scale", 1.5, "--json")
    )
    told = made["settings"]
    assert (told["size"], told["grid"], told["steps"]) == ("96x72", "fast", 14)
    assert (told["color"], told["crf"]) == (("none", 17) if name == "venhancer" else ("adain", 0))
    assert times(output) == times(source)
    assert np.stack(pixels_of(output)).shape == (4, 72, 96, 3)
    with av.open(str(output)) as opened:
        assert not opened.streams.audio


@pytest.mark.parametrize("name", ["star-light", "venhancer"])
@pytest.mark.parametrize("parity", [False, True])
def test_pictures_are_those_of_pytorch_in_the_same_pipeline(
    build: Build, tmp_path: Path, name: str, parity: bool
) -> None:
    engine_set = build(name)
    model, window = engine_set.model, engine_set.window
    of_torch = baseline_engines(tmp_path, "eager", model, window, load_weights(WEIGHTS, model), "cpu")
    frames = [picture(n) for n in range(4 if parity else 5)]
    settings = Settings(steps=2, parity=parity, interpolate=2 if name == "venhancer" and not parity else None)
    with VideoToVideo.load(engine_set) as v2v:
        found = np.stack(list(v2v(frames, settings))).astype(int)
    with VideoToVideo(of_torch, CpuDevice()) as v2v:
        expected = np.stack(list(v2v(frames, settings))).astype(int)
    assert found.std() > 5
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("name", ["star-light", "venhancer"])
def test_sets_verify(build: Build, name: str) -> None:
    verified = verify_engine_set(build(name), "cpu")
    assert [one.component for one in verified] == [*build(name).names]


def test_inductor_gives_the_same_film(run: command.Run, build: Build, clip: Path, tmp_path: Path) -> None:
    """Two minutes of compilation, so of one model: the one whose branch takes all that there is."""
    films = []
    for backend in ("onnxruntime", "inductor"):
        output = tmp_path / backend
        told = asked(build("venhancer", backend), "--interpolate", 2)
        made = report(run(clip, "-o", f"{output}/", *told))
        assert made["frames"] == 2 * FRAMES - 1
        films.append(np.stack([read(path) for path in sorted(output.glob("*.png"))]).astype(int))
    assert len(films[0]) == 2 * FRAMES - 1
    assert np.abs(films[0] - films[1]).max() <= 1


def read(path: Path) -> np.ndarray:
    (found,) = pixels_of(path)
    return found
