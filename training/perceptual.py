"""The weights of :class:`training.losses.Perceptual`: ``python -m training.perceptual TARGET.safetensors``.

They come with the package stlpips-pytorch (BSD 2-Clause), which nothing else here needs: ``pip download --no-deps
stlpips-pytorch`` fetches it. Half precision, as a file of 30 MB travels better.
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from training.losses import Perceptual

MEMBER = "stlpips_pytorch/weights/vST0.0/vgg_shift_tolerant.pth"


def convert(wheel: Path, target: Path) -> None:
    """The trunk and the weights of its channels, out of the package's ``wheel``."""
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as file:
        state = torch.load(file, map_location="cpu", weights_only=True)
    tensors = {}
    for number, layers in enumerate(Perceptual.LAYERS):
        for place, layer in enumerate(layers):
            for kind in ("weight", "bias"):
                tensors[f"slices.{number}.{place}.{kind}"] = state[f"net.slice{number + 1}.{layer}.{kind}"]
        tensors[f"weights.{number}"] = state[f"lin{number}.model.1.weight"]
    save_file({name: tensor.half().contiguous() for name, tensor in tensors.items()}, target)


def main() -> None:
    """Convert."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    convert(arguments.wheel, arguments.target)


if __name__ == "__main__":
    main()
