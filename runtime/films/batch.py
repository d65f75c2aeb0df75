"""Many videos in one run: their sources, outputs, prompts and outcomes.

    v2v-run films/ 'more/*.mkv' -o enhanced/ --prompt-file prompts.txt

Names are settled before any work. One video that fails does not stop the others.
"""

from __future__ import annotations

import csv
import functools
import glob
import json
import mimetypes
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from v2v.core.console import messages, seconds_text
from v2v.core.crash import unforeseen
from v2v.core.errors import UsageError, V2VError
from v2v.core.files import read_limited
from v2v.runtime.films.places import Place, check_places
from v2v.runtime.media.encoding import CODECS
from v2v.runtime.media.errors import FFmpegError
from v2v.runtime.media.image_sequence import PICTURES, SETTINGS, is_picture
from v2v.runtime.media.stdio import PIPE, check_input, is_pipe
from v2v.runtime.media.streams import open_media, picture_stream

# What is surely meant to be a video: one that cannot be read is told as a failure, not passed over.
# fmt: off
_VIDEOS = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".m2v", ".ts", ".mts", ".m2ts", ".mod",
    ".tod", ".vob", ".wmv", ".asf", ".flv", ".f4v", ".3gp", ".3g2", ".mxf", ".dv", ".ogv", ".rm", ".rmvb", ".divx",
)
# fmt: on
_NO_VIDEOS = (
    ".json",
    ".pdf",
    ".zip",
    ".m3u",
    ".m3u8",
    ".mpd",
    ".sdp",
)  # and what Python knows as text or the like
_LARGEST_PROMPTS = 16 << 20  # bytes
_TYPES = mimetypes.MimeTypes()  # those that Python knows, not those of the machine
# Text and bytes, which FFmpeg shows as letters, pictures of unknown size, and single ones.
_NO_FILMS = ("tty", "bin", "xbin", "adf", "idf", "rawvideo", "image2")


