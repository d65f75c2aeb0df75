"""The one map from a file's time to the film's: starts at 0, grows, keeps streams in step, loses nothing."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.clips import make_video, packets, picture, times
from v2v.runtime.media.clock import FilmClock
from v2v.runtime.media.errors import MediaWarning
from v2v.runtime.media.reader import VideoReader
from v2v.runtime.media.time_range import TimeRange
from v2v.runtime.media.writer import VideoWriter

TICK = Fraction(1, 90_000)
WRAP = 1 << 33
FAR = 30 * 90_000
VIDEO, SOUND = 3600, 2160  # ticks that a picture and a packet of sound last


# The map alone --------------------------------------------------------------------------------------------------


@dataclass
class Stamped:
    """A packet with nothing but its place."""

    stream: Any
    dts: int | None
    pts: int | None
    true: int  # its place in the film
    duration: int
    size: int = 1
    time_base: Fraction = field(default=TICK)


def stream(index: int, kind: str) -> Any:
    return SimpleNamespace(index=index, type=kind, disposition=av.stream.Disposition(0))


def recording(seconds: int, *, rate: int = VIDEO, lead: int = 0, late: int = 0) -> list[Stamped]:
    """Pictures and sound as a broadcast sends them; sound begins ``lead`` ticks after pictures and comes ``late``."""
    pictures, sound = stream(0, "video"), stream(1, "audio")
    made = [(t, Stamped(pictures, t, t, t, rate)) for t in range(0, seconds * 90_000, rate)]
    made += [(t + late, Stamped(sound, t, t, t, SOUND)) for t in range(lead, lead + seconds * 90_000, SOUND)]
    return [packet for _, packet in sorted(made, key=lambda item: item[0])]


def mapped(clock: FilmClock, source: Sequence[Stamped]) -> list[Stamped]:
    film = list(clock.film(source))
    assert {id(packet) for packet in film} == {id(packet) for packet in source}  # nothing is lost
    return film


def off(film: Sequence[Stamped]) -> list[int]:
    """By how many ticks each packet is away from its place."""
    return [packet.dts - packet.true for packet in film]


@settings(deadline=None)
@given(
    start=st.integers(0, WRAP - 1),
    lead=st.integers(0, 90_000),
    late=st.integers(0, 45_000),
    seconds=st.integers(2, 30),
)
def test_wherever_a_clock_starts_and_wraps_the_film_starts_at_0_and_sound_keeps_its_delay(
    start: int, lead: int, late: int, seconds: int
) -> None:
    source = recording(seconds, lead=lead, late=late)
    for packet in source:
        packet.pts = packet.dts = (packet.true + start) % WRAP
    clock = FilmClock(start * TICK, jumps=True)
    assert set(off(mapped(clock, source))) == {0}
    assert clock.gaps == []


@settings(max_examples=60, deadline=None)
@given(
    jumps=st.lists(st.one_of(st.integers(-(10**9), -FAR), st.integers(FAR, 10**9)), min_size=1, max_size=5),
    late=st.integers(0, 60_000),
    lead=st.integers(0, 5_000),
)
def test_jumps_are_taken_out_for_all_streams_by_the_same_time(jumps: list[int], late: int, lead: int) -> None:
    """Sound that is sent later than its picture jumps later in the file, at the same moment of the film."""
    source = recording(6 * (len(jumps) + 1), lead=lead, late=late)
    offset = [sum(jumps[:n]) for n in range(len(jumps) + 1)]
    for packet in source:
        packet.pts = packet.dts = packet.true + offset[min(packet.true // (6 * 90_000), len(jumps))]
    film = mapped(FilmClock(Fraction(0), jumps=True), source)
    for index in (0, 1):
        stamps = [packet.dts for packet in film if packet.stream.index == index]
        # where jumps cancel each other but for less than a second, that is a gap
        assert all(0 < b - a <= 90_000 + 2 * VIDEO for a, b in zip(stamps, stamps[1:], strict=False))
    assert abs(film[-1].dts - film[-1].true) <= (90_000 + VIDEO) * len(jumps)
    apart = {packet.stream.index: packet.dts - packet.true for packet in film}
    assert abs(apart[0] - apart[1]) <= 1  # in step behind every jump


@settings(deadline=None)
@given(st.lists(st.integers(1, 9 * 90_000), min_size=2, max_size=80), st.booleans())
def test_a_variable_frame_rate_is_left_as_it_is(steps: list[int], broadcast: bool) -> None:
    times = [0, *(int(total) for total in np.cumsum(steps))]
    source = [Stamped(stream(0, "video"), t, t, t, 0) for t in times]
    assert set(off(mapped(FilmClock(Fraction(0), jumps=broadcast), source))) == {0}


@settings(deadline=None)
@given(st.data())
def test_missing_stamps_are_made_up_where_they_belong(data: st.DataObject) -> None:
    source = recording(4)
    missing = data.draw(st.sets(st.integers(1, len(source) - 1)))
    for place in missing:
        source[place].pts = source[place].dts = None
    for packet in mapped(FilmClock(Fraction(0), jumps=True), source):
        assert abs(packet.dts - packet.true) <= VIDEO


@settings(deadline=None)
@given(st.integers(1, 80), st.one_of(st.integers(-(10**8), -FAR), st.integers(FAR, 10**8)))
def test_a_single_stamp_out_of_order_moves_nothing_else(place: int, away: int) -> None:
    source = recording(4)
    source[place].pts = source[place].dts = source[place].true + away
    clock = FilmClock(Fraction(0), jumps=True)
    assert max(map(abs, off(mapped(clock, source)))) <= 1
    assert clock.strays == 1


def test_a_time_of_showing_far_from_that_of_decoding_is_not_believed() -> None:
    source = recording(4)
    for packet in source[10:13]:
        packet.pts = packet.true + 85_000 * 90_000
    clock = FilmClock(Fraction(0), jumps=True)
    film = mapped(clock, source)
    assert set(off(film)) == {0}
    assert all(packet.pts in (None, packet.true) for packet in film)
    assert clock.strays == 3


def test_two_programs_of_different_clocks_play_side_by_side() -> None:
    one, two = recording(5), recording(5)
    for packet in two:
        packet.stream = stream(packet.stream.index + 2, packet.stream.type)
        packet.pts = packet.dts = packet.true + 5000 * 90_000
    both = [packet for pair in zip(one, two, strict=True) for packet in pair]
    assert max(map(abs, off(mapped(FilmClock(Fraction(0), jumps=True), both)))) <= VIDEO


def test_where_clocks_do_not_jump_an_hour_between_two_pictures_is_an_hour() -> None:
    source = [Stamped(stream(0, "video"), t, t, t, VIDEO) for t in (0, VIDEO, 3600 * 90_000)]
    assert set(off(mapped(FilmClock(Fraction(0), jumps=False), source))) == {0}


# Whole files ----------------------------------------------------------------------------------------------------


def copy(source: Path, target: Path, wanted: TimeRange | None = None) -> Path:
    with (
        VideoReader(source, time_range=wanted or TimeRange()) as reader,
        VideoWriter(target, reader, overwrite=True) as writer,
    ):
        for frame in reader.frames():
            writer.write(frame)
    return target


@pytest.fixture(autouse=True)
def _no_unexpected_warning() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error", MediaWarning)
        yield


def recorded(path: Path, at: float = 0, frames: int = 30, **options: Any) -> Path:
    """A broadcast of pictures and sound whose clock begins ``at`` seconds."""
    return make_video(
        path, frames=frames, sounds=1, container_options={"output_ts_offset": str(at)}, **options
    )


def span(path: Path, kind: str) -> tuple[int, float, float]:
    """How many packets, and from when to when they are played."""
    found = sorted(time for time, _ in packets(path, kind))
    return len(found), float(found[0]), float(found[-1])


@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
@pytest.mark.parametrize("at", [0, 40_000, 95_440])  # the last wraps around
def test_a_recording_starts_at_0_whatever_its_clock(tmp_path: Path, at: float, ending: str) -> None:
    source = recorded(tmp_path / "in.ts", at)
    expected = recorded(tmp_path / f"expected{ending}")
    result = copy(source, tmp_path / f"out{ending}")
    assert abs(min(times(result)[0], packets(result, "audio")[0][0])) < 0.03
    shown = times(result)
    assert [float(t - shown[0]) for t in shown] == pytest.approx([n / 10 for n in range(30)], abs=0.002)
    assert span(result, "audio")[0] == span(source, "audio")[0] >= span(expected, "audio")[0] - 1
    apart = packets(source, "audio")[0][0] - times(source)[0]
    assert float(packets(result, "audio")[0][0] - shown[0]) == pytest.approx(float(apart), abs=0.002)


@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
@pytest.mark.parametrize("kind", [".ts", ".vob"])
@pytest.mark.parametrize(("first", "second"), [(0, 0), (3600, 0), (0, 3600)])
def test_joined_recordings_play_on_with_all_their_sound(
    tmp_path: Path, first: float, second: float, kind: str, ending: str
) -> None:
    codec: dict[str, Any] = {
        "codec": "mpeg2video",
        "sound": "mp2",
        "options": {},
        "time_base": Fraction(1, 25),
    }
    codec["pts"] = range(30)
    parts = [recorded(tmp_path / f"{n}{kind}", at, **codec) for n, at in enumerate((first, second))]
    joined = tmp_path / f"joined{kind}"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    told = pytest.warns(MediaWarning, match="its clock jumps ahead once, by (0:59:5|1:00:0)")
    with told if second else contextlib.nullcontext():
        result = copy(joined, tmp_path / f"out{ending}")
    shown = times(result)
    assert len(shown) == 60
    length = max(1.2, span(parts[0], "audio")[2] - span(parts[0], "audio")[1])
    assert float(shown[-1] - shown[0]) == pytest.approx(length + 1.16, abs=0.15)
    heard = [time for time, _ in packets(result, "audio")]
    assert len(heard) == sum(span(part, "audio")[0] for part in parts)
    assert max(float(b - a) for a, b in zip(heard, heard[1:], strict=False)) < 0.2


def moved_clock(content: bytes, pids: set[int], ticks: int) -> bytes:
    """A transport stream in which some streams show another time (ISO 13818-1, 2.4.3.6)."""
    data = bytearray(content)
    for start in range(0, len(data), 188):
        pid = int.from_bytes(data[start + 1 : start + 3], "big") & 0x1FFF
        if pid not in pids or not data[start + 1] & 0x40:  # no packet begins here
            continue
        place = start + 4 + (data[start + 4] + 1 if data[start + 3] & 0x20 else 0)
        stamps = {0x80: 1, 0xC0: 2}.get(data[place + 7] & 0xC0, 0)
        for at in (place + 9 + 5 * n for n in range(stamps)):
            a, b, c, d, e = data[at : at + 5]
            when = (a >> 1 & 7) << 30 | b << 22 | (c >> 1) << 15 | d << 7 | e >> 1
            when = (when + ticks) % WRAP
            data[at : at + 5] = bytes(
                [
                    a & 0xF1 | when >> 30 << 1,
                    when >> 22 & 255,
                    when >> 15 << 1 & 255 | 1,
                    when >> 7 & 255,
                    when << 1 & 255 | 1,
                ]
            )
    return bytes(data)


def test_two_programs_of_one_broadcast_begin_together(tmp_path: Path) -> None:
    plain = recorded(tmp_path / "plain.ts")
    source = tmp_path / "in.ts"
    with av.open(str(plain)) as one, av.open(str(plain)) as two, av.open(str(source), "w") as output:
        copies: Any = {
            stream: output.add_stream_from_template(stream, opaque=True)
            for opened in (one, two)
            for stream in opened.streams
        }
        for pair in zip(one.demux(), two.demux(), strict=True):
            for packet in pair:
                if packet.size:
                    packet.stream = copies[packet.stream]
                    output.mux(packet)
    with av.open(str(source)) as opened:
        second = {stream.id for stream in list(opened.streams)[2:]}
    source.write_bytes(moved_clock(source.read_bytes(), second, 5000 * 90_000))
    with av.open(str(source)) as opened:
        starts = [float(stream.start_time * stream.time_base) for stream in opened.streams]
    assert max(starts) - min(starts) > 4990
    result = copy(source, tmp_path / "out.mkv")
    with av.open(str(result)) as opened:
        ends = [
            max(float((p.pts + (p.duration or 0)) * p.time_base) for p in opened_packets(result, n))
            for n in range(4)
        ]
        first = [min(float(p.pts * p.time_base) for p in opened_packets(result, n)) for n in range(4)]
    assert max(first) < 0.3
    assert max(ends) < 3.5
    for kind in ("video", "audio"):
        assert len(packets(result, kind, 0)) == len(packets(result, kind, 1)) == len(packets(plain, kind))


def opened_packets(path: Path, index: int) -> list[Any]:
    with av.open(str(path)) as opened:
        return [packet for packet in opened.demux(opened.streams[index]) if packet.size]


def test_the_end_alone_begins_at_0(tmp_path: Path) -> None:
    source = recorded(tmp_path / "in.ts", 10)
    result = copy(source, tmp_path / "out.mp4", TimeRange(None, Fraction(1)))
    assert times(result)[0] < 0.1
    assert packets(result, "audio")[0][0] < 0.05
    assert len(times(result)) == 10


def test_pictures_without_stamps_are_not_late(tmp_path: Path) -> None:
    """AVI knows only when pictures are decoded."""
    source = make_video(
        tmp_path / "in.avi",
        pictures=[picture(9 * n) for n in range(24)],
        time_base=Fraction(1, 10),
        options={"crf": "4", "bf": "2", "g": "12", "b-pyramid": "none"},
    )
    with av.open(str(source)) as opened:
        assert opened.streams.video[0].codec_context.has_b_frames
    assert times(copy(source, tmp_path / "out.mp4")) == [Fraction(n, 10) for n in range(24)]


def test_chapters_go_with_the_film(tmp_path: Path) -> None:
    marks = [
        {
            "id": n,
            "start": 5000 + 500 * n,
            "end": 5500 + 500 * n,
            "time_base": Fraction(1, 1000),
            "metadata": {},
        }
        for n in range(2)
    ]
    pts = [5000 + 100 * n for n in range(10)]
    source = make_video(tmp_path / "in.mkv", frames=10, pts=pts, time_base=Fraction(1, 1000), chapters=marks)
    with av.open(str(copy(source, tmp_path / "out.mkv"))) as result:
        found = [(c["start"] * c["time_base"], c["end"] * c["time_base"]) for c in result.chapters()]
    assert found == [(0, Fraction(1, 2)), (Fraction(1, 2), 1)]


def cut_without_encoding(source: Path, target: Path, start: Fraction) -> Path:
    """What editors call a lossless cut: all packets are there, an edit list says where to begin."""
    with (
        av.open(str(source)) as film,
        av.open(str(target), "w", container_options={"use_editlist": "1"}) as output,
    ):
        copies = {s.index: output.add_stream_from_template(s, opaque=True) for s in film.streams}
        for packet in film.demux():
            if packet.size:
                shift = round(start / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = copies[packet.stream.index]
                output.mux(packet)
    return target


@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
def test_what_an_edit_list_cuts_away_stays_away_and_is_no_damage(tmp_path: Path, ending: str) -> None:
    whole = make_video(tmp_path / "whole.mp4", frames=40, sounds=1, options={"g": "100"})
    source = cut_without_encoding(whole, tmp_path / "in.mp4", Fraction(1))
    with av.open(str(source)) as opened:
        shown = sum(1 for _ in opened.decode(video=0))
        heard = sum(frame.samples for frame in av.open(str(source)).decode(audio=0))
    assert shown == 30
    result = copy(source, tmp_path / f"out{ending}")  # no warning
    assert len(times(result)) == 30
    assert times(result)[0] < 0.05  # in Matroska what the decoder of sound needs to begin is heard
    with av.open(str(result)) as opened:
        assert abs(sum(frame.samples for frame in opened.decode(audio=0)) - heard) <= 2048


def without_damage(path: Path) -> int:
    with VideoReader(path) as reader:
        return len(list(reader.frames()))


def test_frames_dropped_while_recording_are_no_damage(tmp_path: Path) -> None:
    kept = [n for n in range(40) if n not in (3, 7, 12, 13, 18, 30)]
    options: dict[str, Any] = {"codec": "mjpeg", "pix_fmt": "yuvj420p", "options": {}}
    for ending in (".avi", ".mkv", ".mov"):
        path = make_video(
            tmp_path / f"in{ending}", frames=len(kept), pts=kept, time_base=Fraction(1, 10), **options
        )
        assert without_damage(path) == len(kept), ending


def test_sound_that_is_longer_than_the_pictures_is_no_damage(tmp_path: Path) -> None:
    options: dict[str, Callable[..., Any] | Any] = {"codec": "flv1", "options": {}}
    for ending in (".flv", ".mkv", ".mp4"):
        codec = options if ending == ".flv" else {}
        path = make_video(
            tmp_path / f"in{ending}", frames=20, pts=[30 * n for n in range(20)], sounds=1, **codec
        )
        with av.open(str(path)) as opened:
            assert opened.duration > 1_900_000
        assert without_damage(path) == 20, ending
