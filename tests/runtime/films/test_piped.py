"""From a pipe into a pipe: what comes out is what a file would hold, begins before all is in, and is never kept."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.runtime import y4m
from tests.runtime.clips import make_video, packets, times
from tests.stand_ins.arrays import NumpyEngines, encode_image, no_velocity
from v2v.core.errors import V2VError
from v2v.device.cpu import CpuDevice
from v2v.engine.store import EngineSet
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.diffusion.progress import Progress, Report
from v2v.runtime.diffusion.settings import Settings
from v2v.runtime.films.enhance import Crew, Enhanced, Paths, Request, enhance
from v2v.runtime.films.piped import enhance_into_pipe
from v2v.runtime.films.pool import Alone, Room
from v2v.runtime.films.speeds import costs_of
from v2v.runtime.films.task import EnhancedSegment, SegmentJob, Task
from v2v.runtime.media.pipe_in import Inflow

SIZE = (64, 80)
FRAME = len(y4m.picture(0, SIZE))  # bytes
LONGEST_SEGMENT = 10


class Ends:
    """Two pipes: what ``produce`` gives goes into one, and what comes out of the other is gathered."""

    def __init__(self, produce: Callable[[Ends], Iterator[bytes]]) -> None:
        self.reading, self._writing = os.pipe()
        self._out, self.stdout = os.pipe()
        self.blocks: list[bytes] = []
        self._produce = produce
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=work) for work in (self._feed, self._gather)]
        for thread in self._threads:
            thread.start()

    def wait_for(self, count: int) -> None:
        """Return once ``count`` bytes have come out."""
        with self._changed:
            assert self._changed.wait_for(lambda: sum(map(len, self.blocks)) >= count, timeout=60)

    def finish(self) -> bytes:
        """What has come out, once nothing more comes; ``stdout`` was closed before."""
        os.close(self.reading)
        for thread in self._threads:
            thread.join()
        return b"".join(self.blocks)

    def _feed(self) -> None:
        with contextlib.suppress(BrokenPipeError), os.fdopen(self._writing, "wb", buffering=0) as pipe:
            for block in self._produce(self):
                pipe.write(block)

    def _gather(self) -> None:
        while block := os.read(self._out, 1 << 16):
            with self._changed:
                self.blocks.append(block)
                self._changed.notify_all()
        os.close(self._out)


@pytest.fixture
def crew(stand_in_engines: Path, tmp_path: Path) -> Crew:
    folder = tmp_path / "engines"
    folder.mkdir()
    v2v = VideoToVideo(NumpyEngines(folder, unet=no_velocity), CpuDevice())
    return Crew(lambda: EngineSet.open(stand_in_engines), lambda chosen: Alone(v2v))


def request(scale: float = 1.0, **options: Any) -> Request:
    return Request(Settings(steps=1, guidance=1.0, strength=0.1, scale=scale), **options)


def unseen() -> contextlib.AbstractContextManager[Callable[[Any], None]]:
    return contextlib.nullcontext(lambda now: None)


def through_pipes(
    crew: Crew,
    produce: Callable[[Ends], Iterator[bytes]],
    monkeypatch: pytest.MonkeyPatch,
    follow: Callable[[Inflow], Callable[[Any], None]] = lambda inflow: lambda now: None,
    **options: Any,
) -> tuple[bytes, Enhanced]:
    ends = Ends(produce)
    beginning = os.read(ends.reading, 10)
    with (
        os.fdopen(ends.stdout, "w") as stdout,
        closing(Inflow(ends.reading, Path("in"), beginning)) as inflow,
    ):
        told = follow(inflow)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stdout)
            done = enhance_into_pipe(request(**options), inflow, crew, lambda: contextlib.nullcontext(told))
    return ends.finish(), done


def in_blocks(content: bytes, size: int = 10_000, pause: float = 0) -> Callable[[Ends], Iterator[bytes]]:
    def produce(ends: Ends) -> Iterator[bytes]:
        for first in range(0, len(content), size):
            time.sleep(pause)
            yield content[first : first + size]

    return produce


def pictures_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as opened:
        return [frame.to_ndarray() for frame in opened.decode(video=0)]


def test_pictures_times_and_sound_are_those_of_a_file(
    crew: Crew, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = make_video(tmp_path / "in.mkv", frames=40, size=SIZE, sounds=2, metadata={"title": "A film"})
    assert enhance(request(), Paths(film, tmp_path / "file.mkv"), crew, unseen)
    out, done = through_pipes(crew, in_blocks(film.read_bytes()), monkeypatch)
    assert done.frames == 40
    piped = tmp_path / "piped.mkv"
    piped.write_bytes(out)
    np.testing.assert_array_equal(pictures_of(piped), pictures_of(tmp_path / "file.mkv"))
    assert times(piped) == times(film)
    for index in range(2):
        assert packets(piped, "audio", index) == packets(film, "audio", index)
    with av.open(str(piped)) as opened, av.open(str(tmp_path / "file.mkv")) as of_file:
        assert opened.metadata["title"] == "A film"
        assert opened.metadata["COMMENT"] == of_file.metadata["COMMENT"]


def test_sound_comes_between_the_pictures_that_it_belongs_to(
    crew: Crew, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = make_video(tmp_path / "in.mkv", frames=40, size=SIZE, sounds=1)
    out, _ = through_pipes(crew, in_blocks(film.read_bytes()), monkeypatch)
    (tmp_path / "out.mkv").write_bytes(out)
    latest = {"audio": 0.0, "video": 0.0}
    with av.open(str(tmp_path / "out.mkv")) as opened:
        for packet in opened.demux():
            if packet.size:
                latest[packet.stream.type] = float(packet.pts * packet.time_base)
                assert abs(latest["audio"] - latest["video"]) < 0.7  # a few pictures of a tenth of a second


@pytest.mark.parametrize("lengths", [(60, 120), pytest.param((100, 600), marks=pytest.mark.slow)])
def test_output_comes_while_input_does_and_nothing_grows_with_its_length(
    crew: Crew, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, int]
) -> None:
    """The producer never gets further ahead of what has come out than two segments are long."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    most_memory, most_waiting = {}, {}
    for length in lengths:
        waiting: list[int] = []

        def follow(inflow: Inflow, waiting: list[int] = waiting) -> Callable[[Any], None]:
            def told(now: Any) -> None:
                waiting.append(inflow.waiting)
                assert list(temporary.iterdir()) == []

            return told

        tracemalloc.start()
        out, _ = through_pipes(crew, frames_in_step(length), monkeypatch, follow, codec="y4m")
        most_memory[length] = tracemalloc.get_traced_memory()[1] - len(out)  # the test gathers it
        tracemalloc.stop()
        most_waiting[length] = max(waiting)
        assert len(y4m.parsed(out)[1]) == length
    short, long = lengths
    assert most_waiting[long] < 30 * FRAME
    assert most_memory[long] < most_memory[short] + 40 * FRAME


