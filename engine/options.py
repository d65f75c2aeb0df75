"""The options of ``v2v-build-engines``, and how they become what a build takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args

import typer

from v2v.core.components import ComponentName, Precision, Window, window_for
from v2v.core.configs import MODELS, ModelConfig
from v2v.core.console import one_of, parse_size
from v2v.core.errors import UsageError
from v2v.engine.backend import BACKENDS, MIXABLE, BuildOptions
from v2v.engine.choose import default_backend, default_device, default_precision, named_device

_PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True)
class BuildArguments:
    """The command line of ``v2v-build-engines``; what is not given has the defaults of a build."""

    model: Annotated[str, typer.Argument(help=f"One of {', '.join(MODELS)}.")] = "small"
    weights: Annotated[
        str | None,
        typer.Option(help="Folder of the published files or of safetensors, hf:ORG/NAME or random:SEED."),
    ] = None
    size: Annotated[str | None, typer.Option(help="Window's width x height, as 1280x720.")] = None
    frames: Annotated[int | None, typer.Option(min=1, help="Window's frames, as 32.")] = None
    backend: Annotated[str | None, typer.Option(help=f"One of {', '.join(BACKENDS)}.")] = None
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1; default: cuda where it works.")] = (
        None
    )
    precision: Annotated[
        str | None, typer.Option(help="fp32 or fp16; default: fp16 on cuda, fp32 on a cpu.")
    ] = None
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the engine set; default: the store.")
    ] = None
    force: Annotated[bool, typer.Option("--force", help="Build anew what is there already.")] = False
    save_weights: Annotated[
        Path | None, typer.Option(help="Also write the weights into this folder, as safetensors.")
    ] = None
    workspace: Annotated[
        float | None, typer.Option(min=0.0, help="Scratch limit while compiling, GiB (TensorRT).")
    ] = None
    optimization_level: Annotated[
        int | None, typer.Option(min=0, max=5, help="Effort of the compiler, 3 or, longer, 5 (TensorRT).")
    ] = None
    reuse: Annotated[
        bool,
        typer.Option("--reuse", help="A UNet that v2v-run --reuse and --fast run faster; needs PyTorch."),
    ] = False
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="KEY=VALUE for the backend, or a component's own precision, as vae_decoder=fp32; may be repeated."
        ),
    ] = None
    models: Annotated[
        bool, typer.Option("--models", help="List the models: what for, memory, licence, weights.")
    ] = False
    list_sets: Annotated[bool, typer.Option("--list", help="List the engine sets in the store.")] = False
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what the compiler warns of.")] = False
    verify: Annotated[
        bool, typer.Option("--verify", help="Verify the engine set in -o, or all in the store.")
    ] = False
    layers: Annotated[
        bool,
        typer.Option("--layers", help="With --verify and -o: find the first layer that goes wrong."),
    ] = False

    def config(self) -> ModelConfig:
        """The model whose engines are built.

        Raises:
            UsageError: there is no such model.
        """
        return MODELS[one_of("model", self.model, tuple(MODELS))]

    def named_device(self) -> str | None:
        """The device of the command line; None where it names none.

        Raises:
            UsageError: there is no such device.
        """
        return named_device(self.device)

    def build_options(self) -> BuildOptions:
        """Device, precision and the backend's own options.

        Raises:
            UsageError: an option that cannot be read.
        """
        device = self.named_device() or default_device()
        extra = dict(parse_option(text) for text in self.option or [])
        if self.workspace is not None:
            extra["workspace"] = f"{self.workspace:g}"
        if self.optimization_level is not None:
            extra["optimization_level"] = str(self.optimization_level)
        precision = one_of("--precision", self.precision or default_precision(device), _PRECISIONS)
        mixed = {
            name: one_of(f"--option {name}", extra.pop(name), _PRECISIONS)
            for name in MIXABLE
            if name in extra
        }
        if wrong := sorted(set(extra) & set(get_args(ComponentName))):
            raise UsageError(
                f"--option {wrong[0]}: only {' and '.join(MIXABLE)} may have a precision of their own"
            )
        own = tuple((name, own) for name, own in sorted(mixed.items()) if own != precision)
        return BuildOptions(precision, device, extra, self.reuse, own)

    def window(self, config: ModelConfig) -> Window:
        """The window that the UNet engine takes.

        Raises:
            UsageError: a size that cannot be read.
            BuildError: a window that the model cannot take.
        """
        return window_for(config, parse_size(self.size) if self.size else None, self.frames)

    def backend_name(self, device: str) -> str:
        """The backend that compiles for ``device``.

        Raises:
            UsageError: there is no such backend.
            EngineError: none is named, and none that is installed here runs on ``device``.
        """
        return one_of("--backend", self.backend, tuple(BACKENDS)) if self.backend else default_backend(device)


def parse_option(text: str) -> tuple[str, str]:
    """Read "KEY=VALUE" -> (KEY, VALUE).

    Raises:
        UsageError: anything else.
    """
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UsageError(f"--option must be KEY=VALUE, not '{text}'")
    return key, value
