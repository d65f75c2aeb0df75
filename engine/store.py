"""Engine sets on disk: find them, open them, check whether they run here, write them completely or not at all.

    $V2V_ENGINES (default: the user's cache folder, v2v/engines)
    ├── small-random-256x144x8-fp32-cpu-onnxruntime-1.32.0-1f0c9a3b/      one engine set
    │   ├── manifest.json            written last; a folder without it is no engine set
    │   ├── tokenizer.json
    │   ├── text_encoder/ …          what the backend made of each component
    │   └── unet/ …
    ├── .NAME.lock                   held while NAME is built; the file stays, the lock goes with its process
    ├── .NAME.building/              a build in progress, or what a dead one left: the next removes it
    ├── .NAME.old/                   the set that is being replaced, for the moment between two renames
    └── timing/                      timing caches of backends that keep one

A set may also lie in any other folder (``v2v-build-engines -o FOLDER``); it can be moved and copied freely.
"""

from __future__ import annotations

import functools
import hashlib
import lzma
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import filelock
import platformdirs

from v2v.core.abort import removed_on_abort
from v2v.core.components import Component, ComponentName, Precision, Window
from v2v.core.configs import MODELS, ModelConfig
from v2v.core.errors import EngineError, MachineError, V2VError
from v2v.core.files import read_limited, sync, sync_tree
from v2v.engine.backend import BACKENDS, Backend, Compatibility, Engine, backend
from v2v.engine.manifest import MANIFEST, Manifest, StoredFile

TOKENIZER = "tokenizer.json"
_HASHED_FIRST = 64 << 20  # bytes; a smaller file's digest is checked before it is loaded, not meanwhile
_LARGEST_MANIFEST = 16 << 20  # bytes
BUILD_MARK = ".v2v-build"  # an empty file in a folder that a build has made, and so may remove


def engines_root() -> Path:
    """Folder that holds the engine sets: ``$V2V_ENGINES``, or the user's cache folder."""
    folder = os.environ.get("V2V_ENGINES")
    return Path(folder).expanduser() if folder else Path(platformdirs.user_cache_dir("v2v")) / "engines"


def timing_cache_folder() -> Path:
    """Folder beside the engine sets for what speeds up later builds; losing it costs only time."""
    return engines_root() / "timing"


@functools.cache
def packaged_tokenizer() -> bytes:
    """The CLIP tokenizer that ships with the package, a file for the ``tokenizers`` library."""
    return lzma.decompress((Path(__file__).parent / "data" / "tokenizer.json.xz").read_bytes())


class NoEngineSet(EngineError):
    """No engine set fits what was asked for; building one would help."""


@dataclass(frozen=True)
class Wanted:
    """What a run asks of an engine set; None accepts anything."""

    model: str | None = None
    window: Window | None = None
    backend: str | None = None
    precision: Precision | None = None
    device: str | None = None  # "cpu" or "cuda"
    weights: str | None = None  # identity
    reuse: bool | None = None
    fp8: bool | None = None


