"""The fused networks are the plain ones: the same weights give the same numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from v2v.core.configs import AutoencoderConfig, ControlName, UNetConfig
from v2v.engine.inductor.fused import operations as ops
from v2v.engine.inductor.fused.autoencoder import FusedDecoder, FusedEncoder
from v2v.engine.inductor.fused.unet import FusedUNet
from v2v.export.models.autoencoder import Autoencoder
from v2v.export.models.control import ControlledUNet
from v2v.export.models.unet import UNet


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def randomised(network: torch.nn.Module) -> torch.nn.Module:
    """Biases and norms that do something."""
    for parameter in network.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    "config",
    [
        UNetConfig(width=32, head_size=16, context_width=64),
        UNetConfig(
            width=32, multipliers=(1, 2), head_size=8, context_width=24, groups=8, attention=(False, True)
        ),
        UNetConfig(width=32, multipliers=(1, 2, 2), head_size=16, context_width=64, row_padding=1),
    ],
    ids=["as published", "another shape", "the first stage"],
)
def test_the_fused_unet_is_the_unet(config: UNetConfig) -> None:
    plain = randomised(UNet(config))
    rows, tokens = 16 + config.rows_remainder, 77 if config.rows_remainder else 4
    inputs = (
        torch.randn(1, 4, 5, rows, 24),
        torch.tensor([599]),
        torch.randn(1, tokens, config.context_width),
    )
    assert relative(FusedUNet(plain)(*inputs), plain(*inputs)) < 1e-5


@pytest.mark.parametrize(
    "shape", [{}, {"multipliers": (1, 2), "attention": (False, True)}], ids=["usual", "other"]
)
@pytest.mark.parametrize(("control", "gated"), [("every frame", True), ("key frames", False)])
def test_the_fused_control_branch_is_the_branch(control: ControlName, gated: bool, shape: dict) -> None:
    config = UNetConfig(
        **{"width": 32, "multipliers": (1, 2, 2), "head_size": 16, "context_width": 64, **shape},
        control=control,
        gated=gated,
    )
    plain = randomised(ControlledUNet(config))
    latents, hint = torch.randn(2, 1, 4, 5, 18 if not shape else 10, 24)
    keys = (torch.tensor([[1.0, 0, 0, 1, 0]]), torch.tensor([199]), torch.tensor([8]))
    shown = (hint, *keys) if control == "key frames" else (hint,)
    inputs = latents, torch.tensor([599]), torch.randn(1, 77, 64), *shown
    expected = plain(*inputs)
    fused = FusedUNet(plain)
    assert relative(fused(*inputs), expected) < 1e-5
    shared = fused.unprompted(latents, inputs[1], *shown)
    other = -inputs[2]
    assert relative(fused.prompted(shared, inputs[1], other), plain(*inputs[:2], other, *shown)) < 1e-5
    velocity, features = FusedUNet(plain, "unet_full")(*inputs)
    assert relative(velocity, expected) < 1e-5
    outer = FusedUNet(plain, "unet_outer")
    assert relative(outer(*inputs, features), expected) < 1e-5
    without = 0 * hint, *shown[1:]
    assert relative(fused(*inputs[:3], *without), expected) > 1e-3


def test_the_fused_outer_blocks_take_the_features_of_the_whole() -> None:
    config = UNetConfig(width=32, multipliers=(1, 2), head_size=16, context_width=64)
    plain = randomised(UNet(config))
    inputs = torch.randn(1, 4, 3, 10, 16), torch.tensor([200]), torch.randn(1, 77, 64)
    velocity, features = FusedUNet(plain, "unet_full")(*inputs)
    expected, expected_features = plain.full(*inputs)
    assert relative(velocity, expected) < 1e-5
    assert features.shape == (1, 3, 10, 16, 32)
    assert relative(features, expected_features) < 1e-5
    outer = FusedUNet(plain, "unet_outer")
    assert relative(outer(*inputs, features), expected) < 1e-5
    others = torch.randn(1, 4, 3, 10, 16), torch.tensor([180]), inputs[2]
    assert relative(outer(*others, features), plain.outer(*others, expected_features)) < 1e-5
    assert sum(b.numel() for b in outer.buffers()) < 0.5 * sum(p.numel() for p in plain.parameters())


def test_one_frame_is_enough() -> None:
    config = UNetConfig(width=32, multipliers=(1, 2), head_size=16, context_width=64)
    plain = randomised(UNet(config))
    inputs = torch.randn(1, 4, 1, 10, 8), torch.tensor([0]), torch.randn(1, 77, 64)
    assert relative(FusedUNet(plain)(*inputs), plain(*inputs)) < 1e-5


def test_the_fused_autoencoder_is_the_autoencoder() -> None:
    plain = randomised(Autoencoder(AutoencoderConfig(width=32)))
    image, latents = torch.rand(1, 3, 48, 64) * 2 - 1, torch.randn(1, 4, 6, 8)
    assert relative(FusedEncoder(plain)(image), plain.encode(image)) < 1e-5
    assert relative(FusedDecoder(plain)(latents), plain.decode(latents)) < 2e-5


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton, which interprets its kernels on a CPU")
def test_kernels_compute_what_the_plain_operations_do() -> None:
    """In a process of its own: Triton decides whether to interpret when it is imported."""
    script = Path(__file__).parent / "interpret_kernels.py"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    if "only 0-dimensional arrays can be converted" in done.stderr:
        pytest.skip("the interpreter of this Triton (3.6, for one) does not work with NumPy 2.4 and later")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("size", "padding"), [((3, 3), (1, 1)), ((3, 3), (2, 1)), ((1, 1), (0, 0)), ((2, 2), (1, 0))]
)
def test_what_the_compiler_expects_of_a_convolution_is_what_it_gives(
    size: tuple[int, int], padding: tuple[int, int], stride: int
) -> None:
    frames, height, width = 3, 6, 9
    x, weight = torch.randn(frames * height * width, 8), torch.randn(16, *size, 8)
    found, rows = ops.convolution(x, weight, frames, height, stride=stride, padding=padding)
    expected = ops.convolution_operator(
        x.to("meta"), weight.to("meta"), None, frames, height, stride, list(padding)
    )
    assert found.shape == expected.shape
    assert found.stride() == expected.stride()
    assert found.shape[1] % rows == 0
