"""Segments encoded on their own join into one film, picture for picture and stamp for stamp."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import pytest

from tests.runtime.clips import make_video, packets, picture, pixels_of, psnr, times
from v2v.runtime.media.encoding import CODECS, EncodedSegment, Encoding, EncodingError, SegmentEncoder
from v2v.runtime.media.pixels import Colors
from v2v.runtime.media.reader import VideoReader
from v2v.runtime.media.timestamps import Timestamp
from v2v.runtime.media.writer import VideoWriter, encoding_for

SOFTWARE = [name for name, codec in CODECS.items() if ".mkv" in codec.containers and "nvenc" not in name]


def encode(folder, frames, lengths, encoding):
    segments, frames = [], iter(frames)
    for number, length in enumerate(lengths):
        path = folder / f"{number}.part"
        with path.open("wb") as file, SegmentEncoder(file, encoding) as encoder:
            for _ in range(length):
                encoder.write(next(frames))
        segments.append(EncodedSegment(path, encoder.order))
    return segments


@pytest.mark.parametrize("codec", SOFTWARE)
@pytest.mark.parametrize("lengths", [(20,), (1, 12, 1, 6), (7, 13)])
def test_joined_segments_show_every_picture_at_its_time(tmp_path, codec, lengths):
    source = make_video(tmp_path / "in.mkv", frames=20, size=(80, 48))
    frames = [picture(n, 80, 48) for n in range(20)]
    stamps = [
        Timestamp(40 * n + 13 * (n % 3), 0) for n in range(20)
    ]  # a variable frame rate, in milliseconds
    target = tmp_path / f"out{CODECS[codec].containers[-1]}"
    with VideoReader(source) as reader:
        encoding = encoding_for(reader.info, codec=codec)
        with VideoWriter(target, reader, encoding=encoding) as writer:
            writer.join(encode(tmp_path, frames, lengths, encoding), stamps)
    assert [1000 * seconds for seconds in times(target)] == [stamp.start for stamp in stamps]
    assert min(map(psnr, pixels_of(target), frames)) > 34


@pytest.mark.parametrize("length", [1, 2])
def test_segments_shorter_than_the_encoder_looks_ahead_are_the_same_bytes_each_time(tmp_path, length):
    """x265 took decoding times from memory that it had not written, mostly from the second encoder on."""
    frames = [picture(n, 256, 128) for n in range(length)]
    with VideoReader(make_video(tmp_path / "in.mkv", frames=2, size=(256, 128))) as reader:
        encoding = encoding_for(reader.info, codec="hevc")
    made = set()
    for _ in range(6):
        (segment,) = encode(tmp_path, frames, (length,), encoding)
        made.add(segment.file.read_bytes())
    assert len(made) == 1


def test_joining_gives_the_film_that_encoding_in_one_go_gives(tmp_path):
    source = make_video(tmp_path / "in.mp4", frames=12, size=(64, 48), sounds=1)
    with VideoReader(source) as reader:
        encoding = encoding_for(reader.info)
        with VideoWriter(tmp_path / "one.mp4", reader, encoding=encoding) as writer:
            for frame in reader.frames():
                writer.write(frame)
    with VideoReader(source) as reader:
        frames = list(reader.frames())
        with VideoWriter(tmp_path / "two.mp4", reader, encoding=encoding) as writer:
            writer.join(encode(tmp_path, frames, (12,), encoding), list(reader.timestamps))
    one, two = tmp_path / "one.mp4", tmp_path / "two.mp4"
    assert times(one) == times(two)
    assert min(map(psnr, pixels_of(one), pixels_of(two))) > 45
    assert packets(two, "audio") == packets(source, "audio")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"codec": "divx"}, "--codec divx"),
        ({"codec": "ffv1", "crf": 3}, "--crf 3"),
        ({"crf": 99}, "--crf 99"),
        ({"preset": "warp"}, "--preset warp"),
    ],
)
def test_impossible_choices_are_refused_by_flag(choice, message):
    with pytest.raises(EncodingError, match=message):
        Encoding(Colors(), Fraction(25), Fraction(1, 1000), **choice)


def test_pictures_too_narrow_for_x265_are_refused_before_it_breaks(tmp_path):
    encoding = Encoding(Colors(), Fraction(25), Fraction(1, 1000), codec="hevc")
    message = "--size 64x48: codec hevc needs a width of 66 or more"
    with pytest.raises(EncodingError, match=message):
        encoding.check(tmp_path / "out.mp4", 48, 64)
    with (
        (tmp_path / "segment").open("wb") as file,
        pytest.raises(EncodingError, match=message),
        SegmentEncoder(file, encoding) as encoder,
    ):
        encoder.write(picture(0, 64, 48))


@pytest.mark.parametrize("codec", SOFTWARE)
def test_a_container_that_cannot_hold_the_codec_is_told_before_the_work(tmp_path, codec):
    encoding = Encoding(Colors(), Fraction(25), Fraction(1, 1000), codec=codec)
    with pytest.raises(EncodingError, match=rf"codec {codec} needs a name that ends in"):
        encoding.check(tmp_path / "out.avi", 48, 64)


THREADS = """
import io, os, sys
from fractions import Fraction
cores = int(sys.argv[1])
os.cpu_count = lambda: cores
os.sched_getaffinity = lambda process: set(range(cores))
import av
from v2v.runtime.media.encoding import CODECS, Encoding
from v2v.runtime.media.pixels import Colors
for codec in sys.argv[2:]:
    encoding = Encoding(Colors(), Fraction(25), Fraction(1, 25), codec=codec)
    with av.open(io.BytesIO(), "w", format=encoding.library.segment) as container:
        print(codec, encoding.add_stream(container, 96, 128).codec_context.thread_count)
"""


def test_how_many_threads_encode_does_not_depend_on_the_machine():
    """An encoder divides its work by its threads, so their number can be seen in the bytes."""
    here, elsewhere = (
        subprocess.run(
            [sys.executable, "-c", THREADS, cores, *SOFTWARE], capture_output=True, text=True, check=True
        ).stdout
        for cores in ("1", "64")
    )
    assert here == elsewhere
    counts = dict(line.split() for line in here.splitlines())
    assert counts.keys() == {*SOFTWARE}
    assert "0" not in counts.values()  # FFmpeg would take one for each core
