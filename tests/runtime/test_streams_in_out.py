"""What a player is told of a file before and after: nothing differs but what was asked for."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from tests.runtime.clips import described, make_video
from tests.runtime.media.test_deinterlacing import make_interlaced
from tests.runtime.media.test_hdr import BT2020, DISPLAY, MASTERED
from tests.stand_ins.command import Run
from v2v.runtime.media.hdr import PQ


def with_tracks(film: Path, path: Path, folder: Path, *, subtitles: bool) -> Path:
    """Put three tracks of sound beside the pictures of ``film``, for three kinds of people, and subtitles."""
    text = folder / "text.srt"
    text.write_text("1\n00:00:00,100 --> 00:00:00,900\nHello\n\n")
    sound = make_video(folder / "sound.mkv", sounds=3)
    with (
        av.open(str(film)) as one,
        av.open(str(sound)) as two,
        av.open(str(text)) as three,
        av.open(str(path), "w") as output,
    ):
        wanted = [*one.streams.video, *two.streams.audio, *(three.streams if subtitles else ())]
        copies: dict[Any, Any] = {s: output.add_stream_from_template(s) for s in wanted}
        about = [("eng", "Main", 1), ("ger", "Deutsch", 0), ("eng", "Commentary", 8)]  # 1 default, 8 comment
        for track, (language, title, disposition) in zip(two.streams.audio, about, strict=True):
            copies[track].metadata.update({"language": language, "title": title})
            copies[track].disposition = disposition
        for source in (one, two, three):
            for packet in source.demux():
                if packet.size and packet.stream in copies:
                    packet.stream = copies[packet.stream]
                    output.mux(packet)
    return path


def enhanced(run: Run, engines: Path, source: Path, output: Path, *options: Any) -> str:
    done = run(
        *(source, "-o", output, "--engines", engines, "--steps", 1, "--strength", 0.001),
        *("--no-cuts", *options),
    )
    assert done.code == 0, done.err
    return done.err


def without(described: list[dict[str, Any]], **changed: Any) -> list[dict[str, Any]]:
    """The streams with what must differ taken out of the pictures, after it was checked."""
    pictures = next(stream for stream in described if stream["kind"] == "video")
    for name, value in changed.items():
        assert pictures.pop(name) == value, name
    return described


@pytest.mark.parametrize("ending", [".mkv", ".mp4"])
def test_an_hdr_film_with_three_tracks(run: Run, stand_in_engines: Path, tmp_path: Path, ending: str) -> None:
    film = make_video(
        tmp_path / f"film{ending}",
        frames=4,
        pts=[0, 60, 150, 180],  # a variable frame rate
        size=(128, 80),
        codec="libx265",
        pix_fmt="yuv420p10le",
        colors={**BT2020, "color_trc": PQ},
        aspect=Fraction(4, 3),
        options={"x265-params": f"log-level=error:master-display={DISPLAY}:max-cll=987,321"},
    )
    source = with_tracks(film, tmp_path / f"in{ending}", tmp_path, subtitles=ending == ".mkv")
    output = tmp_path / f"out{ending}"
    said = enhanced(run, stand_in_engines, source, output, "--codec", "hevc", "--scale", 2)
    before = without(described(source), size=(128, 80))
    after = without(described(output), size=(256, 160))
    assert after == before
    assert [stream["kind"] for stream in after].count("audio") == 3
    assert after[0]["light"] == MASTERED
    assert "is left out" not in said


def test_an_interlaced_film_with_three_tracks(run: Run, stand_in_engines: Path, tmp_path: Path) -> None:
    film = make_interlaced(tmp_path / "film.mkv", "tff", "mpeg2video", frames=4)
    source = with_tracks(film, tmp_path / "in.mkv", tmp_path, subtitles=True)
    output = tmp_path / "out.mkv"
    said = enhanced(run, stand_in_engines, source, output, "--scale", 1)
    before, after = described(source), described(output)
    without(before, codec="mpeg2video", interlaced={True}, tags=(2, 2, 2, 1))
    without(after, codec="h264", interlaced={False}, tags=(2, 2, 6, 1))
    assert after == before
    assert said.count("is interlaced") == 1

    enhanced(run, stand_in_engines, source, tmp_path / "woven.mkv", "--scale", 1, "--no-deinterlace")
    assert (tmp_path / "woven.mkv").read_bytes() != output.read_bytes()
