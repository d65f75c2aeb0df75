"""What the engine tests share: NVIDIA's compiler on a CPU."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from tests.engine.tensorrt import stub as tensorrt_stub


@pytest.fixture(scope="session")
def nvidia_compiler(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The ``tensorrt`` Python API on TensorRT for RTX; skips with a reason where it cannot run."""
    try:
        return tensorrt_stub.load(tmp_path_factory.mktemp("nvidia"))
    except tensorrt_stub.Unavailable as missing:
        pytest.skip(f"NVIDIA's compiler: {missing}")


@pytest.fixture
def tensorrt(nvidia_compiler: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``import tensorrt`` finds NVIDIA's compiler for the length of a test."""
    monkeypatch.setitem(sys.modules, "tensorrt", nvidia_compiler)
    return nvidia_compiler
