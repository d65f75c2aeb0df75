"""Weights come from where they are said to come from, fit their model, and never bring code along."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import resource
import sys
import types
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from v2v.core.configs import AutoencoderConfig, ModelConfig, TextEncoderConfig, UNetConfig
from v2v.core.errors import V2VError
from v2v.core.published import PUBLISHED
from v2v.export import weights as module
from v2v.export.weights import WeightsError, load_weights, networks_of, read_pickle, save_safetensors

TINY = ModelConfig(
    "tiny",
    unet=UNetConfig(
        width=32, multipliers=(1, 1, 1, 1), blocks=1, head_size=16, stem_heads=1, context_width=16
    ),
    autoencoder=AutoencoderConfig(width=32, multipliers=(1, 1, 1, 1), blocks=1),
    text_encoder=TextEncoderConfig(width=16, heads=1, layers=2, vocabulary=50),
)


FILES = PUBLISHED["ms-vid2vid-xl"].files


@pytest.fixture(autouse=True)
def tiny_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PUBLISHED, TINY.name, PUBLISHED["ms-vid2vid-xl"])


@pytest.fixture(scope="module")
def states() -> dict[str, dict[str, torch.Tensor]]:
    made = load_weights("random:3", TINY)
    return {network: made.state_dict(network) for network in networks_of(TINY)}


@pytest.fixture
def published(tmp_path: Path, states: dict[str, dict[str, torch.Tensor]]) -> Path:
    """A folder like the published one, in form and names, with tiny networks in it."""
    folder = tmp_path / "published"
    folder.mkdir()
    torch.save({"state_dict": states["unet"]}, folder / "non_ema_0035000.pth")
    sd = {f"first_stage_model.{k}": v for k, v in states["autoencoder"].items()}
    sd |= {
        "model.diffusion_model.out.0.weight": torch.ones(3),
        "cond_stage_model.logit_scale": torch.ones(()),
    }
    torch.save({"state_dict": sd, "global_step": 7}, folder / "v2-1_512-ema-pruned.ckpt")
    torch.save(
        states["text_encoder"] | {"visual.proj": torch.ones(2, 2)}, folder / "open_clip_pytorch_model.bin"
    )
    return folder


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in expected)


# Published files --------------------------------------------------------------------------------------------


def test_published_checkpoints_are_unwrapped(published: Path, states: Any) -> None:
    found = load_weights(str(published), TINY, verify=False)
    assert found.kind == "trained"
    for network in networks_of(TINY):
        assert same(found.state_dict(network), states[network]), network


def test_a_file_with_a_published_name_must_be_the_published_file(published: Path) -> None:
    with pytest.raises(WeightsError, match=r"non_ema_0035000\.pth: is not the published file.*bytes"):
        load_weights(str(published), TINY)


def test_digests_are_verified(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        network: replace(
            file, bytes=None, sha256=hashlib.sha256((published / file.name).read_bytes()).hexdigest()
        )
        for network, file in FILES.items()
    }
    monkeypatch.setitem(PUBLISHED, TINY.name, replace(PUBLISHED[TINY.name], files=known))
    heard: list[tuple[str, float]] = []
    assert load_weights(str(published), TINY, lambda *said: heard.append(said)).kind == "published"
    assert ("checking non_ema_0035000.pth", 1.0) in heard

    path = published / "v2-1_512-ema-pruned.ckpt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"v2-1_512-ema-pruned\.ckpt: is not the published file.*sha256"):
        load_weights(str(published), TINY)


def test_configuration_json_names_the_files(published: Path, states: Any) -> None:
    arguments = {"ckpt_unet": "u.pth", "ckpt_clip": "t.bin", "ckpt_autoencoder": "a.ckpt"}
    for file in FILES.values():
        (published / file.name).rename(published / arguments[file.argument])
    configuration = {"task": "video-to-video", "model": {"model_args": arguments | {"seed": 666}}}
    (published / "configuration.json").write_text(json.dumps(configuration))
    assert same(load_weights(str(published), TINY).state_dict("unet"), states["unet"])


@pytest.mark.parametrize("content", ["[]", '{"model": {}}', '{"model": {"model_args": [3]}}', "[" * 100_000])
def test_a_configuration_json_of_something_else_is_named(published: Path, content: str) -> None:
    (published / "configuration.json").write_text(content)
    with pytest.raises(WeightsError, match=r"configuration.json: cannot be read as a model's configuration"):
        load_weights(str(published), TINY, verify=False)


def test_configuration_json_cannot_point_outside(published: Path) -> None:
    configuration = {"model": {"model_args": {"ckpt_unet": "../secret.pth"}}}
    (published / "configuration.json").write_text(json.dumps(configuration))
    with pytest.raises(WeightsError, match="outside the folder"):
        load_weights(str(published), TINY)


def test_the_same_content_has_the_same_identity(published: Path) -> None:
    before = load_weights(str(published), TINY, verify=False).identity
    assert before == load_weights(str(published), TINY, verify=False).identity
    torch.save({"state_dict": {}}, published / "non_ema_0035000.pth")
    assert load_weights(str(published), TINY, verify=False).identity != before


def known_here(published: Path, monkeypatch: pytest.MonkeyPatch, **forgotten: str | None) -> None:
    """Let the files in ``published`` be those that the authors have published."""
    known = {
        network: replace(
            file,
            bytes=(published / file.name).stat().st_size,
            sha256=forgotten.get(network, hashlib.sha256((published / file.name).read_bytes()).hexdigest()),
        )
        for network, file in FILES.items()
    }
    monkeypatch.setitem(PUBLISHED, TINY.name, replace(PUBLISHED[TINY.name], files=known))


def test_weights_are_published_if_every_file_is(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known_here(published, monkeypatch, autoencoder=None)
    assert load_weights(str(published), TINY).kind == "published", (
        "no digest is known of one: its name counts"
    )
    for network, file in FILES.items():
        known_here(published, monkeypatch, **{network: "0" * 64})
        assert load_weights(str(published), TINY, verify=False).kind == "trained", network
        with pytest.raises(WeightsError, match=f"{file.name}: is not the published file.*instead of 0000"):
            load_weights(str(published), TINY)


def test_a_file_of_another_size_is_told_before_it_is_read(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known_here(published, monkeypatch)
    path, heard = published / FILES["unet"].name, []
    size = path.stat().st_size
    for other in (size - 1, size + 1):
        os.truncate(path, other)
        with pytest.raises(WeightsError, match=rf"\({other} bytes instead of {size}\)"):
            load_weights(str(published), TINY, lambda *said: heard.append(said))
    assert heard == []


def test_what_configuration_json_names_and_is_not_there_is_lacking(published: Path) -> None:
    configuration = {"model": {"model_args": {"ckpt_unet": "mine.pth"}}}
    (published / "configuration.json").write_text(json.dumps(configuration))
    with pytest.raises(WeightsError, match=r"of those it lacks mine\.pth$"):
        load_weights(str(published), TINY, verify=False)


def test_progress_tells_of_each_file_how_much_of_it_is_read(tmp_path: Path) -> None:
    save_safetensors(load_weights("random:3", TINY), tmp_path)
    large = tmp_path / "text_encoder.safetensors"
    save_file({"padding": torch.zeros(50 << 18)}, large)  # 50 MiB
    heard: dict[str, list[float]] = {}
    load_weights(str(tmp_path), TINY, lambda phase, part: heard.setdefault(phase, []).append(part))
    assert list(heard) == [f"checking {network}.safetensors" for network in networks_of(TINY)]
    for parts in heard.values():
        assert parts == sorted(parts)
        assert 0 < parts[0] <= parts[-1] == 1
    assert len(heard["checking text_encoder.safetensors"]) > 2


# Code in checkpoints ----------------------------------------------------------------------------------------


class Runs:
    """Pickles to a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "legacy"])
