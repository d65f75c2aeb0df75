"""Measure one engine set or baseline: load, warm up, time whole runs, trace one more run, sweep."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from v2v.benchmarks.machine import GpuMemory, host_peak
from v2v.benchmarks.results import (
    Axis,
    Build,
    Clip,
    Figure,
    Kind,
    Measured,
    Point,
    Span,
    Stage,
    Subject,
    Sweep,
)
from v2v.benchmarks.trace import (
    ENGINE_STAGES,
    VIDEO_DECODE,
    Trace,
    TracedEncoders,
    TracedEngine,
    drawable,
    traced,
)
from v2v.core.components import Window
from v2v.core.configs import ModelConfig
from v2v.device import open_device
from v2v.engine.backend import Engines, LooseEngines
from v2v.engine.store import EngineSet
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.diffusion.progress import Progress
from v2v.runtime.diffusion.settings import Settings, plan
from v2v.runtime.films.film import Target, enhance_film
from v2v.runtime.films.pool import Alone
from v2v.runtime.media.encoding import Encoding, SegmentEncoder
from v2v.runtime.media.pixels import Colors
from v2v.runtime.media.reader import VideoReader
from v2v.runtime.media.writer import encoding_for

Tell = Callable[[str, float], None]
"""Called with the current step and the share of the whole that is done, 0..1."""

# Steps of a sweep over frames or pixels: whole runs would take hours at full size, and steps are swept on their own.
_SWEEP_STEPS = 4
_RATE = Fraction(24)


class Opener(Protocol):
    """Opens the engines to measure; it is pickled and sent to the process that measures."""

    @property
    def name(self) -> str:
        """In tables and plots."""
        ...

    @property
    def kind(self) -> Kind: ...

    @property
    def device(self) -> str: ...

    def open(self, folder: Path) -> Opened:
        """Open the engines; temporary files that they need go into ``folder``."""
        ...


@dataclass(frozen=True)
class Opened:
    """Engines to measure, their description, and their engine set, if they belong to one."""

    engines: Engines
    subject: Subject
    engine_set: EngineSet | None = None


@dataclass(frozen=True)
class OpenEngineSet:
    """An engine set on disk."""

    name: str
    path: Path
    device: str
    kind: Kind = "engines"

    def open(self, folder: Path) -> Opened:
        """See :class:`Opener`."""
        engine_set = EngineSet.open(self.path)
        recipe = engine_set.manifest.recipe
        subject = Subject(
            name=self.name,
            kind=self.kind,
            backend=recipe.backend.name,
            backend_version=recipe.backend.version,
            device=self.device,
            model=recipe.model.name,
            weights=recipe.weights.kind,
            weights_identity=recipe.weights.identity,
            window=str(recipe.window),
            precision=recipe.options.precision,
            engine_set=engine_set.name,
        )
        return Opened(engine_set, subject, engine_set)


@dataclass(frozen=True)
class OpenBaseline:
    """PyTorch in the place of engines."""

    name: str
    kind: Kind
    model: ModelConfig
    window: Window
    weights: str  # as load_weights takes it
    device: str

    def open(self, folder: Path) -> Opened:
        """See :class:`Opener`; imports PyTorch."""
        import torch

        from v2v.benchmarks.torch_engines import baseline_engines
        from v2v.export.weights import load_weights

        assert self.kind != "engines"
        weights = load_weights(self.weights, self.model)
        subject = Subject(
            name=self.name,
            kind=self.kind,
            backend="pytorch",
            backend_version=torch.__version__,
            device=self.device,
            model=self.model.name,
            weights=weights.kind,
            weights_identity=weights.identity,
            window=str(self.window),
            precision="fp16" if self.device == "cuda" else "fp32",
            engine_set=None,
        )
        return Opened(
            baseline_engines(folder, self.kind, self.model, self.window, weights, self.device), subject
        )


@dataclass(frozen=True)
class Measurement:
    """What to measure and how."""

    opener: Opener
    repeats: int
    steps: int | None  # None: the model's default
    sweeps: tuple[Axis, ...]


def measure(job: Measurement, folder: Path, tell: Tell) -> Iterator[Measured]:
    """Measure ``job`` in this process, which should be a fresh one; temporary files go to ``folder``.

    Everything is in the first result but further runs and the sweeps; each later one has more of them.

    Raises:
        V2VError: the engines do not load or run here.
    """
    with GpuMemory() as gpu:
        tell("loading", 0.0)
        bench = _Bench(job.opener, folder)
        clip = standard_clip(bench.model, bench.window, job.steps)
        tell("warming up", 0.05)
        with bench.trace.record():
            warm = bench.run(replace(clip, steps=1))
        first = bench.trace.spans()
        tell(f"run 1 of {job.repeats}", 0.2)
        runs = [bench.run(clip).seconds]
        tell("watching a run", 0.3)
        with bench.trace.record():
            bench.run(clip)
        spans = bench.trace.spans()
        host_bytes, gpu_peak = host_peak(), gpu.peak
    stages = bench.trace.stages(spans)
    measured = Measured(
        subject=bench.subject,
        clip=clip,
        load=Figure((bench.load_seconds,)),
        first_step=Figure((bench.load_seconds + warm.first_step,)),
        run=Figure(tuple(runs)),
        evaluations=sum(span.stage == ENGINE_STAGES["unet"] for span in spans),
        stages=stages,
        timeline=drawable(spans),
        host_bytes=Figure((float(host_bytes),)),
        gpu_bytes=None if gpu_peak is None or bench.subject.device == "cpu" else Figure((float(gpu_peak),)),
        engine_bytes=None if bench.opened.engine_set is None else bench.opened.engine_set.bytes,
        build=build_times(job.opener.kind, bench.opened, first, stages),
        sweeps=(),
    )
    yield measured
    for repeat in range(2, job.repeats + 1):
        tell(f"run {repeat} of {job.repeats}", 0.3 + 0.4 * repeat / job.repeats)
        runs.append(bench.run(clip).seconds)
        measured = replace(measured, run=Figure(tuple(runs)))
        yield measured
    for over in job.sweeps:
        sweep = _sweep(bench, over, job, clip, lambda text: tell(text, 0.7))
        measured = replace(measured, sweeps=(*measured.sweeps, sweep))
        yield measured
    bench.close()
    tell("done", 1.0)


def standard_clip(model: ModelConfig, window: Window, steps: int | None) -> Clip:
    """The clip that fills one window, from a source of half its height and width."""
    return Clip(
        frames=window.frames,
        source_height=max(window.height // 4 * 2, 2),
        source_width=max(window.width // 4 * 2, 2),
        height=window.height,
        width=window.width,
        steps=steps or model.defaults.steps,
    )


class _Run(NamedTuple):
    """One whole run: seconds to its end, and to the end of its first step."""

    seconds: float
    first_step: float


class _Bench:
    """A loaded engine set under a trace, and the clips to run it on."""

    def __init__(self, opener: Opener, folder: Path) -> None:
        started = time.perf_counter()
        self.opened = opener.open(folder)
        device = open_device(opener.device)
        engines = self.opened.engines
        self.engines = {name: engines.load(name, device.name) for name in engines.names}
        device.synchronize()
        self.load_seconds = time.perf_counter() - started

        self.model, self.window, self._folder = engines.model, engines.window, folder
        self.subject = self.opened.subject
        self.trace = Trace(device)
        v2v = VideoToVideo(
            LooseEngines.of(
                engines, {name: TracedEngine(engine, self.trace) for name, engine in self.engines.items()}
            ),
            traced(device, self.trace, captures=opener.kind == "engines"),
        )
        self._team = Alone(v2v, TracedEncoders(self.trace))
        self._runs = 0

    def run(self, clip: Clip) -> _Run:
        """Enhance ``clip`` from file to file, as ``v2v-run`` does."""
        source, trace = self._source(clip), self.trace
        self._runs += 1
        # A prompt of its own for each run: nothing of the run before can be used again.
        settings = Settings(
            prompt=f"clip number {self._runs}", steps=clip.steps, size=(clip.height, clip.width)
        )
        first_step: list[float] = []

        def progress(now: Progress) -> None:
            trace.progress(now)
            if not first_step and now.stage == "denoise" and now.step:
                first_step.append(time.perf_counter() - started)

        started = time.perf_counter()
        output = self._folder / "out.mp4"
        with trace.wrap(VideoReader, VIDEO_DECODE, "host")(source) as reader:
            read_frames = reader.frames
            reader.frames = lambda: trace.each(read_frames(), VIDEO_DECODE)  # type: ignore[method-assign]
            run_plan = plan(settings, self.model, (reader.info.height, reader.info.width))
            target = Target(output, encoding_for(reader.info), {}, overwrite=True, restart=True)
            enhance_film(self._team, reader, target, run_plan, progress)
        return _Run(time.perf_counter() - started, first_step[0])

    def close(self) -> None:
        """Free the engines."""
        self._team.close()
        for engine in self.engines.values():
            engine.close()

    def _source(self, clip: Clip) -> Path:
        path = self._folder / f"{clip.source_width}x{clip.source_height}x{clip.frames}.mp4"
        if not path.exists():
            write_clip(path, clip.frames, clip.source_height, clip.source_width)
        return path


def write_clip(path: Path, frames: int, height: int, width: int) -> None:
    """Write a moving pattern with hard edges and soft ones, H.264; height and width are even."""
    generator = np.random.default_rng(0)
    tiles = generator.integers(0, 256, (height // 8 + 5, width // 8 + 5, 3), dtype=np.uint8)
    hard = tiles.repeat(8, axis=0).repeat(8, axis=1)
    rows, columns = np.mgrid[0:height, 0:width]
    encoding = Encoding(Colors().resolved(width, height), _RATE, 1 / _RATE)
    with path.open("wb") as file, SegmentEncoder(file, encoding) as encoder:
        for number in range(frames):
            step = number % 32
            soft = np.sin((rows + 3 * number) / 17) * np.cos((columns - 2 * number) / 23)
            picture = 0.5 * hard[step : step + height, step : step + width] + 63 * (soft[..., None] + 1)
            encoder.write(picture.astype(np.uint8))


def build_times(kind: Kind, opened: Opened, first: list[Span], stages: tuple[Stage, ...]) -> Build | None:
    """The manifest's times; for ``torch.compile``, by how much longer each first call took."""
    if kind == "eager":
        return None
    if kind == "compile":
        usual = {stage.name: stage.seconds.median for stage in stages}
        extra: dict[str, float] = {}
        for component in opened.engines.names:
            stage = ENGINE_STAGES[component]
            seconds = next(span.seconds for span in first if span.stage == stage)
            extra[component] = max(seconds - usual[stage], 0.0)
        return Build(sum(extra.values()), {}, extra)
    assert opened.engine_set is not None
    manifest = opened.engine_set.manifest
    records = manifest.components
    return Build(
        manifest.seconds,
        {name: record.export_seconds for name, record in records.items()},
        {name: record.compile_seconds for name, record in records.items()},
    )


