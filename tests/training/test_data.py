"""The lists of what training learns from, and how pictures are made from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from training import pictures, recordings


def test_no_picture_is_without_licence_and_numbers_rise() -> None:
    rows = pictures.load_list()
    assert all(row.licence for row in rows if row.package)
    numbers = [row.picture for row in rows]
    assert numbers == sorted(numbers)


def test_no_video_is_both_learnt_from_and_watched() -> None:
    videos = recordings.load_list()
    watched = {video.blob for video in videos if video.validation}
    assert watched
    assert watched.isdisjoint(video.blob for video in videos if not video.validation)
    assert all(video.licence and video.tier in {"A", "B"} and video.firsts for video in videos)


def test_a_soft_picture_is_shrunk_further_than_a_sharp_one() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1600), np.uint8)
    sharp = Image.fromarray(noise)
    soft = sharp.resize((160, 120)).resize((1600, 1200), Image.Resampling.BICUBIC)
    assert pictures.sharp(soft).width < pictures.sharp(sharp).width < 1600


def test_a_packed_piece_reads_back_as_it_was(tmp_path: Path) -> None:
    import av

    ramp = np.linspace(40, 200, 64).astype(np.uint8)
    frame = np.stack(
        [np.tile(ramp, (48, 1)), np.full((48, 64), 90, np.uint8), np.tile(ramp[::-1], (48, 1))], 2
    )
    recordings.write(tmp_path / "piece.mp4", np.stack([frame] * recordings.FRAMES))
    with av.open(str(tmp_path / "piece.mp4")) as source:
        back = [f.to_ndarray(format="rgb24") for f in source.decode(video=0)]
    assert len(back) == recordings.FRAMES
    assert np.abs(back[0].astype(int) - frame).mean() < 3
