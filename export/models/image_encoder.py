"""The OpenCLIP image tower and the layers that make a context of what it sees (reference of the first stage, 2 and 3).

Names and shapes of the tensors are those of the ``visual.`` half of ``open_clip_pytorch_model.bin``, and of the layers
``context_embedding`` that the published UNet keeps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from v2v.core.configs import ImageEncoderConfig
from v2v.export.models.layers import LayerNorm
from v2v.export.models.text_encoder import Block

CONTEXT_LAYERS = "context_embedding."
"""How names of the tensors begin that make a context of the tower's numbers."""


class Transformer(nn.Module):
    """The stack of blocks, all of which run."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, causal=False) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, tokens, C] -> [B, tokens, C]``."""
        for block in self.resblocks:
            x = block(x)
        return x


class ImageTower(nn.Module):
    """A picture to the numbers that say what it shows, not normalised."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        patches = (config.size // config.patch) ** 2
        self.conv1 = nn.Conv2d(3, config.width, config.patch, stride=config.patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(config.width))
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(patches + 1, config.width))
        self.ln_pre = LayerNorm(config.width)
        self.transformer = Transformer(config.width, config.heads, config.layers)
        self.ln_post = LayerNorm(config.width)
        self.proj = nn.Parameter(config.width**-0.5 * torch.randn(config.width, config.embedding))

    def forward(self, image: Tensor) -> Tensor:
        """``[B, 3, size, size] -> [B, embedding]``."""
        patches = self.conv1(image).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(image.shape[0], 1, -1)
        x = self.ln_pre(torch.cat([first, patches], 1) + self.positional_embedding)
        embedding: Tensor = self.ln_post(self.transformer(x)[:, 0]) @ self.proj
        return embedding


class ImageEncoder(nn.Module):
    """A picture to the context that the UNet attends to, and the context of no picture."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.visual = ImageTower(config)
        self.context_embedding = nn.Sequential(
            nn.Linear(config.embedding, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, config.tokens * config.context_width),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Encode one picture.

        Args:
            image: ``[1, 3, size, size]``, 0..1, of each channel CLIP's mean taken away, then divided by its standard
                deviation.

        Returns:
            ``[2, tokens, context width]``: the picture's context, then that of no picture, whose numbers are all 0.
        """
        embedding = self.visual(image)
        return self.context(torch.cat([embedding, torch.zeros_like(embedding)]))

    def context(self, embedding: Tensor) -> Tensor:
        """The tower's numbers ``[B, embedding]`` -> ``[B, tokens, context width]``."""
        return torch.unflatten(self.context_embedding(embedding), 1, (self.config.tokens, -1))
