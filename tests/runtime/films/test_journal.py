"""Whatever became of a journal, the film is that of an undisturbed run, and nothing that is not ours is touched."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import warnings
from dataclasses import asdict

import numpy as np
import pytest

from tests.runtime.clips import make_video
from tests.stand_ins.arrays import NumpyEngines
from tests.stand_ins.model import MODEL
from v2v.device.cpu import CpuDevice
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.diffusion.segments import Carry
from v2v.runtime.diffusion.settings import Settings, plan
from v2v.runtime.films.film import Target, enhance_film
from v2v.runtime.films.journal import Journal, JournalError, clear_up, finished_run, journal_folder
from v2v.runtime.films.pool import Alone
from v2v.runtime.films.task import EnhancedSegment
from v2v.runtime.media.reader import VideoReader
from v2v.runtime.media.writer import encoding_for

FRAMES = 40  # five segments of at most ten frames
KEPT = 3  # of which an interrupted run has finished these
REST = {3, 4}
LONG = "\u00e9" * 125 + "{}.mp4"


class Interrupted(Exception):
    """Stands for whatever ends a run early."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A source, engines, an undisturbed film and the journal of an interrupted one."""
    folder = tmp_path_factory.mktemp("journal")
    (folder / "engines").mkdir()
    make_video(folder / "in.mkv", frames=FRAMES, size=(64, 80))
    enhance(folder, folder / "whole.mp4")
    with pytest.raises(Interrupted):
        enhance(folder, folder / "out.mp4", stop_in=KEPT)
    return folder


def enhance(place, output, *, stop_in=None, seed=666):
    """Run to the end, or into segment ``stop_in``; the segments that were made."""
    made_here = []

    def progress(told):
        made_here.append(told.segment)
        if told.segment == stop_in:
            raise Interrupted

    v2v = VideoToVideo(NumpyEngines(place / "engines"), CpuDevice())
    with VideoReader(place / "in.mkv", find_cuts=True) as reader:
        made = plan(
            Settings(steps=1, strength=0.5, seed=seed),
            MODEL,
            (reader.info.height, reader.info.width),
        )
        enhance_film(
            Alone(v2v), reader, Target(output, encoding_for(reader.info), asdict(made)), made, progress
        )
    return set(made_here)


@pytest.fixture
def unfinished(place, tmp_path):
    """A copy of the interrupted film's journal, beside which the film may be finished."""
    shutil.copytree(journal_folder(place / "out.mp4"), tmp_path / ".out.mp4.v2v")
    return tmp_path / ".out.mp4.v2v"


def finish(place, unfinished):
    """Finish the film; what was told, and the segments that were made."""
    output = unfinished.with_name("out.mp4")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        made = enhance(place, output)
    assert output.read_bytes() == (place / "whole.mp4").read_bytes()
    return " ".join(str(warning.message) for warning in told), made


def test_what_is_kept_is_taken_over(place, unfinished):
    names = [f"{number:05d}.{ending}" for number in range(KEPT) for ending in ("carry", "json", "mov")]
    assert sorted(path.name for path in unfinished.glob("0*")) == names
    told, made = finish(place, unfinished)
    assert told == ""
    assert made == REST
    assert not unfinished.exists()


def flip(file, at):
    content = bytearray(file.read_bytes())
    content[at] ^= 0x10
    file.write_bytes(content)


