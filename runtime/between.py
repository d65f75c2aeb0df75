"""Frames between frames: each frame of a source is given out several times, the last of each shot once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Given(NamedTuple, Generic[T]):
    """A frame that is given out."""

    item: T
    repeat: int  # 0 for the frame itself, else which of its repetitions
    following: T | None  # the next one of its shot
    starts_shot: bool


def repeated(items: Iterable[T], times: int, starts_shot: Callable[[int], bool]) -> Iterator[Given[T]]:
    """Give out each of ``items`` ``times`` times; between two shots, and at the end, nothing is put.

    ``starts_shot`` says of an item's number whether a shot begins with it; it is asked once the item is there.
    """
    held: T | None = None
    starts = False
    for number, item in enumerate(items):
        cut = starts_shot(number)
        if held is not None:
            for repeat in range(1 if cut else times):
                yield Given(held, repeat, None if cut else item, starts and not repeat)
        held, starts = item, cut
    if held is not None:
        yield Given(held, 0, None, starts)
