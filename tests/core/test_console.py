"""However a command ends, it says so in one line and an exit code; a traceback is in a file, or asked for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from v2v.core.console import Console, Table, printable

COMMAND = """
import os, sys, threading, time
from v2v.core.console import messages, new_app, print_result, run_app, warn
from v2v.core.errors import V2VError

app = new_app()

@app.command()
def command(how: str, text: str = "") -> None:
    def fail():
        raise ZeroDivisionError("one of\\ntwo")

    if how == "bug":
        fail()
    if how == "bug-without-words":
        raise AssertionError
    if how == "end-of-file":
        raise EOFError("No data left in file")
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "no-memory":
        raise MemoryError
    if how == "no-file":
        open(text)
    if how == "for-people":
        raise V2VError(text)
    if how == "warning":
        warn(text)
    if how == "result":
        print_result({"text": text})
    if how == "opened":
        print_result({"number": os.open(os.devnull, os.O_RDONLY)})
    if how == "thread":
        other = threading.Thread(target=fail)
        other.start()
        other.join()
    if how == "opening":
        print("working", flush=True)
        try:
            time.sleep(30)
        except KeyboardInterrupt:
            raise V2VError("cannot be read: Immediate exit requested")

run_app(app)
"""


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "state" / "v2v" / "log"


@pytest.fixture
def call(tmp_path: Path):
    def call(*arguments: str, shell: str = "", **more: Any) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state"), **more.pop("env", {})}
        script = tmp_path / "command.py"
        script.write_text(COMMAND)
        given = {"capture_output": True, "text": True, "check": False, "timeout": 60, **more}
        if shell:
            words = ["bash", "-c", f'exec "$@" {shell}', "bash"]
            return subprocess.run([*words, sys.executable, script, *arguments], env=environment, **given)
        return subprocess.run([sys.executable, script, *arguments], env=environment, **given)

    return call


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("bug", "ZeroDivisionError: one of two"),
        ("bug-without-words", "(AssertionError)"),
        ("end-of-file", "EOFError: No data left in file"),
    ],
)
def test_what_nobody_foresaw_is_one_sentence_and_a_file(call, logs: Path, how: str, said: str) -> None:
    done = call(how)
    assert done.returncode == 70
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: this should not have happened")
    assert said in line
    (log,) = logs.iterdir()
    assert str(log) in line
    text = log.read_text()
    assert "Traceback (most recent call last)" in text
    assert f"command.py {how}" in text
    assert log.stat().st_mode & 0o077 == 0


def test_debug_shows_where_it_comes_from(call) -> None:
    done = call("bug", "--debug")
    assert done.returncode == 70
    assert "Traceback (most recent call last)" in done.stderr
    assert 'raise ZeroDivisionError("one of' in done.stderr
    assert "--debug" in call("--help").stdout


def test_where_no_log_can_be_written_the_temporary_folder_takes_it(call, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where a folder should be")
    (tmp_path / "temporary").mkdir()
    done = call("bug", env={"TMPDIR": str(tmp_path / "temporary")})
    (log,) = (tmp_path / "temporary").iterdir()
    assert str(log) in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_failure_in_a_thread_is_told_the_same_way(call, logs: Path) -> None:
    done = call("thread")
    assert "this should not have happened (ZeroDivisionError" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(list(logs.iterdir())) == 1


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("interrupt", 130, ""),
        ("no-memory", 2, "error: there is not enough memory"),
        ("no-file", 2, "error: missing: No such file or directory"),
        ("for-people", 2, "error: missing"),
        ("unknown", 0, ""),
    ],
)
def test_every_other_end_has_its_code(call, logs: Path, how: str, code: int, said: str) -> None:
    done = call(how, "--text", "missing")
    assert done.returncode == code
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == bool(said)
    assert not logs.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_has_its_own_code_whatever_it_makes_fail(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "opening"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert err == ""


def test_nohup_is_honoured() -> None:
    process = subprocess.Popen(
        ["nohup", sys.executable, "-c", COMMAND, "opening"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143


TYPED = "a :-1: [red]b[/red] :smile:"


def test_text_is_shown_as_it_was_typed(call) -> None:
    for how, code in (("for-people", 2), ("warning", 0)):
        done = call(how, "--text", TYPED)
        assert done.returncode == code
        assert TYPED in done.stderr
    assert TYPED in call("result", "--text", TYPED).stdout


def test_control_characters_do_not_reach_the_terminal(call) -> None:
    odd = "a\x1b]0;title\x07\x9b31m\r\u202e\udcff"
    for how in ("for-people", "warning", "result"):
        done = call(how, "--text", odd)
        assert done.returncode == (2 if how == "for-people" else 0), done.stderr
        assert all(each.isprintable() or each in "\n" for each in done.stdout + done.stderr)
        assert "title" in done.stdout + done.stderr
    assert printable(odd) == r"a\x1b]0;title\x07\x9b31m\r\u202e\udcff"
    assert printable("f\u00fcr\n\u65e5\u672c") == "f\u00fcr\n\u65e5\u672c"


def test_an_output_that_cannot_be_written_is_told(call) -> None:
    done = call("result", shell=">/dev/full")
    assert done.returncode == 2
    assert "the standard output takes no more: No space left on device" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = call("result", shell=">&-")
    assert done.returncode == 2
    assert "the standard output is closed" in done.stderr
    done = call("--help", shell=">/dev/full")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("shell", ["2>/dev/full", "2>&-"])
def test_nobody_who_listens_is_no_reason_to_stop(call, shell: str) -> None:
    done = call("warning", "--text", "hello", shell=shell)
    assert done.returncode == 0
    assert call("bug", shell=shell).returncode == 70


def test_files_do_not_get_the_number_of_a_closed_stream(call) -> None:
    for shell in ("<&-", "2>&-", "<&- 2>&-"):
        done = call("opened", shell=shell)
        assert int(done.stdout.split()[-2]) > 2


def test_nobody_who_reads_ends_it_quietly(call) -> None:
    done = call("result", "--text", "x" * 100_000, shell="| head -c 1")
    assert "Traceback" not in done.stderr
    assert "error" not in done.stderr


def test_a_table_shows_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither what steers a terminal nor what Rich takes for style or a picture."""
    table = Table("[red]\x1b[2J", "seconds")
    table.add_row("[bold]\x1b]0;title\x07 :-1: :smile:", "1.5")
    Console(width=100).print(table)
    shown = capsys.readouterr().out
    assert r"[red]\x1b[2J" in shown
    assert r"[bold]\x1b]0;title\x07 :-1: :smile:" in shown
    assert "\x1b" not in shown
