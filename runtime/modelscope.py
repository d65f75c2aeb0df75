"""The references' own calls, for programs written for ModelScope.

    from v2v.runtime.modelscope import pipeline

    animate = pipeline("image-to-video", model="damo/Image-to-Video", model_revision="v1.1.0")
    film = animate("rabbit.png", output_video="film.mp4")["output_video"]
    enhance = pipeline("video-to-video", model="damo/Video-to-Video", model_revision="v1.1.0")
    path = enhance({"video_path": film, "text": "a rabbit"}, output_video="out.mp4")["output_video"]

They do what the references do: 448x256, or 1280x720 of the first 32 frames, 8 frames a second, no sound
(``--parity`` on the command line). Unlike the references they replace an existing file only if told to.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from v2v.core.configs import MODELS
from v2v.core.errors import EngineError, UsageError
from v2v.core.published import PUBLISHED
from v2v.engine.manifest import MANIFEST
from v2v.engine.store import EngineSet, Wanted, find
from v2v.runtime.diffusion.image_to_video import ImageToVideo
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.diffusion.settings import Settings
from v2v.runtime.media.lossless import write_lossless
from v2v.runtime.media.reader import VideoReader
from v2v.runtime.media.still import read_picture
from v2v.runtime.media.writer import VideoWriter

Task = Literal["video-to-video", "image-to-video"]
_TAKES_PICTURES: Mapping[Task, bool] = {"video-to-video": False, "image-to-video": True}
OUTPUT = "output_video"  # ModelScope's key of the result

# Where the references' weights have been published.
_PUBLISHED_AS = {
    name: model for model, known in PUBLISHED.items() for name in (*known.names, known.repository)
}


@overload
def pipeline(
    task: Literal["video-to-video"] = ...,
    model: str | Path | None = ...,
    device: str = ...,
    model_revision: str | None = ...,
) -> Pipeline: ...


@overload
def pipeline(
    task: Literal["image-to-video"],
    model: str | Path | None = ...,
    device: str = ...,
    model_revision: str | None = ...,
) -> PicturePipeline: ...


def pipeline(
    task: Task = "video-to-video",
    model: str | Path | None = None,
    device: str = "auto",
    model_revision: str | None = None,
) -> Pipeline | PicturePipeline:
    """Load the engines of ``model`` for ``task``, "video-to-video" or "image-to-video".

    ``model`` is the folder of an engine set, the name of a model whose engines are in the store, or the name under
    which the weights were published; the published model for the task where None. ``device`` is "cpu", "cuda" or
    "auto". There is one revision of each; ``model_revision`` is taken and not looked at.

    Raises:
        UsageError: another task.
        EngineError: no such engines, or they do not run here or do another task; names the command that builds them.
    """
    if task not in _TAKES_PICTURES:
        raise UsageError(
            f"there is no pipeline for task '{task}' here, only for {' and '.join(_TAKES_PICTURES)}"
        )
    if model is None:
        model = next(n for n in PUBLISHED if MODELS[n].takes_pictures == _TAKES_PICTURES[task])
    engine_set = _engine_set(model, device)
    if _TAKES_PICTURES[task]:
        return PicturePipeline(ImageToVideo.load(engine_set, device))
    return Pipeline(VideoToVideo.load(engine_set, device))


class PicturePipeline:
    """Makes a film of one picture a call, as the reference does."""

    def __init__(self, v2v: ImageToVideo) -> None:
        self._v2v = v2v

    def __call__(
        self,
        input: str | Path | Image.Image | npt.NDArray[Any],
        output_video: str | Path | None = None,
        *,
        seed: int = Settings.seed,
        overwrite: bool = False,
    ) -> dict[str, str]:
        """Make a film, H.264 at 8 frames a second, of a picture: its file, Pillow's image, or ``[H, W, 3]`` in BGR.

        Returns the path under "output_video"; without ``output_video`` a new file in the temporary folder.

        Raises:
            MediaError: the picture cannot be read, or the output exists or cannot be written.
        """
        target = Path(output_video) if output_video is not None else _new_file()
        frames = self._v2v(_picture_of(input), seed=seed, parity=True)
        with tempfile.TemporaryDirectory(prefix="v2v-") as folder:
            made = Path(folder) / "film.mkv"
            write_lossless(made, frames, Fraction(self._v2v.model.fps or 8), "")
            with (
                VideoReader(made, parity=True) as reader,
                VideoWriter(target, reader, overwrite=overwrite, parity=True) as writer,
            ):
                for frame in reader.frames():
                    writer.write(frame)
        return {OUTPUT: str(target)}


def _picture_of(given: str | Path | Image.Image | npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """As the reference reads it: what is in memory is not turned upright."""
    if isinstance(given, Image.Image):
        return np.asarray(given.convert("RGB"))
    if isinstance(given, np.ndarray):
        return np.ascontiguousarray(given[..., ::-1]).astype(np.uint8)
    return read_picture(Path(given))


class Pipeline:
    """Enhances one video a call, as the reference does."""

    def __init__(self, v2v: VideoToVideo) -> None:
        self._v2v = v2v

    def __call__(
        self,
        input: Mapping[str, str],
        output_video: str | Path | None = None,
        *,
        seed: int = Settings.seed,
        solver: str | None = None,
        steps: int | None = None,
        overwrite: bool = False,
    ) -> dict[str, str]:
        """Enhance ``input["video_path"]``, guided by ``input["text"]`` (may be missing), into ``output_video``.

        Returns the path under "output_video"; without ``output_video`` a new file in the temporary folder.

        Raises:
            UsageError: no "video_path" in the input.
            MediaError: the video cannot be read, or the output exists or cannot be written.
        """
        if "video_path" not in input:
            raise UsageError("the pipeline's input needs a 'video_path'")
        source = Path(input["video_path"])
        target = Path(output_video) if output_video is not None else _new_file()
        settings = Settings(input.get("text", ""), steps=steps, solver=solver, seed=seed, parity=True)
        with (
            VideoReader(source, parity=True) as reader,
            VideoWriter(target, reader, overwrite=overwrite, parity=True) as writer,
        ):
            most = self._v2v.model.parity.frames
            total = reader.info.frames if most is None else min(reader.info.frames or most, most)
            for frame in self._v2v(reader.frames(), settings, total=total):
                writer.write(frame)
        return {OUTPUT: str(target)}


def _engine_set(model: str | Path, device: str) -> EngineSet:
    name = _PUBLISHED_AS.get(str(model), str(model))
    if name in MODELS:
        return find(Wanted(model=name, device=None if device == "auto" else device))
    if (Path(model) / MANIFEST).exists():
        return EngineSet.open(Path(model))
    raise EngineError(
        f"model {model} is neither an engine set's folder nor one of {', '.join((*MODELS, *_PUBLISHED_AS))}; "
        "v2v-build-engines makes an engine set of a folder of weights"
    )


def _new_file() -> Path:
    return Path(tempfile.mkdtemp(prefix="v2v-")) / "output.mp4"
