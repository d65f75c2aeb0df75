"""What each fast mode costs: the time of a clip, and how far its result is from the full run's on the same seed.

    python -m v2v.benchmarks.studies.fast_modes clip SET CLIP -o FOLDER      an engine set built with --reuse, a video
    python -m v2v.benchmarks.studies.fast_modes full-size -o FOLDER          on a GPU: the full model, random weights

``full-size`` needs no engine set: PyTorch runs the fused networks that the Inductor backend compiles. With random
weights times are the real network's, while differences say only what a mode does to a network that was never trained.
``--fp8`` holds networks with products in FP8 against a full run of those without. ``--size narrow`` is a rehearsal with
a narrow network on a CPU, in FP32.

A clip's time is from frames in memory to enhanced frames in memory, with engines loaded and its prompt still to be
encoded. Differences are peak signal-to-noise ratios: of frames against 255, of latents against their range (largest
minus smallest) in the full run. "Another seed" is the yardstick: how far apart two full runs are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from v2v.benchmarks.studies.gpu_run import psnr
from v2v.core.components import Precision, Window, is_unet, window_for
from v2v.core.configs import MODELS, ModelConfig, TextEncoderConfig
from v2v.device import Device, Frame, open_device
from v2v.engine.backend import Engine, Engines, LooseEngines
from v2v.engine.store import EngineSet
from v2v.runtime.diffusion.loaded import can_reuse
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.diffusion.settings import Settings, plan

_PROMPT = "a white rabbit in a meadow"
_FAST = plan(Settings(fast=True), MODELS["ms-vid2vid-xl"], (720, 1280), reuse=True)


@dataclass(frozen=True)
class Mode:
    """Settings to compare with the full run; ``flags`` are what a person types."""

    flags: str
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reuses(self) -> bool:
        """Whether it needs an engine set built with --reuse."""
        return bool(self.changes.get("reuse", 1) > 1)


def modes() -> list[Mode]:
    """The full run first."""
    steps, (low, high) = _FAST.steps, _FAST.guidance_interval
    fast = {name: getattr(_FAST, name) for name in ("steps", "solver", "guidance_interval", "reuse")}
    return [
        Mode("(full run)"),
        Mode("(full run, another seed)", {"seed": Settings.seed + 1}),
        Mode("--solver dpmpp_2m", {"solver": "dpmpp_2m"}),
        Mode(f"--steps {steps}", {"steps": steps}),
        Mode(f"--steps {steps} --solver dpmpp_2m", {"steps": steps, "solver": "dpmpp_2m"}),
        Mode(f"--guidance-interval {low}:{high}", {"guidance_interval": (low, high)}),
        Mode("--reuse 2", {"reuse": 2}),
        Mode("--reuse 3", {"reuse": 3}),
        # Said one by one: the full run may have another number of steps than the model's, which would win.
        Mode("--fast --reuse 1", {**fast, "reuse": 1}),
        Mode("--fast", fast),
    ]


@dataclass(frozen=True)
class Measured:
    """One mode's price."""

    flags: str
    seconds: float  # of a clip; median
    samples: list[float]
    evaluations_in_full: int  # of the UNet, in one window
    evaluations_on_features: int
    psnr_latents_db: float | None  # against the full run; None for itself
    psnr_frames_db: float | None


class _Latents(Engine):
    """A decoder that also fetches the latents that it decodes."""

    def __init__(self, engine: Engine, device: Device) -> None:
        self.component, self._engine, self._device = engine.component, engine, device
        self.noted: list[Any] = []

    def run(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], stream: int = 0) -> None:
        self.noted.append(self._device.fetch(inputs["latents"]))
        self._engine.run(inputs, outputs, stream)

    def close(self) -> None:
        self._engine.close()


