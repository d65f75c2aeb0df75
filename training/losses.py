"""What the networks are taught by: losses of pixels and of looks, and a discriminator."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
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


class Perceptual(nn.Module):
    """How different two frames look: shift-tolerant LPIPS with a VGG-16 trunk (Ghildyal & Liu 2022).

    Its weights come with the package stlpips-pytorch (:mod:`training.perceptual` converts them). Only trained with:
    what is measured uses another trunk.
    """

    LAYERS = (
        (0, 2),
        (6, 8),
        (12, 14, 16),
        (20, 22, 24),
        (28, 30, 32),
    )  # convolutions, as the package numbers them

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 64, 128, 256, 512, 512)
        self.slices = nn.ModuleList(
            nn.ModuleList(
                nn.Conv2d(before if number == 0 else after, after, 3, padding=1)
                for number in range(len(layers))
            )
            for layers, before, after in zip(self.LAYERS, widths, widths[1:], strict=False)
        )
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(1, width, 1, 1)) for width in widths[1:])
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[None, :, None, None])
        line = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("smooth", torch.outer(line, line)[None, None])

    @classmethod
    def load(cls, path: Path) -> Perceptual:
        """With the weights of ``path``, fixed."""
        network = cls()
        network.load_state_dict(load_file(path), strict=False)
        return network.requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, made: Tensor, true: Tensor) -> Tensor:
        """``[N, 3, H, W]`` in -1..1 each -> ``[N]``, 0 where they are equal."""
        x = (torch.cat([made, true]) - self.shift) / self.scale
        total = x.new_zeros(len(made))
        for number, (layers, weight) in enumerate(zip(self.slices, self.weights, strict=True)):
            if number:
                x = F.max_pool2d(x, 2, 1)
                kernel = self.smooth.to(x.dtype).expand(x.shape[1], 1, 3, 3)
                x = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, stride=2, groups=x.shape[1])
            for layer in layers:
                x = F.relu(layer(x))
            normed = x.float() * torch.rsqrt(x.float().square().sum(1, keepdim=True) + 1e-10)
            first, second = normed.chunk(2)
            total = total + ((first - second) ** 2 * weight.float()).sum(1).mean(dim=(1, 2))
        return total


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
