"""What becomes of sound, subtitles and data: decided by trial, told at the start, and never at the film's cost."""

from __future__ import annotations

import errno
import io
import itertools
import json
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from tests.runtime.clips import make_video, packets, pixels_of, times
from tests.stand_ins.command import Run
from v2v.runtime.media import stream_plan
from v2v.runtime.media.copier import StreamCopier
from v2v.runtime.media.encoding import EncodedSegment, SegmentEncoder
from v2v.runtime.media.errors import MediaError, MediaWarning
from v2v.runtime.media.reader import VideoReader
from v2v.runtime.media.stream_plan import Fate, StreamPlan, declare, plan_streams
from v2v.runtime.media.timecode import has_track, later
from v2v.runtime.media.writer import VideoWriter, encoding_for, writing

AV = tuple(int(part) for part in av.__version__.split(".")[:2])
TEN = {"time_base": Fraction(1, 10), "pts": range(10), "frames": 10}


def film(source: Path, target: Path, **options: Any) -> list[str]:
    """Join segments into a film, as a run does; returns what was told."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", MediaWarning)
        with VideoReader(source) as reader:
            encoding = options.pop("encoding", None) or encoding_for(reader.info)
            part = target.with_suffix(".part")
            with VideoWriter(target, reader, encoding=encoding, **options) as writer:
                with part.open("wb") as file, SegmentEncoder(file, encoding) as encoder:
                    for frame in reader.frames():
                        encoder.write(frame)
                writer.join([EncodedSegment(part, encoder.order)], list(reader.timestamps))
    return [str(warning.message) for warning in told if issubclass(warning.category, MediaWarning)]


def heard(path: Path) -> np.ndarray:
    """The sound of a file, as a player decodes it, at 8 kHz."""
    resampler = av.AudioResampler("flt", "mono", 8000)
    with av.open(str(path)) as opened:
        frames = [made for frame in opened.decode(audio=0) for made in resampler.resample(frame)]
        frames += resampler.resample(None)
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])


def content(path: Path) -> bytes:
    with av.open(str(path)) as opened:
        return b"".join(bytes(packet) for packet in opened.demux(audio=0))


def codecs(path: Path) -> dict[str, str]:
    with av.open(str(path)) as opened:
        return {stream.type: stream.codec_context.codec.canonical_name for stream in opened.streams}


# Sound ----------------------------------------------------------------------------------------------------------

CONTAINERS = {
    "wmav2": ".wmv",
    "adpcm_ima_wav": ".avi",
    "adpcm_ms": ".avi",
    "pcm_mulaw": ".avi",
    "pcm_s16le": ".avi",
}
CONTAINERS |= {
    "pcm_s24le": ".mkv",
    "nellymoser": ".flv",
    "wavpack": ".mkv",
    "libopus": ".mkv",
    "flac": ".mkv",
}
CONTAINERS |= {"mp2": ".ts", "ac3": ".ts", "libmp3lame": ".avi", "alac": ".mov", "pcm_s16be": ".mov"}


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("sound", CONTAINERS)
def test_sound_is_kept_or_converted_and_heard_at_its_time(tmp_path: Path, sound: str, ending: str) -> None:
    rate = {"nellymoser": 22050, "adpcm_ima_wav": 22050}.get(sound, 44100 if sound == "wmav2" else 48000)
    video = {".flv": "flv1", ".wmv": "wmv2"}.get(CONTAINERS[sound], "mpeg4")
    source = make_video(
        tmp_path / f"in{CONTAINERS[sound]}",
        codec=video,
        options={},
        sounds=1,
        sound=sound,
        sound_rate=rate,
        **TEN,
    )
    result = tmp_path / f"out{ending}"
    told = film(source, result)
    before, after = heard(source), heard(result)
    assert abs(len(before) - len(after)) <= 8000 * 0.06
    length = min(len(before), len(after))
    assert np.abs(np.fft.rfft(before[:length])).argmax() == pytest.approx(
        np.abs(np.fft.rfft(after[:length])).argmax(), abs=2
    )
    kept = {codecs(source)["audio"], codecs(result)["audio"]} in ({codecs(source)["audio"]}, {"mp2", "mp3"})
    if kept:
        assert content(source) == content(result)
        assert told == []
    else:
        assert codecs(result)["audio"] in ("aac", "opus", "flac")
        assert len(told) == 1
        assert "converted to" in told[0]
    wanted = {"wmav2": ".mkv", "adpcm_ima_wav": ".mkv", "adpcm_ms": ".mkv", "pcm_mulaw": ".mkv .mov"}
    if sound in wanted and AV >= (18, 1):  # before it, PyAV asks too narrowly, and conversion is the way
        assert kept == (ending in wanted[sound])
    if sound.startswith("pcm_s"):
        assert kept == (ending != ".mp4")


def test_sound_keeps_its_delay_when_it_is_converted(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", sounds=1, sound="pcm_s16le", sound_start=24_000, **TEN)
    for ending in (".mp4", ".mkv"):
        film(source, tmp_path / f"out{ending}")
        (first, _), *_ = packets(tmp_path / f"out{ending}", "audio")
        assert float(first) == pytest.approx(0.5, abs=0.03)


def test_purists_convert_nothing(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.avi", codec="mpeg4", options={}, sounds=1, sound="adpcm_ms", **TEN)
    plan = plan_streams(source, 0, tmp_path / "out.mp4", convert=False)
    (fate,) = plan.fates
    assert fate.action == "leave out"
    assert fate.keeper == (".mkv" if AV >= (18, 1) else None)
    assert "adpcm_ms" in fate.reason


def remuxed(source: Path, target: Path, change: Callable[[Any, dict[Any, Any]], None]) -> Path:
    """``source`` packet by packet; ``change`` is given its streams and those that become of them."""
    with av.open(str(source)) as opened, av.open(str(target), "w") as output:
        copies: Any = {
            stream: output.add_stream_from_template(stream, opaque=True) for stream in opened.streams
        }
        change(opened.streams, copies)
        for packet in opened.demux():
            if packet.size:
                packet.stream = copies[packet.stream]
                output.mux(packet)
    return target


def spoiled(source: Path, target: Path, packets_of_sound: int) -> Path:
    """``source`` with the first packets of its sound zeroed, but for what Matroska makes up of their heads."""
    content = bytearray(source.read_bytes())
    with av.open(str(source)) as opened:
        packets = [bytes(packet)[40:] for packet in opened.demux(audio=0) if packet.size]
    for packet in packets[:packets_of_sound]:
        place = content.index(packet)
        content[place : place + len(packet)] = bytes(len(packet))
    target.write_bytes(content)
    return target


def test_some_damage_keeps_no_sound_from_being_converted_and_nothing_else_does(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "in.mkv", sounds=1, sound="wavpack", frames=30)  # three packets
    (fate,) = plan_streams(spoiled(whole, tmp_path / "part.mkv", 1), 0, tmp_path / "out.mp4").fates
    assert (fate.action, fate.codec, fate.keeper) == ("convert", "aac", ".mkv")
    (fate,) = plan_streams(spoiled(whole, tmp_path / "all.mkv", 1000), 0, tmp_path / "out.mp4").fates
    assert fate.action == "leave out"
    assert "it cannot be converted" in fate.reason
    assert fate.keeper == ".mkv"


def test_sound_is_kept_beside_sound_that_becomes_the_same(tmp_path: Path) -> None:
    films = [
        make_video(tmp_path / f"{sound}.mkv", sounds=1, sound=sound, **TEN) for sound in ("aac", "wavpack")
    ]
    source = tmp_path / "in.mkv"
    with av.open(str(films[0])) as kept, av.open(str(films[1])) as other, av.open(str(source), "w") as output:
        chosen = [*kept.streams, other.streams.audio[0]]
        copies: Any = {stream: output.add_stream_from_template(stream, opaque=True) for stream in chosen}
        for packet in (*kept.demux(), *other.demux(audio=0)):
            if packet.size:
                packet.stream = copies[packet.stream]
                output.mux(packet)
    fates = plan_streams(source, 0, tmp_path / "out.mp4").fates
    assert [(fate.action, fate.codec) for fate in fates] == [("copy", ""), ("convert", "aac")]


def test_sound_that_says_a_time_code_is_still_sound(tmp_path: Path) -> None:
    def tag(streams: Any, copies: dict[Any, Any]) -> None:
        copies[streams.audio[0]].metadata["timecode"] = "10:11:12:13"

    source = remuxed(make_video(tmp_path / "plain.mkv", sounds=1), tmp_path / "in.mkv", tag)
    (fate,) = plan_streams(source, 0, tmp_path / "out.mkv").fates
    assert (fate.action, fate.description) == ("copy", "audio aac")


@pytest.mark.parametrize(("sound", "whole"), [("aac", True), ("wavpack", False)])
def test_statistics_stay_with_the_packets_that_they_are_of(tmp_path: Path, sound: str, whole: bool) -> None:
    def tag(streams: Any, copies: dict[Any, Any]) -> None:
        copies[streams.audio[0]].metadata.update({"title": "Commentary", "NUMBER_OF_FRAMES": "12345"})

    ending = ".mkv" if whole else ".mp4"
    plain = make_video(tmp_path / "plain.mkv", sounds=1, sound=sound, **TEN)
    source = remuxed(plain, tmp_path / "in.mkv", tag)
    (fate,) = plan_streams(source, 0, tmp_path / f"out{ending}").fates
    with av.open(str(source)) as opened, av.open(str(tmp_path / f"out{ending}"), "w") as output:
        track, converter = declare(fate, opened.streams.audio[0], output)
        assert (converter is None) == whole
        assert track.metadata["title"] == "Commentary"
        assert ("NUMBER_OF_FRAMES" in track.metadata) == whole


def test_streams_are_called_by_kind_codec_and_language(tmp_path: Path) -> None:
    def speak(streams: Any, copies: dict[Any, Any]) -> None:
        for stream, language in zip(streams.audio, ("ger", "und", ""), strict=True):
            copies[stream].metadata["language"] = language

    source = remuxed(make_video(tmp_path / "plain.mkv", sounds=3), tmp_path / "in.mkv", speak)
    fates = plan_streams(source, 0, tmp_path / "out.mkv").fates
    assert [fate.description for fate in fates] == ["audio aac ger", "audio aac", "audio aac"]


# Subtitles ------------------------------------------------------------------------------------------------------

LINES = [(100, 300, "Hello"), (300, 700, "wide\nworld"), (800, 950, "Bye")]


def with_subtitles(path: Path, codec: str) -> Path:
    """A film with text of a format: made of SRT, as FFmpeg converts it."""
    plain = make_video(path.with_name(f"plain{path.suffix}"), sounds=1, **TEN)
    with av.open(io.BytesIO(b"1\n00:00:00,100 --> 00:00:00,300\nHello\n\n"), format="srt") as srt:
        srt.streams.subtitles[0].codec_context.open(strict=False)
        header = srt.streams.subtitles[0].codec_context.subtitle_header
    with av.open(str(plain)) as opened, av.open(str(path), "w") as output:
        copies = {stream: output.add_stream_from_template(stream, opaque=True) for stream in opened.streams}
        text: Any = output.add_stream(codec)
        text.codec_context.subtitle_header = header
        text.codec_context.time_base = text.time_base = Fraction(1, 1000)
        text.metadata["language"] = "ger"
        output.start_encoding()
        for start, end, words in LINES:
            line = b"0,0,Default,,0,0,0,," + words.replace("\n", "\\N").encode()
            made = text.codec_context.encode_subtitle(
                av.subtitles.subtitle.SubtitleSet.create(line, 0, end - start, start)
            )
            made.stream, made.time_base = text, Fraction(1, 1000)
            output.mux(made)
        for packet in opened.demux():
            if packet.size:
                packet.stream = copies[packet.stream]
                output.mux(packet)
    return path


def read_text(path: Path) -> list[tuple[int, int, str]]:
    with av.open(str(path)) as opened:
        stream = opened.streams.subtitles[0]
        found = []
        for packet in opened.demux(stream):
            for subtitle in packet.decode() if packet.size else ():
                words = subtitle.dialogue.decode().replace("\\N", "\n").strip()
                tick = 1000 * packet.time_base
                if words:
                    found.append(
                        (round(packet.pts * tick), round((packet.pts + packet.duration) * tick), words)
                    )
        return found


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize(
    ("codec", "kind"), [("subrip", ".mkv"), ("ass", ".mkv"), ("webvtt", ".mkv"), ("mov_text", ".mp4")]
)
def test_text_is_kept_or_converted(tmp_path: Path, codec: str, kind: str, ending: str) -> None:
    source = with_subtitles(tmp_path / f"in{kind}", codec)
    assert read_text(source) == LINES
    told = film(source, tmp_path / f"out{ending}")
    begins = round(1000 * times(tmp_path / f"out{ending}")[0])  # later where sound comes with a lead-in
    assert [(a - begins, b - begins, words) for a, b, words in read_text(tmp_path / f"out{ending}")] == LINES
    kept = (ending == ".mkv") == (kind == ".mkv")
    assert codecs(tmp_path / f"out{ending}")["subtitle"] == (
        codecs(source)["subtitle"] if kept else "mov_text" if ending != ".mkv" else "subrip"
    )
    assert bool(told) != kept
    if told:  # by the first ending that keeps it
        assert f"{'.mp4' if kind == '.mp4' else '.mkv'} keeps it as it is" in told[0]
    with av.open(str(tmp_path / f"out{ending}")) as opened:
        assert opened.streams.subtitles[0].metadata["language"] == "ger"


@pytest.mark.skipif(AV < (18, 1), reason="PyAV cannot write such streams")
def test_what_nothing_encodes_is_copied_all_the_same(tmp_path: Path) -> None:
    """Subtitles of Blu-ray discs are pictures, for which FFmpeg has no encoder."""
    plain, source = make_video(tmp_path / "plain.mkv", **TEN), tmp_path / "in.mkv"
    shown = [bytes([0x80, 0, 1, number]) for number in range(3)]
    with av.open(str(plain)) as opened, av.open(str(source), "w") as output:
        pictures = output.add_stream_from_template(opened.streams.video[0], opaque=True)
        discs: Any = output.add_mux_stream("hdmv_pgs_subtitle")
        discs.time_base = Fraction(1, 1000)
        output.start_encoding()
        for number, content in enumerate(shown):
            packet = av.Packet(content)
            packet.stream, packet.time_base = discs, Fraction(1, 1000)
            packet.pts = packet.dts = 100 * number
            output.mux(packet)
        for packet in opened.demux():
            if packet.size:
                packet.stream = pictures
                output.mux(packet)
    assert film(source, tmp_path / "out.mkv") == []
    assert packets(tmp_path / "out.mkv", "subtitle") == packets(source, "subtitle")
    assert len(packets(source, "subtitle")) == 3
    (fate,) = plan_streams(source, 0, tmp_path / "out.mp4").fates
    assert (fate.action, fate.description, fate.keeper) == ("leave out", "subtitle pgssub", ".mkv")


# Time code ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "pictures", "rate", "expected"),
    [
        ("10:11:12:13", 12, Fraction(25), "10:11:13:00"),
        ("23:59:59:24", 1, Fraction(25), "00:00:00:00"),
        ("01:00:59;29", 1, Fraction(30000, 1001), "01:01:00;02"),
        ("01:09:59;29", 1, Fraction(30000, 1001), "01:10:00;00"),
        ("00:00:00;00", 17982, Fraction(30000, 1001), "00:10:00;00"),
        ("00:00:00:00", 1800, Fraction(30), "00:01:00:00"),
        ("00:00:59;59", 1, Fraction(60000, 1001), "00:01:00;04"),
    ],
)
def test_time_code_counts_as_its_clock_does(code: str, pictures: int, rate: Fraction, expected: str) -> None:
    assert later(code, pictures, rate) == expected


def with_timecode(path: Path) -> Path:
    """What a camera writes: pictures, sound and a track of time code."""
    with av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=25, width=80, height=48)
        video.codec_context.time_base = video.time_base = Fraction(1, 25)
        track = output.add_stream("aac", rate=48000, layout="mono")
        output.metadata["timecode"] = "10:11:12:13"
        for n in range(15):
            frame = av.VideoFrame(80, 48, "yuv420p")
            frame.pts, frame.time_base = n, Fraction(1, 25)
            output.mux(video.encode(frame))
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1920), np.float32), "fltp", "mono")
            sound.sample_rate, sound.pts, sound.time_base = 48000, 1920 * n, Fraction(1, 48000)
            output.mux(track.encode(sound))
        output.mux(video.encode(None))
        output.mux(track.encode(None))
    with av.open(str(path)) as made:
        assert [stream.type for stream in made.streams] == ["video", "audio", "data"]
    return path


def timecodes(path: Path) -> set[str]:
    with av.open(str(path)) as opened:
        tags = [opened.metadata, *(stream.metadata for stream in opened.streams)]
        return {value for tag in tags for name, value in tag.items() if name.lower() == "timecode"}


@pytest.mark.parametrize(
    ("ending", "codec"),
    [
        (".mov", "h264"),
        (".mp4", "h264"),
        (".mkv", "h264"),
        (".mov", "prores"),
        (".mp4", "av1"),
        (".mov", "hevc"),
    ],
)
def test_a_camera_film_keeps_its_time_code(tmp_path: Path, ending: str, codec: str) -> None:
    source = with_timecode(tmp_path / "in.mov")
    with VideoReader(source) as reader:
        encoding = encoding_for(reader.info, codec=codec)
    told = film(source, tmp_path / f"out{ending}", encoding=encoding)
    if ending != ".mkv" and not has_track("mov", "10:11:12:13", Fraction(25)):  # PyAV 17
        assert "its time code 10:11:12:13 has no place here" in told[0]
        return
    assert told == []
    assert timecodes(tmp_path / f"out{ending}") == {"10:11:12:13"}
    shown = times(tmp_path / f"out{ending}")
    assert [time - shown[0] for time in shown] == [Fraction(n, 25) for n in range(15)]


# Refusals -------------------------------------------------------------------------------------------------------


def test_a_stream_that_the_muxer_refuses_in_the_end_does_not_cost_the_film(tmp_path: Path) -> None:
    source = with_timecode(tmp_path / "in.mov")
    result = tmp_path / "out.mov"
    forced = StreamPlan(source, result, (Fate(1, "audio aac", "copy"), Fate(2, "data", "copy")))
    (told,) = (line for line in film(source, result, streams=forced) if "refuses" in line)
    assert "streams 2 (data)" in told
    assert "left out" in told
    assert len(pixels_of(result)) == 15
    assert packets(result, "audio") == packets(source, "audio")


def test_ffmpegs_own_reason_is_told_instead_of_free_space(tmp_path: Path) -> None:
    with pytest.raises(MediaError) as refused, writing(tmp_path / "out.mp4"):
        raise av.error.InvalidDataError(1094995529, "Invalid data found", "out.mp4", (16, "mp4", "too odd\n"))
    assert "too odd" in str(refused.value)
    assert "free space" not in str(refused.value)
    with (
        pytest.raises(MediaError, match=r"No space left on device; free space there"),
        writing(tmp_path / "out.mp4"),
    ):
        raise OSError(28, "No space left on device")


# Before the first picture ----------------------------------------------------------------------------------------


def test_the_table_is_told_at_the_start_and_in_json(run: Run, stand_in_engines: Path, tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.avi", codec="mpeg4", options={}, sounds=1, sound="adpcm_ms", **TEN)
    out = tmp_path / "out.mp4"
    command = (source, "-o", out, "--engines", stand_in_engines, "--scale", 1, "--steps", 1)
    done = run(*command, "--json")
    assert done.code == 0, done.err
    told = " ".join(json.loads(done.out)["warnings"])
    assert "stream  1 (audio adpcm_ms) converted to AAC" in told
    assert codecs(out)["audio"] == "aac"
    done = run(*command, "--overwrite", "--no-convert")
    assert done.code == 0, done.err
    assert "left out" in done.err
    assert "audio" not in codecs(out)


def test_the_table_names_every_stream_and_what_becomes_of_it() -> None:
    changed = (
        Fate(3, "subtitle hdmv_pgs", "leave out", reason="too odd", keeper=".mkv"),
        Fate(10, "audio flac ger", "convert", codec="aac", keeper=".mov", unsaid=("dubbed", "forced")),
    )
    whole = (
        Fate(0, "cover picture png", "attach"),
        Fate(1, "audio aac", "copy"),
        Fate(2, "data", "fold in"),
    )
    plan = StreamPlan(Path("films/in.mkv"), Path("out.mp4"), (*whole, *changed))
    with pytest.warns(MediaWarning) as told:
        plan.tell()
    assert str(told[0].message).splitlines() == [
        "in.mkv in out.mp4:",
        "stream  0 (cover picture png) kept",
        "stream  1 (audio aac)         kept",
        "stream  2 (data)              kept",
        "stream  3 (subtitle hdmv_pgs) left out: too odd; .mkv keeps it as it is",
        "stream 10 (audio flac ger)    converted to AAC, but not that it is dubbed and forced; "
        ".mov keeps it as it is",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        StreamPlan(plan.source, plan.target, whole).tell()
    assert [fate.index for fate in plan.kept()] == [0, 1, 10]
    assert [fate.index for fate in plan.without({1, 3}).fates] == [0, 2, 10]


@pytest.mark.parametrize(("size", "most"), [(1 << 20, 40), (10, 21_000)])
def test_only_the_beginning_of_a_file_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, most: int
) -> None:
    """A film of hours may have subtitles, the first of which comes late or never."""
    source = make_video(tmp_path / "in.mkv", sounds=1)
    seen = itertools.count()

    def endless(opened: Any, clock: Any) -> Any:
        pictures = SimpleNamespace(stream=opened.streams.video[0], size=size)
        return (pictures for _ in seen)

    monkeypatch.setattr(stream_plan, "all_packets", endless)
    (fate,) = plan_streams(source, 0, tmp_path / "out.mkv").fates
    assert fate.action == "copy"
    assert 20 < next(seen) < most


def test_no_more_is_looked_at_than_it_takes_to_try_every_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_video(tmp_path / "in.mkv", sounds=2, frames=60)
    seen: list[Any] = []
    read = stream_plan.all_packets

    def counted(opened: Any, clock: Any) -> Any:
        for packet in read(opened, clock):
            seen.append(packet.stream.index)
            yield packet

    monkeypatch.setattr(stream_plan, "all_packets", counted)
    plan_streams(source, 0, tmp_path / "out.mkv")
    assert min(seen.count(1), seen.count(2)) > 1
    assert len(seen) < 80  # of about 60 pictures and 600 packets of sound


class Disk:
    """A container whose packets after the first ``room`` find the disk full."""

    def __init__(self, container: Any, room: float = float("inf")) -> None:
        self._container, self._room, self.written = container, room, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def mux_one(self, packet: Any) -> None:
        if self.written >= self._room:
            raise av.FFmpegError(errno.ENOSPC, "No space left on device")
        self.written += 1
        self._container.mux_one(packet)


def copied(source: Path, target: Path, room: float = float("inf")) -> int:
    """Convert the sound of a film; how many packets that makes."""
    plan = plan_streams(source, 0, target)
    assert [fate.action for fate in plan.kept()] == ["convert"]
    with av.open(str(target), "w") as container:
        disk = Disk(container, room)
        output: Any = disk
        copier = StreamCopier(plan, output)
        copier.advance(None)
        copier.tell_losses()
    return disk.written


def test_a_disk_that_is_full_while_the_last_sound_is_encoded_is_no_lost_packet(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", sounds=1, sound="pcm_s16le")
    last = copied(source, tmp_path / "out.mp4") - 1
    with pytest.raises(av.FFmpegError, match="No space left"):
        copied(source, tmp_path / "full.mp4", last)
