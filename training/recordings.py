"""The recordings that the small model learns from: short pieces of real videos in public repositories.

``recordings.tsv`` lists the videos: where they are, under which licence, which frames are taken. ``python -m
training.recordings FOLDER`` reads them with git, scales them down until they are sharp to the pixel, cuts out the place
that moves and shows the most, and writes pieces of 20 frames as H.264 beside an ``index.json``. ``README.md`` says what
the licences ask for.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

LIST = Path(__file__).with_name("recordings.tsv")
FRAMES = 20  # of a piece
WIDTH, HEIGHT = 640, 384  # at most, of a piece
CRF = 12
# Light of BT.2020's primaries in BT.709's (BT.2087).
TO_709 = np.linalg.inv([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
HLG_WHITE = 0.265  # scene light of the signal 0.75, which BT.2408 has for white

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Video:
    """A line of ``recordings.tsv``."""

    repo: str  # owner/name on github.com
    commit: str
    path: str
    blob: str  # git's hash of the file
    tier: str  # A: the licence is said of the file; B: of the whole repository
    licence: str
    shows: str  # caption, a few words
    # left, top, right, bottom of what is used of the upright frame; None: all of it
    area: tuple[int, int, int, int] | None
    scale: float
    firsts: tuple[int, ...]  # first frame of each piece
    weight: float  # how often a piece is drawn, relative to the others
    validation: bool


@dataclass(frozen=True)
class Recording:
    """One packed piece of a video."""

    file: str  # name inside the packed folder
    repo: str
    commit: str
    path: str
    licence: str
    tier: str
    first: int  # frame of the video
    frames: int
    scale: float  # applied to the video
    shows: str
    weight: float
    validation: bool


def load_list(path: Path = LIST) -> list[Video]:
    """The rows of ``recordings.tsv``."""
    with path.open(newline="") as file:
        return [
            Video(
                **{key: row[key] for key in ("repo", "commit", "path", "blob", "tier", "licence", "shows")},
                area=_box(row["area"]),
                scale=float(row["scale"]),
                firsts=tuple(int(first) for first in row["firsts"].split()),
                weight=float(row["weight"]),
                validation=row["validation"] == "1",
            )
            for row in csv.DictReader(file, delimiter="\t")
        ]


def _box(words: str) -> tuple[int, int, int, int] | None:
    if not words:
        return None
    left, top, right, bottom = (int(side) for side in words.split())
    return left, top, right, bottom


def git_directory(mirrors: Path, repo: str, commit: str) -> Path:
    """The git directory of a repository in ``mirrors/OWNER+NAME``; fetched from github.com where it is not there.

    Raises:
        subprocess.CalledProcessError: git failed; it prints why.
    """
    folder = mirrors / repo.replace("/", "+")
    for place in (folder, folder / "repo", folder / ".git", folder / "repo/.git"):
        if (place / "objects").is_dir():
            return place
    subprocess.run(["git", "init", "--quiet", "--bare", folder], check=True)
    fetch = ["git", "--git-dir", str(folder), "fetch", "--quiet", "--depth=1"]
    subprocess.run([*fetch, f"https://github.com/{repo}", commit], check=True)
    return folder


def extract(mirrors: Path, video: Video, target: Path) -> None:
    """Write the file of ``video`` to ``target``.

    Raises:
        subprocess.CalledProcessError: git failed; it prints why.
    """
    directory = git_directory(mirrors, video.repo, video.commit)
    with target.open("wb") as out:
        subprocess.run(
            ["git", "--git-dir", directory, "cat-file", "blob", video.blob], stdout=out, check=True
        )


def upright(frame: av.VideoFrame) -> Image.Image:
    """A decoded frame as it is meant to be seen; HDR (HLG) as BT.709, with light above white clipped."""
    if frame.color_trc == 18:  # ARIB STD-B67
        signal = frame.to_ndarray(format="rgb48le") / 65535
        light = np.where(
            signal <= 0.5, signal**2 / 3, (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12
        )
        shown = np.clip(light / HLG_WHITE @ TO_709.T, 0, 1) ** (1 / 2.2)
        image = Image.fromarray((255 * shown).round().astype(np.uint8))
    else:
        image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def scaled(image: Image.Image, video: Video) -> Bytes:
    """The used area of a frame, scaled: ``[h, w, 3]`` with even sizes."""
    area = video.area or (0, 0, image.width, image.height)
    size = tuple(2 * int((area[i + 2] - area[i]) * video.scale / 2) for i in (0, 1))
    return np.asarray(image.resize((size[0], size[1]), Image.Resampling.LANCZOS, box=area))


def pieces(file: Path, video: Video) -> Iterator[tuple[int, Bytes]]:
    """First frame and frames ``[FRAMES, h, w, 3]`` of each piece.

    Raises:
        ValueError: the video ends before a piece is whole.
    """
    kept: dict[int, list[Bytes]] = {first: [] for first in video.firsts}
    with av.open(str(file)) as source:
        source.streams.video[0].thread_type = "AUTO"
        for number, frame in enumerate(source.decode(video=0)):
            wanting = [first for first in kept if first <= number < first + FRAMES]
            if wanting:
                small = scaled(upright(frame), video)
                for first in wanting:
                    kept[first].append(small)
            if number >= max(video.firsts) + FRAMES:
                break
    for first, frames in kept.items():
        if len(frames) < FRAMES:
            raise ValueError(f"{video.repo}: {video.path} ends before frame {first + FRAMES}")
        yield first, np.stack(frames)


def liveliest(frames: Bytes) -> tuple[int, int]:
    """Left and top, both even, of the ``WIDTH`` x ``HEIGHT`` window with the most motion and detail."""
    grey = frames[:: FRAMES // 4].astype(np.float32).mean(3)
    motion = np.abs(np.diff(grey, axis=0)).mean(0)
    edges = np.abs(np.diff(grey[0], axis=0, prepend=0)) + np.abs(np.diff(grey[0], axis=1, prepend=0))
    value = np.minimum(motion / (motion.mean() + 0.5), 4) + np.minimum(edges / (edges.mean() + 0.5), 4)
    sums = np.pad(value.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    height, width = min(HEIGHT, value.shape[0]), min(WIDTH, value.shape[1])
    window = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    top, left = np.unravel_index(window[::2, ::2].argmax(), window[::2, ::2].shape)
    return 2 * int(left), 2 * int(top)


def write(file: Path, frames: Bytes) -> None:
    """Frames ``[F, h, w, 3]``, even sizes, as H.264 (yuv420p, BT.709) at 25 frames a second."""
    with av.open(str(file), "w") as out:
        stream: Any = out.add_stream("libx264", rate=25, options={"crf": str(CRF), "preset": "slow"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        context.color_range = 1  # MPEG
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            out.mux(stream.encode(picture.reformat(format="yuv420p", dst_colorspace="ITU709")))
        out.mux(stream.encode(None))


def pack_one(mirrors: Path, folder: Path, number: int, video: Video) -> list[Recording]:
    """Write the pieces of one video as ``NNN.mp4`` from ``number`` on; returns their entries of ``index.json``."""
    recordings: list[Recording] = []
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "video"
        extract(mirrors, video, file)
        for first, frames in pieces(file, video):
            left, top = liveliest(frames)
            piece = frames[:, top : top + HEIGHT, left : left + WIDTH]
            name = f"{number + len(recordings):03}.mp4"
            write(folder / name, piece)
            recordings.append(
                Recording(
                    file=name,
                    **{
                        key: getattr(video, key)
                        for key in ("repo", "commit", "path", "licence", "tier", "shows")
                    },
                    first=first,
                    frames=FRAMES,
                    scale=video.scale,
                    weight=video.weight,
                    validation=video.validation,
                )
            )
    return recordings


def pack(mirrors: Path, folder: Path, videos: Sequence[Video]) -> list[Recording]:
    """Make and describe every piece; returns what ``index.json`` holds."""
    folder.mkdir(parents=True, exist_ok=True)
    for video in videos:
        git_directory(mirrors, video.repo, video.commit)  # once, before several processes ask for it
    many = len(videos)
    starts = np.cumsum([0] + [len(video.firsts) for video in videos])[:many].tolist()
    with ProcessPoolExecutor() as pool:
        done = list(pool.map(pack_one, [mirrors] * many, [folder] * many, starts, videos))
    recordings = [recording for some in done for recording in some]
    (folder / "index.json").write_text(json.dumps([asdict(r) for r in recordings], indent=1) + "\n")
    return recordings


def load_index(folder: Path) -> list[Recording]:
    """What :func:`pack` wrote."""
    return [Recording(**entry) for entry in json.loads((folder / "index.json").read_text())]


def main() -> None:
    """Read, scale, cut and describe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the packed pieces go")
    parser.add_argument("--mirrors", type=Path, help="folder with git directories OWNER+NAME")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        recordings = pack(arguments.mirrors or Path(temporary), arguments.folder, load_list())
    size = sum((arguments.folder / r.file).stat().st_size for r in recordings)
    print(f"{len(recordings)} pieces of {FRAMES} frames, {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
