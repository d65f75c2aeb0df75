"""Proofs of a whole run on a GPU; where no engine set is named, PyTorch's eager networks stand in for engines.

    python -m v2v.benchmarks.studies.gpu_run reference clip.mp4 -o reference.npz     on any machine, with an engine set
    python -m v2v.benchmarks.studies.gpu_run compare reference.npz -o compare.json   on a GPU: the same run there
    python -m v2v.benchmarks.studies.gpu_run trace [SET] -o trace.json               on a GPU: gaps and allocations
    python -m v2v.benchmarks.studies.gpu_run backends [SET ...] -o backends.json     on a GPU: real engines

``compare`` answers whether a seed gives the same video on CUDA as on a CPU; ``trace`` whether the loop at full size
keeps the GPU busy and leaves memory alone. Neither measures how fast a backend is.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import time
from dataclasses import replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import msgspec
import numpy as np
import numpy.typing as npt

from v2v.core.components import Precision, window_for
from v2v.core.configs import MODELS, ModelConfig
from v2v.device import Device
from v2v.engine.backend import BuildOptions
from v2v.engine.build import build_engine_set
from v2v.engine.store import EngineSet
from v2v.export import packaged
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.diffusion.progress import Progress
from v2v.runtime.diffusion.settings import Settings

Frames = npt.NDArray[np.uint8]

_SETTINGS = Settings(prompt="a white rabbit in a meadow", seed=7)
_GUIDED: dict[str, Any] = {"steps": 2, "guidance": 3.0, "guidance_rescale": 0.2, "strength": 0.2}


def small_networks(model: ModelConfig, precision: Precision) -> dict[str, Any]:
    """The networks with the weights of ``random:0``, which are the same on every machine."""
    import torch

    from v2v.export.weights import load_weights, networks_of

    weights = load_weights("random:0", model)
    dtype = torch.float16 if precision == "fp16" else torch.float32
    return {name: weights.load(name, dtype).to("cuda") for name in networks_of(model)}


def full_networks(model: ModelConfig, device: str = "cuda") -> dict[str, Any]:
    """The networks with weights like those of ``random:0`` but drawn on the device: at once, in half, on a GPU."""
    import torch

    from v2v.export.weights import make_network, networks_of

    torch.manual_seed(0)
    networks: dict[str, Any] = {}
    for name in networks_of(model):
        network = make_network(name, model).requires_grad_(False).eval()
        network = (network.half() if device == "cuda" else network).to_empty(device=device)
        for key, value in network.state_dict().items():
            if value.dim() > 1:
                value.normal_(0, value[0].numel() ** -0.5)
            else:
                value.normal_(1.0 if key.endswith("weight") else 0.0, 0.1)
        networks[name] = network
    return networks


def reference(arguments: argparse.Namespace) -> None:
    """Run an engine set of the small model on the CPU and keep its input and output."""
    import av

    frames = []
    with av.open(str(arguments.clip)) as container:
        for frame in container.decode(video=0):
            width, height = map(int, arguments.size.split("x"))
            frames.append(frame.reformat(width=width, height=height, format="rgb24").to_ndarray())
            if len(frames) == arguments.frames:
                break
    engine_set = EngineSet.open(arguments.engines)
    out = np.stack(list(VideoToVideo.load(engine_set, "cpu")(frames, _SETTINGS)))
    window = engine_set.manifest.recipe.window
    np.savez_compressed(
        arguments.output,
        source=np.stack(frames),
        enhanced=out,
        window=(window.frames, window.height, window.width),
        model=json.dumps(engine_set.manifest.recipe.model.to_json()),
    )
    print(f"{len(frames)} frames, {out.shape[2]}x{out.shape[1]}, into {arguments.output}")


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Repeat references on the GPU, in both precisions, captured and eagerly."""
    import torch

    from v2v.benchmarks.torch_engines import engines_of
    from v2v.device.cuda import CudaDevice

    torch.backends.cudnn.allow_tf32 = False
    rows = []
    precisions: tuple[Precision, ...] = ("fp32", "fp16")
    for precision in precisions:
        for path in arguments.reference:
            reference_run = np.load(path)
            model = msgspec.json.decode(str(reference_run["model"]), type=ModelConfig)
            networks = small_networks(model, precision)
            frames, height, width = map(int, reference_run["window"])
            window = window_for(model, (width, height), frames)
            outputs: dict[str, Frames] = {}
            refused: str | None = None
            for how in ("captured", "again", "eager"):
                with TemporaryDirectory() as folder:
                    engines = engines_of(networks, Path(folder), model, window, precision)
                    device = CudaDevice()
                    if how == "eager":
                        device.capture = lambda work: work  # type: ignore[method-assign]
                    v2v = VideoToVideo(engines, cast(Device, device))
                    outputs[how] = np.stack(list(v2v(list(reference_run["source"]), _SETTINGS)))
                    refused = refused or device.capture_refused
            cuda, cpu = outputs["captured"], reference_run["enhanced"]
            rows.append(
                {
                    "frames": list(cpu.shape),
                    "window": str(window),
                    "precision": precision,
                    "psnr_against_cpu_db": round(psnr(cuda, cpu), 2),
                    "largest_difference_of_256": int(np.abs(cuda.astype(int) - cpu).max()),
                    "same_bytes_twice": bool((cuda == outputs["again"]).all()),
                    "captured_equals_eager": bool((cuda == outputs["eager"]).all()),
                    "why_not_captured": refused,
                    "contrast_of_cpu_output": round(float(cpu.std()), 2),
                }
            )
    return {
        "weights": "random",
        "what": "the small model (random weights) on CUDA against ONNX Runtime on a CPU, same seed; one window is "
        "captured as a graph, several are not",
        "runs": rows,
    }


