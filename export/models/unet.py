"""The spatio-temporal UNet that predicts velocity (reference, section 4: ``Vid2VidSDUNet``).

Names and shapes of the tensors are those of ``non_ema_0035000.pth``, misspelling included.

Layout. A video's feature map is ``x [B*F, C, H, W]`` in channels-last memory, that is ``[B, F, H, W, C]``
laid out densely. Seen from there everything else is a view: frames for the spatial convolutions,
``[B, C, F, H, W]`` for the temporal ones, tokens ``[B, F, H*W, C]`` for the transformers. Only attention over
frames gathers with a stride.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v2v.core.configs import UNetConfig
from v2v.export.models.layers import GatedLayerNorm, LayerNorm, attention, group_norm

RES_EPS = 1e-5  # group norms of residual blocks, temporal convolutions and the output
TRANSFORMER_EPS = 1e-6  # group norms of the transformers
PIECES = 4  # of the feed-forwards on the first two levels


def time_features(timestep: Tensor, width: int) -> Tensor:
    """``timestep [B] -> [B, width]`` FP32: cosines, then sines, of t * 10000 ** (-i / (width / 2))."""
    half = width // 2
    index = torch.arange(half, dtype=torch.float32, device=timestep.device)
    angles = timestep.float()[:, None] * torch.exp(index * (-math.log(10000.0) / half))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


FRAME_RATE_LAYERS = "fps_embedding."
"""How names of the tensors begin that make an embedding of the frame rate, in checkpoints that have one."""


def told_frame_rate(state: Mapping[str, Tensor], fps: int) -> dict[str, Tensor]:
    """Tensors of a UNet that is told a frame rate -> those of one that always takes it for ``fps``.

    The embedding of the rate is added to that of the time step behind the last layer of either (reference of the first
    stage, section 3), so that of one rate is part of a bias.
    """
    kept = {name: value for name, value in state.items() if not name.startswith(FRAME_RATE_LAYERS)}
    layers = [
        (
            state[f"{FRAME_RATE_LAYERS}{place}.weight"].float(),
            state[f"{FRAME_RATE_LAYERS}{place}.bias"].float(),
        )
        for place in (0, 2)
    ]
    features = time_features(torch.tensor([fps]), layers[0][0].shape[1])
    embedding = F.linear(F.silu(F.linear(features, *layers[0])), *layers[1])[0]
    bias = kept["time_embed.2.bias"]
    return {**kept, "time_embed.2.bias": (bias.float() + embedding).to(bias.dtype)}


def by_video(x: Tensor, frames: int) -> Tensor:
    """``[B*F, C, H, W] -> [B, C, F, H, W]``, a view."""
    return torch.unflatten(x, 0, (-1, frames)).transpose(1, 2)


def by_frame(x: Tensor) -> Tensor:
    """``[B, C, F, H, W] -> [B*F, C, H, W]``, a view of channels-last memory."""
    return x.transpose(1, 2).flatten(0, 1)


def by_token(x: Tensor, frames: int) -> Tensor:
    """``[B*F, C, H, W] -> [B, F, H*W, C]``, a view of channels-last memory."""
    return torch.unflatten(x.permute(0, 2, 3, 1).flatten(1, 2), 0, (-1, frames))


def from_token(tokens: Tensor, like: Tensor) -> Tensor:
    """``[B, F, H*W, C] -> [B*F, C, H, W]``, a view with ``like``'s frames, height and width."""
    return torch.unflatten(tokens.flatten(0, 1), 1, like.shape[-2:]).permute(0, 3, 1, 2)


class TemporalStage(nn.Sequential):
    """Group norm over a whole video, SiLU, convolution over three frames: ``[B, C, F, H, W]`` to the same.

    ``position`` is the convolution's index among its siblings in the checkpoint.
    """

    def __init__(self, groups: int, channels: int, position: int) -> None:
        between = (nn.Identity() for _ in range(position - 1))  # where the reference has SiLU and dropout
        convolution = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))
        super().__init__(group_norm(groups, channels, eps=RES_EPS, silu=True), *between, convolution)


