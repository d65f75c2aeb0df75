"""What a file says beside its streams is kept: where and when it was shot, covers, roles, what of it is shown."""

from __future__ import annotations

import io
import struct
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.runtime.clips import color_tags, make_video, packets, picture, pixels_of, psnr
from tests.runtime.media.test_stream_plan import film, remuxed
from v2v.runtime.media import pixels
from v2v.runtime.media.encoding import Encoding, EncodingError, SegmentEncoder
from v2v.runtime.media.errors import MediaWarning
from v2v.runtime.media.immersive import saying
from v2v.runtime.media.pixels import Colors
from v2v.runtime.media.reader import VideoReader
from v2v.runtime.media.side_data import Crop
from v2v.runtime.media.writer import encoding_for

ENDINGS = [".mp4", ".mov", ".mkv"]

# Tags -----------------------------------------------------------------------------------------------------------

APPLE = {
    "com.apple.quicktime.make": "Apple",
    "com.apple.quicktime.location.ISO6709": "+48.1371+011.5754+500/",
    "com.apple.quicktime.creationdate": "2019-05-06T07:08:09+0200",
}
SHOT = {"creation_time": "2019-05-06T05:08:09.000000Z"}


@pytest.mark.parametrize("ending", ENDINGS)
def test_when_where_and_with_what_a_film_was_shot(tmp_path: Path, ending: str) -> None:
    options = {"movflags": "use_metadata_tags"}
    source = make_video(tmp_path / "in.mov", frames=3, metadata={**APPLE, **SHOT}, container_options=options)
    assert film(source, tmp_path / f"out{ending}", note="settings") == []
    with av.open(str(tmp_path / f"out{ending}")) as opened:
        found = {name.lower(): value for name, value in opened.metadata.items()}
    for name, value in APPLE.items():
        assert found[name.lower()] == value
    assert found["creation_time"].startswith("2019-05-06T05:08:09")
    assert found["comment"] == "settings"


