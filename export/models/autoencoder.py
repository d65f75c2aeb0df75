"""The Stable Diffusion autoencoder with a KL bottleneck (reference, section 3).

Names and shapes of the tensors are those under ``first_stage_model.`` in ``v2-1_512-ema-pruned.ckpt``. Images
and feature maps are channels-last, so that the positions of a map are tokens without a copy.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v2v.core.configs import AutoencoderConfig
from v2v.export.models.layers import group_norm

EPS = 1e-6  # of every norm but those over frames
TEMPORAL_EPS = 1e-5


class ResnetBlock(nn.Module):
    """Two convolutions, each after norm and SiLU, beside a shortcut: ``[N, I, h, w]`` to ``[N, O, h, w]``."""

    def __init__(self, groups: int, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = group_norm(groups, channels, eps=EPS, silu=True)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(groups, out_channels, eps=EPS, silu=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        """Add the convolved map to the input."""
        h: Tensor = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class ClipResnetBlock(ResnetBlock):
    """A residual block on each frame of a clip, mixed with one over its frames: ``[F, I, h, w]`` to ``[F, O, h, w]``.

    Statistics of the temporal norms span the whole clip.
    """

    def __init__(self, groups: int, channels: int, out_channels: int) -> None:
        super().__init__(groups, channels, out_channels)
        self.time_stack = TemporalLayers(groups, out_channels)
        self.mix_factor = nn.Parameter(torch.empty(1))

    def forward(self, x: Tensor) -> Tensor:
        """The share of the temporal one is a learned number, the same everywhere."""
        spatial = super().forward(x)
        share = torch.sigmoid(self.mix_factor.float()).to(x.dtype)
        mixed: Tensor = (1 - share) * spatial + share * self.time_stack(spatial)
        return mixed


class TemporalLayers(nn.Module):
    """Two convolutions over three frames, each after norm and SiLU, beside a shortcut: ``[F, C, h, w]`` to the same."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__()

        def convolution() -> nn.Module:
            return nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))

        self.in_layers = nn.Sequential(
            group_norm(groups, channels, eps=TEMPORAL_EPS, silu=True), nn.Identity(), convolution()
        )
        self.out_layers = nn.Sequential(
            group_norm(groups, channels, eps=TEMPORAL_EPS, silu=True),
            nn.Identity(),
            nn.Identity(),
            convolution(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Mix neighbouring frames."""
        clip = x.transpose(0, 1)[None]
        mixed: Tensor = clip + self.out_layers(self.in_layers(clip))
        return mixed[0].transpose(0, 1)


class ClipConvolution(nn.Conv2d):
    """A convolution of each frame, then one over three frames."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 3, padding=1)
        self.time_mix_conv = nn.Conv3d(out_channels, out_channels, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, x: Tensor) -> Tensor:
        """``[F, I, h, w] -> [F, O, h, w]``."""
        mixed: Tensor = self.time_mix_conv(super().forward(x).transpose(0, 1)[None])[0].transpose(0, 1)
        return mixed


def wide_head_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention with one head, ``[N, tokens, C]`` each, softmax in FP32.

    Written out as matmul, softmax, matmul: no fused kernel takes a head of 512, and compilers that demand one
    for scaled_dot_product_attention would refuse the graph.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(1, 2)
    return torch.softmax(scores.float(), -1).to(q.dtype) @ v


class AttnBlock(nn.Module):
    """Self-attention over all positions of a map, one head as wide as the map, beside a shortcut."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(groups, channels, eps=EPS, silu=False)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, h, w] -> [N, C, h, w]``."""
        normed = self.norm(x)
        q, k, v = (conv(normed).permute(0, 2, 3, 1).flatten(1, 2) for conv in (self.q, self.k, self.v))
        mixed = torch.unflatten(wide_head_attention(q, k, v), 1, x.shape[-2:]).permute(0, 3, 1, 2)
        projected: Tensor = self.proj_out(mixed)
        return x + projected


class Downsample(nn.Module):
    """Halve height and width; zeros are added on the right and at the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, h, w] -> [N, C, h/2, w/2]``."""
        halved: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return halved


class Upsample(nn.Module):
    """Double height and width by repetition, then convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, h, w] -> [N, C, 2h, 2w]``."""
        doubled: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return doubled


class Level(nn.Module):
    """The residual blocks of one resolution and the change to the next."""

    def __init__(
        self,
        groups: int,
        channels: int,
        out_channels: int,
        blocks: int,
        kind: type[ResnetBlock] = ResnetBlock,
    ) -> None:
        super().__init__()
        widths = [channels] + [out_channels] * blocks
        self.block = nn.ModuleList(kind(groups, a, b) for a, b in pairwise(widths))
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks, then resample if this is not the last level."""
        for block in self.block:
            x = block(x)
        if self.downsample is not None:
            x = self.downsample(x)
        if self.upsample is not None:
            x = self.upsample(x)
        return x


class Middle(nn.Module):
    """Residual block, attention (where the configuration has it), residual block at the lowest resolution."""

    def __init__(
        self, config: AutoencoderConfig, channels: int, kind: type[ResnetBlock] = ResnetBlock
    ) -> None:
        super().__init__()
        self.block_1 = kind(config.groups, channels, channels)
        self.attn_1 = AttnBlock(config.groups, channels) if config.attention else nn.Identity()
        self.block_2 = kind(config.groups, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, h, w] -> [N, C, h, w]``."""
        x = self.block_2(self.attn_1(self.block_1(x)))
        return x


class Encoder(nn.Module):
    """Image, ``[N, 3P², H/P, W/P]`` of patches of P pixels, to features ``[N, 2Z, h, w]``, before ``quant_conv``."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        width = config.encoder_width or config.width
        widths = [width * m for m in config.multipliers]
        self.conv_in = nn.Conv2d(3 * config.patch**2, width, 3, padding=1)
        self.down = nn.ModuleList(
            Level(config.groups, a, b, config.blocks) for a, b in zip([width, *widths], widths, strict=False)
        )
        for level, width in zip(list(self.down)[:-1], widths, strict=False):
            level.downsample = Downsample(width)
        self.mid = Middle(config, widths[-1])
        self.norm_out = group_norm(config.groups, widths[-1], eps=EPS, silu=True)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Encode."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        x = self.conv_out(self.norm_out(self.mid(x)))
        return x


class Decoder(nn.Module):
    """Latent ``[N, Z, h, w]``, after ``post_quant_conv``, to image, ``[N, 3P², H/P, W/P]`` of patches of P pixels.

    A temporal one takes the frames of one clip, and mixes them. One that sees the source has its patches as further
    channels of the latent, and makes what is to be added to them.

    Levels are numbered by resolution as in the encoder, so the decoder runs them from the last to the first.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.width * m for m in config.multipliers]
        seen = 3 * config.patch**2 if config.sees_source else 0
        self.conv_in = nn.Conv2d(config.latent_channels + seen, widths[-1], 3, padding=1)
        kind = ClipResnetBlock if config.temporal else ResnetBlock
        self.mid = Middle(config, widths[-1], kind)
        self.up = nn.ModuleList(
            Level(config.groups, a, b, config.blocks + 1, kind)
            for a, b in zip([*widths[1:], widths[-1]], widths, strict=False)
        )
        for level, width in zip(list(self.up)[1:], widths[1:], strict=False):
            level.upsample = Upsample(width)
        self.norm_out = group_norm(config.groups, widths[0], eps=EPS, silu=True)
        made = 3 * config.patch**2
        self.conv_out = (
            ClipConvolution(widths[0], made) if config.temporal else nn.Conv2d(widths[0], made, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Decode."""
        x = self.mid(self.conv_in(x))
        for level in reversed(list(self.up)):
            x = level(x)
        x = self.conv_out(self.norm_out(x))
        return x


def _without_grid(patches: Tensor) -> Tensor:
    """``[N, 3P², h, w]`` without what 9x9 patches have in common by their pixels' places: a grid that no scene has.

    What they have in common by their colours stays.
    """
    pooled = F.avg_pool2d(patches, 9, 1, 4, count_include_pad=False)
    around = torch.unflatten(pooled, 1, (3, -1))
    grid: Tensor = (around - around.mean(2, keepdim=True)).flatten(1, 2)
    return patches - grid


class Autoencoder(nn.Module):
    """Images to the moments of their latents, and latents to images.

    H and W are multiples of ``config.factor``; Z is ``config.latent_channels``. Latents here are unscaled;
    the diffusion model's are these times ``ModelConfig.latent_scale``.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        z = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * z, 2 * z, 1)
        self.post_quant_conv = nn.Identity() if config.temporal else nn.Conv2d(z, z, 1)

    def encode(self, image: Tensor) -> Tensor:
        """``image [N, 3, H, W]`` in -1..1 -> ``moments [N, 2Z, h, w]``: mean and log variance."""
        patches = self._patches(image).contiguous(memory_format=torch.channels_last)
        moments: Tensor = self.quant_conv(self.encoder(patches))
        return moments

    def decode(self, latent: Tensor, source: Tensor | None = None) -> Tensor:
        """``latent [N, Z, h, w]`` -> ``image [N, 3, H, W]``, -1..1, not clamped; a temporal decoder's N are a clip.

        ``source``, of a decoder that sees it, is the frame that is enhanced, at the image's size.
        """
        z = self.post_quant_conv(latent.contiguous(memory_format=torch.channels_last))
        if source is not None:
            z = torch.cat([z, self._patches(source)], 1).contiguous(memory_format=torch.channels_last)
        made: Tensor = self.decoder(z)
        if self.config.patch > 1:
            made = F.pixel_shuffle(_without_grid(made), self.config.patch)
        return made if source is None else source + made

    def _patches(self, image: Tensor) -> Tensor:
        """``[N, 3, H, W] -> [N, 3P², H/P, W/P]``."""
        return image if self.config.patch == 1 else F.pixel_unshuffle(image, self.config.patch)
