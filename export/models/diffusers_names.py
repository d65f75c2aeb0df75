"""An autoencoder's tensors under diffusers' names (``AutoencoderKLTemporalDecoder``) -> under this package's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

_RESNET = (
    ("spatial_res_block.", ""),
    ("temporal_res_block.norm1", "time_stack.in_layers.0"),
    ("temporal_res_block.conv1", "time_stack.in_layers.2"),
    ("temporal_res_block.norm2", "time_stack.out_layers.0"),
    ("temporal_res_block.conv2", "time_stack.out_layers.3"),
    ("time_mixer.mix_factor", "mix_factor"),
    ("conv_shortcut", "nin_shortcut"),
)
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def are_diffusers(names: Iterable[str]) -> bool:
    """Whether an autoencoder's tensors have diffusers' names."""
    return any(".mid_block." in name for name in names)


def from_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename; what has no other name keeps its own. Attention's matrices become convolutions of one position."""
    levels = 1 + max(
        (int(m[1]) for n in tensors if (m := re.match(r"decoder\.up_blocks\.(\d+)\.", n))), default=0
    )
    renamed = {_renamed(name, levels): value for name, value in tensors.items()}
    return {
        name: value[..., None, None] if ".attn_1." in name and value.dim() == 2 else value
        for name, value in renamed.items()
    }


def _renamed(name: str, levels: int) -> str:
    name = re.sub(r"\.down_blocks\.(\d+)\.resnets\.", r".down.\1.block.", name)
    name = re.sub(r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample.", name)
    # The decoder's levels are numbered here by resolution, there in the order in which they run.
    name = re.sub(
        r"\.up_blocks\.(\d+)\.(resnets|upsamplers\.0)\.",
        lambda m: f".up.{levels - 1 - int(m[1])}.{'block' if m[2] == 'resnets' else 'upsample'}.",
        name,
    )
    name = re.sub(r"\.mid_block\.resnets\.(\d)\.", lambda m: f".mid.block_{int(m[1]) + 1}.", name)
    name = re.sub(
        r"\.mid_block\.attentions\.0\.(group_norm|to_q|to_k|to_v|to_out\.0)\.",
        lambda m: f".mid.attn_1.{_ATTENTION[m[1]]}.",
        name,
    )
    for theirs, ours in _RESNET:
        name = name.replace(theirs, ours)
    return name.replace("conv_norm_out", "norm_out").replace("time_conv_out", "conv_out.time_mix_conv")