@pytest.mark.parametrize("function", ["open", "eval", "system", "mkdir"])
def test_a_malicious_pickle_does_nothing(tmp_path: Path, function: str, legacy: bool) -> None:
    target = tmp_path / "created"
    bomb = {
        "open": Runs(open, str(target), "w"),
        "eval": Runs(eval, f"open({str(target)!r}, 'w')"),
        "system": Runs(os.system, f"touch {target}"),
        "mkdir": Runs(os.mkdir, str(target)),
    }[function]
    path = tmp_path / "model.ckpt"
    torch.save(
        {"state_dict": {"w": torch.ones(2)}, "x": bomb}, path, _use_new_zipfile_serialization=not legacy
    )
    try:
        assert torch.equal(read_pickle(path)["state_dict"]["w"], torch.ones(2))
    except WeightsError as error:
        assert str(path) in str(error)
    assert not target.exists()

    torch.load(path, weights_only=False)  # the bomb is real
    assert target.exists()


def archive(path: Path, pickled: bytes, data: bytes = b"", compression: int = zipfile.ZIP_STORED) -> Path:
    """A checkpoint whose pickle is given to the byte."""
    with zipfile.ZipFile(path, "w", compression) as made:
        for name, content in (
            ("data.pkl", pickled),
            ("version", b"3\n"),
            ("byteorder", b"little"),
            ("data/0", data),
        ):
            made.writestr(f"archive/{name}", content)
    return path


