"""FP8 in the fused UNet: what it rounds, what it leaves alone, how far the network moves, who may ask for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stand_ins.sets import CopyBackend, build, install, source_of

pytest.importorskip("torch")

import torch
import torch.nn.functional as F
from torch import Tensor

from v2v.core.configs import MODELS, UNetConfig
from v2v.core.errors import BuildError
from v2v.engine.backend import BuildOptions
from v2v.engine.fp8 import TOLERANCE
from v2v.engine.inductor.backend import InductorBackend
from v2v.engine.inductor.fused import fp8
from v2v.engine.inductor.fused import operations as ops
from v2v.engine.inductor.fused.operations import E4M3
from v2v.engine.inductor.fused.unet import FusedUNet
from v2v.engine.store import Wanted, find
from v2v.export.models.unet import UNet

FP8 = BuildOptions(precision="fp16", device="cuda", extra={"fp8": "yes"})


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


# Numbers ----------------------------------------------------------------------------------------------------


def test_what_is_too_large_saturates() -> None:
    x = torch.tensor([1e4, -449.0, 500.0, torch.inf, 0.3])
    assert ops.rounded(x, E4M3).float().tolist() == [448.0, -448.0, 448.0, 448.0, 0.3125]


def test_nan_stays_nan() -> None:
    assert ops.rounded(torch.tensor([torch.nan]), E4M3).float().isnan().all()


def test_weights_keep_three_bits_after_the_leading_one() -> None:
    weight = torch.randn(64, 500) * torch.logspace(-6, 3, 64)[:, None]  # rows of any size
    rows = fp8.Rows(weight)
    restored = rows.weight.float() * rows.scale[:, None]
    assert relative(restored, weight) == pytest.approx(0.026, rel=0.05)
    large = (
        weight.abs() > weight.abs().amax(1, keepdim=True) / 2**14
    )  # the rest is below e4m3's normal numbers
    assert ((restored - weight).abs() / weight.abs())[large].max() <= 2**-4


def test_rows_of_zeros_stay_zeros() -> None:
    rows = fp8.Rows(torch.zeros(2, 16))
    assert rows.weight.float().abs().max() == 0
    assert rows.scale.isfinite().all()


# Operations: what e4m3 holds they compute exactly --------------------------------------------------------------


def whole(*shape: int) -> Tensor:
    return torch.randint(-8, 9, shape).float()


def as_is(weight: Tensor) -> Tensor:
    """Weights whose scale is one, so that whole numbers stay whole."""
    weight = weight.clone()
    weight[:, 0] = 448.0
    return weight


def test_a_convolution_reads_zeros_beside_the_image() -> None:
    frames, height, width, inputs, outputs = 2, 5, 7, 16, 32
    image = whole(frames, inputs, height, width)
    weight = as_is(whole(outputs, 9 * inputs))
    rows = fp8.Rows(weight)
    tokens = image.permute(0, 2, 3, 1).flatten(1, 2)
    unchanged = torch.stack([torch.ones(1, inputs), torch.zeros(1, inputs)])
    padded = ops.scale_offset([tokens], unchanged, silu=False, dtype=E4M3, padded_width=width)
    assert padded.shape == (frames * (height + 1) * (width + 1), inputs)
    found = fp8.convolution(padded, rows.weight, rows.scale, frames, height, width, torch.float32)
    kernel = weight.view(outputs, 3, 3, inputs).permute(0, 3, 1, 2)
    expected = F.conv2d(image, kernel, padding=1).permute(0, 2, 3, 1).flatten(1, 2)
    assert torch.equal(found, expected)


def test_a_temporal_convolution_and_a_matrix_product() -> None:
    x, weight = whole(4 * 10, 16), as_is(whole(32, 3 * 16))
    rows = fp8.Rows(weight)
    found = fp8.temporal_convolution(x.to(E4M3), rows.weight, rows.scale, 4, torch.float32)
    assert torch.equal(found, ops.temporal_convolution(x, weight, 4))
    square = as_is(whole(32, 16))
    assert torch.equal(fp8.Linear(square)(x.to(E4M3)), x @ square.t())


def test_gated_values_are_rounded_once() -> None:
    x, weight, bias = whole(20, 16), as_is(whole(2 * 24, 16)), whole(2 * 24)
    rows = fp8.Rows(weight)
    value, gate = F.linear(x, weight, bias).chunk(2, -1)
    assert value.abs().max() > 448
    found = fp8.gated(x.to(E4M3), rows.weight, rows.scale, bias)
    assert torch.equal(found.float(), ops.rounded(value * F.gelu(gate), E4M3).float())


# The network ------------------------------------------------------------------------------------------------


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(1, 4, 3, 10, 16), torch.tensor([599]), torch.randn(1, 77, 64)


def test_the_network_stays_within_its_tolerance() -> None:
    network = UNet(UNetConfig(width=32, multipliers=(1, 2), head_size=16, context_width=64)).eval()
    for name, parameter in network.named_parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.copy_(torch.randn_like(parameter) * scale)
        if parameter.ndim == 1 and name.endswith("weight"):
            parameter.add_(1)
    given = inputs()
    plain = network(*given)
    error = relative(fp8.quantise(FusedUNet(network))(*given), plain)
    assert 0.01 < error < TOLERANCE


def test_only_what_stands_behind_norms_and_gates_is_rounded() -> None:
    network = fp8.quantise(FusedUNet(UNet(UNetConfig(width=32, multipliers=(1, 2), head_size=16))))
    rounded = {name for name, buffer in network.named_buffers() if buffer.dtype == E4M3}
    kinds = {".".join(part for part in name.split(".") if not part.isdigit()) for name in rounded}
    transformers = ("stem_transformer", "down", "middle", "up")
    of_transformers = (
        "qkv.weight",
        "second.weight",
        "feed_forward.expand.weight",
        "feed_forward.contract.weight",
    )
    of_residuals = (
        "first.convolution.weight",
        "second.convolution.weight",
        "stages.convolution.weight",
    )
    assert kinds == {
        *(f"{where}.{what}" for where in transformers for what in of_transformers),
        *(f"{where}.{what}" for where in transformers[1:] for what in of_residuals),
    }


def test_an_outlier_spreads_no_nan() -> None:
    network = UNet(UNetConfig(width=32, multipliers=(1, 2), head_size=16, context_width=64)).eval()
    for name, parameter in network.named_parameters():
        if "norm" in name and name.endswith("weight"):
            parameter[0] = 1e5
    assert fp8.quantise(FusedUNet(network))(*inputs()).isfinite().all()


# The option -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (BuildOptions(extra={"fp8": "yes"}), "needs --device cuda --precision fp16, not cpu and fp32"),
        (BuildOptions("fp32", "cuda", extra={"fp8": "yes"}), "not cuda and fp32"),
        (BuildOptions("fp16", "cuda", extra={"fp8": "yes", "fused": "no"}), "leave out --option fused=no"),
        (BuildOptions(extra={"fp8": "perhaps"}), "no option fp8=perhaps; it has fused=yes|no"),
        (BuildOptions(extra={"int8": "yes"}), "no option int8=yes; it has fused=yes|no"),
    ],
)
def test_what_cannot_be_built_says_why(options: BuildOptions, reason: str) -> None:
    with pytest.raises(BuildError) as error:
        InductorBackend().facts(options)
    assert reason in str(error.value)


def test_a_gpu_without_fp8_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A10")
    backend = InductorBackend()
    backend.devices = ("cuda", "cpu")
    with pytest.raises(
        BuildError, match=r"NVIDIA A10 has no FP8 \(its compute capability is 8\.6, FP8 came with 8\.9"
    ):
        backend.facts(FP8)
    assert backend.facts(BuildOptions("fp16", "cuda"))["label"] == "sm86"


def test_a_model_without_norms_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from v2v.core.components import Window, components

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    backend = InductorBackend()
    backend.devices = ("cuda", "cpu")
    model = MODELS["small"]
    component = components(model, Window(4, 80, 64, levels=2), "fp16")["text_encoder"]
    with pytest.raises(BuildError, match="model small has no norms"):
        backend.build(source_of(component, tmp_path, model), tmp_path, FP8, lambda phase, share: None)


def test_sets_say_that_they_hold_fp8_and_come_after_those_that_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(CopyBackend(), monkeypatch)
    accurate = build().engine_set
    time.sleep(0.002)
    fast = build(options=BuildOptions(extra={"fp8": "yes"})).engine_set
    assert "-fp8-" in fast.name
    assert "-fp8-" not in accurate.name
    assert fast.manifest.recipe.fp8
    assert "--option fp8=yes" in fast.rebuild_command
    assert find(Wanted()) == accurate