class TemporalConvolution(nn.Module):
    """Temporal stages, four in the reference, beside a shortcut: ``[B*F, C, H, W] -> [B*F, C, H, W]``."""

    def __init__(self, groups: int, channels: int, stages: int = 4) -> None:
        super().__init__()
        for number in range(1, stages + 1):
            self.add_module(f"conv{number}", TemporalStage(groups, channels, 2 if number == 1 else 3))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Mix neighbouring frames."""
        video = mixed = by_video(x, frames)
        for stage in self.children():
            mixed = stage(mixed)
        return by_frame(video + mixed)


class ResBlock(nn.Module):
    """Two spatial convolutions, the time step between them, beside a shortcut; then a temporal convolution.

    ``[B*F, I, H, W] -> [B*F, O, H, W]``.
    """

    def __init__(
        self, groups: int, channels: int, embedding: int, out_channels: int, temporal_stages: int = 4
    ) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            group_norm(groups, channels, eps=RES_EPS, silu=True),
            nn.Identity(),
            nn.Conv2d(channels, out_channels, 3, padding=1),
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, out_channels))
        self.out_layers = nn.Sequential(
            group_norm(groups, out_channels, eps=RES_EPS, silu=True),
            nn.Identity(),
            nn.Identity(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        self.skip_connection = (
            nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()
        )
        self.temopral_conv = TemporalConvolution(groups, out_channels, temporal_stages)

    def forward(self, x: Tensor, embedding: Tensor, frames: int) -> Tensor:
        """``embedding [B, E]`` is that of the time step, the same for all frames of a video, or ``[B, F, E]``."""
        shift = self.emb_layers(embedding)
        shift = (
            shift[:, None, :, None, None] if shift.dim() == 2 else shift[..., None, None]
        )  # [B, F or 1, O, 1, 1]
        h = self.in_layers(x)
        h = (torch.unflatten(h, 0, (-1, frames)) + shift).flatten(0, 1)
        h = self.skip_connection(x) + self.out_layers(h)
        mixed: Tensor = self.temopral_conv(h, frames)
        return mixed


class Attention(nn.Module):
    """Multi-head attention among tokens ``[B, F, N, C]``; subclasses say who attends to whom.

    ``source`` is the width of what keys and values are made from.
    """

    def __init__(self, width: int, source: int, head_size: int) -> None:
        super().__init__()
        self.head_size = head_size
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(source, width, bias=False)
        self.to_v = nn.Linear(source, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def heads(self, x: Tensor) -> Tensor:
        """``[..., C] -> [..., heads, head size]``, a view."""
        return torch.unflatten(x, -1, (-1, self.head_size))


class SpatialAttention(Attention):
    """Every position attends to all positions of its frame."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, F, N, C] -> [B, F, N, C]``."""
        flat = x.flatten(0, 1)
        q, k, v = (self.heads(linear(flat)).transpose(1, 2) for linear in (self.to_q, self.to_k, self.to_v))
        mixed = attention(q, k, v).transpose(1, 2).flatten(2)
        projected: Tensor = self.to_out(mixed).view_as(x)
        return projected


class TemporalAttention(Attention):
    """Every position attends to the same position in all frames."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, F, N, C] -> [B, F, N, C]``."""
        # [B, F, N, heads, size] -> [B*N, heads, F, size]; no copy when B is 1.
        q, k, v = (
            self.heads(linear(x)).permute(0, 2, 3, 1, 4).flatten(0, 1)
            for linear in (self.to_q, self.to_k, self.to_v)
        )
        mixed = torch.unflatten(attention(q, k, v), 0, (x.shape[0], x.shape[2]))
        mixed = mixed.permute(0, 3, 1, 2, 4).flatten(3)
        projected: Tensor = self.to_out(mixed)
        return projected


class TextAttention(Attention):
    """Every position of every frame attends to the prompt, whose keys and values all frames share."""

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """``x [B, F, N, C]``, ``context [B, tokens, source] -> [B, F, N, C]``."""
        q = self.heads(self.to_q(x.flatten(1, 2))).transpose(1, 2)
        k, v = (self.heads(linear(context)).transpose(1, 2) for linear in (self.to_k, self.to_v))
        mixed = attention(q, k, v).transpose(1, 2).flatten(2)
        projected: Tensor = self.to_out(mixed).view_as(x)
        return projected


class GatedGelu(nn.Module):
    """``[..., C] -> [..., D]``: two linear maps, one gating the other through an exact (erf) GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        """First half times GELU of the second half."""
        value, gate = torch.chunk(self.proj(x), 2, -1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Gated two-layer network on each token, hidden width 4C.

    Hidden states are the largest tensors of the UNet, 3.8 GB of FP16 in the stem at full size. With ``pieces`` the
    tokens go through in that many pieces, one after the other, which changes no number. The activations of the
    UNet as TensorRT compiles it are 9.0 GB without pieces (tests/data/tensorrt_memory.json has them with).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GatedGelu(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))
        self.pieces = 1

    def forward(self, x: Tensor) -> Tensor:
        """``[..., C] -> [..., C]``."""
        if self.pieces == 1:
            whole: Tensor = self.net(x)
            return whole
        tokens = x.flatten(0, -2)
        return torch.cat([self.net(piece) for piece in tokens.chunk(self.pieces)]).view_as(x)


class SpatialGate(nn.Module):
    """The weight of each position of a frame, 0..1, made of the strongest and the mean channel around it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """``[B, F, N, C]``, ``size`` rows and columns of N -> ``[B, F, N, 1]`` in FP32."""
        maps = torch.unflatten(torch.cat(_strongest_and_mean(x), -1).flatten(0, 1), 1, size)
        around = self.conv1(maps.permute(0, 3, 1, 2).to(x.dtype)).float()
        return torch.sigmoid(torch.unflatten(around.permute(0, 2, 3, 1).flatten(1, 2), 0, x.shape[:2]))


