"""A build that is killed at any moment leaves the store as it was, and the same command ends with the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from v2v.engine.manifest import MANIFEST

SCRIPT = "from v2v.engine.start import main; main()"


def start(store: Path, *arguments: str) -> subprocess.Popen[str]:
    """A build of the small model, whose graphs come with the package."""
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        "small",
        "--device",
        "cpu",
        "--backend",
        "onnxruntime",
        *arguments,
    ]
    return subprocess.Popen(
        command,
        env={**os.environ, "V2V_ENGINES": str(store)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def content(store: Path) -> dict[str, bytes]:
    """Every file of the store; of manifests what does not tell of time."""
    found = {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}
    for name in [name for name in found if name.endswith(MANIFEST)]:
        manifest = json.loads(found[name])
        for facts in (manifest, *manifest["components"].values()):
            for fact in ("created", "seconds", "export_seconds", "compile_seconds"):
                facts.pop(fact, None)
        found[name] = json.dumps(manifest).encode()
    return found


def built(store: Path, *arguments: str) -> dict[str, bytes]:
    process = start(store, *arguments)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    return content(store)


@pytest.mark.slow
@pytest.mark.parametrize("anew", [False, True])
def test_a_killed_build_goes_on_to_the_same_bytes(tmp_path: Path, anew: bool, trials: int | None) -> None:
    began = time.monotonic()
    expected = built(tmp_path / "undisturbed")
    seconds = time.monotonic() - began
    told = []
    for seed in range(trials or 6):
        store, moment = tmp_path / str(seed), random.Random(seed).uniform(0, seconds)
        force = ("--force",) if anew else ()
        if anew:
            built(store)
        process = start(store, *force)
        time.sleep(moment)
        told.append(f"{moment:.2f} s: {'killed' if process.poll() is None else 'had ended'}")
        os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
        process.communicate()
        assert built(store, *force) == expected, told
        assert not [path for path in store.iterdir() if path.name.endswith((".building", ".old"))], told
    print("\n".join(told))
