"""Every kernel compiles for every architecture, without a GPU, and keeps its data in registers."""

from __future__ import annotations

import ctypes
import io
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from v2v.device import kernels

pytest.importorskip("cuda.core", reason="cuda-python is not installed: pip install 'v2v[cuda]'")
nvrtc = pytest.importorskip("cuda.bindings.nvrtc")

# As in CMakeLists.txt.
CAPABILITIES = [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]


@pytest.fixture(scope="module", autouse=True)
def compiler():
    try:
        nvrtc.nvrtcVersion()
    except RuntimeError as error:
        pytest.skip(f"NVRTC is not installed: pip install nvidia-cuda-nvrtc ({error})")


def driver_is_there():
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def expected(name):
    pictures = [f"{pixel}_{level}" for pixel in ("float32", "float16") for level in ("uint8", "uint16")]
    variants = {
        "combine": range(1, 6),
        "image_to_bytes": pictures,
        "prepare_frame": [f"{picture}_{span}" for picture in pictures for span in (0, 2, 3, 5)],
    }
    return {
        f"{kernel}_{variant}"
        for kernel in kernels.FILES[name]
        for variant in variants.get(kernel, ("float32", "float16"))
    }


@pytest.mark.parametrize(
    "capability",
    [CAPABILITIES[0], *(pytest.param(later, marks=pytest.mark.slow) for later in CAPABILITIES[1:])],
    ids=lambda c: f"sm_{c[0]}{c[1]}",
)
@pytest.mark.parametrize("name", kernels.FILES)
def test_compiles_without_spilling(name, capability):
    logs = io.StringIO()
    code = kernels.compile_source(name, capability, logs=logs)
    assert code.code.startswith(b"\x7fELF")
    report = logs.getvalue()
    assert set(re.findall(r"Compiling entry function '(\w+)'", report)) == expected(name)
    memory = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert memory == [("0", "0", "0")] * len(expected(name))
    # 768 threads of a multiprocessor can run at once, enough to hide the memory's latency.
    assert max(int(n) for n in re.findall(r"Used (\d+) registers", report)) <= 80


@pytest.mark.gpu
@pytest.mark.skipif(not driver_is_there(), reason="no NVIDIA driver, whose version decides which PTX will do")
def test_an_unknown_gpu_gets_ptx_that_its_driver_can_finish():
    code = kernels.compile_source("latents", (99, 0))
    assert b".entry take_window_float16" in code.code


def test_what_was_compiled_is_kept_and_found_again(tmp_path):
    first = kernels.compile_source("latents", (9, 0), cache=tmp_path)
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(kept) == 1
    times = kept[0].stat().st_mtime_ns
    assert kernels.compile_source("latents", (9, 0), cache=tmp_path).code == first.code
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == kept
    assert kept[0].stat().st_mtime_ns == times


def test_prebuilt_code_belongs_to_the_sources_it_was_made_from(tmp_path, monkeypatch):
    folder = kernels.FOLDER
    for file in folder.glob("*.cu*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    before = kernels.prebuilt("latents").name
    monkeypatch.setattr(kernels, "FOLDER", tmp_path)
    assert kernels.prebuilt("latents").name == before
    (tmp_path / "common.cuh").write_text((tmp_path / "common.cuh").read_text() + "\n")
    assert kernels.prebuilt("latents").name != before


def configure(folder, *options):
    """Run CMake on the project; returns what it said."""
    if not (cmake := shutil.which("cmake")):
        pytest.skip("CMake is not installed")
    root = Path(__file__).parents[2]
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    done = subprocess.run(
        [cmake, "-S", root, "-B", folder, *generator, *options], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(folder, number):
    """Let CMake build the fat binaries for one compute capability, as the wheel's build does for all."""
    configure(folder, f"-DV2V_CUDA_ARCHITECTURES={number}")
    done = subprocess.run(["cmake", "--build", folder], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_a_cuda_compiler_the_build_succeeds_and_adds_nothing(tmp_path):
    said = configure(tmp_path, "-DCMAKE_CUDA_COMPILER=NOTFOUND")
    assert "No CUDA compiler" in said
    assert "fatbin" not in (tmp_path / "cmake_install.cmake").read_text()


@pytest.mark.skipif(not shutil.which("nvcc"), reason="no CUDA compiler")
def test_with_a_cuda_compiler_the_package_gets_code_under_the_names_it_looks_for(tmp_path):
    said = configure(tmp_path)
    assert re.search(r"Compiling the CUDA kernels for [\d;]*90[\d;]* and PTX of", said)
    installed = (tmp_path / "cmake_install.cmake").read_text()
    for name in kernels.FILES:
        assert kernels.prebuilt(name).name in installed


@pytest.mark.gpu
@pytest.mark.skipif(not driver_is_there(), reason="no NVIDIA driver")
@pytest.mark.skipif(not shutil.which("nvcc"), reason="no CUDA compiler")
def test_what_cmake_builds_is_what_runs(tmp_path, monkeypatch):
    from cuda.core import Device

    from v2v.device import cuda

    device = Device()
    device.set_current()
    capability = device.compute_capability
    build(tmp_path, capability.major * 10 + capability.minor)
    named = kernels.prebuilt
    monkeypatch.setattr(kernels, "prebuilt", lambda name: tmp_path / named(name).name)
    monkeypatch.setattr(kernels, "compile_source", None)  # nothing may be compiled
    gpu = cuda.CudaDevice()
    assert {code.code_type for code in gpu.object_codes.values()} == {"fatbin"}
    x = gpu.upload(np.arange(100, dtype=np.float32))
    gpu.combine([(2.0, x), (1.0, x)], x)
    np.testing.assert_array_equal(gpu.download(x), 3 * np.arange(100))


@pytest.mark.gpu
@pytest.mark.skipif(not driver_is_there(), reason="no NVIDIA driver")
@pytest.mark.skipif(not shutil.which("nvcc"), reason="no CUDA compiler")
@pytest.mark.parametrize("fits", [True, False])
def test_prebuilt_code_is_loaded_where_it_fits_and_made_anew_where_not(tmp_path, monkeypatch, fits):
    from cuda.core import Device

    device = Device()
    device.set_current()
    capability = device.compute_capability.major, device.compute_capability.minor
    # Machine code of another generation, without PTX that the driver could finish.
    number = capability[0] * 10 + capability[1] if fits else 90 if capability[0] == 8 else 80
    made = tmp_path / "latents.fatbin"
    command = ["nvcc", "-std=c++17", "-fatbin", f"-gencode=arch=compute_{number},code=sm_{number}"]
    subprocess.run([*command, "-o", made, kernels.FOLDER / "latents.cu"], check=True)
    monkeypatch.setattr(kernels, "prebuilt", lambda name: made)
    monkeypatch.setattr(kernels.platformdirs, "user_cache_dir", lambda name: str(tmp_path / "cache"))
    code = kernels.load("latents", capability)
    assert code.code_type == ("fatbin" if fits else "cubin")
    assert (tmp_path / "cache").exists() != fits
    assert code.get_kernel("combine_5").attributes.num_regs > 0
