"""Host memory over a long film: a generated clip goes from file to file through engines that do next to nothing.

    python -m v2v.benchmarks.studies.memory --minutes 30 --size 256x144 -o memory-30-minutes

What is left is what a run does on the host: reading, cutting into segments, resizing, keeping, encoding, joining.
The curve goes into ``NAME.json`` and ``NAME.svg``. With real engines their weights and buffers come on top; they do not
depend on the length either.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from v2v.benchmarks.machine import machine
from v2v.core.components import Component, Window, components
from v2v.core.configs import MODELS
from v2v.device import open_device
from v2v.engine.backend import Engine, LooseEngines
from v2v.engine.store import TOKENIZER, packaged_tokenizer
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.diffusion.progress import Progress
from v2v.runtime.diffusion.settings import Settings, plan
from v2v.runtime.films.film import Target, enhance_film
from v2v.runtime.films.pool import Alone
from v2v.runtime.media.reader import VideoReader
from v2v.runtime.media.writer import encoding_for

RATE = 25
MEBIBYTE = 1 << 20
_SHOT = 20  # seconds from cut to cut
_SHOWN = 600  # samples that a result keeps
_WARM = 0.1  # share of the run that is not counted as flat: buffers are made, the allocator finds its size


@dataclass(frozen=True)
class Curve:
    """Resident memory: ``samples`` of (seconds, frames finished, MiB); ``peak`` in MiB is the kernel's count."""

    samples: list[tuple[float, int, float]]
    peak: float
    frames: int
    seconds: float

    @property
    def growth(self) -> float:
        """MiB per 1000 frames, by a straight line through all but the beginning."""
        warm = [sample for sample in self.samples if sample[1] >= _WARM * self.frames]
        frames, mebibytes = (np.array([sample[column] for sample in warm], np.float64) for column in (1, 2))
        return float(np.polyfit(frames, mebibytes, 1)[0] * 1000) if len(warm) > 2 else 0.0


class _Trivial(Engine):
    """A component that costs as little as possible and keeps colours."""

    def __init__(self, component: Component) -> None:
        self.component = component

    def run(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], stream: int = 0) -> None:
        (out,) = outputs.values()
        (input_, *_) = inputs.values()
        out[...] = 0
        if self.component.name == "vae_encoder":
            channels = out.shape[1] // 2
            out[:, : min(3, channels)] = input_[:, : min(3, channels), 4::8, 4::8]
            out[:, channels:] = -30  # hardly any variance
        elif self.component.name == "vae_decoder":
            for row in range(8):
                out[:, :, row::8] = input_[:, :3].repeat(8, axis=3)

    def close(self) -> None:
        """There is nothing to free."""


def trivial_engines(folder: Path, window: Window) -> LooseEngines:
    """The small model's components, all :class:`_Trivial`; ``folder`` gets the tokenizer."""
    model = MODELS["small"]
    tokenizer = folder / TOKENIZER
    tokenizer.write_bytes(packaged_tokenizer())
    facts = {"model": model.name, "weights": "none", "engines": "trivial"}
    described = components(model, window, "fp32")
    return LooseEngines(model, window, described, tokenizer, facts, lambda component, _: _Trivial(component))


def make_clip(path: Path, seconds: float, size: tuple[int, int]) -> Path:
    """A clip of (width, height) that moves, cuts every 20 seconds and hums."""
    width, height = size
    ramp = np.add.outer(np.arange(height), np.arange(width))
    with av.open(str(path), "w") as output:
        video: Any = output.add_stream("libx264", rate=RATE, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        sound: Any = output.add_stream("aac", rate=48000, layout="mono")
        samples = 48000 // RATE
        for number in range(round(seconds * RATE)):
            shot = number // (RATE * _SHOT)
            picture = np.empty((height * 3 // 2, width), np.uint8)
            picture[:height] = (ramp * (1 + shot % 3) + 2 * number) % 160 + 40
            picture[height:] = 96 + 40 * (shot % 2)
            output.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="yuv420p")))
            t = (np.arange(samples) + number * samples) / 48000
            sound_frame = av.AudioFrame.from_ndarray(
                np.sin(2765 * t, dtype=np.float32)[None] * np.float32(0.1), "fltp", "mono"
            )
            sound_frame.sample_rate, sound_frame.pts, sound_frame.time_base = (
                48000,
                number * samples,
                Fraction(1, 48000),
            )
            output.mux(sound.encode(sound_frame))
        for stream in (video, sound):
            output.mux(stream.encode(None))
    return path


