"""One evaluation of the UNet, timed without the runtime: plain under autocast, fused, without Hopper's own kernels.

    python -m v2v.benchmarks.studies.unet_evaluation -o evaluation.json       about 70 s on an H100, 30 GB of its memory

All versions see the same weights and the same fresh random input in one process; errors are relative L2 against the
plain network in FP32. Both evaluations of a guided step, which share what no prompt changes, are timed together.
``--compile`` adds ``torch.compile`` with its defaults to the plain network in half precision: 3 minutes more.
The file is rewritten after each step, so that a run that is cut off leaves what it had.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from v2v.core.configs import MODELS, UNetConfig
from v2v.core.samples import relative_error
from v2v.engine.inductor.fused import operations as ops
from v2v.engine.inductor.fused.unet import FusedUNet
from v2v.export.models.unet import UNet

SHAPES = {"full": (32, 90, 160), "narrow": (2, 6, 8)}
NARROW = UNetConfig(
    width=32, multipliers=(1, 2), blocks=1, head_size=16, context_width=64, attention=(True, True)
)
_KERNELS = 45
GUIDED = "fused, both evaluations of a guided step"


def milliseconds(run: Callable[[], Any], device: str, repeats: int) -> float:
    """Median over ``repeats`` runs; the caller has warmed up."""
    times: list[float] = []
    for _ in range(repeats):
        if device == "cuda":
            event: Any = torch.cuda.Event
            start, end = event(enable_timing=True), event(enable_timing=True)
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        else:
            before = time.perf_counter()
            run()
            times.append(1000 * (time.perf_counter() - before))
    return float(statistics.median(times))


def tensor_error(actual: Tensor, expected: Tensor) -> float:
    """:func:`~v2v.core.samples.relative_error` of tensors."""
    return relative_error(actual.float().cpu().numpy(), expected.float().cpu().numpy())


def randomise(network: torch.nn.Module, device: str, seed: int = 11) -> None:
    """Normal weights over the square root of what they sum up, norms 1 + 0.1 normal, biases 0.1 normal."""
    generator = torch.Generator(device=device).manual_seed(seed)
    for name, parameter in network.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator, device=device)
        if parameter.ndim == 1:
            drawn = 0.1 * drawn + float(name.endswith("weight"))
        else:
            drawn /= math.sqrt(parameter[0].numel())
        parameter.copy_(drawn.half())  # every version has exactly these


def environment(device: str) -> dict[str, Any]:
    """What it runs on; asks PyTorch alone, so that a machine that has nothing else will do."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    if device == "cpu":
        return {"device": platform.machine(), "versions": versions}
    import triton  # type: ignore[import-not-found, unused-ignore]

    cudnn: Any = torch.backends.cudnn
    versions |= {"triton": triton.__version__, "cudnn": str(cudnn.version())}
    driver = "unknown"
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return {"device": torch.cuda.get_device_name(), "driver": driver, "versions": versions}


