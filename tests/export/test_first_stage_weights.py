"""The first stage's weights: published files, safetensors and seeds give its three networks."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from v2v.core.configs import MODELS, AutoencoderConfig, ImageEncoderConfig, ModelConfig, UNetConfig
from v2v.core.published import PUBLISHED
from v2v.export.models.image_encoder import CONTEXT_LAYERS
from v2v.export.models.unet import time_features
from v2v.export.weights import WeightsError, load_weights, networks_of, save_safetensors

TINY = ModelConfig(
    "tiny-first-stage",
    unet=UNetConfig(
        width=32, multipliers=(1, 1), blocks=1, head_size=16, stem_heads=1, context_width=16, row_padding=1,
        attention=(True, True),
    ),
    autoencoder=AutoencoderConfig(width=32, multipliers=(1, 1), blocks=1),
    text_encoder=None,
    image_encoder=ImageEncoderConfig(
        size=28, width=16, heads=2, layers=1, embedding=12, hidden=20, tokens=4, context_width=16
    ),
    fps=8,
)  # fmt: skip
FILES = PUBLISHED["ms-image2video"].files
States = dict[str, dict[str, torch.Tensor]]


@pytest.fixture(autouse=True)
def tiny_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PUBLISHED, TINY.name, PUBLISHED["ms-image2video"])


@pytest.fixture(scope="module")
def states() -> States:
    weights = load_weights("random:3", TINY)
    assert weights.kind == "random"
    return {network: weights.state_dict(network) for network in networks_of(TINY)}


@pytest.fixture(scope="module")
def rate_layers() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = {"0.weight": (128, 32), "0.bias": (128,), "2.weight": (128, 128), "2.bias": (128,)}
    return {f"fps_embedding.{name}": torch.randn(shape) for name, shape in shapes.items()}


@pytest.fixture
def published(tmp_path: Path, states: States, rate_layers: dict[str, torch.Tensor]) -> Path:
    """A folder like the published one, in form and names."""
    folder = tmp_path / "published"
    folder.mkdir()
    encoder = states["image_encoder"]
    layers = {name: value for name, value in encoder.items() if name.startswith(CONTEXT_LAYERS)}
    torch.save({"state_dict": states["unet"] | layers | rate_layers}, folder / FILES["unet"].name)
    autoencoder = {f"first_stage_model.{name}": value for name, value in states["autoencoder"].items()}
    torch.save({"state_dict": autoencoder}, folder / FILES["autoencoder"].name)
    tower = {name: value for name, value in encoder.items() if name not in layers}
    torch.save(tower | {"token_embedding.weight": torch.ones(2, 2)}, folder / FILES["image_encoder"].name)
    return folder


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in expected)


def test_the_published_files_are_named_as_the_authors_did() -> None:
    assert {network: file.name for network, file in FILES.items()} == {
        "unet": "base_03_alldata_fps_v_80g_0789000.pth",
        "autoencoder": "v2-1_512-ema-pruned.ckpt",
        "image_encoder": "open_clip_pytorch_model.bin",
    }
    assert FILES["image_encoder"] == PUBLISHED["ms-vid2vid-xl"].files["text_encoder"], "both towers, one file"
    for name in ("ms-image2video", "ms-vid2vid-xl"):
        assert set(PUBLISHED[name].files) == set(networks_of(MODELS[name]))


def test_published_checkpoints_give_three_networks(
    published: Path, states: States, rate_layers: dict[str, torch.Tensor]
) -> None:
    weights = load_weights(str(published), TINY, verify=False)
    assert same(weights.state_dict("image_encoder"), states["image_encoder"])
    assert same(weights.state_dict("autoencoder"), states["autoencoder"])
    unet = weights.state_dict("unet")
    changed = [name for name in unet if not torch.equal(unet[name], states["unet"][name])]
    assert changed == ["time_embed.2.bias"]
    w0, b0, w2, b2 = (rate_layers[f"fps_embedding.{n}"] for n in ("0.weight", "0.bias", "2.weight", "2.bias"))
    embedding = w2 @ torch.nn.functional.silu(w0 @ time_features(torch.tensor([8]), 32)[0] + b0) + b2
    assert torch.allclose(
        unet["time_embed.2.bias"], states["unet"]["time_embed.2.bias"] + embedding, atol=1e-5
    )


def test_a_file_with_a_published_name_must_be_the_published_file(published: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"base_03_alldata_fps_v_80g_0789000\.pth: is not the published file"
    ):
        load_weights(str(published), TINY)


def test_files_of_the_published_digests_are_published(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {
        network: replace(
            file, bytes=None, sha256=hashlib.sha256((published / file.name).read_bytes()).hexdigest()
        )
        for network, file in FILES.items()
    }
    monkeypatch.setitem(PUBLISHED, TINY.name, replace(PUBLISHED[TINY.name], files=known))
    assert load_weights(str(published), TINY).kind == "published"


def test_configuration_json_names_the_files(published: Path, states: States) -> None:
    arguments = {"ckpt_unet": "u.pth", "ckpt_clip": "c.bin", "ckpt_autoencoder": "a.ckpt"}
    for file in FILES.values():
        (published / file.name).rename(published / arguments[file.argument])
    (published / "configuration.json").write_text(json.dumps({"model": {"model_args": arguments}}))
    assert same(load_weights(str(published), TINY).state_dict("image_encoder"), states["image_encoder"])


def test_what_is_missing_is_named(published: Path, states: States, tmp_path: Path) -> None:
    torch.save({"state_dict": states["unet"]}, published / FILES["unet"].name)
    weights: Any = load_weights(str(published), TINY, verify=False)
    with pytest.raises(WeightsError, match="missing: context_embedding"):
        weights.state_dict("image_encoder")
    with pytest.raises(WeightsError, match="no embedding of the frame rate"):
        weights.state_dict("unet")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(
        WeightsError, match=r"image_encoder\.safetensors nor the published files; of those it lacks"
    ):
        load_weights(str(empty), TINY)
    with pytest.raises(WeightsError, match=r"should have .*text_encoder\.safetensors; it lacks unet"):
        load_weights(str(empty), MODELS["small"])


@pytest.mark.parametrize("single", [False, True], ids=["a folder", "a single file"])
def test_safetensors_are_read_back(published: Path, tmp_path: Path, single: bool) -> None:
    weights = load_weights(str(published), TINY, verify=False)
    target = tmp_path / ("all.safetensors" if single else "safetensors")
    save_safetensors(weights, target)
    again = load_weights(str(target), TINY)
    assert all(same(again.state_dict(n), weights.state_dict(n)) for n in networks_of(TINY))
