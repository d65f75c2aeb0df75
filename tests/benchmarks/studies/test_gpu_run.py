"""What the proofs on a GPU make of what they saw, without one."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("av")

from v2v.benchmarks.results import Span
from v2v.benchmarks.studies import gpu_run
from v2v.benchmarks.studies.gpu_run import gaps, moving_picture, psnr, step_ends
from v2v.benchmarks.studies.overlap import shared, stretches


def one_after_the_other(*names, pause=0):
    """(start, end, name) of work that takes 10 each, ``pause`` apart."""
    return [(k * (10 + pause), k * (10 + pause) + 10, name) for k, name in enumerate(names)]


def test_steps_end_with_the_look_for_nan():
    encoding = ["conv", "find_nonfinite_float32", "combine_2"]
    step = ["take_window", "unet", "add_window", "combine_2", "find_nonfinite_float32", "Memcpy HtoD", "combine_1",
            "combine_4"]  # fmt: skip
    decoding = ["conv", "find_nonfinite_float32", "image_to_bytes_float32_uint8"]
    names = [*encoding, *step, *step, *decoding, *decoding]
    work = one_after_the_other(*names)
    assert [names[end // 10 - 1] for end in step_ends(work)] == ["find_nonfinite_float32"] * 2
    assert step_ends(work) == [80, 160]


def test_gaps_are_times_in_which_nothing_runs():
    look = "find_nonfinite_float32"
    names = [look, "combine_2", "unet", look, "combine_2", "Memcpy DtoH", "unet", "unet", look, "combine_2"]
    work = [(1000 * start, 1000 * end, name) for start, end, name in one_after_the_other(*names, pause=3)]
    work.append(
        (81_000, 92_000, "Memcpy on another stream")
    )  # fills the gap between the last two evaluations
    (step,) = gaps(sorted(work))
    assert step["step"] == 2 and step["kernels_and_copies"] == 6
    assert step["longest_gap_microseconds"] == 3
    assert step["between"] == ["unet", look]
    assert step["idle_before_its_first_kernel_microseconds"] == 3
    assert step["idle_share"] == pytest.approx((3 + 3 + 3 + 3) / 65, abs=1e-5)


def spans(*pairs):
    return [Span("host", "stage", begin, end - begin) for begin, end in pairs]


def test_what_was_done_at_once_is_counted():
    denoising = stretches(spans((0, 1), (1.01, 2), (5, 6)))
    assert [(s.start, round(s.start + s.seconds, 6)) for s in denoising] == [(0, 2), (5, 6)]
    assert shared(spans((0.5, 1.5), (1.8, 5.5), (7, 8)), denoising) == pytest.approx(1 + 0.2 + 0.5)


def test_the_moving_picture_is_the_same_everywhere_and_moves():
    frames = moving_picture(3, 24, 40)
    assert [frame.shape for frame in frames] == [(24, 40, 3)] * 3
    assert psnr(frames[0], moving_picture(3, 24, 40)[0]) == np.inf
    assert 5 < psnr(frames[0], frames[2]) < 30


def test_backends_are_held_against_the_cpu(tmp_path, monkeypatch):
    """Rehearsed with another CPU in the place of the GPU: the same bytes come out."""
    from tests.stand_ins.arrays import NumpyEngines
    from v2v.device.cpu import CpuDevice
    from v2v.runtime.diffusion.pipeline import VideoToVideo

    class Stand(CpuDevice):
        capture_refused = "it is a CPU"

    class Loaded(VideoToVideo):
        @classmethod
        def load(cls, engine_set, device):
            return cls(engine_set, CpuDevice())

    engines, built = NumpyEngines(tmp_path), []
    recipe = SimpleNamespace(backend=SimpleNamespace(name="fake"), options=SimpleNamespace(precision="fp32"))
    object.__setattr__(engines, "manifest", SimpleNamespace(recipe=recipe))

    def build(model, **how):
        built.append((how["backend_name"], how["options"].device))
        return SimpleNamespace(engine_set=engines)

    monkeypatch.setitem(sys.modules, "v2v.device.cuda", SimpleNamespace(CudaDevice=Stand))
    monkeypatch.setattr(gpu_run, "window_for", lambda model: engines.window)
    monkeypatch.setattr(gpu_run, "build_engine_set", build)
    monkeypatch.setattr(gpu_run, "VideoToVideo", Loaded)
    sizes = []
    monkeypatch.setattr(
        gpu_run,
        "moving_picture",
        lambda *size: sizes.append(size) or moving_picture(size[0], 40, size[2] // 10),
    )
    report = gpu_run.backends(SimpleNamespace(sets=[]))
    assert built == [("onnxruntime", "cpu"), ("onnxruntime", "cuda")]
    assert [row["case"] for row in report["runs"]] == [
        "one window, the model's defaults",
        "one window, guided",
        "several windows, guided",
    ]
    assert sizes == [(4, 180, 320), (4, 180, 320), (8, 180, 400)]
    for row in report["runs"]:
        assert row["psnr_against_cpu_db"] == np.inf and row["same_bytes_twice"]
        assert row["why_not_captured"] == "it is a CPU"
