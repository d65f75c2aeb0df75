"""Nothing is sent to anyone, and nothing is written for that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Each way in which something of v2v comes to import ONNX Runtime.
WAYS = ("v2v.runtime.cli", "v2v.engine.cli", "v2v.engine.onnxruntime.backend", "v2v.export.graphs")

SCRIPT = """
import importlib, os, sys, time
importlib.import_module(sys.argv[1])
import onnxruntime
from pathlib import Path
session = onnxruntime.InferenceSession(sys.argv[2])
time.sleep(2)
links = []
for each in Path("/proc/self/fd").iterdir():
    try:
        links.append(str(each.readlink()))
    except OSError:
        pass
print([link for link in links if link.startswith("socket:")])
"""


@pytest.mark.parametrize("way", WAYS)
def test_an_open_session_writes_no_file_and_opens_no_socket(
    stand_in_engines: Path, tmp_path: Path, way: str
) -> None:
    if way == "v2v.export.graphs":
        pytest.importorskip("torch")
    here = {name: str(tmp_path) for name in ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "TMPDIR")}
    graph = stand_in_engines / "text_encoder" / "text_encoder.onnx"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ORT_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, way, str(graph)],
        env={**environment, **here},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
    assert [str(path) for path in tmp_path.rglob("*") if not path.is_dir()] == []
