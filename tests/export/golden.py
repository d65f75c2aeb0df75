"""Small networks of the reference with weights made by a formula (see tests/data/golden/README.md)."""

from __future__ import annotations

import functools
import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from v2v.core.configs import AutoencoderConfig, ImageEncoderConfig, TextEncoderConfig, UNetConfig

GOLDEN = Path(__file__).parents[1] / "data" / "golden"

UNET = UNetConfig(width=32, multipliers=(1, 2, 4, 4), head_size=16, stem_heads=8, context_width=1024)
AUTOENCODER = AutoencoderConfig(width=32)
TEXT_ENCODER = TextEncoderConfig(width=64, heads=4, layers=4)
STAR_UNET = replace(UNET, gated=True, control="every frame")
VENHANCER_UNET = replace(UNET, control="key frames")
CLIP_AUTOENCODER = replace(AUTOENCODER, decoder_frames=3)
FIRST_STAGE_UNET = replace(UNET, row_padding=1)
IMAGE_ENCODER = ImageEncoderConfig(size=112, width=80, heads=4, layers=3, embedding=96, hidden=128)


def keys(name: str) -> dict[str, tuple[int, ...]]:
    """Every tensor's name and shape."""
    listed: dict[str, list[int]] = json.loads((GOLDEN / f"{name}.keys.json").read_text())
    return {key: tuple(shape) for key, shape in listed.items()}


def weights(name: str, by_way_of: Any = None) -> dict[str, torch.Tensor]:
    """The made-up weights of a small network.

    They are rounded to half from double precision, but in the first stage's set, in whose runs the first set's networks
    take part too, by way of single precision. One weight in some thousands differs, which the numbers tell.
    """
    first_stage = name.startswith("image-to-video/")
    made = _weights(name, by_way_of or (np.float32 if first_stage else np.float64))
    return {key: value.clone() for key, value in made.items()}


@functools.cache
def _weights(name: str, by_way_of: Any) -> dict[str, torch.Tensor]:
    made = {}
    for key, shape in keys(name).items():
        drawn = np.random.default_rng([11, zlib.crc32(key.encode())]).standard_normal(shape)
        if len(shape) == 1:
            value = (1.0 if key.endswith("weight") else 0.0) + 0.1 * drawn
        else:
            value = drawn / np.sqrt(np.prod(shape[1:]))
        value = value * (4 if ".local" in key else 8 if key.endswith("mix_factor") else 1)
        made[key] = torch.tensor(np.asarray(value).astype(by_way_of).astype(np.float16).astype(np.float32))
    return made


def cases(name: str) -> dict[str, torch.Tensor]:
    """Inputs and outputs of the reference."""
    return load_file(GOLDEN / f"{name}.cases.safetensors")


def relative_error(found: Any, expected: Any) -> float:
    """Relative L2 error."""
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
