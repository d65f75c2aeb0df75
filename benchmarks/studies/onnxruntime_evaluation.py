"""One evaluation of the UNet through ONNX Runtime's CUDA provider, timed without the runtime.

    python -m v2v.benchmarks.studies.onnxruntime_evaluation -o onnxruntime.json

It takes about 3 minutes on an H100 with 16 cores. Most of that is the export; the GPU works for about 30 s. Each
``--setting KEY=VALUE`` is another session, with that option of the provider changed: ``sdpa_kernel=1`` takes Flash
instead of cuDNN for attention, ``fuse_conv_bias=1`` lets cuDNN add biases. ``--as-exported`` also runs the graph as
exported (43 GiB). Errors are against the network in FP32. The file is rewritten after each step, so that a run that is
cut off leaves what it had.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from unittest.mock import patch

import onnx_ir as ir
import torch
from torch import Tensor

from v2v.benchmarks.machine import machine
from v2v.benchmarks.studies.unet_evaluation import NARROW, milliseconds, profile, tensor_error
from v2v.core.components import Component, Precision, Window, components
from v2v.core.configs import MODELS, ModelConfig, TextEncoderConfig
from v2v.core.samples import sample_inputs
from v2v.engine.backend import BuildOptions, Source
from v2v.engine.onnxruntime import backend as onnxruntime
from v2v.export.graphs import export_component, plain_network
from v2v.export.weights import Weights, load_weights

_FULL = MODELS["ms-vid2vid-xl"]
_NARROW = replace(
    _FULL,
    name="narrow",
    unet=NARROW,
    text_encoder=TextEncoderConfig(width=NARROW.context_width, heads=2, layers=1),
)
SIZES = {"full": (_FULL, Window(32, 720, 1280)), "narrow": (_NARROW, Window(2, 80, 128, levels=1))}
_KERNELS = 60


@dataclass
class Array:
    """A tensor as the runtime's device arrays are."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> str:
        return str(self.tensor.dtype).removeprefix("torch.")

    @property
    def pointer(self) -> int:
        return self.tensor.data_ptr()


