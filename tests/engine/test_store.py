"""Engine sets on disk: what they say, what makes them unfit, and that they appear whole or not at all."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.stand_ins.model import MODEL, WINDOW
from tests.stand_ins.sets import CopyBackend, build, install
from v2v.core.components import COMPONENTS, Window, components
from v2v.core.errors import BuildError, EngineError, MachineError, V2VError
from v2v.engine.backend import BuildOptions
from v2v.engine.manifest import FORMAT, MANIFEST, Manifest
from v2v.engine.store import (
    BUILD_MARK,
    EngineSet,
    NoEngineSet,
    Wanted,
    building_lock,
    engines_root,
    find,
    list_sets,
    new_set,
    stored_file,
    timing_cache_folder,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> CopyBackend:
    return install(CopyBackend(), monkeypatch)


@pytest.fixture
def built(backend: CopyBackend) -> EngineSet:
    return build().engine_set


def edit_manifest(path: Path, **changes: object) -> None:
    data = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**data, **changes}))


# What a set says --------------------------------------------------------------------------------------------


def test_the_manifest_survives_its_file(built: EngineSet) -> None:
    assert Manifest.from_json((built.path / MANIFEST).read_text()) == built.manifest


def test_the_manifest_holds_every_fact_of_the_build(built: EngineSet) -> None:
    data = json.loads((built.path / MANIFEST).read_text())
    recipe = data["recipe"]
    assert data["format"] == FORMAT
    assert recipe["model"]["unet"]["width"] == 32
    assert recipe["weights"]["source"] == "random:0"
    assert recipe["weights"]["kind"] == "random"
    assert len(recipe["weights"]["identity"]) == 64
    assert (recipe["window"]["frames"], recipe["window"]["height"], recipe["window"]["width"]) == (4, 80, 64)
    assert (recipe["options"]["precision"], recipe["options"]["device"]) == ("fp32", "cpu")
    assert recipe["backend"] == {
        "name": "copy",
        "version": "1.0",
        "facts": {"gpu": None, "driver": "500", "version": "1.0"},
    }
    unet = data["components"]["unet"]
    assert unet["error"] == 1.25e-6
    assert 0 <= unet["export_seconds"] < 1 and 0 <= unet["compile_seconds"] < 1
    assert [file["name"] for file in unet["files"]] == ["unet/unet.onnx", "unet/unet.onnx.data"]
    assert unet["files"][1]["bytes"] == 8000
    assert data["tokenizer"]["name"] == "tokenizer.json"


def test_a_set_holds_the_tokenizer_and_nothing_that_the_manifest_does_not_name(built: EngineSet) -> None:
    present = {p.relative_to(built.path).as_posix() for p in built.path.rglob("*") if p.is_file()}
    assert present == {MANIFEST, *(file.name for file in built.manifest.files)}
    assert json.loads(built.tokenizer_path.read_text())["model"]["type"] == "BPE"


def test_the_name_can_be_read(built: EngineSet) -> None:
    assert built.name.rpartition("-")[0] == "stand-in-random-64x80x4-fp32-cpu-copy-1.0"


def test_facts_of_what_depends_on_a_set_are_for_people(built: EngineSet) -> None:
    identity = built.manifest.recipe.weights.identity
    assert built.facts == {"model": MODEL.name, "weights": f"random {identity[:16]}", "engines": built.name}


def test_components_are_those_of_the_contract(built: EngineSet) -> None:
    expected = components(MODEL, WINDOW, "fp32")
    assert {name: built.component(name) for name in COMPONENTS} == expected


def test_a_set_can_be_moved(built: EngineSet, tmp_path: Path) -> None:
    moved = EngineSet.open(shutil.move(built.path, tmp_path / "elsewhere"))
    moved.verify()
    assert moved.load("unet", "cpu") == [
        tmp_path / "elsewhere/unet/unet.onnx",
        tmp_path / "elsewhere/unet/unet.onnx.data",
    ]


def test_the_command_in_the_manifest_builds_the_same_set(backend: CopyBackend) -> None:
    options = BuildOptions("fp16", "cpu", {"tactics": "few"})
    made = build(options=options).engine_set
    assert made.rebuild_command == (
        "v2v-build-engines stand-in --weights random:0 --size 64x80 --frames 4 --backend copy --device cpu "
        "--precision fp16 --option tactics=few --force"
    )


def test_a_manifest_with_a_range_of_frames_stays_readable(built: EngineSet) -> None:
    """No run made use of the range; version 0.1 wrote it among everybody's options, later ones among TensorRT's."""
    recipe = json.loads((built.path / MANIFEST).read_text())["recipe"]
    for ranged in ({"extra": {"frames": "2:4"}}, {"frames": [2, 4]}):
        edit_manifest(built.path, recipe={**recipe, "options": {**recipe["options"], **ranged}})
        assert EngineSet.open(built.path).rebuild_command == built.rebuild_command


def test_sets_are_kept_where_the_environment_says_or_in_the_users_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("V2V_ENGINES", "~/mine")
    assert engines_root() == tmp_path / "mine"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for unset in (lambda: monkeypatch.setenv("V2V_ENGINES", ""), lambda: monkeypatch.delenv("V2V_ENGINES")):
        unset()
        assert engines_root() == tmp_path / "cache" / "v2v" / "engines"
    assert list(list_sets()) == []
    with pytest.raises(NoEngineSet, match="it holds none"):
        find(Wanted())


def test_a_set_is_as_large_as_its_files(built: EngineSet) -> None:
    files = [path for path in built.path.rglob("*") if path.is_file() and path.name != MANIFEST]
    assert built.bytes == sum(path.stat().st_size for path in files) > 32_000
    read: list[int] = []
    built.verify(read.append)
    assert read == sorted(read)
    assert len(read) == len(files)
    assert read[-1] == built.bytes


def test_the_command_for_reuse_asks_for_it_and_for_all_else(built: EngineSet) -> None:
    assert built.command_with_reuse == built.manifest.recipe.command + " --reuse"


# Fit or not -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (Wanted(model="small"), "its model is stand-in, wanted is small"),
        (Wanted(window=Window(8, 80, 64)), "its window is 64x80x4, wanted is 64x80x8"),
        (Wanted(precision="fp16"), "its precision is fp32, wanted is fp16"),
        (Wanted(backend="tensorrt"), "its backend is copy, wanted is tensorrt"),
        (Wanted(weights="00ff"), "wanted is 00ff"),
        (Wanted(device="cuda"), "there is no cuda here"),
    ],
)
def test_what_differs_is_named_with_the_way_out(built: EngineSet, wanted: Wanted, reason: str) -> None:
    fits = built.suits(wanted)
    assert not fits.fits
    assert reason in fits.reason
    with pytest.raises(EngineError, match=r"v2v-build-engines stand-in .* --force") as error:
        built.require(wanted)
    assert reason in str(error.value)
    with pytest.raises(NoEngineSet, match="v2v-build-engines") as missing:
        find(wanted)
    assert reason in str(missing.value)


def test_what_was_asked_for_fits(built: EngineSet) -> None:
    wanted = Wanted("stand-in", WINDOW, "copy", "fp32", "cpu", built.manifest.recipe.weights.identity)
    built.require(wanted)
    assert find(wanted) == built


def test_what_was_built_in_is_named(backend: CopyBackend) -> None:
    plain = build().engine_set
    both = build(options=BuildOptions(reuse=True, extra={"fp8": "yes"})).engine_set
    assert plain.suits(Wanted(reuse=True)).reason == "it was built without --reuse"
    assert both.suits(Wanted(reuse=False)).reason == "it was built with --reuse"
    assert plain.suits(Wanted(fp8=True)).reason == "it was built without --option fp8=yes"
    assert both.suits(Wanted(fp8=False)).reason == "it was built with --option fp8=yes"
    for each, flag in ((plain, False), (both, True)):
        assert each.suits(Wanted(reuse=flag, fp8=flag)).fits
        assert each.suits(Wanted()).fits
        assert find(Wanted(reuse=flag)) == find(Wanted(fp8=flag)) == each
    assert find(Wanted()) == plain


@pytest.mark.parametrize(
    ("wanted", "command"),
    [
        (Wanted(), "v2v-build-engines MODEL"),
        (
            Wanted("small", Window(8, 80, 64), "tensorrt", "fp16", "cuda"),
            "v2v-build-engines small --size 64x80 --frames 8 --backend tensorrt --device cuda --precision fp16",
        ),
        (Wanted("small", reuse=True, fp8=True), "v2v-build-engines small --reuse --option fp8=yes"),
        (Wanted("small", reuse=False, fp8=False), "v2v-build-engines small"),
    ],
)
def test_where_nothing_fits_the_command_builds_what_does(
    built: EngineSet, wanted: Wanted, command: str
) -> None:
    shutil.rmtree(built.path)
    with pytest.raises(NoEngineSet) as missing:
        find(wanted)
    assert str(missing.value).endswith(f"(it holds none); build one with: {command}")


def test_where_it_runs_on_no_device_the_first_reason_is_told(backend: CopyBackend) -> None:
    backend.devices = ("cpu", "cuda")
    made = build().engine_set
    assert made.runs_on(None).fits
    backend.version = "2.0"
    assert made.runs_on(None).reason == "its version is 1.0, here is 2.0"
    backend.devices = ()
    assert made.runs_on(None).reason == "backend copy finds no device here"
    assert made.runs_on("cpu").reason == "there is no cpu here"


def test_another_version_of_the_backend_is_named(built: EngineSet, backend: CopyBackend) -> None:
    backend.version = "2.0"
    assert built.runs_on("cpu").reason == "its version is 1.0, here is 2.0"
    with pytest.raises(EngineError, match=r"its version is 1.0, here is 2.0; rebuild it with: v2v-build"):
        built.load("unet", "cpu")


def test_another_gpu_is_named(backend: CopyBackend) -> None:
    backend.gpu = "Card A"
    made = build().engine_set
    assert made.manifest.gpu == "Card A"
    backend.gpu = "Card B"
    assert made.runs_on("cpu").reason == "its gpu is Card A, here is Card B"


def test_a_backend_that_is_not_installed_is_named(built: EngineSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stand_in_backend_copy", None)
    assert "backend 'copy' is not installed here" in built.runs_on("cpu").reason


def test_a_component_with_other_tensors_is_named(built: EngineSet) -> None:
    records = json.loads((built.path / MANIFEST).read_text())["components"]
    records["unet"]["inputs"][0]["name"] = "sample"
    edit_manifest(built.path, components=records)
    assert "its unet takes or gives other tensors" in EngineSet.open(built.path).runs_on("cpu").reason


def test_a_changed_model_of_the_package_is_named(built: EngineSet, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from v2v.core.configs import MODELS

    monkeypatch.setitem(MODELS, "stand-in", replace(MODEL, latent_scale=0.25))
    assert "model stand-in has changed" in built.suits(Wanted(model="stand-in")).reason


def test_the_best_set_is_found(backend: CopyBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    install(CopyBackend("other", devices=("cuda", "cpu")), monkeypatch)
    on_cpu = build().engine_set
    time.sleep(0.002)
    newer = build(weights="random:1").engine_set
    on_gpu = build(backend="other", options=BuildOptions(device="cuda")).engine_set
    assert find(Wanted()) == on_gpu
    assert find(Wanted(backend="copy")) == newer
    assert find(Wanted(weights=on_cpu.manifest.recipe.weights.identity, backend="copy")) == on_cpu


# Damage -----------------------------------------------------------------------------------------------------


def test_a_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(
        EngineError, match=r"no engine set at .*nowhere: there is no such folder; v2v-build-engines"
    ):
        EngineSet.open(tmp_path / "nowhere")


def test_a_missing_manifest_says_so(built: EngineSet) -> None:
    (built.path / MANIFEST).unlink()
    with pytest.raises(EngineError, match=r"is not an engine set: it has no manifest.json; build one with"):
        EngineSet.open(built.path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}', '{"format": "one"}', "null", "\0\0"])
def test_a_damaged_manifest_says_so(built: EngineSet, text: str) -> None:
    (built.path / MANIFEST).write_text(text)
    with pytest.raises(EngineError, match=r"manifest.json .*is damaged"):
        EngineSet.open(built.path)


def test_a_newer_format_says_so(built: EngineSet) -> None:
    edit_manifest(built.path, format=FORMAT + 1)
    with pytest.raises(EngineError, match=rf"has format {FORMAT + 1}, .* reads up to {FORMAT}; update v2v"):
        EngineSet.open(built.path)


def test_a_truncated_file_is_named_before_anything_runs(built: EngineSet, backend: CopyBackend) -> None:
    file = built.path / "unet/unet.onnx.data"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(EngineError, match=r"unet.onnx.data has 7999 bytes instead of 8000; rebuild"):
        EngineSet.open(built.path)
    with pytest.raises(EngineError, match=r"unet.onnx.data has 7999 bytes instead of 8000; rebuild"):
        built.load("unet", "cpu")
    assert backend.loaded == []


def test_a_missing_file_is_named(built: EngineSet) -> None:
    (built.path / "vae_decoder/vae_decoder.onnx").unlink()
    with pytest.raises(EngineError, match=r"vae_decoder.onnx is missing .*; rebuild the engine set with"):
        EngineSet.open(built.path)


def test_a_flipped_bit_is_found_by_verify(built: EngineSet) -> None:
    file = built.path / "vae_encoder/vae_encoder.onnx.data"
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    with pytest.raises(EngineError, match=r"vae_encoder.onnx.data is damaged: its SHA-256"):
        EngineSet.open(built.path).verify()


class Loaded:
    """An engine that says whether it was closed."""

    closed = False

    def close(self) -> None:
        self.closed = True


def test_a_large_file_is_checked_while_it_is_loaded(built: EngineSet, backend: CopyBackend) -> None:
    large = built.path / "unet/unet.onnx.data"
    os.truncate(large, 80 << 20)
    records = json.loads((built.path / MANIFEST).read_text())["components"]
    described = stored_file(large, built.path)
    assert (described.name, described.bytes) == ("unet/unet.onnx.data", 80 << 20)
    records["unet"]["files"][1] |= {"bytes": described.bytes, "sha256": described.sha256}
    edit_manifest(built.path, components=records)
    changed = EngineSet.open(built.path)
    engine: Any = Loaded()
    backend.load = lambda component, files, device: engine  # type: ignore[method-assign]
    assert changed.load("unet", "cpu") is engine
    assert not engine.closed
    with large.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    with pytest.raises(EngineError, match=r"unet\.onnx\.data is damaged: .*; rebuild the engine set with"):
        changed.load("unet", "cpu")
    assert engine.closed


def test_what_keeps_an_engine_from_loading_is_told_with_what_helps(
    built: EngineSet, backend: CopyBackend
) -> None:
    def fail(component: Any, files: Any, device: str) -> Any:
        raise error

    backend.load = fail  # type: ignore[method-assign]
    error: EngineError = MachineError("the GPU's memory is full")
    with pytest.raises(MachineError, match=r"the GPU.s memory is full$"):
        built.load("unet", "cpu")
    error = EngineError("the engine is odd")
    with pytest.raises(
        EngineError, match=r"the engine is odd; rebuild the engine set with: v2v-build-engines"
    ):
        built.load("unet", "cpu")


def test_a_damaged_set_in_the_store_is_listed_and_built_anew(built: EngineSet) -> None:
    (built.path / "unet/unet.onnx").write_bytes(b"")
    assert [type(found) for found in list_sets()] == [EngineError]
    again = build()
    assert again.fresh
    assert again.engine_set.path == built.path
    again.engine_set.verify()


# Building ---------------------------------------------------------------------------------------------------


def test_what_is_there_is_not_built_again(built: EngineSet) -> None:
    again = build()
    assert not again.fresh
    assert again.engine_set == built


def test_a_new_driver_alone_builds_nothing(built: EngineSet, backend: CopyBackend) -> None:
    backend.driver = "600"
    assert build().engine_set == built


def test_a_new_version_builds_beside(built: EngineSet, backend: CopyBackend) -> None:
    backend.version = "2.0"
    assert build().fresh
    assert len(list(list_sets())) == 2


def test_force_builds_anew(built: EngineSet) -> None:
    time.sleep(0.002)
    again = build(force=True)
    assert again.fresh
    assert again.engine_set.manifest.created > built.manifest.created
    assert list(list_sets()) == [again.engine_set]


def test_a_failed_build_leaves_nothing_and_keeps_what_was_there(
    built: EngineSet, backend: CopyBackend
) -> None:
    def fail(name: str) -> None:
        if name == "unet":
            raise BuildError("this compiler gives up")

    backend.compiled = fail
    before = sorted(engines_root().iterdir())
    with pytest.raises(BuildError, match="gives up"):
        build(force=True)
    assert sorted(engines_root().iterdir()) == before
    built.verify()


def test_a_full_disk_is_one_line(backend: CopyBackend, tmp_path: Path) -> None:
    def full(name: str) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    backend.compiled = full
    with pytest.raises(BuildError, match=r"the disk is full; the engine set .*mine was not built"):
        build(tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_an_unwritable_folder_is_one_line(backend: CopyBackend, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BuildError, match=r"cannot write the engine set .*; name another folder with -o"):
        build(tmp_path / "file" / "mine")


def test_an_output_folder_becomes_the_set(backend: CopyBackend, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    made = build(tmp_path / "mine").engine_set
    assert made.path == tmp_path / "mine"
    assert made.rebuild_command.endswith(f"-o {tmp_path / 'mine'} --force")
    assert list(list_sets()) == []


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_the_users_is_never_replaced(backend: CopyBackend, tmp_path: Path, force: bool) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / MANIFEST).write_text('{"name": "a web page"}')
    (mine / "photo.jpg").write_bytes(b"dear")
    with pytest.raises(BuildError, match="exists and is no engine set"):
        build(mine, force=force)
    assert (mine / "photo.jpg").read_bytes() == b"dear"


@pytest.mark.parametrize("kind", ["file", "link", "broken link"])
def test_what_is_no_folder_is_never_replaced(backend: CopyBackend, tmp_path: Path, kind: str) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    if kind == "file":
        mine.write_bytes(b"dear")
    else:
        mine.symlink_to(other)
        if kind == "link":
            other.mkdir()
    with pytest.raises(BuildError, match="mine exists and is not a folder"):
        build(mine, force=True)
    assert mine.is_symlink() == (kind != "file")


def test_a_build_without_a_manifest_is_none(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    with (
        pytest.raises(V2VError, match="ended without a manifest"),
        building_lock(path),
        new_set(path) as made,
    ):
        (made / "engine").touch()
    assert not path.exists()
    assert [left.name for left in tmp_path.iterdir()] == [".mine.lock"]


def test_a_set_that_was_being_replaced_is_put_back(built: EngineSet, tmp_path: Path) -> None:
    """A build may be killed between taking the old set away and giving the new one its name."""
    old = built.path.rename(built.path.with_name(f".{built.name}.old"))
    (old / BUILD_MARK).touch()
    (dead := built.path.with_name(f".{built.name}.building")).mkdir()
    (dead / BUILD_MARK).touch()
    (dead / "unet").mkdir()
    (dead / "unet" / "half").touch()
    (abandoned := built.path.with_name(".other.building")).mkdir()
    (abandoned / BUILD_MARK).touch()
    (abandoned / "half").touch()
    built.path.with_name(".begun.building").mkdir()  # killed before it left its mark
    assert not build().fresh
    build(weights="random:1")
    built.verify()
    assert list(engines_root().glob(".*.building")) == list(engines_root().glob(".*.old")) == []
    assert not (built.path / BUILD_MARK).exists()


def test_a_users_file_inside_a_set_is_never_deleted(backend: CopyBackend, tmp_path: Path) -> None:
    mine = build(tmp_path / "mine").engine_set
    (mine.path / "film.mkv").write_bytes(b"dear")
    with pytest.raises(BuildError, match=r"also holds what is no part of its engine set \(film.mkv\)"):
        build(mine.path, force=True)
    assert (mine.path / "film.mkv").exists()


def test_another_set_is_replaced_only_by_force(backend: CopyBackend, tmp_path: Path) -> None:
    mine = build(tmp_path / "mine").engine_set
    with pytest.raises(BuildError, match=r"its window is 64x80x4, wanted is 64x80x8\); --force replaces it"):
        build(mine.path, window=Window(8, 80, 64))
    assert EngineSet.open(mine.path) == mine
    assert build(mine.path, window=Window(8, 80, 64), force=True).fresh
    assert EngineSet.open(mine.path).manifest.recipe.window.frames == 8


def test_a_users_folder_that_looks_like_a_dead_build_is_left_alone(
    backend: CopyBackend, tmp_path: Path
) -> None:
    stranger = tmp_path / ".work.building"
    stranger.mkdir()
    (stranger / "notes.txt").touch()
    with pytest.raises(EngineError, match=r"\.work\.building is in the way .*; move it away"):
        build(tmp_path / "work")
    build(tmp_path / "mine")
    assert (stranger / "notes.txt").exists()


def test_the_timing_cache_lies_beside_the_sets_and_is_none(built: EngineSet) -> None:
    timing_cache_folder().mkdir()
    assert timing_cache_folder().parent == engines_root()
    assert list(list_sets()) == [built]


# Interruptions ----------------------------------------------------------------------------------------------

BUILDER = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.stand_ins.sets import CopyBackend, build, install
backend = install(CopyBackend(pause=float(sys.argv[2])))
print("ready", flush=True)
while True:
    built = build(force=sys.argv[3] == "forever")
    print("built" if built.fresh else "found", flush=True)
    if sys.argv[3] != "forever":
        break
"""


