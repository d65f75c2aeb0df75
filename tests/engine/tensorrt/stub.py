"""NVIDIA's own compiler under the ``tensorrt`` Python API, without a GPU and without NVIDIA's package index.

``onnxruntime-ep-nv-tensorrt-rtx-cu13`` carries TensorRT for RTX, which compiles ahead of time on a plain CPU;
``tensorrt-cu13-bindings`` is the Python API and expects ``libnvinfer`` and two more libraries.
``tensorrt_stub.c`` stands in for those three and passes every call on.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

RTX = ("libtensorrt_rtx.so", "libtensorrt_onnxparser_rtx.so")
STAND_INS = ("libnvinfer.so", "libnvonnxparser.so", "libnvinfer_plugin.so")


class Unavailable(Exception):
    """NVIDIA's compiler cannot run here; the message says what is missing."""


def load(folder: Path) -> ModuleType:
    """Load the libraries through ``folder`` and return the ``tensorrt`` Python API.

    Raises:
        Unavailable: a package or the C compiler is missing, or this is not Linux.
    """
    if "tensorrt_bindings" in sys.modules:  # libraries load once per process
        return sys.modules["tensorrt_bindings"]
    if not sys.platform.startswith("linux"):
        raise Unavailable("the stand-in for libnvinfer is written for Linux")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise Unavailable("there is no C compiler (cc, gcc or clang) for tensorrt_stub.c")
    if importlib.util.find_spec("tensorrt_bindings") is None:
        raise Unavailable("package tensorrt-cu13-bindings is not installed")
    provider = importlib.util.find_spec("onnxruntime_ep_nv_tensorrt_rtx")
    if provider is None or provider.origin is None:
        raise Unavailable("package onnxruntime-ep-nv-tensorrt-rtx-cu13 is not installed")
    for name in RTX:  # each looks for the other by its SONAME, so that must be the file's name
        (library,) = Path(provider.origin).parent.glob(f"{name}.*")
        link = folder / f"{name}.1"
        link.symlink_to(library)
        ctypes.CDLL(str(link), mode=ctypes.RTLD_GLOBAL)
    major = importlib.metadata.version("tensorrt-cu13-bindings").split(".")[0]
    source = Path(__file__).with_suffix(".c")
    for name in STAND_INS:
        made = folder / f"{name}.{major}"
        flags = ["-shared", "-fPIC", "-Wall", "-Werror", f"-Wl,-soname,{made.name}"]
        subprocess.run([compiler, *flags, str(source), "-o", str(made), "-ldl"], check=True)
        ctypes.CDLL(str(made))
    return importlib.import_module("tensorrt_bindings")