class TemporalGate(nn.Module):
    """The weight of each token, 0..1, made of its strongest and its mean channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Linear(2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., C] -> [..., 1]`` in FP32."""
        strongest, mean = _strongest_and_mean(x)
        weight = self.conv1.weight.float()
        return torch.sigmoid(strongest * weight[0, 0] + mean * weight[0, 1])


def _strongest_and_mean(x: Tensor) -> tuple[Tensor, Tensor]:
    """``[..., C] -> [..., 1]`` each, in FP32."""
    wide = x.float()
    return wide.amax(-1, keepdim=True), wide.mean(-1, keepdim=True)


class SpatialBlock(nn.Module):
    """Attention within each frame, attention to the prompt, feed-forward."""

    def __init__(self, width: int, context_width: int, head_size: int, *, gated: bool) -> None:
        super().__init__()
        self.attn1 = SpatialAttention(width, width, head_size)
        self.attn2 = TextAttention(width, context_width, head_size)
        self.ff = FeedForward(width)
        self.norm1 = GatedLayerNorm(width) if gated else LayerNorm(width)
        self.norm2, self.norm3 = LayerNorm(width), LayerNorm(width)
        self.local1 = SpatialGate() if gated else None

    def forward(self, x: Tensor, context: Tensor, size: tuple[int, int]) -> Tensor:
        """``x [B, F, N, C]``, ``context [B, tokens, context width]``, ``size`` of a frame's map -> ``[B, F, N, C]``."""
        if self.local1 is not None and isinstance(self.norm1, GatedLayerNorm):
            x = x + self.attn1(self.norm1.gated(x, self.local1(x, size)))
        else:
            x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        x = x + self.ff(self.norm3(x))
        return x


class TemporalBlock(nn.Module):
    """Attention over frames, twice (the reference's second one ignores the prompt too), then feed-forward."""

    def __init__(self, width: int, head_size: int, *, gated: bool) -> None:
        super().__init__()
        self.attn1 = TemporalAttention(width, width, head_size)
        self.attn2 = TemporalAttention(width, width, head_size)
        self.ff = FeedForward(width)
        norm = GatedLayerNorm if gated else LayerNorm
        self.norm1, self.norm2, self.norm3 = norm(width), norm(width), LayerNorm(width)
        self.local1 = TemporalGate() if gated else None
        self.local2 = TemporalGate() if gated else None

    def forward(self, x: Tensor) -> Tensor:
        """``[B, F, N, C] -> [B, F, N, C]``."""
        x = x + self.attn1(self._normed(self.norm1, self.local1, x))
        x = x + self.attn2(self._normed(self.norm2, self.local2, x))
        x = x + self.ff(self.norm3(x))
        return x

    @staticmethod
    def _normed(norm: LayerNorm, gate: TemporalGate | None, x: Tensor) -> Tensor:
        if gate is not None and isinstance(norm, GatedLayerNorm):
            return norm.gated(x, gate(x))
        normed: Tensor = norm(x)
        return normed


class SpatialTransformer(nn.Module):
    """One spatial block on the tokens of each frame, beside a shortcut: ``[B*F, C, H, W]`` to the same."""

    def __init__(
        self, groups: int, channels: int, context_width: int, head_size: int, *, gated: bool = False
    ) -> None:
        super().__init__()
        self.norm = group_norm(groups, channels, eps=TRANSFORMER_EPS, silu=False)
        self.proj_in = nn.Linear(channels, channels)
        block = SpatialBlock(channels, context_width, head_size, gated=gated)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor, frames: int) -> Tensor:
        """``context [B, tokens, context width]``."""
        tokens = self.proj_in(by_token(self.norm(x), frames))
        tokens = self.transformer_blocks[0](tokens, context, (x.shape[-2], x.shape[-1]))
        return x + from_token(self.proj_out(tokens), x)


