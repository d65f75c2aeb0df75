"""Interlaced films become whole frames: as many, at the same times, of the first of their two moments."""

from __future__ import annotations

import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np
import pytest

from tests.runtime.clips import make_video, times
from v2v.runtime.media.deinterlacing import Deinterlacer
from v2v.runtime.media.errors import MediaWarning
from v2v.runtime.media.reader import VideoReader
from v2v.runtime.media.time_range import TimeRange
from v2v.runtime.media.writer import VideoWriter

SIZE = (128, 96)
RATE = Fraction(25)


def moment(time: int) -> np.ndarray:
    """A bright box that moves three pixels from one moment to the next, beside stripes that stand still."""
    y, x = np.mgrid[0 : SIZE[1], 0 : SIZE[0]]
    shown = np.full((SIZE[1], SIZE[0], 3), 60, np.uint8)
    shown[20:70, 10 + 3 * time : 34 + 3 * time] = 220
    shown[(y % 4 < 2) & (x > 110)] = 180
    return shown


def woven(frame: int, order: str) -> np.ndarray:
    """Two moments in one frame."""
    shown = moment(2 * frame)
    second = 1 if order == "tff" else 0
    shown[second::2] = moment(2 * frame + 1)[second::2]
    return shown


def make_interlaced(
    path: Path,
    order: str = "tff",
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    frames: int = 8,
) -> Path:
    """A film whose frames say in which order their fields are shown."""
    options = {"flags": "+ildct+ilme"} | ({"crf": "4"} if codec == "libx264" else {})
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt, stream.options = *SIZE, pix_fmt, options
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(woven(number, order), format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = number, 1 / RATE
            output.mux(stream.encode(_marked(frame, order)))
        output.mux(stream.encode(None))
    return path


def _marked(frame: av.VideoFrame, order: str) -> av.VideoFrame:
    graph = av.filter.Graph()
    nodes = (
        graph.add_buffer(width=SIZE[0], height=SIZE[1], format=frame.format, time_base=1 / RATE),
        graph.add("setfield", order),
        graph.add("buffersink"),
    )
    graph.link_nodes(*nodes).configure()
    graph.push(frame)
    done = graph.pull()
    assert isinstance(done, av.VideoFrame)
    return done


def read(path: Path, **options: Any) -> list[np.ndarray]:
    with VideoReader(path, **options) as reader:
        return [frame if frame.dtype == np.uint8 else np.rint(frame / 257) for frame in reader.frames()]


def error(frames: list[np.ndarray], numbers: range = range(8)) -> float:
    """How far frames are from the first of their moments, where something moves."""
    pairs = zip(frames, numbers, strict=True)
    return float(np.mean([np.abs(f.astype(float) - moment(2 * n))[:, :110].mean() for f, n in pairs]))


@pytest.mark.parametrize("order", ["tff", "bff"])
@pytest.mark.parametrize(
    ("codec", "pix_fmt", "ending"),
    [("libx264", "yuv420p", ".mp4"), ("mpeg2video", "yuv420p", ".mkv"), ("prores_ks", "yuv422p10le", ".mov")],
)
def test_frames_show_the_first_of_their_moments(
    tmp_path: Path, order: str, codec: str, pix_fmt: str, ending: str
) -> None:
    source = make_interlaced(tmp_path / f"in{ending}", order, codec, pix_fmt)
    with pytest.warns(
        MediaWarning, match="is interlaced; its fields are made whole frames. --no-deinterlace"
    ):
        whole = read(source)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        left = read(source, deinterlace=False)
    assert len(whole) == len(left) == 8
    assert error(whole) < 0.65 * error(left)
    still = [np.abs(a.astype(float) - b)[:, 114:].mean() for a, b in zip(whole[1:], left[1:], strict=True)]
    assert max(still) < 1  # what does not move keeps all its lines


def test_the_reference_does_not_deinterlace(tmp_path: Path) -> None:
    source = make_interlaced(tmp_path / "in.mp4")
    left, parity = read(source, deinterlace=False), read(source, parity=True)
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(left, parity, strict=True)) < 40


def test_time_stamps_stay_and_the_result_is_not_interlaced(tmp_path: Path) -> None:
    source, output = make_interlaced(tmp_path / "in.mkv"), tmp_path / "out.mkv"
    with (
        pytest.warns(MediaWarning),
        VideoReader(source, find_cuts=True) as reader,
        VideoWriter(output, reader) as writer,
    ):
        for frame in reader.frames():
            writer.write(frame)
    assert times(output) == times(source)
    with av.open(str(source)) as before, av.open(str(output)) as after:
        assert all(frame.interlaced_frame for frame in before.decode(video=0))
        assert not any(frame.interlaced_frame for frame in after.decode(video=0))


def test_frames_that_are_whole_in_between_are_left_alone() -> None:
    """As in broadcasts: a film among interlaced programmes."""
    given = []
    for number in range(8):
        frame = av.VideoFrame.from_ndarray(woven(number, "tff"), format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = 10 * number, 1 / RATE
        given.append(_marked(frame, "tff" if number in (3, 4) else "prog"))
    made = list(Deinterlacer()(iter(given)))
    assert [frame.pts for frame in made] == [frame.pts for frame in given] == [10 * n for n in range(8)]
    for number, (after, before) in enumerate(zip(made, given, strict=True)):
        assert np.array_equal(after.to_ndarray(), before.to_ndarray()) == (number not in (3, 4))


def test_a_film_that_is_not_interlaced_never_meets_the_filter(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4", frames=3)
    with av.open(str(source)) as opened:
        frames = list(opened.decode(video=0))
    assert [id(frame) for frame in Deinterlacer()(iter(frames))] == [id(frame) for frame in frames]


def test_a_change_of_size_loses_no_frame(tmp_path: Path) -> None:
    found = []
    small = av.open(str(make_interlaced(tmp_path / "in.mkv"))).decode(video=0)
    large = [
        frame.reformat(width=160, height=96) for frame in av.open(str(tmp_path / "in.mkv")).decode(video=0)
    ]
    given = [*small, *large]
    given_times = [frame.pts for frame in given]
    made = list(Deinterlacer(lambda: found.append(1))(iter(given)))
    assert [frame.pts for frame in made] == given_times
    assert [frame.width for frame in made] == [128] * 8 + [160] * 8
    assert found


@pytest.mark.filterwarnings("ignore::v2v.runtime.media.errors.MediaWarning")
@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
def test_a_range_of_an_interlaced_film_shows_its_moments(tmp_path: Path, ending: str) -> None:
    """At its ends a frame lacks a neighbour; between them frames are the whole film's."""
    source = make_interlaced(tmp_path / f"in{ending}", frames=40)
    whole = read(source)
    part = read(source, time_range=TimeRange(Fraction(1), Fraction(7, 5)))
    assert len(part) == 10
    assert error(part, range(25, 35)) < 2
    np.testing.assert_array_equal(part[2:-1], whole[27:34])
