"""Films of many kinds, and damage to them."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from tests.damage.bytes import damage
from tests.runtime.clips import make_video, picture
from tests.runtime.media.test_stream_plan import with_subtitles

FAST_START = {"container_options": {"movflags": "+faststart"}}
VP9 = {"codec": "libvpx-vp9", "options": {"crf": "30", "b": "0", "cpu-used": "8"}}
MPEG2 = {"codec": "mpeg2video", "options": {}, "time_base": Fraction(1, 25), "pts": range(10), "sound": "mp2"}
HEVC = {"codec": "libx265", "options": {"x265-params": "log-level=none", "preset": "ultrafast"}}
KINDS: dict[str, dict[str, Any]] = {
    "h264.mp4": FAST_START,
    "index-last.mp4": {"options": {"g": "4"}},
    "fragments.mp4": {**HEVC, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "hevc.mov": HEVC,
    "prores.mov": {"codec": "prores_ks", "pix_fmt": "yuv422p10le", "options": {}, "sound": "pcm_s16le"},
    "mpeg4.mp4": {"codec": "mpeg4", "options": {}, **FAST_START},
    "h264.mkv": {"options": {"g": "1"}},
    "hevc.mkv": {**HEVC, "sound": "ac3"},
    "ffv1.mkv": {"codec": "ffv1", "options": {}, "sound": "flac"},
    "vp9.mkv": {**VP9, "sound": "libopus"},
    "vp9.webm": {**VP9, "sound": "libopus"},
    "mpeg4.avi": {"codec": "mpeg4", "options": {}, "sound": "libmp3lame"},
    "h264.avi": {"sound": "pcm_s16le"},
    "h264.ts": {"options": {"g": "4"}},
    "mpeg2.ts": MPEG2,
    "mpeg2.mpg": MPEG2,
    "h264.flv": {},
    "flv1.flv": {"codec": "flv", "options": {}, "sounds": 0},
    "film.gif": {"codec": "gif", "pix_fmt": "rgb8", "options": {}, "sounds": 0},
}
SUBTITLES = {"text.mp4": "mov_text", "ass.mkv": "ass", "srt.mkv": "subrip"}
PICTURES = "pictures"


def originals(folder: Path) -> list[Path]:
    """One film, or folder of pictures, of each kind."""
    made = [make_video(folder / name, **{"frames": 10, "sounds": 1, **how}) for name, how in KINDS.items()]
    made += [with_subtitles(folder / name, codec) for name, codec in SUBTITLES.items()]
    pictures = folder / PICTURES
    pictures.mkdir()
    for number in range(5):
        path = make_video(
            folder / "one.png", pictures=[picture(number)], codec="png", pix_fmt="rgb24", options={}
        )
        path.rename(pictures / f"{number}.png")
    return [*made, pictures]


def damaged(source: Path, target: Path, random: np.random.Generator) -> Path:
    """A damaged copy of a film or of a folder of pictures."""
    if source.is_dir():
        shutil.copytree(source, target)
        for path in random.permutation(sorted(target.iterdir()))[: random.integers(1, 4)]:
            path.write_bytes(damage(path.read_bytes(), random))
    else:
        target.write_bytes(damage(source.read_bytes(), random))
    return target