class TokenConvolution(nn.Conv1d):
    """A convolution of one tap, which is a linear map, applied to tokens ``[..., I] -> [..., O]``."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map each token."""
        return F.linear(x, self.weight.squeeze(-1), self.bias)


class TemporalTransformer(nn.Module):
    """One temporal block on the frames of each position, beside a shortcut: ``[B*F, C, H, W]`` to the same.

    The group norm spans the whole video; ``inner`` is the width of the tokens.
    """

    def __init__(
        self, groups: int, channels: int, inner: int, head_size: int, *, gated: bool = False
    ) -> None:
        super().__init__()
        self.norm = group_norm(groups, channels, eps=TRANSFORMER_EPS, silu=False)
        self.proj_in = TokenConvolution(channels, inner)
        self.transformer_blocks = nn.ModuleList([TemporalBlock(inner, head_size, gated=gated)])
        self.proj_out = TokenConvolution(inner, channels)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Let frames attend to each other."""
        normed = by_frame(self.norm(by_video(x, frames)))
        tokens = self.transformer_blocks[0](self.proj_in(by_token(normed, frames)))
        return x + from_token(self.proj_out(tokens), x)


class Downsample(nn.Module):
    """``[B*F, C, H, W] -> [B*F, C, H/2 + row_padding - 1, W/2]``: MS-Vid2Vid-XL pads rows by two, others by one."""

    def __init__(self, channels: int, row_padding: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=(row_padding, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve every second position."""
        halved: Tensor = self.op(x)
        return halved


class Upsample(nn.Module):
    """``[B*F, C, H, W] -> [B*F, C, 2 (H - crop), 2W]``: ``crop`` undoes :class:`Downsample`'s extra rows."""

    def __init__(self, channels: int, crop: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.crop = crop

    def forward(self, x: Tensor) -> Tensor:
        """Repeat rows and columns, drop the first and last ``crop`` rows, convolve."""
        repeated = F.interpolate(x, scale_factor=2.0, mode="nearest")
        doubled: Tensor = self.conv(repeated[:, :, self.crop : -self.crop] if self.crop else repeated)
        return doubled


class Stage(nn.ModuleList):
    """Modules that run one after the other, each given what it takes."""

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor, frames: int) -> Tensor:
        """``[B*F, C, H, W] -> [B*F, C', H', W']``."""
        for module in self:
            if isinstance(module, ResBlock):
                x = module(x, embedding, frames)
            elif isinstance(module, SpatialTransformer):
                x = module(x, context, frames)
            elif isinstance(module, TemporalTransformer):
                x = module(x, frames)
            else:
                x = module(x)
        return x


def make_stage(config: UNetConfig, channels: int, out_channels: int, *, attend: bool) -> Stage:
    """A residual block, and where ``attend`` attention within frames and then over frames."""
    groups, head_size, gated = config.groups, config.head_size, config.gated
    stage = Stage([ResBlock(groups, channels, 4 * config.width, out_channels, config.temporal_stages)])
    if attend:
        stage.append(SpatialTransformer(groups, out_channels, config.context_width, head_size, gated=gated))
        stage.append(TemporalTransformer(groups, out_channels, out_channels, head_size, gated=gated))
    return stage


