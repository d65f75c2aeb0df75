"""The CUDA device does what the CPU device does; what concerns only CUDA: streams, graphs, transfers."""

from __future__ import annotations

import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest

from v2v.core.components import Window, components
from v2v.core.configs import MODELS
from v2v.core.errors import EngineError, V2VError
from v2v.device import Nonfinite, kernels
from v2v.device.cpu import CpuDevice
from v2v.doctor.kernels import compare
from v2v.engine.backend import Engine
from v2v.runtime.diffusion.deepcache import UNetEngines
from v2v.runtime.diffusion.guidance import Guidance
from v2v.runtime.diffusion.sampling import DenoisingLoop
from v2v.runtime.diffusion.schedule import Schedule
from v2v.runtime.diffusion.solvers import SOLVERS

cpu = CpuDevice()
HALF, FLOAT = np.float16, np.float32


def a_gpu_or_why_not():
    try:
        from v2v.device.cuda import CudaDevice

        return CudaDevice(), ""
    except V2VError as error:
        return None, str(error)


def why_not_emulated():
    try:
        from tests.device.emulated import why_not
    except V2VError as error:
        return str(error)
    return why_not()


GPU, WHY_NOT = a_gpu_or_why_not()
WHY_NOT_EMULATED = why_not_emulated()
needs_gpu = pytest.mark.skipif(GPU is None, reason=WHY_NOT or "there is a GPU")


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def gpu():
    assert GPU is not None
    return GPU


def gpu_test(function):
    return pytest.mark.gpu(needs_gpu(function))


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """The kernels compiled for this CPU."""
    if WHY_NOT_EMULATED:
        pytest.skip(WHY_NOT_EMULATED)
    from tests.device.emulated import compiled
    from tests.device.test_kernels import expected

    names = set().union(*map(expected, kernels.FILES))
    return compiled(tmp_path_factory.mktemp("kernels"), names)


@pytest.fixture(params=[pytest.param("gpu", marks=[pytest.mark.gpu, needs_gpu]), "emulated"])
def device(request):
    """Whatever runs the kernels."""
    if request.param == "gpu":
        return GPU
    from tests.device.emulated import EmulatedDevice

    return EmulatedDevice(request.getfixturevalue("library"))


class Both:
    """Runs one operation on a device and its NumPy twin with the same arrays; unwritten outputs are poisoned."""

    def __init__(self, device):
        self.device = device

    def __call__(self, operation, *arguments, **options):
        """Returns (device's, twin's) of every array among the arguments, as the operation left it."""
        mine = [self.device.upload(a) if isinstance(a, np.ndarray) else a for a in arguments]
        twin = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
        getattr(self.device, operation)(*mine, **options)
        with np.errstate(all="ignore"):
            getattr(cpu, operation)(*twin, **options)
        return [
            (self.device.download(m), t) for m, t in zip(mine, twin, strict=True) if isinstance(t, np.ndarray)
        ]


@pytest.fixture
def both(device):
    return Both(device)


def needs_a_real_one(device, size):
    """Skip a size that takes seconds where every thread is emulated."""
    if device is not GPU and np.prod(size) > 100_000:
        pytest.skip("too large to emulate")


def poisoned(shape, dtype):
    return np.full(shape, np.nan if np.dtype(dtype).kind == "f" else 173, dtype)


def close(pair, dtype=FLOAT, scale=1.0):
    mine, twin = pair
    assert mine.dtype == twin.dtype and mine.shape == twin.shape
    tolerance = 1e-3 if dtype == HALF else 2e-6
    np.testing.assert_allclose(
        mine.astype(np.float64), twin.astype(np.float64), rtol=tolerance, atol=tolerance * scale
    )


