"""How the service and the page are started: what is refused, who works at the same time as whom."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

import v2v.apps.options
from v2v.apps.options import is_local, lanes
from v2v.apps.serve import app
from v2v.core.errors import UsageError, V2VError


@pytest.mark.parametrize(
    ("visible", "workers", "expected"),
    [
        ("", None, ["0", "1", "2"]),
        ("", 2, ["0", "1"]),
        ("4,GPU-7f,6", None, ["4", "GPU-7f", "6"]),
    ],
)
def test_each_job_has_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, visible: str, workers: int | None, expected: list[str]
) -> None:
    monkeypatch.setattr(v2v.apps.options, "cuda_devices", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [lane["CUDA_VISIBLE_DEVICES"] for lane in lanes(workers, None)] == expected
    assert lanes(None, "cpu") == [{}]
    with pytest.raises(UsageError, match="there are 3 GPUs here"):
        lanes(4, "cuda")


def test_without_gpus_one_job_runs_at_a_time_unless_more_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(v2v.apps.options, "cuda_devices", lambda: 0)
    assert lanes(None, None) == [{}]
    assert lanes(2, None) == [{}, {}]


def test_addresses_of_this_machine_alone() -> None:
    assert all(map(is_local, ("127.0.0.1", "127.1.2.3", "localhost", "::1")))
    assert not any(map(is_local, ("0.0.0.0", "::", "192.168.0.2", "films.example")))


def test_mistakes_are_told(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")

    def start(*arguments: object) -> None:
        app(["--folder", str(tmp_path / "jobs"), *map(str, arguments)], standalone_mode=False)

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(V2VError, match="choose another one"):
        start("--port", taken.getsockname()[1])
    with pytest.raises(V2VError, match=r"--root .*none: there is no such folder"):
        start("--port", 0, "--root", tmp_path / "none")
    with pytest.raises(V2VError, match="less than 8 characters"):
        start("--port", 0, "--token", "short")
    with pytest.raises(V2VError, match="--device must be one of"):
        start("--port", 0, "--device", "tpu")
    assert not (tmp_path / "jobs").exists()


@pytest.mark.parametrize(
    ("program", "missing", "extra"), [("serve", "fastapi", "serve"), ("web", "gradio", "web")]
)
def test_where_the_extra_is_missing_it_is_named(program: str, missing: str, extra: str) -> None:
    script = f"import sys; sys.modules[{missing!r}] = None; from v2v.apps.start import {program}; {program}()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"pip install 'v2v[{extra}]'" in done.stderr
