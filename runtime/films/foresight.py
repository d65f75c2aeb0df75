"""``v2v-run --dry-run``: what a run would read, make and leave out, and what it would take. Nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from v2v.core.console import Table, results
from v2v.engine.choose import Unbuilt
from v2v.engine.store import EngineSet
from v2v.runtime.diffusion.estimate import FilmWork, Work, film_work
from v2v.runtime.diffusion.settings import Plan
from v2v.runtime.films.animate import Animator, FirstFilm, decide_of_picture
from v2v.runtime.films.batch import Outcome
from v2v.runtime.films.enhance import Paths, Request, check_place, decide
from v2v.runtime.films.film import frame_bytes, frames_ahead, frames_of, journal_facts, work_on
from v2v.runtime.films.journal import Journal, digest_of, finished_run
from v2v.runtime.films.task import ENCODER_BYTES
from v2v.runtime.media.reader import VideoReader
from v2v.runtime.media.still import read_picture
from v2v.runtime.media.writer import streams_for

UNKNOWN = "not known"
_ALREADY = "nothing: it is there, made with the same settings"

# The loop's arrays of a canvas (v2v.runtime.diffusion.sampling), those that noise is sent through included.
_CANVASES = 8


@dataclass(frozen=True)
class Stream:
    """What becomes of a stream beside the pictures."""

    index: int
    stream: str
    becomes: str


@dataclass(frozen=True)
class Memory:
    """Bytes that a run holds, as far as they can be counted; what networks need while they run is not recorded."""

    engines: int | None  # of the files that are loaded
    latents: int  # on the device
    frames: int  # of a segment, those read ahead, and those that wait to be encoded


@dataclass(frozen=True)
class Foreseen:
    """What a run would do to one video."""

    input: str
    output: str
    does: str  # make, go on, replace, or nothing
    engine_set: str
    model: str
    device: str
    source_size: str
    size: str
    frames: int | None
    segments: int | None  # without cuts
    settings: dict[str, Any]
    seconds: float | None
    seconds_by: str  # how they are known, or why not
    memory: Memory
    writes: tuple[str, ...]
    streams: tuple[Stream, ...] = ()
    first_stage: dict[str, Any] = field(default_factory=dict)  # of a picture

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


@dataclass(frozen=True)
class Costs:
    """Seconds of a unit of each kind of work, and how they are known, or why they are not."""

    each: Work | None
    known_by: str


def foresee(
    request: Request,
    paths: Paths,
    engines: EngineSet | Unbuilt,
    costs: Callable[[Plan], Costs],
    *,
    keep_if_same: bool = False,
    place_is_new: bool = False,
) -> Foreseen:
    """What :func:`v2v.runtime.films.enhance.enhance` would do with the same arguments.

    ``place_is_new``: the output's folder would be made first, or the output is no file.

    Raises:
        V2VError: whatever it would end with before the work.
    """
    paths.check()
    paths.followed()
    output, earlier_run = paths.output, finished_run(paths.output)
    paths.check_pages(overwrite=request.overwrite)
    if not ((keep_if_same or earlier_run) and output.exists()) and not place_is_new:
        check_place(output, paths.source, request.codec, overwrite=request.overwrite)
    with request.open(paths.source) as reader:
        plan, encoding, facts = decide(request, reader, engines)
        paths.check(engines.path)
        encoding.check(output, *plan.size)
        now = journal_facts(paths.source, facts)
        same_run = earlier_run is not None and earlier_run.facts == digest_of(now) and not request.restart
        made_before = same_run or (keep_if_same and request.keeps(output, facts))
        if output.exists() and not made_before:
            check_place(output, paths.source, request.codec, overwrite=request.overwrite)
        frames, film = frames_of(reader.info, plan, engines), work_on(reader.info, plan, engines)
        finished = 0 if made_before else Journal(output, now, restart=request.restart).look()
        if made_before:
            does, cost = _ALREADY, Costs(None, "nothing is to be done")
        else:
            does, cost = _intent(output, finished), costs(plan)
        seconds = None
        if frames is not None and cost.each is not None:
            seconds = film.whole.seconds(cost.each) * max(1 - finished / film.segments, 0)
        return Foreseen(
            str(paths.source),
            str(output),
            does,
            source_size=_size_text((reader.info.height, reader.info.width)),
            frames=frames,
            segments=None if frames is None else film.segments,
            seconds=seconds,
            seconds_by=cost.known_by
            if frames is not None
            else "the file does not say how many frames it has",
            memory=_memory(
                plan, engines, film, each := frame_bytes(reader.info), frames_ahead(reader.info) * each
            ),
            writes=() if made_before else (str(output), *map(str, paths.pages)),
            streams=() if encoding.makes_folder else _streams(request, reader, output, plan),
            **_decided(plan, engines, facts),
        )


def foresee_picture(
    animator: Animator,
    film: FirstFilm,
    request: Request,
    paths: Paths,
    engines: EngineSet | Unbuilt,
    *,
    place_is_new: bool = False,
) -> Foreseen:
    """What both stages would do with a picture.

    Raises:
        V2VError: whatever they would end with before the work.
    """
    read_picture(film.picture)
    asked, size, output = animator.second_stage(request, film.picture), animator.size, paths.output
    paths.check(engines.path)
    plan, encoding, facts = decide_of_picture(asked, engines, size)
    encoding.check(output, *plan.size)
    made_before = request.keeps(output, facts)
    if finished_run(output) is None and not (made_before or place_is_new):
        check_place(output, film.picture, request.codec, overwrite=request.overwrite)
    source, frames = size[0] * size[1] * 3, animator.plan.frames
    work = film_work(plan, engines.model, engines.window, source, frames)
    keeps = [str(film.path)] if film.kept else []
    return Foreseen(
        str(film.picture),
        str(output),
        _ALREADY if made_before else _intent(output, 0),
        source_size="a picture",
        frames=frames,
        segments=work.segments,
        seconds=None,
        seconds_by="the first stage's time is not recorded",
        memory=_memory(plan, engines, work, source, frames * source),
        writes=() if made_before else (str(output), *keeps),
        first_stage={
            "engines": animator.engine_set.name,
            "size": _size_text(size),
            "steps": animator.plan.steps,
        },
        **_decided(plan, engines, facts),
    )


def _decided(plan: Plan, engines: EngineSet | Unbuilt, facts: dict[str, Any]) -> dict[str, Any]:
    """What is told of engines and settings."""
    return {
        "engine_set": engines.path.name if engines.path else "to be built first",
        "model": engines.model.name,
        "device": engines.device,
        "size": _size_text(plan.size),
        "settings": facts,
    }


def _size_text(size: tuple[int, int]) -> str:
    """Width x height of (height, width)."""
    return f"{size[1]}x{size[0]}"


def _intent(output: Path, finished: int) -> str:
    does = "replace what is there" if output.exists() else "make it"
    return f"{does}, going on behind {finished} finished segments" if finished else does


def _streams(request: Request, reader: VideoReader, output: Path, plan: Plan) -> tuple[Stream, ...]:
    fates = streams_for(reader, output, parity=plan.parity, convert=request.convert).fates
    return tuple(Stream(fate.index, fate.description, fate.outcome) for fate in fates)


def _memory(plan: Plan, engines: EngineSet | Unbuilt, film: FilmWork, frame: int, read_ahead: int) -> Memory:
    frames, rows, columns = film.canvas
    latents = _CANVASES * 4 * engines.model.unet.latent_channels * frames * rows * columns
    wait = min(frames * plan.size[0] * plan.size[1] * 3, ENCODER_BYTES)
    files = sum(file.bytes for file in engines.manifest.files) if isinstance(engines, EngineSet) else None
    return Memory(files, latents, frames * frame + read_ahead + wait)


def tell(foreseen: Foreseen, time_text: Callable[[float], str]) -> None:
    """What is foreseen of one video, a line for each thing."""
    rows = [
        ("reads", f"{foreseen.input}, {foreseen.source_size}"),
        ("writes", ", ".join(foreseen.writes) or "nothing"),
        ("does", foreseen.does),
        ("pictures", f"{foreseen.frames or UNKNOWN} frames of {foreseen.size}, {_segments(foreseen)}"),
        ("engines", f"{foreseen.engine_set}: {foreseen.model} on {foreseen.device}"),
        *(("first stage", f"{name}: {value}") for name, value in foreseen.first_stage.items()),
        ("time", _time(foreseen, time_text)),
        ("memory", _memory_text(foreseen.memory)),
        *((f"stream {each.index}", f"{each.stream}: {each.becomes}") for each in foreseen.streams),
        *((name, str(value)) for name, value in foreseen.settings.items()),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        results.print(f"{name:<{width}}  {value}", markup=False)


def tell_many(foreseen: Sequence[Foreseen | Outcome], time_text: Callable[[float], str]) -> None:
    """A row for each video, or why it would fail."""
    table = Table("input", "output", "does", "frames", "size", "time")
    for each in foreseen:
        if isinstance(each, Foreseen):
            time = _time(each, time_text)
            table.add_row(each.input, each.output, each.does, str(each.frames or UNKNOWN), each.size, time)
        else:
            table.add_row(str(each.job.source), str(each.job.output), f"fail: {each.error}", "", "", "")
    results.print(table)


def _segments(foreseen: Foreseen) -> str:
    return "" if foreseen.segments is None else f"{foreseen.segments} segments where there are no cuts"


def _time(foreseen: Foreseen, time_text: Callable[[float], str]) -> str:
    if foreseen.seconds is None:
        return f"{UNKNOWN}: {foreseen.seconds_by}"
    return f"about {time_text(foreseen.seconds)}, {foreseen.seconds_by}"


def _memory_text(memory: Memory) -> str:
    parts = [
        f"engines' files {UNKNOWN}" if memory.engines is None else f"engines' files {_mib(memory.engines)}",
        f"latents {_mib(memory.latents)}",
        f"frames {_mib(memory.frames)} at most",
    ]
    return ", ".join(parts) + "; what the networks need while they run is not recorded"


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"