# Without a GPU --------------------------------------------------------------------------------------------------
def test_the_plain_runtime_does_not_need_cuda_python():
    program = (
        "import sys; sys.modules['cuda'] = None\n"
        "import v2v.runtime.diffusion.pipeline, v2v.device.cpu\n"
        "from v2v.device import open_device\n"
        "assert open_device('cpu').name == 'cpu'\n"
        "try:\n    open_device('cuda')\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("EngineError") and "pip install 'v2v[cuda]'" in done.stdout


@pytest.mark.skipif(GPU is not None, reason="there is a GPU")
def test_without_a_gpu_the_message_says_what_to_check():
    pytest.importorskip("cuda.core")
    from v2v.device.cuda import CudaDevice

    with pytest.raises(EngineError, match=r"no NVIDIA GPU.*nvidia-smi.*--device cpu") as caught:
        CudaDevice()
    assert "\n" not in str(caught.value)


# Memory -----------------------------------------------------------------------------------------------------------
@gpu_test
def test_what_goes_up_comes_down(gpu, rng):
    host = rng.standard_normal((5, 3, 7)).astype(FLOAT)
    array = gpu.upload(host)
    np.testing.assert_array_equal(gpu.download(array), host)
    np.testing.assert_array_equal(gpu.download(gpu.view(array, slice(1, 4))), host[1:4])
    np.testing.assert_array_equal(gpu.download(gpu.view(array, 2)), host[2:3])
    np.testing.assert_array_equal(gpu.download(gpu.view(gpu.view(array, slice(1, 5)), 3)), host[4:5])
    np.testing.assert_array_equal(gpu.download(gpu.reshape(array, (15, 7))), host.reshape(15, 7))
    half = gpu.upload(host, gpu.empty((1, 5, 3, 7), HALF))
    np.testing.assert_array_equal(gpu.download(half)[0], host.astype(HALF))
    gpu.zero(array)
    assert not gpu.download(array).any()
    gpu.copy(gpu.upload(host[::-1]), array)
    np.testing.assert_array_equal(gpu.download(array), host[::-1])


@gpu_test
def test_uploads_keep_what_they_were_given(gpu):
    """The host's array may change as soon as upload returns, however many uploads are under way."""
    host = np.empty(1 << 20, FLOAT)
    arrays = []
    for k in range(20):
        host[:] = k
        arrays.append(gpu.upload(host))
    assert [gpu.download(array).mean() for array in arrays] == list(range(20))


@gpu_test
def test_what_is_fetched_may_be_overwritten(gpu):
    array = gpu.empty((1 << 20,), FLOAT)
    fetched = []
    for k in range(8):
        gpu.upload(np.full(1 << 20, k, FLOAT), array)
        fetched.append(gpu.fetch(array))
    for k in reversed(range(8)):
        result = fetched[k].result()
        assert (result == k).all()


@gpu_test
def test_a_feed_delivers_in_order_while_the_host_runs_ahead(gpu):
    feed = gpu.feed((1 << 20,), FLOAT)
    out = gpu.empty((1 << 20,), FLOAT)
    with pytest.raises(RuntimeError, match="nothing"):
        feed.take(out)
    fetched = []
    host = np.empty(1 << 20, FLOAT)
    for k in range(12):
        host[:] = k
        feed.put(host)
        if k:
            feed.take(out)
            fetched.append(gpu.fetch(out))
    feed.put(host)
    with pytest.raises(RuntimeError, match="two"):
        feed.put(host)
    assert [(f.result() == k).all() for k, f in enumerate(fetched)] == [True] * 11


# Operations against their twins ------------------------------------------------------------------------------------
RESIZES = {  # frame, size, out, offset, antialias
    "twice": ((90, 160), (180, 320), (180, 320), (0, 0), False),
    "same": ((72, 128), (72, 128), (72, 128), (0, 0), False),
    "odd": ((67, 91), (123, 205), (123, 205), (0, 0), False),
    "padded": ((60, 100), (120, 201), (144, 256), (-11, -20), True),
    "part": ((60, 101), (240, 400), (80, 128), (90, 300), True),
    "no multiple of 16": ((67, 92), (123, 205), (123, 205), (0, 0), False),
    "wider than a part": ((9, 1280), (9, 1280), (9, 1280), (0, 0), False),
    "two thirds": ((108, 480), (72, 320), (72, 320), (0, 0), True),
    "half": ((108, 480), (54, 240), (54, 240), (0, 0), True),
    "one row": ((1, 64), (16, 64), (16, 64), (0, 0), True),
    "shrunk": ((270, 479), (90, 160), (90, 160), (0, 0), True),
    "shrunk plainly": ((270, 479), (90, 160), (90, 160), (0, 0), False),
    "shrunk a lot": ((200, 4100), (9, 33), (16, 64), (-2, -7), True),
    "one pixel": ((1, 1), (16, 64), (16, 64), (0, 0), True),
}


@pytest.mark.parametrize("dtype", [FLOAT, HALF])
@pytest.mark.parametrize("levels", [np.uint8, np.uint16])
@pytest.mark.parametrize("case", RESIZES)
def test_prepare_frame(both, rng, dtype, levels, case):
    source, size, out, offset, antialias = RESIZES[case]
    frame = rng.integers(0, np.iinfo(levels).max + 1, (*source, 3), levels)
    result = both(
        "prepare_frame",
        frame,
        size,
        poisoned((1, 3, *out), dtype),
        offset=offset,
        antialias=antialias,
    )
    close(result[1], dtype)


@pytest.mark.parametrize("out", [(45, 80), (720, 1280), (1, 1), (31, 77)])
def test_resize(both, rng, out):
    needs_a_real_one(both.device, out)
    image = rng.standard_normal((1, 3, 90, 160)).astype(FLOAT)
    close(both("resize", image, poisoned((1, 3, *out), FLOAT))[1], FLOAT)


@pytest.mark.parametrize("dtype", [FLOAT, HALF])
@pytest.mark.parametrize("levels", [np.uint8, np.uint16])
@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("size", [(64, 96), (13, 7)])
def test_image_to_bytes_is_exact(both, rng, dtype, levels, truncate, size):
    image = (rng.standard_normal((1, 3, *size)) * 0.7).astype(dtype)
    image.ravel()[:4] = [-1, 1, 0, 1e4]
    mine, twin = both("image_to_bytes", image, poisoned((*size, 3), levels), truncate=truncate)[1]
    np.testing.assert_array_equal(mine, twin)


@pytest.mark.parametrize("dtype", [FLOAT, HALF])
@pytest.mark.parametrize("size", [(18, 32), (5, 7)])
def test_sample_posterior(both, rng, dtype, size):
    moments = (rng.standard_normal((1, 8, *size)) * 3).astype(dtype)
    moments[0, 4, 0, :3] = -500, 500, 20.5
    noise = rng.standard_normal((1, 4, 1, *size)).astype(FLOAT)
    close(both("sample_posterior", moments, noise, 0.18215, poisoned((1, 4, 1, *size), FLOAT))[2], scale=10)


@pytest.mark.parametrize("dtype", [FLOAT, HALF])
@pytest.mark.parametrize(
    ("canvas", "window", "start"),
    [
        ((12, 4, 20, 32), (8, 18, 24), (3, 1, 8)),
        ((12, 4, 20, 32), (8, 18, 24), (4, 2, 5)),
        ((3, 3, 11, 13), (2, 7, 9), (1, 4, 3)),
        ((8, 4, 18, 32), (8, 18, 32), (0, 0, 0)),
    ],
)
def test_windows(both, rng, dtype, canvas, window, start):
    whole = rng.standard_normal(canvas).astype(FLOAT)
    out = poisoned((1, canvas[1], *window), dtype)
    close(both("take_window", whole, start, 0.7, out)[1], dtype)
    part = rng.standard_normal(out.shape).astype(dtype)
    weights = rng.random(window).astype(FLOAT)
    close(both("add_window", part, weights, start, whole)[2])


def test_a_window_must_lie_in_its_canvas(device):
    canvas, out = device.empty((4, 4, 8, 8), FLOAT), device.empty((1, 4, 4, 8, 8), FLOAT)
    with pytest.raises(ValueError, match="leaves its canvas"):
        device.take_window(canvas, (0, 0, 1), 1.0, out)


@pytest.mark.parametrize("count", range(6))
@pytest.mark.parametrize("size", [4096, 1003])
def test_combine(both, rng, count, size):
    kinds = [FLOAT, HALF, FLOAT, FLOAT, HALF]
    arrays = [rng.standard_normal((1, size)).astype(kinds[k]) for k in range(count)]
    coefficients = rng.standard_normal(count)
    for dtype in (FLOAT, HALF):
        mine = [both.device.upload(a) for a in arrays]
        out, twin = both.device.upload(poisoned((1, size), dtype)), poisoned((1, size), dtype)
        nothing = poisoned((1, size), FLOAT)
        both.device.combine([*zip(coefficients, mine, strict=True), (0.0, both.device.upload(nothing))], out)
        cpu.combine([*zip(coefficients, arrays, strict=True), (0.0, nothing)], twin)
        close((both.device.download(out), twin), dtype, scale=2)


def test_combine_may_write_over_a_term(device, rng):
    host = rng.standard_normal((2, 999)).astype(FLOAT)
    x, y = device.upload(host[0]), device.upload(host[1])
    device.combine([(2.0, x), (-1.0, y)], x)
    np.testing.assert_allclose(device.download(x), 2 * host[0] - host[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [FLOAT, HALF])
@pytest.mark.parametrize("rescale", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("size", [(8, 18, 32), (32, 90, 160), (3, 5, 7)])
def test_guide(both, rng, dtype, rescale, size):
    needs_a_real_one(both.device, size)
    conditional, unconditional = rng.standard_normal((2, 1, 4, *size)).astype(dtype)
    out = poisoned(conditional.shape, FLOAT)
    close(both("guide", conditional, unconditional, 7.5, rescale, out)[2], scale=10)
    close(both("guide", conditional, None, 7.5, rescale, out)[1])


def test_the_deviation_survives_a_mean_far_from_zero_and_an_outlier(device, rng):
    """E[x^2] - E[x]^2 in float32 would have no correct digit here."""
    conditional = (rng.standard_normal((1, 4, 8, 18, 32)) + 3000).astype(FLOAT)
    unconditional = (rng.standard_normal(conditional.shape) * 5 - 2000).astype(FLOAT)
    conditional[0, 0, 0, 0, 0] = 9000
    guided = unconditional.astype(np.float64) + 7.5 * (conditional.astype(np.float64) - unconditional)
    expected = conditional.astype(np.float64).std(ddof=1) / guided.std(ddof=1)
    out = device.empty(conditional.shape, FLOAT)
    device.guide(device.upload(conditional), device.upload(unconditional), 7.5, 1.0, out)
    np.testing.assert_allclose(device.download(out) / guided, expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", [FLOAT, HALF])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_check_tells_the_lowest_label_and_frame_once(device, rng, dtype, bad):
    array = rng.standard_normal((6, 4, 9, 11)).astype(dtype)
    device.check(device.upload(array), 0)
    device.synchronize()
    assert device.failure() is None
    array[4, 0, 0, 0] = array[2, 3, 8, 10] = bad
    device.check(device.upload(array), 5)
    device.check(device.upload(array[4:]), 4)
    device.synchronize()
    assert device.failure() == Nonfinite(4, 0)
    assert device.failure() is None
    device.check(device.upload(array), 5)
    device.synchronize()
    assert device.failure() == Nonfinite(5, 2)


# The loop -----------------------------------------------------------------------------------------------------------
class LinearUNet(Engine):
    """A stand-in that depends on the prompt and on its input and queues its work on the device, as an engine does."""

    def __init__(self, device, window, precision):
        self.device = device
        self.component = components(MODELS["small"], window, precision)["unet"]
        self.weights = {}

    def run(self, inputs, outputs, stream=0):
        latents, context = inputs["latents"], inputs["context"]
        weight = self.weights.setdefault(id(context), 0.4 + 0.3 * len(self.weights))
        self.device.combine([(weight, latents)], outputs["velocity"])


def denoise(device, precision, solver, extent=(8, 18, 32), steps=6, loop=None, told=lambda: None):
    """Latents after a few steps from a fixed start, and the loop."""
    schedule = Schedule()
    sigmas = (schedule.leading if solver == "heun" else schedule.trailing)(599, steps)
    if loop is None:
        unet = LinearUNet(device, Window(8, 144, 256), precision)
        guidance = Guidance(7.5, 0.2)
        engines, updates = UNetEngines(unet), SOLVERS[solver](sigmas)
        loop = DenoisingLoop(device, engines, schedule, updates, guidance, extent, (2, 4, 8))
        loop.test_contexts = tuple(device.empty(unet.component.inputs[2].shape, HALF) for _ in range(2))
    rng = np.random.default_rng(3)
    device.upload(rng.standard_normal(loop.x.shape).astype(FLOAT) * sigmas[0], loop.x)
    noises = rng.standard_normal((len(loop.updates), *loop.x.shape)).astype(FLOAT)
    done = []

    def finished(k):
        done.append(k)
        told()

    out = device.download(loop.run(loop.test_contexts, lambda k: noises[k], finished))
    assert done == list(range(1, len(loop.updates) + 1))
    return out, loop


@gpu_test
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("extent", [(8, 18, 32), (13, 26, 40)], ids=["one window", "several windows"])
def test_the_loop_gives_what_it_gives_on_a_cpu(gpu, precision, solver, extent):
    mine, _ = denoise(gpu, precision, solver, extent)
    twin, _ = denoise(cpu, precision, solver, extent)
    error = np.linalg.norm(mine.astype(np.float64) - twin) / np.linalg.norm(twin)
    assert error < (1e-5 if precision == "fp32" else 2e-3)


@gpu_test
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("extent", [(8, 18, 32), (13, 26, 40)], ids=["one window", "several windows"])
def test_captured_work_gives_the_bits_of_work_done_eagerly(gpu, solver, extent, monkeypatch):
    capture, replays = gpu.capture, []
    monkeypatch.setattr(
        gpu, "capture", lambda work: replays.append(capture(work) is not work) or capture(work)
    )
    captured, loop = denoise(gpu, "fp16", solver, extent)
    assert replays == [True]  # one serves all windows
    again, _ = denoise(gpu, "fp16", solver, extent, loop=loop)
    monkeypatch.setattr(gpu, "capture", lambda work: work)
    eager, _ = denoise(gpu, "fp16", solver, extent)
    np.testing.assert_array_equal(captured, eager)
    np.testing.assert_array_equal(captured, again)


def test_work_that_cannot_be_captured_is_told_once():
    cuda = pytest.importorskip("v2v.device.cuda")
    device = object.__new__(cuda.CudaDevice)  # as long as nothing but a graph is asked for, it needs no GPU
    device.cuda_stream, device.capture_refused = Mock(), None

    def work():
        raise EngineError("unet waits for the host\nin a kernel")

    with pytest.warns(UserWarning, match=r"so the run is slower \(unet waits for the host\)$") as told:
        assert [device.capture(work), device.capture(work)] == [work, work]
    assert len(told) == 1
    assert device.capture_refused == "unet waits for the host"


@pytest.mark.parametrize("extent", [(8, 18, 32), (13, 26, 40)], ids=["one window", "several windows"])
def test_work_is_queued_piece_by_piece_once_then_captured(extent):
    noted = []

    class Noting(CpuDevice):
        def capture(self, work):
            noted.append("capture")
            return lambda: (noted.append("replay"), work())

        def guide(self, *arguments):  # once in all that is captured
            noted.append("work")
            super().guide(*arguments)

    def begins_and_goes_on(expected):
        assert noted[: len(expected)] == expected
        assert noted[len(expected) :] and set(noted[len(expected) :]) == {"replay", "work"}
        noted.clear()

    _, loop = denoise(Noting(), "fp32", "dpmpp_2m_sde", extent)
    begins_and_goes_on(["work", "capture", "replay", "work"])
    denoise(loop.device, "fp32", "dpmpp_2m_sde", extent, loop=loop)
    begins_and_goes_on(["replay", "work"])
    loop.test_contexts = loop.test_contexts[::-1]  # another prompt: what was captured reads the one before
    denoise(loop.device, "fp32", "dpmpp_2m_sde", extent, loop=loop)
    begins_and_goes_on(["work", "capture", "replay", "work"])
    loop.use(UNetEngines(LinearUNet(loop.device, Window(8, 144, 256), "fp32")))
    denoise(loop.device, "fp32", "dpmpp_2m_sde", extent, loop=loop)
    begins_and_goes_on(["work", "capture", "replay", "work"])


@pytest.mark.parametrize("extent", [(8, 18, 32), (13, 26, 40)], ids=["one window", "several windows"])
def test_running_the_loop_makes_no_arrays(extent):
    made, counts = [], []

    class Counting(CpuDevice):
        def empty(self, shape, dtype):
            made.append(shape)
            return super().empty(shape, dtype)

    _, loop = denoise(Counting(), "fp32", "dpmpp_2m_sde", extent, told=lambda: counts.append(len(made)))
    before = len(made)
    denoise(loop.device, "fp32", "dpmpp_2m_sde", extent, loop=loop)
    assert before > 0 and len(made) == before
    assert set(counts) == {before}


@pytest.mark.parametrize("extent", [(8, 18, 32), (13, 26, 40)], ids=["one window", "several windows"])
def test_noise_is_sent_while_the_device_has_work(extent):
    """A step's noise is there before the step is queued, and is sent behind the queued work of an earlier one."""
    events = []

    class Watched(LinearUNet):
        def run(self, inputs, outputs, stream=0):
            if events[-1:] != [("step", int(inputs["timestep"][0]))]:
                events.append(("step", int(inputs["timestep"][0])))
            super().run(inputs, outputs, stream)

    class Noting(CpuDevice):
        def feed(self, shape, dtype):
            feed = super().feed(shape, dtype)
            put = feed.put
            feed.put = lambda host: (events.append(("send", int(host.flat[0]))), put(host))
            return feed

    device, schedule = Noting(), Schedule()
    updates = SOLVERS["dpmpp_2m_sde"](schedule.trailing(599, 8))
    unet = UNetEngines(Watched(device, Window(8, 144, 256), "fp32"))
    loop = DenoisingLoop(device, unet, schedule, updates, Guidance(7.5, 0.2), extent, (2, 4, 8))
    loop.x[...] = 1
    contexts = tuple(np.zeros(unet.full.component.inputs[2].shape, FLOAT) for _ in range(2))
    loop.run(contexts, lambda k: np.full(loop.x.shape, k, FLOAT), lambda k: None)
    sent = [number for kind, number in events if kind == "send"]
    assert sent == list(range(7))
    assert [kind for kind, _ in events] == ["send", *["step", "send"] * 6, *["step"] * 2]


@gpu_test
@pytest.mark.parametrize("extent", [(8, 18, 32), (13, 26, 40)], ids=["one window", "several windows"])
def test_after_the_first_step_nothing_is_allocated(gpu, extent):
    allocations = []
    _, loop = denoise(gpu, "fp16", "dpmpp_2m_sde", extent, told=lambda: allocations.append(gpu.allocations))
    assert len(set(allocations)) == 1
    before = len(allocations)
    denoise(gpu, "fp16", "dpmpp_2m_sde", extent, loop=loop, told=lambda: allocations.append(gpu.allocations))
    assert len(set(allocations[before:])) == 1


@gpu_test
def test_work_that_cannot_be_captured_is_run_as_it_is(gpu):
    array = gpu.upload(np.ones(8, FLOAT))

    def waits():
        gpu.combine([(2.0, array)], array)
        gpu.synchronize()

    replay = gpu.capture(waits)
    assert replay is waits
    replay()
    assert (gpu.download(array) == 2).all()  # recording did not execute it, and the stream still works


@gpu_test
def test_two_runs_give_the_same_bits(gpu):
    first, second = (denoise(gpu, "fp16", "dpmpp_2m_sde")[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_what_v2v_doctor_tries(device):
    sizes = ((36, 64), (3, 18, 16)) if device is not GPU else ((720, 1280), (32, 90, 160))
    differences = compare(device, lambda step: None, *sizes)["differences"]
    assert len(differences) == 9
