"""Enhance one video: check its paths, read it, plan the run, go on with an earlier run, write the result."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from v2v.core.configs import ModelConfig, Parity
from v2v.core.version import __version__
from v2v.engine.backend import Engines
from v2v.engine.choose import Unbuilt
from v2v.engine.store import EngineSet
from v2v.runtime.diffusion.loaded import Memory, can_reuse
from v2v.runtime.diffusion.pipeline import VideoToVideo, check_between, check_reuse
from v2v.runtime.diffusion.progress import Progress
from v2v.runtime.diffusion.settings import MOST_BETWEEN, Plan, Settings, plan
from v2v.runtime.films.batch import was_made_before
from v2v.runtime.films.compare_page import check_page, write_page
from v2v.runtime.films.film import Target, enhance_film, journal_facts
from v2v.runtime.films.journal import clear_up, digest_of, finished_run, journal_folder, sweep
from v2v.runtime.films.observed import Observed
from v2v.runtime.films.places import Place, check_places, link_target
from v2v.runtime.films.pool import Alone, Team
from v2v.runtime.films.processes import local_pool
from v2v.runtime.films.report_page import RunFacts, write_report
from v2v.runtime.films.speeds import observing
from v2v.runtime.media.encoding import Encoding
from v2v.runtime.media.image_sequence import check_folder
from v2v.runtime.media.pipe_in import Source
from v2v.runtime.media.reader import VideoReader
from v2v.runtime.media.stream_plan import StreamPlan
from v2v.runtime.media.time_range import NOT_GIVEN, WHOLE, TimeRange
from v2v.runtime.media.writer import check_output, encoding_for, streams_for

_COMPARE, _REPORT = "--compare", "--report"


@dataclass(frozen=True)
class Request:
    """The request of a run, the same for all its videos; None leaves a choice to the codec or the source."""

    settings: Settings = field(default_factory=Settings)
    time_range: TimeRange = WHOLE
    codec: str = "h264"
    crf: int | None = None
    preset: str | None = None
    rate: Fraction | None = None  # pictures per second of a folder of pictures
    fps: Fraction | None = None  # frames per second to come close to by making frames between frames
    deinterlace: bool = True
    find_cuts: bool = True
    convert: bool = True  # streams that the output cannot hold as they are
    overwrite: bool = False
    restart: bool = False
    first_stage: Mapping[str, Any] = field(
        default_factory=dict
    )  # what the source was made of, if of a picture

    def with_prompt(self, prompt: str) -> Request:
        """The same for a video that shows something else."""
        return replace(self, settings=replace(self.settings, prompt=prompt))

    def keeps(self, output: Path, facts: Mapping[str, Any]) -> bool:
        """Whether ``output`` is there, made of the same ``facts``, and is not to be replaced."""
        return not self.overwrite and output.exists() and was_made_before(output, facts)

    def open(self, source: Source) -> VideoReader:
        """Read ``source`` as asked; raises as :class:`VideoReader` does."""
        return VideoReader(
            source,
            parity=self.settings.parity,
            find_cuts=self.find_cuts and not self.settings.parity,
            rate=self.rate,
            time_range=self.time_range,
            deinterlace=self.deinterlace,
        )

    def settings_for(self, reader: VideoReader) -> Settings:
        """The settings, with the frames that each frame of ``reader`` becomes."""
        if self.fps is None:
            return self.settings
        times = min(max(round(self.fps / reader.info.frame_rate), 1), MOST_BETWEEN)
        return replace(self.settings, interpolate=times)

    def encoding(self, reader: VideoReader, authors: Parity = ModelConfig.parity) -> Encoding:
        """How the pictures of ``reader`` are written, with parity as ``authors`` do; raises as :func:`encoding_for`."""
        parity = self.settings.parity
        return encoding_for(
            reader.info,
            codec=self.codec,
            crf=authors.crf if parity and self.crf is None and self.codec == "h264" else self.crf,
            preset=authors.preset if parity and self.preset is None and self.codec == "h264" else self.preset,
            depth=self.settings.depth,
            parity=parity,
            own_rate=authors.rate is None,
        )


class Crew:
    """The engines and whoever runs them: chosen and loaded when they are first needed, then kept for every video."""

    def __init__(
        self, choose: Callable[[], EngineSet], hire: Callable[[EngineSet], Team], device: str | None = None
    ) -> None:
        self._choose, self._hire, self._device = choose, hire, device

    @cached_property
    def engine_set(self) -> EngineSet:
        """Chosen, not loaded."""
        return self._choose()

    @property
    def device(self) -> str:
        """What runs them: that of the engines, unless another was asked for."""
        return self._device or self.engine_set.device

    @cached_property
    def team(self) -> Team:
        """Ready to work."""
        return self._hire(self.engine_set)


@dataclass(frozen=True)
class Enhanced:
    """The result of enhancing a video."""

    frames: int
    seconds: float
    engine_set: Path
    settings: dict[str, Any]  # all that decides what it looks like, as kept in the output's comment
    first_stage: dict[str, Any] = field(default_factory=dict)  # what made the source of a picture

    def page_rows(self) -> dict[str, Any]:
        """For the page that compares before and after."""
        return {**self.settings, "seconds": round(self.seconds, 1), "frames": self.frames}

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        figures = {"frames": self.frames, "seconds": round(self.seconds, 3)}
        before = {"first_stage": self.first_stage} if self.first_stage else {}
        return {**figures, "engine_set": str(self.engine_set), "settings": self.settings, **before}


@dataclass(frozen=True)
class Paths:
    """What one video is read from and written to."""

    source: Path
    output: Path
    page: Path | None = None  # that compares both
    report: Path | None = None  # page on the run
    read_too: tuple[Place, ...] = ()  # what else the run reads, so that nothing is written there

    def check(self, engine_set: Path | None = None) -> None:
        """Raises UsageError if something would be written where something else is read or written."""
        journal = journal_folder(self.output)
        outputs = [Place(self.output, "-o"), Place(journal, "the folder of what is finished")]
        outputs += [Place(path, flag) for flag, path in self._pages.items()]
        inputs = [Place(self.source, "the input"), *self.read_too]
        inputs += [Place(engine_set, "the engine set")] if engine_set else []
        check_places(outputs, inputs)

    def followed(self) -> Paths:
        """The same with links among what is written resolved."""
        pages = {flag: link_target(Place(path, flag)) for flag, path in self._pages.items()}
        output = link_target(Place(self.output, "-o"))
        return replace(self, output=output, page=pages.get(_COMPARE), report=pages.get(_REPORT))

    @property
    def _pages(self) -> dict[str, Path]:
        """What is written beside the output, by flag."""
        return {flag: path for flag, path in ((_COMPARE, self.page), (_REPORT, self.report)) if path}

    @property
    def pages(self) -> tuple[Path, ...]:
        """What is written beside the output."""
        return tuple(self._pages.values())

    def check_pages(self, *, overwrite: bool) -> None:
        """Raises MediaError if one of the pages cannot be written."""
        for flag, path in self._pages.items():
            check_page(path, flag, overwrite=overwrite)


def enhance(
    request: Request,
    paths: Paths,
    crew: Crew,
    follow: Callable[[], AbstractContextManager[Callable[[Progress], None]]],
    *,
    keep_if_same: bool = False,
) -> Enhanced | None:
    """Enhance one video, after all that could stop it has been looked at, and write its page if there is to be one.

    ``follow`` lends a function that is told how far the work is. With ``keep_if_same`` an output that was made of the
    same settings is left as it is; the result is then None. What a run has made that was ended before it had cleared
    up, or written its page, is not made again.

    Raises:
        V2VError: the source cannot be read, the output not written, the request cannot be met, or the work failed.
    """
    paths.check()
    paths = paths.followed()
    output, earlier_run = paths.output, finished_run(paths.output)
    if earlier_run is None and output.exists():
        sweep(output)
    paths.check_pages(overwrite=request.overwrite)
    if not ((keep_if_same or earlier_run) and output.exists()):
        check_place(output, paths.source, request.codec, overwrite=request.overwrite)
    with (
        _noted() as warned,
        request.open(paths.source) as reader,
        observing(crew.engine_set, crew.device, measures=paths.report is not None) as observed,
    ):
        run_plan, encoding, facts = decide(request, reader, crew.engine_set)
        paths.check(crew.engine_set.path)
        work = _Work(request, paths, crew.engine_set.path, facts, observed, warned)
        if earlier_run is not None:
            same = earlier_run.facts == digest_of(journal_facts(paths.source, facts))
            if same and not request.restart:
                work.finish(earlier_run.frames)
            clear_up(output)
            if work.result is not None:
                return work.result
        if output.exists():
            if keep_if_same and request.keeps(output, facts):
                return None
            check_place(output, paths.source, request.codec, overwrite=request.overwrite)
        encoding.check(output, *run_plan.size)
        team, target = crew.team, Target(output, encoding, facts, request.overwrite, request.restart)
        if not encoding.makes_folder:
            streams = streams_for(reader, output, parity=run_plan.parity, convert=request.convert)
            target, work.streams = replace(target, streams=streams), streams
        work.started = time.monotonic()
        with follow() as show:
            enhance_film(team, reader, target, run_plan, show, work.finish, observed)
    return work.result


def decide(
    request: Request, reader: VideoReader, engines: EngineSet | Unbuilt
) -> tuple[Plan, Encoding, dict[str, Any]]:
    """The plan of the video of ``reader``, how it is encoded, and all that decides what the result shows.

    The reader then leaves room for frames between its own.

    Raises:
        V2VError: as :func:`plan_of` and :meth:`Request.encoding`.
    """
    encoding = request.encoding(reader)
    run_plan = plan_for(reader, request.settings_for(reader), engines)
    if run_plan.between > 1:
        reader.leave_room(run_plan.between)
    if run_plan.between > 1 or run_plan.parity:
        encoding = request.encoding(reader, engines.model.parity)
    return run_plan, encoding, describe(request, run_plan, engines, encoding)


class _Work:
    """Finishes a video once its film is written: the page, and the result."""

    def __init__(
        self,
        request: Request,
        paths: Paths,
        engine_set: Path,
        facts: dict[str, Any],
        observed: Observed,
        warned: list[str],
    ) -> None:
        self._request, self._paths, self._engine_set, self._facts = request, paths, engine_set, facts
        self._observed, self._warned = observed, warned
        self.streams: StreamPlan | None = None
        self.started = time.monotonic()
        self.result: Enhanced | None = None

    def finish(self, frames: int) -> None:
        """Write the pages, if there are to be some."""
        result = Enhanced(frames, time.monotonic() - self.started, self._engine_set, self._facts)
        if (page := self._paths.page) is not None:
            write_page(
                page, self._paths.source, self._paths.output, result.page_rows(), self._request.time_range
            )
        if (page := self._paths.report) is not None:
            fates = self.streams.fates if self.streams else ()
            made = RunFacts(
                self._paths.source,
                self._paths.output,
                frames,
                result.seconds,
                self._facts,
                fates,
                self._warned,
            )
            write_report(page, made, self._observed)
        self.result = result


@contextlib.contextmanager
def _noted() -> Iterator[list[str]]:
    """Inside, the texts of all warnings are kept too, in the list that is lent."""
    texts: list[str] = []
    with warnings.catch_warnings():
        show = warnings.showwarning

        def note(message: Warning | str, *details: Any, **more: Any) -> None:
            texts.append(str(message))
            show(message, *details, **more)

        warnings.showwarning = note
        yield texts


def describe(request: Request, plan: Plan, engines: Engines | Unbuilt, encoding: Encoding) -> dict[str, Any]:
    """All that decides what a run gives, by the names that a person knows it by: the output's comment holds it.

    What was left as it usually is is not mentioned: a whole film, deinterlaced, its cuts found, its streams converted.
    """
    height, width = plan.size
    asked = {
        name.lstrip("-"): value for name, value in request.time_range.facts().items() if value != NOT_GIVEN
    }
    if request.rate is not None:
        asked["rate"] = str(request.rate)
    usual = {
        "deinterlace": request.deinterlace or plan.parity,
        "cuts": request.find_cuts or plan.parity,
        "convert": request.convert or plan.parity,
    }
    return {
        "made_with": f"v2v {__version__}",
        **engines.facts,
        **asdict(plan),
        "size": f"{width}x{height}",
        "codec": encoding.codec,
        "crf": encoding.crf,
        "preset": encoding.preset,
        **asked,
        **{name: False for name, is_usual in usual.items() if not is_usual},
        **({"first_stage": dict(request.first_stage)} if request.first_stage else {}),
    }


def check_place(output: Path, source: Path, codec: str, *, overwrite: bool) -> None:
    """Find out before the work whether ``output`` may be written.

    Raises:
        MediaError, FolderError: it may not.
    """
    if codec == "png":
        check_folder(output)
    else:
        check_output(output, source, overwrite=overwrite)


def plan_for(reader: VideoReader, settings: Settings, engine_set: EngineSet | Unbuilt) -> Plan:
    """:func:`plan_of` for this video."""
    return plan_of((reader.info.height, reader.info.width), settings, engine_set)


def plan_of(source: tuple[int, int], settings: Settings, engine_set: EngineSet | Unbuilt) -> Plan:
    """Settings made whole for a source of (height, width) pixels, checked before anything is loaded.

    Raises:
        V2VError: a value out of range, or engines that cannot do it; names the flag.
    """
    made = plan(settings, engine_set.model, source, can_reuse(engine_set))
    check_reuse(made, engine_set)
    check_between(made, engine_set)
    return made


def hire(
    device: str | None,
    memory: Memory,
    workers: int | None,
    ray: str | None,
    opened: contextlib.ExitStack,
    engine_set: EngineSet,
) -> Team:
    """Load the engines: here, in several processes, or on a cluster; ``opened`` ends what was started.

    Raises:
        V2VError: the engines do not run there, or there are fewer GPUs than workers.
    """
    device = device or engine_set.device
    if ray is not None:
        from v2v.runtime.films.ray_cluster import cluster_pool  # Ray is an extra

        return opened.enter_context(cluster_pool(ray, engine_set, workers, device, memory))
    if workers is not None and workers > 1:
        return opened.enter_context(local_pool(engine_set, workers, device, memory))
    return Alone(VideoToVideo.load(engine_set, device, memory))
