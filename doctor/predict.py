"""What a full-size engine set will take: from what its patterns took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from v2v.core.components import Precision, component_names, window_for
from v2v.core.configs import ModelConfig
from v2v.doctor.checks import Facts, Skipped, Step
from v2v.doctor.patterns import Pattern

_BYTES: Mapping[Precision, int] = {"fp32": 4, "fp16": 2}


@dataclass(frozen=True)
class Measured:
    """A pattern, as it was scaled, and the facts of its export and of one backend's engine."""

    pattern: Pattern
    exported: Facts
    facts: Facts


def predict(
    model: ModelConfig, precision: Precision, measured: list[Measured], step: Step
) -> Facts | Skipped:
    """Seconds of building, memory and seconds of a clip of one window, for engines of ``model``.

    The time of a level is its pattern's, by the work of both; the largest scratch is that of the pattern with the
    largest maps, by frames; weights are counted. Everything is an estimate.
    """
    from v2v.export.graphs import work, work_of_blocks
    from v2v.export.weights import make_network, networks_of

    step("counting work and weights")
    window = window_for(model)
    weight_bytes = sum(
        value.numel() * _BYTES[precision]
        for name in networks_of(model)
        for value in make_network(name, model).state_dict().values()
    )
    facts: dict[str, Any] = {"model": model.name, "window": str(window), "weight_bytes": weight_bytes}
    exported_bytes = sum(each.exported["weight_bytes"] for each in measured)
    export_seconds = sum(each.exported["export_seconds"] for each in measured)
    compile_seconds = sum(each.facts["compile_seconds"] for each in measured)
    facts["build_seconds"] = compile_seconds + export_seconds * weight_bytes / exported_bytes
    facts["memory_bytes"] = weight_bytes + max(_scratch(each) for each in measured)
    if not all("seconds" in each.facts for each in measured):
        return facts
    by_level = {each.pattern.level: each for each in measured if each.pattern.level is not None}
    evaluation = sum(
        work_done * _seconds_per_work(by_level[level])
        for level, work_done in work_of_levels(model, work_of_blocks(model, window)).items()
    )
    vae = sum(
        work(each.pattern.component, model, window) * _seconds_per_work(each)
        for each in measured
        if each.pattern.component.startswith("vae")
    )
    defaults = model.defaults
    evaluations = defaults.steps * (1 if defaults.guidance == 1 else 2)
    facts["evaluation_seconds"] = evaluation
    facts["clip_seconds"] = evaluations * evaluation + window.frames * vae
    return facts


def missing(model: ModelConfig, measured: list[Measured]) -> list[str]:
    """What a prediction lacks: the levels of the UNet and the parts of the VAE that were not measured."""
    levels = {each.pattern.level for each in measured}
    lacking = [f"UNet level {n + 1}" for n in range(len(model.unet.multipliers)) if n not in levels]
    measured_components = {each.pattern.component for each in measured}
    return lacking + [
        name for name in component_names(model) if name.startswith("vae") and name not in measured_components
    ]


def work_of_levels(model: ModelConfig, blocks: Mapping[str, int]) -> dict[int, int]:
    """The work of a UNet's blocks, level by level; a change of levels counts to the one that it leaves."""
    unet = model.unet
    depth = len(unet.multipliers)
    down = [0, *[level for level in range(depth) for _ in range(unet.blocks + (level < depth - 1))]]
    up = [level for level in reversed(range(depth)) for _ in range(unet.blocks + 1)]
    work = dict.fromkeys(range(depth), 0)
    for place, amount in blocks.items():
        kind, _, number = place.partition(".")
        level = {"input_blocks": down, "output_blocks": up}.get(kind, [])
        work[level[int(number)] if level else (0 if kind == "out" else depth - 1)] += amount
    return work


def _seconds_per_work(measured: Measured) -> float:
    return float(measured.facts["seconds"] / measured.exported["work"])


def _scratch(measured: Measured) -> float:
    """Bytes of activations of the pattern at full size."""
    if (scratch := measured.facts.get("scratch_bytes")) is None:
        scratch = max(measured.facts.get("gpu_bytes", 0) - measured.exported["weight_bytes"], 0)
    full, (frames, height, width) = measured.pattern.window, measured.exported["window"]
    pixels = full.height * full.width / (height * width)
    return float(scratch * pixels * (full.frames / frames if measured.pattern.component == "unet" else 1))
