"""Measuring on a real GPU: events time what the stream does, and a run is seen whole."""

from __future__ import annotations

import numpy as np
import pytest

from v2v.benchmarks.machine import ceilings, machine
from v2v.benchmarks.measure import Measurement, OpenBaseline, measure
from v2v.benchmarks.trace import CudaClock
from v2v.core.components import window_for
from v2v.core.configs import MODELS
from v2v.core.errors import V2VError
from v2v.device import open_device
from v2v.device.gpus import cuda_devices

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not cuda_devices(), reason="the driver shows no GPU"),
]


@pytest.fixture(scope="module")
def gpu():
    try:
        return open_device("cuda")
    except V2VError as error:
        pytest.skip(str(error))


def test_events_time_the_work_and_not_the_queueing(gpu):
    clock = CudaClock(gpu)
    source, target = (gpu.empty((1 << 28,), np.uint8) for _ in range(2))
    gpu.copy(source, target)
    clock.start()
    marks = [clock.mark()]
    for copies in (1, 20):
        for _ in range(copies):
            gpu.copy(source, target)
        marks.append(clock.mark())
    first, second, third = (clock.seconds(mark) for mark in marks)
    assert 0 <= first < second < third
    assert (third - second) / (second - first) == pytest.approx(20, rel=0.3)


def test_ceilings_are_those_of_a_gpu():
    found = ceilings("cuda")
    assert 1e11 < found.copy_bytes_per_second.median < 1e13
    if found.product_flops_per_second is not None:
        assert 1e12 < found.product_flops_per_second.median < 1e16


def test_the_machine_names_its_gpu():
    here = machine()
    assert here.gpu
    assert here.gpu_memory_bytes > 1e9
    assert here.driver


def test_a_baseline_is_measured_with_its_memory(tmp_path):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch is built without CUDA")
    model = MODELS["small"]
    opener = OpenBaseline("eager", "eager", model, window_for(model), "random:0", "cuda")
    *_, found = measure(Measurement(opener, repeats=2, steps=4, sweeps=("steps",)), tmp_path, lambda *_: None)
    calls = {stage.name: stage.calls for stage in found.stages}
    assert found.subject.precision == "fp16"
    assert calls["UNet evaluation"] == found.evaluations == 4
    assert calls["VAE encode"] == calls["VAE decode"] == found.clip.frames
    assert found.gpu_bytes.median > 1e8
    device_time = sum(span.seconds for span in found.timeline if span.track == "device")
    assert 0 < device_time <= found.run.high * 1.5
