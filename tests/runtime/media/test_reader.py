"""Videos go in and come out whole: every frame, its time, its colours, and everything beside the pictures."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import warnings
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from tests.runtime.clips import SECOND, color_tags, make_video, packets, picture, pixels_of, psnr, times
from v2v.runtime.media import streams
from v2v.runtime.media.clock import FilmClock
from v2v.runtime.media.errors import MediaWarning
from v2v.runtime.media.reader import VideoReader
from v2v.runtime.media.writer import VideoWriter


def read(path: Path, **options: bool) -> list[np.ndarray]:
    """Every picture as bytes."""
    with VideoReader(path, **options) as source:
        return [frame if frame.dtype == np.uint8 else np.rint(frame / 257) for frame in source.frames()]


def copy(
    source: Path, target: Path, *, parity: bool = False, note: str = "", overwrite: bool = False
) -> Path:
    """Read and write without enhancing."""
    with (
        VideoReader(source, parity=parity) as reader,
        VideoWriter(target, reader, parity=parity, note=note, overwrite=overwrite) as writer,
    ):
        for frame in reader.frames():
            writer.write(frame)
    return target


@pytest.fixture(autouse=True)
def _no_unexpected_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error", MediaWarning)
        yield


# Pictures and time ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".mov"])
def test_every_frame_comes_out_at_its_time_and_looks_the_same(tmp_path: Path, ending: str) -> None:
    source = make_video(tmp_path / f"in{ending}", frames=30)
    result = copy(source, tmp_path / f"out{ending}")
    assert times(result) == times(source)
    for before, after in zip(pixels_of(source), pixels_of(result), strict=True):
        assert psnr(before, after) > 38


@settings(max_examples=25, deadline=None)
@example(start=0, steps=[2001, 4000, 4000], ending=".mp4")  # pictures are reordered over ten seconds
@given(
    start=st.integers(0, 5000),
    steps=st.lists(st.integers(1, 4000), min_size=1, max_size=40),
    ending=st.sampled_from([".mp4", ".mov"]),
)
def test_time_stamps_of_variable_frame_rate_are_kept_exactly(
    tmp_path_factory: pytest.TempPathFactory, start: int, steps: list[int], ending: str
) -> None:
    folder = tmp_path_factory.mktemp("vfr")
    pts = [start, *(start + int(total) for total in np.cumsum(steps))]
    pictures = [picture(n, 32, 32) for n in range(len(pts))]
    source = make_video(folder / "in.mkv", pictures=pictures, pts=pts, time_base=Fraction(1, 1000))
    assert times(source) == [Fraction(p, 1000) for p in pts]
    film = [Fraction(p - start, 1000) for p in pts]  # which begins at 0, as players show it
    assert times(copy(source, folder / f"out{ending}")) == film
    assert times(copy(source, folder / "out.mkv")) == film


def test_the_last_frame_is_shown_as_long_as_before(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4", frames=4)
    result = copy(source, tmp_path / "out.mp4")
    with av.open(str(source)) as before, av.open(str(result)) as after:
        assert before.streams.video[0].duration * before.streams.video[0].time_base == (
            after.streams.video[0].duration * after.streams.video[0].time_base
        )


def test_one_frame_is_a_video(tmp_path: Path) -> None:
    result = copy(make_video(tmp_path / "in.mp4", frames=1), tmp_path / "out.mp4")
    assert times(result) == [0]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", sounds=1)
    for ending in (".mp4", ".mkv"):
        first, second = (copy(source, tmp_path / f"{name}{ending}") for name in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()


# Colours --------------------------------------------------------------------------------------------------------

FLAT = np.full((48, 64, 3), (200, 60, 30), np.uint8)


@pytest.mark.parametrize(
    ("tags", "pix_fmt"),
    [
        ({"colorspace": 1, "color_primaries": 1, "color_trc": 1, "color_range": 1}, "yuv420p"),
        ({"colorspace": 6, "color_primaries": 6, "color_trc": 6, "color_range": 1}, "yuv420p"),
        ({"colorspace": 1, "color_primaries": 1, "color_trc": 1, "color_range": 2}, "yuv420p"),
        ({"colorspace": 9, "color_primaries": 9, "color_trc": 16, "color_range": 1}, "yuv420p10le"),
    ],
    ids=["bt709", "bt601", "full-range", "bt2020-pq-10-bit"],
)
def test_color_tags_are_obeyed_and_kept(tmp_path: Path, tags: dict[str, int], pix_fmt: str) -> None:
    source = make_video(tmp_path / "in.mp4", pictures=[FLAT] * 3, colors=tags, pix_fmt=pix_fmt)
    assert np.abs(read(source)[1].astype(int) - FLAT).max() <= 2
    result = copy(source, tmp_path / "out.mp4")
    assert color_tags(result) == color_tags(source)
    assert np.abs(read(result)[1].astype(int) - FLAT).max() <= 3
    with av.open(str(source)) as before, av.open(str(result)) as after:
        assert before.streams.video[0].pix_fmt == after.streams.video[0].pix_fmt


def test_an_untagged_video_is_read_as_players_do_and_says_so_afterwards(tmp_path: Path) -> None:
    small = make_video(tmp_path / "small.mp4", pictures=[FLAT] * 2)  # written as BT.601
    assert np.abs(read(small)[0].astype(int) - FLAT).max() <= 2
    assert color_tags(copy(small, tmp_path / "out.mp4")) == (2, 2, 6, 1)

    large = np.broadcast_to(FLAT[:1, :1], (720, 1280, 3))
    hd = make_video(tmp_path / "hd.mkv", pictures=[large], colors={"colorspace": 1}, codec="ffv1", options={})
    with VideoReader(hd) as reader:
        assert reader.info.colors.matrix == 1


def test_in_parity_mode_everything_is_bt601_and_untagged_at_8_frames_a_second(tmp_path: Path) -> None:
    tags = {"colorspace": 1, "color_primaries": 1, "color_trc": 1}
    source = make_video(tmp_path / "in.mp4", pictures=[FLAT] * 5, colors=tags, sounds=1)
    kr, kb = 0.2126, 0.0722
    r, g, b = FLAT[0, 0] / 255
    y = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - y) / (2 - 2 * kb), (r - y) / (2 - 2 * kr)
    as_601 = np.array([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb]) * 255
    assert np.abs(read(source, parity=True)[2] - np.clip(as_601, 0, 255)).max() <= 3

    result = copy(source, tmp_path / "out.mp4", parity=True)
    assert times(result) == [Fraction(n, 8) for n in range(5)]
    assert color_tags(result) == (2, 2, 2, 0)
    with av.open(str(result)) as opened:
        assert [stream.type for stream in opened.streams] == ["video"]


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "ending"),
    [
        ("libx264", "yuv420p10le", ".mp4"),
        ("libx264", "yuv444p", ".mp4"),
        ("ffv1", "gray", ".mkv"),
        ("ffv1", "gray16le", ".mkv"),
        ("ffv1", "gbrp10le", ".mkv"),
        ("png", "rgb24", ".mov"),
        ("prores_ks", "yuv422p10le", ".mov"),
    ],
)
def test_unusual_pixel_formats_are_read(tmp_path: Path, codec: str, pix_fmt: str, ending: str) -> None:
    shown = picture(0)
    if pix_fmt.startswith("gray"):
        shown = np.repeat(shown[..., :1], 3, axis=2)
    source = make_video(tmp_path / f"in{ending}", pictures=[shown], codec=codec, pix_fmt=pix_fmt)
    assert psnr(read(source)[0], shown) > 36
    told = pytest.warns(MediaWarning, match="has 16 bits a colour, codec h264 10")
    with told if "16" in pix_fmt else contextlib.nullcontext():
        result = copy(source, tmp_path / "out.mp4")
    assert psnr(read(result)[0], shown) > 34


@pytest.mark.parametrize(
    "made",
    [
        {"codec": "ffv1", "pix_fmt": "gray", "options": {}},
        {"colors": {"color_range": 2}},
    ],
    ids=["grey", "yuvj420p"],
)
def test_in_parity_mode_formats_of_full_range_stay_so(tmp_path: Path, made: dict) -> None:
    shown = np.repeat(picture(0)[..., :1], 3, axis=2)
    source = make_video(tmp_path / "in.mkv", pictures=[shown], **made)
    assert psnr(read(source, parity=True)[0], shown) > 36


def test_limited_range_grey_is_stretched(tmp_path: Path) -> None:
    grey = np.repeat(np.linspace(16, 235, 64).astype(np.uint8)[None], 48, axis=0)
    frame = av.VideoFrame.from_ndarray(grey, format="gray")
    path = tmp_path / "in.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "gray"
        stream.codec_context.color_range = frame.color_range = 1
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    shown = read(path)[0]
    assert (shown.min(), shown.max()) == (0, 255)


def test_transparency_is_shown_on_black_and_told(tmp_path: Path) -> None:
    path = tmp_path / "in.mov"
    pixels = np.dstack([picture(0), np.full((48, 64), 255, np.uint8)])
    pixels[:, :32, 3] = 0
    with av.open(str(path), "w") as output:
        stream = output.add_stream("png", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgba"
        output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgba")))
        output.mux(stream.encode(None))
    with pytest.warns(MediaWarning, match="transparency"):
        shown = read(path)[0]
    assert shown[:, :32].max() == 0
    assert np.array_equal(shown[:, 32:], picture(0)[:, 32:])


def test_transparency_beside_the_pictures_is_told(tmp_path: Path) -> None:
    path = tmp_path / "in.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libvpx-vp9", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuva420p"
        stream.metadata["alpha_mode"] = "1"
        output.mux(
            stream.encode(av.VideoFrame.from_ndarray(picture(0), format="rgb24").reformat(format="yuva420p"))
        )
        output.mux(stream.encode(None))
    with pytest.warns(MediaWarning, match="transparency cannot be kept; what it hides is shown"):
        shown = read(path)[0]
    assert psnr(shown, picture(0)) > 30


# Shape ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize(("exif", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_photographs_are_shown_upright(tmp_path: Path, ending: str, exif: int, turns: int) -> None:
    tags = Image.Exif()
    tags[0x112] = exif
    shown = picture(0)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(shown).save(tmp_path / f"1{ending}", exif=tags, icc_profile=profile)
    with VideoReader(tmp_path) as reader:
        (frame,) = reader.frames()
    turned = np.rot90(shown, turns)
    assert frame.shape == turned.shape
    assert psnr(frame, turned) > 30


@pytest.mark.parametrize(("rotation", "turns"), [(90, 1), (180, 2), (-90, 3)])
def test_a_rotated_video_is_shown_upright(tmp_path: Path, rotation: int, turns: int) -> None:
    source = make_video(tmp_path / "in.mp4", rotation=rotation, aspect=Fraction(4, 3))
    upright = np.rot90(picture(0), turns)
    with VideoReader(source) as reader:
        assert psnr(next(reader.frames()), upright) > 36
        assert (reader.info.height, reader.info.width) == upright.shape[:2]
    result = copy(source, tmp_path / "out.mp4")
    assert psnr(pixels_of(result)[0], upright) > 34
    with av.open(str(result)) as opened:
        frame = next(opened.decode(video=0))
        assert frame.rotation == 0
        expected = Fraction(3, 4) if turns % 2 else Fraction(4, 3)
        assert opened.streams.video[0].sample_aspect_ratio == expected


def test_odd_sizes_are_read(tmp_path: Path) -> None:
    shown = picture(0, 65, 49)
    source = make_video(tmp_path / "in.mkv", pictures=[shown], codec="ffv1", pix_fmt="yuv444p", options={})
    assert psnr(read(source)[0], shown) > 36


def test_a_change_of_size_in_the_middle_keeps_the_first_size(tmp_path: Path) -> None:
    """A recorded call, say: pictures of the new size are scaled to that of the first one."""
    parts = [make_video(tmp_path / f"{w}.ts", size=(w, h), frames=6) for w, h in ((64, 48), (96, 64))]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    shapes = {frame.shape for frame in read(joined)}
    assert shapes == {(48, 64, 3)}


# Everything else ------------------------------------------------------------------------------------------------


def test_sound_is_copied_packet_for_packet(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4", frames=30, sounds=2)
    for ending in (".mp4", ".mov"):
        result = copy(source, tmp_path / f"out{ending}")
        for track in range(2):
            assert packets(result, "audio", track) == packets(source, "audio", track)
            assert packets(result, "audio", track)
    result = copy(source, tmp_path / "out.mkv")
    digests = [digest for _, digest in packets(source, "audio")]
    assert [digest for _, digest in packets(result, "audio")] == digests


def test_sound_and_pictures_are_interleaved(tmp_path: Path) -> None:
    """A player that reads from the start meets the sound of each second near its pictures."""
    source = make_video(tmp_path / "in.mp4", frames=100, sounds=1)
    result = copy(source, tmp_path / "out.mkv")
    with av.open(str(result)) as opened:
        order = [(p.stream.type, p.pts * p.time_base) for p in opened.demux() if p.size]
    latest = {"video": Fraction(0), "audio": Fraction(0)}
    for kind, when in order:
        latest[kind] = when
        assert abs(latest["video"] - latest["audio"]) < 1


def test_titles_languages_and_chapters_are_kept(tmp_path: Path) -> None:
    chapters = [
        {
            "id": n,
            "start": 500 * n,
            "end": 500 * (n + 1),
            "time_base": Fraction(1, 1000),
            "metadata": {"title": f"Part {n}"},
        }
        for n in range(2)
    ]
    tags = {"title": "A film", "comment": "mine"}
    source = make_video(tmp_path / "in.mkv", sounds=1, metadata=tags, chapters=chapters)
    for ending in (".mp4", ".mkv"):
        result = copy(source, tmp_path / f"out{ending}", note="settings")
        with av.open(str(result)) as opened:
            found = {key.lower(): value for key, value in opened.metadata.items()}
            assert found["title"] == "A film"
            assert found["comment"] == "mine"
            assert found["description"] == "settings"
            assert [c["metadata"]["title"] for c in opened.chapters()] == ["Part 0", "Part 1"]


def with_subtitles(folder: Path) -> Path:
    """A Matroska file with pictures, sound, subtitles and an attachment."""
    text = folder / "text.srt"
    text.write_text("1\n00:00:00,100 --> 00:00:00,900\nHello\n\n2\n00:00:01,000 --> 00:00:01,100\nBye\n\n")
    plain = make_video(folder / "plain.mkv", sounds=1)
    path = folder / "in.mkv"
    with av.open(str(plain)) as film, av.open(str(text)) as words, av.open(str(path), "w") as output:
        copies = {s: output.add_stream_from_template(s) for s in (*film.streams, *words.streams)}
        copies[words.streams[0]].metadata["language"] = "ger"
        output.add_attachment("font.ttf", "font/ttf", b"not really a font")
        for source in (words, film):
            for packet in source.demux():
                if packet.size:
                    packet.stream = copies[packet.stream]
                    output.mux(packet)
    return path


def test_subtitles_and_attachments_are_copied(tmp_path: Path) -> None:
    source = with_subtitles(tmp_path)
    result = copy(source, tmp_path / "out.mkv")
    assert packets(result, "subtitle") == packets(source, "subtitle")
    with av.open(str(result)) as opened:
        kinds = [stream.type for stream in opened.streams]
        assert sorted(kinds) == ["attachment", "audio", "subtitle", "video"]
        assert next(s for s in opened.streams if s.type == "attachment").data == b"not really a font"
        assert next(s for s in opened.streams if s.type == "subtitle").language == "ger"


def test_a_recording_whose_sound_begins_in_the_middle_is_read_to_its_end(tmp_path: Path) -> None:
    """FFmpeg looks at 5 MB and at the end before it opens a file: such sound appears while it is read."""
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (288, 352, 3), np.uint8) for _ in range(40)]
    size, options = (352, 288), {"crf": "1", "preset": "ultrafast", "g": "1"}
    mute = make_video(tmp_path / "mute.ts", pictures=noise, size=size, options=options).read_bytes()
    loud = make_video(tmp_path / "loud.ts", pictures=noise[:4], size=size, sounds=1).read_bytes()
    assert len(mute) > 5_000_000
    recording = tmp_path / "recording.ts"
    recording.write_bytes(mute + loud + mute)
    with av.open(str(recording)) as opened:
        assert len(opened.streams) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        copied = copy(recording, tmp_path / "out.mkv")
    assert len(read(copied)) == 40 + 4 + 40


def test_streams_that_appear_in_the_middle_are_told_where_they_are_seen() -> None:
    class Container:
        def demux(self, streams):
            yield from "abc"
            raise IndexError("list index out of range")

    told = []
    assert list(streams.packets(Container(), None, lambda: told.append("once"))) == ["a", "b", "c"]
    assert told == ["once"]
    assert list(streams.packets(Container(), None)) == ["a", "b", "c"]


class Damaged:
    """A container that fails to read after each of ``pieces``, and ever after."""

    def __init__(self, pieces: list[list[Any]]) -> None:
        self.streams, self.pieces = [], pieces

    def demux(self, streams: Any) -> Any:
        yield from self.pieces.pop(0) if self.pieces else ()
        raise av.error.InvalidDataError(1094995529, "Invalid data found")


def test_reading_goes_on_behind_damage_and_ends_where_nothing_more_can_be_read() -> None:
    pictures = SimpleNamespace(index=0, type="video", disposition=av.stream.Disposition(0))

    def packet(n: int) -> Any:
        return SimpleNamespace(stream=pictures, pts=n, dts=n, duration=1, size=1, time_base=Fraction(1, 25))

    damages: list[None] = []
    container: Any = Damaged([[packet(2 * n), packet(2 * n + 1)] for n in range(300)])
    clock = FilmClock(Fraction(0), jumps=False)
    found = streams.all_packets(container, clock, lambda: damages.append(None))
    assert [each.pts for each in found] == [*range(600)]
    assert 300 < len(damages) <= 400


def test_a_stream_that_the_container_cannot_hold_is_named(tmp_path: Path) -> None:
    source = with_subtitles(tmp_path)
    with pytest.warns(MediaWarning) as told:
        result = copy(source, tmp_path / "out.mp4")
    messages = " ".join(str(warning.message) for warning in told)
    assert "subtitle srt ger" in messages
    assert "attachment" in messages
    assert ".mkv" in messages
    assert packets(result, "audio") == packets(source, "audio")


def test_a_cover_picture_is_not_the_film(tmp_path: Path) -> None:
    plain = make_video(tmp_path / "plain.mp4")
    still = make_video(tmp_path / "still.mov", codec="png", pix_fmt="rgb24", frames=1, size=(16, 16))
    source = tmp_path / "in.mp4"
    with av.open(str(still)) as cover, av.open(str(plain)) as film, av.open(str(source), "w") as output:
        copies = {
            s: output.add_stream_from_template(s, opaque=True) for s in (cover.streams[0], film.streams[0])
        }
        copies[cover.streams[0]].disposition = 1024  # attached picture
        for opened in (cover, film):
            for packet in opened.demux():
                if packet.size:
                    packet.stream = copies[packet.stream]
                    output.mux(packet)
    with VideoReader(source) as reader:
        assert (reader.info.width, reader.info.height) == (64, 48)
    result = copy(source, tmp_path / "out.mp4")
    assert packets(result, "video", 1)[0][1] == packets(still, "video")[0][1]


def test_time_base_of_the_test_clips_is_exact() -> None:
    assert Fraction(1, 10) % SECOND == 0


def test_a_decoder_whose_threads_are_at_work_is_closed(tmp_path: Path) -> None:
    """PyAV frees a decoder under Python's lock, and the decoder's threads may want it then."""
    film = make_video(
        tmp_path / "film.mp4", frames=30, codec="libx265", options={"x265-params": "log-level=none"}
    )
    with av.open(str(film)) as opened:
        places = [packet.pos for packet in opened.demux(video=0) if packet.size]
    content = bytearray(film.read_bytes())
    for place in places:
        content[place : place + 2] = b"\xff\xff"  # the length of what follows
    film.write_bytes(content)
    script = f"""
from pathlib import Path
from v2v.runtime.media.errors import MediaError
from v2v.runtime.media.reader import VideoReader
for _ in range(20):
    try:
        VideoReader(Path({str(film)!r}))
    except MediaError as error:
        assert "damaged" in str(error)
    else:
        raise AssertionError
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
