"""A run that is killed at any moment, by SIGKILL with all its processes, goes on to the bytes of an undisturbed one.

Half of the moments are spread over the time that a run takes, half follow a file's appearance, so that the short
ones between joining, naming and clearing up are met too.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import filelock
import pytest

from tests.runtime.clips import make_video, times
from tests.stand_ins.command import Run, start

FRAMES = 70  # four segments
JOURNAL = ".{}.v2v"
APPEARING = (
    *("joined.part", "00001.carry", "complete.json", "00002.mov.part", "journal.json", "00003.mov"),
    *("00000.json", ""),
)
PATIENCE = 120


@dataclass(frozen=True)
class Moment:
    """When a run is killed: so many seconds after its start, or after the appearance of a file of its journal.

    The empty name is the output itself.
    """

    seconds: float
    appearing: str | None = None

    @classmethod
    def random(cls, seed: int, run: float) -> Moment:
        """One of those of a run that takes ``run`` seconds."""
        rng = random.Random(seed)
        if seed % 2:
            return cls(rng.uniform(0, run))
        return cls(rng.choice([0, 0, rng.uniform(0, 0.03)]), APPEARING[seed // 2 % len(APPEARING)])


def kill_at(moment: Moment, output: Path, process: subprocess.Popen[str]) -> bool:
    """Whether the run had not ended before."""
    if moment.appearing is not None:
        awaited = (
            output.with_name(JOURNAL.format(output.name)) / moment.appearing if moment.appearing else output
        )
        began = time.monotonic()
        while not awaited.exists() and process.poll() is None:
            assert time.monotonic() - began < PATIENCE
            time.sleep(0.0005)
    time.sleep(moment.seconds)
    ended = process.poll() is not None
    os.killpg(process.pid, signal.SIGKILL) if not ended else None
    process.communicate()
    return not ended


def content(output: Path) -> dict[str, bytes]:
    """Bytes of a file, or of all files of a folder."""
    files = sorted(output.iterdir()) if output.is_dir() else [output]
    return {path.name if output.is_dir() else "": path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("killed") / "in.mkv", frames=FRAMES, sounds=1)


@pytest.fixture(scope="module")
def undisturbed(stand_in_engines: Path, source: Path) -> Callable[[str], tuple[dict[str, bytes], float]]:
    """What a run that nobody kills makes of a name, and how long it takes."""
    made: dict[str, tuple[dict[str, bytes], float]] = {}

    def make(name: str) -> tuple[dict[str, bytes], float]:
        if name not in made:
            folder = source.parent / "undisturbed"
            folder.mkdir(exist_ok=True)
            began = time.monotonic()
            process = start(*command(stand_in_engines, source, folder / name))
            _, told = process.communicate()
            assert process.returncode == 0, told
            made[name] = content(folder / name), time.monotonic() - began
        return made[name]

    return make


def command(engines: Path, source: Path, output: Path, workers: int = 1) -> tuple[object, ...]:
    folder = "" if output.suffix else "/"
    settings = ("--engines", engines, "--scale", 2, "--steps", 4, "--workers", workers)
    return (source, "-o", f"{output}{folder}", *settings)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_to_the_same_bytes(
    run: Run,
    stand_in_engines: Path,
    source: Path,
    tmp_path: Path,
    undisturbed,
    kills: int,
    trials: int | None,
) -> None:
    told = []
    for seed in range(trials or kills):
        name = ("film.mp4", "film.mkv", "pictures")[seed % 3]
        expected, seconds = undisturbed(name)
        folder = tmp_path / str(seed)
        folder.mkdir()
        output = folder / name
        moment = Moment.random(seed, seconds)
        given = command(stand_in_engines, source, output, workers=2 if seed % 5 == 4 else 1)
        killed = kill_at(moment, output, start(*given, start_new_session=True))
        left = sorted(path.name for path in output.with_name(JOURNAL.format(name)).glob("*"))
        done = run(*given)
        told.append(f"{moment} {name}: {'killed' if killed else 'had ended'}, left {left}")
        finished_before = output.exists() and not left
        refused = "already exists" in done.err or "not empty" in done.err
        assert done.code == 0 or (finished_before and refused), (told, done.err)
        assert content(output) == expected, told
        assert [path.name for path in folder.iterdir()] == [name], told
    print("\n".join(told))
    assert sum("killed" in line for line in told) > len(told) / 2


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_batch_goes_on_to_the_same_bytes(
    run: Run, stand_in_engines: Path, source: Path, tmp_path: Path, workers: int, trials: int | None
) -> None:
    films = tmp_path / "films"
    films.mkdir()
    for name in ("a.mkv", "b.mkv", "c.mkv"):
        shutil.copy(source, films / name)

    def given(output: Path) -> tuple[object, ...]:
        return command(stand_in_engines, films, output, workers)

    began = time.monotonic()
    assert run(*given(tmp_path / "undisturbed")).code == 0
    expected, seconds = content(tmp_path / "undisturbed"), time.monotonic() - began
    assert expected.keys() == {"a.mkv", "b.mkv", "c.mkv"}
    told = []
    for seed in range(trials or 6):
        output, moment = tmp_path / str(seed), Moment(random.Random(seed).uniform(0, 1.2 * seconds + 1))
        killed = kill_at(moment, output, start(*given(output), start_new_session=True))
        told.append(f"{moment}: {'killed' if killed else 'had ended'}")
        done = run(*given(output))
        assert done.code == 0, (told, done.err)
        assert content(output) == expected, told
    print("\n".join(told))


@pytest.mark.slow
def test_a_killed_run_on_a_cluster_goes_on_to_the_same_bytes(
    run: Run, stand_in_engines: Path, source: Path, tmp_path: Path, undisturbed, trials: int | None
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: no wheel for this Python, or left out")
    expected, _ = undisturbed("film.mp4")
    for seed in range(trials or 2):
        output = tmp_path / str(seed) / "film.mp4"
        output.parent.mkdir()
        given = command(stand_in_engines, source, output)
        # Once a worker is there; a cluster takes a while to start.
        moment = Moment(
            random.Random(seed).uniform(0, 0.5), ("journal.json", "00000.json", "00001.mov")[seed % 3]
        )
        assert any(  # on a busy machine a cluster may not start in Ray's own time
            kill_at(moment, output, start(*given, "--ray", "local", start_new_session=True)) for _ in range(3)
        )
        wait_for_end(output)
        assert run(*given).code == 0
        assert content(output) == expected, moment
        assert [path.name for path in output.parent.iterdir()] == [output.name]


def wait_for_end(output: Path) -> None:
    """Until whom the supervisor's end has ended lets go of the journal."""
    lock = filelock.FileLock(output.with_name(JOURNAL.format(output.name)) / "lock")
    with lock.acquire(timeout=PATIENCE):
        pass


