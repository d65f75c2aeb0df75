"""What comes in by a pipe is read as it comes, kept no longer than it must be, and sent on as it is finished."""

from __future__ import annotations

import io
import os
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.runtime import y4m
from tests.runtime.clips import make_video, picture
from tests.runtime.media.test_hdr import BT2020
from v2v.core.errors import UsageError
from v2v.runtime.media.encoding import EncodedSegment, Encoding, SegmentEncoder
from v2v.runtime.media.errors import MediaError, MediaWarning
from v2v.runtime.media.hdr import PQ
from v2v.runtime.media.pipe_in import Inflow
from v2v.runtime.media.pipe_out import pipe_writer
from v2v.runtime.media.reader import VideoReader
from v2v.runtime.media.stdio import opened_input
from v2v.runtime.media.time_range import TimeRange
from v2v.runtime.media.timestamps import Timestamp
from v2v.runtime.media.writer import encoding_for, streams_for


@contextmanager
def piped(content: bytes) -> Iterator[Inflow]:
    """``content`` coming in by a pipe, from a thread that ends when nobody wants more."""
    reading, writing = os.pipe()

    def produce() -> None:
        with suppress(BrokenPipeError), os.fdopen(writing, "wb") as pipe:
            pipe.write(content)

    producer = threading.Thread(target=produce)
    producer.start()
    try:
        with closing(Inflow(reading, Path("/dev/stdin"), os.read(reading, 10))) as inflow:
            yield inflow
    finally:
        os.close(reading)
        producer.join()


def frames_of(
    source: Path | Inflow, **options: object
) -> tuple[list[np.ndarray], list[Timestamp], VideoReader]:
    with VideoReader(source, **options) as reader:  # type: ignore[arg-type]
        frames = list(reader.frames())
        return frames, list(reader.timestamps), reader


# What comes in -------------------------------------------------------------------------------------------------


def test_readers_go_at_their_own_pace_and_what_all_have_read_is_let_go() -> None:
    content = bytes(range(256)) * 4096
    with piped(content) as inflow:
        fast, slow = inflow.open(), inflow.open()
        inflow.seal()
        ahead = b"".join(iter(lambda: fast.read(1000), b""))
        assert ahead == content
        assert inflow.waiting > len(content) - 100_000
        assert b"".join(iter(lambda: slow.read(1 << 15), b"")) == content
        assert inflow.waiting == 0


def test_nothing_is_read_before_it_is_wanted() -> None:
    with piped(bytes(1 << 20)) as inflow:
        tap = inflow.open()
        tap.read(100)
        time.sleep(0.05)
        assert inflow.received < 100_000


def test_a_reader_that_leaves_keeps_nothing_back_and_waits_no_more() -> None:
    reading, writing = os.pipe()
    with closing(Inflow(reading, Path("/dev/stdin"))) as inflow:
        tap, other = inflow.open(), inflow.open()
        inflow.seal()
        threading.Timer(0.1, tap.close).start()
        assert tap.read(100) == b""  # though nothing has come and the pipe is open
        os.write(writing, b"a few bytes")
        assert other.read(100) == b"a few bytes"
        assert inflow.waiting == 0
        os.close(writing)
        assert other.read(100) == b""
    os.close(reading)


@pytest.mark.parametrize("kind", y4m.KINDS)
def test_y4m_is_read_as_it_says_it_is(tmp_path: Path, kind: str) -> None:
    content = y4m.film(4, kind=kind, rate="30000:1001", aspect="4:3", more="XCOLORRANGE=FULL")
    (tmp_path / "film.y4m").write_bytes(content)
    of_file = frames_of(tmp_path / "film.y4m")
    with piped(content) as inflow:
        frames, stamps, reader = frames_of(inflow)
    info = reader.info
    assert (info.frame_rate, info.sample_aspect_ratio) == (Fraction(30000, 1001), Fraction(4, 3))
    assert (info.depth, info.colors.full_range) == (10 if "p10" in kind else 8, True)
    assert (info.width, info.height, info.frames) == (64, 48, None)
    assert [stamp.start for stamp in stamps] == [0, 1, 2, 3]
    np.testing.assert_array_equal(frames, of_file[0])


def test_interlaced_y4m_is_made_whole() -> None:
    with piped(y4m.film(4, interlaced="t")) as inflow, pytest.warns(MediaWarning, match="is interlaced"):
        frames, _, _ = frames_of(inflow)
    with piped(y4m.film(4)) as inflow:
        progressive, _, _ = frames_of(inflow)
    assert len(frames) == 4
    assert not np.array_equal(frames, progressive)


