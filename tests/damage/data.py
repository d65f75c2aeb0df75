"""Files of v2v's own kinds, damage to them, and what reads them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import torch

from tests.benchmarks.made import results
from tests.damage.bytes import damage
from tests.runtime.films.test_journal import done
from tests.stand_ins import command
from tests.stand_ins.model import MODEL
from v2v.benchmarks.compare import compare
from v2v.benchmarks.report import page, summary
from v2v.benchmarks.results import Results
from v2v.core.components import component
from v2v.core.configs import AutoencoderConfig, ModelConfig, TextEncoderConfig, UNetConfig
from v2v.core.errors import EngineError
from v2v.core.published import PUBLISHED
from v2v.core.samples import sample_inputs
from v2v.device import open_device
from v2v.engine import cli
from v2v.engine.backend import backend
from v2v.engine.manifest import MANIFEST
from v2v.engine.store import TOKENIZER, EngineSet, Wanted, find, list_sets, packaged_tokenizer, replaceable
from v2v.engine.verify import run_once
from v2v.export.weights import load_weights, networks_of, read_pickle, save_safetensors
from v2v.runtime.diffusion.pipeline import VideoToVideo
from v2v.runtime.diffusion.prompt import Tokenizer
from v2v.runtime.diffusion.settings import Settings
from v2v.runtime.films.batch import read_prompts
from v2v.runtime.films.enhance import plan_for
from v2v.runtime.films.journal import Journal, finished_run, journal_folder

Damage = Callable[[Path, np.random.Generator], None]
NONSENSE: tuple[Any, ...] = (
    *(None, True, 0, -1, 3, 10**5, 2**31, 2**63 - 1, -(2**63), 2**64, 1e308, float("nan"), float("inf"), 0.5),
    *("", "a", "..", "/", "\x1b[2J", "\ud800", "-1", "a" * 100_000, [], {}, [[]], [0], ["a", "b"], {"a": 1}),
)
SIGNS = "\":,;\n\r\t{}[]\\/#'\0\x1b\u2028\u00e9\ud800 0-"
FACTS = {"--seed": "5"}
TINY = ModelConfig(
    "tiny",
    unet=UNetConfig(
        width=32, multipliers=(1, 1), blocks=1, head_size=16, stem_heads=1, context_width=16,
        attention=(False, True),
    ),
    autoencoder=AutoencoderConfig(width=32, multipliers=(1,), blocks=1, attention=False),
    text_encoder=TextEncoderConfig(width=16, heads=1, layers=2, vocabulary=50),
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A kind of file or folder: what makes a whole one, what spoils it, and what reads it."""

    make: Callable[[Path, Path], Path]  # (folder, engine set) -> what was made
    spoil: Damage
    read: Callable[[Path], None]


def spoil_bytes(path: Path, random: np.random.Generator) -> None:
    """Damage that knows nothing of the file."""
    path.write_bytes(damage(path.read_bytes(), random))


def spoil_text(path: Path, random: np.random.Generator) -> None:
    """Change, drop or double some characters."""
    text = list(path.read_text())
    for _ in range(int(2 ** random.uniform(0, 6))):
        place = int(random.integers(len(text)))
        new = SIGNS[random.integers(len(SIGNS))]
        text[place] = ("", new, text[place] + new, 2 * text[place])[random.integers(4)]
    path.write_text("".join(text), errors="surrogatepass")


def spoil_values(path: Path, random: np.random.Generator) -> None:
    """Mostly valid JSON with values that make no sense; else text or bytes that are none."""
    if random.integers(3) == 0:
        return (spoil_bytes, spoil_text)[random.integers(2)](path, random)
    data = json.loads(path.read_text())
    for _ in range(int(random.choice([1, 1, 1, 3]))):
        places = list(_places(data))
        holder, key = places[random.integers(len(places))]
        value = NONSENSE[random.integers(len(NONSENSE))]
        if isinstance(holder, dict) and random.integers(8) == 0:
            del holder[key]
        else:
            holder[key] = value
    text = json.dumps(data)
    if random.integers(20) == 0:
        text = text.replace(":", ":" + "[" * 100_000, 1)
    path.write_text(text)


def _places(data: Any) -> Any:
    """Every entry of nested dicts and lists, as what holds it and its key."""
    keys = list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    for key in keys:
        yield data, key
        yield from _places(data[key])


