"""Commands end within two seconds of Ctrl-C or ``kill``, even inside a call that never returns to Python."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.patience import takes_at_most

COMMAND = """
import hashlib, sys, time
from pathlib import Path
from v2v.core.abort import removed_on_abort
from v2v.core.console import new_app, run_app

app = new_app()

@app.command()
def command(how: str, unfinished: Path) -> None:
    unfinished.mkdir()
    (unfinished / "half").touch()
    with removed_on_abort(unfinished):
        print("working", flush=True)
        if how == "outside-python":
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
        try:
            time.sleep(60)
        finally:
            (unfinished / "half").unlink()
            unfinished.rmdir()

run_app(app)
"""


@pytest.mark.parametrize("how", ["in-python", "outside-python"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_command_stops_and_takes_its_unfinished_work_along(
    how: str, number: signal.Signals, tmp_path: Path
) -> None:
    def attempt(number_of_try: int) -> float:
        unfinished = tmp_path / f"unfinished-{number_of_try}"
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, how, str(unfinished)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        time.sleep(0.1)
        started = time.monotonic()
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        seconds = time.monotonic() - started
        assert process.returncode == 128 + number
        assert errors == ""
        assert not unfinished.exists()
        return seconds

    takes_at_most(2, attempt)


def catches(pid: int, number: signal.Signals) -> bool:
    text = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in text.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize("command", ["runtime", "engine", "benchmarks"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_a_command_is_imported_is_quiet(command: str, number: signal.Signals) -> None:
    script = f"from v2v.{command}.start import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", script, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not catches(process.pid, signal.SIGHUP):
        time.sleep(0.001)
    process.send_signal(number)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 128 + number