@pytest.mark.parametrize("ending", ["mov", "carry", "json"])
@pytest.mark.parametrize("how", ["flipped", "cut", "emptied", "longer", "removed", "zeroed"])
def test_a_damaged_segment_is_made_again_and_told(place, unfinished, ending, how):
    file = unfinished / f"00001.{ending}"
    size = file.stat().st_size
    if how == "flipped":
        flip(file, size // 2)
    elif how == "removed":
        file.unlink()
    else:
        content = file.read_bytes()
        damaged = {
            "cut": content[: size // 2],
            "emptied": b"",
            "longer": content + b"x",
            "zeroed": bytes(size),
        }
        file.write_bytes(damaged[how])
    told, made = finish(place, unfinished)
    assert made == {1} | REST
    if (ending, how) != ("json", "removed"):  # without a record there was nothing to take over
        assert "segment 1" in told
        assert "is made again" in told


def test_any_byte_of_any_file_may_be_flipped(place, unfinished):
    rng = random.Random(7)
    for _ in range(6):
        flip(file := rng.choice(sorted(unfinished.glob("*.*"))), rng.randrange(file.stat().st_size))
    finish(place, unfinished)


def test_no_damage_at_all_is_taken_for_what_was_kept(tmp_path):
    """Flipped, cut, with a piece from elsewhere or twice: what is taken over is what was kept."""
    rng = random.Random(3)
    output, spare = tmp_path / "out.mp4", tmp_path / "spare"
    with Journal(output, {"--seed": "5"}) as journal:
        for number in range(2):
            journal.finish(number, done(number))
    journal.folder.rename(spare)
    for _ in range(250):
        shutil.copytree(spare, journal.folder)
        for _ in range(rng.randrange(1, 4)):
            spoil(rng.choice(sorted(path for path in journal.folder.iterdir() if path.name != "lock")), rng)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with Journal(output, {"--seed": "5"}) as resumed:
                    for number in filter(resumed.finished, range(2)):
                        np.testing.assert_array_equal(
                            resumed.carry(number).latents, done(number).carry.latents
                        )
                    for segment in resumed.segments():
                        assert (segment.file.read_bytes(), segment.order) == (b"pictures", (1, 0))
            except JournalError as error:
                assert "--restart" in str(error)
        shutil.rmtree(journal.folder, ignore_errors=True)


def spoil(file, rng):
    content = file.read_bytes()
    at, to = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    spoilt = [
        content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :],
        content[:at],
        content[:at] + content[to:],
        content + content[at:to],
        rng.randbytes(len(content)),
        b'{"sha256": "", "content": ' + b"[" * 5000,
        b"",
    ]
    file.write_bytes(rng.choice(spoilt))


def test_segments_of_another_order_or_run_are_made_again(place, unfinished):
    for ending in ("mov", "carry", "json"):
        first, second = (unfinished / f"0000{number}.{ending}" for number in (0, 1))
        spare = first.rename(unfinished / "spare")
        second.rename(first)
        spare.rename(second)
    told, made = finish(place, unfinished)
    assert made == {0, 1} | REST
    assert "is of another run or place" in told


def test_a_segment_of_other_settings_is_made_again(place, unfinished, tmp_path):
    with pytest.raises(Interrupted):
        enhance(place, tmp_path / "other.mp4", stop_in=KEPT, seed=5)
    for ending in ("mov", "carry", "json"):
        shutil.copy(tmp_path / ".other.mp4.v2v" / f"00002.{ending}", unfinished)
    told, made = finish(place, unfinished)
    assert made == {2} | REST
    assert "is of another run or place" in told


def test_without_its_facts_a_journal_is_taken_over_segment_by_segment(place, unfinished):
    (unfinished / "journal.json").write_text("{ torn")
    _, made = finish(place, unfinished)
    assert made == REST


def test_what_an_earlier_version_has_left_is_made_again_and_told(place, unfinished):
    for path in unfinished.glob("*.json"):
        path.unlink()
    for path in unfinished.glob("*.carry"):
        path.rename(path.with_suffix(".npz"))
    (unfinished / "journal.json").write_text('{"--seed": "666"}')
    told, made = finish(place, unfinished)
    assert made == {0, 1, 2} | REST
    assert "by an earlier version of v2v" in told
    assert not unfinished.exists()


@pytest.mark.parametrize(
    "name",
    ["joined.part", "00003.mov.part", "00001.mov", "00001.json", "journal.json", "lock", "complete.json"],
)
def test_a_planted_link_is_refused_and_what_it_leads_to_stays(place, unfinished, tmp_path, name):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (unfinished / name).unlink(missing_ok=True)
    (unfinished / name).symlink_to(victim)
    with pytest.raises(JournalError, match=f"{name} is a link, which no run puts there"):
        enhance(place, tmp_path / "out.mp4")
    assert victim.read_text() == "precious"
    assert (unfinished / name).is_symlink()


def test_a_folder_that_is_a_link_is_refused_and_its_content_stays(place, unfinished, tmp_path):
    elsewhere = unfinished.rename(tmp_path / "elsewhere")
    before = sorted(path.name for path in elsewhere.iterdir())
    unfinished.symlink_to(elsewhere)
    with pytest.raises(JournalError, match="not a folder that a run has made"):
        enhance(place, tmp_path / "out.mp4")
    assert sorted(path.name for path in elsewhere.iterdir()) == before


@pytest.mark.parametrize("restart", [False, True])
def test_what_has_not_our_names_stays(tmp_path, restart):
    output = tmp_path / "out.mp4"
    foreign = [
        "film.mov",
        "1x.mov",
        "notes.part",
        "data.npz",
        "123.json",
        "\u0661\u0661\u0661\u0661\u0661.mov",
    ]
    journal_folder(output).mkdir()
    for name in foreign:
        (journal_folder(output) / name).write_text("mine")
    with Journal(output, {"--seed": "5"}, restart=restart) as journal:
        journal.finish(0, done())
        journal.discard()
    assert sorted(path.name for path in journal_folder(output).iterdir()) == sorted(foreign)


def done(value=1.0):
    latents = np.full((2, 4, 3, 5), value, np.float32)
    return EnhancedSegment(b"pictures", (1, 0), Carry(latents, latents[:1] + 1))


def test_what_is_kept_comes_back(tmp_path):
    output = tmp_path / "out.mp4"
    with Journal(output, {"--seed": "5"}) as journal:
        journal.finish(0, done())
    with Journal(output, {"--seed": "5"}) as journal:
        assert journal.finished(0)
        assert not journal.finished(1)
        carry = journal.carry(0)
        np.testing.assert_array_equal(carry.latents, done().carry.latents)
        np.testing.assert_array_equal(carry.ahead, done().carry.ahead)
        journal.finish(2, done())
        (segment,) = journal.segments()  # 1 is not there
        assert segment.file.read_bytes() == b"pictures"
        assert segment.order == (1, 0)


@pytest.mark.parametrize(("ending", "place"), [("mov", 3), ("carry", 3), ("carry", -1)])
def test_damage_while_the_run_lasts_ends_it_and_is_mended_by_the_next(tmp_path, ending, place):
    output = tmp_path / "out.mp4"
    with Journal(output, {}) as journal:
        journal.finish(0, done())
        flip(journal.folder / f"00000.{ending}", place)  # of a carry: what its shapes say, and a number
        with pytest.raises(JournalError, match="run the command again"):
            journal.segments() if ending == "mov" else journal.carry(0)
    with pytest.warns(UserWarning, match="is made again"), Journal(output, {}) as journal:
        assert not journal.finished(0)


def test_a_name_as_long_as_names_can_be(place, tmp_path):
    output = tmp_path / LONG.format("x")  # 255 bytes
    with pytest.raises(Interrupted):
        enhance(place, output, stop_in=KEPT)
    other = tmp_path / LONG.format("y")
    assert journal_folder(output).is_dir()
    assert journal_folder(other) != journal_folder(output)
    assert enhance(place, output) == REST
    assert output.read_bytes() == (place / "whole.mp4").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


def test_a_finished_run_is_known_by_its_output_and_facts(tmp_path):
    output = tmp_path / "out.mp4"
    with Journal(output, {"--seed": "5"}) as journal:
        journal.finish(0, done())
        journal.joined.write_bytes(b"film")
        journal.complete(7)
        assert finished_run(output) is None
        journal.joined.rename(output)
    left = finished_run(output)
    assert left is not None
    assert left.frames == 7
    flip(journal.folder / "complete.json", 90)
    assert finished_run(output) is None
    flip(journal.folder / "complete.json", 90)
    made = output.stat().st_mtime_ns
    for changed in (made - 1000, made + 1000):
        os.utime(output, ns=(changed, changed))
        assert finished_run(output) is None
    os.utime(output, ns=(made, made))
    assert finished_run(output) == left
    clear_up(output)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    assert output.read_bytes() == b"film"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_is_kept_survives_a_run_that_fails_at_its_start(tmp_path, monkeypatch, error):
    output = tmp_path / "out.mp4"
    with Journal(output, {}) as journal:
        journal.finish(0, done())

    def fails(*_):
        raise error

    resumed = Journal(output, {})
    with monkeypatch.context() as patched:
        patched.setattr(
            "hashlib.sha256" if isinstance(error, KeyboardInterrupt) else "pathlib.Path.replace", fails
        )
        with pytest.raises(type(error)), resumed:
            pass
    with Journal(output, {}) as journal:  # the lock is free
        assert journal.finished(0)


@pytest.mark.parametrize("what", ["os.fsync", "pathlib.Path.replace"])
def test_a_first_run_that_fails_at_its_start_leaves_nothing(tmp_path, monkeypatch, what):
    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(what, fails)
    with pytest.raises((OSError, JournalError)), Journal(tmp_path / "out.mp4", {}):
        pass
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_for_its_owner_alone(tmp_path):
    with Journal(tmp_path / "out.mp4", {}) as journal:
        journal.finish(0, done())
        assert journal.folder.stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o077 for path in journal.folder.glob("0*")} == {0}


