"""``v2v-bench`` as a person types it."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.benchmarks import made
from tests.benchmarks.browser import look_at
from v2v.benchmarks.cli import app
from v2v.benchmarks.results import Results
from v2v.core.errors import V2VError

pytest.importorskip("torch", reason="the quick benchmark builds engines")


def bench(*arguments, store=None, timeout=60):
    environment = dict(os.environ)
    if store is not None:
        environment["V2V_ENGINES"] = str(store)
    command = [sys.executable, "-c", "from v2v.benchmarks.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)


@pytest.fixture(scope="module")
def quick(small_engine_set, tmp_path_factory):
    """One quick session of everything; its engine set is the one that the tests share."""
    folder = tmp_path_factory.mktemp("quick") / "report"
    before = processor_seconds()
    done = bench("--quick", "-o", folder, "--repeats", 1, store=small_engine_set.path.parent, timeout=500)
    assert done.returncode == 0, done.stderr
    return done, folder, processor_seconds() - before


def processor_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_quick_measures_an_engine_set_and_the_eager_baseline(quick):
    _, folder, _ = quick
    results = Results.read(folder)
    assert [m.subject.kind for m in results.measured] == ["eager", "engines"]
    assert results.failed == ()
    assert {m.subject.device for m in results.measured} == {"cpu"}
    assert [sweep.over for sweep in results.measured[1].sweeps] == ["steps", "frames"]
    assert {work.component for work in results.work} == {"unet", "vae_encoder", "vae_decoder", "text_encoder"}
    assert results.ceilings[0].device == "cpu"
    assert results.command.startswith("v2v-bench --quick")


def test_quick_takes_less_than_two_minutes(quick):
    """Processor time: on an idle machine the clock shows less, on a busy one it shows what others do."""
    assert quick[2] < 120


def test_its_page_opens_in_a_browser(quick, tmp_path):
    _, folder, _ = quick
    seen = look_at((folder / "report.html").read_text(), tmp_path)
    assert seen["problems"] == []
    assert seen["drawn"] == "yes"
    assert seen["plots"] == 4  # timeline, roofline, two sweeps
    assert seen["overlaps"] == []
    assert "ONNX Runtime fp32 (cpu)" in seen["text"]
    assert "PyTorch eager (cpu)" in seen["text"]


def test_the_table_and_the_place_of_the_report_are_printed(quick):
    done, folder, _ = quick
    assert "PyTorch eager" in done.stdout
    assert f"report: {folder / 'report.html'}" in done.stdout
    assert "weights are random" in done.stderr


@pytest.mark.slow
def test_an_engine_set_by_name_as_json(small_engine_set):
    done = bench(
        "--engines", small_engine_set.path, "--baseline", "none", "--json", "--repeats", 1, timeout=300
    )
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert [m["subject"]["engine_set"] for m in data["measured"]] == [small_engine_set.name]
    assert data["measured"][0]["sweeps"] == []


@pytest.mark.slow
def test_one_that_fails_is_listed_and_the_others_are_measured(small_engine_set, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(small_engine_set.path, broken)
    graph = next((broken / "unet").glob("*.onnx"))
    graph.write_bytes(bytes(graph.stat().st_size))
    done = bench(
        "--engines",
        broken,
        small_engine_set.path,
        "--baseline",
        "none",
        "--repeats",
        1,
        "-o",
        tmp_path / "out",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    results = Results.read(tmp_path / "out")
    assert len(results.measured) == 1
    (failed,) = results.failed
    assert "unet" in failed.reason
    assert f"{failed.name} was not measured" in done.stderr


def test_ctrl_c_ends_everything_and_leaves_nothing(small_engine_set, tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    arguments = [
        str(small_engine_set.path),
        "--baseline",
        "none",
        "--repeats",
        "1000",
        "-o",
        str(tmp_path / "out"),
    ]
    command = [sys.executable, "-c", "from v2v.benchmarks.cli import main; main()", *arguments]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        await_(lambda: list(tmp_path.glob("v2v-bench-*/0/out*.mp4")), 120)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert workers
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert process.returncode == 130
    await_(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), 60)
    assert {path.name for path in tmp_path.iterdir()} <= {".ses"}  # a file that ONNX Runtime keeps there


def await_(condition, seconds):
    """Wait until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_comparing_with_itself_finds_nothing(quick):
    _, folder, _ = quick
    done = bench("--compare", folder, folder / "results.json")
    assert done.returncode == 0, done.stderr
    assert "nothing got worse" in done.stdout


def test_what_got_slower_is_said_with_its_spread(tmp_path):
    for name, unet in (("old", 0.1), ("new", 0.15)):
        (tmp_path / f"{name}.json").write_text(made.results(made.measured(unet=unet)).to_json())
    done = bench("--compare", tmp_path / "old.json", tmp_path / "new.json")
    assert done.returncode == 1
    line = next(line for line in done.stdout.splitlines() if "UNet evaluation" in line)
    assert "100 ms (99.2 ms to 101 ms)" in line
    assert "150 ms (149 ms to 151 ms)" in line
    assert "+50.0 %" in line
    assert "slower" in line
    as_json = bench("--compare", tmp_path / "new.json", tmp_path / "old.json", "--json")
    assert as_json.returncode == 0
    verdicts = {c["quantity"]: c["verdict"] for c in json.loads(as_json.stdout)["changes"]}
    assert verdicts["UNet evaluation"] == "faster"
    assert verdicts["load"] == "same"


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = bench("--sweep", "colours", "--quick")
    assert done.returncode == 2
    assert done.stderr == "error: --sweep must be one of frames, pixels, steps, not 'colours'\n"
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "no engine set at nowhere"),
        (["nowhere", "--quick"], "not both"),
        (["--baseline", "none", "--baseline", "eager"], "cannot be combined"),
        (["--baseline", "jax"], "--baseline must be one of eager, compile, none"),
        (["--backend", "jax"], "--backend must be one of"),
        (["--window", "720p"], "--window must be WIDTHxHEIGHTxFRAMES"),
        (["--window", "81x72x4"], "multiple of 16"),
        (["--device", "tpu"], "--device must be one of cpu, cuda"),
        (["--model", "large"], "--model must be one of"),
        (["--quick", "-o", "no/such/folder"], "create it first"),
        (["--compare", "old.json", "new.json"], "old.json: no such file"),
    ],
)
def test_mistakes_are_told_before_any_work(tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(V2VError, match=says):
        app(arguments, standalone_mode=False)
    assert list(tmp_path.iterdir()) == []


def test_a_report_is_not_overwritten_unasked(tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "results.json").write_text("{}")
    done = bench("--quick", "-o", tmp_path / "report")
    assert done.returncode == 2
    assert "--overwrite" in done.stderr
    assert (tmp_path / "report" / "results.json").read_text() == "{}"
