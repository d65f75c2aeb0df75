"""A UNet with a control branch: STAR's and VEnhancer's (reference of STAR, section 2; of VEnhancer, section 2).

The branch is a second encoder and middle with weights of its own. A hint, latents of a clean or nearly clean video,
enters it once, behind its first convolution; what it makes of each level is added to the UNet's skip connections. Names
and shapes of the tensors are those of the published checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from v2v.core.configs import UNetConfig
from v2v.export.models.unet import Down, Downsample, UNet, by_frame, time_features


class ControlBranch(Down):
    """The second encoder: latents and hint to what is added to the output of every input block and of the middle.

    The hint is there for every frame, or for key frames; then these, and they alone, are also told how noisy the hint
    is and how much the video was enlarged.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        width, embedding, deepest = config.width, 4 * config.width, self.skips[-1]
        self.zero_convs = nn.ModuleList(nn.Sequential(nn.Conv2d(c, c, 1)) for c in self.skips)
        self.middle_block_out = nn.Sequential(nn.Conv2d(deepest, deepest, 1))
        self.input_hint_block = nn.Conv2d(config.latent_channels, width, 3, padding=1)
        self.has_keys = config.control == "key frames"
        if self.has_keys:
            self.hint_time_zero_linear = nn.Linear(embedding, embedding)
            self.scale_cond = nn.Sequential(
                nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
            )

    def condition(self, timestep: Tensor, like: Tensor, keys: tuple[Tensor, ...]) -> Tensor:
        """The embedding of the time step ``[B, E]``; with key frames that of every frame ``[B, F, E]``."""
        embedding = self.embed(timestep, like)
        if not self.has_keys:
            return embedding
        is_key, hint_timestep, scale = keys
        features = time_features(scale, self.config.width).to(like.dtype)
        told: Tensor = self.hint_time_zero_linear(self.embed(hint_timestep, like))
        told = told + self.scale_cond(features)
        return embedding[:, None] + is_key[..., None] * told[:, None]

    def begin(self, latents: Tensor, hint: Tensor, keys: tuple[Tensor, ...]) -> Tensor:
        """The first block, which takes in the hint: ``[B, Z, F, H, W]`` both -> ``[B*F, C, H, W]``."""
        convolution, transformer = self.input_blocks[0].children()
        x = convolution(by_frame(latents).contiguous(memory_format=torch.channels_last))
        shown = self.input_hint_block(by_frame(hint).contiguous(memory_format=torch.channels_last))
        if self.has_keys:  # other frames have no hint, which is not a hint of zeros: the bias is missing too
            shown = shown * keys[0].flatten()[:, None, None, None]
        begun: Tensor = transformer(x + shown, latents.shape[2])
        return begun

    def forward(
        self, latents: Tensor, timestep: Tensor, context: Tensor, hint: Tensor, keys: tuple[Tensor, ...]
    ) -> list[Tensor]:
        """What is added, from the first input block to the last, then the middle's."""
        frames, embedding = latents.shape[2], self.condition(timestep, latents, keys)
        x = self.begin(latents, hint, keys)
        added = [self.zero_convs[0](x)]
        for stage, convolution in zip(self.input_blocks[1:], self.zero_convs[1:], strict=True):
            x = stage(x) if isinstance(stage, Downsample) else stage(x, embedding, context, frames)
            added.append(convolution(x))
        x = self.middle_block(x, embedding, context, frames)
        return [*added, self.middle_block_out(x)]


class ControlledUNet(UNet):
    """A :class:`UNet` whose skip connections a :class:`ControlBranch` adds to.

    All methods take ``hint [B, Z, F, H, W]``, and of a model with key frames also ``keys [B, F]``, 1 where a frame has
    a hint and else 0, ``hint_timestep [B]``, the hint's noise level, and ``enlargement [B]``.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        self.VideoControlNet = ControlBranch(config)

    def forward(  # type: ignore[override]
        self, latents: Tensor, timestep: Tensor, context: Tensor, hint: Tensor, *keys: Tensor
    ) -> Tensor:
        """Predict velocity; see :meth:`UNet.forward`."""
        return self.full(latents, timestep, context, hint, *keys)[0]

    def full(  # type: ignore[override]
        self, latents: Tensor, timestep: Tensor, context: Tensor, hint: Tensor, *keys: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`UNet.full`."""
        added = self.VideoControlNet(latents, timestep, context, hint, keys)
        embedding = self.embed(timestep, latents)
        x, first = self._inside(latents, embedding, context, added)
        velocity = self._last(x, first, embedding, context, latents.shape[2])
        return velocity, torch.unflatten(x.permute(0, 2, 3, 1), 0, (-1, latents.shape[2]))

    def outer(
        self, latents: Tensor, timestep: Tensor, context: Tensor, hint: Tensor, *keys_and_features: Tensor
    ) -> Tensor:
        """See :meth:`UNet.outer`; ``features`` come last."""
        *keys, features = keys_and_features
        control, embedding = self.VideoControlNet, self.embed(timestep, latents)
        first = self._first(latents, embedding, context)
        first = first + control.zero_convs[0](control.begin(latents, hint, tuple(keys)))
        x = features.flatten(0, 1).permute(0, 3, 1, 2)
        return self._last(x, first, embedding, context, latents.shape[2])