def long(number: int) -> bytes:
    """A number as a pickle spells it."""
    return b"\x8a\x06" + number.to_bytes(6, "little")


@pytest.mark.parametrize("size", [1 << 33, 1 << 42])
def test_a_small_checkpoint_cannot_take_much_memory(tmp_path: Path, size: int) -> None:
    path = archive(tmp_path / "bomb.pth", b"\x80\x02cbuiltins\nbytearray\n" + long(size) + b"\x85R.")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(WeightsError, match=r"bomb\.pth: asks for far more memory than"):
        read_pickle(path)
    assert resource.getrlimit(resource.RLIMIT_AS) == limits
    packed = archive(tmp_path / "packed.pth", bytes(1 << 29), compression=zipfile.ZIP_DEFLATED)
    assert packed.stat().st_size < 1 << 20
    with pytest.raises(WeightsError, match=r"packed\.pth: "):
        read_pickle(packed)


@pytest.mark.parametrize(("own", "mebibytes"), [(8 << 30, range(250, 1000)), (64 << 20, range(65))])
def test_a_limit_that_somebody_has_set_is_not_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: int, mebibytes: range
) -> None:
    path, hard = tmp_path / "a.pth", 1 << 60
    torch.save({"a": torch.ones(3)}, path)
    before = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (before + own, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    assert torch.equal(read_pickle(path)["a"], torch.ones(3))
    inside, afterwards = limits
    assert (inside[0] - before) >> 20 in mebibytes
    assert inside[1] == hard
    assert afterwards == (before + own, hard)


def test_a_tensor_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    size = long(1 << 33)
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + size + b"tQK\x00(" + size + b"t(K\x01t\x89"
    path = archive(tmp_path / "a.pth", b"\x80\x02" + tensor + b"ccollections\nOrderedDict\n)RtR.", b"abcd")
    with pytest.raises(WeightsError, match=r"a\.pth: cannot be read as a checkpoint"):
        read_pickle(path)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02R.",  # calls what is not there
        b"\x80\x02}(K\x01u.",  # half of a pair
        b"\x80\x02" + b"(" * 5000 + b".",
        b"\x80\x02ctorch\nFloatStorage\n.",
    ],
)
def test_a_pickle_of_nonsense_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "legacy.pth").write_bytes(content)
    for path in (tmp_path / "legacy.pth", archive(tmp_path / "new.pth", content)):
        with pytest.raises(WeightsError, match=path.name):
            read_pickle(path)


def test_a_storage_of_an_unknown_kind_is_named(tmp_path: Path) -> None:
    storage = b"(X\x07\x00\x00\x00storagecevil\nStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ."
    with pytest.raises(WeightsError, match="cannot be read as a checkpoint"):
        read_pickle(archive(tmp_path / "a.pth", b"\x80\x02" + storage, b"abcd"))


@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "legacy"])
def test_a_damaged_checkpoint_is_read_or_named(tmp_path: Path, legacy: bool) -> None:
    rng, path = random.Random(5), tmp_path / "a.pth"
    tensors = {"a": torch.ones(3, 4), "b": torch.zeros(2, dtype=torch.int64)}
    torch.save(tensors, path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 5)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged[: rng.choice([len(damaged), len(damaged), rng.randrange(len(damaged))])])
        with contextlib.suppress(WeightsError):
            assert isinstance(read_pickle(path), Mapping)


def test_training_leftovers_of_the_stable_diffusion_checkpoint_are_inert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "pytorch_lightning.callbacks.model_checkpoint"
    lightning = types.ModuleType(name)

    class ModelCheckpoint:
        pass

    ModelCheckpoint.__module__, ModelCheckpoint.__qualname__ = name, "ModelCheckpoint"
    lightning.ModelCheckpoint = ModelCheckpoint  # type: ignore[attr-defined]
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setitem(sys.modules, name, lightning)
    callback = ModelCheckpoint()
    callback.best = np.float64(0.5)  # type: ignore[attr-defined]
    path = tmp_path / "sd.ckpt"
    torch.save(
        {
            "state_dict": {"w": torch.arange(3.0)},
            "callbacks": {ModelCheckpoint: {"score": np.float32(1.5), "self": callback}},
        },
        path,
    )
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
        monkeypatch.delitem(sys.modules, part)
    assert torch.equal(read_pickle(path)["state_dict"]["w"], torch.arange(3.0))
    assert "pytorch_lightning" not in sys.modules


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"PK\x03\x04 broken"])
def test_a_broken_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"broken\.pth: cannot be read"):
        read_pickle(path)


