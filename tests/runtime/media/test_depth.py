"""Pictures of more than 8 bits go in and come out with all of them, and codecs that cannot hold them say so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from tests.runtime.clips import make_video, picture, planes_of, write_planes
from tests.stand_ins.arrays import NumpyEngines, no_velocity
from v2v.core.errors import V2VError
from v2v.device.cpu import CpuDevice
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.media import pixels
from v2v.runtime.media.encoding import CODECS, EncodedSegment, EncodingError, SegmentEncoder
from v2v.runtime.media.errors import MediaWarning
from v2v.runtime.media.image_sequence import FolderWriter
from v2v.runtime.media.pixels import Colors, Orientation, ToRGB
from v2v.runtime.media.reader import VideoReader
from v2v.runtime.media.writer import encoding_for

SIZE = (48, 64)
WEIGHTS = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}  # KR, KB of H.273


def yuv(bits: int, matrix: int, full: bool, seed: int = 0) -> list[np.ndarray]:
    """Random colours that RGB has, as Y'CbCr of H.273, in double precision until rounded to ``bits``."""
    kr, kb = WEIGHTS[matrix]
    r, g, b = np.random.default_rng(seed).uniform(0.05, 0.95, (3, *SIZE))
    y = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - y) / (2 - 2 * kb), (r - y) / (2 - 2 * kr)
    step, top = 2 ** (bits - 8), 2**bits - 1
    if full:
        planes = (top * y, top * cb + 128 * step, top * cr + 128 * step)
    else:
        planes = ((219 * y + 16) * step, (224 * cb + 128) * step, (224 * cr + 128) * step)
    return [np.rint(plane).astype(np.uint16) for plane in planes]


def rgb(planes: list[np.ndarray], bits: int, matrix: int, full: bool) -> np.ndarray:
    """Back, in double precision: levels 0..65535."""
    kr, kb = WEIGHTS[matrix]
    step, top = 2 ** (bits - 8), 2**bits - 1
    y, cb, cr = (plane.astype(np.float64) for plane in planes)
    if full:
        y, cb, cr = y / top, (cb - 128 * step) / top, (cr - 128 * step) / top
    else:
        y, cb, cr = (
            (y / step - 16) / 219,
            (cb / step - 128) / 224,
            (cr / step - 128) / 224,
        )
    r, b = y + (2 - 2 * kr) * cr, y + (2 - 2 * kb) * cb
    return 65535 * np.stack([r, (y - kr * r - kb * b) / (1 - kr - kb), b], axis=2)


def read(path: Path) -> list[np.ndarray]:
    with VideoReader(path) as source:
        return list(source.frames())