@dataclass(frozen=True)
class EngineSet:
    """A folder with the four engines of a model, the tokenizer and the manifest."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path) -> EngineSet:
        """Read the set in ``path``: its manifest, and that every file is there at full size.

        Raises:
            EngineError: no engine set, a damaged one, or one of a newer format.
        """
        if not path.is_dir():
            raise EngineError(
                f"no engine set at {path}: there is no such folder; v2v-build-engines makes one"
            )
        try:
            text = _read_manifest(path)
        except FileNotFoundError:
            raise EngineError(
                f"{path} is not an engine set: it has no {MANIFEST}; "
                "build one with v2v-build-engines -o FOLDER"
            ) from None
        except (OSError, ValueError) as error:
            raise EngineError(f"cannot read {path / MANIFEST}: {error}") from error
        try:
            opened = cls(path, Manifest.from_json(text))
        except EngineError as error:
            raise EngineError(f"{path / MANIFEST} {error}") from error
        for file in opened.manifest.files:
            opened._check_size(file)
        return opened

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def model(self) -> ModelConfig:
        """The networks' sizes, prompts and defaults."""
        return self.manifest.recipe.model

    @property
    def window(self) -> Window:
        """What the UNet takes at once."""
        return self.manifest.recipe.window

    @property
    def device(self) -> str:
        """What it was built for, "cpu" or "cuda"."""
        return self.manifest.recipe.options.device

    @property
    def names(self) -> Collection[ComponentName]:
        """The components that were built."""
        return self.manifest.components.keys()

    @property
    def facts(self) -> dict[str, str]:
        """What the outputs depend on, by names for people."""
        weights = self.manifest.recipe.weights
        return {
            "model": self.model.name,
            "weights": f"{weights.kind} {weights.identity[:16]}",
            "engines": self.name,
        }

    @property
    def command_with_reuse(self) -> str:
        """What builds the same engines with a UNet that can go on from the features of an earlier evaluation."""
        recipe = self.manifest.recipe
        return replace(recipe, options=replace(recipe.options, reuse=True)).command

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer, a file for the ``tokenizers`` library."""
        return self.path / self.manifest.tokenizer.name

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.bytes for file in self.manifest.files)

    @property
    def rebuild_command(self) -> str:
        """What to type to build this set anew, for this machine and this version of v2v."""
        in_store = self.path.parent.resolve() == engines_root().resolve()
        output_option = "" if in_store else f" -o {self.path}"
        return f"{self.manifest.recipe.command}{output_option} --force"

    def component(self, name: ComponentName) -> Component:
        """Inputs and outputs of a component, as built."""
        record = self.manifest.components[name]
        return Component(name, record.inputs, record.outputs)

    def suits(self, wanted: Wanted) -> Compatibility:
        """Whether this set is what ``wanted`` describes and runs here; if not, which fact differs."""
        recipe = self.manifest.recipe
        for fact, have, want in (
            ("model", recipe.model.name, wanted.model),
            ("window", recipe.window, wanted.window),
            ("precision", recipe.options.precision, wanted.precision),
            ("backend", recipe.backend.name, wanted.backend),
            ("hash of the weights", recipe.weights.identity, wanted.weights),
        ):
            if want is not None and have != want:
                return Compatibility(False, f"its {fact} is {have}, wanted is {want}")
        for flag, has, wants in (
            ("--reuse", recipe.options.reuse, wanted.reuse),
            ("--option fp8=yes", recipe.fp8, wanted.fp8),
        ):
            if wants is not None and has != wants:
                return Compatibility(False, f"it was built {'with' if has else 'without'} {flag}")
        known = MODELS.get(wanted.model, recipe.model) if wanted.model else recipe.model
        if recipe.model not in (known, known.with_plain_decoder):
            return Compatibility(
                False, f"model {wanted.model} has changed since v2v {self.manifest.v2v} built it"
            )
        return self.runs_on(wanted.device)

    def runs_on(self, device: str | None) -> Compatibility:
        """Whether this machine and this version of v2v can run the set on ``device`` (None: on any)."""
        recipe = self.manifest.recipe
        expected = recipe.options.describe(recipe.model, recipe.window)
        for name, component in expected.items():
            if self.component(name) != component:
                builder_version = self.manifest.v2v
                return Compatibility(
                    False, f"its {name} takes or gives other tensors: it was built by v2v {builder_version}"
                )
        try:
            engine_backend = backend(recipe.backend.name)
        except EngineError as error:
            return Compatibility(False, str(error))
        first_mismatch: Compatibility | None = None
        for candidate in (device,) if device else engine_backend.devices:
            compatibility = self._fits(engine_backend, candidate)
            if compatibility.fits:
                return compatibility
            first_mismatch = first_mismatch or compatibility
        return first_mismatch or Compatibility(False, f"backend {engine_backend.name} finds no device here")

    def _fits(self, engine_backend: Backend, device: str) -> Compatibility:
        """What a backend says of its facts, which a manifest keeps without looking at them."""
        try:
            return engine_backend.fits(self.manifest.recipe.backend.facts, device)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            return Compatibility(
                False, f"{MANIFEST} says of backend {engine_backend.name} what none has written ({error!r})"
            )

    def require(self, wanted: Wanted) -> None:
        """Like :meth:`suits`, for a set that the user named.

        Raises:
            EngineError: names the set, the fact that differs and the command that builds what is wanted.
        """
        compatibility = self.suits(wanted)
        if not compatibility.fits:
            raise EngineError(
                f"engine set {self.path} does not fit: {compatibility.reason}{self._advice(compatibility)}"
            )

    def load(self, name: ComponentName, device: str) -> Engine:
        """Load a component on ``device`` ("cpu" or "cuda").

        Raises:
            MachineError: this machine lacks the memory or the driver that it takes.
            EngineError: a file is missing, truncated or damaged, or the backend cannot load it here.
        """
        recipe = self.manifest.recipe
        record = self.manifest.components[name]
        for file in record.files:
            self._check_size(file)
        engine_backend = backend(recipe.backend.name)
        compatibility = self._fits(engine_backend, device)
        if not compatibility.fits:
            raise EngineError(
                f"engine set {self.path} does not run on {device} here: {compatibility.reason}"
                f"{self._advice(compatibility)}"
            )
        paths = [self.path / file.name for file in record.files]
        small = [file for file in record.files if file.bytes <= _HASHED_FIRST]
        for file in small:  # graphs and code, which a library may not survive if they are damaged
            self._check_digest(file)
        with ThreadPoolExecutor(2, "v2v-digest") as threads:  # weights: gigabytes, while they are loaded
            checks = [threads.submit(self._check_digest, file) for file in record.files if file not in small]
            try:
                engine = engine_backend.load(self.component(name), paths, device)
            except EngineError as error:
                for check in checks:
                    check.result()
                if isinstance(error, MachineError):
                    raise
                raise EngineError(f"{error}; rebuild the engine set with: {self.rebuild_command}") from error
            try:
                for check in checks:
                    check.result()
            except EngineError:
                engine.close()
                raise
        return engine

    def _advice(self, compatibility: Compatibility) -> str:
        return f"; rebuild it with: {self.rebuild_command}" if compatibility.rebuild else ""

    def verify(self, progress: Callable[[int], None] = lambda done: None) -> None:
        """Read every file and compare its SHA-256 with the manifest's; ``progress`` gets the bytes read.

        Raises:
            EngineError: names the first file that differs.
        """
        bytes_read = 0
        for file in self.manifest.files:
            self._check_size(file)
            self._check_digest(file)
            bytes_read += file.bytes
            progress(bytes_read)

    def _check_digest(self, file: StoredFile) -> None:
        if stored_file(self.path / file.name, self.path).sha256 != file.sha256:
            raise EngineError(
                f"{self.path / file.name} is damaged: its SHA-256 is not the one in the manifest; "
                f"rebuild the engine set with: {self.rebuild_command}"
            )

    def _check_size(self, file: StoredFile) -> None:
        path = self.path / file.name
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise EngineError(f"{path} is a link that leads out of the engine set; put the file itself there")
        try:
            size = path.stat().st_size
        except OSError as error:
            cause = f"is missing ({error.strerror})"
        else:
            if size == file.bytes:
                return
            cause = f"has {size} bytes instead of {file.bytes}"
        raise EngineError(f"{path} {cause}; rebuild the engine set with: {self.rebuild_command}")


def _read_manifest(folder: Path) -> str:
    return read_limited(folder / MANIFEST, _LARGEST_MANIFEST).decode()


def list_sets(root: Path | None = None) -> Iterator[EngineSet | EngineError]:
    """Every engine set in ``root`` (default: :func:`engines_root`); for a damaged one, what is wrong."""
    root = root or engines_root()
    if not root.is_dir():
        return
    for path in sorted(root.iterdir()):
        if path.name.startswith(".") or not (path / MANIFEST).exists():
            continue
        try:
            yield EngineSet.open(path)
        except EngineError as error:
            yield error


def find(wanted: Wanted, root: Path | None = None) -> EngineSet:
    """The best engine set in ``root`` that suits ``wanted``.

    A set compiled for CUDA comes before one for the CPU, then the backends in their order of preference, then a set
    without FP8, which is more accurate, then one without ``reuse``, which asks for less memory, then the newest.

    Raises:
        NoEngineSet: none suits; the message says why each one there does not.
    """
    root = root or engines_root()
    preference = list(BACKENDS)
    fitting: list[EngineSet] = []
    reasons: list[str] = []
    for candidate in list_sets(root):
        if isinstance(candidate, EngineError):
            reasons.append(str(candidate))
            continue
        name = wanted.model or candidate.manifest.recipe.model.name
        compatibility = candidate.suits(replace(wanted, model=name))  # as that model is today
        if compatibility.fits:
            fitting.append(candidate)
        else:
            reasons.append(f"{candidate.name}: {compatibility.reason}")
    if not fitting:
        summary = "; ".join(reasons) or "it holds none"
        raise NoEngineSet(
            f"no engine set in {root} fits ({summary}); build one with: {_build_command(wanted)}"
        )

    def rank(engine_set: EngineSet) -> tuple[bool, int, bool, bool]:
        recipe = engine_set.manifest.recipe
        options = recipe.options
        return options.device != "cuda", preference.index(recipe.backend.name), recipe.fp8, options.reuse

    newest_first = sorted(fitting, key=lambda engine_set: engine_set.manifest.created, reverse=True)
    return min(newest_first, key=rank)


def _build_command(wanted: Wanted) -> str:
    arguments = ["v2v-build-engines", wanted.model or "MODEL"]
    if wanted.window:
        size = f"{wanted.window.width}x{wanted.window.height}"
        arguments += ["--size", size, "--frames", str(wanted.window.frames)]
    for flag, value in (
        ("--backend", wanted.backend),
        ("--device", wanted.device),
        ("--precision", wanted.precision),
    ):
        arguments += [flag, value] if value else []
    arguments += ["--reuse"] if wanted.reuse else []
    arguments += ["--option", "fp8=yes"] if wanted.fp8 else []
    return " ".join(arguments)


def stored_file(path: Path, folder: Path) -> StoredFile:
    """Describe a file of the set in ``folder``: reads it once."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return StoredFile(path.relative_to(folder).as_posix(), path.stat().st_size, digest.hexdigest())


