"""The order of the checks: what a machine is, what is installed, and what each backend makes of the patterns."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Any

from v2v.benchmarks.machine import cores
from v2v.core.components import Precision, window_for
from v2v.core.configs import MODELS
from v2v.doctor.checks import Check, Examination, Outcome
from v2v.doctor.clip import clip, small_window
from v2v.doctor.engines import Scale, examine, export
from v2v.doctor.environment import environment, library
from v2v.doctor.kernels import kernels
from v2v.doctor.options import DoctorOptions
from v2v.doctor.patterns import Pattern, patterns
from v2v.doctor.predict import Measured, missing, predict
from v2v.engine.choose import default_precision

REFERENCE = "onnxruntime"
_EXPORTS = ("torch", "onnx", "onnxscript")
_NEEDS_PYTORCH = "patterns are exported by PyTorch: pip install 'v2v[export]'"
_CORES_OF_EXPORT = 4  # that one export keeps busy
_REFERENCE_SECONDS = {"cpu": 1.0, "cuda": 10.0}
"""That ONNX Runtime may take for a pattern on the CPU, at half the speed of a matrix product."""
_CPU_SHARE = 0.5
_SHARE_OF_MEMORY = 1 / 4  # of the card's, that a pattern's activations may take
_BYTES_OF_ELEMENT = 60  # of the widest map, with everything that lives beside it


@dataclass(frozen=True)
class Patient:
    """A backend as it was found: where its engines run, None where it compiles alone."""

    name: str
    device: str | None
    model: str

    @property
    def precision(self) -> Precision:
        """Of the engines that it builds here."""
        return default_precision(self.device or "cuda")

    @property
    def graphs(self) -> tuple[str, Precision, bool]:
        """Which exported graphs it takes: of which model, in which precision, and whether at full size."""
        return self.model, self.precision, self.device is None


def run(options: DoctorOptions, examination: Examination, folder: Path) -> None:
    """All checks, in ``folder``, which the caller removes.

    Raises:
        UsageError: an option that cannot be.
    """
    names = options.backends()
    machine = examination.run(Check("environment", environment))
    examination.run(Check("CUDA kernels", kernels))
    patients = [patient for name in names if (patient := _found(name, options, examination)) is not None]
    torch_is_here = all(map(find_spec, _EXPORTS))
    _clips(examination, patients, torch_is_here, folder)
    _patterns(examination, patients, machine, folder, "" if torch_is_here else _NEEDS_PYTORCH)


def _patterns(
    examination: Examination, patients: Collection[Patient], machine: Outcome, folder: Path, skip: str
) -> None:
    """Every pattern through every backend, and what that says of full size.

    Pattern by pattern, so that every backend has had the most telling ones when the time is over. Graphs are exported
    ahead of the backends that take them.
    """
    measured: dict[str, list[Measured]] = {patient.name: [] for patient in patients}
    rows = [[(patient, pattern) for pattern in _patterns_of(patient)] for patient in patients]
    order = [pair for column in zip_longest(*rows) for pair in column if pair is not None]
    graphs: dict[tuple[Any, ...], tuple[Path, Future[Outcome]]] = {}
    told: set[Path] = set()
    with ThreadPoolExecutor(max(cores() // _CORES_OF_EXPORT, 1), "v2v-doctor") as threads:
        for patient, pattern in order:
            key = (patient.graphs, pattern.name)
            if key not in graphs:
                place = folder / f"graph-{len(graphs)}"
                check = _export(patient, pattern, machine, place, skip)
                graphs[key] = place, threads.submit(examination.outcome, check)
        for patient, pattern in order:
            place, exporting = graphs[patient.graphs, pattern.name]
            exported = exporting.result()
            if place not in told:
                examination.keep(exported)
                told.add(place)
            _examine(examination, patient, pattern, exported, place, measured[patient.name])
    for patient in patients:
        _predict(examination, patient, measured[patient.name])


def _found(name: str, options: DoctorOptions, examination: Examination) -> Patient | None:
    """The backend, if it is installed and of use here."""
    facts = examination.run(Check(f"{name}: library", library, (name,))).facts
    if not facts:
        return None
    device = next(iter(facts["devices"]), None)
    if device is None and not facts.get("compiles_only"):
        return None
    if (name, device) == ("inductor", "cpu") and not options.backend:
        reason = "it is made for GPUs, and compiles minutes for a CPU; --backend inductor looks at that"
        examination.run(Check(f"{name}: on the CPU", library, skip=reason))
        return None
    return Patient(name, device, options.model_for(device or "cuda"))


def _patterns_of(patient: Patient) -> list[Pattern]:
    """Those that say something: compiling alone, weights make no difference."""
    model = MODELS[patient.model]
    return [
        pattern
        for pattern in patterns(model, window_for(model))
        if not (pattern.sharp and patient.device is None)
    ]


def _clips(
    examination: Examination, patients: Collection[Patient], torch_is_here: bool, folder: Path
) -> None:
    """The CPU's clip first: the others are compared with it."""
    window = small_window(torch_is_here)

    def check(name: str, device: str, skip: str = "") -> Check:
        return Check(f"{name}: clip on {device}", clip, (name, device, window, folder), skip)

    if not any(patient.device for patient in patients):
        return
    reference = examination.run(check(REFERENCE, "cpu"))
    for patient in patients:
        if (patient.name, patient.device) == (REFERENCE, "cpu"):
            continue
        skip = ""
        if patient.device is None:
            skip = "it compiles here and runs elsewhere: there is no GPU for it"
        elif reference.state != "passed":
            skip = "there is no clip of the CPU's to compare with"
        elif not torch_is_here:
            skip = "its engines are built by PyTorch: pip install 'v2v[export]'"
        examination.run(check(patient.name, patient.device or "cuda", skip))


