"""Where the axes of a tensor lie in an array: views that survive every Reshape and Transpose that moves nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

Factor = tuple[int, int]
"""Size and stride, in elements, of a part of an axis."""

Axis = tuple[Factor, ...]
"""An axis as nested factors, outermost first: ``((32, 4), (8, 128))`` is 256 long. No factor has size 1."""

Layout = tuple[Axis, ...]
"""Where each axis of a tensor lies in an array. All factors together tile the array exactly."""


def dense(shape: Iterable[int]) -> Layout:
    """Row-major."""
    axes: list[Axis] = []
    stride = 1
    for size in reversed(tuple(shape)):
        axes.append(((size, stride),) if size > 1 else ())
        stride *= size
    return tuple(reversed(axes))


def shape_of(layout: Layout) -> tuple[int, ...]:
    """The sizes of the axes."""
    return tuple(math.prod(size for size, _ in axis) for axis in layout)


def merged(factors: Iterable[Factor]) -> Axis:
    """The same factors with neighbours that lie one inside the other joined."""
    joined: list[Factor] = []
    for size, stride in factors:
        if joined and joined[-1][1] == size * stride:
            joined[-1] = (joined[-1][0] * size, stride)
        elif size > 1:
            joined.append((size, stride))
    return tuple(joined)


def reshaped(layout: Layout, shape: Sequence[int]) -> Layout | None:
    """The layout after Reshape to ``shape``; None where an axis would have to be cut between whole factors."""
    factors = list(merged(factor for axis in layout for factor in axis))
    axes: list[Axis] = []
    for size in shape:
        axis: list[Factor] = []
        while size > 1:
            length, stride = factors.pop(0)
            if size % length == 0:
                axis.append((length, stride))
                size //= length
            elif length % size == 0:
                axis.append((size, stride * (length // size)))
                factors.insert(0, (length // size, stride))
                size = 1
            else:
                return None
        axes.append(merged(axis))
    return tuple(axes)


def refined(first: Axis, second: Axis) -> tuple[Axis, Axis] | None:
    """Both axes, which have one size, cut into factors of the same sizes; None where that is impossible."""
    first_factors, second_factors = list(reversed(first)), list(reversed(second))
    cut: tuple[list[Factor], list[Factor]] = ([], [])
    while first_factors and second_factors:
        (size, stride), (size_, stride_) = first_factors.pop(0), second_factors.pop(0)
        common = min(size, size_)
        if size % common or size_ % common:
            return None
        cut[0].append((common, stride))
        cut[1].append((common, stride_))
        if size > common:
            first_factors.insert(0, (size // common, stride * common))
        if size_ > common:
            second_factors.insert(0, (size_ // common, stride_ * common))
    return tuple(reversed(cut[0])), tuple(reversed(cut[1]))


def is_dense(factors: Sequence[Factor], inner: int = 1) -> bool:
    """Whether these factors, outermost first, lie row-major around ``inner`` elements."""
    for size, stride in reversed(factors):
        if stride != inner:
            return False
        inner *= size
    return True


def wider(axis: Axis, old: int, new: int) -> Axis:
    """The factors of an axis of rows when rows become ``new / old`` times as long."""
    return tuple((size, stride * new // old) for size, stride in axis)
