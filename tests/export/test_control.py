"""STAR's and VEnhancer's networks are the authors': same tensors, same numbers, and what the numbers notice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.export import golden
from v2v.core.configs import AutoencoderConfig, UNetConfig
from v2v.export.models import unet as plain
from v2v.export.models.autoencoder import Autoencoder, ClipResnetBlock, TemporalLayers
from v2v.export.models.control import ControlledUNet
from v2v.export.models.diffusers_names import are_diffusers, from_diffusers
from v2v.export.models.layers import GatedLayerNorm, GroupNorm, LayerNorm, with_token_epsilons
from v2v.export.models.unet import UNet

FOLDER = "star-venhancer"
STAR, VENHANCER = f"{FOLDER}/star_unet_small", f"{FOLDER}/venhancer_unet_small"
SVD = f"{FOLDER}/svd_vae_small"
CONFIGS = {STAR: golden.STAR_UNET, VENHANCER: golden.VENHANCER_UNET}
NETWORK_ERROR, AUTOENCODER_ERROR = 5e-6, 1e-5


def loaded(name: str) -> ControlledUNet:
    with torch.device("meta"):
        network = ControlledUNet(CONFIGS[name])
    network.load_state_dict(golden.weights(name), assign=True)
    return network.requires_grad_(False).eval()


def hints(case: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """What a case shows the control branch, as the component takes it: a hint for every frame, and which are there."""
    if "mask" not in case:
        return (case["hint"],)
    mask = case["mask"]
    numbers = mask.clamp(min=0)[:, None, :, None, None].expand(-1, 4, -1, *case["hint"].shape[3:])
    keys = (mask >= 0).float()
    return (
        case["hint"].gather(2, numbers) * keys[:, None, :, None, None],
        keys,
        case["t_hint"],
        case["s_cond"],
    )


def cases(name: str) -> Iterator[dict[str, Tensor]]:
    stored = golden.cases(name)
    for number in sorted({key.split(".")[0] for key in stored}):
        case = {k.partition(".")[2]: v for k, v in stored.items() if k.split(".")[0] == number}
        yield {k: v.float() if v.dtype == torch.float16 else v for k, v in case.items()}


@torch.inference_mode()
def errors(network: Any, name: str, shown: Callable[..., tuple[Tensor, ...]] = hints) -> list[float]:
    return [
        golden.relative_error(network(case["x"], case["t"], case["y"], *shown(case)), case["out"])
        for case in cases(name)
    ]


# Tensors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "listed", "tensors", "parameters"),
    [
        (UNetConfig(gated=True, control="every frame"), "star_unet", 2247, 2_041_121_910),
        (UNetConfig(control="key frames"), "venhancer_unet", 2180, 2_044_809_796),
    ],
)
def test_tensors_have_the_names_and_shapes_of_the_published_checkpoints(
    config: UNetConfig, listed: str, tensors: int, parameters: int
) -> None:
    with torch.device("meta"):
        state = ControlledUNet(config).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == golden.keys(f"{FOLDER}/{listed}")
    assert (len(state), sum(value.numel() for value in state.values())) == (tensors, parameters)


def test_tensors_of_the_temporal_autoencoder_have_diffusers_names() -> None:
    theirs = {k: torch.empty(s, device="meta") for k, s in golden.keys(f"{FOLDER}/svd_vae").items()}
    assert are_diffusers(theirs)
    with torch.device("meta"):
        ours = Autoencoder(AutoencoderConfig(decoder_frames=3)).state_dict()
    assert not are_diffusers(ours)
    renamed = from_diffusers(theirs)
    assert {k: v.shape for k, v in renamed.items()} == {k: v.shape for k, v in ours.items()}
    assert (len(theirs), sum(v.numel() for v in theirs.values())) == (374, 97_742_847)


@pytest.mark.parametrize(
    ("name", "total"), [(STAR, 1121300.460005), (VENHANCER, 1123269.609617), (SVD, 185037.265083)]
)
def test_golden_weights_have_their_checksum(name: str, total: float) -> None:
    found = sum(weight.double().abs().sum().item() for weight in golden.weights(name).values())
    assert found == pytest.approx(total, rel=1e-9)


# Numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_unets_give_the_authors_numbers(name: str) -> None:
    assert max(errors(loaded(name), name)) < NETWORK_ERROR


def test_gates_are_epsilons_of_the_norms_exactly() -> None:
    assert max(errors(with_token_epsilons(loaded(STAR)), STAR)) < NETWORK_ERROR


@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_what_the_branch_adds_on_the_way(name: str) -> None:
    network = loaded(name)
    for case in cases(name):
        shown, *keys = hints(case)
        added = network.VideoControlNet(case["x"], case["t"], case["y"], shown, tuple(keys))
        for place in ("0", "12"):
            if f"control.{place}" in case:
                error = golden.relative_error(added[int(place)], case[f"control.{place}"])
                assert error < NETWORK_ERROR


def autoencoder() -> Autoencoder:
    with torch.device("meta"):
        network = Autoencoder(golden.CLIP_AUTOENCODER)
    renamed = from_diffusers(golden.weights(SVD))
    network.load_state_dict(renamed, assign=True)
    return network.requires_grad_(False).eval()


@torch.inference_mode()
def decoder_errors(network: Autoencoder) -> list[float]:
    return [golden.relative_error(network.decode(case["z"]), case["decoded"]) for case in cases(SVD)]


@torch.inference_mode()
def test_temporal_autoencoder_gives_the_authors_numbers() -> None:
    network = autoencoder()
    assert max(decoder_errors(network)) < AUTOENCODER_ERROR
    for case in cases(SVD):
        assert golden.relative_error(network.encode(case["image"]), case["moments"]) < AUTOENCODER_ERROR


# Faults that the numbers notice -----------------------------------------------------------------------------

Fault = Callable[[ControlledUNet], None]


def blocks(network: nn.Module, kind: type) -> list[Any]:
    return [module for module in network.modules() if isinstance(module, kind)]


def gates_over(network: nn.Module, statistics: Callable[[Tensor], Tensor]) -> None:
    """Let gates be made of other numbers of a token, ``[..., C] -> [..., 2]``."""

    def spatial(gate: Any, x: Tensor, size: tuple[int, int]) -> Tensor:
        maps = torch.unflatten(statistics(x).flatten(0, 1), 1, size).permute(0, 3, 1, 2)
        weighed = torch.sigmoid(gate.conv1(maps)).flatten(2).transpose(1, 2)
        return torch.unflatten(weighed, 0, x.shape[:2])

    def temporal(gate: Any, x: Tensor) -> Tensor:
        return torch.sigmoid(gate.conv1(statistics(x)))

    for kind, made in ((plain.SpatialGate, spatial), (plain.TemporalGate, temporal)):
        for gate in blocks(network, kind):
            gate.forward = made.__get__(gate)


def strongest_and_mean(x: Tensor) -> Tensor:
    return torch.stack([x.amax(-1), x.mean(-1)], -1)


def swapped(x: Tensor) -> Tensor:
    return strongest_and_mean(x).flip(-1)


def with_deviation(x: Tensor) -> Tensor:
    return torch.stack([x.amax(-1), x.std(-1)], -1)


def ungated(network: ControlledUNet) -> None:
    for norm in blocks(network, GatedLayerNorm):
        norm.gated = lambda x, gate, norm=norm: norm(x)


def inverse_not_squared(network: ControlledUNet) -> None:
    with_token_epsilons(network)
    for norm in blocks(network, GatedLayerNorm):
        norm.gated = lambda x, gate, norm=norm: GatedLayerNorm.gated(norm, x, gate.sqrt())


def second_gate_open(network: ControlledUNet) -> None:
    for block in blocks(network, plain.TemporalBlock):
        block.norm2.gated = lambda x, gate, norm=block.norm2: norm(x)


def second_gate_of_the_block_s_input(network: ControlledUNet) -> None:
    for block in blocks(network, plain.TemporalBlock):
        seen: list[Tensor] = []
        block.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        gate = block.local2
        gate.forward = lambda x, gate=gate, seen=seen: type(gate).forward(gate, seen[-1])


def map_transposed(network: ControlledUNet) -> None:
    for gate in blocks(network, plain.SpatialGate):
        gate.conv1.weight.data = gate.conv1.weight.data.transpose(2, 3).contiguous()


def text_attention_gated_too(network: ControlledUNet) -> None:
    for block in blocks(network, plain.SpatialBlock):
        sizes: list[Any] = []
        block.register_forward_pre_hook(lambda _, inputs, sizes=sizes: sizes.append(inputs[2]))
        block.norm2.forward = lambda x, block=block, sizes=sizes: LayerNorm.forward(
            block.norm2, block.local1(x, sizes[-1]) * x
        )


def layer_norms(eps: float, kind: type = LayerNorm, name: str = "norm") -> Fault:
    def change(network: ControlledUNet) -> None:
        for where, module in network.named_modules():
            if isinstance(module, kind) and name in where.rpartition(".")[2]:
                module.eps = eps

    return change


def branch_group_norms(before: float, after: float) -> Fault:
    """Transformers have one epsilon, residual blocks another."""

    def change(network: ControlledUNet) -> None:
        for norm in blocks(network.VideoControlNet, GroupNorm):
            norm.eps = after if norm.eps == before else norm.eps

    return change


def branch_without(*places: int) -> Fault:
    """What the branch adds at some places is nothing."""

    def change(network: ControlledUNet) -> None:
        def hook(_: Any, __: Any, added: list[Tensor]) -> list[Tensor]:
            return [0 * each if number in places else each for number, each in enumerate(added)]

        network.VideoControlNet.register_forward_hook(hook)

    return change


def hint_left_out(network: ControlledUNet) -> None:
    network.VideoControlNet.input_hint_block.register_forward_hook(lambda _, __, shown: 0 * shown)


def hint_behind_the_transformer(network: ControlledUNet) -> None:
    shown: list[Tensor] = []
    branch: Any = network.VideoControlNet

    def take(_: Any, __: Any, made: Tensor) -> Tensor:
        shown.append(made)
        return 0 * made

    branch.input_hint_block.register_forward_hook(take)
    keys: list[Any] = []
    branch.register_forward_pre_hook(lambda _, inputs: keys.append(inputs[4]))

    def add(_: Any, __: Any, x: Tensor) -> Tensor:
        here = shown[-1] * keys[-1][0].flatten()[:, None, None, None] if keys[-1] else shown[-1]
        return x + here

    branch.input_blocks[0][1].register_forward_hook(add)


def frames_in_other_order(network: ControlledUNet) -> None:
    network.register_forward_pre_hook(lambda _, inputs: (*inputs[:3], inputs[3].flip(2), *inputs[4:]))


def main_embeds_as_the_branch(network: ControlledUNet) -> None:
    network.time_embed = network.VideoControlNet.time_embed


BOTH: dict[str, Fault] = {
    "epsilon of all layer norms": layer_norms(1e-6),
    "epsilon of norm1": layer_norms(1e-6, name="norm1"),
    "hint left out": hint_left_out,
    "hint behind the transformer": hint_behind_the_transformer,
    "frames in other order": frames_in_other_order,
    "nothing added in the middle": branch_without(12),
    "nothing added to the skips": branch_without(*range(12)),
    "nothing added to the last skip": branch_without(11),
    "nothing added after the downs": branch_without(3, 6, 9),
    "main embeds as the branch": main_embeds_as_the_branch,
    "epsilon of the branch's transformers": branch_group_norms(1e-6, 1e-5),
    "epsilon of the branch's residual blocks": branch_group_norms(1e-5, 1e-6),
}
OF_STAR: dict[str, Fault] = {
    "no gates": ungated,
    "1/g": inverse_not_squared,
    "mean before the strongest": lambda network: gates_over(network, swapped),
    "deviation for mean": lambda network: gates_over(network, with_deviation),
    "no second gate": second_gate_open,
    "second gate too early": second_gate_of_the_block_s_input,
    "map transposed": map_transposed,
    "text attention gated too": text_attention_gated_too,
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", [*BOTH, *OF_STAR])
def test_the_numbers_of_star_notice(fault: str) -> None:
    network = loaded(STAR)
    (BOTH | OF_STAR)[fault](network)
    assert max(errors(network, STAR)) > 1.5 * NETWORK_ERROR


def test_gates_written_out_here_are_those_of_the_network() -> None:
    network = loaded(STAR)
    gates_over(network, strongest_and_mean)
    assert max(errors(network, STAR)) < NETWORK_ERROR


@pytest.mark.slow
@pytest.mark.parametrize("fault", BOTH)
def test_the_numbers_of_venhancer_notice(fault: str) -> None:
    network = loaded(VENHANCER)
    BOTH[fault](network)
    assert max(errors(network, VENHANCER)) > 1.5 * NETWORK_ERROR


def changed_condition(change: Callable[[Any, tuple[Tensor, ...]], tuple[Any, ...]]) -> Fault:
    """A branch that is told something else of the hint, after ``change(branch, keys)``."""

    def apply(network: ControlledUNet) -> None:
        branch: Any = network.VideoControlNet
        original = branch.condition
        branch.condition = lambda t, like, keys: original(t, like, change(branch, keys))

    return apply


def bias_everywhere(network: ControlledUNet) -> None:
    branch: Any = network.VideoControlNet
    bias = branch.input_hint_block.bias.data.clone()
    keys: list[Tensor] = []
    branch.register_forward_pre_hook(lambda _, inputs: keys.append(inputs[4][0].flatten()))
    branch.input_blocks[0][0].register_forward_hook(
        lambda _, __, x: x + (1 - keys[-1])[:, None, None, None] * bias[:, None, None]
    )


def scale_through_time_embed(network: ControlledUNet) -> None:
    branch: Any = network.VideoControlNet

    def condition(t: Tensor, like: Tensor, keys: tuple[Tensor, ...]) -> Tensor:
        is_key, hint_timestep, scale = keys
        told = branch.hint_time_zero_linear(branch.embed(hint_timestep, like)) + branch.embed(scale, like)
        return branch.embed(t, like)[:, None] + is_key[..., None] * told[:, None]

    branch.condition = condition


def silent(layers: str) -> Fault:
    def change(network: ControlledUNet) -> None:
        getattr(network.VideoControlNet, layers).register_forward_hook(lambda _, __, told: 0 * told)

    return change


def one_embedding_for_all(network: ControlledUNet) -> None:
    branch: Any = network.VideoControlNet
    original = branch.condition
    branch.condition = lambda t, like, keys: original(t, like, keys).mean(1)


OF_VENHANCER: dict[str, Fault] = {
    "bias in other frames": bias_everywhere,
    "hint's time and enlargement swapped": changed_condition(lambda _, keys: (keys[0], keys[2], keys[1])),
    "enlargement through the embedding of time": scale_through_time_embed,
    "no enlargement": silent("scale_cond"),
    "no hint's time": silent("hint_time_zero_linear"),
    "conditions to all frames": changed_condition(lambda _, keys: (torch.ones_like(keys[0]), *keys[1:])),
    "one embedding for all": one_embedding_for_all,
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", OF_VENHANCER)
def test_the_numbers_of_venhancer_notice_what_is_its_own(fault: str) -> None:
    network = loaded(VENHANCER)
    OF_VENHANCER[fault](network)
    assert max(errors(network, VENHANCER)) > 1.5 * NETWORK_ERROR


def mixed_the_other_way(network: Autoencoder) -> None:
    for block in blocks(network, ClipResnetBlock):
        block.mix_factor.data.neg_()


def no_last_convolution(network: Autoencoder) -> None:
    network.decoder.conv_out.time_mix_conv = nn.Identity()


def temporal_epsilon(network: Autoencoder) -> None:
    for layers in blocks(network, TemporalLayers):
        for norm in blocks(layers, GroupNorm):
            norm.eps = 1e-6


@pytest.mark.parametrize("fault", [mixed_the_other_way, no_last_convolution, temporal_epsilon])
def test_the_decoder_s_numbers_notice(fault: Callable[[Autoencoder], None]) -> None:
    network = autoencoder()
    fault(network)
    assert max(decoder_errors(network)) > AUTOENCODER_ERROR


# Properties -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_with_zero_convolutions_at_zero_it_is_the_plain_unet(name: str) -> None:
    network = loaded(name)
    for convolution in (*network.VideoControlNet.zero_convs, network.VideoControlNet.middle_block_out):
        for parameter in convolution.parameters():
            parameter.data.zero_()
    with torch.device("meta"):
        alone = UNet(replace(CONFIGS[name], control="none")).eval()
    own = alone.state_dict()
    alone.load_state_dict({k: v for k, v in network.state_dict().items() if k in own}, assign=True)
    for case in cases(name):
        arguments = case["x"], case["t"], case["y"]
        assert torch.equal(network(*arguments, *hints(case)), alone(*arguments))


@pytest.mark.parametrize("spread", [1.0, 0.1, 0.01])
def test_a_gate_changes_a_norm_through_its_epsilon_alone(spread: float) -> None:
    torch.manual_seed(0)
    norm = GatedLayerNorm(64)
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    x, gate = spread * torch.randn(2, 3, 5, 64) + 0.3 * spread, torch.rand(2, 3, 5, 1)
    gate[0, 0, 0] = 1e-4  # whose square FP16 does not hold
    as_written = norm.gated(x, gate)
    with_token_epsilons(norm)
    assert golden.relative_error(norm.gated(x, gate).detach(), as_written.detach()) < 1e-6
    closed = norm.gated(x, torch.zeros_like(gate))
    assert torch.equal(closed, norm.bias.expand_as(closed))
    norm.half()
    small = norm.gated(x.half(), gate)
    assert small.dtype == torch.float16
    assert golden.relative_error(small.detach(), as_written.detach()) < 2e-3


@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_a_step_s_own_features_give_that_step_exactly(name: str) -> None:
    network = loaded(name)
    case = next(cases(name))
    arguments = case["x"], case["t"], case["y"], *hints(case)
    velocity, features = network.full(*arguments)
    assert torch.equal(velocity, network(*arguments))
    assert torch.equal(velocity, network.outer(*arguments, features))
    assert not torch.equal(velocity, network.outer(*arguments, 0.9 * features))


@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_networks_run_in_half_precision(name: str) -> None:
    network = with_token_epsilons(loaded(name)).half()
    case = next(cases(name))
    arguments = case["x"], case["t"], case["y"], *hints(case)
    found = network(*(x.half() if x.is_floating_point() else x for x in arguments))
    assert found.dtype == torch.float16
    assert golden.relative_error(found, case["out"]) < 1e-2
