"""One signal for one job: whoever no longer wants the answer sets it, and the call in flight ends at once."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class AbortSignal:
    """Set once, from any thread; never cleared."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []

    @property
    def is_aborted(self) -> bool:
        return self._event.is_set()

    def abort(self) -> None:
        """Set the signal and run what is registered."""
        with self._lock:
            self._event.set()
            callbacks = list(self._callbacks)
        for callback in callbacks:
            callback()

    def wait(self, seconds: float) -> bool:
        """Sleep, but not past the signal; whether it is set."""
        return self._event.wait(seconds)

    @contextmanager
    def calling(self, abort: Callable[[], None]) -> Iterator[None]:
        """While the block lasts the signal runs `abort`; at once where it is set already."""
        with self._lock:
            self._callbacks.append(abort)
            is_late = self._event.is_set()
        if is_late:
            abort()
        try:
            yield
        finally:
            with self._lock:
                self._callbacks.remove(abort)
