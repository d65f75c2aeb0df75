"""What the small model makes of HDR: ``python -m training.hdr CLIPS OUTPUT --engines ENGINE_SET``.

Clips of SDR are put into BT.2020 with the PQ curve (ST 2084), their white at 203 or 1000 cd/m2, scaled to a quarter and
kept with ten bits. The model is given the values as they are coded, as the runtime does, and the same clip as SDR, put
back into PQ afterwards: that is what it was trained on, but has no room for light above white. Writes ``hdr.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from training.clips import read
from training.evaluate import CASES, middle
from training.metrics import psnr, sharpness
from v2v.engine.store import EngineSet
from v2v.runtime.diffusion.pipeline import VideoToVideo

FRAMES = 8
SHOWN = ("Big Buck Bunny, 1/4, CRF 23", "bikes, 1/4, CRF 23")
WIDTH, HEIGHT = 320, 176
Pictures = npt.NDArray[np.float64]

# BT.709 light in BT.2020's primaries (BT.2087).
_TO_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
# Constants of ST 2084.
_M1, _M2 = 2610 / 16384, 2523 / 4096 * 128
_C1, _C2, _C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32


def to_pq(sdr: Pictures, white: float) -> Pictures:
    """SDR values 0..1, shown with a gamma of 2.4 and ``white`` cd/m2 -> PQ values in BT.2020."""
    light = np.clip(sdr, 0, 1) ** 2.4 * white @ _TO_2020.T
    powered = np.clip(light / 10000, 0, 1) ** _M1
    coded: Pictures = ((_C1 + _C2 * powered) / (1 + _C3 * powered)) ** _M2
    return coded


def to_sdr(coded: Pictures, white: float) -> Pictures:
    """The inverse of :func:`to_pq`; what is brighter than ``white`` or beyond BT.709 is clipped."""
    powered = np.clip(coded, 0, 1) ** (1 / _M2)
    light = 10000 * (np.maximum(powered - _C1, 0) / (_C2 - _C3 * powered)) ** (1 / _M1)
    shown: Pictures = np.clip(light @ np.linalg.inv(_TO_2020).T / white, 0, 1) ** (1 / 2.4)
    return shown


def as_tensor(pictures: Pictures) -> Tensor:
    """``[F, H, W, 3]`` to ``[F, 3, H, W]``."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float()


def as_pictures(frames: Tensor) -> Pictures:
    """The inverse of :func:`as_tensor`."""
    return frames.permute(0, 2, 3, 1).numpy().astype(np.float64)


def enhanced(model: VideoToVideo, small: Pictures) -> Pictures:
    """The model's result for values 0..1, four times as large."""
    levels = [np.rint(frame * 65535).astype(np.uint16) for frame in small]
    size = (small.shape[1] * 4, small.shape[2] * 4)
    made: Pictures = np.stack(list(model(levels, "", size=size))).astype(np.float64) / 65535
    return made


def measure(made: Pictures, true: Pictures) -> dict[str, float]:
    """Both on PQ values."""
    a, b = as_tensor(made), as_tensor(true)
    return {"psnr": round(psnr(a, b), 2), "sharpness": round(sharpness(a), 3)}


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--engines", type=Path, required=True, help="engine set of the small model")
    arguments = parser.parse_args()
    model = VideoToVideo.load(arguments.engines)
    results: dict[str, Any] = {}
    for case in (case for case in CASES if case.title in SHOWN):
        for white in (203.0, 1000.0):
            top, left, height, width = middle(case, WIDTH, HEIGHT).part
            clip = read(arguments.clips / case.file, case.first, FRAMES) / 255.0
            true = to_pq(clip[:, top : top + height, left : left + width], white)
            shrunk = F.interpolate(as_tensor(true), (height // 4, width // 4), mode="bicubic", antialias=True)
            small = np.rint(as_pictures(shrunk.clamp(0, 1)) * 1023) / 1023
            plain = F.interpolate(as_tensor(small), (height, width), mode="bicubic").clamp(0, 1)
            results[f"{case.name}, white at {white:.0f} cd/m2"] = {
                "true": {"sharpness": round(sharpness(as_tensor(true)), 3)},
                "bicubic": measure(as_pictures(plain), true),
                "values as coded": measure(enhanced(model, small), true),
                "as SDR and back": measure(to_pq(enhanced(model, to_sdr(small, white)), white), true),
            }
    recipe = EngineSet.open(arguments.engines).manifest.recipe
    described = {
        "weights": recipe.weights.identity,
        "window": str(recipe.window),
        "frames": FRAMES,
        "date": time.strftime("%Y-%m-%d"),
        "results": results,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "hdr.json").write_text(json.dumps(described, indent=1) + "\n")
    print(json.dumps(described, indent=1))


if __name__ == "__main__":
    main()