def test_a_tag_without_a_place_is_told(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", frames=3, metadata={"TITLE": "A film", "MOOD": "fine"})
    (told,) = film(source, tmp_path / "out.mp4")
    assert "no place for the tags MOOD; .mkv keeps them" in told
    with av.open(str(tmp_path / "out.mp4")) as opened:
        assert opened.metadata["title"] == "A film"


# Covers and roles -----------------------------------------------------------------------------------------------


def with_cover(path: Path) -> bytes:
    """A film with a picture attached to it; returns the picture."""
    still = make_video(path.with_name("still.mov"), codec="png", pix_fmt="rgb24", frames=1, size=(16, 16))
    plain = make_video(path.with_name("plain.mp4"), frames=4, sounds=1)
    with av.open(str(still)) as opened:
        content = bytes(next(packet for packet in opened.demux() if packet.size))
    with av.open(str(plain)) as opened, av.open(str(path), "w") as output:
        copies: Any = {
            stream: output.add_stream_from_template(stream, opaque=True) for stream in opened.streams
        }
        if path.suffix == ".mkv":
            output.add_attachment("cover.png", "image/png", content)
        else:
            with av.open(str(still)) as picture_file:
                cover: Any = output.add_stream_from_template(picture_file.streams.video[0], opaque=True)
                cover.disposition = 1024
                for packet in picture_file.demux():
                    if packet.size:
                        packet.stream = cover
                        output.mux(packet)
        for packet in opened.demux():
            if packet.size:
                packet.stream = copies[packet.stream]
                output.mux(packet)
    return content


@pytest.mark.parametrize("kind", [".mp4", ".mkv"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_cover_stays_a_cover(tmp_path: Path, kind: str, ending: str) -> None:
    content = with_cover(tmp_path / f"in{kind}")
    told = film(tmp_path / f"in{kind}", tmp_path / f"out{ending}")
    with av.open(str(tmp_path / f"out{ending}")) as opened:
        videos = opened.streams.video
        covers = [stream for stream in videos if stream.disposition & type(stream.disposition).attached_pic]
        if ending == ".mov":  # QuickTime files have none
            assert len(videos) == 1
            assert "cover picture" in told[0]
            return
        assert told == []
        assert (len(videos), len(covers)) == (2, 1)
        (packet,) = (packet for packet in opened.demux(covers[0]) if packet.size)
        assert bytes(packet) == content


@pytest.mark.parametrize("ending", ENDINGS)
def test_whom_a_track_is_for_is_kept_or_told(tmp_path: Path, ending: str) -> None:
    def give_roles(streams: Any, copies: dict[Any, Any]) -> None:
        copies[streams.audio[1]].disposition = 0x80 | 0x40  # for those who hear badly, forced

    plain = make_video(tmp_path / "plain.mkv", frames=4, sounds=2)
    source = remuxed(plain, tmp_path / "in.mkv", give_roles)
    told = film(source, tmp_path / f"out{ending}")
    with av.open(str(tmp_path / f"out{ending}")) as opened:
        kept = int(opened.streams.audio[1].disposition) & 0xC0 == 0xC0
    assert kept == (ending != ".mov")
    assert bool(told) != kept
    if told:
        assert "kept, but not that it is for those who hear badly and forced" in told[0]


ROLES = {
    0x2: "dubbed",
    0x4: "the original",
    0x8: "a comment",
    0x40: "forced",
    0x80: "for those who hear badly",
    0x100: "for those who see badly",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_role_is_kept_or_told(tmp_path: Path, ending: str) -> None:
    def give_roles(streams: Any, copies: dict[Any, Any]) -> None:
        for stream, role in zip(streams.audio, ROLES, strict=True):
            copies[stream].disposition = role

    plain = make_video(tmp_path / "plain.mkv", frames=4, sounds=len(ROLES))
    source = remuxed(plain, tmp_path / "in.mkv", give_roles)
    told = " ".join(film(source, tmp_path / f"out{ending}")).splitlines()[1:]
    with av.open(str(tmp_path / f"out{ending}")) as opened:
        kept = [
            bool(int(stream.disposition) & role)
            for stream, role in zip(opened.streams.audio, ROLES, strict=True)
        ]
    assert told or all(kept)
    for row, role, stays in zip(told, ROLES.values(), kept, strict=False):
        assert row.endswith(" kept" if stays else f" kept, but not that it is {role}")


@pytest.mark.parametrize(
    ("codec", "name", "kind"), [("png", "cover.png", "image/png"), ("mjpeg", "cover.jpg", "image/jpeg")]
)
def test_a_cover_gets_the_name_that_players_look_for(
    tmp_path: Path, codec: str, name: str, kind: str
) -> None:
    pix_fmt = "rgb24" if codec == "png" else "yuvj420p"
    still = make_video(
        tmp_path / "still.mov", codec=codec, pix_fmt=pix_fmt, frames=1, size=(16, 16), options={}
    )
    plain, source = make_video(tmp_path / "plain.mp4", frames=4), tmp_path / "in.mp4"
    with av.open(str(still)) as cover, av.open(str(plain)) as opened, av.open(str(source), "w") as output:
        copies: Any = {
            stream: output.add_stream_from_template(stream, opaque=True)
            for stream in (*opened.streams, *cover.streams)
        }
        copies[cover.streams[0]].disposition = 1024
        for file in (opened, cover):
            for packet in file.demux():
                if packet.size:
                    packet.stream = copies[packet.stream]
                    output.mux(packet)
    assert film(source, tmp_path / "out.mkv") == []
    with av.open(str(tmp_path / "out.mkv")) as opened:
        said = {key.lower(): value for key, value in opened.streams.video[1].metadata.items()}
    assert (said["filename"], said["mimetype"]) == (name, kind)


# 360 degrees and two eyes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["h264", "hevc", "av1"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_pictures_of_all_around_and_for_two_eyes_stay_so(tmp_path: Path, ending: str, codec: str) -> None:
    said = {
        "SPHERICAL": struct.pack("=4i5I", 0, 0, 0, 0, 0, 0, 0, 0, 0),  # equirectangular
        "STEREO3D": struct.pack("=2i", 2, 0),  # left eye above
    }
    plain, source = make_video(tmp_path / "plain.mp4", frames=4, size=(128, 128)), tmp_path / "in.mkv"
    with av.open(str(plain)) as opened, av.open(str(source), "w") as output:
        made = saying(said, opened.streams.video[0])
        assert made is not None
        with made:
            stream = output.add_stream_from_template(made.streams.video[0], opaque=True)
        stream.time_base = opened.streams.video[0].time_base
        for packet in opened.demux():
            if packet.size:
                packet.stream = stream
                output.mux(packet)
    with VideoReader(source) as reader:
        encoding = encoding_for(reader.info, codec=codec)
    if codec == "av1" and ending == ".mov":
        return
    told = film(source, tmp_path / f"out{ending}", encoding=encoding)
    with av.open(str(tmp_path / f"out{ending}")) as opened:
        found = pixels.side_data_of(next(opened.decode(video=0)), opened.streams.video[0].codec_context)
    if ending == ".mov":
        assert "360 degrees" in told[0]
        return
    assert told == []
    assert found["SPHERICAL"][:4] == said["SPHERICAL"][:4]
    if ending == ".mp4":  # FFmpeg reads Apple's word for two eyes, which it writes too, instead of this
        assert b"st3d" + bytes(4) + b"\x01" in (tmp_path / "out.mp4").read_bytes()
    else:
        assert found["STEREO3D"][:8] == said["STEREO3D"]


# What is shown --------------------------------------------------------------------------------------------------


def cropped(path: Path, left: int, right: int, top: int, bottom: int) -> Path:
    """Matroska's cropping in a file of FFV1, put where FFmpeg's muxer has written the pictures' height."""
    plain = make_video(path, frames=3, size=(80, 64), codec="ffv1", pix_fmt="yuv444p", options={})
    content = plain.read_bytes()
    sides = ((0x54CC, left), (0x54DD, right), (0x54BB, top), (0x54AA, bottom))
    added = b"".join(name.to_bytes(2, "big") + b"\x81" + bytes([value]) for name, value in sides)
    return insert(path, content, added)


def insert(path: Path, content: bytes, added: bytes) -> Path:
    """Put elements into the Video element, in the place of a Void that is as long or longer."""
    place = content.index(b"\xba\x81\x40")  # the height, 64
    start = content.rindex(b"\xe0", 0, place)
    size = content[start + 1]
    grown = bytes([size + len(added)])  # one-byte sizes below 127
    assert size & 0x80
    assert (size & 0x7F) + len(added) < 127
    video = b"\xe0" + grown + content[start + 2 : place] + added + content[place:]
    changed = bytearray(content[:start] + video)
    for name in (b"\xae", b"\x16\x54\xae\x6b"):  # the track and the list of tracks grow with it
        at = changed.rindex(name, 0, start)
        width = 9 - changed[at + len(name)].bit_length()
        digits = slice(at + len(name), at + len(name) + width)
        changed[digits] = (int.from_bytes(changed[digits], "big") + len(added)).to_bytes(width, "big")
    path.write_bytes(bytes(changed))
    return path


def test_what_the_container_crops_is_not_shown(tmp_path: Path) -> None:
    source = cropped(tmp_path / "in.mkv", left=4, right=12, top=8, bottom=16)
    whole = picture(0, 80, 64)[8:48, 4:68]
    with VideoReader(source) as reader:
        assert (reader.info.height, reader.info.width) == (40, 64)
        assert psnr(next(reader.frames()), whole) > 36
    film(source, tmp_path / "out.mp4")
    assert pixels_of(tmp_path / "out.mp4")[0].shape == (40, 64, 3)


def test_what_is_cropped_is_counted_on_the_stored_picture_not_on_the_upright_one() -> None:
    stored = picture(0, 80, 64)
    frame = av.VideoFrame.from_ndarray(stored, format="rgb24")
    colors, quarter = Colors(matrix=6, full_range=True), pixels.Orientation(transpose=True, flip_y=True)
    crop = Crop(left=4, right=12, top=8, bottom=16)
    shown = pixels.ToRGB(colors, quarter, stored.shape[:2], crop=crop)(frame)
    np.testing.assert_array_equal(shown, np.rot90(stored[8:-16, 4:-12]))


def broadcast(path: Path, aspect: Fraction, **options: Any) -> bytes:
    white = [np.full((48, 64, 3), 255, np.uint8)] * 10
    made = make_video(path, pictures=white, codec="mpeg2video", options={"bf": "2"}, aspect=aspect, **options)
    return made.read_bytes()


@pytest.mark.parametrize(
    ("first", "second", "bars"),
    [
        (Fraction(1), Fraction(4, 3), "top"),
        (Fraction(4, 3), Fraction(1), "left"),
        (Fraction(1), Fraction(1), ""),
    ],
)
def test_a_change_of_aspect_in_the_middle_is_shown_between_bars(
    tmp_path: Path, first: Fraction, second: Fraction, bars: str
) -> None:
    timing: dict[str, Any] = {"time_base": Fraction(1, 25), "pts": range(10)}
    parts = [broadcast(tmp_path / f"{n}.ts", aspect, **timing) for n, aspect in enumerate((first, second))]
    source = tmp_path / "in.ts"
    source.write_bytes(b"".join(parts))
    with warnings.catch_warnings():
        warnings.simplefilter("error", MediaWarning)
        with VideoReader(source) as reader:
            shown = list(reader.frames())
    assert len(shown) == 20
    for frame in shown[:10]:
        assert frame.min() > 250
    for frame in shown[10:]:
        assert frame[24, 32].min() > 250
        assert (frame[2, 32].max() < 5) == (bars == "top")
        assert (frame[24, 2].max() < 5) == (bars == "left")


def test_a_change_of_shape_keeps_circles_round(tmp_path: Path) -> None:
    parts = [
        make_video(
            tmp_path / f"{n}.ts",
            pictures=[np.full((*size, 3), 255, np.uint8)] * 6,
            options={},
        ).read_bytes()
        for n, size in enumerate(((48, 64), (64, 64)))
    ]
    source = tmp_path / "in.ts"
    source.write_bytes(b"".join(parts))
    with VideoReader(source) as reader:
        last = list(reader.frames())[-1]
    assert last.shape == (48, 64, 3)
    assert last[24, 4].max() < 5
    assert last[24, 12:52].min() > 250


# How it is encoded ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["png", "apng", "grey"])
def test_pictures_become_video_of_limited_range(tmp_path: Path, kind: str) -> None:
    shown = [picture(n) for n in range(3)]
    source = tmp_path / "pictures"
    if kind == "apng":
        source = make_video(tmp_path / "in.apng", pictures=shown, codec="apng", pix_fmt="rgb24", options={})
    else:
        source.mkdir()
        for number, levels in enumerate(shown):
            frame = av.VideoFrame.from_ndarray(levels, format="rgb24")
            (frame.reformat(format="gray") if kind == "grey" else frame).save(str(source / f"{number}.png"))
    film(source, tmp_path / "out.mp4")
    assert color_tags(tmp_path / "out.mp4")[3] == 1
    expected = shown[0] if kind != "grey" else np.repeat(pixels_grey(shown[0]), 3, axis=2)
    assert psnr(pixels_of(tmp_path / "out.mp4")[0], expected) > 32


def pixels_grey(levels: np.ndarray) -> np.ndarray:
    return av.VideoFrame.from_ndarray(levels, format="rgb24").reformat(format="gray").to_ndarray()[..., None]


def test_av1_takes_any_frame_rate(tmp_path: Path) -> None:
    encoding = Encoding(Colors(1, 1, 1), Fraction(480), Fraction(1, 90_000), codec="av1")
    encoding.check(tmp_path / "out.mp4", 64, 128)
    file = io.BytesIO()
    with SegmentEncoder(file, encoding) as encoder:
        encoder.write(picture(0, 128, 64))
    assert len(encoder.order) == 1


def test_tags_that_an_encoder_refuses_are_told_before_the_work(tmp_path: Path) -> None:
    encoding = Encoding(Colors(22, 17, 9), Fraction(25), Fraction(1, 90_000), codec="hevc")
    with pytest.raises(EncodingError, match=r"--codec hevc: .* colour tags 22, 17, 9 of H.273: .*x265"):
        encoding.check(tmp_path / "out.mp4", 64, 128)


def test_sound_is_still_there(tmp_path: Path) -> None:
    with_cover(tmp_path / "in.mkv")
    film(tmp_path / "in.mkv", tmp_path / "out.mkv")
    assert packets(tmp_path / "out.mkv", "audio") == packets(tmp_path / "in.mkv", "audio")
