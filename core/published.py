"""What the authors of the models have published: where, which files, and under which licence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class PublishedFile:
    """A checkpoint (reference, section 7)."""

    name: str
    sha256: str | None  # None: not known; the name alone speaks for it
    bytes: int | None  # None: known in gigabytes alone
    argument: str  # that names it in configuration.json; empty: nothing does
    repository: str | None = None  # on the Hugging Face hub, where it is not the model's own
    folder: str = ""  # in which it lies there
    others: tuple[
        PublishedFile, ...
    ] = ()  # that may take its place: other weights, or the same in half precision

    @property
    def choices(self) -> tuple[PublishedFile, ...]:
        """It and those that may take its place, best first."""
        return self, *self.others


@dataclass(frozen=True)
class Publication:
    """A model's checkpoints, by the network that they hold.

    Attributes:
        repository: on the Hugging Face hub.
        names: under which ModelScope knows the model.
        licence: of the weights.
        size: of all files, for people.
        files: by network. One file may hold what two networks need.
        leftovers: names of tensors that a checkpoint may hold beside the network's, and that nothing reads.
        provenance: what is known, and not known, of where the weights come from and who may use them.
    """

    repository: str
    names: tuple[str, ...]
    licence: str
    size: str
    files: Mapping[str, PublishedFile]
    leftovers: frozenset[str] = frozenset()
    provenance: str = ""


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
_CLIP_ALONE = replace(_CLIP, argument="", repository="laion/CLIP-ViT-H-14-laion2B-s32B-b79K")
_SVD = "stabilityai/stable-video-diffusion-img2vid"
_TEMPORAL_AUTOENCODER = PublishedFile(
    "diffusion_pytorch_model.fp16.safetensors",
    None,
    None,
    "",
    _SVD,
    "vae",
    (
        PublishedFile("diffusion_pytorch_model.safetensors", None, None, "", _SVD, "vae"),
        PublishedFile("svd.safetensors", None, None, "", _SVD),
        replace(_AUTOENCODER, argument="", repository="stabilityai/stable-diffusion-2-1-base"),
    ),
)
_DECODER_LICENCE = "the temporal decoder: Stability AI Community License"


def _star(name: str, sha256: str) -> Publication:
    return Publication(
        "SherryX/STAR",
        (),
        f"MIT, say its authors; {_DECODER_LICENCE}",
        "12.3 GB",
        {
            "unet": PublishedFile(name, sha256, None, "", folder="I2VGen-XL-based"),
            "autoencoder": _TEMPORAL_AUTOENCODER,
            "text_encoder": _CLIP_ALONE,
        },
        # Training began with VEnhancer's file, whose key frames this network does not have.
        frozenset(
            f"VideoControlNet.{layer}.{kind}" for layer in _OF_KEY_FRAMES for kind in ("weight", "bias")
        ),
        "The authors call the weights MIT in their README; their repository has no licence file. The weights descend "
        "from VEnhancer's, for which no licence is stated, and from ModelScope's, which are for non-commercial use. "
        "Whether they could be given away under MIT is open: it is for you to decide.",
    )


_OF_KEY_FRAMES = ("hint_time_zero_linear", "scale_cond.0", "scale_cond.2")
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
    "star-light": _star("light_deg.pt", "537881f0276d858fae2cdc932534fcd823468b515ff1d3bf368c2db98792d3d5"),
    "star-heavy": _star("heavy_deg.pt", "285e7903a561cadcc7426808987c0ac0352b3beb0351df10775bb90e6635a5e5"),
    "venhancer": Publication(
        "jwhejwhe/VEnhancer",
        (),
        f"none stated; {_DECODER_LICENCE}",
        "12.3 GB",
        {
            "unet": PublishedFile(
                "venhancer_v2.pt",
                "849c1a38b2934e87c294cc61e678988f52b07e4a6d05de609864a631805927c7",
                8179978359,
                "",
                others=(
                    PublishedFile(
                        "venhancer_v2-fp16.safetensors",
                        "b4afbbcfdb27cea6c71c7fcd2b4a3528d4bae800dff9ed5e757e015f1ed5c521",
                        4089889392,
                        "",
                        "Kijai/VEnhancer-fp16",
                    ),
                    PublishedFile(
                        "venhancer_paper.pt",
                        "dd6de4c505823d3c8b9dff4466e0110efa5a1b0b0466f9bed28899f42d8ea049",
                        8179980541,
                        "",
                    ),
                    PublishedFile("venhancer_paper-fp16.safetensors", None, None, "", "Kijai/VEnhancer-fp16"),
                ),
            ),
            "autoencoder": _TEMPORAL_AUTOENCODER,
            "text_encoder": _CLIP_ALONE,
        },
        provenance="The authors state no licence, neither with their code nor with their weights; these descend from "
        "ModelScope's, which are for non-commercial use. Without their leave all rights are reserved: it is for you to "
        "decide.",
    ),
}
"""By the model's name. A model that is not here has no published form: its weights come as safetensors."""


@dataclass(frozen=True)
class Purpose:
    """What a model is for, for people who choose one.

    Attributes:
        text: in a few words.
        memory: of a GPU at the model's window, where it was measured, else what NVIDIA's compiler planned.
        rank: among the models that enhance videos: the first whose engines are there runs where none is named.
        on_demand: its engines are built when they are first needed, with made-up weights if the package has none.
    """

    text: str
    memory: str
    rank: int | None = None
    on_demand: bool = False


_CONTROLLED = "not measured; weights of the UNet 4.1 GB"

PURPOSES: Mapping[str, Purpose] = {
    "ms-vid2vid-xl": Purpose("enhances a video to 720p, guided by a text", "13.1 GiB, measured", rank=0),
    "ms-image2video": Purpose("makes a small film of a picture, which another enhances", "5.9 GiB, measured"),
    "star-light": Purpose("restores and enlarges a video from the world that is little damaged", _CONTROLLED),
    "star-heavy": Purpose("restores and enlarges a video from the world that is badly damaged", _CONTROLLED),
    "venhancer": Purpose("enlarges a made-up video, and makes frames between its frames", _CONTROLLED),
    "small": Purpose(
        "doubles a video's size on a CPU; comes with v2v", "none needed", rank=1, on_demand=True
    ),
}
"""By the model's name."""