class Evaluation:
    """The files of an engine, with input for it and what should come out."""

    def __init__(
        self, model: ModelConfig, window: Window, device: str, folder: Path, *, rewritten: bool
    ) -> None:
        precision: Precision = "fp16" if device == "cuda" else "fp32"
        self.device = device
        self.component: Component = components(model, window, precision)["unet"]
        weights: Weights = load_weights("random:0", model)
        started = time.monotonic()
        graph = export_component("unet", model, weights, window, precision, folder)
        (folder / "set").mkdir()
        options = BuildOptions(precision=precision, device=device if rewritten else "cpu")
        backend = onnxruntime.OnnxRuntimeBackend()
        source = Source(
            self.component,
            model,
            window,
            precision,
            lambda: graph,
            lambda: plain_network("unet", model, weights),
        )
        self.files = backend.build(source, folder / "set", options, lambda *_: None).files
        self.build_seconds = time.monotonic() - started
        samples = sample_inputs(self.component, model.vocabulary)
        self.inputs = {name: torch.from_numpy(value).to(device) for name, value in samples.items()}
        (output,) = self.component.outputs
        kind = getattr(torch, output.dtype)
        self.outputs = {output.name: torch.full(output.shape, torch.nan, dtype=kind, device=device)}
        self.expected = self._reference(model, weights)

    def _reference(self, model: ModelConfig, weights: Weights) -> Tensor:
        """The network in FP32 with the weights that the graph holds."""
        network = plain_network("unet", model, weights)
        if self.device == "cuda":
            network.half()
        network = network.float().to(self.device).eval()
        with torch.inference_mode():
            output: Tensor = network(
                *(value.float() if value.is_floating_point() else value for value in self.inputs.values())
            )
            return output.cpu()

    def operations(self) -> dict[str, int]:
        """How many nodes of each kind the graph has."""
        return dict(Counter(node.op_type for node in ir.load(self.files[0]).graph).most_common())

    def measure(self, settings: dict[str, str], repeats: int) -> dict[str, Any]:
        """Load, run, time; on a GPU memory and kernels too."""
        cuda = self.device == "cuda"
        for output in self.outputs.values():
            output.fill_(torch.nan)
        free = torch.cuda.mem_get_info()[0] if cuda else 0
        cuda_settings = {**onnxruntime.CUDA_SETTINGS, **settings}
        with patch.object(onnxruntime, "CUDA_SETTINGS", cuda_settings):
            engine = onnxruntime.OnnxRuntimeEngine(self.component, self.files[0], self.device)
            stream: Any = torch.cuda.Stream() if cuda else None  # type: ignore[no-untyped-call]
            sides = [
                {name: Array(tensor) if cuda else tensor.numpy() for name, tensor in side.items()}
                for side in (self.inputs, self.outputs)
            ]

            def run() -> None:
                engine.run(sides[0], sides[1], stream.cuda_stream if stream else 0)

            started = time.monotonic()
            with torch.cuda.stream(stream):  # does nothing where it is None
                run()
                if cuda:
                    torch.cuda.synchronize()
                results: dict[str, Any] = {"settings": settings, "first run s": time.monotonic() - started}
                (output,) = self.outputs.values()
                results["relative error against FP32"] = tensor_error(output.cpu(), self.expected)
                run()
                results["milliseconds"] = milliseconds(run, self.device, repeats)
                if cuda:
                    results["GiB in use"] = (free - torch.cuda.mem_get_info()[0]) / 2**30
                    kernels = profile(run)
                    results["kernel milliseconds"] = sum(row["milliseconds"] for row in kernels)
                    results["kernels"] = kernels[:_KERNELS]
            engine.close()
        return results


def evaluate(size: str, device: str, path: Path, settings: list[str], *, as_exported: bool) -> dict[str, Any]:
    """Fill ``path`` with what one process measures."""
    model, window = SIZES[size]
    results: dict[str, Any] = {
        "what": f"one UNet evaluation through ONNX Runtime, {window}",
        "method": "median of CUDA events after warm-up; relative L2 against the network in FP32",
        "weights": "random",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": asdict(machine()),
        "onnxruntime": onnxruntime.OnnxRuntimeBackend().version,
        "versions": {},
    }

    def write() -> None:
        path.write_text(json.dumps(results, indent=1) + "\n")

    torch.backends.cudnn.allow_tf32 = False  # the reference is FP32
    for name, rewritten in (("rewritten", True), ("as exported", False)):
        if not rewritten and not as_exported:
            continue
        with tempfile.TemporaryDirectory() as folder:
            evaluation = Evaluation(model, window, device, Path(folder), rewritten=rewritten)
            for text in ["", *settings] if rewritten else [""]:
                key, _, value = text.partition("=")
                version = f"{name}, {text}" if text else name
                results["versions"][version] = {
                    "build s": evaluation.build_seconds,
                    "operations": evaluation.operations(),
                    **evaluation.measure({key: value} if text else {}, 5 if size == "full" else 1),
                }
                write()
                row = results["versions"][version]
                print(
                    f"{version}: {row['milliseconds']:.1f} ms, error {row['relative error against FP32']:.1e}"
                )
    return results


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m v2v.benchmarks.studies.onnxruntime_evaluation", description=__doc__
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--size", choices=SIZES, default="full", help="narrow: a rehearsal, in FP32 on a CPU")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--setting", action="append", default=[], help="option of the provider, KEY=VALUE")
    parser.add_argument("--as-exported", action="store_true", help="also the graph as exported")
    options = parser.parse_args(arguments)
    evaluate(options.size, options.device, options.output, options.setting, as_exported=options.as_exported)


if __name__ == "__main__":
    main()