@pytest.mark.parametrize("matrix", list(WEIGHTS))
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_every_level_of_a_file_is_read_and_written_back(
    tmp_path: Path, bits: int, full: bool, matrix: int
) -> None:
    stored = yuv(bits, matrix, full)
    tags = {"colorspace": matrix, "color_range": 1 + full}
    source = write_planes(tmp_path / "in.mkv", f"yuv444p{bits}le", [stored], tags)
    with VideoReader(source) as reader:
        (frame,) = reader.frames()
        assert (reader.info.depth, frame.dtype) == (bits, np.uint16)
        assert np.abs(frame - rgb(stored, bits, matrix, full)).max() <= 1  # of 65535
        with (
            (tmp_path / "out.mkv").open("wb") as file,
            SegmentEncoder(file, encoding_for(reader.info, codec="ffv1")) as encoder,
        ):
            encoder.write(frame)
    with av.open(str(tmp_path / "out.mkv")) as opened:
        written = next(opened.decode(video=0))
        assert written.format.name == f"yuv444p{bits}le"
    for before, after in zip(stored, planes_of(written), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    "kind",
    ["yuv420p10le", "yuv422p10le", "yuv420p12le", "p010le", "p210le", "y210le", "yuv420p9le", "yuva444p10le"],
)
def test_brightness_is_exact_whatever_the_layout_of_chroma(kind: str) -> None:
    bits = int(kind.removesuffix("le").split("p")[-1].replace("y2", "")[-2:])
    colors = Colors(1, 1, 1, False)
    whole = av.VideoFrame(SIZE[1], SIZE[0], f"yuv444p{bits}le")
    flat = 128 << (bits - 8)
    brightness = np.random.default_rng(0).integers(64, 940, SIZE) << max(bits - 10, 0) >> max(10 - bits, 0)
    for plane, value in zip(
        whole.planes, (brightness, np.full(SIZE, flat), np.full(SIZE, flat)), strict=True
    ):
        padded = np.zeros((SIZE[0], plane.line_size // 2), np.uint16)
        padded[:, : SIZE[1]] = value
        plane.update(padded.tobytes())
    stored = whole.reformat(format=kind)
    levels = ToRGB(colors, Orientation(), SIZE, deep=True)(stored)
    truth = np.clip((brightness / 2 ** (bits - 8) - 16) / 219, 0, 1) * 65535
    assert np.abs(levels - truth[..., None]).max() <= 1
    if "a" not in kind:
        back = pixels.from_rgb(levels, kind, colors).reformat(format=f"yuv444p{bits}le")
        np.testing.assert_array_equal(planes_of(back)[0], np.clip(brightness, 16 << (bits - 8), None))


@pytest.mark.parametrize("kind", ["gbrp10le", "gbrp12le", "gray10le", "gray16le", "rgb48le", "ya16le"])
def test_deep_rgb_and_grey_use_the_whole_range(kind: str) -> None:
    ramp = np.linspace(0, 65535, SIZE[0] * SIZE[1]).reshape(SIZE).astype(np.uint16)
    bits = max(component.bits for component in av.VideoFormat(kind).components)
    frame = av.VideoFrame(SIZE[1], SIZE[0], kind)
    packed = {"rgb48le": 3, "ya16le": 2}.get(kind, 1)
    for plane in frame.planes:
        padded = np.zeros((SIZE[0], plane.line_size // 2), np.uint16)
        padded[:, : SIZE[1] * packed] = np.repeat(ramp >> (16 - bits), packed, axis=1)
        if kind == "ya16le":
            padded[:, 1 : 2 * SIZE[1] : 2] = 65535
        plane.update(padded.tobytes())
    levels = ToRGB(Colors(matrix=1, full_range=True), Orientation(), SIZE, deep=True)(frame)
    assert (levels.min(), levels.max()) == (0, 65535)
    truth = (ramp >> (16 - bits)) * (65535 / (2**bits - 1))
    assert np.abs(levels - truth[..., None]).max() <= 64 / 2 ** (
        bits - 10
    )  # a step of the source is 65536 / 2^bits


def test_deep_transparency_is_shown_on_black(tmp_path: Path) -> None:
    shown = np.full((*SIZE, 4), (60000, 30000, 12345, 65535), np.uint16)
    shown[:, :32, 3] = 0
    shown[:, 32:40, 3] = 32768
    frame = av.VideoFrame.from_ndarray(shown, format="rgba64le")
    levels = ToRGB(Colors(matrix=1), Orientation(), SIZE, deep=True)(frame)
    assert levels[:, :32].max() == 0
    assert levels[0, 35].tolist() == [30000, 15000, 6173]
    assert levels[0, 50].tolist() == [60000, 30000, 12345]


# Through the model ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def v2v(tmp_path_factory: pytest.TempPathFactory) -> VideoToVideo:
    return VideoToVideo(NumpyEngines(tmp_path_factory.mktemp("set"), unet=no_velocity), CpuDevice())


@pytest.mark.parametrize("color", ["wavelet", "adain"])
def test_the_model_is_shown_all_bits_and_gives_them_back(v2v: VideoToVideo, color: str) -> None:
    steps = [np.full((80, 64, 3), 64 * level, np.uint16) for level in (500, 501, 502, 503)]
    made = list(v2v(steps, "", color=color, strength=0.001, steps=1))
    assert [frame.dtype for frame in made] == [np.uint16] * 4
    means = [float(frame.mean()) for frame in made]
    assert np.abs(np.array(means) - [64 * level for level in (500, 501, 502, 503)]).max() < 16


@pytest.mark.parametrize(
    ("taken", "depth", "given"),
    [
        (np.uint8, None, np.uint8),
        (np.uint8, 8, np.uint8),
        (np.uint8, 10, np.uint16),
        (np.uint16, None, np.uint16),
        (np.uint16, 12, np.uint16),
        (np.uint16, 8, np.uint8),
    ],
)
def test_pictures_come_out_as_deep_as_they_went_in_or_as_asked(
    v2v: VideoToVideo, taken: type, depth: int | None, given: type
) -> None:
    white = np.iinfo(taken).max
    frames = [np.full((80, 64, 3), white // 2, taken)] * 2
    made = list(v2v(frames, "", depth=depth, strength=0.001, steps=1))
    assert [frame.dtype for frame in made] == [given] * 2
    assert float(made[0].mean()) / np.iinfo(given).max == pytest.approx(0.5, abs=0.01)


def test_an_impossible_depth_is_refused(v2v: VideoToVideo) -> None:
    with pytest.raises(V2VError, match="--depth 20: must lie between 8 and 16"):
        list(v2v([np.zeros((80, 64, 3), np.uint8)], "", depth=20))


# What codecs hold -----------------------------------------------------------------------------------------------


def info(tmp_path: Path, depth: int):
    with VideoReader(make_video(tmp_path / "in.mp4", frames=1)) as reader:
        return replace(reader.info, depth=depth)


@pytest.mark.parametrize(
    ("codec", "held"),
    [
        ("h264", {8: 8, 10: 10, 12: 10, 16: 10}),
        ("hevc", {8: 8, 9: 10, 10: 10, 12: 12, 16: 12}),
        ("av1", {8: 8, 10: 10, 12: 10}),
        ("ffv1", {8: 8, 10: 10, 12: 12, 14: 16, 16: 16}),
        ("prores", {8: 10, 10: 10, 12: 10}),
        ("png", {8: 8, 10: 16, 12: 16, 16: 16}),
        ("h264_nvenc", {8: 8, 10: 8}),
        ("hevc_nvenc", {8: 8, 10: 10, 12: 10}),
    ],
)
def test_the_depth_is_kept_where_the_codec_has_it_and_told_where_not(
    tmp_path: Path, codec: str, held: dict[int, int]
) -> None:
    for depth, kept in held.items():
        source = info(tmp_path, depth)
        if kept < depth:
            with pytest.warns(MediaWarning, match=f"has {depth} bits a colour, codec {codec} {kept}"):
                encoding = encoding_for(source, codec=codec)
        else:
            encoding = encoding_for(source, codec=codec)
        assert encoding.depth == kept


@pytest.mark.parametrize(("codec", "depth"), [("h264", 12), ("prores", 8), ("png", 10), ("ffv1", 11)])
def test_a_depth_that_the_codec_does_not_have_is_refused(tmp_path: Path, codec: str, depth: int) -> None:
    with pytest.raises(EncodingError, match=f"--depth {depth}: codec {codec} has "):
        encoding_for(info(tmp_path, 8), codec=codec, depth=depth)


def test_codecs_that_have_the_depth_are_named_but_not_the_one_for_pipes(tmp_path: Path) -> None:
    with pytest.raises(EncodingError, match="10 has codec h264 or hevc") as told:
        encoding_for(info(tmp_path, 8), codec="png", depth=10)
    assert "y4m" not in str(told.value)


def test_a_depth_may_be_asked_for(tmp_path: Path) -> None:
    assert encoding_for(info(tmp_path, 8), codec="hevc", depth=10).pixel_format == "yuv420p10le"
    assert encoding_for(info(tmp_path, 10), codec="hevc", depth=8).pixel_format == "yuv420p"


@pytest.mark.parametrize("codec", [name for name in CODECS if "nvenc" not in name])
def test_every_depth_of_every_codec_can_be_written(tmp_path: Path, codec: str) -> None:
    """A gradient finer than 8 bits comes out with more than 256 shades, if the codec has them."""
    ramp = np.linspace(20000, 30000, 256 * 64).reshape(64, 256, 1).repeat(3, axis=2).astype(np.uint16)
    for depth in CODECS[codec].formats:
        encoding = encoding_for(info(tmp_path, 8), codec=codec, depth=depth)
        with (tmp_path / "segment").open("wb") as file, SegmentEncoder(file, encoding) as encoder:
            encoder.write(ramp)
        with av.open(str(tmp_path / "segment")) as opened:
            frame = next(opened.decode(video=0))
        assert frame.format.name == encoding.pixel_format
        shown = ToRGB(Colors(matrix=6), Orientation(), (64, 256), deep=True)(frame)
        assert np.abs(shown.astype(int) - ramp).mean() < 300
        shades = np.unique(shown[..., 1]).size
        assert shades > 100 if depth > 8 else shades < 64


def test_a_folder_of_16_bit_pictures_becomes_another(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 65536, (*SIZE, 3)).astype(np.uint16)
    (tmp_path / "in").mkdir()
    write_png(tmp_path / "in" / "1.png", levels)
    with VideoReader(tmp_path / "in") as reader:
        (frame,) = reader.frames()
        np.testing.assert_array_equal(frame, levels)
        encoding = encoding_for(reader.info, codec="png")
    with (tmp_path / "segment").open("wb") as file, SegmentEncoder(file, encoding) as encoder:
        encoder.write(frame)
    join_png(tmp_path, encoder.order)
    (again,) = read(tmp_path / "out")
    np.testing.assert_array_equal(again, levels)


def test_the_colour_profile_of_pictures_stays_with_them(tmp_path: Path) -> None:
    profile = b"a profile that nobody needs to understand" * 50
    (tmp_path / "in").mkdir()
    (tmp_path / "first").mkdir()
    for folder, source in (("first", None), ("in", profile)):
        write_png(tmp_path / folder / "1.png", picture(0).astype(np.uint16) * 257, source)
    with VideoReader(tmp_path / "in") as reader:
        assert reader.info.profile == profile
        with pytest.warns(MediaWarning, match=r"its colour profile \(ICC\) has no place in a video"):
            encoding_for(reader.info, codec="ffv1")
    with VideoReader(tmp_path / "first") as reader:
        assert reader.info.profile is None


def write_png(path: Path, levels: np.ndarray, profile: bytes | None = None) -> None:
    segment = path.with_suffix(".segment")
    encoding = encoding_for(info(path.parent, 16), codec="png")
    with segment.open("wb") as file, SegmentEncoder(file, encoding) as encoder:
        encoder.write(levels)
    made = path.parent / "made"
    join_png(path.parent, encoder.order, segment, made, profile)
    (made / "000001.png").rename(path)
    made.rmdir()
    segment.unlink()
    (path.parent / "in.mp4").unlink()


def join_png(
    folder: Path,
    order: tuple[int, ...],
    segment: Path | None = None,
    target: Path | None = None,
    profile: bytes | None = None,
) -> None:
    with FolderWriter(target or folder / "out", folder, profile=profile) as writer:
        writer.join([EncodedSegment(segment or folder / "segment", order)], [])
