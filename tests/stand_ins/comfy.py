"""What v2v's nodes use of ComfyUI, with its names, its arguments and its ways; the real one is in no index.

Inputs and outputs take what ComfyUI 0.3.64 takes, and nothing else. The bar tells what it was told, and can be
interrupted at a value.
"""

from __future__ import annotations

import importlib.util
import io as bytes_io
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import av
import pytest
import torch

NODES = Path(__file__).parents[2] / "apps" / "comfyui"


class InterruptProcessingException(Exception):
    """The user has pressed the button."""


@dataclass
class Watched:
    """What the page is told, and the button that it has."""

    values: list[float] = field(default_factory=list)
    previews: list[Any] = field(default_factory=list)
    interrupted: bool = False
    at: Callable[[float], bool] = lambda value: False  # whether the button is pressed at this value

    def throw_if_interrupted(self) -> None:
        if self.interrupted:
            self.interrupted = False
            raise InterruptProcessingException

    def bar(self, total: float, node_id: str | None = None) -> SimpleNamespace:
        def update_absolute(value: float, total: float | None = None, preview: Any = None) -> None:
            self.throw_if_interrupted()
            self.values.append(value)
            if preview is not None:
                self.previews.append(preview)
            self.interrupted = self.at(value)

        return SimpleNamespace(update_absolute=update_absolute)


# Inputs and outputs -------------------------------------------------------------------------------------------


@dataclass
class Socket:
    """An input or an output of a node."""

    io_type: str
    id: str | None
    more: dict[str, Any]


_INPUT = {"display_name", "optional", "tooltip", "lazy"}
_WIDGET = _INPUT | {"default", "socketless", "force_input"}


def kind(io_type: str, takes: set[str] = _INPUT, needs: set[str] = frozenset()) -> SimpleNamespace:  # type: ignore[assignment]
    """A type of inputs and outputs."""

    def made_input(id: str, **more: Any) -> Socket:
        assert needs <= set(more) <= takes, f"{io_type} takes {takes}, not {set(more) - takes}"
        return Socket(io_type, id, more)

    def made_output(id: str | None = None, display_name: str | None = None) -> Socket:
        return Socket(io_type, id, {"display_name": display_name})

    return SimpleNamespace(Input=made_input, Output=made_output)


@dataclass
class Schema:
    """What a node says of itself."""

    node_id: str
    display_name: str
    category: str
    description: str
    inputs: list[Socket]
    outputs: list[Socket]
    is_output_node: bool = False


class ComfyNode:
    """A node: its class is never made an object of."""


class NodeOutput:
    """What a node gives: ``result`` for other nodes, ``ui`` for the page."""

    def __init__(self, *args: Any, ui: Any = None) -> None:
        self.result, self.ui = args, ui


_NUMBER = _WIDGET | {"min", "max", "step"}
io = SimpleNamespace(
    Schema=Schema,
    ComfyNode=ComfyNode,
    NodeOutput=NodeOutput,
    Custom=kind,
    FolderType=SimpleNamespace(output="output"),
    Int=kind("INT", _NUMBER | {"control_after_generate"}),
    Float=kind("FLOAT", _NUMBER | {"round"}),
    String=kind("STRING", _WIDGET | {"multiline", "placeholder", "dynamic_prompts"}),
    Boolean=kind("BOOLEAN", _WIDGET | {"label_on", "label_off"}),
    Combo=kind("COMBO", _WIDGET | {"options", "upload"}, {"options"}),
    Image=kind("IMAGE"),
    Video=kind("VIDEO"),
)


# Videos -------------------------------------------------------------------------------------------------------


class VideoInput(ABC):
    """A video, wherever it is."""

    @abstractmethod
    def save_to(self, path: str) -> None: ...


