"""Installations as pip makes them, put together from links to what is installed here, so that no network is needed.

The plain one has what ``pip install .`` brings: neither PyTorch nor ONNX nor anything else of an extra. What an extra
names and is not installed here, such as TensorRT, is missing there too.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import venv
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]


# As pip writes it: a process started by this one imports the file again.
PROGRAM = """#!{python}
from {module} import {function}
if __name__ == "__main__":
    {function}()
"""


@dataclass(frozen=True)
class Installation:
    """A virtual environment with v2v in it."""

    folder: Path

    @property
    def programs(self) -> Path:
        """Where ``python``, ``v2v-run`` and the other commands are."""
        return self.folder / "bin"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.programs / "python"

    def environment(self, **more: str) -> dict[str, str]:
        """Of a shell in which it is activated; nothing else that Python knows is seen."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return {**kept, "PATH": f"{self.programs}{os.pathsep}{os.environ['PATH']}", **more}


def install(folder: Path, extras: Collection[str] = (), packages: Path | None = None) -> Installation:
    """Make an installation in ``folder``: of the checkout, or of the unpacked wheel in ``packages``."""
    venv.create(folder, symlinks=True)
    made = Installation(folder)
    library = next((folder / "lib").glob("python*/site-packages"))
    _link(closure(extras), library)
    (library / "v2v.pth").write_text(f"{packages or _tree(folder / 'tree')}\n")
    for name, entry in PROJECT["project"]["scripts"].items():
        module, _, function = entry.partition(":")
        program = made.programs / name
        program.write_text(PROGRAM.format(python=made.python, module=module, function=function))
        program.chmod(0o755)
    return made


def closure(extras: Collection[str]) -> list[importlib.metadata.Distribution]:
    """What pip would install for v2v with ``extras``, as far as it is installed here."""
    found: dict[str, importlib.metadata.Distribution] = {}
    done: set[str] = set()
    waiting = [*PROJECT["project"]["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    while waiting:
        line = waiting.pop()
        wanted = Requirement(line)
        name = canonicalize_name(wanted.name)
        if line in done:
            continue
        done.add(line)
        if name == "v2v":
            waiting += [line for extra in wanted.extras for line in EXTRAS[extra]]
            continue
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.distribution(name)
            waiting += _needs(found[name].requires or (), wanted.extras)
    return [*found.values()]


def _needs(lines: Iterable[str], extras: Collection[str]) -> list[str]:
    """The requirements among ``lines`` that hold here, with their markers taken off."""
    held = []
    for requirement in map(Requirement, lines):
        marker, requirement.marker = requirement.marker, None
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            held.append(str(requirement))
    return held


def _link(distributions: Collection[importlib.metadata.Distribution], library: Path) -> None:
    """Link what the distributions consist of: whole folders, file by file where one is shared with what is left out."""
    names = {distribution.name for distribution in distributions}
    shared = {
        folder
        for folder, owners in importlib.metadata.packages_distributions().items()
        if set(owners) - names
    }
    for distribution in distributions:
        for file in distribution.files or ():
            if ".." in file.parts:  # a program or a manual page
                continue
            part = file if file.parts[0] in shared else Path(file.parts[0])
            link = library / part
            if not link.exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(Path(str(distribution.locate_file(part))))


def _tree(folder: Path) -> Path:
    """The checkout's folders under the names of their packages."""
    for name, source in sorted(PROJECT["tool"]["scikit-build"]["wheel"]["packages"].items()):
        if name == "v2v":  # the face has the others inside it
            (folder / name).mkdir(parents=True)
            for file in (ROOT / source).iterdir():
                (folder / name / file.name).symlink_to(file)
        else:
            (folder / name).symlink_to(ROOT / source)
    return folder
