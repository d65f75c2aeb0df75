"""FP8 against FP16: whole UNet evaluations with more and more products in FP8, and where their time goes.

    python -m v2v.benchmarks.studies.fp8 -o fp8.json       about 80 s on an H100, 30 GB of its memory

One process, the same weights and the same fresh random input; errors are relative L2 against the plain network in FP32.
"Spread" weights are less even than random ones: heavy tails, norms that differ by factors, residual branches that end
at 0.3 of the size (published code starts them at zero). The file is rewritten after each step, so that a run that is
cut off leaves what it had.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from v2v.benchmarks.studies.unet_evaluation import (
    NARROW,
    SHAPES,
    environment,
    milliseconds,
    profile,
    randomise,
    tensor_error,
)
from v2v.core.configs import MODELS
from v2v.engine.inductor.fused import fp8
from v2v.engine.inductor.fused.unet import FusedUNet
from v2v.export.models.unet import UNet

_BRANCH_ENDS = ("out_layers.3.weight", "conv4.3.weight", "proj_out.weight")
_STAGES = {"SpatialStage": "norm, 3x3 convolution", "TemporalStage": "norm, temporal convolution"}
_STAGES |= {"FeedForward": "norm, feed-forward network", "Linear": "product behind a norm"}


def spread(network: nn.Module, device: str, seed: int = 5) -> None:
    """Student's t with 4 degrees of freedom over the square root of what is summed up, log-normal norms."""
    generator = torch.Generator(device=device).manual_seed(seed)
    for name, parameter in network.named_parameters():
        drawn, *others = (torch.randn(parameter.shape, generator=generator, device=device) for _ in range(5))
        if parameter.ndim > 1:
            tails = sum((other**2 for other in others), torch.zeros(())) / 4
            drawn = drawn / tails.sqrt() / math.sqrt(2 * parameter[0].numel())
        else:
            drawn = (0.5 * drawn).exp() if name.endswith("weight") else 0.3 * drawn
        if name.endswith(_BRANCH_ENDS):
            drawn *= 0.3
        parameter.copy_(drawn.half())  # every version has exactly these


def stage_times(network: nn.Module, run: Callable[[], Any], device: str) -> dict[str, float]:
    """Milliseconds of one run inside the stages that FP8 changes, by kind and width of the input."""
    marks: list[tuple[str, Any, Any]] = []
    open_marks: list[Any] = []

    def now() -> Any:
        if device != "cuda":
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call, unused-ignore]
        event.record()
        return event

    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        open_marks.append(now())

    def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        first = inputs[0] if isinstance(inputs[0], list) else [inputs[0]]
        width = sum(part.shape[-1] for part in first)
        marks.append((f"{_STAGES[type(module).__name__]}, {width}", open_marks.pop(), now()))

    timed = [module for module in network.modules() if type(module).__name__ in _STAGES]
    inside = {id(child) for module in timed for child in module.modules() if child is not module}
    outer = [module for module in timed if id(module) not in inside]
    handles = [module.register_forward_pre_hook(enter) for module in outer]
    handles += [module.register_forward_hook(leave) for module in outer]
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    for handle in handles:
        handle.remove()
    milliseconds_of_stage: dict[str, float] = defaultdict(float)
    for kind, start, end in marks:
        milliseconds_of_stage[kind] += start.elapsed_time(end) if device == "cuda" else 1000 * (end - start)
    return dict(sorted(milliseconds_of_stage.items()))


@torch.inference_mode()
def measure(
    size: str, device: str, path: Path, kinds: tuple[str, ...] = ("random", "spread")
) -> dict[str, Any]:
    """Fill ``path`` with what one process measures."""
    config = MODELS["ms-vid2vid-xl"].unet if size == "full" else NARROW
    half = torch.float16 if device == "cuda" else torch.float32
    results: dict[str, Any] = {
        "what": f"one UNet evaluation, latents {[1, config.latent_channels, *SHAPES[size]]}, run by PyTorch eagerly",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": environment(device),
        "evaluation": {},
        "stages, milliseconds": {},
    }

    def write() -> None:
        path.write_text(json.dumps(results, indent=1) + "\n")

    latents = torch.randn(1, config.latent_channels, *SHAPES[size], device=device, dtype=half)
    context = torch.randn(1, 77, config.context_width, device=device, dtype=half)
    timestep = torch.tensor([599], device=device)
    with torch.device(device):
        plain = UNet(config).eval()
    versions = {"FP16": (), **{f"FP8: {', '.join(fp8.PARTS[:n])}": fp8.PARTS[:n] for n in range(1, 5)}}
    for weights in kinds:
        plain.to(device)
        (spread if weights == "spread" else randomise)(plain, device)
        expected = plain(latents.float(), timestep, context.float())
        fused = FusedUNet(plain).to(half).eval()
        plain.cpu()
        for name, parts in versions.items():
            network = fp8.quantise(copy.deepcopy(fused), parts)

            def evaluate(network: FusedUNet = network) -> Tensor:
                velocity: Tensor = network(latents, timestep, context)
                return velocity

            record = results["evaluation"].setdefault(name, {})
            record[f"error, {weights} weights"] = tensor_error(evaluate(), expected)
            write()
            if weights == kinds[0]:
                record["milliseconds"] = milliseconds(evaluate, device, 5 if size == "full" else 1)
                results["stages, milliseconds"][name] = stage_times(network, evaluate, device)
                if device == "cuda" and parts == fp8.PARTS:
                    results["kernels"] = profile(evaluate)[:40]
            write()
            print(name, record, flush=True)
            del network, evaluate
        del fused, expected
    return results


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("fp8.json"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=tuple(SHAPES), default="full")
    options = parser.parse_args()
    measure(options.size, options.device, options.output)


if __name__ == "__main__":
    main()