@contextmanager
def building_lock(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the right to build the set ``path``; where another process holds it, call ``waiting`` and wait.

    Once held, what dead builds left in that folder is removed.

    Raises:
        EngineError: a folder that is not ours has a name that the build needs.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        waiting()
        lock.acquire()
    try:
        _tidy(path)
        for building in path.parent.glob(".*.building"):
            other = path.with_name(building.name[1 : -len(".building")])
            with suppress(filelock.Timeout, EngineError), _lock(other).acquire(timeout=0):
                _tidy(other)
        yield
    finally:
        lock.release()


@contextmanager
def new_set(path: Path) -> Iterator[Path]:
    """A folder to build the set ``path`` in: on success it becomes ``path`` in one step, on failure it goes.

    The caller holds :func:`building_lock`, has asked :func:`replaceable`, and writes the manifest with
    :func:`finish`.
    """
    building, old = _sibling(path, "building"), _sibling(path, "old")
    building.mkdir()
    try:
        (building / BUILD_MARK).touch()
        with removed_on_abort(building):
            yield building
            if not (building / MANIFEST).exists():
                raise V2VError(f"the build of {path} ended without a manifest")
            sync_tree(building)
            if path.exists():
                (path / BUILD_MARK).touch()
                path.rename(old)
            building.rename(path)
            sync(path.parent)
    finally:
        _tidy(path)


def finish(building: Path, manifest: Manifest) -> None:
    """Write the manifest of a set under construction: from here on it is complete."""
    (building / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")


def replaceable(path: Path) -> Compatibility:
    """Whether a build may take the place of ``path``: nothing there, an empty folder, or an engine set."""
    if not path.exists() and not path.is_symlink():
        return Compatibility(True)
    if not path.is_dir() or path.is_symlink():
        return Compatibility(False, f"{path} exists and is not a folder")
    present = {file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir()}
    if not present or path.parent.resolve() == engines_root().resolve():
        return Compatibility(True)  # names in the store are made by us alone
    try:
        manifest = Manifest.from_json(_read_manifest(path))
    except (OSError, ValueError, EngineError):
        return Compatibility(
            False, f"{path} exists and is no engine set; name another folder, or empty it yourself"
        )
    foreign = sorted(present - {MANIFEST, BUILD_MARK, *(file.name for file in manifest.files)})
    if foreign:
        return Compatibility(
            False, f"{path} also holds what is no part of its engine set ({foreign[0]}); move that away first"
        )
    return Compatibility(True)


def _tidy(path: Path) -> None:
    """Remove what a stopped build of ``path`` left beside it; put the old set back if the new one is not in place."""
    building, old = _sibling(path, "building"), _sibling(path, "old")
    if (old / BUILD_MARK).exists() and not path.exists():  # stopped between the two renames
        old.rename(path)
    for folder in (building, old):
        _remove(folder)
    with suppress(OSError):  # a finished set needs no mark; one that we may not write does no harm with it
        (path / BUILD_MARK).unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    """Remove an empty folder, or one that holds :data:`BUILD_MARK`, the mark last."""
    if not folder.is_dir():
        return
    content = list(folder.iterdir())
    mark = folder / BUILD_MARK
    if content and mark not in content:
        raise EngineError(f"{folder} is in the way of a build and was not made by one; move it away")
    for path in content:
        if path.is_dir():
            shutil.rmtree(path)
        elif path != mark:
            path.unlink()
    mark.unlink(missing_ok=True)
    folder.rmdir()


def _sibling(path: Path, purpose: str) -> Path:
    return path.with_name(f".{path.name}.{purpose}")


def _lock(path: Path) -> filelock.BaseFileLock:
    return filelock.FileLock(_sibling(path, "lock"))
