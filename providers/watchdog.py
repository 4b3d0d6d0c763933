"""One thread that acts at deadlines: a socket's own timeout starts anew with each byte."""

import heapq
import itertools
import threading
import time
from collections.abc import Callable


class Alarm:
    """An act that is due at a deadline unless it is cancelled before."""

    __slots__ = ("_act",)

    def __init__(self, act: Callable[[], None]) -> None:
        self._act: Callable[[], None] | None = act

    def cancel(self) -> None:
        self._act = None

    def ring(self) -> None:
        if act := self._act:
            act()


class Watchdog:
    """Rings alarms at their deadlines, on a daemon thread that starts with the first of them.

    A cancelled alarm stays in the heap until its deadline: some hundred bytes, cheaper than to remove it.
    """

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Alarm]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def watch(self, deadline: float, act: Callable[[], None]) -> Alarm:
        """Calls `act`, which must not block or raise, at `deadline` (seconds of `time.monotonic`)."""
        alarm = Alarm(act)
        with self._changed:
            heapq.heappush(self._due, (deadline, next(self._order), alarm))
            if self._due[0][2] is alarm:
                self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="deadline-watchdog", daemon=True)
                self._thread.start()
        return alarm

    def _run(self) -> None:
        while True:
            self._next_due().ring()

    def _next_due(self) -> Alarm:
        with self._changed:
            while not self._due or self._due[0][0] > time.monotonic():
                self._changed.wait(self._due[0][0] - time.monotonic() if self._due else None)
            return heapq.heappop(self._due)[2]