@dataclass(frozen=True)
class Job:
    """One video of many."""

    source: Path
    output: Path
    prompt: str


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job. ``facts`` are those that ``--json`` prints for a single video."""

    job: Job
    status: Literal["done", "done before", "failed"]
    facts: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        job = {"input": str(self.job.source), "output": str(self.job.output), "status": self.status}
        return {**job, **self.facts, **({"error": self.error} if self.error else {})}


def is_batch(inputs: Sequence[str], prompt_file: Path | None) -> bool:
    """Whether the command names many videos: several inputs, a pattern, a folder of videos, or a prompt for each."""
    if len(inputs) > 1 or prompt_file is not None:
        return True
    return _is_pattern(inputs[0]) or (Path(inputs[0]).is_dir() and bool(_videos_in(Path(inputs[0]))))


def plan_jobs(
    inputs: Sequence[str],
    folder: Path,
    codec: str,
    prompt: str,
    prompt_file: Path | None,
    *,
    dry: bool = False,
) -> list[Job]:
    """All videos that ``inputs`` name, each with its output in ``folder``.

    It is made if it is not there, unless the run is ``dry``.

    Raises:
        UsageError: an input names nothing, two videos would get one name, or the prompt file cannot be used.
    """
    if PIPE in inputs or str(folder) == PIPE:
        raise UsageError("- stands for a single video; name files when there are several")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"-o {folder} is a file; several videos need a folder to go to")
    outputs = {source: _output(source, folder, codec) for name in inputs for source in _sources(name)}
    own_outputs = {output.resolve() for output in outputs.values()}
    named_inputs = {Path(name).resolve() for name in inputs}
    for source in list(outputs):  # what an earlier run has put beside the sources is no source
        if source.resolve() in own_outputs and source.resolve() not in named_inputs:
            del outputs[source]
    _check_names(outputs)
    inputs_read = [Place(source, "the input") for source in outputs]
    inputs_read += [Place(prompt_file, "the prompt file")] if prompt_file else []
    check_places([Place(output, "-o") for output in outputs.values()], inputs_read)
    prompts = _prompts(prompt_file, list(outputs)) if prompt_file else {}
    jobs = [Job(source, output, prompts.get(source, prompt)) for source, output in outputs.items()]
    if dry:
        return jobs
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"-o {folder}: the folder cannot be made: {error.strerror}") from error
    return jobs


def _sources(argument: str) -> list[Path]:
    path = Path(argument)
    if _is_pattern(argument):
        matches = [Path(name) for name in sorted(glob.glob(argument, recursive=True))]  # noqa: PTH207 (absolute too)
        if not matches:
            raise UsageError(f"INPUT {argument}: nothing has such a name")
        videos = [path for path in matches if is_video(path) or _holds_pictures(path)]
        return videos or [path for path in matches if path.is_file()]
    if not path.exists():
        raise UsageError(f"INPUT {argument}: no such file or folder")
    if is_pipe(path):
        raise UsageError(
            f"INPUT {argument} is a pipe, which stands for a single video; name files when there are several"
        )
    check_input(path)
    if path.is_dir() and (videos := _videos_in(path)):
        if _holds_pictures(path):
            raise UsageError(
                f"INPUT {argument} holds both videos and pictures; say which, as '{path / ('*' + videos[0].suffix)}'"
            )
        return videos
    return [path]


def _is_pattern(name: str) -> bool:
    return not Path(name).exists() and glob.has_magic(name)


def _videos_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and is_video(path))


def is_video(path: Path) -> bool:
    """Whether ``path`` is a file that holds a video, or is meant to by its name but cannot be read.

    What surely is something else by its name is not opened.
    """
    if not path.is_file():
        return False
    ending = path.suffix.lower()
    named_as_video = ending in _VIDEOS
    kind = _TYPES.guess_type(path.name)[0] or ""
    if not named_as_video and (
        ending in _NO_VIDEOS or kind.startswith(("text/", "image/", "audio/", "font/"))
    ):
        return False
    facts = path.stat()
    return _holds_video(path, facts.st_mtime_ns, facts.st_size, named_as_video=named_as_video)


@functools.lru_cache(1 << 16)  # asked twice: whether there are many, and which
def _holds_video(path: Path, changed: int, size: int, *, named_as_video: bool) -> bool:
    try:
        with open_media(path) as opened:
            name = opened.format.name
            return picture_stream(opened) is not None and name not in _NO_FILMS and not name.endswith("_pipe")
    except (OSError, FFmpegError):
        return named_as_video


def _holds_pictures(path: Path) -> bool:
    return path.is_dir() and any(map(is_picture, path.iterdir()))


def _output(source: Path, folder: Path, codec: str) -> Path:
    """The input's name in ``folder``, with an ending that the codec can be kept in."""
    endings = CODECS[codec].containers if codec in CODECS else (".mp4",)
    if not endings:
        ending = ""  # a folder of pictures
    elif source.suffix.lower() in endings:
        ending = source.suffix
    else:
        like_mp4 = source.is_dir() or source.suffix.lower() in (".mp4", ".m4v", ".mov", *PICTURES)
        ending = endings[0] if like_mp4 or ".mkv" not in endings else ".mkv"  # which holds any kind of stream
    stem = source.name if source.is_dir() else source.stem
    output = folder / f"{stem}{ending}"
    return folder / f"{stem}-v2v{ending}" if output.resolve() == source.resolve() else output


def _check_names(outputs: dict[Path, Path]) -> None:
    source_of: dict[Path, Path] = {}
    for source, output in outputs.items():
        if (other := source_of.setdefault(output.resolve(), source)) != source:
            raise UsageError(
                f"{other} and {source} would both become {output}; rename one, or run them apart"
            )
        if output.resolve() in {path.resolve() for path in outputs}:
            raise UsageError(f"{source} would become {output}, which is an input too; choose another -o")


def _prompts(file: Path, sources: list[Path]) -> dict[Path, str]:
    """Prompts by video; a video is named by its path as given or by its file name alone."""
    prompts: dict[Path, str] = {}
    for name, prompt in read_prompts(file).items():
        matching = [source for source in sources if name in (str(source), source.name)]
        if len(matching) != 1:
            why = (
                "no input has that name"
                if not matching
                else f"{len(matching)} inputs have that name; give the path"
            )
            raise UsageError(f"--prompt-file {file}: '{name}': {why}")
        prompts[matching[0]] = prompt
    return prompts


