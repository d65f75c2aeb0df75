"""A film is finished segment by segment: nothing finished is done twice, and interruptions change no byte."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import sys
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import av
import pytest

from tests.runtime.clips import make_video, packets, pixels_of, times
from tests.stand_ins.arrays import NumpyEngines, velocity
from tests.stand_ins.model import MODEL
from v2v.device.cpu import CpuDevice
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.diffusion.settings import Plan, Settings, plan
from v2v.runtime.films.enhance import Request, describe
from v2v.runtime.films.film import Target, enhance_film, fingerprint, frames_ahead, journal_facts
from v2v.runtime.films.journal import Journal, JournalError, finished_run
from v2v.runtime.films.pool import Alone
from v2v.runtime.media.encoding import SegmentEncoder
from v2v.runtime.media.errors import MediaError
from v2v.runtime.media.image_sequence import SETTINGS
from v2v.runtime.media.reader import VideoReader
from v2v.runtime.media.writer import encoding_for

FRAMES = 40  # four segments of at most ten frames


class Interrupted(Exception):
    """Stands for whatever ends a run early."""


@pytest.fixture
def engines(tmp_path):
    folder = tmp_path / "engines"
    folder.mkdir()
    return NumpyEngines(folder)


@pytest.fixture
def source(tmp_path):
    return make_video(tmp_path / "in.mkv", frames=FRAMES, size=(64, 80), sounds=1)


def enhance(
    engines, source, output, *, stop_at=None, overwrite=False, restart=False, codec="h264", **settings
):
    """Run to the end, or until the ``stop_at``-th sign of progress."""
    signs = []

    def progress(told):
        signs.append(told)
        if stop_at is not None and len(signs) == stop_at:
            raise Interrupted

    v2v = VideoToVideo(engines, CpuDevice())
    with VideoReader(source, find_cuts=True) as reader:
        made = plan(Settings(steps=1, **settings), MODEL, (reader.info.height, reader.info.width))
        encoding = encoding_for(reader.info, codec=codec)
        described = describe(Request(codec=codec), made, engines, encoding)
        target = Target(output, encoding, described, overwrite, restart)
        enhance_film(Alone(v2v), reader, target, made, progress)
    return signs


def left_beside(output, *inputs):
    known = {output.name, *(path.name for path in inputs), "engines"}
    return [path.name for path in output.parent.iterdir() if path.name not in known]


def test_a_film_keeps_its_frames_times_and_sound(engines, source, tmp_path):
    output = tmp_path / "out.mkv"
    enhance(engines, source, output)
    assert {frame.shape for frame in pixels_of(output)} == {(80, 64, 3)}
    assert times(output) == times(source)
    assert packets(output, "audio") == packets(source, "audio")
    assert left_beside(output, source) == []


def test_a_run_stopped_anywhere_goes_on_to_the_same_bytes(engines, source, tmp_path):
    whole = tmp_path / "whole.mp4"
    signs = len(enhance(engines, source, whole))
    for seed in range(3):
        rng = random.Random(seed)
        output = tmp_path / f"{seed}.mp4"
        for _ in range(2):
            with pytest.raises(Interrupted):
                enhance(engines, source, output, stop_at=rng.randrange(1, signs // 3))
            assert not output.exists()
        enhance(engines, source, output)
        assert output.read_bytes() == whole.read_bytes()
        output.unlink()
    assert left_beside(whole, source) == []


def test_what_is_finished_is_not_done_again(engines, source, tmp_path):
    output = tmp_path / "out.mp4"
    signs = enhance(engines, source, tmp_path / "whole.mp4")
    third = next(n for n, told in enumerate(signs, 1) if told.segment == 2)
    with pytest.raises(Interrupted):
        enhance(engines, source, output, stop_at=third)
    resumed = enhance(engines, source, output)
    assert resumed[0].segment == 2
    assert resumed[0].frames_done == signs[third - 1].frames_done


def test_the_fraction_rises_to_one_whatever_was_finished_before(engines, source, tmp_path):
    output = tmp_path / "out.mp4"
    signs = enhance(engines, source, tmp_path / "whole.mp4")
    last_of_first = next(n for n, told in enumerate(signs, 1) if told.segment == 1)
    with pytest.raises(Interrupted):
        enhance(engines, source, output, stop_at=last_of_first)
    for told in (signs, enhance(engines, source, output)):
        fractions = [now.fraction for now in told]
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1
        assert {now.frames_total for now in told} == {FRAMES}


def test_the_reference_takes_no_more_frames_than_it_can_and_says_so(engines, source, tmp_path):
    most = MODEL.parity.frames
    assert most < FRAMES
    signs = []
    with VideoReader(source) as reader:
        made = plan(Settings(steps=1), MODEL, (reader.info.height, reader.info.width))
        made = dataclasses.replace(made, parity=True)  # at a size that a test has time for
        target = Target(tmp_path / "out.mp4", encoding_for(reader.info), {})
        team = Alone(VideoToVideo(engines, CpuDevice()))
        assert enhance_film(team, reader, target, made, signs.append) == most
    assert {now.frames_total for now in signs} == {most}
    assert {now.segment for now in signs} == {0}
    assert signs[-1].fraction == 1
    assert len(times(tmp_path / "out.mp4")) == most


def interrupted(engines, source, output):
    with pytest.raises(Interrupted):
        enhance(engines, source, output, stop_at=40)
    assert (output.parent / f".{output.name}.v2v" / "00000.mov").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 5}, "--seed was 666 when it was begun, but is 5 now"),
        ({"prompt": "a fox"}, "--prompt was"),
        ({"codec": "av1"}, "--codec was h264"),
        ({"depth": 10}, "--depth was None when it was begun, but is 10 now"),
        ({"size": (40, 32)}, "--size was"),
    ],
)
def test_a_changed_setting_is_named(engines, source, tmp_path, change, named):
    output = tmp_path / "out.mp4"
    interrupted(engines, source, output)
    with pytest.raises(JournalError, match=named):
        enhance(engines, source, output, **change)
    enhance(engines, source, output, restart=True, **change)
    assert output.exists()


def test_a_changed_input_or_engine_set_is_named(engines, source, tmp_path):
    output = tmp_path / "out.mp4"
    interrupted(engines, source, output)
    engines.facts["engines"] = "another"
    with pytest.raises(JournalError, match="engine set was NumPy when it was begun, but is another now"):
        enhance(engines, source, output)
    engines.facts["engines"] = "NumPy"
    make_video(source, frames=FRAMES + 1, size=(64, 80))
    with pytest.raises(JournalError, match="input was"):
        enhance(engines, source, output)


def test_stopped_before_anything_is_finished_leaves_nothing(engines, source, tmp_path):
    output = tmp_path / "out.mp4"
    with pytest.raises(Interrupted):
        enhance(engines, source, output, stop_at=3)
    assert left_beside(output, source) == []


def rendezvous(events, mine, other):
    """Say that ``mine`` has come and wait for ``other``; both come only if their threads are at work at once."""
    events[mine].set()
    assert events[other].wait(20), f"{mine} waited for {other} in vain"


def test_a_segment_is_encoded_while_the_next_is_denoised_and_those_after_are_read(
    tmp_path, source, monkeypatch
):
    """Each of the three waits for the other two, so a run that does one after the other never ends well."""
    events = {name: threading.Event() for name in ("encoding 0", "denoising 1", "reading 3")}
    pictures, evaluations = [], []
    write, read = SegmentEncoder.write, VideoReader.frames

    def writes(self, frame):
        pictures.append(threading.get_ident())
        if len(pictures) == 5:  # of segment 0
            rendezvous(events, "encoding 0", "denoising 1")
        write(self, frame)

    def denoises(latents, timestep, context):
        evaluations.append(threading.get_ident())
        if in_segment_1 and not events["denoising 1"].is_set():
            rendezvous(events, "denoising 1", "encoding 0")
            assert events["reading 3"].wait(20)
        return velocity(latents, timestep, context)

    def reads(self):
        for number, frame in enumerate(read(self)):
            if number == 34:  # of segment 3: a whole segment lies between
                events["reading 3"].set()
            yield frame

    in_segment_1 = []
    monkeypatch.setattr(SegmentEncoder, "write", writes)
    monkeypatch.setattr(VideoReader, "frames", reads)
    folder = tmp_path / "engines"
    folder.mkdir()

    def told(progress):
        if progress.segment == 1:
            in_segment_1.append(progress)

    with VideoReader(source) as reader:
        made = plan(Settings(steps=1), MODEL, (reader.info.height, reader.info.width))
        target = Target(tmp_path / "out.mkv", encoding_for(reader.info), {})
        team = Alone(VideoToVideo(NumpyEngines(folder, unet=denoises), CpuDevice()))
        assert enhance_film(team, reader, target, made, told) == FRAMES
        team.close()
    assert all(event.is_set() for event in events.values())
    assert {*pictures}.isdisjoint(evaluations)


def test_what_was_enhanced_before_the_run_was_stopped_is_encoded_and_kept(
    engines, source, tmp_path, monkeypatch
):
    slow = SegmentEncoder.write

    def write(self, frame):
        time.sleep(0.02)
        slow(self, frame)

    monkeypatch.setattr(SegmentEncoder, "write", write)
    output = tmp_path / "out.mp4"
    signs = enhance(engines, source, tmp_path / "whole.mp4")
    second = next(n for n, told in enumerate(signs, 1) if told.segment == 1)
    with pytest.raises(Interrupted):
        enhance(engines, source, output, stop_at=second)
    assert (tmp_path / ".out.mp4.v2v" / "00000.mov").exists()
    assert enhance(engines, source, output)[0].segment == 1
    assert output.read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_frames_are_read_ahead_in_bounded_memory():
    def ahead(height, width, depth=8):
        return frames_ahead(SimpleNamespace(height=height, width=width, depth=depth))

    assert ahead(80, 64) == 256
    frame = 720 * 1280 * 3
    assert ahead(720, 1280) * frame <= 256 << 20 < (ahead(720, 1280) + 1) * frame
    assert ahead(720, 1280) >= 80  # a whole segment of the full model
    assert ahead(1080, 1920, 10) == ahead(1080, 1920) // 2
    assert ahead(4320, 7680, 10) == 8


@pytest.mark.parametrize(("name", "codec"), [("out.mp4", "h264"), ("out", "png")], ids=["file", "folder"])
def test_what_comes_afterwards_comes_when_the_film_is_there_and_before_the_journal_goes(
    engines, source, tmp_path, name, codec
):
    output, heard = tmp_path / name, []

    def afterwards(frames):
        written = len([*output.glob("*.png")]) if output.is_dir() else len(times(output))
        heard.append((written, frames, finished_run(output).frames))

    with VideoReader(source) as reader, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a folder has no place for sound
        made = plan(Settings(steps=1), MODEL, (reader.info.height, reader.info.width))
        target = Target(output, encoding_for(reader.info, codec=codec), {"prompt": "a fox"})
        team = Alone(VideoToVideo(engines, CpuDevice()))
        enhance_film(team, reader, target, made, afterwards=afterwards)
    assert heard == [(FRAMES, FRAMES, FRAMES)]
    assert left_beside(output, source) == []
    assert json.loads(settings_of(output)) == {"prompt": "a fox"}


def settings_of(output):
    if output.is_dir():
        return (output / SETTINGS).read_text()
    with av.open(str(output)) as film:
        return film.metadata["comment"]


def test_a_film_that_is_there_is_replaced_only_when_asked(engines, source, tmp_path):
    output = tmp_path / "out.mp4"
    output.write_bytes(b"precious")
    with pytest.raises(MediaError, match="already exists"):
        enhance(engines, source, output)
    assert output.read_bytes() == b"precious"
    enhance(engines, source, output, overwrite=True)
    assert times(output) == times(source)


@pytest.mark.parametrize("size", [0, 5, 3 << 20])
def test_another_file_of_the_same_name_and_size_has_another_fingerprint(tmp_path, size):
    path, content = tmp_path / "in.mp4", random.Random(0).randbytes(size)
    path.write_bytes(content)
    before = fingerprint(path)
    assert fingerprint(path) == before
    others = [content + b"."]
    near = min(500_000, size - 1)
    for place in {0, near, size - 1 - near, size - 1} if size else ():
        others.append(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    for other in others:
        path.write_bytes(other)
        assert fingerprint(path) != before
    path.write_bytes(content)
    assert fingerprint(path.rename(tmp_path / "other.mp4")) != before


def test_two_runs_do_not_write_the_same_output(engines, source, tmp_path):
    output = tmp_path / "out.mp4"
    with Journal(output, {}), pytest.raises(JournalError, match="another run"):
        enhance(engines, source, output)


def test_a_damaged_journal_is_begun_anew(engines, source, tmp_path):
    output = tmp_path / "out.mp4"
    interrupted(engines, source, output)
    (tmp_path / ".out.mp4.v2v" / "journal.json").write_text("{ torn")
    enhance(engines, source, output)
    enhance(engines, source, tmp_path / "whole.mp4")
    assert output.read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_somebody_elses_file_in_the_journals_folder_survives(engines, source, tmp_path):
    output = tmp_path / "out.mp4"
    interrupted(engines, source, output)
    note = tmp_path / ".out.mp4.v2v" / "note.txt"
    note.write_text("mine")
    enhance(engines, source, output)
    assert note.read_text() == "mine"


def test_an_unwritable_folder_is_told(engines, source, tmp_path):
    with pytest.raises((MediaError, JournalError), match="cannot write"):
        enhance(engines, source, tmp_path / "missing" / "out.mp4")


def test_every_setting_is_a_fact_of_the_journal(engines, source, tmp_path):
    """A setting that a later version adds must not slip past the comparison."""
    made = plan(Settings(), MODEL, (80, 64))
    with VideoReader(source) as reader:
        encoding = encoding_for(reader.info)
    facts = journal_facts(source, describe(Request(), made, engines, encoding))
    other = journal_facts(source, describe(Request(convert=False), made, engines, encoding))
    assert other["--convert"] == "False" and "--convert" not in facts
    assert {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Plan)} <= facts.keys()


def test_each_thing_is_on_the_disk_before_the_next_relies_on_it(engines, source, tmp_path, monkeypatch):
    """Power may fail at any moment: the order of what reaches the disk is what a resumed run can trust."""
    did = []
    recording = True

    def hear(event, given):  # a hook stays as long as Python runs
        if recording and event in ("os.rename", "os.link", "os.remove"):
            did.append((event, *(Path(path).name for path in given[:2] if isinstance(path, str | Path))))

    fsync = os.fsync

    def synced(handle):
        did.append(("fsync", Path(f"/proc/self/fd/{handle}").readlink().name))
        fsync(handle)

    sys.addaudithook(hear)
    monkeypatch.setattr(os, "fsync", synced)
    enhance(engines, source, tmp_path / "out.mp4")
    recording = False

    def in_order(*events):
        places = [did.index(event) for event in events]
        assert places == sorted(places), [did[place] for place in sorted(places)]

    here, journal = tmp_path.name, ".out.mp4.v2v"
    in_order(("fsync", here), ("fsync", "journal.json.part"))
    for number in range(4):
        carry, pictures, record = (f"{number:05d}.{ending}" for ending in ("carry", "mov", "json"))
        in_order(
            ("fsync", f"{carry}.part"),
            ("os.rename", f"{carry}.part", carry),
            ("fsync", f"{pictures}.part"),
            ("os.rename", f"{pictures}.part", pictures),
            ("fsync", f"{record}.part"),
            ("os.rename", f"{record}.part", record),
        )
        assert ("fsync", journal) in did[did.index(("os.rename", f"{record}.part", record)) :]
    in_order(
        ("fsync", "joined.part"),
        ("fsync", "complete.json.part"),
        ("os.rename", "complete.json.part", "complete.json"),
        ("os.link", "joined.part", "out.mp4"),
        ("os.remove", "00000.mov"),
        ("os.remove", "complete.json"),
    )
    named, removed = did.index(("os.link", "joined.part", "out.mp4")), did.index(("os.remove", "00000.mov"))
    assert ("fsync", here) in did[named:removed]
    assert ("fsync", journal) in did[did.index(("os.rename", "complete.json.part", "complete.json")) : named]


def test_what_was_begun_but_of_which_nothing_is_finished_does_not_stand_in_the_way(engines, source, tmp_path):
    journal = tmp_path / ".out.mp4.v2v"
    journal.mkdir()
    (journal / "journal.json").write_text('{"--seed": "5"}')
    (journal / "00000.carry.part").write_bytes(b"torn")
    enhance(engines, source, tmp_path / "out.mp4")
    assert left_beside(tmp_path / "out.mp4", source) == []
