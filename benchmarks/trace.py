"""Trace a run: engines and a device that record when they were at work.

A trace is off until :meth:`Trace.record`; then every call of an engine and of the device's operations becomes a
span of the stage it belongs to. On a CPU the span lasts as long as the call; on CUDA it lies between two events on
the device's stream, so that nothing waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, cast

from v2v.benchmarks.results import DECODE, ENCODE, EVALUATE, Figure, Span, Stage
from v2v.core.components import ComponentName
from v2v.device import Device
from v2v.engine.backend import Engine, Prompted
from v2v.runtime.background import Behind
from v2v.runtime.diffusion.progress import Progress
from v2v.runtime.films.task import ENCODER_BYTES

ENGINE_STAGES: Mapping[ComponentName, str] = {
    "text_encoder": "text encoder",
    "vae_encoder": ENCODE,
    "unet": EVALUATE,
    "unet_full": EVALUATE,
    "unet_outer": EVALUATE,
    "vae_decoder": DECODE,
}
VIDEO_DECODE, VIDEO_ENCODE = "video decode", "video encode"
SOLVER = "solver"  # every operation between evaluations: guidance, windows, the update
PIXELS = "pixels and latents"  # resize, noise to latents, blending, bytes, copies
REST = "noise and rest"  # the host drawing noise, Python, waiting

STAGES = (
    VIDEO_DECODE,
    ENGINE_STAGES["text_encoder"],
    ENGINE_STAGES["vae_encoder"],
    ENGINE_STAGES["unet"],
    SOLVER,
    ENGINE_STAGES["vae_decoder"],
    PIXELS,
    VIDEO_ENCODE,
    REST,
)

_SPANS = 1500  # that a timeline keeps; closer ones are drawn as one
# Operations of the device that compute nothing, or that wait for others.
_UNTIMED = {"empty", "view", "reshape", "feed", "failure", "synchronize"}

Item = TypeVar("Item")
Returned = TypeVar("Returned")


class Clock(Protocol):
    """Sets marks without waiting for the work, and gives their times afterwards."""

    def start(self) -> None:
        """Begin to count; everything queued before has finished."""
        ...

    def mark(self) -> Any:
        """A mark behind everything done, or queued, so far."""
        ...

    def seconds(self, mark: Any) -> float:
        """When ``mark`` was passed, in seconds since the start; waits for it."""
        ...


class HostClock:
    """The time at which the host passes a mark."""

    def __init__(self) -> None:
        self._start = 0.0

    def start(self) -> None:
        self._start = time.perf_counter()

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, mark: float) -> float:
        return mark - self._start


class CudaClock:
    """Events on the device's stream."""

    def __init__(self, device: Device) -> None:
        from cuda.core import EventOptions, Stream

        self._device = device
        self._stream = Stream.from_handle(device.stream)
        self._timed = EventOptions(timing_enabled=True)
        self._start: Any = None

    def start(self) -> None:
        self._device.synchronize()
        self._start = self.mark()
        self._start.sync()

    def mark(self) -> Any:
        return self._stream.record(options=self._timed)

    def seconds(self, mark: Any) -> float:
        mark.sync()
        return float(mark - self._start) / 1000


@dataclass(frozen=True)
class _Marked:
    track: Literal["host", "device"]
    stage: str
    begin: Any
    end: Any
    parts: int


class Trace:
    """Spans of one run: the wrappers add them inside :meth:`record`, the other methods read them."""

    def __init__(self, device: Device) -> None:
        self.on = False
        self._clocks: dict[str, Clock] = {
            "host": HostClock(),
            "device": HostClock() if device.synchronous else CudaClock(device),
        }
        self._marks: list[_Marked] = []
        self._denoising = False
        self.seconds = 0.0  # of the whole recording

    @contextmanager
    def record(self) -> Iterator[None]:
        """A context in which calls are recorded; earlier ones are dropped."""
        self._marks, self._denoising = [], False
        for track in ("device", "host"):  # the device's waits until it is idle
            self._clocks[track].start()
        self.on = True
        try:
            yield
        finally:
            self.on = False
            host = self._clocks["host"]
            self.seconds = host.seconds(host.mark())

    def progress(self, now: Progress) -> None:
        """Follow the run, to tell the solver's operations of the device from those on pixels."""
        self._denoising = now.stage == "denoise"

    def wrap(
        self,
        work: Callable[..., Returned],
        stage: str | None,
        track: Literal["host", "device"] = "device",
        parts: int = 1,
    ) -> Callable[..., Returned]:
        """``work``, recording each call; without a ``stage`` it is the solver's while denoising, else the pixels'.

        A call counts as ``parts`` of equal length.
        """

        def noted(*arguments: Any, **named: Any) -> Returned:
            if not self.on:
                return work(*arguments, **named)
            clock = self._clocks[track]
            begin = clock.mark()
            try:
                return work(*arguments, **named)
            finally:
                own_stage = stage or (SOLVER if self._denoising else PIXELS)
                self._marks.append(_Marked(track, own_stage, begin, clock.mark(), parts))

        return noted

    def each(self, items: Iterable[Item], stage: str) -> Iterator[Item]:
        """``items``, recording the time that each one takes to come."""
        end = object()
        take = self.wrap(next, stage, "host")
        iterator = iter(items)
        while (item := take(iterator, end)) is not end:
            yield cast(Item, item)

    def spans(self) -> list[Span]:
        """Everything recorded, in the order of time."""
        spans = []
        for marked in self._marks:
            clock = self._clocks[marked.track]
            begin = clock.seconds(marked.begin)
            each = max(clock.seconds(marked.end) - begin, 0.0) / marked.parts
            spans += [
                Span(marked.track, marked.stage, begin + part * each, each) for part in range(marked.parts)
            ]
        return sorted(spans, key=lambda span: span.start)

    def stages(self, spans: list[Span]) -> tuple[Stage, ...]:
        """What each stage cost; the rest is what no span covers."""
        stages = []
        for name in STAGES[:-1]:
            samples = tuple(span.seconds for span in spans if span.stage == name)
            if samples:
                stages.append(Stage(name, len(samples), Figure(samples), sum(samples)))
        uncovered = max(self.seconds - covered(spans), 0.0)
        return (*stages, Stage(REST, 1, Figure((uncovered,)), uncovered))


