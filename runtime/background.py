"""Decode and encode in threads of their own, while the main thread denoises.

FFmpeg lets go of Python's lock while it works, so both overlap with the engines.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, TypeVar, cast

T = TypeVar("T")

_PATIENCE = 0.1  # seconds between two looks at whether the other side is still there
_END = object()


class _Pipe(Generic[T]):
    """A bounded queue whose two ends notice when the other one stops."""

    def __init__(self, depth: int) -> None:
        self._items: queue.Queue[T | object] = queue.Queue(depth)
        self.closed = threading.Event()  # by the taker: nothing more is wanted

    def put(self, item: T | object) -> bool:
        """Whether the item was taken in; False once the taker has closed."""
        while not self.closed.is_set():
            with suppress(queue.Full):
                self._items.put(item, timeout=_PATIENCE)
                return True
        return False

    def __iter__(self) -> Iterator[T]:
        while True:
            try:
                item = self._items.get(timeout=_PATIENCE)
            except queue.Empty:
                continue  # signals have had their turn
            if item is _END:
                return
            yield cast(T, item)


def ahead(
    items: Iterable[T], depth: int, stop: Callable[[], None] = lambda: None
) -> Generator[T, None, None]:
    """Give out ``items`` while a thread takes up to ``depth`` more of them; its exception is raised here, in order.

    Once this is closed nobody takes any more, even if Ctrl-C came while the thread was being started: whoever made
    ``items`` may close the file that they come from. ``stop`` ends the wait for an item that may be long in coming.
    """
    pipe: _Pipe[T] = _Pipe(depth)
    failure: list[BaseException] = []
    at_work = threading.Lock()

    def work() -> None:
        with at_work:
            take()

    def take() -> None:
        if pipe.closed.is_set():
            return
        try:
            for item in items:
                if not pipe.put(item):
                    return
        except BaseException as error:  # whatever it is belongs to the thread that asked for the items
            failure.append(error)
        finally:
            pipe.put(_END)

    thread = threading.Thread(target=work, name="v2v-ahead", daemon=True)
    try:
        thread.start()
        yield from pipe
        if failure:
            raise failure[0]
    finally:
        pipe.closed.set()
        stop()
        with at_work:  # not a join, which would not wait for a thread that is about to begin
            pass


class Behind:
    """Does work in a thread of its own, one piece after the other, while whoever hands it over goes on.

    A context manager; leaving it waits for what was handed over, or, by an exception, drops what has not begun.

    Args:
        limit: bytes that may wait; one piece of work may be larger.
    """

    def __init__(self, limit: int) -> None:
        self._thread = ThreadPoolExecutor(1, "v2v-behind")
        self._limit, self._waiting = limit, 0
        self._changed = threading.Condition()

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown(cancel_futures=kind is not None)

    def hand_over(self, work: Callable[[], T], size: int = 0) -> Future[T]:
        """Queue ``work``, which holds ``size`` bytes; returns when there is room for them."""
        with self._changed:
            while self._waiting and self._waiting + size > self._limit:
                self._changed.wait()
            self._waiting += size

        def run() -> T:
            try:
                return work()
            finally:
                with self._changed:
                    self._waiting -= size
                    self._changed.notify()

        return self._thread.submit(run)

    def close(self) -> None:
        """Drop what has not begun, and end the thread."""
        self._thread.shutdown(cancel_futures=True)
