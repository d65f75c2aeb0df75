"""Results with made-up figures: for tests of what is done with results, never of what was measured."""

from __future__ import annotations

import dataclasses

from v2v.benchmarks.results import (
    Build,
    Ceilings,
    Clip,
    Failed,
    Figure,
    Machine,
    Measured,
    Point,
    Results,
    Span,
    Stage,
    Subject,
    Sweep,
    Work,
)

CLIP = Clip(frames=8, source_height=36, source_width=40, height=72, width=80, steps=10)

MACHINE = Machine(
    cpu="Some CPU",
    cores=2,
    memory_bytes=8 << 30,
    gpu="Some GPU",
    gpu_memory_bytes=80 << 30,
    driver="580.1",
    system="Linux 6.1 x86_64",
    python="3.12.1",
    versions={"numpy": "2.0", "torch": "2.11"},
)


def around(middle, samples=3, spread=0.01):
    """Evenly spread samples."""
    if samples == 1:
        return Figure((middle,))
    return Figure(tuple(middle * (1 + spread * (2 * k / (samples - 1) - 1)) for k in range(samples)))


def subject(name, kind="engines", backend="onnxruntime"):
    return Subject(
        name=name,
        kind=kind,
        backend=backend,
        backend_version="1.0",
        device="cuda",
        model="small",
        weights="random",
        weights_identity="ab" * 32,
        window="80x72x8",
        precision="fp16",
        engine_set="a-set" if kind == "engines" else None,
    )


def measured(name="ONNX Runtime fp16 (cuda)", kind="engines", backend="onnxruntime", unet=0.1, sweeps=()):
    evaluations = 20
    stages = (
        Stage("video decode", 8, around(0.002, 8), 0.016),
        Stage("text encoder", 2, around(0.01, 2), 0.02),
        Stage("VAE encode", 8, around(0.02, 8), 0.16),
        Stage("UNet evaluation", evaluations, around(unet, evaluations), evaluations * unet),
        Stage("solver", 10, around(0.0005, 10), 0.005),
        Stage("VAE decode", 8, around(0.03, 8), 0.24),
        Stage("video encode", 9, around(0.004, 9), 0.036),
        Stage("noise and rest", 1, around(0.1, 1), 0.1),
    )
    return Measured(
        subject=subject(name, kind, backend),
        clip=CLIP,
        load=around(1.5, 1),
        first_step=around(2.5, 1),
        run=around(evaluations * unet + 0.577),
        evaluations=evaluations,
        stages=stages,
        timeline=(
            Span("host", "video decode", 0.0, 0.016),
            Span("device", "VAE encode", 0.016, 0.16),
            Span("device", "UNet evaluation", 0.2, evaluations * unet),
            Span("device", "VAE decode", 0.2 + evaluations * unet, 0.24),
            Span("host", "video encode", 0.45 + evaluations * unet, 0.036),
        ),
        host_bytes=around(1.0e9, 1),
        gpu_bytes=around(12.0e9, 1),
        engine_bytes=50_000_000 if kind == "engines" else None,
        build=Build(30.0, {"unet": 10.0, "vae_encoder": 3.0}, {"unet": 15.0, "vae_encoder": 2.0}),
        sweeps=sweeps,
    )


def sweep(over="steps", values=(1, 5, 10), each=0.2):
    return Sweep(over, CLIP, tuple(Point(value, around(0.5 + each * value)) for value in values))


def results(*found, **changed):
    made = Results(
        created="2026-01-02T03:04:05+00:00",
        v2v="0.1.0",
        command="v2v-bench a-set",
        repeats=3,
        machine=MACHINE,
        ceilings=(Ceilings("cuda", "fp16", around(3e12, 5), around(700e12, 5)),),
        work=tuple(
            Work("small", "80x72x8", "fp16", component, flops, size)
            for component, flops, size in (
                ("text_encoder", 4e10, 6e8),
                ("vae_encoder", 4e12, 5e9),
                ("unet", 4e13, 6e10),
                ("vae_decoder", 9e12, 9e9),
            )
        ),
        measured=found
        or (
            measured("PyTorch eager", "eager", "pytorch", 0.25),
            measured("torch.compile", "compile", "pytorch", 0.16),
            measured(
                sweeps=(sweep(), sweep("frames", (4, 8, 32)), sweep("pixels", (1440, 5760, 23040), 1e-4))
            ),
        ),
        failed=(Failed("TensorRT fp16 (cuda)", "it does not run here"),),
    )
    return dataclasses.replace(made, **changed)
