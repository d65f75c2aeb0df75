"""The autoencoder made of fused operations; takes its weights from :class:`v2v.export.models.autoencoder.Autoencoder`.

One frame at a time, as the engines run it. A frame's map is ``[1, positions, channels]`` (see ``operations.py``);
biases and sums are folded into norms as in ``unet.py``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v2v.engine.inductor.fused import operations as ops
from v2v.engine.inductor.fused.unet import Convolution, Map, Norm, Weights, positions_first
from v2v.export.models import autoencoder as plain
from v2v.export.models.layers import GroupNorm


def mapped(x: Tensor, height: int) -> Map:
    """``x [1, R, C]`` with its moments."""
    return Map(x, ops.moments(x), height)


class ResnetBlock(Weights):
    """Two convolutions beside a shortcut."""

    shortcut: Tensor
    last_bias: Tensor

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norms = nn.ModuleList(_norm(norm) for norm in (block.norm1, block.norm2))
        self.convolutions = nn.ModuleList(Convolution(conv) for conv in (block.conv1, block.conv2))
        bias = block.conv2.bias
        self.has_shortcut = block.nin_shortcut is not None
        if block.nin_shortcut is not None:
            self.keep("shortcut", block.nin_shortcut.weight.flatten(1))
            bias = bias + block.nin_shortcut.bias
        self.keep("last_bias", bias)

    def forward(self, x_map: Map) -> Map:
        """``[1, R, I] -> [1, R, O]``."""
        h, _ = self.convolutions[0](self.norms[0]([x_map.x], [x_map.moments]), 1, x_map.height)
        normed = self.norms[1]([h], [ops.moments(h)], self.convolutions[0].bias)
        h, _ = self.convolutions[1](normed, 1, x_map.height)
        x = F.linear(x_map.x, self.shortcut) if self.has_shortcut else x_map.x
        return Map(*ops.add_moments(x, [h], self.last_bias), x_map.height)


def _norm(norm: nn.Module) -> Norm:
    assert isinstance(norm, GroupNorm)
    return Norm(norm, over_clip=False)


class Attention(Weights):
    """One head as wide as the map, beside a shortcut."""

    qkv: Tensor
    qkv_bias: Tensor
    out: Tensor
    out_bias: Tensor

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm = _norm(block.norm)
        convolutions = (block.q, block.k, block.v)
        self.keep("qkv", torch.cat([conv.weight.flatten(1) for conv in convolutions]))
        self.keep("qkv_bias", torch.cat([conv.bias for conv in convolutions if conv.bias is not None]))
        self.keep("out", block.proj_out.weight.flatten(1))
        self.keep("out_bias", block.proj_out.bias)

    def forward(self, x_map: Map) -> Map:
        """``[1, R, C] -> [1, R, C]``."""
        normed = self.norm([x_map.x], [x_map.moments])
        q, k, v = F.linear(normed, self.qkv, self.qkv_bias).chunk(3, -1)
        scores = (q * q.shape[-1] ** -0.5) @ k.t()
        mixed = torch.softmax(scores, -1) @ v  # in FP32 inside, whatever the type
        return Map(*ops.add_moments(x_map.x, [F.linear(mixed, self.out)[None]], self.out_bias), x_map.height)


class Resample(Weights):
    """Halve or double a map."""

    weight: Tensor
    bias: Tensor

    def __init__(self, block: plain.Downsample | plain.Upsample) -> None:
        super().__init__()
        self.up = isinstance(block, plain.Upsample)
        self.keep("weight", positions_first(block.conv.weight))
        self.keep("bias", block.conv.bias)

    def forward(self, x_map: Map) -> Map:
        """``[1, h * w, C] -> [1, h' * w', C]``."""
        image = torch.unflatten(x_map.x, 1, (x_map.height, -1))
        if self.up:
            image = image.repeat_interleave(2, 1).repeat_interleave(2, 2)
            height, stride, padding = 2 * x_map.height, 1, (1, 1)
        else:
            image = F.pad(image, (0, 0, 0, 1, 0, 1))
            height, stride, padding = x_map.height + 1, 2, (0, 0)
        y, height = ops.convolution(
            image.flatten(0, 2), self.weight, 1, height, bias=self.bias, stride=stride, padding=padding
        )
        return mapped(y, height)


class Chain(nn.Module):
    """First convolution, blocks, norm, last convolution."""

    def __init__(self, first: nn.Conv2d, blocks: list[nn.Module], norm: nn.Module, last: nn.Conv2d) -> None:
        super().__init__()
        self.first, self.last = Convolution(first), Convolution(last)
        self.blocks = nn.ModuleList(_convert(block) for block in blocks if not isinstance(block, nn.Identity))
        self.norm = _norm(norm)

    def forward(self, x: Tensor, height: int) -> tuple[Tensor, int]:
        """``[R, I] -> [R', O]`` and the new height."""
        x_map = mapped(self.first(x, 1, height, self.first.bias)[0], height)
        for block in self.blocks:
            x_map = block(x_map)
        y, height = self.last(self.norm([x_map.x], [x_map.moments]), 1, x_map.height, self.last.bias)
        return y.flatten(0, 1), height


def tokens_of(image: Tensor) -> tuple[Tensor, int]:
    """``[1, C, h, w] -> [h * w, C]`` and the height."""
    return image.permute(0, 2, 3, 1).flatten(0, 2), image.shape[2]


def image_of(tokens: Tensor, height: int) -> Tensor:
    """``[h * w, C] -> [1, C, h, w]``."""
    return torch.unflatten(tokens, 0, (1, height, -1)).permute(0, 3, 1, 2).contiguous()


def _convert(block: nn.Module) -> nn.Module:
    if isinstance(block, plain.ResnetBlock):
        return ResnetBlock(block)
    if isinstance(block, plain.AttnBlock):
        return Attention(block)
    assert isinstance(block, plain.Downsample | plain.Upsample), type(block)
    return Resample(block)


def _level(level: nn.Module) -> list[nn.Module]:
    assert isinstance(level, plain.Level)
    resampling = level.downsample or level.upsample
    return [*level.block, *([resampling] if resampling is not None else [])]


class FusedEncoder(nn.Module):
    """``Autoencoder.encode`` for one image, in the type its weights have."""

    def __init__(self, autoencoder: plain.Autoencoder) -> None:
        super().__init__()
        net = autoencoder.encoder
        blocks = [block for level in net.down for block in _level(level)]
        middle = [net.mid.block_1, net.mid.attn_1, net.mid.block_2]
        self.chain = Chain(net.conv_in, [*blocks, *middle], net.norm_out, net.conv_out)
        self.quantise = Convolution(autoencoder.quant_conv)

    def forward(self, image: Tensor) -> Tensor:
        """``image [1, 3, H, W]`` -> ``moments [1, 2Z, h, w]``."""
        x, height = self.chain(*tokens_of(image))
        return image_of(self.quantise(x, 1, height, self.quantise.bias)[0].flatten(0, 1), height)


class FusedDecoder(nn.Module):
    """``Autoencoder.decode`` for one latent, in the type its weights have."""

    def __init__(self, autoencoder: plain.Autoencoder) -> None:
        super().__init__()
        net = autoencoder.decoder
        blocks = [block for level in reversed(list(net.up)) for block in _level(level)]
        middle = [net.mid.block_1, net.mid.attn_1, net.mid.block_2]
        assert isinstance(autoencoder.post_quant_conv, nn.Conv2d), "a temporal decoder has none"
        self.quantise = Convolution(autoencoder.post_quant_conv)
        self.chain = Chain(net.conv_in, [*middle, *blocks], net.norm_out, net.conv_out)

    def forward(self, latents: Tensor) -> Tensor:
        """``latents [1, Z, h, w]`` -> ``image [1, 3, H, W]``."""
        x, height = tokens_of(latents)
        x, _ = self.quantise(x, 1, height, self.quantise.bias)
        return image_of(*self.chain(x.flatten(0, 1), height))