def frames_in_step(length: int) -> Callable[[Ends], Iterator[bytes]]:
    def produce(ends: Ends) -> Iterator[bytes]:
        yield y4m.header(SIZE)
        for number in range(length):
            ends.wait_for((number - 2 * LONGEST_SEGMENT) * FRAME)
            yield y4m.picture(number, SIZE)

    return produce


def test_a_reader_that_goes_away_ends_the_run_soon(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    sent = 0

    def feed() -> None:
        nonlocal sent
        with contextlib.suppress(BrokenPipeError), os.fdopen(writing, "wb", buffering=0) as pipe:
            pipe.write(y4m.header(SIZE))
            for sent in range(10_000):  # noqa: B007
                pipe.write(y4m.picture(0, SIZE))

    producer = threading.Thread(target=feed)
    producer.start()
    nobody, stdout = os.pipe()
    os.close(nobody)
    with (
        os.fdopen(stdout, "w") as closed,
        closing(Inflow(reading, Path("in"), os.read(reading, 10))) as inflow,
    ):
        monkeypatch.setattr(sys, "stdout", closed)
        with pytest.raises(BrokenPipeError):
            enhance_into_pipe(request(), inflow, crew, unseen)
        monkeypatch.undo()
    os.close(reading)
    producer.join()
    assert sent < 1000


class FailTogether:
    """A team that works on six segments, all of which fail one right after the other."""

    size = 6

    def __init__(self, engines: Any) -> None:
        self.engines, self.room = engines, Room(1 << 30)
        self._at_work: list[Future[EnhancedSegment]] = []

    def submit(self, task: Task, report: Report) -> SegmentJob:
        self._at_work.append(Future())
        if len(self._at_work) == self.size:
            for number, work in enumerate(self._at_work):
                work.set_exception(V2VError(f"segment {number} failed"))
        return SegmentJob(self._at_work[-1])

    def rehearse(self, plan: Any) -> None:
        return None

    def close(self) -> None:
        pass


def test_of_segments_that_fail_together_the_first_is_told(
    crew: Crew, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shots = np.random.default_rng(0).integers(0, 255, (8, *SIZE[::-1], 3), np.uint8)
    film = make_video(tmp_path / "in.mkv", pictures=np.repeat(shots, 12, axis=0), size=SIZE)
    team = FailTogether(crew.team.engines)
    together = Crew(lambda: crew.engine_set, lambda chosen: team)
    with (tmp_path / "out.mkv").open("w") as stdout, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        with pytest.raises(V2VError, match="segment 0 failed"):
            enhance_into_pipe(request(), film, together, unseen)


class Pace:
    """Sends a film of so many frames no faster than it is enhanced."""

    def __init__(self, content: bytes, frames: int) -> None:
        self._content, self._frames = content, frames
        self._enhanced = 0
        self.most_waiting, self.out_before_the_end = 0, 0

    def follow(self, inflow: Inflow) -> Callable[[Any], None]:
        def told(now: Any) -> None:
            self._enhanced = now.frames_done
            self.most_waiting = max(self.most_waiting, inflow.waiting)

        return told

    def produce(self, ends: Ends) -> Iterator[bytes]:
        """A frame is about so many bytes; six segments are on their way."""
        for number, block in enumerate(in_blocks(self._content, len(self._content) // self._frames)(ends)):
            patience = time.monotonic() + 20
            while self._enhanced < number - 6 * LONGEST_SEGMENT and time.monotonic() < patience:
                time.sleep(0.001)
            self.out_before_the_end = sum(map(len, ends.blocks))
            yield block


def test_what_sound_waits_for_does_not_grow_with_the_film(
    crew: Crew, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = 180
    film = make_video(tmp_path / "in.mkv", frames=frames, size=SIZE, sounds=1)
    pace = Pace(film.read_bytes(), frames)
    out, _ = through_pipes(crew, pace.produce, monkeypatch, pace.follow)
    (tmp_path / "out.mkv").write_bytes(out)
    assert packets(tmp_path / "out.mkv", "audio") == packets(film, "audio")
    assert pace.most_waiting < film.stat().st_size * 0.6


def test_a_stream_that_is_silent_for_long_holds_nothing_up(
    crew: Crew, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subtitle at the beginning and one at the end: between them pictures go out."""
    film = make_video(tmp_path / "film.mkv", frames=120, size=SIZE, options={"crf": "0"})
    text = tmp_path / "text.srt"
    text.write_text("1\n00:00:00,100 --> 00:00:00,900\nHello\n\n2\n00:00:11,000 --> 00:00:11,900\nBye\n\n")
    both = tmp_path / "both.mkv"
    with av.open(str(film)) as one, av.open(str(text)) as two, av.open(str(both), "w") as joined:
        copies = {s: joined.add_stream_from_template(s) for s in (one.streams.video[0], two.streams[0])}
        found = [packet for source in (one, two) for packet in source.demux() if packet.size]
        for packet in sorted(found, key=lambda each: (each.pts or 0) * each.time_base):
            packet.stream = copies[packet.stream]
            joined.mux(packet)
    content = both.read_bytes()
    pace = Pace(content, 120)
    out, _ = through_pipes(crew, pace.produce, monkeypatch, pace.follow)
    (tmp_path / "out.mkv").write_bytes(out)
    shown = [when for when, _ in packets(tmp_path / "out.mkv", "subtitle")]
    assert shown == [Fraction(1, 10), Fraction(11)]
    assert pace.out_before_the_end > len(out) / 12


def test_the_time_left_is_told_where_the_length_is_known(
    crew: Crew, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Progress] = []
    film = make_video(tmp_path / "in.mkv", frames=40, size=SIZE)
    with (tmp_path / "out.mkv").open("w") as stdout, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        enhance_into_pipe(request(), film, crew, lambda: contextlib.nullcontext(told.append))
    assert {now.frames_total for now in told} == {40}
    assert any(now.is_measured and now.seconds_left for now in told)

    told.clear()
    through_pipes(crew, in_blocks(y4m.film(40, SIZE)), monkeypatch, lambda inflow: told.append)
    assert told
    assert {(now.frames_total, now.seconds_left) for now in told} == {(None, None)}


def test_what_a_tile_costs_is_remembered_of_a_film_of_unknown_length(
    stand_in_engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds, tiles = 0.02, 9  # of a tile, of a frame

    def encode(image: Any) -> Any:
        time.sleep(seconds)
        return encode_image(image)

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    engines = NumpyEngines(tmp_path, unet=no_velocity, vae_encoder=encode)
    engine_set = EngineSet.open(stand_in_engines)
    crew = Crew(lambda: engine_set, lambda chosen: Alone(VideoToVideo(engines, CpuDevice())), "cuda")
    through_pipes(crew, in_blocks(y4m.film(4, SIZE)), monkeypatch, scale=2.0)
    costs = costs_of(engine_set, "cuda")  # which was asked for
    assert costs is not None
    assert seconds < costs.encode < seconds * tiles
    assert costs_of(engine_set, "cpu") is None
