"""The patterns of a model's networks, each as a small model of its own, so that what builds models builds patterns.

A UNet is the same blocks on every level, with other widths on maps of other sizes. So a pattern is a UNet of one level
with one block there: convolutions over a frame and over frames, both transformers, the feed-forward network, norms and
a joined shortcut, at the width and on the map that the level has. Another one halves and doubles, a third attends with
logits up to 1e4, which half precision does not hold before they are scaled. The autoencoder's halves and the first
blocks of the encoder that guides are patterns as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from v2v.core.components import ComponentName, Window
from v2v.core.configs import ModelConfig, UNetConfig

LARGEST_LOGIT = 1e4
"""What the scores of a sharp pattern's attentions come to, scaled, before the softmax."""

_SPREAD = 1.4  # of the largest score of a token with itself to the mean of them
_ENCODER_LAYERS = 3
_LEAST_SIDE = 8  # of a map


@dataclass(frozen=True)
class Pattern:
    """A component of a model made for it, and the window that it has at full size."""

    name: str
    component: ComponentName
    model: ModelConfig
    window: Window
    sharp: bool = False  # attentions over a frame and over frames with scores up to LARGEST_LOGIT
    level: int | None = None  # of the UNet


def patterns(model: ModelConfig, window: Window) -> list[Pattern]:
    """Those of ``model``, those that tell most first."""
    unet, maps = model.unet, map_sizes(model, window)
    levels = [
        Pattern(
            f"UNet level {level + 1}",
            "unet",
            _of_levels(model, level, (unet.multipliers[level],), (unet.attention[level],)),
            _window(window, maps[level], 0),
            level=level,
        )
        for level in range(len(maps))
    ]
    attending = next((level for level in range(len(maps)) if unet.attention[level]), len(maps) - 1)
    sharp = replace(levels[attending], name="attention with logits of 1e4", sharp=True, level=None)
    halving = Pattern(
        "halving and doubling",
        "unet",
        _of_levels(model, 0, unet.multipliers[:2], (False, False)),
        _window(window, maps[0], 1),
    )
    encoder = Pattern("text encoder", "text_encoder", _shallow(model), window)
    if model.takes_pictures:
        encoder = replace(encoder, name="image encoder", component="image_encoder")
    coding = [Pattern("VAE decoder", "vae_decoder", model, window)]
    if not model.takes_pictures:
        coding.insert(0, Pattern("VAE encoder", "vae_encoder", model, window))
    return [levels[0], sharp, *coding, *levels[1:], halving, encoder]


def map_sizes(model: ModelConfig, window: Window) -> list[tuple[int, int]]:
    """Height and width of the UNet's maps, level by level."""
    sizes = [(window.latent_height, window.latent_width)]
    for _ in model.unet.multipliers[1:]:
        height, width = sizes[-1]
        sizes.append((height // 2 + model.unet.row_padding - 1, width // 2))
    return sizes


def scaled(pattern: Pattern) -> Iterator[Window]:
    """The pattern's window, then smaller and smaller ones: fewer frames first, then fewer rows and columns."""
    window = pattern.window
    frames = window.frames if pattern.component == "unet" else 1
    while frames >= 2:
        yield replace(window, frames=frames)
        frames //= 2
    window = replace(window, frames=min(window.frames, 2 if pattern.component == "unet" else 1))
    while True:
        if pattern.component != "unet":
            yield window
        least = max(-(-_LEAST_SIDE * window.factor // window.step), 1)  # steps
        rows, columns = (
            max(size // 2 // window.step, least) * window.step for size in (window.height, window.width)
        )
        smaller = replace(window, height=rows + window.row_remainder, width=columns)
        if smaller == window or smaller.height >= window.height:
            return
        window = smaller
        if pattern.component == "unet":
            yield window


def weights_of(pattern: Pattern) -> Any:
    """Made-up weights, the same on every machine; those of a sharp pattern give its logits."""
    from v2v.export.weights import load_weights

    weights = load_weights("random:0", pattern.model)
    if not pattern.sharp:
        return weights

    def read(network: Any) -> tuple[Mapping[str, Any], str]:
        tensors, origin = weights.read(network)
        return _sharpened(tensors, pattern.model.unet), origin

    return replace(weights, read=read)


def _sharpened(tensors: Mapping[str, Any], unet: UNetConfig) -> dict[str, Any]:
    """Weights under which nearly every token attends to itself, by scores of about :data:`LARGEST_LOGIT`.

    Queries and keys are the same, of about the length sqrt(head size). A token's score with itself then lies far above
    the others, so that what comes out does not hang on how scores were rounded.
    """
    scale = (LARGEST_LOGIT / _SPREAD / unet.head_size**0.5) ** 0.5
    sharp = dict(tensors)
    for name in tensors:
        if name.endswith("attn1.to_q.weight"):
            sharp[name] = tensors[name] * scale
            sharp[name.replace("to_q", "to_k")] = sharp[name].clone()
    return sharp


def _of_levels(
    model: ModelConfig, first: int, multipliers: tuple[int, ...], attention: tuple[bool, ...]
) -> ModelConfig:
    unet = model.unet
    width = unet.width * multipliers[0]
    relative = tuple(multiplier // multipliers[0] for multiplier in multipliers)
    small = replace(unet, width=width, multipliers=relative, blocks=1, attention=attention)
    return replace(model, name=f"{model.name}-level-{first + 1}", unet=small)


def _window(window: Window, size: tuple[int, int], levels: int) -> Window:
    height, width = size
    return replace(window, height=height * window.factor, width=width * window.factor, levels=levels)


def _shallow(model: ModelConfig) -> ModelConfig:
    if model.text_encoder is not None:
        layers = min(model.text_encoder.layers, _ENCODER_LAYERS)
        return replace(model, text_encoder=replace(model.text_encoder, layers=layers))
    assert model.image_encoder is not None
    layers = min(model.image_encoder.layers, _ENCODER_LAYERS)
    return replace(model, image_encoder=replace(model.image_encoder, layers=layers))
