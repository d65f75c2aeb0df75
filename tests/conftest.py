"""What all tests share: a store of their own, one real engine set of the small model, and the two cores."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import ModuleType

import pytest

from v2v.core.components import window_for
from v2v.core.configs import MODELS
from v2v.engine.backend import BuildOptions
from v2v.engine.build import build_engine_set
from v2v.engine.store import EngineSet

# Each takes more than five seconds: the small model built, an Inductor package, a benchmark session, all components as
# graphs and as rewritten for CUDA, a Ray cluster.
SLOW_FIXTURES = {"small_engine_set", "compiled", "quick", "exported", "rewritten", "cluster"}
SMALL_WINDOW = (80, 72), 4  # (width, height) and frames: as little as the small UNet takes

if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup
    # As good here, and not handed down to the commands that are tested.
    signal.signal(signal.SIGHUP, lambda *_: None)


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--trials 2000``."""
    parser.addoption(
        "--trials", type=int, help="how often tests of accidents try one, instead of a few times"
    )


@pytest.fixture
def trials(request: pytest.FixtureRequest) -> int | None:
    """How often the person who runs the tests wants an accident tried; None: as often as the test says."""
    wanted: int | None = request.config.getoption("--trials")
    return wanted


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes for all fast tests, and for all slow ones.

    What was chosen by name runs in one, without xdist between it and the terminal; so do tests on a GPU, which measure
    its time and its memory. Tests that take gigabytes are in one file, so two of them never run at once.
    """
    everything = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not config.option.keyword
    if not everything or "gpu" in config.option.markexpr or Path("/dev/nvidiactl").exists():
        return 0
    os.environ |= {"OMP_NUM_THREADS": "1", "V2V_THREADS": "1"}  # each has a core
    return 2


def pytest_configure(config: pytest.Config) -> None:
    """What ``nohup`` lets this process ignore, the commands that are tested must not inherit."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is full-size is slow, and so is what needs something that takes long to make."""
    for item in items:
        if item.get_closest_marker("full_size") or SLOW_FIXTURES & {*getattr(item, "fixturenames", ())}:
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def own_store(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Every test has an empty store, and places for logs and jobs; no test sees or touches the user's."""
    root = tmp_path / "store"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("V2V_ENGINES", str(root))
    return root


@pytest.fixture(scope="session")
def small_engine_set(tmp_path_factory: pytest.TempPathFactory) -> EngineSet:
    """The small model with random weights for the CPU, exported by PyTorch; built once for all tests.

    Its folder is shared: copy it before changing anything in it.
    """
    pytest.importorskip("torch", reason="building engines needs PyTorch")
    model = MODELS["small"]
    size, frames = SMALL_WINDOW
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # common to the processes: who comes second waits and finds it built
    (folder / "engines").mkdir(exist_ok=True)
    return build_engine_set(
        model,
        weights="random:0",
        window=window_for(model, size, frames),
        backend_name="onnxruntime",
        options=BuildOptions(precision="fp32", device="cpu"),
        output=folder / "engines" / "small",
    ).engine_set


@pytest.fixture(scope="session")
def nvidia_compiler() -> ModuleType:
    """TensorRT for RTX, which compiles without a GPU; skips with a reason where it is not installed."""
    module: ModuleType = pytest.importorskip("tensorrt_rtx_bindings", exc_type=ImportError)
    return module


@pytest.fixture
def tensorrt(nvidia_compiler: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``import tensorrt`` finds NVIDIA's compiler for the length of a test.

    Where the two libraries have the same calls (parsing, building, reading plans), what runs is NVIDIA's.
    """
    monkeypatch.setattr(nvidia_compiler, "__version__", "11.4.0.106")
    monkeypatch.setitem(sys.modules, "tensorrt", nvidia_compiler)
    return nvidia_compiler


@pytest.fixture
def tensorrt_rtx(nvidia_compiler: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """TensorRT for RTX is here, and TensorRT is not."""
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    return nvidia_compiler
