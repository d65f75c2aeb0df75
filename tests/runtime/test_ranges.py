"""Part of a film: exactly its pictures, everything else cut with them, and the same work as in the whole film."""

from __future__ import annotations

import json
import subprocess
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.clips import make_video, packets, picture, pixels_of, times
from tests.stand_ins.command import Run, start
from v2v.core.errors import UsageError
from v2v.runtime.diffusion.segments import Carry
from v2v.runtime.films.journal import Journal
from v2v.runtime.films.task import EnhancedSegment
from v2v.runtime.media.errors import MediaError, MediaWarning
from v2v.runtime.media.reader import VideoReader
from v2v.runtime.media.time_range import TimeRange, clock, parse_time
from v2v.runtime.media.timestamps import PictureTimes
from v2v.runtime.media.writer import VideoWriter

stamp = PictureTimes.stamp
FAST = ("--scale", 1, "--steps", 1, "--strength", 0.001)
MS = Fraction(1, 1000)


def within(start: float | str | None = None, end: float | str | None = None) -> TimeRange:
    return TimeRange(*(None if value is None else Fraction(str(value)) for value in (start, end)))


def read(path: Path, wanted: TimeRange) -> tuple[list[np.ndarray], list[Fraction]]:
    """Pictures and their times in seconds."""
    with VideoReader(path, time_range=wanted) as reader:
        pictures = list(reader.frames())
        return pictures, [stamp.start * reader.info.time_base for stamp in reader.timestamps]


def cut(source: Path, target: Path, wanted: TimeRange) -> Path:
    with VideoReader(source, time_range=wanted) as reader, VideoWriter(target, reader) as writer:
        for frame in reader.frames():
            writer.write(frame)
    return target


def numbered(count: int) -> list[np.ndarray]:
    return [picture(7 * number, 32, 32) for number in range(count)]


# What a time is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("12", 12), ("12.5", "12.5"), ("1:30", 90), ("90:00", 5400), ("01:02:03.250", "3723.25")],
)
def test_times_are_seconds_or_clocks(text: str, seconds: int | str) -> None:
    assert parse_time("--start", text) == Fraction(seconds)


@pytest.mark.parametrize("text", ["", "soon", "-1", "1:60", "1:60:00", "1:2:3:4", "1e3", "nan", "1:30.", "٣"])
def test_other_texts_are_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError, match=r"--start .*: give|--start .*: minutes"):
        parse_time("--start", text)


@given(st.integers(0, 10**12))
def test_what_is_told_of_a_time_can_be_typed(microseconds: int) -> None:
    seconds = Fraction(microseconds, 10**6)
    assert parse_time("--end", clock(seconds)) == seconds


@pytest.mark.parametrize(("first", "last"), [("2", "2"), ("2", "1.5"), (None, "0")])
def test_an_end_before_the_start_is_refused(first: str | None, last: str) -> None:
    with pytest.raises(UsageError, match=r"--end .* the end must come after the start"):
        within(first, last)


# Pictures -------------------------------------------------------------------------------------------------------

SLOW_DECODE = {"crf": "10", "x264-params": "keyint=12:min-keyint=6:open-gop=1:bframes=3:scenecut=0"}


@settings(max_examples=25, deadline=None)
@given(
    begin=st.integers(0, 3000),
    steps=st.lists(st.integers(1, 400), min_size=1, max_size=60),
    first=st.floats(0, 1.1),
    length=st.floats(0, 0.7),
    ending=st.sampled_from([".mkv", ".mp4", ".mov"]),
)
def test_a_range_holds_exactly_the_pictures_that_begin_inside(
    tmp_path_factory: pytest.TempPathFactory,
    begin: int,
    steps: list[int],
    first: float,
    length: float,
    ending: str,
) -> None:
    folder = tmp_path_factory.mktemp("vfr")
    pts = [begin, *(begin + int(total) for total in np.cumsum(steps))]
    options = {"pictures": numbered(len(pts)), "pts": pts, "time_base": MS, "options": SLOW_DECODE}
    source = make_video(folder / f"in{ending}", **options)
    whole, stamps = read(source, TimeRange())
    assert stamps == [Fraction(p - begin, 1000) for p in pts]  # players count from the file's first packet
    span = stamps[-1]
    start = round(Fraction(first) * span / MS) * MS
    end = start + max(round(Fraction(length) * span / MS), 1) * MS
    inside = [n for n, stamp in enumerate(stamps) if start <= stamp < end]
    if not inside:
        with pytest.raises(MediaError, match=r"no picture begins within --start .* --end"):
            read(source, within(start, end))
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MediaWarning)  # of an end behind the film's
        pictures, shifted = read(source, within(start, end))
    shift = stamps[inside[0]] if start else 0
    assert shifted == [stamps[n] - shift for n in inside]
    for got, n in zip(pictures, inside, strict=True):
        assert np.array_equal(got, whole[n])


