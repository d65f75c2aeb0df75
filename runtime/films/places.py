"""Check before a run that no path it writes is one that it reads, or writes for another purpose.

Two names are one place if links lead them to the same file, or if one lies in a folder that the other owns.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from v2v.core.errors import UsageError


@dataclass(frozen=True)
class Place:
    """A path and what it is to the run: "the input", "--compare". A folder is owned with all that is in it."""

    path: Path
    role: str


def check_places(outputs: Iterable[Place], inputs: Iterable[Place]) -> None:
    """Refuse to write where something is read, or twice to one place, or onto what is neither file nor folder.

    Raises:
        UsageError: names both paths and what they are to the run.
    """
    owner_of: dict[Hashable, tuple[Place, bool]] = {}  # what is where, and whether it is written
    folders: list[tuple[Hashable, Place, bool]] = []  # the folders above each place
    for places, writes in ((inputs, False), (outputs, True)):
        for item in places:
            if writes:
                _check_kind(item)
            resolved = resolve(item.path)
            for key in _keys(resolved):
                other, other_writes = owner_of.setdefault(key, (item, writes))
                if other is not item and (writes or other_writes):
                    raise UsageError(f"{_named(item)} is {other.role} itself ({other.path}); name another")
            folders += [(key, item, writes) for parent in resolved.parents for key in _keys(parent)]
    for key, item, writes in folders:
        owner, owner_writes = owner_of.get(key, (item, False))
        if owner is not item and (writes or owner_writes):
            raise UsageError(f"{_named(item)} lies in {_named(owner)}; name a place elsewhere")


def resolve(path: Path) -> Path:
    """Where links lead.

    Raises:
        UsageError: round in a circle.
    """
    try:
        resolved = path.resolve()
    except (OSError, RuntimeError) as error:  # before Python 3.13 a circle is a RuntimeError
        raise UsageError(f"{path}: its links lead nowhere ({error})") from error
    if resolved.is_symlink():
        raise UsageError(f"{path}: its links lead round in a circle")
    return resolved


def link_target(place: Place) -> Path:
    """The file or folder that is written: a link stays one, and what it leads to is written, which is told.

    Raises:
        UsageError: it leads round in a circle.
    """
    if not place.path.is_symlink():
        return place.path
    resolved = resolve(place.path)
    warnings.warn(f"{_named(place)} is a link; what is written is {resolved}", stacklevel=2)
    return resolved


def _keys(resolved: Path) -> Iterator[Hashable]:
    """By name, and by what the disk calls it: names may differ in case alone, or be hard links."""
    yield str(resolved)
    try:
        facts = resolved.stat()
    except OSError:
        return
    yield facts.st_dev, facts.st_ino


def _check_kind(place: Place) -> None:
    if place.path.exists() and not place.path.is_file() and not place.path.is_dir():
        raise UsageError(f"{_named(place)} is a pipe or a device, which cannot be replaced; name a file")


def _named(place: Place) -> str:
    return f"{place.role} {os.fspath(place.path)}"