def test_a_run_killed_when_its_output_had_its_name_is_taken_as_done(
    run: Run, stand_in_engines: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment between the output's name and the end of the journal, for a file and for a folder."""
    from v2v.runtime.films.journal import Journal

    for name in ("film.mp4", "pictures"):
        output = tmp_path / name
        given = command(stand_in_engines, source, output)
        with monkeypatch.context() as patched:
            patched.setattr(Journal, "discard", lambda self: None)
            assert run(*given).code == 0
        before = content(output)
        assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == [
            f".{name}.v2v"
        ]
        done = run(*given)
        assert done.code == 0, done.err
        assert f"{FRAMES} frames" in done.err
        assert content(output) == before
        assert not list(tmp_path.glob(".*"))
        again = run(*given)
        assert "already exists" in again.err or "not empty" in again.err
    assert len(times(tmp_path / "film.mp4")) == FRAMES


@pytest.mark.parametrize("name", ["film.mp4", "pictures"])
def test_a_folder_left_by_the_last_step_of_a_killed_run_goes_with_the_next(
    run: Run, stand_in_engines: Path, source: Path, tmp_path: Path, name: str
) -> None:
    given = command(stand_in_engines, source, tmp_path / name)
    assert run(*given).code == 0
    (tmp_path / JOURNAL.format(name)).mkdir()
    assert run(*given).code == 2  # it is there already
    assert [path.name for path in tmp_path.iterdir() if path.name != "store"] == [name]