def backends(arguments: argparse.Namespace) -> dict[str, Any]:
    """The small model with its trained weights through engine sets on the GPU, and on the CPU of the same machine."""
    import torch  # noqa: F401  # loads the CUDA libraries that ONNX Runtime needs

    model = MODELS["small"]
    window = window_for(model)
    cases = {
        "one window, the model's defaults": (window.frames, (180, 320), {}),
        "one window, guided": (window.frames, (180, 320), _GUIDED),
        "several windows, guided": (window.frames + 4, (180, 400), _GUIDED),
    }
    rows = []
    with TemporaryDirectory() as folder:

        def trained(device: str) -> EngineSet:
            return build_engine_set(
                model,
                weights=str(packaged.FOLDER / f"{model.name}.safetensors"),
                window=window,
                backend_name="onnxruntime",
                options=BuildOptions(device=device),
                output=Path(folder) / device,
            ).engine_set

        cpu = VideoToVideo.load(trained("cpu"), "cpu")
        sets = [EngineSet.open(path) for path in arguments.sets] or [trained("cuda")]
        for case, (count, size, changes) in cases.items():
            frames = moving_picture(count, *size)
            settings = replace(_SETTINGS, **changes)
            expected = enhanced(cpu, frames, settings)
            rows += [run_on_gpu(engine_set, case, frames, settings, expected) for engine_set in sets]
    return {
        "weights": "trained",
        "what": "the small model with its trained weights on CUDA through each backend, against ONNX Runtime on a CPU",
        "runs": rows,
    }


def run_on_gpu(
    engine_set: EngineSet, case: str, frames: list[Frames], settings: Settings, expected: Frames
) -> dict[str, Any]:
    """Run ``frames`` through an engine set on the GPU three times and compare with ``expected``, the CPU's result."""
    from v2v.device.cuda import CudaDevice

    device = CudaDevice()
    v2v = VideoToVideo(engine_set, cast(Device, device))
    outputs = [enhanced(v2v, frames, settings) for _ in range(2)]
    began = time.perf_counter()
    list(v2v(frames, settings))
    row = {
        "backend": engine_set.manifest.recipe.backend.name,
        "precision": engine_set.manifest.recipe.options.precision,
        "case": case,
        "frames": list(expected.shape),
        "psnr_against_cpu_db": round(psnr(outputs[0], expected), 2),
        "psnr_of_the_source_enlarged_db": round(psnr(enlarged(frames, expected), expected), 2),
        "same_bytes_twice": bool((outputs[0] == outputs[1]).all()),
        "why_not_captured": device.capture_refused,
        "seconds": round(time.perf_counter() - began, 3),
    }
    v2v.close()
    return row


