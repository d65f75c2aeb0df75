"""One video, all decisions: what is read, planned, made and written down."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from v2v.core.version import __version__
from v2v.engine.store import EngineSet
from v2v.runtime.diffusion.pipeline import Memory, VideoToVideo, can_reuse, check_reuse
from v2v.runtime.diffusion.settings import Plan, Settings, plan
from v2v.runtime.films.pool import Alone, Team
from v2v.runtime.films.processes import local_pool
from v2v.runtime.media.encoding import Encoding
from v2v.runtime.media.image_sequence import check_folder
from v2v.runtime.media.reader import VideoReader
from v2v.runtime.media.time_range import NOT_GIVEN, TimeRange
from v2v.runtime.media.writer import check_output


def check_place(output: Path, source: Path, codec: str, *, overwrite: bool) -> None:
    """Find out before the work whether ``output`` may be written.

    Raises:
        MediaError, FolderError: it may not.
    """
    if codec == "png":
        check_folder(output)
    else:
        check_output(output, source, overwrite=overwrite)


def hire(
    engine_set: EngineSet,
    device: str | None,
    memory: Memory,
    workers: int | None,
    ray: str | None,
    opened: contextlib.ExitStack,
) -> Team:
    """Load the engines: here, in several processes, or on a cluster; ``opened`` ends what was started.

    Raises:
        V2VError: the engines do not run there, or there are fewer GPUs than workers.
    """
    device = device or engine_set.manifest.recipe.options.device
    if ray is not None:
        from v2v.runtime.films.ray_cluster import cluster_pool  # Ray is an extra

        return opened.enter_context(cluster_pool(ray, engine_set, workers, device, memory))
    if workers is not None and workers > 1:
        return opened.enter_context(local_pool(engine_set, workers, device, memory))
    return Alone(VideoToVideo.load(engine_set, device, memory))


def plan_for(reader: VideoReader, settings: Settings, engine_set: EngineSet) -> Plan:
    """Settings made whole for this video, checked before anything is loaded.

    Raises:
        V2VError: a value out of range, or engines that cannot do it; names the flag.
    """
    defaults = engine_set.manifest.recipe.model.defaults
    source = reader.info.height, reader.info.width
    made = plan(settings, defaults, source, can_reuse(engine_set))
    check_reuse(made, engine_set)
    return made


def describe(engine_set: EngineSet, made: Plan, encoding: Encoding) -> dict[str, Any]:
    """All that decides what a run gives, as written into the output's comment."""
    recipe = engine_set.manifest.recipe
    height, width = made.size
    return {
        "made_with": f"v2v {__version__}",
        "model": recipe.model.name,
        "weights": f"{recipe.weights.kind} {recipe.weights.identity[:16]}",
        "engines": engine_set.name,
        **asdict(made),
        "size": f"{width}x{height}",
        "codec": encoding.codec,
        "crf": encoding.crf,
        "preset": encoding.preset,
    }


def asked_for(wanted: TimeRange) -> dict[str, str]:
    """The range that was asked for, as written into the output's comment; nothing for a whole film."""
    given = wanted.facts().items()
    return {} if wanted.whole else {name.lstrip("-"): value for name, value in given if value != NOT_GIVEN}