def enhance(source: Path, target: Path, frames: int, codec: str, progress: Callable[[Progress], None]) -> int:
    """Run ``source`` through trivial engines with windows of its own size and ``frames`` frames."""
    with VideoReader(source, find_cuts=True) as reader, tempfile.TemporaryDirectory() as folder:
        rows, columns = max((reader.info.height - 16) // 64, 1), max(reader.info.width // 64, 1)
        engines: Any = trivial_engines(Path(folder), Window(frames, rows * 64 + 16, columns * 64))
        size = (reader.info.height, reader.info.width)
        run_plan = plan(Settings(steps=1, size=size), engines.model, size)
        team = Alone(VideoToVideo(engines, open_device("cpu")))
        encoding = encoding_for(reader.info, codec=codec, preset="ultrafast" if codec == "h264" else None)
        return enhance_film(team, reader, Target(target, encoding, {}), run_plan, progress)


def watched(source: Path, target: Path, frames: int, codec: str, interval: float) -> Curve:
    """:func:`enhance` in this process, looking at its memory every ``interval`` seconds."""
    samples: list[tuple[float, int, float]] = []
    began, frames_done, finished = time.monotonic(), 0, threading.Event()

    def follow(now: Progress) -> None:
        nonlocal frames_done
        frames_done = now.frames_done

    def sample() -> None:
        while not finished.wait(interval):
            samples.append((time.monotonic() - began, frames_done, _resident()))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        count = enhance(source, target, frames, codec, follow)
    finally:
        finished.set()
        thread.join()
    samples.append((time.monotonic() - began, count, _resident()))
    return Curve(samples, _status("VmHWM"), count, time.monotonic() - began)


def measure(seconds: float, size: tuple[int, int], frames: int, codec: str, interval: float) -> Curve:
    """Make a clip and enhance it in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        source = make_clip(Path(folder) / "clip.mp4", seconds, size)
        target = Path(folder) / ("out.mkv" if codec == "ffv1" else "out.mp4")
        command = [
            sys.executable,
            "-m",
            __spec__.name,
            "--of",
            source,
            target,
            str(frames),
            codec,
            str(interval),
        ]
        output = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True).stdout
    curve = json.loads(output)
    return Curve(**{**curve, "samples": [tuple(sample) for sample in curve["samples"]]})


def _resident() -> float:
    return _status("VmRSS")


def _status(name: str) -> float:
    """A line of the kernel's account of this process, in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / MEBIBYTE


def plot(curve: Curve, title: str) -> str:
    """The curve as an SVG picture: MiB over frames."""
    width, height, left, bottom, top = 720, 300, 60, 40, 34
    highest = max(curve.peak, 1) * 1.15
    step = max(100 * round(highest / 500), 50 if highest > 100 else 10)

    def x(frames: float) -> float:
        return left + (width - left - 16) * frames / max(curve.frames, 1)

    def y(mebibytes: float) -> float:
        return height - bottom - (height - bottom - top) * mebibytes / highest

    line = " ".join(f"{x(finished):.1f},{y(mebibytes):.1f}" for _, finished, mebibytes in curve.samples)
    levels = [
        f'<line x1="{left}" x2="{width - 16}" y1="{y(level):.1f}" y2="{y(level):.1f}" stroke="#ddd"/>'
        f'<text x="{left - 6}" y="{y(level) + 4:.1f}" text-anchor="end">{level}</text>'
        for level in range(0, int(highest), step)
    ]
    minutes = curve.frames / RATE / 60
    marks = [
        f'<text x="{x(curve.frames * sixth / 6):.1f}" y="{height - bottom + 18}" text-anchor="middle">'
        f"{minutes * sixth / 6:g}</text>"
        for sixth in range(7)
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
            f'font-size="12" fill="#333"><rect width="{width}" height="{height}" fill="#fff"/>',
            f'<text x="{left}" y="20" font-size="14">{title}</text>',
            *levels,
            *marks,
            f'<text x="{width - 16}" y="{height - 8}" text-anchor="end">minutes of film finished</text>',
            f'<text x="8" y="{top - 8}">MiB</text>',
            f'<polyline points="{line}" fill="none" stroke="#0b6" stroke-width="1.5"/></svg>',
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the curve."""
    parser = argparse.ArgumentParser(prog="python -m v2v.benchmarks.studies.memory", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--size", default="256x144", help="of the clip and of the output")
    parser.add_argument("--frames", type=int, default=32, help="frames of a window")
    parser.add_argument("--codec", default="h264")
    parser.add_argument("--interval", type=float, default=0.25, help="seconds between two looks")
    parser.add_argument("-o", "--output", type=Path, default=Path("memory"), help="name without ending")
    parser.add_argument("--of", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.of:
        source, target, frames, codec, interval = options.of
        print(json.dumps(asdict(watched(Path(source), Path(target), int(frames), codec, float(interval)))))
        return
    width, height = map(int, options.size.split("x"))
    curve = measure(options.minutes * 60, (width, height), options.frames, options.codec, options.interval)
    report = {
        "what": "resident memory of a run with trivial engines on the CPU",
        "date": time.strftime("%Y-%m-%d"),
        "machine": asdict(machine()),
        "minutes": options.minutes,
        "size": options.size,
        "window_frames": options.frames,
        "codec": options.codec,
        "frames": curve.frames,
        "seconds": round(curve.seconds, 1),
        "peak_mib": round(curve.peak, 1),
        "growth_mib_per_1000_frames": round(curve.growth, 4),
    }
    every = max(len(curve.samples) // _SHOWN, 1)
    thinned = replace(curve, samples=curve.samples[::every])
    report["samples"] = [
        [round(s, 1), frames_done, round(mebibytes, 1)] for s, frames_done, mebibytes in thinned.samples
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=1).replace("\n   ", " ").replace("\n  ]", " ]")
    options.output.with_name(f"{options.output.name}.json").write_text(text + "\n", encoding="utf-8")
    title = f"Memory over {options.minutes:g} minutes of {options.size}: peak {curve.peak:.0f} MiB"
    options.output.with_name(f"{options.output.name}.svg").write_text(plot(thinned, title), encoding="utf-8")
    print(
        f"{curve.frames} frames in {curve.seconds:.0f} s, peak {curve.peak:.0f} MiB, "
        f"{curve.growth:+.3f} MiB per 1000 frames"
    )


if __name__ == "__main__":
    main()
