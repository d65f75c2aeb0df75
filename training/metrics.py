"""How good a picture is, beside another or alone.

PSNR, SSIM and VIF come from torchmetrics. GMSD and the two no-reference measures are written out here, because the
library that has GMSD needs torchvision, which does not load beside every PyTorch. Frames are ``[N, 3, H, W]`` in 0..1.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
    visual_information_fidelity,
)


def luma(frames: Tensor) -> Tensor:
    """``[N, 3, H, W] -> [N, 1, H, W]``, BT.601."""
    weights = frames.new_tensor([0.299, 0.587, 0.114])
    return (frames * weights[None, :, None, None]).sum(1, keepdim=True)


def psnr(made: Tensor, true: Tensor) -> float:
    """Peak signal-to-noise ratio over RGB in decibels, mean over frames; higher is better."""
    ratios = peak_signal_noise_ratio(made, true, data_range=(0.0, 1.0), reduction="none", dim=(1, 2, 3))
    return float(ratios.mean())


def ssim(made: Tensor, true: Tensor) -> float:
    """Structural similarity of luma; higher is better."""
    value = structural_similarity_index_measure(luma(made), luma(true), data_range=1.0)
    assert isinstance(value, Tensor)  # a pair only where contrasts are asked for
    return float(value)


def vif(made: Tensor, true: Tensor) -> float:
    """Visual information fidelity in pixels (Sheikh & Bovik 2006) of luma; higher is better, 1 is equal."""
    return float(visual_information_fidelity(luma(made) * 255, luma(true) * 255))


def gmsd(made: Tensor, true: Tensor) -> float:
    """Gradient magnitude similarity deviation (Xue et al. 2014), mean over frames; lower is better.

    As in the paper: luma in 0..255 averaged over 2x2 and halved, Prewitt gradients, c = 170, standard deviation of
    the similarity map.
    """
    prewitt = made.new_tensor([[1.0, 0.0, -1.0]] * 3) / 3
    kernels = torch.stack([prewitt, prewitt.T])[:, None]

    def magnitude(frames: Tensor) -> Tensor:
        halved = F.avg_pool2d(luma(frames) * 255, 2)
        return F.conv2d(halved, kernels, padding=1).square().sum(1).sqrt()

    a, b = magnitude(made), magnitude(true)
    similarity = (2 * a * b + 170) / (a**2 + b**2 + 170)
    return float(similarity.flatten(1).std(1, correction=0).mean())


def sharpness(frames: Tensor) -> float:
    """Mean gradient energy of luma (Tenengrad, Sobel, 0..255), square root, mean over frames; higher is sharper.

    No reference enters; noise raises it too, so read it beside a full-reference measure.
    """
    sobel = frames.new_tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]]) / 8
    gradients = F.conv2d(luma(frames) * 255, torch.stack([sobel, sobel.T])[:, None])
    return float(gradients.square().sum(1).mean(dim=(1, 2)).sqrt().mean())


def flicker(made: Tensor, true: Tensor) -> float:
    """What changes from frame to frame although it does not in the true clip: mean absolute difference between the
    two clips' luma changes, in 0..255; lower is steadier.
    """
    return float((luma(made).diff(dim=0) - luma(true).diff(dim=0)).abs().mean() * 255)


def color_error(made: Tensor, true: Tensor) -> float:
    """How far broad colours are off: mean absolute difference of the RGB means of 16x16 pixels, in 0..255."""
    return float((F.avg_pool2d(made, 16) - F.avg_pool2d(true, 16)).abs().mean() * 255)


def tint(made: Tensor, true: Tensor) -> float:
    """How far the picture as a whole is off in colour: the largest difference of a channel's mean, in 0..255."""
    return float((made.mean(dim=(0, 2, 3)) - true.mean(dim=(0, 2, 3))).abs().max() * 255)


def judge_of_looks(folder: Path) -> Callable[[Tensor, Tensor], float]:
    """Shift-tolerant LPIPS with an AlexNet trunk (Ghildyal & Liu 2022), which training does not use; lower is better.

    ``folder`` holds the unpacked wheel of stlpips-pytorch. Its modules import packages that this needs nothing of.
    """
    for name in ("torchvision", "torchvision.models", "torchvision.transforms", "IPython", "torchsummary"):
        stand_in = types.ModuleType(name)
        stand_in.__dict__.update(models=None, transforms=None, embed=None, summary=None)
        sys.modules.setdefault(name, stand_in)
    sys.path.insert(0, str(folder))
    stlpips = importlib.import_module("stlpips_pytorch.stlpips")
    network = stlpips.LPIPS(net="alex", variant="shift_tolerant", verbose=False).eval()

    @torch.inference_mode()
    def judge(made: Tensor, true: Tensor) -> float:
        return float(
            np.mean([network(a[None] * 2 - 1, b[None] * 2 - 1) for a, b in zip(made, true, strict=True)])
        )

    return judge


MEASURES = {"psnr": psnr, "ssim": ssim, "vif": vif, "gmsd": gmsd}
