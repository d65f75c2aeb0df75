"""The options of ``v2v-doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from v2v.core.configs import MODELS
from v2v.core.console import one_of
from v2v.core.errors import UsageError
from v2v.engine.backend import BACKENDS

SECONDS = 115.0
"""In all, where nothing else is said: with what comes before and after, under two minutes."""


@dataclass(frozen=True)
class DoctorOptions:
    """The command line of ``v2v-doctor``."""

    backend: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Look at this one alone, of {', '.join(BACKENDS)}; may be repeated. Default: all that are installed."
        ),
    ] = None
    model: Annotated[
        str | None,
        typer.Option(
            help="Whose patterns are built; default: ms-vid2vid-xl for a GPU, small for a CPU.",
        ),
    ] = None
    time: Annotated[
        float, typer.Option(min=1.0, help="Seconds in all; what is not begun by then is left out.")
    ] = SECONDS
    json: Annotated[Path | None, typer.Option(help="Also write everything into this file, as JSON.")] = None
    markdown: Annotated[Path | None, typer.Option(help="Also write this file, to paste into a report.")] = (
        None
    )
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace those files.")] = False

    def backends(self) -> list[str]:
        """Those to look at.

        Raises:
            UsageError: there is no such backend.
        """
        return [one_of("--backend", name, tuple(BACKENDS)) for name in self.backend or BACKENDS]

    def model_for(self, device: str) -> str:
        """The model whose patterns are built for ``device``.

        Raises:
            UsageError: there is no such model.
        """
        if self.model is not None:
            return one_of("--model", self.model, tuple(MODELS))
        return "small" if device == "cpu" else "ms-vid2vid-xl"

    def check_files(self) -> None:
        """Refuse to write what cannot be written, before two minutes are spent.

        Raises:
            UsageError: a file is there already, or its folder is not.
        """
        for flag, path in (("--json", self.json), ("--markdown", self.markdown)):
            if path is None:
                continue
            if path.exists() and not self.overwrite:
                raise UsageError(f"{flag} {path}: it is there already; --overwrite replaces it")
            if not path.parent.is_dir():
                raise UsageError(f"{flag} {path}: there is no folder {path.parent}")