@pytest.mark.parametrize("ending", [".ts", ".avi"])
def test_files_without_an_index_are_read_from_their_beginning(tmp_path: Path, ending: str) -> None:
    pts = range(14, 54) if ending == ".ts" else range(40)
    source = make_video(
        tmp_path / f"in{ending}",
        pictures=numbered(40),
        codec="mpeg4",
        options={},
        time_base=Fraction(1, 10),
        pts=pts,
    )
    whole, stamps = read(source, TimeRange())
    with av.open(str(source)) as opened:
        assert (opened.start_time > 1_000_000) == (
            ending == ".ts"
        )  # its clock does not begin at 0; the film does
    assert [round(float(time), 3) for time in stamps] == [n / 10 for n in range(40)]
    pictures, shifted = read(source, within("1.5", "2.5"))
    assert np.array_equal(pictures, whole[15:25])
    assert [round(float(time), 3) for time in shifted] == [n / 10 for n in range(10)]


def test_what_lies_before_a_range_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_video(tmp_path / "in.mp4", frames=200, options={"g": "10"})
    stamped = []
    monkeypatch.setattr(
        PictureTimes, "stamp", lambda self, frame: stamped.append(frame.pts) or stamp(self, frame)
    )
    with VideoReader(source, time_range=within("18.5")) as reader:
        assert len(list(reader.frames())) == 15
        assert min(stamped) * reader.info.time_base > 16