def covered(spans: list[Span]) -> float:
    """Seconds in which at least one of ``spans``, ordered by start, is at work."""
    total, end = 0.0, 0.0
    for span in spans:
        total += max(span.start + span.seconds - max(span.start, end), 0.0)
        end = max(end, span.start + span.seconds)
    return total


def drawable(spans: list[Span], limit: int = _SPANS) -> tuple[Span, ...]:
    """``spans`` with neighbours of one stage joined, over gaps as wide as it takes to keep ``limit`` of them."""
    if not spans:
        return ()
    gap = max(span.start + span.seconds for span in spans) / 5000
    while True:
        joined = _joined(spans, gap)
        if len(joined) <= limit:
            return tuple(joined)
        gap *= 2


def _joined(spans: list[Span], gap: float) -> list[Span]:
    joined: list[Span] = []
    last: dict[str, int] = {}  # track -> place of its latest span
    for span in spans:
        index = last.get(span.track)
        if index is not None:
            before = joined[index]
            end = before.start + before.seconds
            # A span too short to be seen would only cut its neighbours apart.
            alike = before.stage == span.stage or span.seconds < gap / 4
            if alike and span.start - end <= gap:
                reach = max(end, span.start + span.seconds)
                joined[index] = Span(before.track, before.stage, before.start, reach - before.start)
                continue
        last[span.track] = len(joined)
        joined.append(span)
    return joined


class TracedEngine(Engine):
    """An engine whose calls are recorded."""

    def __init__(self, engine: Engine, trace: Trace) -> None:
        self.component, self._engine, self._trace = engine.component, engine, trace
        self._stage = ENGINE_STAGES[engine.component.name]
        self._run = trace.wrap(engine.run, self._stage)

    def run(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], stream: int = 0) -> None:
        """See :class:`v2v.engine.backend.Engine`."""
        self._run(inputs, outputs, stream)

    def run_prompts(self, common: Mapping[str, Any], prompts: Sequence[Prompted], stream: int = 0) -> None:
        """As the engine's own; evaluations, which may share work, are recorded as equally long."""
        run = self._trace.wrap(self._engine.run_prompts, self._stage, parts=len(prompts))
        run(common, prompts, stream)

    def close(self) -> None:
        """See :class:`v2v.engine.backend.Engine`."""
        self._engine.close()


class TracedEncoders(Behind):
    """A thread of encoders whose work is noted."""

    def __init__(self, trace: Trace) -> None:
        super().__init__(ENCODER_BYTES)
        self._trace = trace

    def hand_over(self, work: Callable[[], Returned], size: int = 0) -> Future[Returned]:
        """See :class:`Behind`."""
        return super().hand_over(self._trace.wrap(work, VIDEO_ENCODE, "host"), size)


class TracedDevice:
    """A device whose operations are recorded."""

    def __init__(self, device: Device, trace: Trace, *, captures: bool) -> None:
        self._device, self._trace, self._captures = device, trace, captures

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._device, name)
        if not callable(attribute) or name in _UNTIMED:
            return attribute
        traced = self._trace.wrap(attribute, None)
        setattr(self, name, traced)
        return traced

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """A captured step hides its operations, so while recording the step is done piece by piece."""
        if not self._captures:
            return work
        was_on, self._trace.on = self._trace.on, False
        try:
            captured = self._device.capture(work)
        finally:
            self._trace.on = was_on
        return lambda: work() if self._trace.on else captured()


def traced(device: Device, trace: Trace, *, captures: bool) -> Device:
    """``device``, recording its operations; without ``captures`` every step is done piece by piece, always."""
    return cast(Device, TracedDevice(device, trace, captures=captures))
