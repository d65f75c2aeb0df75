"""The small model's clip: what a backend makes of it beside what ONNX Runtime makes of it on the CPU."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from v2v.core.components import Window, window_for
from v2v.core.configs import MODELS
from v2v.core.errors import EngineError
from v2v.core.samples import picture
from v2v.device import open_device
from v2v.doctor.checks import Facts, Step
from v2v.engine.backend import BuildOptions
from v2v.engine.build import build_engine_set
from v2v.engine.choose import default_precision, default_weights
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.diffusion.settings import Settings

NEAR = 45.0
"""Decibels that a clip must come to, beside the CPU's; in half precision GPUs came to 62 and more."""

_SETTINGS = Settings(prompt="a fox runs through snow", seed=7)
_MORE = {
    "steps": 2,
    "guidance": 3.0,
    "strength": 0.2,
}  # of a small window: both halves of guidance, two steps
_FRAMES = 4
_MODEL = MODELS["small"]
_WITHOUT_PYTORCH = window_for(_MODEL)  # the package has graphs for it


def small_window(torch_is_here: bool) -> Window:
    """The window of the clip: a small one where graphs can be exported, else that of the packaged graphs."""
    return window_for(_MODEL, (320, 184), 4) if torch_is_here else _WITHOUT_PYTORCH


def clip(name: str, device: str, window: Window, folder: Path, step: Step) -> Facts:
    """Build the small model's engines with backend ``name`` for ``device``, and enhance a clip with them.

    The frames become ``folder/clip.npy`` for ONNX Runtime on the CPU; others are compared with those.

    Raises:
        V2VError: what fails, or that the clip is another one.
    """
    step("building")
    started = time.monotonic()
    built = build_engine_set(
        _MODEL,
        weights=default_weights(_MODEL),
        window=window,
        backend_name=name,
        options=BuildOptions(precision=default_precision(device), device=device),
        output=folder / f"clip-{name}",
    )
    build_seconds = time.monotonic() - started
    step("loading")
    enhancer = VideoToVideo(built.engine_set, open_device(device))
    step("enhancing")
    more: dict[str, Any] = {} if window == _WITHOUT_PYTORCH else _MORE
    started = time.monotonic()
    enhanced = np.stack([frame.astype(np.uint8) for frame in enhancer(frames(window), _SETTINGS, **more)])
    facts: dict[str, Any] = {
        "window": str(window),
        "build_seconds": round(build_seconds, 2),
        "seconds": round(time.monotonic() - started, 2),
    }
    reference = folder / "clip.npy"
    if (name, device) == ("onnxruntime", "cpu"):
        np.save(reference, enhanced)
        return facts
    step("comparing with the CPU's")
    facts["decibels"] = round(decibels(enhanced, np.load(reference)), 1)
    if facts["decibels"] < NEAR:
        raise EngineError(
            f"the small model's clip is {facts['decibels']} dB from that of the CPU, {NEAR:.0f} are asked for"
        )
    return facts


def frames(window: Window) -> list[npt.NDArray[np.uint8]]:
    """A picture that moves, half the window's size, for a few frames."""
    still = picture(window.height // 2, window.width // 2)[0]
    levels = np.moveaxis(np.rint((still + 1) * 127.5), 0, 2).astype(np.uint8)
    return [
        np.ascontiguousarray(np.roll(levels, 2 * number, 1)) for number in range(min(window.frames, _FRAMES))
    ]


def decibels(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two films; of the same bytes 99."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return 99.0 if error == 0 else min(10 * math.log10(255**2 / error), 99.0)
