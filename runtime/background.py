"""Decode and encode in threads of their own, while the main thread denoises.

FFmpeg lets go of Python's lock while it works, so both overlap with the engines.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Generic, TypeVar

T = TypeVar("T")

_PATIENCE = 0.1  # seconds between two looks at whether the other side is still there


class _Pipe(Generic[T]):
    """A bounded queue whose two ends notice when the other one stops."""

    def __init__(self, depth: int) -> None:
        self._items: queue.Queue[T] = queue.Queue(depth)
        self.closed = threading.Event()  # by the taker: nothing more is wanted
        self.finished = threading.Event()  # by the giver: nothing more will come

    def put(self, item: T) -> bool:
        """Whether the item was taken in; False once the taker has closed."""
        while not self.closed.is_set():
            with suppress(queue.Full):
                self._items.put(item, timeout=_PATIENCE)
                return True
        return False

    def __iter__(self) -> Iterator[T]:
        while True:
            try:
                yield self._items.get(timeout=_PATIENCE)
            except queue.Empty:
                if self.finished.is_set() and self._items.empty():
                    return


def ahead(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    """Give out ``items`` while a thread takes up to ``depth`` more of them; its exception is raised here, in order."""
    pipe: _Pipe[T] = _Pipe(depth)
    failure: list[BaseException] = []

    def work() -> None:
        try:
            for item in items:
                if not pipe.put(item):
                    return
        except BaseException as error:  # whatever it is belongs to the thread that asked for the items
            failure.append(error)
        finally:
            pipe.finished.set()

    thread = threading.Thread(target=work, name="v2v-ahead", daemon=True)
    thread.start()
    try:
        yield from pipe
        if failure:
            raise failure[0]
    finally:
        pipe.closed.set()
        thread.join()


@contextmanager
def behind(consume: Callable[[T], None], depth: int) -> Iterator[Callable[[T], None]]:
    """Lend a function that hands an item to ``consume`` in a thread and returns at once, up to ``depth`` items ahead.

    Leaving the block waits until all is consumed. What ``consume`` raises comes out of the next hand-over or of the
    block's end; left by an exception, what still waits is dropped.
    """
    pipe: _Pipe[T] = _Pipe(depth)
    failure: list[BaseException] = []

    def work() -> None:
        try:
            for item in pipe:
                if pipe.closed.is_set():
                    return
                consume(item)
        except BaseException as error:
            failure.append(error)
            pipe.closed.set()

    def hand_over(item: T) -> None:
        if not pipe.put(item):
            raise failure[0]

    thread = threading.Thread(target=work, name="v2v-behind", daemon=True)
    thread.start()
    try:
        yield hand_over
    except BaseException:
        pipe.closed.set()
        raise
    finally:
        pipe.finished.set()
        thread.join()
    if failure:
        raise failure[0]
