"""The UNet made of fused operations; takes its weights from :class:`v2v.export.models.unet.UNet`.

One video at a time (B is 1), as the engines run it. What differs from the plain network is only where work happens:

- A bias that ends in a norm is part of the norm's coefficients; the time embedding too.
- The sums that end residual blocks and transformers also compute the moments for the next norm.
- Skip connections are never concatenated: norms and the shortcut's matrix product take two maps.
- Queries, keys and values come from one matrix product, and attention reads them where they lie.
- ``proj_out`` is linear, so it is multiplied into the last layer of the feed-forward network before it.
- Nearest-neighbour doubling followed by a 3x3 convolution is four 2x2 convolutions of the small map, with 4/9 of
  the arithmetic.
- Keys and values of the prompt for all blocks are one matrix product, and so are all time embeddings.
- What comes before the first attention to the prompt is a part of its own, which the two evaluations of a guided step
  share.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v2v.core.components import ComponentName
from v2v.engine.inductor.fused import operations as ops
from v2v.export.models import unet as plain
from v2v.export.models.control import ControlBranch, ControlledUNet
from v2v.export.models.layers import GroupNorm, LayerNorm


class Map(NamedTuple):
    """A feature map with the moments of its channels in each frame."""

    x: Tensor  # [F, R, C]
    moments: Tensor
    height: int


class Weights(nn.Module):
    """Holds tensors as buffers, so that a compiled module keeps them as named constants.

    Subclasses are made from the plain module of the same name.
    """

    def keep(self, name: str, value: Tensor | None) -> None:
        """Register ``value`` under ``name``."""
        assert value is not None
        self.register_buffer(name, value.detach().clone())


def like(reference: Tensor, value: Tensor) -> Tensor:
    """``value`` in the type of ``reference``; products of weights are computed in FP32 and rounded once."""
    return value.to(reference.dtype)


def positions_first(weight: Tensor) -> Tensor:
    """A convolution's ``[O, I, k, k]`` as ``[O, k, k, I]``: how a GPU reads it beside channels-last maps."""
    return weight.permute(0, 2, 3, 1).contiguous()