def spoil_folder(folder: Path, random: np.random.Generator) -> None:
    """Damage some of its files; remove one, or exchange two."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for _ in range(int(random.integers(1, 4))):
        one, other = (files[number] for number in random.integers(len(files), size=2))
        kind = random.integers(6)
        if kind == 0:
            one.unlink(missing_ok=True)
        elif kind == 1 and one.exists():
            shutil.copyfile(one, other) if one != other else None
        elif one.exists():
            spoil = spoil_values if one.suffix == ".json" and one.stat().st_size and kind < 4 else spoil_bytes
            try:
                spoil(one, random)
            except ValueError:  # no JSON any more
                spoil_bytes(one, random)


# Journals -------------------------------------------------------------------------------------------------------


def make_journal(folder: Path, engines: Path) -> Path:
    output = folder / "out.mp4"
    with Journal(output, FACTS) as journal:
        for number in range(3):
            journal.finish(number, done(number))
        journal.joined.write_bytes(b"film")
        journal.complete(3)
    return journal_folder(output)


def read_journal(folder: Path) -> None:
    output = folder.with_name("out.mp4")
    finished_run(output)
    with Journal(output, FACTS) as journal:
        for number in filter(journal.finished, range(3)):
            np.testing.assert_array_equal(journal.carry(number).latents, done(number).carry.latents)
        for segment in journal.segments():
            assert (segment.file.read_bytes(), segment.order) == (b"pictures", (1, 0))


# Engine sets ----------------------------------------------------------------------------------------------------


def make_manifest(folder: Path, engines: Path) -> Path:
    return Path(shutil.copytree(engines, folder / "set")) / MANIFEST


def read_manifest(path: Path) -> None:
    """As every command would."""
    folder = path.parent
    os.environ["V2V_ENGINES"] = str(folder.parent)
    with contextlib.redirect_stdout(io.StringIO()):
        cli.show_sets()
    for entry in list_sets(folder.parent):
        if isinstance(entry, EngineSet):
            (
                str(entry.runs_on(None)),
                entry.facts,
                entry.bytes,
                entry.rebuild_command,
                entry.command_with_reuse,
            )
    replaceable(folder)
    with contextlib.suppress(EngineError):
        find(Wanted(), folder.parent)
    engine_set = EngineSet.open(folder)
    engine_set.require(Wanted())
    with contextlib.redirect_stdout(io.StringIO()):
        cli.show_built(engine_set)
    v2v = VideoToVideo.load(engine_set, "auto")
    try:
        plan_for(_Reader, Settings(), engine_set)  # type: ignore[arg-type]
        pictures = [np.full((16, 24, 3), 90, np.uint8)] * 2
        list(v2v(pictures, Settings(steps=1, scale=1.0)))
    finally:
        v2v.close()


class _Reader:
    """The little that a plan needs of a film."""

    class info:
        height, width = 16, 24


def make_graph(folder: Path, engines: Path) -> Path:
    model = onnx.load(engines / "unet" / "unet.onnx")  # weights inside
    onnx.save(model, folder / "unet.onnx")
    shutil.copyfile(engines / MANIFEST, folder / MANIFEST)
    return folder / "unet.onnx"


def read_graph(path: Path) -> None:
    described = component("unet", MODEL, command.WINDOW, "fp32")
    engine = backend("onnxruntime").load(described, [path], "cpu")
    try:
        run_once(engine, sample_inputs(engine.component, 100), open_device("cpu"))
    finally:
        engine.close()


def make_tokenizer(folder: Path, engines: Path) -> Path:
    path = folder / TOKENIZER
    path.write_bytes(packaged_tokenizer())
    return path


def spoil_tokenizer(path: Path, random: np.random.Generator) -> None:
    """Its values by bytes where they lie, as it is large; every other time only the part before the vocabulary."""
    content = path.read_bytes()
    head = content.find(b'"vocab"')
    if random.integers(2):
        data = json.loads(content)
        vocabulary, merges = data["model"].pop("vocab"), data["model"].pop("merges")
        places = list(_places(data))
        for _ in range(int(random.integers(1, 3))):
            holder, key = places[random.integers(len(places))]
            holder[key] = NONSENSE[random.integers(len(NONSENSE))]
        if isinstance(data.get("model"), dict):
            data["model"] |= {"vocab": vocabulary, "merges": merges}
        path.write_text(json.dumps(data))
    elif random.integers(2):
        path.write_bytes(damage(content[:head], random) + content[head:])
    else:
        spoil_bytes(path, random)


def read_tokenizer(path: Path) -> None:
    tokenizer = Tokenizer(path)
    tokenizer.positive("a red fox in the snow, é" * 5)
    tokenizer.negative()


# Weights --------------------------------------------------------------------------------------------------------


def make_checkpoint(folder: Path, engines: Path) -> Path:
    path = folder / "weights.pt"
    tensors = {f"block.{n}.weight": torch.arange(64.0).reshape(8, 8) for n in range(4)}
    torch.save({"state_dict": tensors, "global_step": 7}, path)
    return path


def make_legacy_checkpoint(folder: Path, engines: Path) -> Path:
    path = folder / "weights.ckpt"
    tensors = {f"block.{n}.weight": torch.arange(64.0).reshape(8, 8).half() for n in range(4)}
    torch.save({"state_dict": tensors}, path, _use_new_zipfile_serialization=False)
    return path


def read_checkpoint(path: Path) -> None:
    for value in read_pickle(path).get("state_dict", {}).values():
        if isinstance(value, torch.Tensor):
            value.float().sum()


def make_published(folder: Path, engines: Path) -> Path:
    weights, files = load_weights("random:3", TINY), PUBLISHED["ms-vid2vid-xl"].files
    made = folder / "published"
    made.mkdir()
    for network in networks_of(TINY):
        torch.save({"state_dict": weights.state_dict(network)}, made / files[network].name)
    names = {files[network].argument: files[network].name for network in networks_of(TINY)}
    (made / "configuration.json").write_text(json.dumps({"model": {"model_args": names}}))
    return made


def make_safetensors(folder: Path, engines: Path) -> Path:
    made = folder / "weights.safetensors"
    save_safetensors(load_weights("random:3", TINY), made)
    return made


def spoil_safetensors(path: Path, random: np.random.Generator) -> None:
    """Mostly its header."""
    content = path.read_bytes()
    head = int.from_bytes(content[:8], "little") + 8
    if random.integers(4) == 0:
        return spoil_bytes(path, random)
    if random.integers(2):
        described = path.with_suffix(".json")
        described.write_bytes(content[8:head])
        spoil_values(described, random)
        header = described.read_bytes()
        described.unlink()
        return path.write_bytes(len(header).to_bytes(8, "little") + header + content[head:]) and None
    path.write_bytes(damage(content[:head], random) + content[head:])


def read_weights(path: Path) -> None:
    known = {TINY.name: PUBLISHED["ms-vid2vid-xl"]}  # as if the small model had been published
    with patch.dict("v2v.core.published.PUBLISHED", known):
        weights = load_weights(str(path), TINY, verify=False)
        for network in networks_of(TINY):
            for value in weights.state_dict(network).values():
                value.float().sum()


def _spoil_lines(path: Path, random: np.random.Generator) -> None:
    (spoil_bytes, spoil_text, spoil_text)[random.integers(3)](path, random)


# Results and prompts --------------------------------------------------------------------------------------------


def make_results(folder: Path, engines: Path) -> Path:
    path = folder / "results.json"
    path.write_text(results().to_json())
    return path


def read_results(path: Path) -> None:
    read, whole = Results.read(path), results()
    page(read), summary(read), compare(whole, read), compare(read, whole)


def prompts(name: str, text: str) -> Kind:
    def make(folder: Path, engines: Path) -> Path:
        path = folder / name
        path.write_text(text)
        return path

    def read(path: Path) -> None:
        for known, prompt in read_prompts(path).items():
            assert isinstance(known, str)
            assert isinstance(prompt, str)

    return Kind(make, spoil_values if name.endswith("json") else _spoil_lines, read)


NAMES = [(f"clip {n}.mp4", f"a fox, “{n}”, in the snow") for n in range(20)]
KINDS = {
    "journal": Kind(make_journal, spoil_folder, read_journal),
    "manifest": Kind(make_manifest, spoil_values, read_manifest),
    "results": Kind(make_results, spoil_values, read_results),
    "prompts.json": prompts("prompts.json", json.dumps(dict(NAMES))),
    "prompts.csv": prompts("prompts.csv", "".join(f'"{name}","{said}"\n' for name, said in NAMES)),
    "prompts.txt": prompts("prompts.txt", "".join(f"{name}: {said}\n" for name, said in NAMES)),
    "checkpoint": Kind(make_checkpoint, spoil_bytes, read_checkpoint),
    "legacy checkpoint": Kind(make_legacy_checkpoint, spoil_bytes, read_checkpoint),
    "published": Kind(make_published, spoil_folder, read_weights),
    "safetensors": Kind(make_safetensors, spoil_safetensors, read_weights),
    "tokenizer": Kind(make_tokenizer, spoil_tokenizer, read_tokenizer),
    "graph": Kind(make_graph, spoil_bytes, read_graph),
}
