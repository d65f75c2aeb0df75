"""The NVIDIA GPUs of this machine."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
from dataclasses import dataclass
from typing import Any

from v2v.core.errors import EngineError, MachineError, UsageError, first_line

_DRIVER = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
_NOT_INITIALIZED = 3  # CUDA_ERROR_NOT_INITIALIZED


DRIVERS = {12: "r525", 13: "r580"}
"""The first NVIDIA driver for each version of CUDA that the extras install packages for."""


def cuda_version() -> int:
    """The version of CUDA that the installed packages are for; the newest where there are none."""
    try:
        installed = int(importlib.metadata.version("cuda-bindings").partition(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return max(DRIVERS)
    return installed if installed in DRIVERS else max(DRIVERS)


def cuda_devices() -> int:
    """How many GPUs the NVIDIA driver shows; 0 without a driver. Needs no CUDA library."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


chosen: list[str] = []
"""The number of the GPU that this process was told to see alone."""


def see_only(number: str) -> None:
    """From now on this process and those that it starts see the GPU of that ``number`` alone, as ``cuda``.

    Numbers are those of the GPUs that are visible now, from 0. The same choice again changes nothing.

    Raises:
        UsageError: it is no number of a GPU, or CUDA is in use already, when it is too late to choose.
    """
    if chosen == [number]:
        return
    visible = [each.strip() for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each.strip()]
    if not number.isdecimal() or (visible and int(number) >= len(visible)):
        shown = f"; CUDA_VISIBLE_DEVICES shows {len(visible)}, from cuda:0 on" if visible else ""
        raise UsageError(f"--device cuda:{number}: there is no such GPU{shown}")
    if chosen or _in_use():
        raise UsageError(
            f"--device cuda:{number}: this program uses CUDA already, and it is too late to choose; set "
            f"CUDA_VISIBLE_DEVICES={number} before it starts"
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[int(number)] if visible else number
    chosen.append(number)


def _in_use() -> bool:
    """Whether this process has begun to use the driver, which looks once at what it may see."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return False
    return int(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int(0)))) != _NOT_INITIALIZED


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU of this machine."""

    ordinal: int
    name: str
    capability: tuple[int, int]
    memory: int  # bytes
    driver: str  # newest CUDA version that it runs


def find_gpu(device: str = "cuda") -> Gpu:
    """Describe the GPU that ``device`` ("cuda" or "cuda:N") means.

    Raises:
        EngineError: ``device`` names no GPU.
        MachineError: there is no such GPU here, or it cannot be used; the message says why.
    """
    kind, _, ordinal = device.partition(":")
    if kind != "cuda" or not (ordinal or "0").isdigit():
        raise EngineError(f"TensorRT engines run on an NVIDIA GPU (device cuda), not on '{device}'")
    try:
        from cuda.bindings import driver as cu
    except ImportError as error:
        raise MachineError(
            f"cuda-python is not installed ({error}); install it with: pip install 'v2v[cuda]'"
        ) from error
    if not cuda_devices():
        raise MachineError("there is no NVIDIA GPU here, or its driver is not installed")
    try:
        call(cu.cuInit(0))
        handle = call(cu.cuDeviceGet(int(ordinal or 0)))
        attribute = cu.CUdevice_attribute
        major = call(cu.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, handle))
        minor = call(cu.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, handle))
        version = int(call(cu.cuDriverGetVersion()))
        name = bytes(call(cu.cuDeviceGetName(128, handle))).split(b"\0")[0].decode()
        memory = int(call(cu.cuDeviceTotalMem(handle)))
    except RuntimeError as error:
        raise MachineError(
            f"no NVIDIA GPU can be used here ({first_line(error)}); check with nvidia-smi that the driver runs"
        ) from error
    return Gpu(int(ordinal or 0), name, (major, minor), memory, f"{version // 1000}.{version % 1000 // 10}")


def call(returned: tuple[Any, ...]) -> Any:
    """The value of a CUDA driver call ``(status, value)``."""
    status, *values = returned
    if int(status) != 0:
        raise RuntimeError(str(getattr(status, "name", status)))
    return values[0] if values else None


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(number) for number in range(cuda_devices())]
    return [name.strip() for name in named.split(",") if name.strip()][: cuda_devices()]