def test_a_truncated_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "short.pth"
    torch.save({"w": torch.ones(10000)}, path)
    path.write_bytes(path.read_bytes()[:20000])
    with pytest.raises(WeightsError, match=r"short\.pth: cannot be read"):
        read_pickle(path)


def test_a_pickle_of_something_else_is_named(tmp_path: Path) -> None:
    path = tmp_path / "list.pth"
    torch.save([torch.ones(2)], path)
    with pytest.raises(WeightsError, match="holds list instead of named tensors"):
        read_pickle(path)


# Safetensors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["folder", "single.safetensors"])
def test_safetensors_come_back_as_saved(tmp_path: Path, target: str, states: Any) -> None:
    saved = load_weights("random:3", TINY)
    written = save_safetensors(saved, tmp_path / target)
    assert len(written) == (3 if target == "folder" else 1)
    found = load_weights(str(tmp_path / target), TINY)
    assert found.kind == "random"
    for network in networks_of(TINY):
        assert same(found.state_dict(network), states[network])


def test_safetensors_can_be_saved_in_half(tmp_path: Path) -> None:
    save_safetensors(load_weights("random:3", TINY), tmp_path / "half", dtype=torch.float16)
    assert {v.dtype for v in load_file(tmp_path / "half" / "unet.safetensors").values()} == {torch.float16}
    network = load_weights(str(tmp_path / "half"), TINY).load("unet")
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    weights = load_weights("random:3", TINY)
    (tmp_path / "unet.safetensors").write_bytes(b"precious")
    with pytest.raises(WeightsError, match=r"unet\.safetensors exists already"):
        save_safetensors(weights, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["unet.safetensors"]
    assert (tmp_path / "unet.safetensors").read_bytes() == b"precious"


def test_files_are_replaced_when_that_is_asked_for(tmp_path: Path, states: Any) -> None:
    folder, single = tmp_path / "folder", tmp_path / "made" / "for" / "all.safetensors"
    folder.mkdir()
    (folder / "unet.safetensors").write_bytes(b"old")
    for target in (folder, single):
        save_safetensors(load_weights("random:3", TINY), target, overwrite=True)
        assert same(load_weights(str(target), TINY).state_dict("unet"), states["unet"])


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    with pytest.raises(WeightsError, match=r"file/unet\.safetensors: cannot be written"):
        save_safetensors(load_weights("random:3", TINY), tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_single_file_holds_the_networks_and_nothing_else(tmp_path: Path, states: Any) -> None:
    (path,) = save_safetensors(load_weights("random:3", TINY), tmp_path / "all.safetensors")
    tensors = load_file(path)
    assert {name.partition(".")[0] for name in tensors} == {*networks_of(TINY)}
    save_file(tensors | {"vocoder.weight": torch.ones(1)}, path)
    with pytest.raises(WeightsError, match=r"all\.safetensors: unknown tensors: vocoder\.weight"):
        load_weights(str(path), TINY).state_dict("unet")
    other = path.rename(tmp_path / "all.pth")
    with pytest.raises(WeightsError, match=r"all\.pth: a single file of weights must be \.safetensors"):
        load_weights(str(other), TINY)


def described(folder: Path, *sayings: str) -> Path:
    """Files of the networks' names that say this of themselves."""
    folder.mkdir(exist_ok=True)
    for network, said in zip(networks_of(TINY), sayings, strict=True):
        save_file({"a": torch.ones(1)}, folder / f"{network}.safetensors", {"v2v": said})
    return folder


RANDOM, OURS = '{"kind": "random"}', '{"kind": "published"}'


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described(tmp_path / "mine", RANDOM, RANDOM, RANDOM)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_weights("~/mine", TINY).kind == "random"


@pytest.mark.parametrize("said", ["", "{", "[]", '"x"', '{"kind": "mine"}', "[" * 100_000])
def test_what_a_file_says_of_itself_is_not_believed_beyond_what_is_known(tmp_path: Path, said: str) -> None:
    assert load_weights(str(described(tmp_path, said, RANDOM, RANDOM)), TINY).kind == "trained"
    assert load_weights(str(described(tmp_path, said, said, said)), TINY).kind == "trained"


def test_networks_of_several_kinds_are_of_none(tmp_path: Path) -> None:
    assert load_weights(str(described(tmp_path, OURS, RANDOM, OURS)), TINY).kind == "trained"
    assert load_weights(str(described(tmp_path, OURS, OURS, OURS)), TINY).kind == "published"


def test_published_weights_stay_published_as_safetensors(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known_here(published, monkeypatch)
    save_safetensors(load_weights(str(published), TINY), tmp_path / "converted")
    assert load_weights(str(tmp_path / "converted"), TINY).kind == "published"


def test_a_network_is_ready_to_infer_in_the_type_that_is_asked_for() -> None:
    weights = load_weights("random:3", TINY)
    for network in networks_of(TINY):
        module = weights.load(network, torch.float16)
        assert not module.training
        parameters = {(p.dtype, p.requires_grad, p.is_meta) for p in module.parameters()}
        assert parameters == {(torch.float16, False, False)}


def test_an_interrupted_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Any, path: Path, __: Any) -> None:
        Path(path).write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_safetensors(load_weights("random:3", TINY), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_published_weights_saved_as_safetensors_are_the_same(
    published: Path, tmp_path: Path, states: Any
) -> None:
    save_safetensors(load_weights(str(published), TINY, verify=False), tmp_path / "converted")
    found = load_weights(str(tmp_path / "converted"), TINY)
    assert found.kind == "trained"
    assert all(same(found.state_dict(network), states[network]) for network in networks_of(TINY))


# What does not fit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("out.2.bias"), r"non_ema_0035000\.pth: not the unet of tiny; missing: out\.2\.bias"),
        (lambda s: s.update(spare=torch.ones(1)), "unknown: spare"),
        (
            lambda s: s.update({"out.2.bias": torch.ones(5)}),
            r"misshapen: out\.2\.bias is \[5\] instead of \[4\]",
        ),
        (lambda s: s.clear(), r"missing: [^ ]+, [^ ]+, [^ ]+, [^ ]+ and \d\d+ more$"),
        (
            lambda s: s.update({f"spare{n}": torch.ones(1) for n in range(5)}),
            "unknown: spare0, spare1, spare2, spare3 and 1 more$",
        ),
        (
            lambda s: s.update({f"spare{n}": torch.ones(1) for n in range(4)}),
            "unknown: spare0, spare1, spare2, spare3$",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    published: Path, states: Any, change: Callable[[dict[str, torch.Tensor]], Any], message: str
) -> None:
    state = dict(states["unet"])
    change(state)
    torch.save({"state_dict": state}, published / "non_ema_0035000.pth")
    with pytest.raises(WeightsError, match=message):
        load_weights(str(published), TINY, verify=False).state_dict("unet")


def test_a_text_tower_without_its_pooling_head_fits(published: Path, states: Any) -> None:
    state = {k: v for k, v in states["text_encoder"].items() if k not in ("text_projection", "logit_scale")}
    torch.save(state, published / "open_clip_pytorch_model.bin")
    tower = load_weights(str(published), TINY, verify=False).load("text_encoder")
    assert tower(torch.zeros(1, 77, dtype=torch.long)).shape == (1, 77, 16)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/no/such/place", "no such file or folder"),
        ("random:", "whole number"),
        ("random:x1", "whole number"),
    ],
)
def test_a_wrong_source_is_named(source: str, message: str) -> None:
    with pytest.raises(V2VError, match=message):
        load_weights(source, TINY)


def test_a_folder_without_weights_says_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "non_ema_0035000.pth").touch()
    with pytest.raises(WeightsError, match=r"lacks v2-1_512-ema-pruned\.ckpt, open_clip_pytorch_model\.bin"):
        load_weights(str(tmp_path), TINY)


