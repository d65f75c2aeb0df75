"""Weights of STAR and VEnhancer: their files, what may be left over, and which decoder there is."""

from __future__ import annotations

import hashlib
import os
import pickle
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from v2v.core.configs import MODELS, AutoencoderConfig, ModelConfig, TextEncoderConfig, UNetConfig
from v2v.core.published import PUBLISHED, PURPOSES
from v2v.export.weights import Weights, WeightsError, load_weights, networks_of

SMALL_UNET = UNetConfig(
    width=32,
    multipliers=(1, 1),
    blocks=1,
    head_size=16,
    stem_heads=1,
    context_width=16,
    attention=(True, True),
)
AUTOENCODER = AutoencoderConfig(width=32, multipliers=(1, 1), blocks=1, decoder_frames=3)
TEXT_ENCODER = TextEncoderConfig(width=16, heads=2, layers=1)
TINY = {
    name: ModelConfig(
        name,
        unet=replace(SMALL_UNET, gated=MODELS[name].unet.gated, control=MODELS[name].unet.control),
        autoencoder=AUTOENCODER,
        text_encoder=TEXT_ENCODER,
    )
    for name in ("star-light", "star-heavy", "venhancer")
}
States = dict[str, dict[str, torch.Tensor]]
DIFFUSERS = [  # this package's names -> diffusers', as far as the tiny network has them
    ("decoder.conv_out.time_mix_conv", "decoder.time_conv_out"),
    (".time_stack.in_layers.0", ".temporal_res_block.norm1"),
    (".time_stack.in_layers.2", ".temporal_res_block.conv1"),
    (".time_stack.out_layers.0", ".temporal_res_block.norm2"),
    (".time_stack.out_layers.3", ".temporal_res_block.conv2"),
    (".mix_factor", ".time_mixer.mix_factor"),
    (".mid.block_1.", ".mid_block.resnets.0."),
    (".mid.block_2.", ".mid_block.resnets.1."),
    (".mid.attn_1.norm", ".mid_block.attentions.0.group_norm"),
    (".mid.attn_1.proj_out", ".mid_block.attentions.0.to_out.0"),
    (".mid.attn_1.", ".mid_block.attentions.0.to_"),
    ("encoder.down.0.block.0.", "encoder.down_blocks.0.resnets.0."),
    ("encoder.down.1.block.0.", "encoder.down_blocks.1.resnets.0."),
    ("encoder.down.0.downsample.", "encoder.down_blocks.0.downsamplers.0."),
    ("decoder.up.1.block.", "decoder.up_blocks.0.resnets."),
    ("decoder.up.0.block.", "decoder.up_blocks.1.resnets."),
    ("decoder.up.1.upsample.", "decoder.up_blocks.0.upsamplers.0."),
    ("norm_out", "conv_norm_out"),
]


def states_of(model: ModelConfig) -> States:
    weights = load_weights("random:3", model)
    return {network: weights.state_dict(network) for network in networks_of(model)}


def diffusers_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, value in state.items():
        for ours, theirs in DIFFUSERS:
            name = name.replace(ours, theirs)
        spatial = name.startswith("decoder.") and (".resnets." in name) and ".temporal" not in name
        if spatial and "time_mixer" not in name:
            head, number, rest = name.partition(".resnets.")[0], *name.partition(".resnets.")[2].split(".", 1)
            name = f"{head}.resnets.{number}.spatial_res_block.{rest}"
        renamed[name] = value.flatten(1) if ".attentions.0.to_" in name and value.dim() == 4 else value
    return renamed


def write(folder: Path, model: ModelConfig, states: States, unet: str | None = None) -> Path:
    """A folder with the published files' names and forms."""
    folder.mkdir()
    files = PUBLISHED[model.name].files
    name = unet or files["unet"].name
    if name.endswith(".safetensors"):
        save_file({k: v.half() for k, v in states["unet"].items()}, folder / name)
    else:
        torch.save({"state_dict": states["unet"]}, folder / name)
    save_file(diffusers_names(states["autoencoder"]), folder / files["autoencoder"].name)
    tower = states["text_encoder"] | {"visual.proj": torch.ones(2, 2)}
    torch.save(tower, folder / files["text_encoder"].name)
    return folder


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in expected)


def loaded(folder: Path, model: ModelConfig) -> Weights:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_weights(str(folder), model, verify=False)


@pytest.mark.parametrize("name", TINY)
def test_published_files_give_every_network(name: str, tmp_path: Path) -> None:
    model = TINY[name]
    states = states_of(model)
    weights = loaded(write(tmp_path / "files", model, states), model)
    assert weights.model == model
    for network in networks_of(model):
        assert same(weights.state_dict(network), states[network]), network


def test_half_precision_safetensors_take_the_place_of_the_checkpoint(tmp_path: Path) -> None:
    model = TINY["venhancer"]
    states = states_of(model)
    for name in ("venhancer_v2-fp16.safetensors", "venhancer_paper-fp16.safetensors"):
        weights = loaded(write(tmp_path / name, model, states, name), model)
        found = weights.state_dict("unet")
        assert {value.dtype for value in found.values()} == {torch.float16}
        assert same(
            {k: v.float() for k, v in found.items()}, {k: v.half().float() for k, v in states["unet"].items()}
        )