class VideoFromFile(VideoInput):
    """A video in a file or in memory, or the stretch of it that ends after ``duration`` seconds."""

    def __init__(self, file: str | bytes_io.BytesIO, *, duration: float = 0) -> None:
        self._file, self._duration = file, duration

    def get_stream_source(self) -> str | bytes_io.BytesIO:
        if isinstance(self._file, bytes_io.BytesIO):
            self._file.seek(0)
        return self._file  # of a stretch too

    def get_dimensions(self) -> tuple[int, int]:
        with av.open(self.get_stream_source()) as opened:
            return opened.streams.video[0].width, opened.streams.video[0].height

    def get_duration(self) -> float:
        with av.open(self.get_stream_source()) as opened:
            return self._duration or float(opened.duration / av.time_base)

    def get_container_format(self) -> str:
        with av.open(self.get_stream_source()) as opened:
            return str(opened.format.name)

    def save_to(self, path: str) -> None:
        with av.open(self.get_stream_source()) as opened, av.open(path, "w") as output:
            copied = {s: output.add_stream_from_template(s, opaque=True) for s in opened.streams}
            for packet in opened.demux():
                if packet.dts is None or (self._duration and packet.pts * packet.time_base >= self._duration):
                    continue
                packet.stream = copied[packet.stream]
                output.mux(packet)


class VideoFromComponents(VideoInput):
    """Frames that are no file yet: ``images`` are ``[B, H, W, 3]`` in 0..1."""

    def __init__(self, images: torch.Tensor, frame_rate: Fraction) -> None:
        self._images, self._rate = images, frame_rate

    def get_dimensions(self) -> tuple[int, int]:
        return self._images.shape[2], self._images.shape[1]

    def save_to(self, path: str) -> None:
        with av.open(path, "w") as output:
            stream = output.add_stream("h264", rate=self._rate)
            stream.height, stream.width = self._images.shape[1:3]
            stream.pix_fmt = "yuv420p"
            for image in self._images:
                levels = (image * 255).clamp(0, 255).byte().numpy()
                output.mux(stream.encode(av.VideoFrame.from_ndarray(levels, format="rgb24")))
            output.mux(stream.encode())


# ComfyUI's modules --------------------------------------------------------------------------------------------


def folders(base: Path) -> dict[str, Any]:
    """What ``folder_paths`` has."""

    def get_save_image_path(
        filename_prefix: str, output_dir: str, image_width: int = 0, image_height: int = 0
    ) -> tuple[str, str, int, str, str]:
        subfolder, name = os.path.split(os.path.normpath(filename_prefix))
        folder = Path(output_dir, subfolder)
        folder.mkdir(parents=True, exist_ok=True)
        there = [p.name[len(name) + 1 :] for p in folder.iterdir() if p.name.startswith(f"{name}_")]
        numbers = [int(rest.split("_")[0]) for rest in there if rest.split("_")[0].isdigit()]
        return str(folder), name, max(numbers, default=0) + 1, subfolder, filename_prefix

    return {
        "get_save_image_path": get_save_image_path,
        "get_output_directory": lambda: str(base / "output"),
        "get_temp_directory": lambda: str(base / "temp"),
    }


def import_nodes(base: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The nodes as ComfyUI imports them: by the path of their folder. ``base`` has its output and temp."""
    inputs = SimpleNamespace(Video=VideoInput)
    implementations = SimpleNamespace(VideoFromFile=VideoFromFile, VideoFromComponents=VideoFromComponents)
    page = SimpleNamespace(
        SavedResult=lambda filename, subfolder, type: {"filename": filename, "subfolder": subfolder},
        PreviewVideo=lambda values: {"images": values, "animated": (True,)},
    )
    latest = {"ComfyExtension": ABC, "Input": inputs, "InputImpl": implementations, "io": io, "ui": page}
    modules: dict[str, dict[str, Any]] = {
        "folder_paths": folders(base),
        "comfy": {},
        "comfy.utils": {"ProgressBar": watched.bar},
        "comfy.model_management": {"throw_exception_if_processing_interrupted": watched.throw_if_interrupted},
        "comfy_api": {},
        "comfy_api.latest": latest,
    }
    for name, content in modules.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    name = "custom_nodes_x_comfyui-v2v"
    spec = importlib.util.spec_from_file_location(name, NODES / "__init__.py")
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.delitem(sys.modules, f"{name}.nodes", raising=False)
    spec.loader.exec_module(package)
    return package
