"""Waiting for jobs to end, on threads: whoever reads the completion stream for this process wakes them."""

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from redis import RedisError

from storage.connection import RedisClient
from storage.follow import StreamFollower
from storage.job import Job
from storage.ledger import Ledger
from storage.name import DONE
from webapp.draining import is_draining

SLICE_S = 1.0  # a wake-up that got lost costs at most this


class CompletionListener:
    """Wakes who waits for a job when the stream names it. A thread that reads it starts with the first wait, after any
    fork, unless the process has an event loop that reads it anyway.
    """

    def __init__(self, client: RedisClient) -> None:
        self._follower = StreamFollower(client, DONE, self._wake)
        self._waiting: dict[str, set[threading.Event]] = defaultdict(set)
        self._lock = threading.Lock()
        self._pid: int | None = None

    def rely_on_loop(self) -> Callable[[Mapping[bytes, bytes]], None]:
        """What this process's event loop is to call with each entry; to be asked for before any wait."""
        self._pid = os.getpid()
        return self._wake

    @contextmanager
    def watch(self, job_id: str) -> Iterator[threading.Event]:
        """An event that is set when the job ends, while the block lasts."""
        self._ensure_running()
        event = threading.Event()
        with self._lock:
            self._waiting[job_id].add(event)
        try:
            yield event
        finally:
            with self._lock:
                self._waiting[job_id].discard(event)
                if not self._waiting[job_id]:
                    del self._waiting[job_id]

    def _ensure_running(self) -> None:
        with self._lock:
            if self._pid != os.getpid():
                self._pid = os.getpid()
                self._follower.start()

    def _wake(self, entry: Mapping[bytes, bytes]) -> None:
        with self._lock:
            for event in self._waiting.get(entry.get(b"job", b"").decode(), ()):
                event.set()


class NoSlot(Exception):
    """As many requests follow a job in this process as may."""


class Watch:
    """A job under observation: iterating gives it as it is about once a second, and at once when it ends, until it has
    ended, the time is up, or the process stops. Holds a slot until it is closed. Redis errors pass through.
    """

    def __init__(self, look: Callable[[], Job | None], ended: threading.Event, until: float, parts: ExitStack) -> None:
        self._look, self._ended, self._until = look, ended, until
        self.close = parts.close

    def __iter__(self) -> Iterator[Job]:
        while job := self._look():
            yield job
            if not job.is_open or time.monotonic() >= self._until or is_draining():
                return
            self._ended.wait(SLICE_S)
            self._ended.clear()


class Waiter:
    """A bounded number of waits and of streams per process, so that cache hits always find a free thread."""

    def __init__(self, ledger: Ledger, listener: CompletionListener, waits: int, streams: int) -> None:
        self._ledger, self._listener = ledger, listener
        self.rely_on_loop = listener.rely_on_loop
        self._slots = threading.BoundedSemaphore(waits)
        self._streams = threading.BoundedSemaphore(streams)

    def wait(self, job_id: str, seconds: float, leader: str | None = None) -> Job | None:
        """The job when it has ended, or as it is when `seconds` have passed, no slot is free, or the process stops.

        `leader` is the job that it joined. None where the ledger does not know the job. Raises RedisError where Redis
        was away to the end.
        """
        if not self._slots.acquire(blocking=False):
            return self._ledger.job(job_id)
        try:
            with self._listener.watch(leader or job_id) as ended:
                return self._watch(lambda: self._ledger.job(job_id), ended, time.monotonic() + seconds)
        finally:
            self._slots.release()

    def follow(self, job_id: str, seconds: float, leader: str | None = None) -> Watch:
        """Watch a job for so long at most. Raises NoSlot."""
        if not self._streams.acquire(blocking=False):
            raise NoSlot
        parts = ExitStack()
        parts.callback(self._streams.release)
        ended = parts.enter_context(self._listener.watch(leader or job_id))
        return Watch(lambda: self._ledger.job(job_id), ended, time.monotonic() + seconds, parts)

    @staticmethod
    def _watch(look: Callable[[], Job | None], ended: threading.Event, until: float) -> Job | None:
        while True:
            left = until - time.monotonic()
            try:
                job = look()
                if job is None or not job.is_open or left <= 0 or is_draining():
                    return job
            except RedisError:
                if left <= 0 or is_draining():
                    raise
            ended.wait(min(SLICE_S, max(left, 0.01)))
            ended.clear()
