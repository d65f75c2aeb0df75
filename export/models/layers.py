"""What the three networks share: norms that compute in FP32, and attention over heads.

Everything here is a named piece on purpose: a backend that has a faster kernel replaces the piece and leaves
the networks as they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """Group norm in FP32, then SiLU if ``silu``; the result has the input's type.

    ``[N, C, ...] -> [N, C, ...]``; statistics span a group's channels and everything after the channel axis.
    Works on any memory layout and keeps it.
    """

    def __init__(self, groups: int, channels: int, *, eps: float, silu: bool) -> None:
        super().__init__(groups, channels, eps)
        self.silu = silu

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, scale, shift, and apply SiLU where asked."""
        y = F.group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps)
        return (F.silu(y) if self.silu else y).to(x.dtype)


def group_norm(groups: int, channels: int, *, eps: float, silu: bool) -> nn.Module:
    """A :class:`GroupNorm`, or without groups no norm at all: SiLU or nothing."""
    if groups:
        return GroupNorm(groups, channels, eps=eps, silu=silu)
    return nn.SiLU() if silu else nn.Identity()


class LayerNorm(nn.LayerNorm):
    """Layer norm over the last axis in FP32; the result has the input's type."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, scale and shift."""
        y = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return y.to(x.dtype)


class GatedLayerNorm(LayerNorm):
    """Layer norm of tokens that a gate in 0..1 has weighed.

    A factor changes a norm through its epsilon alone: that of ``g x`` with epsilon e is that of ``x`` with
    ``e / g²``. So compiled networks never make ``g x``, which loses digits in FP16 (:func:`with_token_epsilons`).
    """

    token_epsilons = False

    def gated(self, x: Tensor, gate: Tensor) -> Tensor:
        """``x [..., C]``, ``gate [..., 1]`` in FP32 -> ``[..., C]``."""
        if not self.token_epsilons:
            return super().forward(gate.to(x.dtype) * x)
        wide = x.float()
        centred = wide - wide.mean(-1, keepdim=True)
        variance = (centred * centred).mean(-1, keepdim=True)
        normed = centred * torch.rsqrt(variance + self.eps / gate.square())  # in FP16 1 / g² would overflow
        return (normed * self.weight.float() + self.bias.float()).to(x.dtype)


def with_token_epsilons(network: nn.Module) -> nn.Module:
    """``network`` in the form that is compiled: gates become epsilons of its layer norms, which changes no number."""
    for module in network.modules():
        if isinstance(module, GatedLayerNorm):
            module.token_epsilons = True
    return network


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """Scaled dot-product attention, ``[N, heads, tokens, head size]`` each, scale ``head size ** -0.5``."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
