"""Thin nodes over what ``import v2v`` offers: each reads its inputs, calls v2v, and follows it on ComfyUI's bar."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy.utils import ProgressBar
from comfy_api.latest import ComfyExtension, Input, InputImpl, io, ui
from PIL import Image

import v2v

CATEGORY = "v2v"
PREVIEW_SIZE = 512  # pixels of its longer side
BAR = 1000  # parts of a whole: ComfyUI's bar counts

Engines = io.Custom("V2V_ENGINES")
FirstEngines = io.Custom("V2V_FIRST_ENGINES")


# What nodes have in common ------------------------------------------------------------------------------------


class Bar:
    """The bar of the node that is executed. Every sign of progress raises ComfyUI's exception after an interrupt."""

    def __init__(self) -> None:
        self._bar = ProgressBar(BAR)
        self._done = 0

    def of_run(self, now: v2v.Progress) -> None:
        """A run is so far."""
        self._show(now.fraction)

    def of_build(self, component: str, phase: str, share: float) -> None:
        """A build is so far with one of its components."""
        self._show(share)

    def picture(self, frame: torch.Tensor) -> None:
        """Show a frame ``[H, W, 3]``, uint8, that was made."""
        self._bar.update_absolute(self._done, BAR, ("JPEG", Image.fromarray(frame.numpy()), PREVIEW_SIZE))

    def _show(self, share: float | None) -> None:
        throw_exception_if_processing_interrupted()
        if share is not None:
            self._done = round(share * BAR)
            self._bar.update_absolute(self._done)


def engine_inputs(default: str) -> list[io.Input]:
    """What both loaders ask."""
    return [
        io.String.Input(
            "engines",
            default=default,
            tooltip="A model's name, whose engines are built if there are none, or an engine set: its folder, or its "
            "name in the store.",
        ),
        io.Combo.Input("device", options=["auto", "cpu", "cuda"], tooltip="auto: that of the engines."),
        io.Combo.Input(
            "memory", options=["high", "low"], tooltip="low: never hold all engines in memory at once."
        ),
    ]


def load(pipeline: Any, engines: str, device: str, memory: str) -> Any:
    """Open engines; a build is followed, and is not part of the inference that ComfyUI takes everything for."""
    with torch.inference_mode(False), torch.enable_grad():
        return pipeline.from_pretrained(
            engines, device=None if device == "auto" else device, memory=memory, progress=Bar().of_build
        )


def seed_input() -> io.Input:
    """Of whatever draws noise."""
    return io.Int.Input(
        "seed",
        default=v2v.Settings.seed,
        min=0,
        max=2**64 - 1,
        control_after_generate=True,
        tooltip="The same seed gives the same result.",
    )


def setting_inputs() -> list[io.Input]:
    """What may be said of an enhancement; 0 and no text leave a value to the model."""
    return [
        io.String.Input(
            "prompt", default="", multiline=True, tooltip="What it shows; quality words are added."
        ),
        io.String.Input(
            "negative_prompt",
            default="",
            multiline=True,
            tooltip="What it must not look like; empty: the model's words.",
        ),
        io.Int.Input("steps", default=0, min=0, max=998, tooltip="Denoising steps; 0: the model's."),
        io.Float.Input(
            "strength",
            default=0.0,
            min=0.0,
            max=0.998,
            step=0.01,
            tooltip="Noise level: how far the result may leave the source; 0: the model's.",
        ),
        io.Float.Input(
            "guidance",
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.5,
            tooltip="How strictly to follow the prompt; 1: no guidance; 0: the model's.",
        ),
        io.Float.Input(
            "scale",
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.25,
            tooltip="The result's size over the source's; 0: the model's.",
        ),
        io.Boolean.Input("fast", default=False, tooltip="Fewer evaluations; the result differs a little."),
        seed_input(),
    ]