def test_an_index_that_leads_too_far_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_video(tmp_path / "in.mp4", frames=60, options={"g": "10"})
    whole, _ = read(source, TimeRange())
    open_file = av.open

    class TooFar:
        """A file whose index names places three seconds behind the right ones."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.file = open_file(*arguments, **options)

        def __enter__(self) -> TooFar:
            return self

        def __exit__(self, *raised: Any) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def seek(self, offset: int, *, stream: av.VideoStream) -> None:
            assert stream.time_base is not None
            sought.append(offset)
            self.file.seek(offset + round(3 / stream.time_base) if offset else 0, stream=stream)

    sought: list[int] = []
    monkeypatch.setattr(av, "open", TooFar)
    pictures, _ = read(source, within(2, 3))
    assert len(sought) == 2 and sought[1] < sought[0]
    assert np.array_equal(pictures, whole[20:30])


def test_numbered_pictures_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    shown = numbered(30)
    for number, pixels in enumerate(shown):
        av.VideoFrame.from_ndarray(pixels, format="rgb24").save(str(folder / f"{number}.png"))
    with VideoReader(folder, rate=Fraction(10), time_range=within("1.05", "2")) as reader:
        assert np.array_equal(list(reader.frames()), shown[11:20])
        assert reader.first_number == 11


@pytest.mark.parametrize(
    "wanted", [within(7), within("6.05", "6.09")], ids=["behind the end", "between pictures"]
)
def test_a_range_without_pictures_is_told_with_the_length(tmp_path: Path, wanted: TimeRange) -> None:
    source = make_video(tmp_path / "in.mp4", frames=70)
    with pytest.raises(
        MediaError, match=r"in.mp4: no picture begins within --start .*; the video is 0:00:07 long"
    ):
        VideoReader(source, time_range=wanted)


def test_an_end_far_behind_the_films_is_told(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4", frames=20)
    with pytest.warns(MediaWarning, match="ends at 0:00:02, before --end 0:01:00"):
        assert len(read(source, within(1, 60))[0]) == 10


# Everything else ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
def test_sound_is_cut_at_its_packets_and_stays_in_step(tmp_path: Path, ending: str) -> None:
    source = make_video(tmp_path / f"in{ending}", frames=40, sounds=2, options={"g": "10"})
    result = cut(source, tmp_path / f"out{ending}", within(1, "2.5"))
    assert times(result) == [Fraction(n, 10) for n in range(15)]
    for track in range(2):
        inside = [(time - 1, digest) for time, digest in packets(source, "audio", track) if 1 <= time < 2.5]
        copied = packets(result, "audio", track)
        assert [digest for _, digest in copied] == [digest for _, digest in inside]
        for (one, _), (other, _) in zip(copied, inside, strict=True):
            assert abs(one - other) <= MS  # MP4 keeps where a track begins in milliseconds
        assert len(inside) > 60


def test_the_end_alone_and_the_start_alone(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", frames=30, sounds=1)
    sound = packets(source, "audio")
    head = cut(source, tmp_path / "head.mkv", within(None, 1))
    tail = cut(source, tmp_path / "tail.mkv", within(2))
    assert packets(head, "audio") == [(time, digest) for time, digest in sound if time < 1]
    assert packets(tail, "audio") == [(time - 2, digest) for time, digest in sound if time >= 2]


def test_chapters_and_subtitles_are_cut_to_the_range(tmp_path: Path) -> None:
    text = tmp_path / "text.srt"
    lines = [
        (0, 500, "gone"),
        (800, 1500, "half"),
        (1600, 1800, "whole"),
        (1900, 2900, "end"),
        (3000, 3500, "late"),
    ]
    text.write_text(
        "".join(
            f"{n}\n00:00:{a / 1000:06.3f} --> 00:00:{b / 1000:06.3f}\n{w}\n\n".replace(".", ",")
            for n, (a, b, w) in enumerate(lines, 1)
        )
    )
    chapters = [
        {
            "id": n,
            "start": 1200 * n,
            "end": 1200 * (n + 1),
            "time_base": MS,
            "metadata": {"title": f"Part {n}"},
        }
        for n in range(4)
    ]
    plain = make_video(tmp_path / "plain.mkv", frames=48, chapters=chapters)
    source = tmp_path / "in.mkv"
    with av.open(str(plain)) as film, av.open(str(text)) as words, av.open(str(source), "w") as output:
        output.set_chapters(film.chapters())
        copies = {s: output.add_stream_from_template(s) for s in (*film.streams, *words.streams)}
        for packet in [p for opened in (words, film) for p in opened.demux() if p.size]:
            packet.stream = copies[packet.stream]
            output.mux(packet)
    result = cut(source, tmp_path / "out.mkv", within(1, "2.5"))
    with av.open(str(result)) as opened:
        shown = [
            (p.pts, p.duration, bytes(p).decode())
            for p in opened.demux(opened.streams.subtitles[0])
            if p.size
        ]
        assert shown == [(0, 500, "half"), (600, 200, "whole"), (900, 600, "end")]
        marks = [
            (c["start"] * c["time_base"], c["end"] * c["time_base"], c["metadata"]["title"])
            for c in opened.chapters()
        ]
    assert marks == [
        (0, Fraction("0.2"), "Part 0"),
        (Fraction("0.2"), Fraction("1.4"), "Part 1"),
        (Fraction("1.4"), Fraction("1.5"), "Part 2"),
    ]


# Whole runs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def two_shots(tmp_path: Path) -> Path:
    """Forty pictures of one shot, then forty of another, one of which is two segments long."""
    pictures = [picture(n) for n in range(40)] + [255 - picture(n)[:, ::-1] for n in range(40)]
    return make_video(tmp_path / "in.mkv", pictures=pictures, sounds=1, options={"g": "15", "crf": "4"})


def test_a_shot_inside_a_range_is_enhanced_as_in_the_whole_film(
    run: Run, stand_in_engines: Path, two_shots: Path
) -> None:
    """Noise belongs to the film's picture, and a shot knows of nothing before it."""
    whole, part = two_shots.with_name("whole.mkv"), two_shots.with_name("part.mkv")
    options = "--scale 1 --steps 2 --strength 0.3 --codec ffv1"
    command = ("--engines", stand_in_engines, *options.split())
    assert run(two_shots, "-o", whole, *command).code == 0
    done = run(two_shots, "-o", part, "--start", "3.5", "--json", *command)
    assert done.code == 0, done.err
    assert json.loads(done.out)["frames"] == 45
    assert json.loads(done.out)["settings"]["start"] == "0:00:03.5"
    assert times(part) == [Fraction(n, 10) for n in range(45)]
    assert np.array_equal(pixels_of(part)[5:], pixels_of(whole)[40:])


