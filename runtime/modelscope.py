"""The reference's own call, for programs written for ModelScope.

    from v2v.runtime.modelscope import pipeline

    enhance = pipeline("video-to-video", model="ms-vid2vid-xl")
    path = enhance({"video_path": "in.mp4", "text": "a rabbit"}, output_video="out.mp4")["output_video"]

It does what the reference does: 1280x720, the first 32 frames, 8 frames a second, no sound (``--parity`` on
the command line). Unlike the reference it replaces an existing file only if told to.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from v2v.core.configs import MODELS
from v2v.core.errors import EngineError, UsageError
from v2v.engine.manifest import MANIFEST
from v2v.engine.store import EngineSet, Wanted, find
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.diffusion.settings import PARITY_FRAMES, Settings
from v2v.runtime.media.reader import VideoReader
from v2v.runtime.media.writer import VideoWriter

TASK = "video-to-video"
OUTPUT = "output_video"  # ModelScope's key of the result

# Where the reference's weights have been published.
_PUBLISHED_AS = {
    "damo/Video-to-Video": "ms-vid2vid-xl",
    "iic/Video-to-Video": "ms-vid2vid-xl",
    "ali-vilab/MS-Vid2Vid-XL": "ms-vid2vid-xl",
}


def pipeline(task: str = TASK, model: str | Path = "ms-vid2vid-xl", device: str = "auto") -> Pipeline:
    """Load the engines of ``model`` for ``task``, which must be "video-to-video".

    ``model`` is the folder of an engine set, the name of a model whose engines are in the store, or the name under
    which the weights were published. ``device`` is "cpu", "cuda" or "auto".

    Raises:
        UsageError: another task.
        EngineError: no such engines, or they do not run here; names the command that builds them.
    """
    if task != TASK:
        raise UsageError(f"there is no pipeline for task '{task}' here, only for '{TASK}'")
    return Pipeline(VideoToVideo.load(_engine_set(model, device), device))


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
            total = min(reader.info.frames or PARITY_FRAMES, PARITY_FRAMES)
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