def profile(run: Callable[[], Any]) -> list[dict[str, Any]]:
    """Kernels of one run: name, milliseconds, calls; the longest first."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recording

    with recording(activities=[ProfilerActivity.CUDA]) as recorded:
        run()
        torch.cuda.synchronize()
    rows = [
        {"name": event.key[:120], "milliseconds": event.self_device_time_total / 1000, "calls": event.count}
        for event in recorded.key_averages()
        if event.self_device_time_total > 0
    ]
    return sorted(rows, key=lambda row: -row["milliseconds"])


@dataclass(frozen=True)
class Results:
    """What one process measures; the file is rewritten after each evaluation."""

    path: Path
    facts: dict[str, Any]
    expected: Tensor  # the velocity of the plain network in FP32
    device: str
    repeated: bool  # as often as asked for; else each evaluation is timed once

    def write(self) -> None:
        """Write the file, and print the times so far."""
        self.path.write_text(json.dumps(self.facts, indent=1) + "\n")
        print({name: round(value, 1) for name, value in self.facts["milliseconds"].items()}, flush=True)

    def add(self, name: str, run: Callable[[], Tensor], repeats: int) -> None:
        """Error and time of one evaluation."""
        self.facts["relative error against FP32"][name] = tensor_error(run(), self.expected)
        self.facts["milliseconds"][name] = milliseconds(run, self.device, repeats if self.repeated else 1)
        self.write()

    def add_captured(self, name: str, run: Callable[[], Tensor], peak: str) -> None:
        """Error and time of a CUDA graph of ``run``, and under the name ``peak`` the memory in use so far."""
        graph, captured = capture(run)

        def replay() -> Tensor:
            graph.replay()
            return captured

        self.add(name, replay, 9)
        self.facts[peak] = torch.cuda.max_memory_allocated() / 2**30


@torch.no_grad()
def measure(size: str, device: str, path: Path, *, compiled: bool = False) -> dict[str, Any]:
    """Fill ``path`` with what one process measures."""
    config = MODELS["ms-vid2vid-xl"].unet if size == "full" else NARROW
    half = torch.float16 if device == "cuda" else torch.float32
    latents = torch.randn(1, config.latent_channels, *SHAPES[size], device=device, dtype=half)
    context = torch.randn(1, 77, config.context_width, device=device, dtype=half)
    timestep = torch.tensor([599], device=device)
    with torch.device(device):
        plain = UNet(config).eval()
    randomise(plain, device)
    facts: dict[str, Any] = {
        "what": f"one UNet evaluation, latents {[1, config.latent_channels, *SHAPES[size]]}",
        "method": "median of CUDA events after warm-up; relative L2 against the plain network in FP32",
        "weights": "random",
        "date": datetime.now(timezone.utc).date().isoformat(),
        **environment(device),
        "milliseconds": {},
        "relative error against FP32": {},
    }
    expected = plain(latents.float(), timestep, context.float())
    results = Results(path, facts, expected, device, repeated=size == "full")
    network: Any = plain

    def evaluate() -> Tensor:
        velocity: Tensor = network(latents, timestep, context)
        return velocity

    def guided_step() -> Tensor:
        shared = network.unprompted(latents, timestep)
        velocity: Tensor = network.prompted(shared, timestep, context)
        network.prompted(shared, timestep, -context)
        return velocity

    with torch.autocast(device, torch.float16, enabled=device == "cuda"):
        results.add("reference-style autocast, eager", evaluate, 3)
    fused = FusedUNet(plain).to(half).eval()
    if compiled:
        network = torch.compile(plain.to(half))
        evaluate()
        results.add("torch.compile, half", evaluate, 5)
    network = fused
    del plain
    measure_fused(results, evaluate, guided_step)
    return facts


def measure_fused(
    results: Results, evaluate: Callable[[], Tensor], guided_step: Callable[[], Tensor]
) -> None:
    """The fused network: eagerly, on a GPU in CUDA graphs, with the general kernels, and kernel by kernel."""
    cuda = results.device == "cuda"
    if cuda:
        _forget_peak()
    results.add("fused, eager", evaluate, 7)
    if cuda:
        results.add_captured("fused, CUDA graph", evaluate, "peak GiB")
        _forget_peak()
        results.add_captured(GUIDED, guided_step, "peak GiB of a guided step")
        torch.cuda.empty_cache()
    else:
        results.add(GUIDED, guided_step, 1)
    with ops.general_kernels():
        results.add("fused, general kernels, eager", evaluate, 5)
    results.add("fused, eager, again", evaluate, 5)
    if cuda:
        kernels = profile(evaluate)
        results.facts["kernel milliseconds"] = sum(row["milliseconds"] for row in kernels)
        results.facts["kernels"] = kernels[:_KERNELS]
        results.write()


def _forget_peak() -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def capture(run: Callable[[], Tensor]) -> tuple[Any, Tensor]:
    """``run`` as a CUDA graph, and the tensor that holds its result."""
    stream_type: Any = torch.cuda.Stream
    stream = stream_type()
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        result = run()
    return graph, result


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m v2v.benchmarks.studies.unet_evaluation", description=__doc__
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument(
        "--size", choices=SHAPES, default="full", help="narrow: a rehearsal, in FP32 on a CPU"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--compile", action="store_true", help="time torch.compile too")
    options = parser.parse_args(arguments)
    measure(options.size, options.device, options.output, compiled=options.compile)


if __name__ == "__main__":
    main()
