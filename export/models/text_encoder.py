"""The OpenCLIP text tower, read before its last block (reference, section 2).

Names and shapes of the tensors are those of ``open_clip_pytorch_model.bin`` without its ``visual.`` half.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v2v.core.configs import TextEncoderConfig
from v2v.export.models.layers import LayerNorm, attention


class SelfAttention(nn.Module):
    """Self-attention with the parameter names of ``nn.MultiheadAttention``.

    If ``causal``, a token sees itself and those before it, else all.
    """

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))  # rows: q, k, v
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, tokens, C] -> [B, tokens, C]``."""
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = (torch.unflatten(part, -1, (self.heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
        mixed: Tensor = self.out_proj(attention(q, k, v, causal=self.causal).transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """Pre-norm transformer block with an exact (erf) GELU, of either of CLIP's towers."""

    def __init__(self, width: int, heads: int, *, causal: bool = True) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(width)
        self.attn = SelfAttention(width, heads, causal=causal)
        self.ln_2 = LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, 4 * width), gelu=nn.GELU(), c_proj=nn.Linear(4 * width, width))
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, tokens, C] -> [B, tokens, C]``."""
        x = x + self.attn(self.ln_1(x))
        x = x + self.mlp(self.ln_2(x))
        return x


class Transformer(nn.Module):
    """The stack of blocks, of which the last is stored but never run."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, tokens, C] -> [B, tokens, C]``, the output of the block before the last."""
        for block in list(self.resblocks)[:-1]:
            x = block(x)
        return x


def keep_pooling_head(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before loading, complete a state dict that has no pooling head with the one that is there."""
    for name in POOLING_HEAD:
        state_dict.setdefault(prefix + name, getattr(module, name))


POOLING_HEAD = ("text_projection", "logit_scale")  # in the published tower, read by nothing here


class TextEncoder(nn.Module):
    """Token ids to the context that the UNet attends to.

    The pooling head and the last block are part of the published tower; they are kept so that loading is
    strict, and unused, as in the reference. A tower without a pooling head loads too.
    """

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(config.context, config.width))
        self.transformer = Transformer(config.width, config.heads, config.layers)
        self.ln_final = LayerNorm(config.width)
        self.text_projection = nn.Parameter(torch.eye(config.width))
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.register_load_state_dict_pre_hook(keep_pooling_head)  # type: ignore[no-untyped-call]

    def forward(self, ids: Tensor) -> Tensor:
        """Encode ``ids [B, 77]`` (int64, padded with zeros) to ``[B, 77, C]``; every position is used."""
        x = self.token_embedding(ids) + self.positional_embedding
        encoded: Tensor = self.ln_final(self.transformer(x))
        return encoded
