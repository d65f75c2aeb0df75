"""Frames that come as PyTorch's tensors, and go out as such. PyTorch need not be installed: who has tensors has it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from v2v.device import Frame


class Frames:
    """``given`` as NumPy arrays, one after the other; :meth:`like_given` makes of an array what the first one was.

    Args:
        given: ``[H, W, 3]`` RGB each, uint8 or uint16: arrays, or tensors on any device.
    """

    def __init__(self, given: Iterable[Any]) -> None:
        self._given = given
        self._tensors = False

    def __iter__(self) -> Iterator[Frame]:
        for frame in self._given:
            tensor = _is_tensor(frame)
            self._tensors |= tensor
            yield frame.detach().cpu().numpy() if tensor else frame

    def like_given(self, frame: Frame) -> Any:
        """An array, or a tensor on the CPU where those were given."""
        return sys.modules["torch"].from_numpy(frame) if self._tensors else frame


def _is_tensor(frame: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(frame, torch.Tensor)
