"""What there is to know of container formats."""

from __future__ import annotations

from typing import Any

import av.container
import av.format


def may_jump(container: av.container.InputContainer) -> bool:
    """Whether the clock of such a file may jump, as that of a broadcast does."""
    return _has(container, av.format.Flags.ts_discont)


def takes_equal_times(container: av.container.OutputContainer) -> bool:
    """Whether packets of a stream may have the same decoding time."""
    return _has(container, av.format.Flags.ts_nonstrict)


def _has(container: av.container.Container, flag: av.format.Flags) -> bool:
    bits: Any = flag.value
    return bool(container.format.flags & bits)