@pytest.mark.parametrize(
    "odd",
    [
        Carry(np.zeros((2, 4, 3), np.float32), np.zeros((1, 4, 3, 5), np.float32)),
        Carry(np.zeros((2, 4, 3, 5), np.float32), np.zeros((1, 4, 3, 5, 1), np.float32)),
        Carry(np.zeros((2, 4, 3, 5), np.float64), np.zeros((1, 4, 3, 5), np.float32)),
        Carry(np.zeros((2, 4, 3, 5), np.float32), np.zeros((1, 4, 3, 5), np.int64)),
        Carry(np.zeros((2, 4, 3, 5), np.float64), np.zeros((1, 4, 3, 5), np.float64)),
        Carry(np.zeros((2, 4, 3), np.float32), np.zeros((1, 4, 3), np.float32)),
    ],
)
def test_a_carry_of_another_shape_or_kind_is_refused(tmp_path, odd):
    with Journal(tmp_path / "out.mp4", {}) as journal:
        journal.finish(0, EnhancedSegment(b"pictures", (0,), odd))
        with pytest.raises(JournalError, match="segment 0 holds something else"):
            journal.carry(0)


def test_an_order_of_pictures_that_is_none_is_refused(tmp_path):
    with Journal(tmp_path / "out.mp4", {}) as journal:
        journal.finish(0, EnhancedSegment(b"pictures", (0, 2), done().carry))
        with pytest.raises(JournalError, match="segment 0 holds something else"):
            journal.segments()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_run_was_joining_goes(tmp_path, kind):
    output = tmp_path / "out.mp4"
    with Journal(output, {}) as journal:
        journal.finish(0, done())
        journal.joined.mkdir() if kind == "folder" else journal.joined.write_bytes(b"half")
        if kind == "folder":
            (journal.joined / "000001.png").write_bytes(b"half")
        (journal.folder / "00001.mov").write_bytes(b"of a segment without a record")
        (journal.folder / "00001.carry.part").write_bytes(b"half")
    with Journal(output, {}) as journal:
        names = ["00000.carry", "00000.json", "00000.mov", "journal.json", "lock"]
        assert sorted(path.name for path in journal.folder.iterdir()) == names


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        ({"--seed": "5"}, {"--seed": "6"}, "its --seed was 5 when it was begun, but is 6 now"),
        (
            {"--seed": "5"},
            {"--seed": "5", "--new": "x"},
            "its --new was None when it was begun, but is x now",
        ),
        (
            {"--seed": "5", "--old": "x"},
            {"--seed": "5"},
            "its --old was x when it was begun, but is None now",
        ),
    ],
)
def test_a_fact_that_differs_is_named_and_nothing_lost(tmp_path, then, now, said):
    output = tmp_path / "out.mp4"
    with Journal(output, then) as journal:
        journal.finish(0, done())
    with pytest.raises(JournalError, match=said), Journal(output, now):
        pass
    with Journal(output, then) as journal:
        assert journal.finished(0)
    with Journal(output, now, restart=True) as journal:
        assert not journal.finished(0)


