"""Damage that knows nothing of what it hits."""

from __future__ import annotations

import numpy as np


def damage(content: bytes, random: np.random.Generator) -> bytes:
    """Flip bytes anywhere or in the header, wipe out, drop, repeat or exchange stretches, cut off the end."""
    data = bytearray(content)
    for _ in range(int(random.choice([1, 1, 1, 2, 4]))):
        size = max(len(data), 1)
        start = int(random.integers(size))
        stop = min(start + int(random.integers(1, max(min(2000, size // 4), 2))), size)
        other = int(random.integers(size))
        match random.integers(8):
            case 0:
                _flip(data, random.integers(size, size=int(2 ** random.uniform(0, 7.6))), random)
            case 1:
                data[start:stop] = bytes(stop - start)
            case 2:
                data[other:other] = data[start:stop]
            case 3:
                del data[start:]
            case 4:
                del data[start:stop]
            case 5:
                data[start:stop] = random.bytes(stop - start)
            case 6:
                there = slice(other, other + stop - start)
                data[start:stop], data[there] = data[there], data[start:stop]
            case _:
                _flip(data, random.integers(min(1500, size), size=random.integers(1, 12)), random)
    return bytes(data)


def _flip(data: bytearray, places: np.ndarray, random: np.random.Generator) -> None:
    for place in places:
        data[place : place + 1] = random.bytes(1)
