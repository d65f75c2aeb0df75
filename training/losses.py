"""What the networks are taught by: losses that need no downloaded network, and a discriminator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


def gradient_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute difference of horizontal and vertical differences at three scales, ``[N, 3, H, W]`` each."""
    total = made.new_zeros(())
    for _ in range(3):
        for axis in (-1, -2):
            total = total + (made.diff(dim=axis) - wanted.diff(dim=axis)).abs().mean()
        made, wanted = F.avg_pool2d(made, 2), F.avg_pool2d(wanted, 2)
    return total / 6


def divergence(moments: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence per latent number of ``moments [N, 2Z, h, w]`` from the unit Gaussian."""
    mean, logvar = moments.float().chunk(2, 1)
    logvar = logvar.clamp(-30, 20)
    return 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()


class Discriminator(nn.Module):
    """Tells real frames from made ones, patch by patch, given the bad frame.

    It sees three neighbouring frames at once, so that flicker gives made ones away, and the bad frame in the middle,
    so that detail that does not belong there does as well. ``forward`` returns the logits and the features of every
    layer.
    """

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        plan = [(12, width, 2), (width, 2 * width, 2), (2 * width, 4 * width, 2), (4 * width, 4 * width, 1)]
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv2d(i, o, 4 if stride == 2 else 3, stride, 1)) for i, o, stride in plan
        )
        self.last = spectral_norm(nn.Conv2d(4 * width, 1, 3, padding=1))

    def forward(self, frames: Tensor, bad: Tensor) -> tuple[Tensor, list[Tensor]]:
        """``frames [N, 3, 3, H, W]`` (three frames of three channels), ``bad [N, 3, H, W]``."""
        x = torch.cat([frames.flatten(1, 2), bad], 1).contiguous(memory_format=torch.channels_last)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.last(x), features


def hinge(real: Tensor, made: Tensor) -> Tensor:
    """The discriminator's loss (Lim & Ye 2017, geometric GAN)."""
    return F.relu(1 - real).mean() + F.relu(1 + made).mean()


def feature_distance(made: list[Tensor], real: list[Tensor]) -> Tensor:
    """Mean absolute difference of the discriminator's features (Wang et al. 2018, pix2pixHD)."""
    return torch.stack([(a - b.detach()).abs().mean() for a, b in zip(made, real, strict=True)]).mean()
