"""The pictures that the small model learns from: which they are, where they come from, what they show.

All come from packages of Debian 12; ``README.md`` lists their licences. ``python -m training.pictures FOLDER``
downloads the packages with apt, scales each picture to at most 3.6 megapixels and writes it as WebP beside an
``index.json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

PACKAGES = (
    "plasma-workspace-wallpapers",
    "gnome-backgrounds",
    "mate-backgrounds",
    "lomiri-wallpapers-16.04",
    "lomiri-wallpapers-20.04",
    "ukui-wallpapers",
)

PIXELS = 3_600_000  # scaling down hides the compression and softness of the originals
QUALITY = 88

# Picture -> (what it shows, how often it is drawn). Photographs and paintings hold the detail of real videos; flat
# drawings teach clean edges and need few looks. Pictures not named here (logos, plain gradients, copies in other
# sizes) are left out.
CONTENT: dict[str, tuple[str, float]] = {
    "Bridge_by_Sander_Klootwijk": ("photo of a bridge with cables under a blue sky", 2),
    "Dragonfly_by_Bolly": ("photo of a dragonfly on brown leaves", 4),
    "Picture_0B_by_freespace": ("photo of a red fruit in a bowl", 2),
    "Picture_1A_by_freespace": ("photo of colorful paint brushes", 4),
    "Wine_by_Jakkub_Mede": ("photo of a wooden barrel and a table", 3),
    "aitzgorri_by_Aitzol_Berasategi": ("photo of a mountain, trees and a meadow", 4),
    "analogpattern_by_Peter_Nerlich": ("photo of a grainy pattern", 1),
    "free_by_Peter_Nerlich": ("photo of a lamp and a bird", 2),
    "friends_by_Aitzol_Berasategi": ("photo of two dogs on a wooden balcony", 4),
    "greentock_by_Peter_Nerlich": ("photo of a clock", 2),
    "life_by_Aitzol_Berasategi": ("photo of a stream in a forest", 4),
    "picosdeeuropa_by_Aitzol_Berasategi": ("photo of a path in the mountains", 4),
    "seeding_by_Clements_Engelhardt": ("photo of dandelions in the grass", 3),
    "sunset_by_Aitzol_Berasategi": ("photo of a sunset over rocks", 3),
    "umang_by_Abhishek_Mudgal": ("drawing of smooth colors", 0.5),
    "Fossa_by_Jasper_Roks": ("drawing of smooth red shapes", 0.5),
    "Infinite-Sea_by_Aury88": ("photo of the night sky with stars", 2),
    "Kleiber_by_Lukas_Baubkus": ("photo of a bird on a tree", 4),
    "Painting-Colors_by__herobrine7gamer": ("drawing of colorful stripes", 0.5),
    "Elephants_5640x3172": ("painting of elephants in blue", 4),
    "Flow": ("drawing of circles", 1),
    "Aqua": ("photo of a drop of water", 2),
    "Blinds": ("photo of a green leaf", 3),
    "Dune": ("photo of grass on a dune", 4),
    "FreshFlower": ("photo of a red flower", 2),
    "Garden": ("photo of red flowers in a garden", 3),
    "GreenMeadow": ("photo of green grass", 3),
    "LadyBird": ("photo of a ladybird on a plant", 4),
    "RainDrops": ("photo of leaves with rain drops", 3),
    "Storm": ("photo of a road in a storm", 2),
    "TwoWings": ("photo of a seed on a flower", 2),
    "Wood": ("photo of white wood", 2),
    "YellowFlower": ("photo of a yellow flower", 3),
    "Float-into-MATE": ("drawing of bubbles under water", 1),
    "Altai/contents/images/5120x2880": ("drawing of mountains at a lake", 2),
    "Autumn": ("painting of a tree in autumn", 4),
    "BytheWater": ("photo of a wooden pier at the water", 4),
    "Canopee": ("drawing of layers of paper in green", 2),
    "Cascade": ("drawing of layers of ice in blue", 2),
    "Cluster": ("drawing of layers in red and purple", 2),
    "ColdRipple": ("photo of a pier in the fog", 3),
    "ColorfulCups": ("photo of colorful cups", 3),
    "DarkestHour": ("photo of a dark lake", 1),
    "Elarun": ("drawing of blue curves", 0.5),
    "EveningGlow": ("photo of boats at a lake in the evening", 4),
    "FallenLeaf": ("photo of a fallen leaf in autumn", 4),
    "Flow/contents/images/5120x2880": ("drawing of colorful honeycombs", 2),
    "FlyingKonqui": ("drawing of a green dragon in the sky", 1.5),
    "Grey": ("photo of modern architecture", 3),
    "Honeywave/contents/images/5120x2880": ("drawing of honey and waves", 2),
    "IceCold/contents/images/5120x2880": ("drawing of ice", 2),
    "Kay/contents/images/5120x2880": ("drawing of colorful paper shapes", 1.5),
    "Kite": ("photo of a kite among clouds", 2),
    "Kokkini": ("drawing of red waves", 1),
    "MilkyWay/contents/images/5120x2880": ("drawing of stars", 1),
    "OneStandsOut": ("photo of a yellow flower among green plants", 4),
    "Opal": ("drawing of facets", 1),
    "PastelHills": ("drawing of hills in pastel colors", 0.5),
    "Patak/contents/images/5120x2880": ("drawing of a boat on waves", 2),
    "Patak/contents/images_dark/3840x2160": ("drawing of a boat on waves at night", 1),
    "Path": ("photo of a path in a dark forest", 4),
    "SafeLanding/contents/images/5120x2880": ("drawing of a rocket in a colorful landscape", 4),
    "Shell/contents/images/5120x2880": ("drawing of a purple shell", 2),
    "Volna/contents/images/5120x2880": ("photo of waves on a beach", 3),
    "summer_1am": ("photo of the sea at dusk", 1),
    "2004default": ("drawing of pink ribbons", 1),
    "calla": ("drawing of a flower", 1),
    "firstgeneration": ("drawing of a lion", 2),
    "fluent-color": ("drawing of soft cloth", 0.5),
    "goldfish": ("drawing of a pink fish", 1),
    "rhythm": ("drawing of pink lines", 1),
    "string": ("drawing of colorful strings", 2),
    "the-mouse": ("drawing of a mouse with lights", 2),
    "licorice-l": ("drawing of a colorful pattern", 2),
    "licorice-d": ("drawing of a dark pattern", 1),
    "pixels-l": ("drawing of many small things", 3),
    "grid-d": ("drawing of blue squares", 1),
    "grid-l": ("drawing of yellow squares", 1),
    "truchet-d": ("drawing of blue lines and circles", 1.5),
    "truchet-l": ("drawing of orange knots", 1.5),
    "adwaita-l": ("drawing of blue hexagons", 0.5),
    "wood-l": ("drawing of wooden bars", 1),
}

# Never trained on: the training run is watched on these.
VALIDATION = (
    "Dragonfly_by_Bolly",
    "EveningGlow",
    "SafeLanding/contents/images/5120x2880",
    "LadyBird",
    "Grey",
)


@dataclass(frozen=True)
class Picture:
    """One packed picture."""

    file: str  # name inside the packed folder
    shows: str  # caption, a few words
    weight: float  # how often it is drawn, relative to the others
    validation: bool
    package: str


def download(folder: Path) -> None:
    """Fetch the packages with apt and unpack each into ``folder/PACKAGE``.

    Raises:
        subprocess.CalledProcessError: apt-get or dpkg-deb failed; they print why.
    """
    for package in PACKAGES:
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True)
        (archive,) = folder.glob(f"{package}_*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, folder / package], check=True)


def find(folder: Path, key: str) -> Path:
    """The file that ``key`` of :data:`CONTENT` names among the unpacked packages.

    Raises:
        FileNotFoundError: none does; the packages are of another release.
    """
    tail = key if "/" in key else f"{key}/contents/images"
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in {".jpg", ".png", ".webp"} or not path.is_file():
            continue
        whole = path.with_suffix("").as_posix()
        if whole.endswith(f"/{key}") or (f"/{tail}/" in whole and "screenshot" not in whole):
            return path
    raise FileNotFoundError(f"no picture '{key}' under {folder}: are these the packages of Debian 12?")


def pack(unpacked: Path, folder: Path) -> list[Picture]:
    """Scale, compress and describe every picture of :data:`CONTENT`; returns what ``index.json`` holds."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for number, (key, (shows, weight)) in enumerate(CONTENT.items()):
        source = find(unpacked, key)
        image = Image.open(source).convert("RGB")
        shrink = min(1.0, (PIXELS / (image.width * image.height)) ** 0.5)
        size = (round(image.width * shrink), round(image.height * shrink))
        name = f"{number:03}.webp"
        image.resize(size, Image.Resampling.LANCZOS).save(folder / name, quality=QUALITY, method=4)
        package = source.relative_to(unpacked).parts[0]
        pictures.append(Picture(name, shows, weight, key in VALIDATION, package))
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
    Image.MAX_IMAGE_PIXELS = None
    with tempfile.TemporaryDirectory() as temporary:
        unpacked = arguments.unpacked or Path(temporary)
        if arguments.unpacked is None:
            download(unpacked)
        pictures = pack(unpacked, arguments.folder)
    size = sum((arguments.folder / p.file).stat().st_size for p in pictures)
    print(f"{len(pictures)} pictures, {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
