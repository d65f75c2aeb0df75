"""What the authors of the models have published: where, which files, and under which licence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedFile:
    """A checkpoint (reference, section 7)."""

    name: str
    sha256: str
    bytes: int | None  # None: known in gigabytes alone
    argument: str  # that names it in configuration.json


@dataclass(frozen=True)
class Publication:
    """A model's checkpoints, by the network that they hold.

    Attributes:
        repository: on the Hugging Face hub.
        names: under which ModelScope knows the model.
        licence: of the weights.
        size: of all files, for people.
        files: by network. One file may hold what two networks need.
    """

    repository: str
    names: tuple[str, ...]
    licence: str
    size: str
    files: Mapping[str, PublishedFile]


_AUTOENCODER = PublishedFile(
    "v2-1_512-ema-pruned.ckpt",
    "88ecb782561455673c4b78d05093494b9c539fc6bfc08f3a9a4a0dd7b0b10f36",
    None,
    "ckpt_autoencoder",
)
_CLIP = PublishedFile(  # both towers
    "open_clip_pytorch_model.bin",
    "9a78ef8e8c73fd0df621682e7a8e8eb36c6916cb3c16b291a082ecd52ab79cc4",
    3944692325,
    "ckpt_clip",
)
_NO_COMMERCE = "CC BY-NC-ND 4.0: no commercial use"

PUBLISHED: Mapping[str, Publication] = {
    "ms-vid2vid-xl": Publication(
        "ali-vilab/MS-Vid2Vid-XL",
        ("damo/Video-to-Video", "iic/Video-to-Video"),
        _NO_COMMERCE,
        "14.8 GB",
        {
            "unet": PublishedFile(
                "non_ema_0035000.pth",
                "d146dd22a8158896c882dd96e6b14d2962a63398a3f2ac37611dcadcdab3a15d",
                5645549113,
                "ckpt_unet",
            ),
            "autoencoder": _AUTOENCODER,
            "text_encoder": _CLIP,
        },
    ),
    "ms-image2video": Publication(
        "ali-vilab/MS-Image2Video",
        ("damo/Image-to-Video", "iic/Image-to-Video"),
        _NO_COMMERCE,
        "14.8 GB",
        {
            "unet": PublishedFile(
                "base_03_alldata_fps_v_80g_0789000.pth",
                "0b4cedc83e3d3e9004b6e37d6b26e907121b62ecf673e1141b512dfbc4486a02",
                None,
                "ckpt_unet",
            ),
            "autoencoder": _AUTOENCODER,
            "image_encoder": _CLIP,
        },
    ),
}
"""By the model's name. A model that is not here has no published form: its weights come as safetensors."""