class Bench:
    """A loaded engine set, a clip, and settings that all modes share."""

    def __init__(self, engine_set: Engines, device: Device, frames: list[Frame], common: Settings) -> None:
        self.engines = {name: engine_set.load(name, device.name) for name in engine_set.names}
        self._latents = _Latents(self.engines["vae_decoder"], device)
        self.engines["vae_decoder"] = self._latents
        self.v2v = VideoToVideo(LooseEngines.of(engine_set, self.engines), device)
        self.v2v.load_all()
        self.frames, self.common = frames, common
        self._full: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None

    def compare_with(self, full: Bench) -> None:
        """Compare every mode with the full run that ``full`` has made."""
        self._full = full._full

    def settings(self, mode: Mode) -> Settings:
        """What all share, and the mode's own."""
        return Settings(**{**asdict(self.common), **mode.changes})

    def once(self, settings: Settings) -> tuple[float, npt.NDArray[Any], npt.NDArray[Any]]:
        """Seconds, final latents ``[N, Z, h, w]`` and frames ``[N, H, W, 3]`` of one run."""
        self._latents.noted = []
        self.v2v._encode_prompts.cache_clear()
        self.v2v.device.synchronize()
        started = time.perf_counter()
        frames = list(self.v2v(self.frames, settings))
        seconds = time.perf_counter() - started
        latents = np.concatenate([noted.result() for noted in self._latents.noted])
        return seconds, latents.astype(np.float64), np.stack(frames)

    def evaluation_seconds(self, repeats: int = 5) -> dict[str, float]:
        """Median time of one run of each part of the UNet, on zeros."""
        device = self.v2v.device
        medians: dict[str, float] = {}
        for name in filter(is_unet, self.engines):
            engine, samples = self.engines[name], []
            inputs, outputs = (
                {tensor.name: device.empty(tensor.shape, tensor.dtype) for tensor in tensors}
                for tensors in (engine.component.inputs, engine.component.outputs)
            )
            for array in inputs.values():
                device.zero(array)
            for _ in range(1 + repeats):
                device.synchronize()
                started = time.perf_counter()
                engine.run(inputs, outputs, device.stream)
                device.synchronize()
                samples.append(time.perf_counter() - started)
            medians[name] = statistics.median(samples[1:])
        return medians

    def measure(self, mode: Mode, repeats: int) -> Measured:
        """Run ``mode``; the first one measured is what the others are compared with."""
        settings = self.settings(mode)
        runs = [self.once(settings) for _ in range(repeats)]
        _, latents, frames = runs[-1]
        compared = self._full
        if compared is None:
            self._full = latents, frames
        segment_plan = plan(settings, self.v2v.model, frames.shape[1:3], can_reuse(self.v2v.engines))
        in_full, on_features = segment_plan.evaluations
        samples = [run[0] for run in runs]
        return Measured(
            mode.flags,
            statistics.median(samples),
            samples,
            in_full,
            on_features,
            None if compared is None else psnr(latents, compared[0], float(np.ptp(compared[0]))),
            None if compared is None else psnr(frames, compared[1], 255.0),
        )


def measure_all(
    bench: Bench, selected: list[Mode], repeats: int, report: Callable[[list[Measured]], None]
) -> list[Measured]:
    """Warm up, then measure; ``report`` is called after each mode, so that a run cut short leaves results."""
    everything = Mode("", {"steps": 4, "reuse": 2 if any(mode.reuses for mode in selected) else 1})
    bench.once(bench.settings(everything))
    measured: list[Measured] = []
    for mode in selected:
        measured.append(bench.measure(mode, repeats))
        report(measured)
    return measured