class Linear(Weights):
    """Matrix product without bias."""

    weight: Tensor
    input_dtype: torch.dtype | None = None  # the norm before it writes this type; None: that of the map

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.keep("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        """``[F * R, I] -> [F * R, O]``."""
        return F.linear(x, self.weight)


class Norm(Weights):
    """Group norm with SiLU where asked, over frames or over the whole clip."""

    weight: Tensor
    bias: Tensor
    output_dtype: torch.dtype | None = None  # None: the type of the map

    def __init__(self, norm: GroupNorm, *, over_clip: bool) -> None:
        super().__init__()
        self.keep("weight", norm.weight)
        self.keep("bias", norm.bias)
        self.groups, self.eps, self.silu, self.over_clip = norm.num_groups, norm.eps, norm.silu, over_clip

    def forward(
        self, xs: list[Tensor], moments: list[Tensor], shift: Tensor | None = None, *, padded_width: int = 0
    ) -> Tensor:
        """``xs [F, R, C']``, together C channels -> tokens ``[F * R, C]``; see ``scale_offset`` for padding."""
        coefficients = ops.norm_coefficients(
            moments,
            xs[0].shape[1],
            self.weight,
            self.bias,
            groups=self.groups,
            eps=self.eps,
            over_clip=self.over_clip,
            shift=shift,
        )
        return ops.scale_offset(
            xs, coefficients, silu=self.silu, dtype=self.output_dtype, padded_width=padded_width
        )


class Convolution(Weights):
    """Convolution; its bias is added where the caller says so, here or elsewhere."""

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.keep("weight", positions_first(conv.weight))
        self.keep("bias", conv.bias)
        self.stride, self.padding = conv.stride[0], (int(conv.padding[0]), int(conv.padding[1]))

    def forward(self, x: Tensor, frames: int, height: int, bias: Tensor | None = None) -> tuple[Tensor, int]:
        """``[F * R, I] -> [F, R', O]`` and the new height."""
        return ops.convolution(
            x, self.weight, frames, height, bias=bias, stride=self.stride, padding=self.padding
        )


class SpatialStage(nn.Module):
    """Norm over frames, SiLU, 3x3 convolution without its bias."""

    def __init__(self, norm: GroupNorm, conv: nn.Conv2d) -> None:
        super().__init__()
        self.norm = Norm(norm, over_clip=False)
        self.convolution = Convolution(conv)

    def forward(self, xs: list[Tensor], moments: list[Tensor], height: int, shift: Tensor | None) -> Tensor:
        """``xs [F, R, I']``, together I channels -> ``[F, R, O]``; ``shift [I]`` is still to be added to the input."""
        y: Tensor = self.convolution(self.norm(xs, moments, shift), xs[0].shape[0], height)[0]
        return y


class TemporalConvolution(Weights):
    """Convolution over three frames without its bias."""

    weight: Tensor

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        weights: Any = conv.weight
        self.keep("weight", weights.flatten(2).transpose(1, 2).flatten(1))  # [O, 3 * I]

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """``[F * R, I] -> [F, R, O]``."""
        return ops.temporal_convolution(x, self.weight, frames)


class TemporalStage(Weights):
    """Norm over the clip, SiLU, convolution over three frames without its bias."""

    bias: Tensor

    def __init__(self, stage: Any) -> None:
        super().__init__()
        self.norm = Norm(stage[0], over_clip=True)
        self.convolution = TemporalConvolution(stage[-1])
        self.keep("bias", stage[-1].bias)

    def forward(self, x: Tensor, moments: Tensor, shift: Tensor | None) -> Tensor:
        """``x [F, R, C]`` -> ``[F, R, C]``; ``shift [C]`` is still to be added to the input."""
        y: Tensor = self.convolution(self.norm([x], [moments], shift), x.shape[0])
        return y


class ResBlock(Weights):
    """Two spatial convolutions, then four temporal ones, each group beside a shortcut."""

    shortcut: Tensor
    second_bias: Tensor

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.first = SpatialStage(block.in_layers[0], block.in_layers[2])
        self.second = SpatialStage(block.out_layers[0], block.out_layers[3])
        bias = block.out_layers[3].bias
        self.has_shortcut = isinstance(block.skip_connection, nn.Conv2d)
        if isinstance(block.skip_connection, nn.Conv2d):
            self.keep("shortcut", block.skip_connection.weight.flatten(1))
            assert block.skip_connection.bias is not None
            bias = bias + block.skip_connection.bias
        self.keep("second_bias", bias)
        self.stages = nn.ModuleList(TemporalStage(stage) for stage in block.temopral_conv.children())

    def forward(self, maps: list[Map], shift: Tensor) -> Map:
        """``shift [O]``, or ``[F, O]``: time embedding and bias of the first convolution."""
        xs, height = [x_map.x for x_map in maps], maps[0].height
        h = self.first(xs, [x_map.moments for x_map in maps], height, None)
        if shift.dim() == 2:
            h = h + shift[:, None]
        h = self.second([h], [ops.moments(h)], height, shift if shift.dim() == 1 else None)
        others = [h]
        if self.has_shortcut:
            widths = [x.shape[-1] for x in xs]
            linear = [F.linear(x, w) for x, w in zip(xs, torch.split(self.shortcut, widths, 1), strict=True)]
            others += linear[1:]
            xs = linear
        x, moments = ops.add_moments(xs[0], others, self.second_bias)
        h, stage_moments = x, moments
        pending_bias: Tensor | None = None
        for index, stage in enumerate(self.stages):
            assert isinstance(stage, TemporalStage)
            h = stage(h, stage_moments, pending_bias)
            pending_bias = stage.bias
            if index < len(self.stages) - 1:
                stage_moments = ops.moments(h)
        assert pending_bias is not None
        x, moments = ops.add_moments(x, [h], pending_bias)
        return Map(x, moments, height)


class FeedForward(Weights):
    """Sum, layer norm, gated feed-forward network and the projection after it; see ``operations.feed_forward``."""

    norm: Tensor
    expand: Tensor
    expand_bias: Tensor
    contract: Tensor

    def __init__(self, norm: LayerNorm, network: Any, projection: Tensor) -> None:
        """``projection [O, C]``: of the block's output."""
        super().__init__()
        self.keep("norm", torch.stack([norm.weight, norm.bias]))
        self.keep("expand", network.net[0].proj.weight)
        self.keep("expand_bias", network.net[0].proj.bias)
        wide = projection.float()
        self.keep("contract", like(projection, torch.cat([wide, wide @ network.net[2].weight.float()], 1)))

    def forward(self, x: Tensor, delta: Tensor, bias: Tensor) -> list[Tensor]:
        """Tokens ``[F * R, C]`` -> what is to be added up to ``[F * R, O]``."""
        weights = self.norm[0], self.norm[1], self.expand, self.expand_bias, self.contract
        return [ops.feed_forward(x, delta, bias, *weights)]


class Transformer(Weights):
    """Norm, projection, two attentions, feed-forward network, projection, shortcut; subclasses add the attentions."""

    proj_in_bias: Tensor
    out1: Tensor
    out1_bias: Tensor
    out2: Tensor
    out2_bias: Tensor
    contract_bias: Tensor
    norm1: Tensor
    norm2: Tensor

    def __init__(self, block: Any, second: Tensor, *, over_clip: bool) -> None:
        """``second``: weights of the projection whose result :meth:`second_attention` takes."""
        super().__init__()
        inner = block.transformer_blocks[0]
        self.size: int = inner.attn1.head_size
        self.norm = Norm(block.norm, over_clip=over_clip)
        self.proj_in = Linear(block.proj_in.weight.flatten(1))
        self.keep("proj_in_bias", block.proj_in.bias)
        self.qkv = Linear(_stack(inner.attn1))
        self.second = Linear(second)
        self.keep("out1", inner.attn1.to_out[0].weight)
        self.keep("out2", inner.attn2.to_out[0].weight)
        self.keep("out2_bias", inner.attn2.to_out[0].bias)
        # The tokens stay without the bias of proj_in until they are summed for the first time.
        self.keep("out1_bias", inner.attn1.to_out[0].bias + block.proj_in.bias)
        for index, norm in ((1, inner.norm1), (2, inner.norm2)):
            assert isinstance(norm, LayerNorm)
            self.keep(f"norm{index}", torch.stack([norm.weight, norm.bias]))
        self.gate1, self.gate2 = (copy.deepcopy(getattr(inner, f"local{n}", None)) for n in (1, 2))
        last, projection = inner.ff.net[2], block.proj_out.weight.flatten(1)
        self.feed_forward = FeedForward(inner.norm3, inner.ff, projection)
        bias = projection.float() @ last.bias.float() + block.proj_out.bias.float()
        self.keep("contract_bias", like(projection, bias))

    def transform(self, x_map: Map, context: Tensor | None) -> Map:
        """Run the block; ``context`` is the prompt's keys and values, or None between frames."""
        return self.finish(x_map.x, *self.begin(x_map), context, x_map.height)

    def begin(self, x_map: Map) -> tuple[Tensor, Tensor]:
        """The block up to the second attention, which may be to the prompt: tokens, and their norm."""
        tokens = self.proj_in(self.norm([x_map.x], [x_map.moments]))
        frames, height = x_map.x.shape[0], x_map.height
        dtype = self.qkv.input_dtype
        if self.gate1 is None:
            normed = ops.layer_norm(tokens, self.proj_in_bias, self.norm1[0], self.norm1[1], dtype=dtype)
        else:
            whole = tokens + self.proj_in_bias
            gate = self.gate(self.gate1, whole, frames, height)
            normed = ops.gated_layer_norm(whole, gate, self.norm1[0], self.norm1[1], dtype=dtype)
        mixed = F.linear(self.first_attention(self.qkv(normed), frames), self.out1)
        second, dtype = (self.norm2[0], self.norm2[1]), self.second.input_dtype
        if self.gate2 is None:
            return ops.add_layer_norm(tokens, mixed, self.out1_bias, *second, dtype=dtype)
        tokens = tokens + mixed + self.out1_bias
        gate = self.gate(self.gate2, tokens, frames, height)
        return tokens, ops.gated_layer_norm(tokens, gate, *second, dtype=dtype)

    def gate(self, module: nn.Module, tokens: Tensor, frames: int, height: int) -> Tensor:
        """The weights ``[F * R, 1]`` of tokens ``[F * R, C]``."""
        weights: Tensor = module(tokens)
        return weights

    def finish(self, x: Tensor, tokens: Tensor, normed: Tensor, context: Tensor | None, height: int) -> Map:
        """The rest of the block; ``x [F, R, C]`` is what it began with, the others what :meth:`begin` gave."""
        mixed = F.linear(self.second_attention(self.second(normed), x.shape[0], context), self.out2)
        projected = self.feed_forward(tokens, mixed, self.out2_bias)
        return Map(*ops.add_moments(x, [y.view_as(x) for y in projected], self.contract_bias), height)

    def first_attention(self, qkv: Tensor, frames: int) -> Tensor:
        """``qkv [F * R, 3C] -> [F * R, C]``."""
        raise NotImplementedError

    def second_attention(self, projected: Tensor, frames: int, context: Tensor | None) -> Tensor:
        """Queries ``[F * R, C]``, or ``[F * R, 3C]`` with keys and values -> ``[F * R, C]``."""
        raise NotImplementedError


def _stack(attention: Any) -> Tensor:
    return torch.cat([attention.to_q.weight, attention.to_k.weight, attention.to_v.weight])


class SpatialTransformer(Transformer):
    """Attention within frames, attention to the prompt."""

    def __init__(self, block: Any) -> None:
        super().__init__(block, block.transformer_blocks[0].attn2.to_q.weight, over_clip=False)

    def gate(self, module: nn.Module, tokens: Tensor, frames: int, height: int) -> Tensor:
        """Of what is around each position of a frame."""
        maps = torch.unflatten(tokens, 0, (1, frames, -1))
        weights: Tensor = module(maps, (height, maps.shape[2] // height))
        return weights.flatten(0, 2)

    def first_attention(self, qkv: Tensor, frames: int) -> Tensor:
        """Among the positions of a frame."""
        return ops.spatial_attention(qkv, frames, self.size)

    def second_attention(self, projected: Tensor, frames: int, context: Tensor | None) -> Tensor:
        """To the prompt: ``context [tokens, 2C]``."""
        assert context is not None
        return ops.text_attention(projected, context, self.size)


class TemporalTransformer(Transformer):
    """Attention between frames, twice."""

    def __init__(self, block: Any) -> None:
        super().__init__(block, _stack(block.transformer_blocks[0].attn2), over_clip=True)

    def first_attention(self, qkv: Tensor, frames: int) -> Tensor:
        """Among the frames of a position."""
        return ops.temporal_attention(qkv, frames, self.size)

    def second_attention(self, projected: Tensor, frames: int, context: Tensor | None) -> Tensor:
        """Among the frames of a position, again."""
        return ops.temporal_attention(projected, frames, self.size)


class Downsample(nn.Module):
    """``height -> height / 2 + row_padding - 1``, width halves."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.conv = Convolution(block.op)

    def forward(self, x_map: Map) -> Map:
        """Convolve every second position."""
        y, height = self.conv(x_map.x.flatten(0, 1), x_map.x.shape[0], x_map.height, self.conv.bias)
        return Map(y, ops.moments(y), height)


class Upsample(Weights):
    """``height -> 2 (height - crop)``, width doubles: repetition and convolution in one (see the module's docstring).

    ``crop`` is 0 or 1.
    """

    phases: Tensor
    top: Tensor
    bottom: Tensor
    bias: Tensor

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.crop: int = block.crop
        assert self.crop in (0, 1), self.crop
        weight = block.conv.weight.detach()
        wide = weight.float()

        def pair(w: Tensor, axis: int) -> list[Tensor]:
            """A 3-tap kernel on repeated entries as 2-tap kernels: for even positions, for odd ones."""
            a, b, c = w.unbind(axis)
            return [torch.stack([a, b + c], axis), torch.stack([a + b, c], axis)]

        def stack(kernels: list[Tensor]) -> Tensor:
            return like(weight, positions_first(torch.cat(kernels)))

        self.keep("phases", stack([w for rows in pair(wide, 2) for w in pair(rows, 3)]))
        if self.crop:
            # Beside the rows that are dropped the convolution sees zeros instead of their repetition.
            self.keep("top", stack(pair(wide[:, :, 1:], 3)))
            self.keep("bottom", stack(pair(wide[:, :, :2], 3)))
        self.keep("bias", block.conv.bias)

    def forward(self, x_map: Map) -> Map:
        """Double."""
        x, height = x_map.x, x_map.height
        frames, width = x.shape[0], x.shape[1] // height
        phases, _ = ops.convolution(x.flatten(0, 1), self.phases, frames, height, padding=(1, 1))
        edges: tuple[Tensor, Tensor] | None = None
        if self.crop:
            rows = x[:, : 2 * width].flatten(0, 1), x[:, -2 * width :].flatten(0, 1)
            top, _ = ops.convolution(rows[0], self.top, frames, 2, padding=(0, 1))
            bottom, _ = ops.convolution(rows[1], self.bottom, frames, 2, padding=(0, 1))
            edges = top, bottom
        y = ops.interleave(phases, edges, self.bias, height, width)
        return Map(y, ops.moments(y), 2 * (height - self.crop))


class _Collected:
    """Weights of many blocks that become one product."""

    def __init__(self) -> None:
        self.times: list[Tensor] = []
        self.time_biases: list[Tensor] = []
        self.prompts: list[Tensor] = []

    def convert(self, module: nn.Module) -> nn.Module:
        """The fused form of a block."""
        weights: Any = module
        if isinstance(module, plain.ResBlock):
            projection = weights.emb_layers[1]
            self.times.append(projection.weight.detach())
            self.time_biases.append((projection.bias + weights.in_layers[2].bias).detach())
            return ResBlock(module)
        if isinstance(module, plain.SpatialTransformer):
            attention = weights.transformer_blocks[0].attn2
            self.prompts.append(torch.cat([attention.to_k.weight, attention.to_v.weight]).detach())
            return SpatialTransformer(module)
        if isinstance(module, plain.TemporalTransformer):
            return TemporalTransformer(module)
        if isinstance(module, plain.Downsample):
            return Downsample(module)
        assert isinstance(module, plain.Upsample), type(module)
        return Upsample(module)

    def convert_all(self, stage: Any) -> nn.ModuleList:
        """The fused forms of a stage's blocks."""
        children = [stage] if isinstance(stage, plain.Downsample) else list(stage.children())
        return nn.ModuleList(self.convert(child) for child in children)


class Half(Weights):
    """The half of a UNet that goes down; takes its weights from :class:`v2v.export.models.unet.Down`.

    With ``inside`` false only its first block.
    """

    times: Tensor
    times_bias: Tensor
    prompts: Tensor
    stem: Tensor
    stem_bias: Tensor

    def __init__(self, network: plain.Down, collected: _Collected, *, inside: bool) -> None:
        super().__init__()
        unet: Any = network
        self.config = network.config
        self.time_embed = copy.deepcopy(unet.time_embed)
        first = unet.input_blocks[0][0]
        assert isinstance(first, nn.Conv2d)
        self.keep("stem", positions_first(first.weight))
        self.keep("stem_bias", first.bias)
        self.stem_transformer = TemporalTransformer(unet.input_blocks[0][1])
        stages = list(unet.input_blocks)[1:]
        self.down = nn.ModuleList(collected.convert_all(stage) for stage in stages if inside)
        self.middle = collected.convert_all(unet.middle_block if inside else nn.ModuleList())
        # Whether what no prompt changes reaches into the second block.
        self.begins_second = inside and self.config.attention[0]

    def keep_collected(self, collected: _Collected) -> None:
        """Keep what all blocks were made of; call it when all are."""
        if collected.times:
            self.keep("times", torch.cat(collected.times))
            self.keep("times_bias", torch.cat(collected.time_biases))
        if collected.prompts:
            self.keep("prompts", torch.cat(collected.prompts))
        self.time_widths = [len(w) for w in collected.times]
        self.prompt_widths = [len(w) for w in collected.prompts]

    def start(self, latents: Tensor, shown: Tensor | None = None) -> Map:
        """The first block's map; ``shown [F, R, C]`` is added behind its convolution."""
        x = tokens_of_latents(latents)
        frames, height = latents.shape[2:4]
        x, _ = ops.convolution(x, self.stem, frames, height, bias=self.stem_bias)
        if shown is not None:
            x = x + shown
        return self.stem_transformer.transform(Map(x, ops.moments(x), height), None)

    def begun(self, first: Map, embedding: Tensor) -> tuple[Tensor, ...]:
        """The second block as far as its attention to the prompt; nothing where it does not attend.

        Its map ``[F, R, C]``, tokens and normed tokens ``[F * R, C]``.
        """
        if not self.begins_second:
            return ()
        residual, attention, *_ = self._modules_of(self.down[0])
        x_map = residual([first], self._shifts(embedding)[0])
        return (x_map.x, *attention.begin(x_map))

    def descend(
        self, first: Map, begun: Sequence[Tensor], shift: Iterator[Tensor], prompt: Iterator[Tensor]
    ) -> tuple[list[Map], Map]:
        """From the first block's map on: the maps of all input blocks, and that of the middle."""
        stages = [self._modules_of(stage) for stage in self.down]
        x_map, skips = first, [first]
        if self.begins_second:
            _, attention, *rest = stages.pop(0)
            next(shift)
            x_map = run(rest, [attention.finish(*begun, next(prompt), first.height)], shift, prompt)
            skips.append(x_map)
        for stage in stages:
            x_map = run(stage, [x_map], shift, prompt)
            skips.append(x_map)
        return skips, run(self._modules_of(self.middle), [x_map], shift, prompt)

    def embed(self, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        """Time steps ``[B]`` -> ``[B, E]``."""
        embedded: Tensor = self.time_embed(plain.time_features(timestep, self.config.width).to(dtype))
        return embedded

    def _prompts(self, context: Tensor) -> tuple[Tensor, ...]:
        """The keys and values of the prompt for each attention to it, ``[tokens, 2C]``."""
        if not self.prompt_widths:
            return ()
        return torch.split(F.linear(context[0], self.prompts), self.prompt_widths, 1)

    def _shifts(self, embedding: Tensor) -> tuple[Tensor, ...]:
        """What the time step adds in each residual block: ``[O]``, or where every frame has its own ``[F, O]``."""
        shifts = F.linear(F.silu(embedding), self.times, self.times_bias)
        return torch.split(shifts[0] if len(shifts) == 1 else shifts, self.time_widths, -1)

    @staticmethod
    def _modules_of(stage: nn.Module) -> list[Any]:
        return list(stage.children())


def tokens_of_latents(latents: Tensor) -> Tensor:
    """``[1, Z, F, H, W] -> [F * R, Z]``."""
    return latents[0].permute(1, 2, 3, 0).flatten(0, 2)


def run(modules: list[Any], maps: list[Map], shift: Iterator[Tensor], prompt: Iterator[Tensor]) -> Map:
    """Blocks one after the other, each given what it takes."""
    for module in modules:
        if isinstance(module, ResBlock):
            maps = [module(maps, next(shift))]
        elif isinstance(module, SpatialTransformer):
            maps = [module.transform(maps[0], next(prompt))]
        elif isinstance(module, TemporalTransformer):
            maps = [module.transform(maps[0], None)]
        else:
            maps = [module(maps[0])]
    return maps[0]


class Added(Weights):
    """A convolution of one position whose result is added to a map."""

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: Any) -> None:
        super().__init__()
        self.keep("weight", conv[0].weight.flatten(1))
        self.keep("bias", conv[0].bias)

    def forward(self, x: Tensor, to: Map) -> Map:
        """``x [F, R, C]``, convolved, added to a map of the same shape."""
        return Map(*ops.add_moments(to.x, [F.linear(x, self.weight)], self.bias), to.height)


class FusedControl(Half):
    """The control branch; takes its weights from :class:`v2v.export.models.control.ControlBranch`."""

    hint: Tensor
    hint_bias: Tensor

    def __init__(self, branch: ControlBranch, *, inside: bool) -> None:
        collected = _Collected()
        super().__init__(branch, collected, inside=inside)
        self.keep_collected(collected)
        plain_branch: Any = branch
        self.keep("hint", positions_first(plain_branch.input_hint_block.weight))
        self.keep("hint_bias", plain_branch.input_hint_block.bias)
        convolutions = list(branch.zero_convs) if inside else list(branch.zero_convs)[:1]
        self.added = nn.ModuleList(Added(convolution) for convolution in convolutions)
        if inside:
            self.added.append(Added(branch.middle_block_out))
        self.has_keys = branch.has_keys
        if self.has_keys and inside:
            self.hint_time_zero_linear = copy.deepcopy(branch.hint_time_zero_linear)
            self.scale_cond = copy.deepcopy(branch.scale_cond)
        self.inside = inside

    def unprompted(
        self, latents: Tensor, timestep: Tensor, hint: Tensor, *keys: Tensor
    ) -> tuple[Tensor, ...]:
        """As :meth:`FusedUNet.unprompted`, the embedding of the time step, or of every frame, in the third place."""
        frames, height, width = latents.shape[2:]
        shown, _ = ops.convolution(tokens_of_latents(hint), self.hint, frames, height, bias=self.hint_bias)
        if self.has_keys:
            shown = shown * keys[0][0, :, None, None]
        first = self.start(latents, shown)
        embedding = self._embedding(timestep, latents.dtype, keys)
        image = torch.unflatten(first.x, 1, (height, width))
        return image, first.moments, embedding, *self.begun(first, embedding)

    def _embedding(self, timestep: Tensor, dtype: torch.dtype, keys: tuple[Tensor, ...]) -> Tensor:
        embedding = self.embed(timestep, dtype)
        if not self.has_keys or not self.inside:
            return embedding
        is_key, hint_timestep, enlargement = keys
        features = plain.time_features(enlargement, self.config.width).to(dtype)
        told = self.hint_time_zero_linear(self.embed(hint_timestep, dtype)) + self.scale_cond(features)
        by_frame: Tensor = embedding + is_key[0, :, None] * told
        return by_frame

    def steer(
        self, shared: Sequence[Tensor], context: Tensor, skips: list[Map], middle: Map | None
    ) -> tuple[list[Map], Map | None]:
        """Add what the branch makes of ``shared`` to the maps of the input blocks and of the middle."""
        image, moments, embedding, *begun = shared
        first = Map(image.flatten(1, 2), moments, image.shape[1])
        if middle is None:
            return [self.added[0](first.x, skips[0])], None
        shift, prompt = iter(self._shifts(embedding)), iter(self._prompts(context))
        own, deepest = self.descend(first, begun, shift, prompt)
        steered = [add(mine.x, skip) for add, mine, skip in zip(self.added, own, skips, strict=False)]
        return steered, self.added[-1](deepest.x, middle)


class FusedUNet(Half):
    """Drop-in for :class:`~v2v.export.models.unet.UNet` at batch one, in the type its weights have.

    As component ``unet_full`` it also gives the features that enter the last block; as ``unet_outer``, which holds the
    first and the last block only, it takes them.
    """

    last: Tensor
    last_bias: Tensor

    def __init__(self, network: plain.UNet, name: ComponentName = "unet") -> None:
        inside, collected = name != "unet_outer", _Collected()
        super().__init__(network, collected, inside=inside)
        unet: Any = network
        self.name = name
        ups = list(unet.output_blocks)
        self.up = nn.ModuleList(collected.convert_all(stage) for stage in ups[:-1] if inside)
        self.up.append(collected.convert_all(ups[-1]))
        self.last_norm = Norm(unet.out[0], over_clip=False)
        # [9 * Z, C]: what each position gives to itself and its eight neighbours.
        self.keep("last", unet.out[2].weight.permute(2, 3, 0, 1).flatten(0, 2))
        self.keep("last_bias", unet.out[2].bias)
        self.keep_collected(collected)
        self.control = (
            FusedControl(network.VideoControlNet, inside=inside)
            if isinstance(network, ControlledUNet)
            else None
        )

    def forward(
        self, latents: Tensor, timestep: Tensor, context: Tensor, *others: Tensor
    ) -> Tensor | tuple[Tensor, Tensor]:
        """``latents [1, Z, F, H, W]``, ``timestep [1]``, ``context [1, tokens, C]`` -> velocity like ``latents``.

        ``others`` are a control branch's inputs, if there is one, and the features ``[1, F, H, W, C]`` of the component
        ``unet_outer``; they are a second output of ``unet_full``.
        """
        hints = others[:-1] if self.name == "unet_outer" else others
        shared = self.unprompted(latents, timestep, *hints)
        return self.prompted(shared, timestep, context, *others[len(hints) :])

    def unprompted(self, latents: Tensor, timestep: Tensor, *hints: Tensor) -> tuple[Tensor, ...]:
        """The part of an evaluation that no prompt changes; :meth:`prompted` continues from its result.

        The first block's map ``[F, H, W, C]`` and its moments. Where the second block attends, also its map
        ``[F, R, C]``, tokens and normed tokens ``[F * R, C]`` as they are before its attention to the prompt. Then the
        same of a control branch, with the embedding of the time step.
        """
        height, width = latents.shape[3:]
        first = self.start(latents)
        own = torch.unflatten(first.x, 1, (height, width)), first.moments
        begun = self.begun(first, self.embed(timestep, latents.dtype))
        steering = () if self.control is None else self.control.unprompted(latents, timestep, *hints)
        return (*own, *begun, *steering)

    def prompted(
        self, shared: tuple[Tensor, ...], timestep: Tensor, context: Tensor, features: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The rest of an evaluation; :meth:`unprompted` gives ``shared``, :meth:`forward` has the other arguments."""
        image, moments, *rest = shared
        begun, steering = (rest[:3], rest[3:]) if self.begins_second else ([], rest)
        frames, height, width = image.shape[:3]
        first = Map(image.flatten(1, 2), moments, height)
        shift = iter(self._shifts(self.embed(timestep, image.dtype)))
        prompt = iter(self._prompts(context))
        if features is not None:
            x = features[0].flatten(1, 2)
            skips, x_map = [first], Map(x, ops.moments(x), height)
            if self.control is not None:
                skips, _ = self.control.steer(steering, context, skips, None)
        else:
            skips, x_map = self.descend(first, begun, shift, prompt)
            if self.control is not None:
                skips, steered = self.control.steer(steering, context, skips, x_map)
                assert steered is not None
                x_map = steered
            for stage in map(self._modules_of, list(self.up)[:-1]):
                x_map = run(stage, [x_map, skips.pop()], shift, prompt)
        deep = x_map.x
        x_map = run(self._modules_of(self.up[-1]), [x_map, skips.pop()], shift, prompt)
        velocity = self._output(x_map, frames, height, width)
        if self.name == "unet_full":
            return velocity, torch.unflatten(deep, 1, (height, width))[None]
        return velocity

    def _output(self, x_map: Map, frames: int, height: int, width: int) -> Tensor:
        """The last norm and 3x3 convolution, as one product and nine sums.

        So few channels come out that a convolution kernel would mostly multiply padding.
        """
        products = F.linear(self.last_norm([x_map.x], [x_map.moments]), self.last)
        padded = F.pad(
            torch.unflatten(torch.unflatten(products, -1, (9, -1)), 0, (frames, height, width)),
            (0, 0, 0, 0, 1, 1, 1, 1),
        )
        y = self.last_bias.float()
        for tap in range(9):
            row, column = divmod(tap, 3)
            y = y + padded[:, row : row + height, column : column + width, tap].float()
        return y.permute(3, 0, 1, 2)[None].to(products.dtype).contiguous()
