"""The networks of the first stage are the reference's: same tensors, same numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.export import golden
from v2v.core.components import window_for
from v2v.core.configs import MODELS, ImageEncoderConfig, UNetConfig
from v2v.core.errors import V2VError
from v2v.export.models.image_encoder import CONTEXT_LAYERS, ImageEncoder
from v2v.export.models.unet import FRAME_RATE_LAYERS, UNet, told_frame_rate

MODEL = MODELS["ms-image2video"]
FOLDER = "image-to-video"
ERROR = 1e-5
UNET, CLIP = f"{FOLDER}/i2v_unet_small", f"{FOLDER}/clip_visual_small"


def keys_on_meta(network: type, *config: Any) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in network(*config).state_dict().items()}


def loaded_unet(fps: int, config: UNetConfig = golden.FIRST_STAGE_UNET) -> UNet:
    """As a checkpoint of it is read."""
    state = told_frame_rate(golden.weights(UNET), fps)
    unet = UNet(config)
    unet.load_state_dict({k: v for k, v in state.items() if not k.startswith(CONTEXT_LAYERS)})
    return unet.eval()


def loaded_image_encoder() -> ImageEncoder:
    layers = {k: v for k, v in golden.weights(UNET).items() if k.startswith(CONTEXT_LAYERS)}
    encoder = ImageEncoder(golden.IMAGE_ENCODER)
    encoder.load_state_dict(golden.weights(CLIP) | layers)
    return encoder.eval()


def test_tensors_have_the_names_and_shapes_of_the_published_checkpoints() -> None:
    assert MODEL.image_encoder is not None
    unet = keys_on_meta(UNet, MODEL.unet)
    encoder = keys_on_meta(ImageEncoder, MODEL.image_encoder)
    layers = {key: shape for key, shape in encoder.items() if key.startswith(CONTEXT_LAYERS)}
    published = golden.keys(f"{FOLDER}/i2v_unet")
    rate = {key: shape for key, shape in published.items() if key.startswith(FRAME_RATE_LAYERS)}
    assert unet | layers | rate == published
    assert len(rate) == 4  # which become part of a bias
    assert {k: s for k, s in encoder.items() if k not in layers} == golden.keys(f"{FOLDER}/clip_visual")


def test_full_size_counts() -> None:
    def count(shapes: dict[str, tuple[int, ...]]) -> tuple[int, int]:
        return len(shapes), sum(int(torch.Size(shape).numel()) for shape in shapes.values())

    assert count(golden.keys(f"{FOLDER}/i2v_unet")) == (1488, 1_419_843_396)
    assert count(golden.keys(f"{FOLDER}/clip_visual")) == (392, 632_076_800)


@pytest.mark.parametrize(("name", "total"), [(UNET, 793726.180), (CLIP, 20657.687)])
def test_golden_weights_have_their_checksum(name: str, total: float) -> None:
    assert sum(w.double().abs().sum().item() for w in golden.weights(name).values()) == pytest.approx(
        total, rel=1e-6
    )


@torch.inference_mode()
def worst_unet_error(unet_at: Any) -> float:
    """Of every video of every golden case; each has a frame rate of its own."""
    cases = golden.cases(UNET)
    errors = []
    for case in sorted({key.split(".")[0] for key in cases}):
        x, t, fps, context, out = (cases[f"{case}.{part}"] for part in ("x", "t", "fps", "context", "out"))
        for video in range(len(x)):
            one = slice(video, video + 1)
            errors.append(
                golden.relative_error(unet_at(int(fps[video]))(x[one], t[one], context[one]), out[one])
            )
    return max(errors)


def test_unet_gives_the_references_numbers_at_every_frame_rate() -> None:
    assert worst_unet_error(loaded_unet) < ERROR


@pytest.mark.parametrize(
    "fault",
    [
        lambda fps: loaded_unet(fps + 1),
        lambda fps: shifted(loaded_unet(fps)),
        lambda fps: cropping(loaded_unet(fps)),
    ],
    ids=["another frame rate", "another bias", "rows cropped the other way"],
)
def test_the_golden_cases_notice_faults(fault: Any) -> None:
    assert worst_unet_error(fault) > 1e-4


def shifted(unet: UNet) -> UNet:
    parameter = dict(unet.named_parameters())["input_blocks.3.op.bias"]
    parameter.data += 0.01
    return unet


def cropping(unet: UNet) -> UNet:
    """Halving and doubling that agree on sizes, but not with the reference on which rows."""
    for module in unet.modules():
        if type(module).__name__ == "Upsample":
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].roll(1, 2),))
    return unet


@torch.inference_mode()
def test_a_pictures_context_and_that_of_no_picture() -> None:
    encoder, cases = loaded_image_encoder(), golden.cases(UNET)
    for case in "012":
        assert (
            golden.relative_error(encoder.context(cases[f"{case}.y"][:, 0]), cases[f"{case}.context"]) < ERROR
        )
    image = golden.cases(CLIP)["0.image"][:1]
    contexts = encoder(image)
    assert contexts.shape == (2, 4, 1024)
    assert golden.relative_error(contexts[:1], encoder.context(encoder.visual(image))) < 1e-6
    assert not cases["2.y"].any()
    assert golden.relative_error(contexts[1:], cases["2.context"]) < ERROR


@torch.inference_mode()
def test_image_tower_gives_the_references_numbers_and_notices_faults() -> None:
    cases = golden.cases(CLIP)

    def worst(encoder: ImageEncoder) -> float:
        return max(
            golden.relative_error(encoder.visual(cases[f"{case}.image"]), cases[f"{case}.embedding"])
            for case in sorted({key.split(".")[0] for key in cases})
        )

    assert worst(loaded_image_encoder()) < 1e-5
    causal, tanh, penultimate = (loaded_image_encoder() for _ in range(3))
    for block in causal.visual.transformer.resblocks:
        block.attn.causal = True
    for block in tanh.visual.transformer.resblocks:
        block.mlp.gelu = torch.nn.GELU("tanh")
    penultimate.visual.transformer.resblocks = penultimate.visual.transformer.resblocks[:-1]
    assert worst(causal) > 1e-2
    assert worst(tanh) > 2e-5
    assert worst(penultimate) > 1e-2


@torch.inference_mode()
def test_networks_run_in_half_precision() -> None:
    cases, clip = golden.cases(UNET), golden.cases(CLIP)
    unet, encoder = loaded_unet(int(cases["0.fps"][0])).half(), loaded_image_encoder().half()
    found = unet(cases["0.x"].half(), cases["0.t"], cases["0.context"].half())
    assert found.dtype == torch.float16
    assert golden.relative_error(found, cases["0.out"]) < 1e-2
    assert golden.relative_error(encoder.visual(clip["0.image"].half()), clip["0.embedding"]) < 1e-2


def test_windows_are_multiples_of_64() -> None:
    window = window_for(MODEL)
    assert str(window) == "448x256x32"
    assert (window.latent_height, window.latent_width) == (32, 56)
    with pytest.raises(
        V2VError, match="height must be a multiple of 64 plus 0, not 272; nearest: 256 or 320"
    ):
        window_for(MODEL, (448, 272))
    assert window_for(replace(MODEL, unet=UNetConfig()), (448, 272)).row_remainder == 16


def test_the_small_configurations_are_those_of_the_full_size_in_other_sizes() -> None:
    assert isinstance(MODEL.image_encoder, ImageEncoderConfig)
    assert golden.FIRST_STAGE_UNET.row_padding == MODEL.unet.row_padding
    assert golden.IMAGE_ENCODER.tokens == MODEL.image_encoder.tokens