def read_prompts(file: Path) -> dict[str, str]:
    """Name -> prompt, from JSON (``{"clip.mp4": "a fox"}``), CSV (name, prompt) or lines ``clip.mp4: a fox``.

    In lines, empty ones and those that begin with # do not count.

    Raises:
        UsageError: the file cannot be read, is not of the format that its ending tells, or names a video twice.
    """
    try:
        text = read_limited(file, _LARGEST_PROMPTS).decode("utf-8-sig")
        if file.suffix.lower() == ".json":
            pairs = _json_pairs(text)
        elif file.suffix.lower() == ".csv":
            pairs = [_pair(row, number) for number, row in enumerate(csv.reader(text.splitlines()), 1) if row]
        else:
            lines = ((n, line.strip()) for n, line in enumerate(text.splitlines(), 1))
            pairs = [_pair(line.split(": ", 1), n) for n, line in lines if line and not line.startswith("#")]
    except OSError as error:
        raise UsageError(f"--prompt-file {file}: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise UsageError(f"--prompt-file {file} cannot be used: {error}") from error
    prompts: dict[str, str] = {}
    for name, prompt in pairs:
        if name in prompts:
            raise UsageError(f"--prompt-file {file}: '{name}' is there twice")
        prompts[name] = prompt
    return prompts


def _json_pairs(text: str) -> list[tuple[str, str]]:
    try:
        msgspec.json.decode(text, type=dict[str, str])  # which keeps one of several with the same name
        return json.loads(text, object_pairs_hook=list)  # type: ignore[no-any-return]
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(
            f'it must be one object of names and prompts, as {{"clip.mp4": "a fox"}}: {error}'
        ) from error


def _pair(fields: list[str], number: int) -> tuple[str, str]:
    if len(fields) != 2:
        raise ValueError(f"line {number} is not a name and a prompt, as clip.mp4: a fox in the snow")
    return fields[0].strip(), fields[1].strip()


def run_jobs(
    jobs: Sequence[Job], enhance: Callable[[Job], Outcome], at_once: int, stop: Callable[[], None]
) -> list[Outcome]:
    """Do all jobs, ``at_once`` of them at a time; an error becomes the job's outcome.

    ``stop`` makes :func:`enhance` end soon in whatever thread it runs; for Ctrl-C.
    """

    def attempt(job: Job) -> Outcome:
        try:
            return enhance(job)
        except (V2VError, OSError) as error:
            outcome = Outcome(job, "failed", error=" ".join(str(error).split()))
        except Exception as error:  # a bug on one video, which must not cost the others their night
            outcome = Outcome(job, "failed", error=unforeseen(error))
        messages.print(f"{job.source}: {outcome.error}", style="red", markup=False)
        return outcome

    if at_once == 1:
        return [attempt(job) for job in jobs]
    with ThreadPoolExecutor(at_once, thread_name_prefix="v2v-film") as threads:
        futures = [threads.submit(attempt, job) for job in jobs]
        try:
            return [future.result() for future in futures]
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            stop()
            raise


def was_made_before(output: Path, facts: Mapping[str, Any]) -> bool:
    """Whether ``output`` was made by a run that the same ``facts`` describe: its comment holds them."""
    note = json.dumps(facts)
    try:
        if output.is_dir():
            return (output / SETTINGS).read_text(encoding="utf-8").strip() == note
        with open_media(output) as opened:
            return any(note in value for value in opened.metadata.values())
    except (OSError, FFmpegError):
        return False


def tell(outcomes: Sequence[Outcome]) -> None:
    """A line for each video, under one another."""
    width = max(len(str(outcome.job.source)) for outcome in outcomes)
    for outcome in outcomes:
        detail = outcome.error or str(outcome.job.output)
        if outcome.status == "done":
            facts = outcome.facts
            detail += f", {facts['frames']} frames in {seconds_text(facts['seconds'])}"
        messages.print(f"{outcome.job.source!s:<{width}}  {outcome.status:<11}  {detail}", markup=False)


def check(outcomes: Sequence[Outcome]) -> None:
    """End the command with an error if any video failed.

    Raises:
        V2VError: how many.
    """
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    if failed:
        names = ", ".join(str(outcome.job.source) for outcome in failed)
        raise V2VError(f"{len(failed)} of {len(outcomes)} videos failed: {names}")