class Down(nn.Module):
    """The half of a UNet that goes down: the time step's embedding, input blocks, middle.

    ``skips`` are the channels of every input block's output.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        width, embedding = config.width, 4 * config.width
        self.time_embed = nn.Sequential(
            nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        stem = Stage([nn.Conv2d(config.latent_channels, width, 3, padding=1)])
        if config.stem_heads:
            inner = config.stem_heads * config.head_size
            stem.append(
                TemporalTransformer(config.groups, width, inner, config.head_size, gated=config.gated)
            )
        self.input_blocks = nn.ModuleList([stem])
        self.skips = [width]
        channels = width
        last = len(config.multipliers) - 1
        for level, multiplier in enumerate(config.multipliers):
            for _ in range(config.blocks):
                attend = config.attention[level]
                self.input_blocks.append(make_stage(config, channels, width * multiplier, attend=attend))
                channels = width * multiplier
                self.skips.append(channels)
            if level < last:
                self.input_blocks.append(Downsample(channels, config.row_padding))
                self.skips.append(channels)
        self.middle_block = make_stage(config, channels, channels, attend=True)
        self.middle_block.append(
            ResBlock(config.groups, channels, embedding, channels, config.temporal_stages)
        )
        in_pieces(self.input_blocks[: 2 * (config.blocks + 1)])  # two levels
        if last < 2:  # it lies on one of them
            in_pieces(self.middle_block)

    def embed(self, timestep: Tensor, like: Tensor) -> Tensor:
        """Time steps ``[B]`` -> ``[B, E]``, in the type of ``like``."""
        embedded: Tensor = self.time_embed(time_features(timestep, self.config.width).to(like.dtype))
        return embedded


def in_pieces(stages: nn.ModuleList) -> None:
    """Let the feed-forwards of ``stages`` take their tokens in pieces."""
    for module in stages.modules():
        if isinstance(module, FeedForward):
            module.pieces = PIECES


class UNet(Down):
    """Velocity of a video's latents at a noise level, given a prompt.

    Latent height is ``config.rows_remainder`` modulo 8 and width 0 modulo 8 (with the default three halvings), so that
    sizes on the way up equal those on the way down.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        width, skips = config.width, list(self.skips)
        channels = skips[-1]
        self.output_blocks = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(config.multipliers))):
            for block in range(config.blocks + 1):
                stage = make_stage(
                    config, channels + skips.pop(), width * multiplier, attend=config.attention[level]
                )
                channels = width * multiplier
                if level > 0 and block == config.blocks:
                    stage.append(Upsample(channels, config.row_padding - 1))
                self.output_blocks.append(stage)

        self.out = nn.Sequential(
            group_norm(config.groups, width, eps=RES_EPS, silu=True),
            nn.Identity(),
            nn.Conv2d(width, config.latent_channels, 3, padding=1),
        )
        in_pieces(self.output_blocks[-2 * (config.blocks + 1) :])

    def forward(self, latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """Predict velocity.

        Args:
            latents: ``[B, Z, F, H, W]``, scaled to unit variance (``x / sqrt(sigma ** 2 + 1)``).
            timestep: ``[B]``, integers 0..999.
            context: ``[B, tokens, context width]`` from the text encoder or the image encoder.

        Returns:
            ``[B, Z, F, H, W]``, in ``latents``' type.
        """
        embedding = self.embed(timestep, latents)
        x, first = self._inside(latents, embedding, context)
        return self._last(x, first, embedding, context, latents.shape[2])

    def full(self, latents: Tensor, timestep: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`forward`; also the features that :meth:`outer` can go on from, ``[B, F, H, W, C]``."""
        embedding = self.embed(timestep, latents)
        x, first = self._inside(latents, embedding, context)
        velocity = self._last(x, first, embedding, context, latents.shape[2])
        return velocity, torch.unflatten(x.permute(0, 2, 3, 1), 0, (-1, latents.shape[2]))

    def outer(self, latents: Tensor, timestep: Tensor, context: Tensor, features: Tensor) -> Tensor:
        """As :meth:`forward`, with ``features`` in the place of everything between the first and the last block.

        They are those of an evaluation nearby (DeepCache, Ma et al. 2024, https://arxiv.org/abs/2312.00858, with
        the shallowest branch).
        """
        x = features.flatten(0, 1).permute(0, 3, 1, 2)
        embedding = self.embed(timestep, latents)
        return self._last(x, self._first(latents, embedding, context), embedding, context, latents.shape[2])

    def _first(self, latents: Tensor, embedding: Tensor, context: Tensor) -> Tensor:
        """The first block: ``[B, Z, F, H, W] -> [B*F, C, H, W]``."""
        x = by_frame(latents).contiguous(memory_format=torch.channels_last)
        first: Tensor = self.input_blocks[0](x, embedding, context, latents.shape[2])
        return first

    def _inside(
        self, latents: Tensor, embedding: Tensor, context: Tensor, added: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor]:
        """Everything but the last block: what enters it ``[B*F, C, H, W]``, and the first block's output.

        ``added``, if any, are added to the output of every input block and to that of the middle.
        """
        frames = latents.shape[2]
        first = x = self._first(latents, embedding, context)
        skips = []
        for stage in self.input_blocks[1:]:
            x = stage(x) if isinstance(stage, Downsample) else stage(x, embedding, context, frames)
            skips.append(x)
        x = self.middle_block(x, embedding, context, frames)
        if added:
            first, x = first + added[0], x + added[-1]
            skips = [skip + more for skip, more in zip(skips, added[1:-1], strict=True)]
        for stage in self.output_blocks[:-1]:
            x = stage(torch.cat([x, skips.pop()], dim=1), embedding, context, frames)
        return x, first

    def _last(self, x: Tensor, first: Tensor, embedding: Tensor, context: Tensor, frames: int) -> Tensor:
        """The last block and the output: two maps ``[B*F, C, H, W]`` -> ``[B, Z, F, H, W]``."""
        x = self.output_blocks[-1](torch.cat([x, first], dim=1), embedding, context, frames)
        return by_video(self.out(x), frames)