def _sweep(bench: _Bench, over: Axis, job: Measurement, clip: Clip, tell: Callable[[str], None]) -> Sweep:
    """Whole runs along one axis. A clip longer or larger than the window takes several windows."""
    fixed = clip if over == "steps" else replace(clip, steps=min(clip.steps, _SWEEP_STEPS))
    points = []
    for value, changed in variations(fixed, over):
        tell(f"sweep: {value} {over}")
        samples = tuple(bench.run(changed).seconds for _ in range(job.repeats))
        points.append(Point(value, Figure(samples)))
    return Sweep(over, fixed, tuple(points))


def variations(clip: Clip, over: Axis) -> list[tuple[int, Clip]]:
    """The clips of a sweep around ``clip`` and the value of each on the axis."""
    if over == "frames":
        numbers = sorted({max(clip.frames // 2, 1), clip.frames, 2 * clip.frames, 4 * clip.frames})
        return [(number, replace(clip, frames=number)) for number in numbers]
    if over == "pixels":
        sizes = [
            (round(clip.height * scale / 2) * 2, round(clip.width * scale / 2) * 2)
            for scale in (0.5, 1.0, 1.5, 2.0)
        ]
        return [(h * w, replace(clip, height=h, width=w)) for h, w in sizes]
    counts = [1, 2, 4, 8] if clip.steps < 8 else [max(clip.steps // divisor, 1) for divisor in (8, 4, 2, 1)]
    return [(count, replace(clip, steps=count)) for count in counts]
