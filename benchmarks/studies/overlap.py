"""Is a film decoded, denoised and encoded at once?

    python -m v2v.benchmarks.studies.overlap SET VIDEO -o FILE.json

The same film is enhanced twice, file to file: as :func:`~v2v.runtime.films.film.enhance_film` does it, and with a wait
for each segment's encoder before the next segment is begun. Both are watched: when the UNet was at work (on CUDA by
events on the device's stream), when a frame was decoded and when a picture was encoded, on one clock.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import time
from concurrent.futures import wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from v2v.benchmarks.results import Span
from v2v.benchmarks.trace import (
    ENGINE_STAGES,
    VIDEO_DECODE,
    VIDEO_ENCODE,
    Trace,
    TracedEncoders,
    TracedEngine,
    covered,
)
from v2v.device import open_device
from v2v.engine.backend import LooseEngines
from v2v.engine.store import EngineSet
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.diffusion.progress import Report
from v2v.runtime.diffusion.settings import Settings, plan
from v2v.runtime.films.film import Target, enhance_film
from v2v.runtime.films.pool import Alone
from v2v.runtime.films.task import SegmentJob, Task
from v2v.runtime.media.reader import VideoReader
from v2v.runtime.media.writer import encoding_for

_UNET = ENGINE_STAGES["unet"]


class _OneAfterTheOther(Alone):
    """Waits until a segment is encoded before it is given back."""

    def submit(self, task: Task, report: Report) -> SegmentJob:
        job = super().submit(task, report)
        wait([job.done])
        return job


def watch(
    engine_set: EngineSet,
    device_name: str,
    source: Path,
    output: Path,
    kind: type[Alone],
    steps: int | None = None,
) -> dict[str, Any]:
    """Enhance ``source`` into ``output`` and tell what was at work when; seconds."""
    device = open_device(device_name)
    device.capture = lambda work: work  # type: ignore[method-assign]  # what is replayed cannot be watched
    trace = Trace(device)
    engines = {name: engine_set.load(name, device_name) for name in engine_set.names}
    watched = LooseEngines.of(
        engine_set, {name: TracedEngine(engine, trace) for name, engine in engines.items()}
    )

    with VideoReader(source) as reader:
        read_frames = reader.frames
        reader.frames = lambda: trace.each(read_frames(), VIDEO_DECODE)  # type: ignore[method-assign]
        run_plan = plan(
            Settings(steps=steps),
            watched.model,
            (reader.info.height, reader.info.width),
        )
        team = kind(VideoToVideo(watched, device), TracedEncoders(trace))
        with trace.record():
            began = time.perf_counter()
            frames = enhance_film(team, reader, Target(output, encoding_for(reader.info), {}), run_plan)
            seconds = time.perf_counter() - began
    team.close()
    spans = trace.spans()
    stages = {name: [s for s in spans if s.stage == name] for name in (VIDEO_DECODE, _UNET, VIDEO_ENCODE)}
    denoising = stretches(stages[_UNET])
    return {
        "frames": frames,
        "seconds": round(seconds, 3),
        "seconds_at_work": {
            name: round(covered(spans_of_stage), 3) for name, spans_of_stage in stages.items()
        },
        "seconds_decoding_while_denoising": round(shared(stages[VIDEO_DECODE], denoising), 3),
        "seconds_encoding_while_denoising": round(shared(stages[VIDEO_ENCODE], denoising), 3),
        "output_sha256": hashlib.sha256(output.read_bytes()).hexdigest(),
    }


def stretches(evaluations: list[Span], gap: float = 0.05) -> list[Span]:
    """The stretches of denoising: evaluations less than ``gap`` seconds apart belong together."""
    joined: list[Span] = []
    for span in evaluations:
        if joined and span.start - (joined[-1].start + joined[-1].seconds) < gap:
            before = joined.pop()
            span = Span(span.track, span.stage, before.start, span.start + span.seconds - before.start)
        joined.append(span)
    return joined


def shared(some: list[Span], others: list[Span]) -> float:
    """Seconds of ``some`` that lie inside ``others``, which do not overlap one another."""
    return sum(
        max(0.0, min(a.start + a.seconds, b.start + b.seconds) - max(a.start, b.start))
        for a in some
        for b in others
    )


def main() -> None:
    """Print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engines", type=Path, help="engine set")
    parser.add_argument("video", type=Path, help="at least three segments long")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, help="default: the model's")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    engine_set = EngineSet.open(arguments.engines)
    runs: dict[str, dict[str, Any]] = {}
    with TemporaryDirectory() as folder:
        for name, kind in (
            ("warming up", Alone),
            ("one after the other", _OneAfterTheOther),
            ("at once", Alone),
        ):
            output = Path(folder) / f"{kind.__name__}{len(runs)}.mp4"
            runs[name] = watch(engine_set, arguments.device, arguments.video, output, kind, arguments.steps)
    del runs["warming up"]
    report = {
        "what": "one film, file to file: each segment encoded before the next is begun, and while it is",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "engines": engine_set.name,
        "device": arguments.device,
        "steps": arguments.steps or engine_set.manifest.recipe.model.defaults.steps,
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "runs": runs,
        "same_bytes": len({run["output_sha256"] for run in runs.values()}) == 1,
    }
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
