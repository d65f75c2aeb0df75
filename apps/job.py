"""A job: what is kept of it, what it may be told, and what its process says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_type_hints

import msgspec

from v2v.core.errors import UsageError
from v2v.runtime.media.image_sequence import PICTURES
from v2v.runtime.options import RunOptions

State = Literal["queued", "running", "done", "failed", "cancelled"]
OVER: tuple[State, ...] = ("done", "failed", "cancelled")
CONTAINERS = ("mp4", "mkv", "mov")

_NOT_OFFERED = {
    # paths, which are the queue's; what the service decides for all; what is for a terminal
    *(
        "inputs",
        "output",
        "settings_file",
        "compare",
        "report",
        "prompt_file",
        "first_stage",
        "engines",
        "engines_first",
    ),
    *("device", "memory", "workers", "ray", "overwrite", "restart", "quiet", "as_json", "rate", "dry_run"),
}
OFFERED: dict[str, Any] = {
    name: hint for name, hint in get_type_hints(RunOptions).items() if name not in _NOT_OFFERED
}
"""The options of ``v2v-run`` that a job may have, and their types."""
FIXED = "V2V_JOB_OPTIONS"
"""Environment variable of a job's process: the options that all jobs have, as JSON."""


class Progress(msgspec.Struct):
    """How far a running job is."""

    stage: str = ""
    fraction: float | None = None  # 0..1
    seconds_left: float | None = None
    frames_done: int = 0
    frames_total: int | None = None


class Job(msgspec.Struct):
    """A job as it is kept in job.json; times are seconds since 1970."""

    id: str
    name: str  # of the source, as the person calls it: for display only
    source: str  # file in the job's folder, or an absolute path on this machine
    result: str  # file in the job's folder
    options: dict[str, Any]
    created: float
    state: State = "queued"
    started: float | None = None
    ended: float | None = None
    starts: int = 0
    error: str = ""
    warnings: list[str] = []
    news: str = ""  # what is being prepared
    progress: Progress = msgspec.field(default_factory=Progress)
    frames: int = 0
    settings: dict[str, Any] = {}  # all that decides what the result looks like
    size: int = 0  # bytes on disk

    @property
    def download_name(self) -> str:
        """What the result is called where somebody saves it."""
        ending = Path(self.result).suffix
        kind = "preview" if "preview" in self.options else "enhanced"
        return f"{Path(self.name).stem or 'video'}-{kind}{ending}"


class Told(msgspec.Struct):
    """What a job's process says on a line."""

    warnings: list[str] = []
    news: str = ""
    progress: Progress = msgspec.field(default_factory=Progress)
    done: bool = False
    frames: int = 0
    settings: dict[str, Any] = {}


def run_options(job: Job, place: Path, fixed: Mapping[str, Any]) -> RunOptions:
    """The options of ``v2v-run`` that do ``job`` in its folder ``place``."""
    source = place / job.source
    asked: dict[str, Any] = {**job.options, **fixed}
    if source.suffix.lower() not in PICTURES:
        asked.pop("engines_first", None)
        if "preview" not in job.options:
            asked["compare"] = place / "compare.html"
    return RunOptions([str(source)], str(place / job.result), **asked, overwrite=True)


def check_options(options: Mapping[str, Any], name: str, result: str) -> None:
    """Refuse what ``v2v-run`` would refuse before it opens a file.

    Raises:
        UsageError: names the option.
    """
    for key, value in options.items():
        if key not in OFFERED:
            raise UsageError(f"{key} is no option of a job; there are {', '.join(OFFERED)}")
        try:
            msgspec.convert(value, OFFERED[key])
        except msgspec.ValidationError as error:
            raise UsageError(f"{key}: {error}") from None
    asked = RunOptions([name], result, **options)
    if asked.codec == "png":
        raise UsageError(
            "codec png makes a folder of pictures, and a job's result is one file; choose another"
        )
    asked.request(many=False)
    asked.wanted()
    asked.check_pictures(Path(name).suffix.lower() in PICTURES, many=False)


def shown_name(name: str) -> str:
    """A name as it is shown: its last part, without what cannot be printed."""
    last = re.split(r"[/\\]", name)[-1]
    return "".join(each for each in last if each.isprintable())[-200:] or "video"


def container_for(asked: str | None, name: str, options: Mapping[str, Any]) -> str:
    """What the result is: as asked, else what holds everything that the source may have."""
    if asked is None:
        if "preview" in options or options.get("parity"):
            return "mp4"  # for the eye alone
        return {".mkv": "mkv", ".webm": "mkv", ".avi": "mkv", ".mov": "mov"}.get(
            Path(name).suffix.lower(), "mp4"
        )
    if asked not in CONTAINERS:
        raise UsageError(f"container must be one of {', '.join(CONTAINERS)}, not '{asked}'")
    return asked


def check_content(path: Path, name: str) -> None:
    """Refuse texts: a playlist would make FFmpeg open whatever files of this machine it names.

    Raises:
        UsageError: it is one, or empty.
    """
    with path.open("rb") as file:
        head = file.read(1 << 16)
    if not head:
        raise UsageError(f"{name} is empty")
    text = all(byte >= 32 or byte in b"\t\r\n\f" for byte in head[:512]) and not head.startswith(b"YUV4MPEG2")
    if text or head.lstrip().startswith((b"#EXTM3U", b"ffconcat", b"<")) or b"<mpd" in head.lower():
        raise UsageError(f"{name} is a text or a playlist; give a video or a picture")