def enhanced(v2v: VideoToVideo, frames: list[Frames], settings: Settings) -> Frames:
    """All frames of a run."""
    return np.stack([frame.astype(np.uint8, copy=False) for frame in v2v(frames, settings)])


def moving_picture(count: int, height: int, width: int) -> list[Frames]:
    """Frames with edges, gradients and texture that move; the same everywhere."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    texture = np.random.default_rng(3).standard_normal((height, width, 3)).astype(np.float32)
    frames = []
    for number in range(count):
        waves = np.stack([np.sin(rows / 9 + columns / (7 + c) + number / 3) for c in range(3)], axis=2)
        disc = (rows - height / 2) ** 2 + (columns - width / 3 - 2 * number) ** 2 < (height / 4) ** 2
        levels = 120 + 60 * waves + 40 * disc[..., None] + 6 * np.roll(texture, number, axis=1)
        frames.append(np.clip(levels, 0, 255).astype(np.uint8))
    return frames


def enlarged(frames: list[Frames], like: Frames) -> Frames:
    """The frames at the size of ``like`` by repeating pixels: how far from doing nothing a result is."""
    stacked = np.stack(frames)
    for axis in (1, 2):
        stacked = stacked.repeat(like.shape[axis] // stacked.shape[axis], axis=axis)
    return stacked


def psnr(actual: npt.NDArray[Any], expected: npt.NDArray[Any], peak: float = 255.0) -> float:
    """Peak signal-to-noise ratio in dB, of bytes unless another ``peak`` is given; infinite if they are equal."""
    error = float(np.mean((actual.astype(np.float64) - expected) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(peak**2 / error))


def trace(arguments: argparse.Namespace) -> dict[str, Any]:
    """A full-size run under PyTorch's profiler: what the GPU did, kernel by kernel."""
    from v2v.benchmarks.torch_engines import engines_of

    model = MODELS["ms-vid2vid-xl"]
    rng = np.random.default_rng(0)
    settings = Settings(prompt="a white rabbit in a meadow", steps=arguments.steps, seed=7)
    runs = []
    with TemporaryDirectory() as folder:
        engines: Any
        if arguments.engines:
            engines = EngineSet.open(arguments.engines)
            networks = f"engines of {engines.manifest.recipe.backend.name}"
        else:
            engines = engines_of(full_networks(model), Path(folder), model, window_for(model), "fp16")
            networks = "networks run by PyTorch without compiling"
        for count in arguments.frames or [engines.window.frames]:
            frames = list(rng.integers(0, 256, (count, 360, 640, 3), np.uint8))
            runs.append(traced_run(engines, frames, settings))
    return {
        "weights": "random",
        "what": f"gaps and allocations of full-size runs, {networks}; what each window costs is a captured graph",
        "runs": runs,
    }


