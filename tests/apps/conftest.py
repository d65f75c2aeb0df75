"""Services in processes of their own, on engines of a few lines of ONNX."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.runtime.clips import make_video
from tests.stand_ins import command


@pytest.fixture(scope="session")
def stand_in_engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an engine set that runs in no time."""
    return command.build_engines(tmp_path_factory.mktemp("stand-in-engines"))


@pytest.fixture(scope="session")
def first_stage_engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an engine set that makes films of pictures."""
    return command.build_first_stage(tmp_path_factory.mktemp("first-stage-engines"))


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film of several segments, with sound."""
    return make_video(tmp_path_factory.mktemp("films") / "film.mp4", frames=40, sounds=1)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film of a few pictures."""
    return make_video(tmp_path_factory.mktemp("clips") / "clip.mp4", frames=4)


# Notes whatever the server asks of the network, before it imports anything that may.
_WATCH = """
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        print("asks the network:", event, arguments[-1] if event == "socket.connect" else arguments, file=sys.stderr)
sys.addaudithook(watch)
"""


class Server:
    """``v2v-serve`` or ``v2v-web`` in a process of its own."""

    def __init__(self, program: str, arguments: tuple[object, ...], log: Path) -> None:
        script = f"{_WATCH}\nfrom v2v.apps.start import {program}; {program}()"
        self._log = log
        with log.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-c", script, "--port", "0", *map(str, arguments)], stdout=said, stderr=said
            )
        self.address, self.link = self._listening()

    @property
    def said(self) -> str:
        """What it has printed."""
        return self._log.read_text(errors="replace")

    @property
    def asked(self) -> list[str]:
        """What it has asked of the network."""
        return [line for line in self.said.splitlines() if "asks the network" in line]

    @property
    def memory(self) -> int:
        """Bytes that it holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) << 10

    def _listening(self) -> tuple[str, str]:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            if found := re.search(r"listening on ((http://\S+:\d+)/\S*)", self.said):
                return found[2], found[1]
            assert self.process.poll() is None, self.said
            time.sleep(0.05)
        raise AssertionError(f"it does not listen: {self.said}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it by a signal; returns its exit code."""
        self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture(scope="session")
def servers(
    tmp_path_factory: pytest.TempPathFactory, stand_in_engines: Path, first_stage_engines: Path
) -> Iterator[Callable[..., Server]]:
    """Lends a function that starts one; all are ended."""
    started: list[Server] = []
    place = tmp_path_factory.mktemp("servers")
    engines = ("--engines", stand_in_engines, "--engines-first", first_stage_engines)
    os.environ.setdefault("V2V_THREADS", "1")

    def start(program: str, folder: Path, *arguments: object) -> Server:
        log = place / f"{len(started)}.log"
        started.append(Server(program, ("--folder", folder, *engines, *arguments), log))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.stop(signal.SIGKILL)
