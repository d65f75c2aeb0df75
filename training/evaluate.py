"""Measure the small model on clips that it never saw: ``python -m training.evaluate CLIPS OUTPUT --engines SET``.

``CLIPS`` is a folder with the files that :data:`CLIPS` names (training/README.md says where they are). Each clip is
scaled down (bicubic, antialiased), compressed with H.264 and enhanced by the runtime as a user would, with the model's
defaults; bicubic and Lanczos scaling of the same compressed clip stand beside it, and another enhancer where ``--peer``
names it. Writes ``small.json``, ``small.md`` and ``before_after.png``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from training.clips import Bytes, h264, read
from training.metrics import color_error, flicker, gmsd, judge_of_looks, psnr, sharpness, tint
from v2v.engine.store import EngineSet
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.diffusion.settings import Settings

Enhance = Callable[[Bytes, tuple[int, int]], Bytes]
"""Small frames, and the (height, width) that they are to have -> large frames."""


@dataclass(frozen=True)
class Case:
    """A clip, what part of it is measured (top, left, height, width at full size), and how it is scaled.

    ``shrink`` comes first and gives the true frames: what a soft recording holds is sharp then. ``factor`` gives what
    is to be enhanced, compressed at ``crf``.
    """

    name: str
    file: str
    first: int
    part: tuple[int, int, int, int]
    factor: int
    shrink: int = 1
    crf: int = 23

    @property
    def group(self) -> str:
        """What figures are averaged over."""
        return f"1/{self.factor}, CRF {self.crf}"

    @property
    def title(self) -> str:
        """Name and scale."""
        return f"{self.name}, {self.group}"


BUNNY = Case("Big Buck Bunny", "bigbuckbunny.mp4", 60, (180, 320, 360, 640), 2)
CLIPS = (
    BUNNY,
    replace(BUNNY, name="Big Buck Bunny at 640x360", part=(0, 0, 352, 640), shrink=2),
    Case("bikes", "bikes.mp4", 20, (0, 0, 272, 640), 2),
    Case("carphone", "carphone_pristine.mp4", 0, (0, 0, 144, 176), 2),
    Case("cockatoo", "cockatoo.mp4", 60, (0, 0, 352, 640), 2, shrink=2),
    Case("crystal", "crystal.mp4", 60, (0, 0, 240, 352), 2, shrink=2),
    Case("elf", "elf.mp4", 60, (0, 0, 240, 352), 2, shrink=2),
    Case("monster", "monster.mp4", 60, (0, 0, 240, 352), 2, shrink=2),
    Case("bottles", "bottle-detection.mp4", 200, (0, 0, 352, 640), 2),
    Case("car park", "car-detection.mp4", 100, (0, 64, 352, 640), 2),
)
CASES = tuple(
    replace(clip, factor=factor, crf=crf) for factor in (2, 4) for crf in (23, 33) for clip in CLIPS
)
# Corners (top, left) of what the picture shows of each, 150 x 210 pixels.
CORNERS = {
    "Big Buck Bunny, 1/4, CRF 23": (200, 200),
    "Big Buck Bunny at 640x360, 1/2, CRF 23": (120, 250),
    "bikes, 1/4, CRF 23": (0, 430),
}
HEADS = {
    "psnr": "PSNR dB, up",
    "gmsd": "GMSD, down",
    "looks": "ST-LPIPS, down",
    "flicker": "flicker, down",
    "tint": "tint, down",
    "sharpness": "sharpness",
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


def prepare(case: Case, clips: Path, frames: int) -> tuple[Bytes, Bytes]:
    """The true frames and the compressed small ones, both cut to the case's part."""
    whole = read(clips / case.file, case.first, frames)
    if case.shrink > 1:
        whole = scale_down(whole, case.shrink)
    small = h264(scale_down(whole, case.factor), case.crf, "medium")
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