def test_known_leftovers_are_ignored_and_others_are_not(tmp_path: Path) -> None:
    model = TINY["star-light"]
    states = states_of(model)
    leftovers = PUBLISHED["star-light"].leftovers
    assert len(leftovers) == 6
    assert leftovers <= states_of(TINY["venhancer"])["unet"].keys(), "they are VEnhancer's"
    more = {"unet": states["unet"] | dict.fromkeys(leftovers, torch.ones(2))}
    weights = loaded(write(tmp_path / "known", model, states | more), model)
    assert same(weights.state_dict("unet"), states["unet"])
    strange = {"unet": states["unet"] | {"VideoControlNet.scale_cond.4.weight": torch.ones(2)}}
    weights = loaded(write(tmp_path / "strange", model, states | strange), model)
    with pytest.raises(WeightsError, match=r"unknown: VideoControlNet\.scale_cond\.4\.weight"):
        weights.state_dict("unet")
    assert not PUBLISHED["venhancer"].leftovers


def test_a_checkpoint_without_gates_is_refused(tmp_path: Path) -> None:
    """The authors' loader would run it with gates that nobody trained."""
    model = TINY["star-heavy"]
    states = states_of(model)
    ungated = {k: v for k, v in states["unet"].items() if ".local" not in k}
    weights = loaded(write(tmp_path / "files", model, states | {"unet": ungated}), model)
    with pytest.raises(
        WeightsError, match=r"not the unet of star-heavy; missing: input_blocks\.0\.1.*local1"
    ):
        weights.state_dict("unet")


def test_nothing_pickled_runs(tmp_path: Path) -> None:
    model = TINY["star-light"]
    folder = write(tmp_path / "files", model, states_of(model))
    ran = tmp_path / "ran"

    class Harmful:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(ran),)

    checkpoint = {"state_dict": states_of(model)["unet"], "other": Harmful()}
    for write_it in (
        lambda: torch.save(checkpoint, folder / "light_deg.pt"),
        lambda: (folder / "light_deg.pt").write_bytes(pickle.dumps(checkpoint)),
    ):
        write_it()
        with pytest.raises(WeightsError, match="cannot be read as a checkpoint of tensors"):
            load_weights(str(folder), model, verify=False).state_dict("unet")
    assert not ran.exists()


def test_both_names_of_the_temporal_decoder_are_read(tmp_path: Path) -> None:
    model = TINY["star-light"]
    states = states_of(model)
    folder = write(tmp_path / "files", model, states)
    (folder / "vae").mkdir()
    file = folder / "diffusion_pytorch_model.fp16.safetensors"
    file.rename(folder / "vae" / file.name)  # as in its repository
    assert same(loaded(folder, model).state_dict("autoencoder"), states["autoencoder"])
    (folder / "vae" / file.name).unlink()
    stability = {k: v for k, v in states["autoencoder"].items() if not k.startswith("quant_conv")}
    whole = {f"first_stage_model.{k}": v.contiguous() for k, v in stability.items()}
    save_file(whole | {"model.diffusion_model.out.0.weight": torch.ones(2)}, folder / "svd.safetensors")
    found = loaded(folder, model).state_dict("autoencoder")
    assert same({k: found[k] for k in stability}, stability)
    moments = torch.randn(1, 8, 3, 5)
    passed = torch.nn.functional.conv2d(moments, found["quant_conv.weight"], found["quant_conv.bias"])
    assert torch.equal(passed, moments), "without a last convolution nothing is changed"


def test_without_a_temporal_decoder_frames_are_decoded_one_by_one_and_that_is_said(tmp_path: Path) -> None:
    model = TINY["venhancer"]
    plain = model.with_plain_decoder
    states = states_of(plain)
    folder = write(tmp_path / "files", model, states)
    (folder / "diffusion_pytorch_model.fp16.safetensors").unlink()
    autoencoder = {f"first_stage_model.{k}": v for k, v in states["autoencoder"].items()}
    torch.save({"state_dict": autoencoder}, folder / "v2-1_512-ema-pruned.ckpt")
    with pytest.warns(UserWarning, match=r"no temporal decoder: .*one by one.*diffusion_pytorch_model\.fp16"):
        weights = load_weights(str(folder), model, verify=False)
    assert weights.model == plain
    assert same(weights.state_dict("autoencoder"), states["autoencoder"])


def test_a_file_with_a_published_name_must_be_the_published_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TINY["star-light"]
    folder = write(tmp_path / "files", model, states_of(model))
    with pytest.raises(WeightsError, match=r"light_deg\.pt: is not the published file"):
        load_weights(str(folder), model)
    published = PUBLISHED["star-light"]
    known = {
        network: replace(
            file, sha256=hashlib.sha256((folder / file.name).read_bytes()).hexdigest(), bytes=None
        )
        for network, file in published.files.items()
    }
    monkeypatch.setitem(PUBLISHED, "star-light", replace(published, files=known))
    assert load_weights(str(folder), model).kind == "published"
    (folder / "light_deg.pt").rename(folder / "heavy_deg.pt")
    with pytest.raises(WeightsError, match=r"of those it lacks light_deg\.pt"):
        load_weights(str(folder), model)


def test_every_model_is_a_row() -> None:
    assert set(PURPOSES) == set(MODELS)
    assert set(PUBLISHED) < set(MODELS)
    for name, published in PUBLISHED.items():
        assert set(published.files) == set(networks_of(MODELS[name]))
    light, heavy = MODELS["star-light"], MODELS["star-heavy"]
    assert replace(light, name="star-heavy") == heavy
