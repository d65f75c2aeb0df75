"""``v2v-run`` in this process or in one of its own, on engines of a few lines of ONNX."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import v2v.core.console
import v2v.runtime.cli as cli
from tests.stand_ins import sets
from tests.stand_ins.model import FIRST_STAGE, FIRST_STAGE_WINDOW, like
from v2v.core.components import Window

SAMPLE = Path(__file__).parents[2] / "assets" / "sample.mp4"
WINDOW = Window(8, 80, 128)


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """What was said on stderr, without progress bars."""
        return [line for line in self.err.splitlines() if line.strip()]


Run = Callable[..., Result]


def build_engines(folder: Path, window: Window = WINDOW) -> Path:
    """An engine set whose autoencoder averages blocks of pixels and whose UNet is next to nothing."""
    return sets.build(
        folder / "stand-in", backend="onnxruntime", exporter=sets.ONNX, window=window
    ).engine_set.path


def build_like(folder: Path, name: str, window: Window = WINDOW) -> Path:
    """An engine set of that kind that is steered, and decodes, as the published model of that name."""
    return sets.build(
        folder / name, backend="onnxruntime", exporter=sets.ONNX, model=like(name), window=window
    ).engine_set.path


def build_first_stage(folder: Path) -> Path:
    """An engine set of the same kind that makes films of pictures."""
    return sets.build(
        folder / "first",
        backend="onnxruntime",
        exporter=sets.ONNX,
        model=FIRST_STAGE,
        window=FIRST_STAGE_WINDOW,
    ).engine_set.path


@contextmanager
def in_process(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Lend a function that runs the command with its arguments."""
    monkeypatch.setattr(v2v.core.console, "watch", lambda: None)
    monkeypatch.setattr(v2v.core.console.messages, "width", 300)

    def call(*arguments: Any) -> Result:
        monkeypatch.setattr(sys, "argv", ["v2v-run", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as leave:
            cli.main()
        return Result(int(leave.value.code or 0), *capfd.readouterr())

    yield call


def start(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
    """Start the command in a process of its own."""
    script = "from v2v.runtime.start import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options},
    )