def start_builder(pause: float, times: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", BUILDER, str(ROOT), str(pause), times]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def test_a_build_killed_at_any_moment_leaves_nothing_that_looks_finished(backend: CopyBackend) -> None:
    moments = random.Random(1)
    for _ in range(8):
        process = start_builder(0.005, "forever")
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(moments.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for found in list_sets():
            assert isinstance(found, EngineSet)
            found.verify()
    build()
    (left,) = list_sets()
    assert isinstance(left, EngineSet)
    assert {p.name for p in engines_root().iterdir()} == {left.name, f".{left.name}.lock"}


def test_two_builds_of_one_set_do_the_work_once(backend: CopyBackend) -> None:
    builders = [start_builder(0.2, "once") for _ in range(2)]
    said = sorted(builder.communicate()[0].split()[-1] for builder in builders)
    assert said == ["built", "found"]


def test_the_one_that_waits_says_so(backend: CopyBackend) -> None:
    builder = start_builder(0.4, "once")
    assert builder.stdout is not None
    builder.stdout.readline()
    while not list(engines_root().glob(".*.building")):
        time.sleep(0.01)
    phases: list[str] = []
    assert not build(progress=lambda component, phase, share: phases.append(phase)).fresh
    assert "waiting for another build" in phases
    builder.communicate()