def said(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that were given a value, by v2v's names; the model decides about the others."""
    return {name: value for name, value in settings.items() if name == "seed" or value}


def frames_of(images: torch.Tensor) -> Iterator[torch.Tensor]:
    """``[B, H, W, C]`` in 0..1 -> frames ``[H, W, 3]``, uint8; what was 8 bits before is the same again."""
    for image in images:
        yield image[..., :3].clamp(0, 1).mul(255).round().to(torch.uint8).cpu()


def images_of(frames: list[torch.Tensor]) -> torch.Tensor:
    """Frames ``[H, W, 3]``, uint8 -> ``[B, H, W, 3]`` in 0..1."""
    return torch.stack(frames).float().div_(255)


# The nodes ----------------------------------------------------------------------------------------------------


class LoadEngines(io.ComfyNode):
    """Engines of a model that enhances videos."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Engines by name, where they run, and how much memory they may take."""
        return io.Schema(
            node_id="V2VLoadEngines",
            display_name="v2v: Load Engines",
            category=CATEGORY,
            description="Engines of a model that enhances videos.",
            inputs=engine_inputs("small"),
            outputs=[Engines.Output(display_name="engines")],
        )

    @classmethod
    def execute(cls, engines: str, device: str, memory: str) -> io.NodeOutput:
        """Open them, and build them first if need be."""
        return io.NodeOutput(load(v2v.VideoToVideo, engines, device, memory))


class LoadFirstEngines(io.ComfyNode):
    """Engines of a model that makes a video of a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """As of :class:`LoadEngines`."""
        return io.Schema(
            node_id="V2VLoadFirstEngines",
            display_name="v2v: Load Engines for Pictures",
            category=CATEGORY,
            description="Engines of a model that makes a small video of a picture.",
            inputs=engine_inputs("ms-image2video"),
            outputs=[FirstEngines.Output(display_name="engines")],
        )

    @classmethod
    def execute(cls, engines: str, device: str, memory: str) -> io.NodeOutput:
        """Open them, and build them first if need be."""
        return io.NodeOutput(load(v2v.ImageToVideo, engines, device, memory))


class EnhanceImages(io.ComfyNode):
    """The frames of one shot, enhanced in memory."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Engines, frames and settings in, frames out."""
        return io.Schema(
            node_id="V2VEnhanceImages",
            display_name="v2v: Enhance Images",
            category=CATEGORY,
            description="Enhance the frames of one shot. Long videos are better given to Enhance Video, which does "
            "not hold them in memory and finds their cuts.",
            inputs=[Engines.Input("engines"), io.Image.Input("images"), *setting_inputs()],
            outputs=[io.Image.Output(display_name="images")],
        )

    @classmethod
    def execute(cls, engines: v2v.VideoToVideo, images: torch.Tensor, **settings: Any) -> io.NodeOutput:
        """``[B, H, W, C]`` -> ``[B, H', W', 3]``, both in 0..1; an alpha channel is left out."""
        bar, made = Bar(), []
        asked = v2v.Settings(**said(settings))
        for frame in engines(frames_of(images), asked, total=len(images), progress=bar.of_run):
            bar.picture(frame)
            made.append(frame)
        return io.NodeOutput(images_of(made))


class EnhanceVideo(io.ComfyNode):
    """A video file enhanced into another."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Engines, a video, its new name and settings in; the video out, which ComfyUI's page shows."""
        return io.Schema(
            node_id="V2VEnhanceVideo",
            display_name="v2v: Enhance Video",
            category=CATEGORY,
            description="Enhance a video file into a file in the output folder. Sound, subtitles and time stamps are "
            "kept, and memory does not grow with its length. After an interrupt the same inputs go on with what is "
            "finished.",
            inputs=[
                Engines.Input("engines"),
                io.Video.Input("video"),
                io.String.Input("filename_prefix", default="video/v2v"),
                io.Combo.Input("format", options=["mp4", "mkv", "mov"]),
                *setting_inputs(),
            ],
            outputs=[io.Video.Output(display_name="video")],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, engines: v2v.VideoToVideo, video: Input.Video, filename_prefix: str, format: str, **settings: Any
    ) -> io.NodeOutput:
        """Enhance by the path of ``v2v-run``, which loads the engines for itself."""
        chosen = engines.engines
        asked = {"device": engines.device.name, "memory": engines.memory, **said(settings)}
        with file_of(video) as source:
            facts = [source.name, source.stat().st_size, dict(chosen.facts), asked]
            folder, name, subfolder = place(filename_prefix, video.get_dimensions(), facts, format)
            engines.close()  # they are not held twice; whoever uses them next loads them again
            v2v.enhance(source, folder / name, engines=chosen.path, on_progress=Bar().of_run, **asked)
        shown = ui.PreviewVideo([ui.SavedResult(name, subfolder, io.FolderType.output)])
        return io.NodeOutput(InputImpl.VideoFromFile(str(folder / name)), ui=shown)


class ImageToVideo(io.ComfyNode):
    """A picture becomes the frames of a small video."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Engines and a picture in, frames and their rate out."""
        return io.Schema(
            node_id="V2VImageToVideo",
            display_name="v2v: Image to Video",
            category=CATEGORY,
            description="Make the frames of a small video of a picture; Enhance Images makes them large. Only the "
            "square in the picture's middle counts.",
            inputs=[
                FirstEngines.Input("engines"),
                io.Image.Input("image"),
                io.Int.Input("frames", default=0, min=0, max=1000, tooltip="0: the model's."),
                io.Int.Input("steps", default=0, min=0, max=1000, tooltip="Denoising steps; 0: the model's."),
                seed_input(),
            ],
            outputs=[io.Image.Output(display_name="images"), io.Float.Output(display_name="fps")],
        )

    @classmethod
    def execute(cls, engines: v2v.ImageToVideo, image: torch.Tensor, **asked: int) -> io.NodeOutput:
        """``[1, H, W, C]`` in 0..1 -> ``[frames, H', W', 3]``, and frames a second."""
        if len(image) != 1:
            raise v2v.V2VError(f"a video is made of one picture, and {len(image)} came; choose one of them")
        bar, made = Bar(), []
        (picture,) = frames_of(image)
        with engines:  # the second stage has the memory for itself; a later run loads them again
            for frame in engines(picture.numpy(), v2v.Animation(**said(asked)), progress=bar.of_run):
                made.append(torch.from_numpy(frame))
                bar.picture(made[-1])
        return io.NodeOutput(images_of(made), float(engines.model.fps))


# Files --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def file_of(video: Input.Video) -> Iterator[Path]:
    """The video's file; what is none, or is a stretch of one, is written into a temporary one."""
    of_file = isinstance(video, InputImpl.VideoFromFile)
    source = video.get_stream_source() if of_file else None
    if isinstance(source, str) and is_whole(video, source):
        yield Path(source)
        return
    matroska = (
        of_file and "matroska" in video.get_container_format()
    )  # streams are copied into the same container
    suffix = ".mkv" if matroska else ".mov" if of_file else ".mp4"
    temporary = folder_paths.get_temp_directory()
    Path(temporary).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=temporary) as folder:
        path = Path(folder) / f"video{suffix}"  # always of this name: v2v knows by it what it has begun
        video.save_to(str(path))
        yield path


def is_whole(video: Input.Video, source: str) -> bool:
    """Whether ``video`` is all of its file: one that is a stretch has the whole file for its source all the same."""
    return bool(video.get_duration() == InputImpl.VideoFromFile(source).get_duration())


def place(prefix: str, size: tuple[int, int], facts: list[Any], format: str) -> tuple[Path, str, str]:
    """Where a result goes: folder, file name, and the folder's name below the output folder.

    A digest of what decides the result is part of its name: an interrupted run goes on with what it was, and another
    one is not in its way.
    """
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory(), *size
    )
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    return Path(folder), f"{name}_{counter:05}_{digest}.{format}", subfolder


class Extension(ComfyExtension):
    """What ComfyUI asks for the nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All of them."""
        return [LoadEngines, LoadFirstEngines, EnhanceImages, EnhanceVideo, ImageToVideo]


async def comfy_entrypoint() -> Extension:
    """What ComfyUI calls."""
    return Extension()