def test_a_matroska_film_in_a_pipe_has_the_frames_and_times_of_the_file(tmp_path: Path) -> None:
    film = make_video(tmp_path / "film.mkv", frames=20, sounds=1, pts=[n * n for n in range(20)])
    frames, stamps, reader = frames_of(film)
    with piped(film.read_bytes()) as inflow:
        of_pipe, stamps_of_pipe, reader_of_pipe = frames_of(inflow)
    np.testing.assert_array_equal(of_pipe, frames)
    assert stamps_of_pipe == stamps
    assert reader_of_pipe.info.frame_rate == reader.info.frame_rate


def test_y4m_that_ends_in_the_middle_of_a_picture_is_told_and_what_is_whole_is_used() -> None:
    told = pytest.warns(MediaWarning, match="/dev/stdin is damaged or cut short: 4 frames could be read")
    with piped(y4m.film(5)[:-1000]) as inflow, told:
        assert len(frames_of(inflow)[0]) == 4
    with piped(y4m.film(5)) as inflow, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(frames_of(inflow)[0]) == 5


def test_a_matroska_film_that_ends_early_is_told(tmp_path: Path) -> None:
    film = make_video(tmp_path / "film.mkv", frames=60).read_bytes()
    told = pytest.warns(MediaWarning, match="/dev/stdin is damaged or cut short")
    with piped(film[: len(film) * 2 // 3]) as inflow, told:
        assert 20 < len(frames_of(inflow)[0]) < 60


def test_a_header_and_nothing_else_is_no_film() -> None:
    with piped(y4m.header()) as inflow, pytest.raises(MediaError, match="no picture could be read"):
        VideoReader(inflow)


def test_a_part_of_a_pipe_is_found_by_reading_up_to_it_and_its_middle_is_not_known() -> None:
    with piped(y4m.film(50)) as inflow:
        frames, stamps, reader = frames_of(inflow, time_range=TimeRange(Fraction(1), Fraction(3, 2)))
    assert (len(frames), stamps[0].start, reader.first_number) == (13, 0, 25)
    with piped(y4m.film(5)) as inflow, pytest.raises(UsageError, match=r"--preview .* as --start 0"):
        VideoReader(inflow, time_range=TimeRange(preview=Fraction(1)))
    with piped(y4m.film(50)) as inflow:
        wanted = TimeRange(start=Fraction(0), preview=Fraction(1))
        assert len(frames_of(inflow, time_range=wanted)[0]) == 25


@pytest.mark.parametrize(
    ("container", "streamed", "from_the_start", "comes"),
    [
        ("y4m", True, True, True),
        ("y4m", True, False, True),
        ("mkv", True, True, True),
        ("mkv", True, False, False),  # its sound would wait for the first picture that is wanted
        ("mp4", True, True, False),  # what it needs first stands at its end
        ("y4m", False, True, False),  # a file goes on after an interruption
        ("mkv", False, True, False),
    ],
)
def test_what_can_be_read_as_it_comes_is_known_by_its_first_bytes(
    tmp_path: Path, container: str, streamed: bool, from_the_start: bool, comes: bool
) -> None:
    film = tmp_path / f"film.{container}"
    if container == "y4m":
        film.write_bytes(y4m.film(3))
    else:
        make_video(film, frames=3)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    producer = threading.Thread(target=lambda: pipe.write_bytes(film.read_bytes()))
    producer.start()
    with opened_input(pipe, streamed=streamed, from_the_start=from_the_start) as source:
        assert isinstance(source, Inflow) == comes
        frames, _, _ = frames_of(source)
        if isinstance(source, Path):
            assert source.read_bytes() == film.read_bytes()
    producer.join()
    np.testing.assert_array_equal(frames, frames_of(film)[0])


# What goes out ---------------------------------------------------------------------------------------------------


def segment_of(numbers: range, encoding: Encoding, size: tuple[int, int] = (64, 48)) -> EncodedSegment:
    file = io.BytesIO()
    with SegmentEncoder(file, encoding) as encoder:
        for number in numbers:
            encoder.write(picture(number, *size))
    return EncodedSegment(file.getvalue(), encoder.order)


def test_segments_of_any_length_are_shown_at_their_times(tmp_path: Path) -> None:
    """Decoding runs ahead of showing further in long segments than in those before them."""
    lengths = (1, 2, 9, 3, 30, 1)
    pts = [7 * n + n % 3 for n in range(sum(lengths))]
    film = make_video(tmp_path / "film.mkv", frames=len(pts), pts=pts, time_base=Fraction(1, 1000), sounds=1)
    out = io.BytesIO()
    with VideoReader(film) as reader:
        stamps = [Timestamp(when, 0) for when in pts]
        encoding = encoding_for(reader.info)
        streams = streams_for(reader, Path("stdout.mkv"))
        with pipe_writer(_Unseekable(out), reader, encoding, "", streams, parity=False) as writer:
            first = 0
            for length in lengths:
                numbers = range(first, first + length)
                writer.add(segment_of(numbers, encoding), [stamps[number] for number in numbers])
                first += length
    out.seek(0)
    with av.open(out) as written:
        assert [stream.type for stream in written.streams] == ["video", "audio"]
        assert [frame.pts for frame in written.decode(video=0)] == pts


class _Unseekable:
    """As a pipe: what is written is written."""

    def __init__(self, file: io.BytesIO) -> None:
        self.write = file.write


@pytest.mark.parametrize(("depth", "chroma"), [(8, "420mpeg2"), (10, "420p10")])
@pytest.mark.parametrize("full_range", [False, True])
def test_y4m_says_what_it_is(depth: int, chroma: str, full_range: bool) -> None:
    said = {"rate": "30000:1001", "aspect": "4:3", "more": "XCOLORRANGE=FULL" if full_range else ""}
    out = io.BytesIO()
    with piped(y4m.film(1, **said)) as inflow, VideoReader(inflow) as reader:
        encoding = encoding_for(reader.info, codec="y4m", depth=depth)
        streams = streams_for(reader, Path("stdout.y4m"))
        with pipe_writer(out, reader, encoding, "", streams, parity=False) as writer:
            for numbers in (range(3), range(3, 4)):
                writer.add(segment_of(numbers, encoding), [Timestamp(number, 1) for number in numbers])
    fields, frames = y4m.parsed(out.getvalue())
    assert fields == {
        **{"W": "64", "H": "48", "F": "30000:1001", "I": "p", "A": "4:3", "C": chroma},
        **{"YSCSS": chroma.upper(), "COLORRANGE": "FULL" if full_range else "LIMITED"},
    }
    assert len(frames) == 4
    with piped(out.getvalue()) as inflow:
        again, _, _ = frames_of(inflow)
    for number, frame in enumerate(again):
        levels = frame if frame.dtype == np.uint8 else frame / 257
        assert np.abs(levels - picture(number).astype(float)).mean() < 3


def test_y4m_takes_the_matrix_that_players_take_it_to_have(tmp_path: Path) -> None:
    """It cannot say one: a small picture that is made large changes from BT.601 to BT.709."""
    red = np.zeros((720, 1280, 3), np.uint8)
    red[..., 0] = 255
    with piped(y4m.film(1)) as inflow, VideoReader(inflow) as reader:
        encoding = encoding_for(reader.info, codec="y4m")
        assert reader.info.colors.matrix == 6
        out = io.BytesIO()
        with SegmentEncoder(out, encoding) as encoder:
            encoder.write(red)
    with piped(out.getvalue()) as inflow:
        frames, _, reader = frames_of(inflow)
    assert reader.info.colors.matrix == 1
    assert np.abs(frames[0].astype(int) - red).max() <= 3


def test_what_y4m_cannot_hold_is_told(tmp_path: Path) -> None:
    film = make_video(tmp_path / "film.mkv", frames=4, sounds=1)
    with VideoReader(film) as reader:
        with pytest.warns(MediaWarning, match="y4m holds pictures alone; .mkv keeps it as it is"):
            streams = streams_for(reader, Path("stdout.y4m"))
        encoding = encoding_for(reader.info, codec="y4m")
        told = pytest.warns(MediaWarning, match=r"no constant frame rate, and y4m no times: .* 10 a second")
        with pipe_writer(io.BytesIO(), reader, encoding, "", streams, parity=False) as writer, told:
            writer.add(segment_of(range(3), encoding), [Timestamp(when, 0) for when in (0, 100, 400)])


def test_hdr_in_y4m_is_told(tmp_path: Path) -> None:
    film = make_video(tmp_path / "film.mkv", frames=1, colors={**BT2020, "color_trc": PQ})
    with VideoReader(film) as reader, pytest.warns(MediaWarning, match="y4m cannot say that it is HDR"):
        encoding_for(reader.info, codec="y4m")


def test_a_film_that_is_not_wanted_any_more_is_not_called_damaged() -> None:
    with piped(y4m.film(40)) as inflow, VideoReader(inflow) as reader, warnings.catch_warnings():
        warnings.simplefilter("error")
        frames = reader.frames()
        next(frames)
        reader.stop()
        assert len(list(frames)) < 39
