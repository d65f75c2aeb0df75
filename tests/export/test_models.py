"""The networks are the reference's: same tensors, same numbers."""

from __future__ import annotations

import pytest
import torch

from tests.export import golden
from v2v.core.configs import AutoencoderConfig, TextEncoderConfig, UNetConfig
from v2v.export.models.autoencoder import Autoencoder
from v2v.export.models.layers import GroupNorm
from v2v.export.models.text_encoder import TextEncoder
from v2v.export.models.unet import SpatialTransformer, UNet

NETWORKS = {
    "unet": (UNet, UNetConfig()),
    "vae": (Autoencoder, AutoencoderConfig()),
    "text": (TextEncoder, TextEncoderConfig()),
    "unet_small": (UNet, golden.UNET),
    "vae_small": (Autoencoder, golden.AUTOENCODER),
    "text_small": (TextEncoder, golden.TEXT_ENCODER),
}
CHECKSUMS = {"unet_small": 753699.256, "vae_small": 144319.205, "text_small": 332953.11}


def on_meta(name: str) -> torch.nn.Module:
    network, config = NETWORKS[name]
    with torch.device("meta"):
        return network(config)


def loaded(name: str) -> torch.nn.Module:
    network = on_meta(name)
    network.load_state_dict(golden.weights(name), strict=True, assign=True)
    return network.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_tensors_have_the_names_and_shapes_of_the_published_checkpoints(name: str) -> None:
    found = {key: tuple(value.shape) for key, value in on_meta(name).state_dict().items()}
    listed = golden.keys(name)
    if name == "text_small":  # made without the pooling head that nothing reads
        listed |= {"text_projection": (64, 64), "logit_scale": ()}
    assert found == listed


@pytest.mark.parametrize(
    ("name", "tensors", "parameters"), [("unet", 1480, 1411233860), ("vae", 248, 83653863)]
)
def test_full_size_counts(name: str, tensors: int, parameters: int) -> None:
    listed = list(on_meta(name).parameters())
    assert len(listed) == tensors
    assert sum(p.numel() for p in listed) == parameters


@pytest.mark.parametrize("name", CHECKSUMS)
def test_golden_weights_have_their_checksum(name: str) -> None:
    total = sum(w.double().abs().sum().item() for w in golden.weights(name).values())
    assert total == pytest.approx(CHECKSUMS[name], rel=1e-6)


@torch.inference_mode()
def test_unet_gives_the_references_numbers() -> None:
    unet, cases = loaded("unet_small"), golden.cases("unet_small")
    for case in "01":
        x, t, y = (cases[f"{case}.{part}"] for part in "xty")
        assert golden.relative_error(unet(x, t, y), cases[f"{case}.out"]) < 1e-5


@torch.inference_mode()
def test_autoencoder_gives_the_references_numbers() -> None:
    autoencoder, cases = loaded("vae_small"), golden.cases("vae_small")
    for case in sorted({key.split(".")[0] for key in cases}):
        moments = autoencoder.encode(cases[f"{case}.image"])
        assert golden.relative_error(moments, cases[f"{case}.moments"]) < 1e-5
        decoded = autoencoder.decode(cases[f"{case}.z"])
        assert golden.relative_error(decoded, cases[f"{case}.decoded"]) < 1e-5


@torch.inference_mode()
def test_text_encoder_gives_the_references_numbers() -> None:
    cases = golden.cases("text_small")
    context = loaded("text_small")(cases["ids"].long())
    assert golden.relative_error(context, cases["penultimate"]) < 1e-5


