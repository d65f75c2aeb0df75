"""A video that comes in by a pipe, read while it comes."""

from __future__ import annotations

import os
import threading
from collections import deque
from pathlib import Path

_BLOCK = 1 << 15  # bytes; as many as PyAV asks for at once

Y4M, MATROSKA = b"YUV4MPEG2 ", b"\x1a\x45\xdf\xa3"
"""How videos begin that can be read without going back and forth."""


class Inflow:
    """What comes in by a pipe, for readers that go through it each at its own pace.

    Nothing is read ahead of the fastest of them, and what all have read is let go, once it is known that nobody else
    comes (:meth:`seal`).

    Args:
        handle: of the pipe.
        path: the pipe's name.
        beginning: what has been read of it already.
    """

    def __init__(self, handle: int, path: Path, beginning: bytes = b"") -> None:
        self.path, self.beginning = path, beginning
        self.received = len(beginning)
        """Bytes so far."""
        self._handle = handle
        # For readers that are still to come.
        self._kept: list[bytes] | None = [beginning] if beginning else []
        self._taps: list[Tap] = []
        self._changed = threading.Condition()
        self._wanted, self._ended = False, False
        self._failure: OSError | None = None
        threading.Thread(target=self._receive, name="v2v-pipe", daemon=True).start()

    @property
    def name(self) -> str:
        """As a file's."""
        return self.path.name

    @property
    def is_y4m(self) -> bool:
        """Whether it is uncompressed pictures, and nothing else."""
        return self.beginning.startswith(Y4M)

    @property
    def waiting(self) -> int:
        """Bytes that are in memory, because a reader has not come to them."""
        with self._changed:
            blocks = {id(block): len(block) for tap in self._taps for block in tap.blocks}
            blocks |= {id(block): len(block) for block in self._kept or ()}
            return sum(blocks.values())

    def open(self) -> Tap:
        """Read from the beginning; not after :meth:`seal`."""
        with self._changed:
            assert self._kept is not None, "the beginning was let go"
            self._taps.append(Tap(self, self._kept))
            return self._taps[-1]

    def seal(self) -> None:
        """Nobody else will read from the beginning."""
        with self._changed:
            self._kept = None

    def close(self) -> None:
        """No reader gets any more."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def read(self, tap: Tap, size: int) -> bytes:
        """For :class:`Tap`."""
        with self._changed:
            while not tap.blocks:
                if self._failure is not None:
                    raise self._failure
                if self._ended or tap not in self._taps:
                    return b""
                self._wanted = True
                self._changed.notify_all()
                self._changed.wait()
            block = tap.blocks.popleft()
            if len(block) > size:
                tap.blocks.appendleft(block[size:])
            return block[:size]

    def leave(self, tap: Tap) -> None:
        """For :class:`Tap`."""
        with self._changed:
            if tap in self._taps:
                self._taps.remove(tap)
            tap.blocks.clear()
            self._changed.notify_all()

    def _receive(self) -> None:
        """Read a block whenever one is wanted, in a thread that may be left waiting for ever."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted or self._ended)
                if self._ended:
                    return
            block, failure = b"", None
            try:
                block = os.read(self._handle, _BLOCK)
            except OSError as error:
                failure = error
            with self._changed:
                self._wanted, self._failure = False, failure
                self._ended = self._ended or not block
                self.received += len(block)
                if block:
                    for kept in (*(tap.blocks for tap in self._taps), self._kept):
                        if kept is not None:
                            kept.append(block)
                self._changed.notify_all()


class Tap:
    """One reader of an :class:`Inflow`: a file that cannot be gone back in."""

    def __init__(self, inflow: Inflow, blocks: list[bytes]) -> None:
        self._inflow = inflow
        self.blocks = deque(blocks)
        """What it has not read yet, of what came in."""

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes, as soon as there are some; none at the end.

        Raises:
            OSError: the pipe cannot be read.
        """
        try:
            return self._inflow.read(self, size)
        except KeyboardInterrupt as error:  # which PyAV would not hand on
            raise InterruptedError from error

    def close(self) -> None:
        """Nothing more is wanted; whoever waits in :meth:`read` gets the end."""
        self._inflow.leave(self)


Source = Path | Inflow
"""A file, a folder of pictures, or what comes in."""
