"""HDR films stay HDR: the same tags, the same static metadata, and a word about what cannot be kept."""

from __future__ import annotations

import itertools
import struct
import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.runtime.clips import color_tags, make_video, picture
from tests.stand_ins.command import Run
from v2v.runtime.media import hdr, pixels
from v2v.runtime.media.errors import MediaWarning
from v2v.runtime.media.hdr import HLG, PQ, ContentLight, MasteringDisplay, StaticMetadata
from v2v.runtime.media.reader import VideoReader
from v2v.runtime.media.writer import encoding_for

# A usual display: P3 colours, D65 white, 0.005 to 1000 cd/m2.
DISPLAY = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
MASTERED = StaticMetadata(
    MasteringDisplay(
        red=(Fraction(34, 50), Fraction(16, 50)),
        green=(Fraction(265, 1000), Fraction(69, 100)),
        blue=(Fraction(15, 100), Fraction(6, 100)),
        white=(Fraction(3127, 10000), Fraction(329, 1000)),
        darkest=Fraction(5, 1000),
        brightest=Fraction(1000),
    ),
    ContentLight(maximum=987, average=321),
)
BT2020 = {"colorspace": 9, "color_primaries": 9, "color_range": 1}


def make_hdr(path: Path, transfer: int, metadata: str = f"master-display={DISPLAY}:max-cll=987,321") -> Path:
    return make_video(
        path,
        frames=3,
        size=(128, 80),
        codec="libx265",
        pix_fmt="yuv420p10le",
        colors={**BT2020, "color_trc": transfer},
        options={"x265-params": ":".join(filter(None, ("log-level=error", metadata)))},
    )


def metadata_of(path: Path) -> StaticMetadata:
    with av.open(str(path)) as opened:
        frame = next(opened.decode(video=0))
        return hdr.static_metadata_of(pixels.side_data_of(frame, opened.streams.video[0].codec_context))


def rounded(metadata: StaticMetadata) -> list[float]:
    """Every number in its place; AV1 counts chromaticities in 1/65536 and luminances in 1/256 and 1/16384."""
    display, light = metadata.display, metadata.light
    assert display is not None and light is not None
    points = (*display.red, *display.green, *display.blue, *display.white)
    return [
        *map(float, points),
        float(display.darkest),
        float(display.brightest),
        light.maximum,
        light.average,
    ]


@pytest.mark.parametrize(
    ("codec", "ending", "transfer"),
    [("h264", ".mp4", HLG), ("hevc", ".mkv", PQ), ("hevc", ".mp4", HLG), ("av1", ".mp4", PQ)],
)
def test_tags_depth_and_static_metadata_come_out_as_they_went_in(
    run: Run, stand_in_engines: Path, tmp_path: Path, codec: str, ending: str, transfer: int
) -> None:
    source = make_hdr(tmp_path / "in.mp4", transfer)
    assert metadata_of(source) == MASTERED
    output = tmp_path / f"out{ending}"
    done = run(
        *(source, "-o", output, "--engines", stand_in_engines, "--codec", codec),
        *("--scale", 1, "--steps", 1, "--strength", 0.001),
    )
    assert done.code == 0, done.err
    assert color_tags(output) == color_tags(source) == (9, transfer, 9, 1)
    with av.open(str(output)) as opened:
        assert opened.streams.video[0].pix_fmt == "yuv420p10le"
    assert rounded(metadata_of(output)) == pytest.approx(rounded(MASTERED), abs=1e-4)
    assert "HDR" not in done.err


@pytest.mark.parametrize(("codec", "ending"), [("prores", ".mov"), ("ffv1", ".mkv")])
def test_a_codec_without_room_for_static_metadata_keeps_the_tags_and_says_so(
    run: Run, stand_in_engines: Path, tmp_path: Path, codec: str, ending: str
) -> None:
    source = make_hdr(tmp_path / "in.mp4", PQ)
    output = tmp_path / f"out{ending}"
    done = run(
        *(source, "-o", output, "--engines", stand_in_engines, "--codec", codec),
        *("--scale", 1, "--steps", 1, "--strength", 0.001),
    )
    assert done.code == 0, done.err
    assert color_tags(output)[:3] == (9, PQ, 9)
    assert f"codec {codec} cannot hold its HDR metadata (mastering display, light levels)" in done.err


