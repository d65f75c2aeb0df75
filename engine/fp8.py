"""Products of a UNet in FP8 (e4m3): which UNets and GPUs can have them, and how far they may take it.

It is the same for every backend that has ``--option fp8=yes``.
"""

from __future__ import annotations

from v2v.core.configs import ModelConfig
from v2v.core.errors import BuildError
from v2v.engine.backend import BuildOptions

CAPABILITY = (8, 9)
"""Of the first GPUs whose matrix units take e4m3."""

TOLERANCE = 0.3
"""Relative L2 error of a UNet in FP8 past which it is refused; random weights gave 0.05 to 0.18."""

MULTIPLE = 16
"""The network's width must be a multiple of this: what tiles and libraries ask of rows of bytes."""


def check_options(options: BuildOptions) -> None:
    """Whether a build can have products in FP8.

    Raises:
        BuildError: it is not for a GPU, or not in FP16.
    """
    if options.device != "cuda" or options.precision != "fp16":
        raise BuildError(
            "--option fp8=yes computes parts of an FP16 UNet on a GPU: it needs --device cuda --precision fp16, "
            f"not {options.device} and {options.precision}"
        )


def check_gpu(
    name: str, capability: tuple[int, int], kind: str = "FP8", first: tuple[int, int] = CAPABILITY
) -> None:
    """Whether a GPU multiplies in numbers of a kind, which those of capability ``first`` were the first to do.

    Raises:
        BuildError: its compute capability is less.
    """
    if capability < first:
        have, need = (".".join(map(str, numbers)) for numbers in (capability, first))
        raise BuildError(
            f"{name} has no {kind} (its compute capability is {have}, {kind} came with {need}): leave out "
            f"--option {kind.lower()}=yes"
        )


def check_model(model: ModelConfig) -> None:
    """Whether the UNet of ``model`` can have products in FP8.

    Raises:
        BuildError: it was not made for that.
    """
    if model.unet.control != "none":
        raise BuildError(
            f"model {model.name} has a control branch, which was never tried in FP8: leave out --option fp8=yes"
        )
    if not model.unet.groups:
        raise BuildError(
            f"model {model.name} has no norms, which keep numbers within FP8's range: leave out --option fp8=yes"
        )
    if model.unet.width % MULTIPLE:
        raise BuildError(
            f"FP8 needs a UNet whose width is a multiple of {MULTIPLE}; that of {model.name} is {model.unet.width}: "
            "leave out --option fp8=yes"
        )