def table(report: Mapping[str, Any]) -> str:
    """The report in Markdown."""
    lines = [
        f"# Fast modes: {report['what']}",
        "",
        f"{report['device']}; {report['weights']} weights; {report['clip']}; {report['date']}",
        "",
        "| `v2v-run` | clip | evaluations of the UNet | PSNR of latents | PSNR of frames |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in report["modes"]:
        count = str(row["evaluations_in_full"])
        if row["evaluations_on_features"]:
            count += f" and {row['evaluations_on_features']} on features"
        cells = [
            f"`{row['flags']}`" if row["flags"][0] == "-" else row["flags"],
            f"{row['seconds']:.1f} s",
            count,
        ]
        lines.append(f"| {' | '.join([*cells, _db(row['psnr_latents_db']), _db(row['psnr_frames_db'])])} |")
    single = ", ".join(
        f"{name} {1000 * s:.0f} ms" for name, s in report.get("evaluation_seconds", {}).items()
    )
    lines += ["", f"One evaluation: {single}"] if single else []
    lines += ["", report["note"]] if report.get("note") else []
    return "\n".join(lines) + "\n"


def _db(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} dB"


# Where engines come from ------------------------------------------------------------------------------------


@contextmanager
def _engine_set_and_clip(arguments: argparse.Namespace) -> Iterator[tuple[Bench, dict[str, Any]]]:
    from v2v.benchmarks.machine import machine
    from v2v.runtime.media.reader import VideoReader

    engine_set = EngineSet.open(arguments.engines)
    recipe = engine_set.manifest.recipe
    with VideoReader(arguments.clip) as reader:
        frames = [frame for frame, _ in zip(reader.frames(), range(arguments.frames), strict=False)]
    common = Settings(
        prompt=arguments.prompt, steps=arguments.steps, strength=arguments.strength, guidance=arguments.guidance,
        size=(recipe.window.height, recipe.window.width),
    )  # fmt: skip
    here = machine()
    labels = {
        "what": f"{recipe.model.name} on {recipe.backend.name} {recipe.backend.version} ({recipe.options.precision})",
        "device": here.gpu or f"{here.cpu}, {here.cores} cores",
        "driver": here.driver,
        "versions": dict(here.versions),
        "weights": recipe.weights.kind,
        "clip": f"{arguments.clip.name}, {len(frames)} frames, output {recipe.window}; "
        f"full run: {arguments.steps} steps, strength {arguments.strength}, guidance {arguments.guidance}",
    }
    yield Bench(engine_set, open_device(recipe.options.device), frames, common), labels


@contextmanager
def _full_size(arguments: argparse.Namespace) -> Iterator[tuple[Bench, dict[str, Any]]]:
    from v2v.benchmarks.studies.gpu_run import label
    from v2v.benchmarks.torch_engines import engines_of

    narrow = arguments.size == "narrow"
    model = _narrow() if narrow else MODELS["ms-vid2vid-xl"]
    window = window_for(model, (128, 80), 4) if narrow else window_for(model)
    device = "cpu" if narrow else "cuda"
    steps = arguments.steps or model.defaults.steps
    common = Settings(_PROMPT, steps=steps, size=(window.height, window.width))
    with TemporaryDirectory() as folder:

        def make_bench(fp8: bool) -> Bench:
            networks = fused_networks(model, fp8=fp8, device=device)
            precision: Precision = "fp32" if narrow else "fp16"
            engines = engines_of(networks, Path(folder), model, window, precision, reuse=True)
            return Bench(engines, open_device(device), smooth_noise(window), common)

        labels = (_cpu_label() if narrow else label()) | {
            "what": f"fused networks ({model.name}), run by PyTorch" + ("" if narrow else " in CUDA graphs"),
            "weights": "random",
            "clip": f"{window.frames} frames of smooth noise, output {window}; full run: {steps} steps of "
            "dpmpp_2m_sde, strength 0.599, guidance 7.5",
        }
        if arguments.fp8:
            labels["what"] += ", products behind norms in FP8, against a full run without"
            plain = make_bench(fp8=False)
            measure_all(plain, modes()[:1], arguments.repeats, lambda so_far: None)
            bench = make_bench(fp8=True)
            bench.compare_with(plain)
            plain.v2v.close()
        else:
            bench = make_bench(fp8=False)
        yield bench, labels


def _narrow() -> ModelConfig:
    """The full model's structure, as small as FP8 allows."""
    full = MODELS["ms-vid2vid-xl"]
    return replace(
        full,
        name="narrow",
        unet=replace(
            full.unet, width=32, multipliers=(1, 2), blocks=1, head_size=16, context_width=16,
            attention=(True, True),
        ),
        autoencoder=replace(full.autoencoder, width=32),
        text_encoder=TextEncoderConfig(width=16, heads=2, layers=2),
    )  # fmt: skip


def _cpu_label() -> dict[str, Any]:
    from v2v.benchmarks.machine import machine

    here = machine()
    return {"device": f"{here.cpu}, {here.cores} cores", "versions": dict(here.versions)}


def fused_networks(model: ModelConfig, *, fp8: bool, device: str = "cuda") -> dict[str, Any]:
    """The components with random weights, as the Inductor backend would compile them."""
    import torch

    from v2v.benchmarks.studies.gpu_run import full_networks
    from v2v.engine.inductor.fused.autoencoder import FusedDecoder, FusedEncoder
    from v2v.engine.inductor.fused.unet import FusedUNet

    plain = full_networks(model, device)
    networks: dict[str, Any] = {
        "text_encoder": plain["text_encoder"],
        "vae_encoder": FusedEncoder(plain["autoencoder"]),
        "vae_decoder": FusedDecoder(plain["autoencoder"]),
        "unet_full": FusedUNet(plain["unet"], "unet_full"),
        "unet_outer": FusedUNet(plain["unet"], "unet_outer"),
    }
    precision = torch.float16 if device == "cuda" else torch.float32
    networks = {name: network.to(device, precision).eval() for name, network in networks.items()}
    if fp8:
        from v2v.engine.inductor.fused.fp8 import quantise

        networks |= {name: quantise(networks[name]) for name in ("unet_full", "unet_outer")}
    del plain
    if device == "cuda":
        torch.cuda.empty_cache()
    return networks


def smooth_noise(window: Window) -> list[Frame]:
    """Frames of half the window's height and width, blobs of 16 pixels that drift."""
    rows, columns = window.height // 2, window.width // 2
    blobs = np.random.default_rng(0).integers(0, 256, (rows // 16 + 4, columns // 16 + 4, 3), np.uint8)
    picture = blobs.repeat(16, 0).repeat(16, 1)
    return [np.ascontiguousarray(picture[k : k + rows, k : k + columns]) for k in range(window.frames)]


def main() -> None:
    """One of the two commands above."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    clip = commands.add_parser("clip", help="an engine set and a video")
    clip.add_argument("engines", type=Path)
    clip.add_argument("clip", type=Path)
    clip.add_argument("--frames", type=int, default=32)
    clip.add_argument("--prompt", default=_PROMPT)
    clip.add_argument("--steps", type=int, default=30, help="of the full run")
    clip.add_argument("--strength", type=float, default=0.599)
    clip.add_argument("--guidance", type=float, default=7.5)
    full = commands.add_parser("full-size", help="random weights on a GPU")
    full.add_argument("--size", choices=("full", "narrow"), default="full")
    full.add_argument("--steps", type=int, help="of the full run; default: the model's")
    full.add_argument(
        "--fp8",
        action="store_true",
        help="the UNet with FP8 products, as v2v.engine.inductor.fused.fp8 makes it",
    )
    for command in (clip, full):
        command.add_argument("--repeats", type=int, default=1)
        command.add_argument(
            "--only",
            type=lambda text: text.split(","),
            help="modes to measure, as the table names them, --only='--fast,--reuse 2'; the full run always",
        )
        command.add_argument("--name", default="fast-modes")
        command.add_argument("--note", help="what a reader should know of this run")
        command.add_argument(
            "-o", "--output", type=Path, required=True, help="folder for NAME.json and NAME.md"
        )
    arguments = parser.parse_args()
    selected = [
        mode
        for number, mode in enumerate(modes())
        if number == 0 or arguments.only is None or mode.flags in arguments.only
    ]
    arguments.output.mkdir(parents=True, exist_ok=True)
    open_bench = {"clip": _engine_set_and_clip, "full-size": _full_size}[arguments.command]
    with open_bench(arguments) as (bench, labels):
        labels.setdefault("date", time.strftime("%Y-%m-%d", time.gmtime()))
        labels["note"] = arguments.note
        labels["evaluation_seconds"] = bench.evaluation_seconds()

        def write(measured: list[Measured]) -> None:
            report = {**labels, "repeats": arguments.repeats, "modes": [asdict(row) for row in measured]}
            (arguments.output / f"{arguments.name}.json").write_text(json.dumps(report, indent=1) + "\n")
            (arguments.output / f"{arguments.name}.md").write_text(table(report))

        measured = measure_all(bench, selected, arguments.repeats, write)
        print(table({**labels, "modes": [asdict(row) for row in measured]}))


if __name__ == "__main__":
    main()