@torch.inference_mode()
def test_videos_of_a_batch_do_not_mix() -> None:
    unet = loaded("unet_small")
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 4, 3, 10, 8, generator=g), torch.randn(2, 77, 1024, generator=g)
    t = torch.tensor([599, 20])
    apart = torch.cat([unet(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(2)])
    assert golden.relative_error(unet(x, t, y), apart) < 1e-5


def test_a_step_s_own_features_give_that_step_exactly() -> None:
    torch.manual_seed(0)
    config = UNetConfig(width=32, multipliers=(1, 2), head_size=16, context_width=32, groups=8)
    network = UNet(config).eval()
    inputs = torch.randn(2, 4, 3, 10, 8), torch.tensor([599, 20]), torch.randn(2, 77, 32)
    with torch.inference_mode():
        velocity, features = network.full(*inputs)
        assert torch.equal(velocity, network(*inputs))
        assert torch.equal(velocity, network.outer(*inputs, features))
        assert not torch.equal(velocity, network.outer(*inputs, 0.9 * features))


@torch.inference_mode()
def test_half_precision_keeps_norms_in_fp32() -> None:
    # A constant added to a feature map is what a norm in FP16 would lose digits to.
    norm = GroupNorm(32, 64, eps=1e-5, silu=True)
    x = (torch.randn(1, 64, 8, 8, generator=torch.Generator().manual_seed(0)) + 300).half()
    assert norm.half()(x).dtype == torch.float16
    assert golden.relative_error(norm(x), norm.float()(x.float())) < 1e-3


@pytest.mark.parametrize("name", CHECKSUMS)
@torch.inference_mode()
def test_networks_run_in_half_precision(name: str) -> None:
    network, cases = loaded(name).half(), golden.cases(name)
    if name == "unet_small":
        found = network(cases["0.x"].half(), cases["0.t"], cases["0.y"].half())
        expected = cases["0.out"]
    elif name == "vae_small":
        found, expected = network.decode(cases["0.z"].half()), cases["0.decoded"]
    else:
        found, expected = network(cases["ids"].long()), cases["penultimate"]
    assert found.dtype == torch.float16
    assert golden.relative_error(found, expected) < 1e-2


@torch.inference_mode()
def test_attention_and_groups_are_configurable() -> None:
    config = UNetConfig(
        width=32,
        multipliers=(1, 2, 2),
        head_size=16,
        context_width=32,
        attention=(False, False, True),
        groups=8,
    )
    unet = UNet(config)
    attending = [name for name, module in unet.named_modules() if isinstance(module, SpatialTransformer)]
    assert attending == [f"input_blocks.{i}.1" for i in (7, 8)] + ["middle_block.1"] + [
        f"output_blocks.{i}.1" for i in (0, 1, 2)
    ]
    assert {m.num_groups for m in unet.modules() if isinstance(m, GroupNorm)} == {8}
    assert unet(torch.randn(1, 4, 2, 10, 8), torch.tensor([3]), torch.randn(1, 77, 32)).shape == (
        1,
        4,
        2,
        10,
        8,
    )
    plain = Autoencoder(AutoencoderConfig(width=32, groups=8, attention=False))
    assert not [key for key in plain.state_dict() if "attn" in key]
    assert plain.decode(torch.randn(1, 4, 2, 2)).shape == (1, 3, 16, 16)


@torch.inference_mode()
def test_latent_channels_are_configurable() -> None:
    unet = UNet(
        UNetConfig(width=32, multipliers=(1, 1, 1, 1), head_size=16, context_width=32, latent_channels=8)
    )
    assert unet(torch.randn(1, 8, 1, 10, 8), torch.tensor([3]), torch.randn(1, 77, 32)).shape == (
        1,
        8,
        1,
        10,
        8,
    )
    autoencoder = Autoencoder(AutoencoderConfig(width=32, multipliers=(1, 2, 2, 4), latent_channels=8))
    moments = autoencoder.encode(torch.randn(2, 3, 16, 24))
    assert moments.shape == (2, 16, 2, 3)
    assert autoencoder.decode(moments[:, :8]).shape == (2, 3, 16, 24)


@torch.inference_mode()
def test_feature_maps_stay_channels_last() -> None:
    unet = loaded("unet_small")
    strays = []

    def check(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0]
        if not x.is_contiguous(memory_format=torch.channels_last):
            strays.append(module)

    for stage in (*list(unet.input_blocks)[1:], unet.middle_block, *unet.output_blocks):
        stage.register_forward_pre_hook(check)
    cases = golden.cases("unet_small")
    unet(cases["0.x"], cases["0.t"], cases["0.y"])
    assert not strays


def test_patches_leave_no_grid() -> None:
    """What is added to the same places of all patches alike is no detail; what is added to all of them is a colour."""
    network = Autoencoder(
        AutoencoderConfig(width=32, multipliers=(1,), blocks=1, latent_channels=4, patch=4, sees_source=True)
    )
    last = network.decoder.conv_out
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.normal_(last.bias)
    source = torch.rand(2, 3, 48, 64)
    with torch.inference_mode():
        added = network.decode(torch.randn(2, 4, 12, 16), source) - source
    torch.testing.assert_close(added.mean((0, 2, 3)), last.bias.unflatten(0, (3, -1)).mean(1))
    assert added.std((0, 2, 3)).max() < 1e-5