def traced_run(engines: Any, frames: list[Frames], settings: Settings) -> dict[str, Any]:
    """One run under the profiler: its steps (see :func:`gaps`), and memory after each."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from v2v.device.cuda import CudaDevice

    memory: list[dict[str, int]] = []
    device = CudaDevice()

    def note_memory(progress: Progress) -> None:
        if progress.stage == "denoise" and progress.step:
            memory.append(
                {
                    "evaluation": progress.step,
                    "runtime_allocations": device.allocations,
                    "driver_allocations": torch.cuda.memory_stats()["num_device_alloc"],
                    "free_bytes": torch.cuda.mem_get_info()[0],
                }
            )

    v2v = VideoToVideo(engines, cast(Device, device))
    v2v.load_all()  # loading is not what is traced
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        out = np.stack(list(v2v(frames, settings, progress=note_memory)))
        device.synchronize()
    work = sorted(
        (event.start_ns(), event.start_ns() + event.duration_ns(), event.name())
        for event in profiler.profiler.kineto_results.events()
        if event.device_type().name == "CUDA"
    )
    v2v.close()
    return {
        "frames": list(out.shape),
        "windows": "one" if len(frames) <= engines.window.frames else "several",
        "contrast_of_output": round(float(out.std()), 2),
        "captured": device.capture_refused is None,
        "why_not_captured": device.capture_refused,
        "steps": gaps(work),
        "memory_after_each_step": memory,
    }


def step_ends(work: list[tuple[int, int, str]]) -> list[int]:
    """When each step of the loop was over, in nanoseconds.

    It ends with the look for NaN in what the windows add up to; the solver's combinations follow, as they follow the
    look at the encoder's latents before all steps, which is left out.
    """
    kernels = [(end, name) for _, end, name in work if not name.startswith(("Mem", "mem"))]
    looks = [
        end
        for (end, name), (_, after) in pairwise(kernels)
        if name.startswith("find_nonfinite_") and after.startswith("combine_")
    ]
    return looks[1:]


def gaps(work: list[tuple[int, int, str]]) -> list[dict[str, Any]]:
    """For each step after the first: how long, and the longest time in which the GPU did nothing.

    Gaps inside a step lie between its first kernel and its last; what the GPU waits before its first kernel, copies
    aside, is told apart. ``work`` is (start, end, name) in nanoseconds, ordered.
    """
    ends = step_ends(work)
    steps = []
    for number, (begin, end) in enumerate(pairwise(ends), start=2):
        inside = [piece for piece in work if begin < piece[1] <= end]
        first = next(index for index, (*_, name) in enumerate(inside) if not name.startswith(("Mem", "mem")))
        before = idle_times([(begin, begin, "the step before"), *inside[: first + 1]])
        within = idle_times(inside[first:])
        longest = max(within, default=(0, "", ""))
        steps.append(
            {
                "step": number,
                "milliseconds": round((end - begin) / 1e6, 2),
                "kernels_and_copies": len(inside),
                "longest_gap_microseconds": round(longest[0] / 1e3, 2),
                "between": [longest[1][:60], longest[2][:60]],
                "idle_before_its_first_kernel_microseconds": round(sum(gap for gap, *_ in before) / 1e3, 2),
                "idle_share": round(sum(gap for gap, *_ in [*before, *within]) / (end - begin), 5),
            }
        )
    return steps


def idle_times(work: list[tuple[int, int, str]]) -> list[tuple[int, str, str]]:
    """Times in which nothing of ``work`` ran, in nanoseconds, each with what ran before and after."""
    idle = []
    _, reached, before = work[0]
    for start, stop, name in work[1:]:
        if start > reached:
            idle.append((start - reached, before, name))
        if stop > reached:
            reached, before = stop, name
    return idle


def label() -> dict[str, Any]:
    """Where and when figures were taken."""
    import torch

    from v2v.benchmarks.studies.gpu_device import driver_version

    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(),
        "driver": driver_version(),
        "versions": {name: version(name) for name in ("torch", "cuda-core", "cuda-bindings", "numpy")}
        | {"python": platform.python_version(), "cudnn": torch.backends.cudnn.version()},  # type: ignore[no-untyped-call]
    }


def main() -> None:
    """One of the three commands above."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    reference_parser = commands.add_parser("reference", help="run an engine set on the CPU")
    reference_parser.add_argument("clip", type=Path)
    reference_parser.add_argument(
        "--engines", type=Path, required=True, help="engine set of the small model, random:0"
    )
    reference_parser.add_argument("--frames", type=int, default=8)
    reference_parser.add_argument("--size", default="128x72", help="to which the clip is scaled first")
    compare_parser = commands.add_parser("compare", help="repeat references on the GPU")
    compare_parser.add_argument("reference", type=Path, nargs="+")
    trace_parser = commands.add_parser("trace", help="watch a full-size run on the GPU")
    trace_parser.add_argument("engines", type=Path, nargs="?", help="engine set of the full model")
    trace_parser.add_argument(
        "--frames", type=int, nargs="+", help="one run each; more than the window's make several windows"
    )
    trace_parser.add_argument("--steps", type=int, default=6)
    backends_parser = commands.add_parser(
        "backends", help="run engine sets of the small model on the GPU and on the CPU"
    )
    backends_parser.add_argument(
        "sets", type=Path, nargs="*", help="built for CUDA; without any, ONNX Runtime's is built"
    )
    for command in commands.choices.values():
        command.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.command == "reference":
        reference(arguments)
        return
    report = {"compare": compare, "trace": trace, "backends": backends}[arguments.command](
        arguments
    ) | label()
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