def test_a_broken_safetensors_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(WeightsError, match=r"broken\.safetensors: cannot be read as safetensors"):
        load_weights(str(path), TINY)


# Random -----------------------------------------------------------------------------------------------------


def test_random_weights_depend_on_the_seed_alone(states: Any) -> None:
    again, other = load_weights("random:3", TINY), load_weights("random:4", TINY)
    assert same(again.state_dict("unet"), states["unet"])
    assert not same(other.state_dict("unet"), states["unet"])
    assert again.kind == other.kind == "random"
    assert again.identity == load_weights("random:3", TINY).identity != other.identity
    wider = replace(TINY, autoencoder=replace(TINY.autoencoder, width=64))
    assert load_weights("random:3", wider).identity != again.identity
    # Written down, so that a change of the recipe does not go unnoticed.
    tensor = states["unet"]["time_embed.0.bias"]
    assert tensor[:2].tolist() == pytest.approx([-0.00233316, 0.05743111], abs=1e-7)
    tensor = states["unet"]["time_embed.0.weight"]
    assert tensor[0, :2].tolist() == pytest.approx([0.1037629, -0.0972637], abs=1e-7)


@torch.inference_mode()
def test_random_networks_give_numbers_of_unit_size_in_half_precision() -> None:
    weights = load_weights("random:0", TINY)
    g = torch.Generator().manual_seed(0)
    context = weights.load("text_encoder", torch.float16)(torch.randint(0, 50, (1, 77), generator=g))
    latents = torch.randn(1, 4, 3, 10, 8, generator=g).half()
    velocity = weights.load("unet", torch.float16)(latents, torch.tensor([300]), context)
    autoencoder = weights.load("autoencoder", torch.float16)
    moments = autoencoder.encode(torch.rand(1, 3, 32, 32, generator=g).half())
    image = autoencoder.decode(latents[:, :, 0])
    for output in (context, velocity, moments, image):
        assert 0.1 < output.float().std() < 10