def _export(patient: Patient, pattern: Pattern, machine: Outcome, folder: Path, skip: str) -> Check:
    folder.mkdir()
    scale = None if patient.device is None else _scale(machine, patient.device)
    arguments = (pattern, patient.precision, scale, folder)
    return Check(f"graph of {pattern.name}, {patient.model}", export, arguments, skip)


def _scale(machine: Outcome, device: str) -> Scale:
    """What this machine's processor computes in a moment, and what its memory holds."""
    memory = machine.facts.get("gpu_memory_bytes") or machine.facts.get("memory_bytes") or 1 << 32
    return Scale(
        work=_REFERENCE_SECONDS[device] * _CPU_SHARE * (machine.facts.get("cpu_flops") or 5e10),
        elements=memory * _SHARE_OF_MEMORY / _BYTES_OF_ELEMENT,
    )


def _examine(
    examination: Examination,
    patient: Patient,
    pattern: Pattern,
    exported: Outcome,
    graphs: Path,
    measured: list[Measured],
) -> None:
    skip = "" if exported.state == "passed" else "there is no graph of it"
    window = pattern.window
    if not skip:
        frames, height, width = exported.facts["window"]
        window = replace(window, frames=frames, height=height, width=width)
    arguments = (
        patient.name,
        patient.device,
        replace(pattern, window=window),
        patient.precision,
        graphs,
        graphs / patient.name,
    )
    outcome = examination.run(Check(f"{patient.name}: {pattern.name}", examine, arguments, skip))
    if outcome.state == "passed":
        measured.append(Measured(pattern, exported.facts, outcome.facts))


def _predict(examination: Examination, patient: Patient, measured: list[Measured]) -> None:
    model = MODELS[patient.model]
    lacking = missing(model, measured)
    skip = f"not everything was measured: {', '.join(lacking)}" if lacking else ""
    arguments = (model, patient.precision, measured)
    examination.run(Check(f"{patient.name}: prediction", predict, arguments, skip))
