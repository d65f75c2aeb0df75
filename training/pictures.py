"""The pictures that the small model learns from, out of packages of Debian.

``pictures.tsv`` lists them: package, file in it, what it shows, how often it is drawn, licence. Rows with the same
number make one picture: the first is the background, those after it are cut-outs and drawings laid on it side by
side. ``python -m training.pictures FOLDER`` downloads the packages with apt, shrinks each picture until it is sharp
to the pixel and writes it as WebP beside an ``index.json``. ``README.md`` says what the licences ask for.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from training.rcc import read_resource

LIST = Path(__file__).with_name("pictures.tsv")
MOST, FEW = 1_400_000, 600_000  # pixels of a picture; FEW where it is soft at MOST
SHARP = 6.0  # grey levels, of :func:`detail`
QUALITY = 88
DRAWING = 720  # pixels of the longer side of a rendered SVG; cut-outs are at most that large


@dataclass(frozen=True)
class Row:
    """A line of ``pictures.tsv``."""

    picture: int  # rows with the same number make one picture
    package: str  # of Debian; empty for a plain colour
    suite: str
    path: str  # inside the package, inside a Qt resource after a colon, or a colour
    shows: str  # caption, a few words
    weight: float  # how often it is drawn, relative to the others
    validation: bool  # never trained on: the training run is watched on these
    licence: str


@dataclass(frozen=True)
class Picture:
    """One packed picture."""

    file: str  # name inside the packed folder
    shows: str
    weight: float
    validation: bool
    package: str
    licence: str = ""


def load_list(path: Path = LIST) -> list[Row]:
    """The rows of ``pictures.tsv``."""
    with path.open(newline="") as file:
        return [
            Row(
                picture=int(row["picture"]),
                package=row["package"],
                suite=row["suite"],
                path=row["path"],
                shows=row["shows"],
                weight=float(row["weight"]),
                validation=row["validation"] == "1",
                licence=row["licence"],
            )
            for row in csv.DictReader(file, delimiter="\t")
        ]


def download(folder: Path, packages: Iterable[tuple[str, str]]) -> None:
    """Fetch packages ``(name, suite)`` with apt and unpack each into ``folder/NAME``.

    Raises:
        subprocess.CalledProcessError: apt-get or dpkg-deb failed; they print why.
    """
    for package, suite in packages:
        subprocess.run(["apt-get", "download", f"{package}/{suite}"], cwd=folder, check=True)
        (archive,) = folder.glob(f"{package}_*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, folder / package], check=True)


def read(unpacked: Path, row: Row) -> Image.Image:
    """The picture of a row, RGB or RGBA, at its own size; a plain colour is as large as ``FEW`` pixels.

    Raises:
        FileNotFoundError: the package does not hold the file; it is of another version.
    """
    if not row.package:
        return Image.new("RGB", (1032, 580), row.path)
    inner, _, resource = row.path.partition(":")
    path = unpacked / row.package / inner
    if not path.is_file():
        raise FileNotFoundError(f"package {row.package} holds no {inner}: is it of another version?")
    if path.suffix == ".svg":
        return drawing(path)
    if path.suffix == ".jxl":
        import pillow_jxl  # noqa: F401  # teaches Pillow the format
    image = Image.open(io.BytesIO(read_resource(path, resource)) if resource else path)
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def drawing(path: Path) -> Image.Image:
    """An SVG, rendered with its longer side at ``DRAWING`` pixels."""
    import resvg_py

    image = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=DRAWING)))).convert(
        "RGBA"
    )
    image = image.crop(image.getbbox())
    image.thumbnail((DRAWING, DRAWING), Image.Resampling.LANCZOS)
    return image


def shrunk(image: Image.Image, pixels: int) -> Image.Image:
    """``image`` with at most so many pixels."""
    ratio = min(1.0, (pixels / (image.width * image.height)) ** 0.5)
    size = (round(image.width * ratio), round(image.height * ratio))
    return image if ratio == 1 else image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def detail(image: Image.Image) -> float:
    """RMS in grey levels of what halving takes away, over the sharpest quarter of 128-pixel tiles."""
    grey = image.convert("L")
    half = grey.resize((grey.width // 2, grey.height // 2), Image.Resampling.BOX)
    back = half.resize(grey.size, Image.Resampling.BICUBIC)
    lost = (np.asarray(grey, np.float32) - np.asarray(back, np.float32)) ** 2
    high, wide = (max(1, side // 128) for side in lost.shape)
    tiles = lost[: high * (lost.shape[0] // high), : wide * (lost.shape[1] // wide)]
    means = tiles.reshape(high, lost.shape[0] // high, wide, -1).mean((1, 3)).ravel()
    return float(np.sqrt(np.sort(means)[-max(1, len(means) // 4) :].mean()))


def sharp(image: Image.Image) -> Image.Image:
    """``image`` at most ``MOST`` pixels large, or ``FEW`` where it is soft at that size."""
    image = shrunk(image, MOST)
    return image if detail(image) >= SHARP else shrunk(image, FEW)


def laid(background: Image.Image, pieces: Sequence[Image.Image]) -> Image.Image:
    """``pieces`` side by side in the middle of ``background``, which is scaled and cut to hold them."""
    for piece in pieces:
        piece.thumbnail((DRAWING, DRAWING), Image.Resampling.LANCZOS)
    width = sum(piece.width for piece in pieces)
    height = max(piece.height for piece in pieces)
    whole = ImageOps.fit(background, (width + width // 8, height + height // 8), Image.Resampling.LANCZOS)
    left = (whole.width - width) // 2
    for piece in pieces:
        whole.paste(piece, (left, (whole.height - piece.height) // 2), piece.convert("RGBA"))
        left += piece.width
    return whole


def make(unpacked: Path, rows: Sequence[Row]) -> Image.Image:
    """The picture of rows with one number."""
    images = [read(unpacked, row) for row in rows]
    whole = laid(images[0].convert("RGB"), images[1:]) if len(images) > 1 else images[0]
    return sharp(whole.convert("RGB"))


def pack_one(unpacked: Path, folder: Path, rows: Sequence[Row]) -> Picture:
    """Write ``NNN.webp``; returns its entry of ``index.json``."""
    Image.MAX_IMAGE_PIXELS = None
    name = f"{rows[0].picture:03}.webp"
    make(unpacked, rows).save(folder / name, quality=QUALITY, method=4)
    subject = rows[-1]
    shown = ", ".join(dict.fromkeys(row.shows for row in rows if row.shows))
    packages = ", ".join(dict.fromkeys(row.package for row in rows if row.package))
    licences = "; ".join(dict.fromkeys(row.licence for row in rows if row.licence))
    return Picture(name, shown, subject.weight, subject.validation, packages, licences)


def pack(unpacked: Path, folder: Path, rows: Sequence[Row]) -> list[Picture]:
    """Make and describe every picture; returns what ``index.json`` holds."""
    folder.mkdir(parents=True, exist_ok=True)
    groups = [list(group) for _, group in itertools.groupby(rows, lambda row: row.picture)]
    with ProcessPoolExecutor() as pool:
        many = len(groups)
        pictures = list(pool.map(pack_one, [unpacked] * many, [folder] * many, groups))
    (folder / "index.json").write_text(json.dumps([asdict(p) for p in pictures], indent=1) + "\n")
    return pictures


def load_index(folder: Path) -> list[Picture]:
    """What :func:`pack` wrote."""
    return [Picture(**entry) for entry in json.loads((folder / "index.json").read_text())]


def main() -> None:
    """Download, scale and describe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the packed pictures go")
    parser.add_argument("--unpacked", type=Path, help="folder with a subfolder per unpacked package")
    arguments = parser.parse_args()
    rows = load_list()
    with tempfile.TemporaryDirectory() as temporary:
        unpacked = arguments.unpacked or Path(temporary)
        if arguments.unpacked is None:
            download(unpacked, sorted({(row.package, row.suite) for row in rows if row.package}))
        pictures = pack(unpacked, arguments.folder, rows)
    size = sum((arguments.folder / p.file).stat().st_size for p in pictures)
    print(f"{len(pictures)} pictures, {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
