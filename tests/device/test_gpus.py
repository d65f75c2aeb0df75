"""``--device cuda:1`` is the second GPU that a process sees, and the only one from then on."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from tests.installation import EXTRAS
from v2v.core.errors import UsageError
from v2v.device import gpus
from v2v.engine.choose import named_device

CHOOSE = """
import os, sys
from v2v.core.errors import UsageError
from v2v.engine.choose import named_device
for name in sys.argv[1:]:
    try:
        told = named_device(name)
    except UsageError as error:
        told = error
    print(told, os.environ.get("CUDA_VISIBLE_DEVICES"))
"""


def choices(visible: str | None, *names: str) -> list[str]:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    done = subprocess.run(
        [sys.executable, "-c", CHOOSE, *names],
        env={"PYTHONPATH": ":".join(sys.path), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("visible", "name", "told"),
    [
        (None, "cuda:1", "cuda 1"),
        ("3,5", "cuda:1", "cuda 5"),
        ("GPU-a, GPU-b", "cuda:0", "cuda GPU-a"),
        ("3,5", "cuda", "cuda 3,5"),
        (None, "cpu", "cpu None"),
    ],
)
def test_a_number_chooses_among_those_that_are_visible(visible: str | None, name: str, told: str) -> None:
    assert choices(visible, name) == [told]


def test_the_same_choice_again_changes_nothing_and_another_is_refused() -> None:
    first, again, other = choices("3,5", "cuda:1", "cuda:1", "cuda:0")
    assert first == again == "cuda 5"
    assert "it is too late to choose" in other


@pytest.mark.parametrize(("visible", "name"), [("3,5", "cuda:2"), (None, "cuda:x"), (None, "cuda:")])
def test_a_gpu_that_is_not_there_is_refused(visible: str | None, name: str) -> None:
    (told,) = choices(visible, name)
    assert told.startswith(f"--device {name}: there is no such GPU")


@pytest.mark.parametrize(("status", "late"), [(0, True), (3, False)])
def test_it_is_too_late_where_cuda_is_in_use(
    monkeypatch: pytest.MonkeyPatch, status: int, late: bool
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(cuDeviceGetCount=lambda count: status))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(gpus, "chosen", [])
    if late:
        with pytest.raises(UsageError, match="set CUDA_VISIBLE_DEVICES=1 before it starts"):
            gpus.see_only("1")
        return
    gpus.see_only("1")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


def test_other_names_are_refused() -> None:
    with pytest.raises(UsageError, match="--device must be one of cpu, cuda, not 'tpu'"):
        named_device("tpu")


@pytest.mark.parametrize(
    ("newer", "older"),
    [("cuda", "cuda12"), ("tensorrt", "tensorrt-cuda12"), ("tensorrt-rtx", "tensorrt-rtx-cuda12")],
)
def test_each_version_of_cuda_has_the_same_extras_of_packages_for_it_alone(newer: str, older: str) -> None:
    of_13, of_12 = ([Requirement(line) for line in EXTRAS[extra]] for extra in (newer, older))
    assert not any("cu12" in requirement.name for requirement in of_13)
    assert not any("cu13" in requirement.name for requirement in of_12)
    plain = [re.sub("-cu1[23]", "", requirement.name) for requirement in of_12]
    assert plain == [re.sub("-cu1[23]", "", requirement.name) for requirement in of_13]
    for requirement in of_12:
        if requirement.name in ("cuda-bindings", "nvidia-cuda-nvrtc-cu12"):
            assert "12.9.86" in requirement.specifier and "13.0" not in requirement.specifier
        if requirement.name == "v2v":
            assert requirement.extras == {"cuda12"}


def test_the_cuda_that_packages_are_for_decides_which_driver_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for version, cuda in (("12.9.10", 12), ("13.5.0", 13), ("14.0", 13)):
        monkeypatch.setattr(importlib.metadata, "version", {"cuda-bindings": version}.__getitem__)
        assert gpus.cuda_version() == cuda and cuda in gpus.DRIVERS