def peer(folder: Path) -> Enhance:
    """Real-ESRGAN's animevideov3 on the CPU: ``folder`` holds its ``.param`` and ``.bin`` files, for ncnn."""
    import ncnn  # no dependency: only this script uses it

    networks: dict[int, Any] = {}

    def network(factor: int) -> Any:
        if factor not in networks:
            networks[factor] = ncnn.Net()
            for suffix, load in (("param", "load_param"), ("bin", "load_model")):
                file = folder / f"realesr-animevideov3-x{factor}.{suffix}"
                if getattr(networks[factor], load)(str(file)):
                    raise SystemExit(f"{file}: ncnn cannot read it")
        return networks[factor]

    def enhance(frames: Bytes, size: tuple[int, int]) -> Bytes:
        loaded, made = network(size[0] // frames.shape[1]), []
        for frame in frames:
            extractor = loaded.create_extractor()
            levels = np.ascontiguousarray(frame.transpose(2, 0, 1), np.float32) / 255
            extractor.input("data", ncnn.Mat(levels))  # which reads them where they are
            _, out = extractor.extract("output")
            made.append(np.array(out))
        return as_bytes(torch.from_numpy(np.stack(made)))

    return enhance


def measure(made: Bytes, true: Bytes, looks: Callable[[Tensor, Tensor], float] | None) -> dict[str, float]:
    """All measures of one result; ``looks`` is a judge, as :func:`training.metrics.judge_of_looks` makes one."""
    a, b = as_tensor(made), as_tensor(true)
    values = {"psnr": psnr(a, b), "gmsd": gmsd(a, b)}
    values |= {"sharpness": sharpness(a), "flicker": flicker(a, b), "color": color_error(a, b)}
    values |= {"tint": tint(a, b)} | ({} if looks is None else {"looks": looks(a, b)})
    return {name: round(value, 4) for name, value in values.items()}


def evaluate(
    methods: dict[str, Enhance],
    clips: Path,
    cases: tuple[Case, ...],
    frames: int,
    looks: Callable[[Tensor, Tensor], float] | None,
) -> Iterator[tuple[Case, dict[str, Any]]]:
    """Results of every case, ``{method: {measure: value}}``, with processor seconds, and a frame under ``frame``."""
    for case in cases:
        true, small = prepare(case, clips, frames)
        size = (true.shape[1], true.shape[2])
        results: dict[str, Any] = {
            "true": {"sharpness": round(sharpness(as_tensor(true)), 4), "frame": true[frames // 2]}
        }
        for name, enhance in methods.items():
            before = time.process_time()
            made = enhance(small, size)
            seconds = time.process_time() - before
            results[name] = measure(made, true, looks)
            results[name] |= {"cpu_seconds_per_megapixel": round(seconds / made[..., 0].size * 1e6, 2)}
            results[name]["frame"] = made[frames // 2]
        print(case.title, {name: values.get("psnr") for name, values in results.items()}, flush=True)
        yield case, results


def means(results: dict[Case, dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """``{group: {method: {measure: mean}}}``."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for group in {case.group: None for case in results}:
        rows = [methods for case, methods in results.items() if case.group == group]
        found[group] = {
            method: {
                name: round(float(np.mean([row[method][name] for row in rows])), 4)
                for name in rows[0][method]
                if name != "frame"
            }
            for method in rows[0]
        }
    return found


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown."""
    lines = [f"| clips | method | {' | '.join(HEADS.values())} |", "| --- | --- |" + " --- |" * len(HEADS)]
    for group, methods in results.items():
        for method, values in methods.items():
            cells = [f"{values[key]:.4g}" if key in values else "" for key in HEADS]
            lines.append(f"| {group} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def picture(results: dict[Case, dict[str, Any]], path: Path) -> None:
    """Crops side by side: bicubic, enhanced, true; enlarged twice without smoothing."""
    height, width, zoom, head = 150, 210, 2, 26
    labels = ("input, bicubic", "enhanced", "original")
    shown = [(CORNERS[case.title], methods) for case, methods in results.items() if case.title in CORNERS]
    sheet = Image.new("RGB", (3 * (width * zoom + 6), len(shown) * (height * zoom + 6) + head), "white")
    draw = ImageDraw.Draw(sheet)
    for column, label in enumerate(labels):
        draw.text((column * (width * zoom + 6) + 8, 5), label, fill="black", font_size=16)
    for row, ((top, left), methods) in enumerate(shown):
        for column, method in enumerate(("bicubic", "v2v", "true")):
            frame = methods[method]["frame"]
            crop = Image.fromarray(frame[top : top + height, left : left + width])
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
    parser.add_argument("--strengths", type=float, nargs="*", default=[], help="others than the default")
    parser.add_argument("--cases", type=int, nargs="*", help="numbers of the cases; all of them by default")
    parser.add_argument("--frames", type=int, default=24, help="of each clip")
    parser.add_argument("--judge", type=Path, help="folder with the unpacked wheel of stlpips-pytorch")
    parser.add_argument("--peer", type=Path, help="folder with realesr-animevideov3 for ncnn")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    model = VideoToVideo.load(arguments.engines)

    def ours(strength: float | None) -> Enhance:
        return lambda small, size: np.stack(list(model(small, Settings(size=size, strength=strength))))

    methods: dict[str, Enhance] = {
        "bicubic": lambda small, size: upscale(small, size, Image.Resampling.BICUBIC),
        "Lanczos": lambda small, size: upscale(small, size, Image.Resampling.LANCZOS),
        "v2v": ours(None),
        **{f"v2v, strength {strength}": ours(strength) for strength in arguments.strengths},
    }
    if arguments.peer:
        methods["realesr-animevideov3"] = peer(arguments.peer)
    looks = judge_of_looks(arguments.judge) if arguments.judge else None
    cases = CASES if arguments.cases is None else tuple(CASES[n] for n in arguments.cases)
    results = dict(evaluate(methods, arguments.clips, cases, arguments.frames, looks))
    picture(results, arguments.output / "before_after.png")
    for methods_of_case in results.values():
        for values in methods_of_case.values():
            del values["frame"]
    recipe = EngineSet.open(arguments.engines).manifest.recipe
    averages = means(results)
    described = {
        "weights": recipe.weights.identity,
        "window": str(recipe.window),
        "frames": arguments.frames,
        "date": time.strftime("%Y-%m-%d"),
        "means": averages,
        "results": {case.title: values for case, values in results.items()},
    }
    (arguments.output / "small.json").write_text(json.dumps(described, indent=1) + "\n")
    (arguments.output / "small.md").write_text(table(averages))
    print(table(averages))


if __name__ == "__main__":
    main()
