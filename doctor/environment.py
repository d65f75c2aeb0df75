"""What this machine is, and what of v2v is installed on it."""

from __future__ import annotations

import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from v2v.benchmarks.machine import ceilings, machine
from v2v.core.errors import EngineError
from v2v.core.version import __version__
from v2v.device.gpus import find_gpu
from v2v.doctor.checks import Facts, Skipped, Step
from v2v.engine.backend import BuildOptions, backend
from v2v.engine.store import engines_root

_MAPS = Path("/proc/self/maps")
_OF_INTEREST = re.compile(
    r"lib(cuda|nvinfer|tensorrt|nvonnxparser|nvrtc|cudnn|cublas|onnxruntime|torch|nvidia|triton)"
)


def environment(step: Step) -> Facts:
    """System, processor, GPU, driver, memory, disk, versions, and how fast the processor multiplies matrices."""
    step("looking at the machine")
    facts: dict[str, Any] = {"v2v": __version__, **asdict(machine())}
    root = engines_root()
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    facts["engines"] = str(root)
    facts["disk_free_bytes"] = shutil.disk_usage(existing).free
    step("looking at the GPU")
    try:
        gpu = find_gpu()
    except EngineError as error:
        facts["no_gpu"] = str(error)
    else:
        facts |= {
            "gpu": gpu.name,
            "gpu_memory_bytes": gpu.memory,
            "compute_capability": ".".join(map(str, gpu.capability)),
            "cuda_of_driver": gpu.driver,
        }
    step("measuring the processor")
    product = ceilings("cpu").product_flops_per_second
    facts["cpu_flops"] = 0.0 if product is None else product.median
    return facts


def library(name: str, step: Step) -> Facts | Skipped:
    """Whether the backend ``name`` is installed, which version, where it runs, and the libraries that it loads."""
    step("importing")
    try:
        found = backend(name)
    except EngineError as error:
        return Skipped(str(error))
    facts: dict[str, Any] = {"version": found.version, "devices": list(found.devices)}
    if not found.devices:  # TensorRT for RTX compiles for a list of capabilities, whatever is here
        described = found.facts(BuildOptions(precision="fp16", device="cuda"))
        facts["compiles_only"] = "capabilities" in described
    facts["libraries"] = loaded_libraries()
    return facts


def loaded_libraries() -> list[str]:
    """Files of NVIDIA's and of the compilers' libraries that this process has loaded; empty where nothing tells."""
    try:
        lines = _MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    paths = {line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6}
    return sorted(path for path in paths if _OF_INTEREST.match(Path(path).name))