def test_an_unfinished_range_is_not_taken_for_another(
    run: Run, stand_in_engines: Path, two_shots: Path
) -> None:
    output = two_shots.with_name("out.mkv")
    with Journal(output, {"--start": "not given"}) as journal:
        nothing = np.zeros((1, 1, 1, 1), np.float32)
        journal.finish(0, EnhancedSegment(b"", (), Carry(nothing, nothing)))
    done = run(two_shots, "-o", output, "--start", 2, "--engines", stand_in_engines, *FAST)
    assert done.code == 2
    assert "was None when it was begun" in done.err or "--start was not given" in done.err


def test_in_a_batch_a_video_too_short_for_the_range_is_one_failure(
    run: Run, stand_in_engines: Path, tmp_path: Path
) -> None:
    long, short = (make_video(tmp_path / f"{n}.mp4", frames=n) for n in (30, 10))
    out = tmp_path / "out"
    command = (long, short, "-o", out, "--engines", stand_in_engines, "--start", "1.5", "--end", "2", *FAST)
    done = run(*command)
    assert done.code == 2
    assert "10.mp4: no picture begins within --start 0:00:01.5 --end 0:00:02" in done.err
    assert len(times(out / "30.mp4")) == 5
    assert "done before" in run(*command).err
    assert "already exists" in run(*command[:-2], "--strength", 0.001, "--end", "2.2").err


def test_a_range_of_what_is_piped_in(stand_in_engines: Path, two_shots: Path) -> None:
    output = two_shots.with_name("out.mp4")
    command = ("-", "-o", output, "--engines", stand_in_engines, "--start", "0:02", "--end", "2.5", *FAST)
    process = start(*command, stdin=subprocess.PIPE, text=False)
    _, told = process.communicate(two_shots.read_bytes())
    assert process.returncode == 0, told
    assert len(times(output)) == 5


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--start", "5", "--end", "3"), "--start 0:00:05 --end 0:00:03: the end must come after the start"),
        (("--end", "soon"), "--end soon: give seconds, mm:ss or hh:mm:ss"),
        (("--start", "99"), "no picture begins within --start 0:01:39; the video is 0:00:08 long"),
        (("--preview=0",), "--preview 0: give the seconds to show"),
    ],
)
def test_ranges_that_cannot_be_are_one_line(
    run: Run, stand_in_engines: Path, two_shots: Path, flags: tuple[str, ...], said: str
) -> None:
    done = run(two_shots, "-o", two_shots.with_name("out.mp4"), "--engines", stand_in_engines, *FAST, *flags)
    assert done.code == 2
    assert said in done.lines[-1]
    assert sorted(path.name for path in two_shots.parent.glob("*out*")) == []


# Preview --------------------------------------------------------------------------------------------------------


def test_a_preview_shows_source_and_result_side_by_side_from_the_middle(
    run: Run, stand_in_engines: Path, two_shots: Path
) -> None:
    shown, result = two_shots.with_name("shown.mkv"), two_shots.with_name("result.mkv")
    options = "--scale 2 --steps 1 --strength 0.3 --codec ffv1"
    command = ("--engines", stand_in_engines, *options.split())
    done = run(two_shots, "-o", shown, "--preview", "2", *command)
    assert done.code == 0, done.err
    assert run(two_shots, "-o", result, "--start", 3, "--end", 5, *command).code == 0
    assert times(shown) == times(result) == [Fraction(n, 10) for n in range(20)]
    assert packets(shown, "audio") == packets(result, "audio")
    for both, right, source in zip(
        pixels_of(shown), pixels_of(result), pixels_of(two_shots)[30:50], strict=True
    ):
        assert both.shape == (96, 260, 3)
        assert np.array_equal(both[:, 132:], right)
        assert np.abs(both[::2, 1:128:2].astype(int) - source).mean() < 4
        assert both[:, 128:132].max() < 5


@pytest.mark.parametrize(
    ("flags", "frames"),
    [(("--preview",), 30), (("--start", "7", "--preview"), 10), (("--preview", "100"), 80)],
)
def test_a_preview_needs_no_number_and_takes_what_there_is(
    run: Run, stand_in_engines: Path, two_shots: Path, flags: tuple[str, ...], frames: int
) -> None:
    output = two_shots.with_name("out.mp4")
    done = run(*flags, two_shots, "-o", output, "--engines", stand_in_engines, *FAST)
    assert done.code == 0, done.err
    assert len(times(output)) == frames