def test_the_folder_of_another_run_is_locked(tmp_path):
    output = tmp_path / "out.mp4"
    with Journal(output, {}) as journal:
        journal.finish(0, done())
        with pytest.raises(JournalError, match="another run is writing"), Journal(output, {}):
            pass
        with pytest.raises(JournalError, match="another run is writing"):
            clear_up(output)
        assert journal.finished(0)
        assert journal.segments()


STUCK = """
import hashlib, sys, threading, time
from dataclasses import asdict
from pathlib import Path
from v2v.core.abort import watch
from v2v.runtime.films.journal import Journal

def tell():
    time.sleep(0.05)
    print("working", flush=True)

watch()
sys.setswitchinterval(1e6)  # so that the thread is not awake before the main one is stuck
with Journal(Path(sys.argv[1]), {}):
    threading.Thread(target=tell).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # in which Python hears no signal
"""


@pytest.mark.parametrize("foreign", [False, True])
def test_a_run_that_must_be_ended_before_anything_is_finished_leaves_what_is_not_its_own(tmp_path, foreign):
    output = tmp_path / "out.mp4"
    if foreign:
        journal_folder(output).mkdir()
        (journal_folder(output) / "note.txt").write_text("mine")
    process = subprocess.Popen([sys.executable, "-c", STUCK, output], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert (journal_folder(output) / "note.txt").exists() == foreign
    assert journal_folder(output).exists() == foreign