def test_a_folder_of_hdr_pictures_says_so(run: Run, stand_in_engines: Path, tmp_path: Path) -> None:
    source = make_hdr(tmp_path / "in.mp4", HLG)
    done = run(
        *(source, "-o", f"{tmp_path}/out/", "--engines", stand_in_engines),
        *("--scale", 1, "--steps", 1, "--strength", 0.001),
    )
    assert done.code == 0, done.err
    with VideoReader(tmp_path / "out") as reader:
        colors = reader.info.colors
        assert (colors.primaries, colors.transfer, reader.info.depth) == (9, HLG, 16)


@pytest.mark.parametrize(
    ("metadata", "display", "light"),
    [("", False, False), (f"master-display={DISPLAY}", True, False), ("max-cll=987,321", False, True)],
)
def test_what_is_not_stated_is_not_made_up(tmp_path: Path, metadata: str, display: bool, light: bool) -> None:
    with warnings.catch_warnings(), VideoReader(make_hdr(tmp_path / "in.mp4", PQ, metadata)) as reader:
        warnings.simplefilter("error")
        found = reader.info.light
        assert (found.display is not None, found.light is not None) == (display, light)
        assert bool(found) == (display or light)
        encoding_for(reader.info, codec="hevc" if found else "prores")


def test_a_display_described_in_part_counts_as_not_described() -> None:
    numbers = [1, 2] * 10
    assert hdr.static_metadata_of({"MASTERING_DISPLAY_METADATA": struct.pack("=22i", *numbers, 1, 0)}) == (
        StaticMetadata()
    )
    unset = [0] * 20
    assert not hdr.static_metadata_of({"MASTERING_DISPLAY_METADATA": struct.pack("=22i", *unset, 1, 1)})


# Dynamic metadata -----------------------------------------------------------------------------------------------


def supplement(body: bytes) -> bytes:
    """A message registered after ITU-T T.35 as a unit of HEVC, to stand before a picture's."""
    payload = bytearray()
    for byte in bytes([4, len(body)]) + body + b"\x80":
        if byte <= 3 and payload[-2:] == b"\0\0":
            payload.append(3)  # so that nothing looks like the start of a unit
        payload.append(byte)
    return b"\0\0\0\1" + bytes([39 << 1, 1]) + bytes(payload)


def hdr10_plus() -> bytes:
    """HDR10+ metadata for one window (ST 2094-40, annex A of CTA-861)."""
    fields = [
        (1, 2),
        (400, 27),
        (0, 1),
        *[(1000, 17)] * 3,
        (500, 17),
        (0, 4),
        (0, 10),
        (0, 1),
        (0, 1),
        (0, 1),
    ]
    text = "".join(format(value, f"0{bits}b") for value, bits in fields)
    text += "0" * (-len(text) % 8)
    return bytes([0xB5, 0x00, 0x3C, 0x00, 0x01, 4, 1]) + int(text, 2).to_bytes(len(text) // 8, "big")


CAPTIONS = b"\xb5\x00\x31GA94\x03\x41\xff\xfc\x94\x2c\xff"  # one pair of CEA-608 (ATSC A/53 part 4)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (hdr10_plus(), r"its HDR10\+ metadata describes each picture as it was and is left out"),
        (CAPTIONS, r"its closed captions \(CEA-608/708\) lie inside its pictures and are left out"),
    ],
    ids=["HDR10+", "captions"],
)
def test_what_lies_in_each_picture_is_left_out_and_named(tmp_path: Path, body: bytes, said: str) -> None:
    path = tmp_path / "in.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx265", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 80, "yuv420p10le"
        stream.options = {"x265-params": "log-level=error"}
        frames = [av.VideoFrame.from_ndarray(picture(n, 128, 80), format="rgb24") for n in range(2)]
        encoded = (stream.encode(frame.reformat(format="yuv420p10le")) for frame in frames)
        for packet in (*itertools.chain(*encoded), *stream.encode(None)):
            told = av.Packet(supplement(body) + bytes(packet))
            told.pts, told.dts, told.time_base = packet.pts, packet.dts, packet.time_base
            told.stream, told.is_keyframe = stream, packet.is_keyframe
            output.mux(told)
    with (
        VideoReader(path) as reader,
        pytest.warns(MediaWarning, match=said),
    ):
        assert [frame.dtype for frame in reader.frames()] == [np.uint16] * 2


def test_dolby_vision_is_called_by_its_name() -> None:
    assert hdr.dynamic_metadata_of({"DOVI_METADATA": b"", "DOVI_RPU_BUFFER": b"", "A53_CC": b""}) == [
        "Dolby Vision"
    ]
