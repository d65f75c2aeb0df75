"""What all tests share: a store of their own, and one real engine set of the small model."""

from __future__ import annotations

from pathlib import Path

import pytest

from v2v.core.components import window_for
from v2v.core.configs import MODELS
from v2v.engine.backend import BuildOptions
from v2v.engine.build import build_engine_set
from v2v.engine.store import EngineSet

SMALL_WINDOW = (80, 72), 4  # (width, height) and frames: as little as the small UNet takes


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of single tests."""
    parser.addoption("--kills", type=int, default=3, help="moments at which test_kill.py kills a run")


@pytest.fixture(autouse=True)
def own_store(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Every test has an empty store, and a place for logs; no test sees or touches the user's."""
    root = tmp_path / "store"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state"))
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
    return build_engine_set(
        model,
        weights="random:0",
        window=window_for(model, size, frames),
        backend_name="onnxruntime",
        options=BuildOptions(precision="fp32", device="cpu"),
        output=tmp_path_factory.mktemp("engines") / "small",
    ).engine_set