# The hub ----------------------------------------------------------------------------------------------------


def test_a_hub_repository_is_read_like_a_folder(
    published: Path, states: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[tuple[str, str | None]] = []

    def listing(repo_id: str, revision: str | None) -> list[str]:
        asked.append((repo_id, revision))
        return [p.name for p in published.iterdir()]

    def download(repo_id: str, filename: str, revision: str | None) -> str:
        asked.append((filename, revision))
        return str(published / filename)

    monkeypatch.setattr(huggingface_hub, "list_repo_files", listing)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = load_weights("hf:someone/model@v1", TINY, verify=False)
    assert same(found.state_dict("autoencoder"), states["autoencoder"])
    assert asked[0] == ("someone/model", "v1")
    assert {name for name, _ in asked[1:]} == {file.name for file in FILES.values()}


def test_trouble_with_the_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def down(**_: Any) -> list[str]:
        raise ConnectionError("no route to host\nand a long tail")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", down)
    with pytest.raises(WeightsError, match=r"^hf:someone/model: its list of files: no route to host$"):
        load_weights("hf:someone/model", TINY)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionError("\n no such file\nand a long tail"), "no such file"),
        (TimeoutError(), "TimeoutError"),
        (OSError(" \n"), "OSError"),
    ],
)
def test_a_file_that_the_hub_does_not_give_is_named(
    monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    import huggingface_hub

    def listing(**asked: str | None) -> list[str]:
        assert asked == {"repo_id": "someone/model", "revision": None}
        return [f"{network}.safetensors" for network in networks_of(TINY)]

    def download(**_: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "list_repo_files", listing)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(WeightsError, match=rf"^hf:someone/model: unet\.safetensors: {told}$"):
        load_weights("hf:someone/model", TINY)


def test_what_a_repository_lacks_is_taken_from_the_one_that_it_is_from(
    published: Path, states: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    tower = replace(FILES["text_encoder"], repository="someone/clip", folder="towers")
    known = {**FILES, "text_encoder": tower}
    monkeypatch.setitem(PUBLISHED, TINY.name, replace(PUBLISHED[TINY.name], files=known))
    repositories = {
        "someone/model": [FILES["unet"].name, FILES["autoencoder"].name],
        "someone/clip": [f"towers/{tower.name}"],
    }

    def download(repo_id: str, filename: str, revision: str | None) -> str:
        assert filename in repositories[repo_id]
        return str(published / Path(filename).name)

    def listing(repo_id: str, revision: str | None) -> list[str]:
        return repositories[repo_id]

    monkeypatch.setattr(huggingface_hub, "list_repo_files", listing)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = load_weights("hf:someone/model", TINY, verify=False)
    assert same(found.state_dict("text_encoder"), states["text_encoder"])
    repositories["someone/clip"] = []
    with pytest.raises(WeightsError, match=rf"of those it lacks {tower.name}$"):
        load_weights("hf:someone/model", TINY, verify=False)
