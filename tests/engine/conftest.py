"""What the engine tests share: NVIDIA's compiler on a CPU."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest


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
