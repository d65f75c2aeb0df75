"""``v2v-build-engines``: what a person types and what a person gets."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.stand_ins.model import MODEL
from tests.stand_ins.sets import ONNX, CopyBackend, build, install
from v2v.core.components import COMPONENTS
from v2v.core.configs import MODELS
from v2v.core.errors import BuildError, V2VError
from v2v.core.published import PUBLISHED
from v2v.engine import cli
from v2v.engine.backend import Compiled
from v2v.engine.build import Exporter
from v2v.engine.store import EngineSet, engines_root, list_sets

Run = Callable[..., "Result"]


class Result:
    """How a command ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process, with the stand-in model in place of PyTorch's."""
    monkeypatch.setitem(MODELS, "stand-in", MODEL)
    monkeypatch.setattr(Exporter, "default", classmethod(lambda cls: ONNX))
    monkeypatch.setattr("v2v.core.console.watch", lambda: None)
    for console in (cli.results, cli.messages):
        monkeypatch.setattr(console, "width", 200)

    def call(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["v2v-build-engines", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as leave:
            cli.main()
        return Result(int(leave.value.code or 0), *capfd.readouterr())

    return call


SIZE = ("--size", "64x80", "--frames", "4")


def test_a_build_ends_in_a_table(run: Run) -> None:
    result = run("stand-in", "--weights", "random:0", *SIZE)
    assert result.code == 0
    assert re.search(r"component\s+size\s+export\s+compile\s+error against PyTorch", result.out)
    for name in COMPONENTS:
        assert re.search(rf"{name} +\S+ (kB|bytes) +\d+\.\d\d s +\d+\.\d\d s +1\.3e-06", result.out), (
            result.out
        )
    (built,) = list_sets()
    assert isinstance(built, EngineSet)
    assert f"engine set: {built.path}" in result.out
    assert "weights are random numbers" in result.err


def test_progress_names_every_component(run: Run) -> None:
    result = run("stand-in", "--weights", "random:0", *SIZE)
    for name in ("weights", *COMPONENTS):
        assert re.search(rf"{name} .*\d:\d\d:\d\d", result.err), result.err


def test_building_again_says_that_it_is_there(run: Run) -> None:
    run("stand-in", "--weights", "random:0", *SIZE)
    result = run("stand-in", "--weights", "random:0", *SIZE)
    assert result.code == 0
    assert "already built (--force builds it anew)" in result.err


def test_output_names_the_folder(run: Run, tmp_path: Path) -> None:
    assert run("stand-in", "--weights", "random:0", *SIZE, "-o", str(tmp_path / "mine")).code == 0
    assert EngineSet.open(tmp_path / "mine").manifest.recipe.model == MODEL


def test_every_option_reaches_the_backend(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    install(CopyBackend(devices=("cuda",)), monkeypatch)
    result = run(
        *("stand-in", "--weights", "random:7", "--size", "128x144", "--frames", "32", "--backend", "copy"),
        *("--device", "cuda", "--precision", "fp16", "--workspace", "2.5", "--optimization-level", "4"),
        *("--option", "tactics=few", "--option", "library=tensorrt"),
    )
    assert result.code == 0, result.err
    (built,) = list_sets()
    assert isinstance(built, EngineSet)
    recipe = built.manifest.recipe
    assert recipe.weights.source == "random:7"
    assert (recipe.window.frames, recipe.window.height, recipe.window.width) == (32, 144, 128)
    assert (recipe.options.device, recipe.options.precision) == ("cuda", "fp16")
    assert recipe.options.extra == {
        "tactics": "few",
        "library": "tensorrt",
        "workspace": "2.5",
        "optimization_level": "4",
    }


@pytest.mark.parametrize("verbose", [True, False])
def test_verbose_shows_what_the_compiler_warns_of(
    run: Run, monkeypatch: pytest.MonkeyPatch, verbose: bool
) -> None:
    class Talkative(CopyBackend):
        def build(self, *arguments: Any) -> Compiled:
            logging.getLogger("v2v.engine.tensorrt.library").warning("kernel 7 was skipped")
            return super().build(*arguments)

    monkeypatch.setattr(logging.getLogger("v2v"), "handlers", [logging.NullHandler()])
    install(Talkative(), monkeypatch)
    arguments = ("stand-in", "--weights", "random:0", *SIZE, "--backend", "copy", *["--verbose"] * verbose)
    result = run(*arguments)
    assert result.code == 0
    assert ("warning: kernel 7 was skipped" in result.err) is verbose


def test_the_rebuild_command_is_one_that_the_command_takes(run: Run) -> None:
    run("stand-in", "--weights", "random:0", *SIZE, "--precision", "fp16")
    (built,) = list_sets()
    assert isinstance(built, EngineSet)
    assert run(*built.rebuild_command.split()[1:]).code == 0
    assert len(list(list_sets())) == 1


def test_weights_are_saved_on_request(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    assert run("stand-in", "--weights", "random:0", *SIZE, "--save-weights", str(folder)).code == 0
    assert (folder / "unet.safetensors").exists()


def test_list_shows_what_is_there_and_whether_it_runs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = install(CopyBackend(), monkeypatch)
    assert "0 engine sets" in run("--list").out
    good, other = build(backend="onnxruntime", exporter=ONNX).engine_set, build().engine_set
    backend.version = "2.0"
    damaged = build().engine_set
    (damaged.path / "unet/unet.onnx").unlink()
    result = run("--list")
    assert result.code == 0
    assert re.search(rf"{good.name}\n +1.7 MB, built 20\d\d-\d\d-\d\d \d\d:\d\d, runs here\n", result.out)
    assert re.search(rf"{other.name}\n .* does not run here: its version is 1.0, here is 2.0\n", result.out)
    assert "2 engine sets in" in result.out
    assert "unet.onnx is missing" in result.err


def test_verify_runs_every_component(run: Run) -> None:
    built = build(backend="onnxruntime", exporter=ONNX).engine_set
    result = run("--verify")
    assert result.code == 0, result.err
    for name in COMPONENTS:
        assert re.search(rf"{name} .* is the reference", result.out)
    assert f"verified on cpu: {built.path}" in result.out


def test_verify_compares_other_backends_with_onnxruntime(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from v2v.engine.onnxruntime.backend import OnnxRuntimeBackend

    backend = CopyBackend()
    monkeypatch.setattr(backend, "load", OnnxRuntimeBackend().load, raising=False)
    install(backend, monkeypatch)
    made = build(exporter=ONNX).engine_set
    exported_to = []

    def export(*arguments: Any) -> Any:
        exported_to.append(arguments[5].parent)
        return ONNX.export_component(*arguments)

    monkeypatch.setattr(Exporter, "default", classmethod(lambda cls: replace(ONNX, export_component=export)))
    result = run("--verify")
    assert result.code == 0, result.err
    assert re.search(r"unet .* 0\.0e\+00", result.out)
    assert set(exported_to) == {made.path.parent}  # gigabytes have room where the engines have
    assert [path.name for path in made.path.parent.iterdir() if path.name.startswith(".v2v-verify")] == []


def test_verify_refuses_an_engine_that_computes_something_else(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from v2v.engine.onnxruntime.backend import OnnxRuntimeEngine

    class Wrong(OnnxRuntimeEngine):
        def run(self, inputs, outputs, stream=0):  # type: ignore[no-untyped-def]
            super().run(inputs, outputs, stream)
            if self.component.name == "unet":
                outputs["velocity"] *= 1.01

    backend = CopyBackend()
    monkeypatch.setattr(
        backend,
        "load",
        lambda component, files, device: Wrong(component, files[0], device),
        raising=False,
    )
    install(backend, monkeypatch)
    build(exporter=ONNX)
    result = run("--verify")
    assert result.code == 2
    assert re.search(r"error: unet of .* differs from ONNX Runtime by 1\.0e-02, allowed is 1e-03", result.err)


def test_verify_finds_damage(run: Run, tmp_path: Path) -> None:
    built = build(tmp_path / "mine", backend="onnxruntime", exporter=ONNX).engine_set
    file = built.path / "unet/unet.onnx.data"
    file.write_bytes(bytes(file.stat().st_size))
    result = run("--verify", "-o", str(built.path))
    assert result.code == 2
    assert "unet.onnx.data is damaged: its SHA-256" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("huge",), f"model must be one of {', '.join((*MODELS, 'stand-in'))}, not 'huge'"),
        (("ms-vid2vid-xl", "--device", "cpu"), "the weights of ms-vid2vid-xl do not come with v2v"),
        (("--size", "1280"), "--size must be WIDTHxHEIGHT in pixels, as 1280x720, not '1280'"),
        (("stand-in", "--weights", "random:0", "--size", "64x64"), "nearest: 80"),
        (("--frames", "8:32"), "'--frames': Input should be a valid integer"),
        (("--frames", "0"), "'--frames': Input should be greater than or equal to 1"),
        (("--device", "tpu"), "--device must be one of cpu, cuda, not 'tpu'"),
        (("--backend", "magic"), "--backend must be one of tensorrt, inductor, onnxruntime, not 'magic'"),
        (("--precision", "int4"), "--precision must be one of fp16, fp32, not 'int4'"),
        (("--option", "tactics"), "--option must be KEY=VALUE, not 'tactics'"),
        (("--optimization-level", "9"), "--optimization-level"),
        (("--verify",), "there is no engine set in"),
        (("--verify", "-o", "nowhere"), "no engine set at nowhere"),
        (("--no-such-option",), "No such option"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run: Run, arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.code == 2
    assert message in result.err
    assert len(result.err.strip().splitlines()) == 1, result.err
    assert result.err.startswith("error: ")
    assert not engines_root().exists()


def test_without_pytorch_it_says_what_to_install(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['torch'] = None;"
        "sys.argv = ['v2v-build-engines', 'small', '--weights', 'random:0'];"
        "from v2v.engine.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"}
    )
    assert done.returncode == 2
    assert "install them with: pip install 'v2v[export]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_listing_needs_neither_torch_nor_onnx() -> None:
    script = "import sys; import v2v.engine.cli; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_errors_of_a_person_are_all_one_kind() -> None:
    assert issubclass(BuildError, V2VError)


def test_models_are_listed_with_what_a_person_must_know(run: Run) -> None:
    listed = run("--models")
    assert listed.code == 0
    told = dict(re.findall(r"^(\S+)\n((?:    .*\n)+)", listed.out, re.M))
    assert set(told) == set(MODELS) - {"stand-in"}
    for name, published in PUBLISHED.items():
        assert published.licence in told[name]
        assert f"hf:{published.repository}" in told[name]
        assert published.size in told[name]
        assert "memory" in told[name]
    assert "1280x720x32" in told["star-light"]
    assert "come with v2v" in told["small"]


def test_licence_and_what_is_uncertain_are_told_before_a_build(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    uncertain = replace(PUBLISHED["star-light"], provenance="Nobody knows whose they are.")
    monkeypatch.setitem(PUBLISHED, "stand-in", uncertain)
    result = run("stand-in", "--weights", "published:1", *SIZE)
    assert result.code == 0
    told = " ".join(result.err.split())
    assert f"licence of the weights of stand-in: {uncertain.licence}" in told
    assert told.index("Nobody knows whose they are.") < told.index("unet")
    assert "licence" not in run("stand-in", "--weights", "random:1", *SIZE).err
