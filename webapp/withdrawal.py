"""Taking back what Redis may or may not have accepted, when its reply came too late for the caller."""

import logging
import threading
import time
from collections import deque
from contextlib import suppress

from redis import RedisError

from storage.ledger import Ledger

log = logging.getLogger(__name__)

RETRY_S = 0.5
MOST_REMEMBERED = 1_000


class Withdrawals:
    """Withdraws jobs that this process answers itself, later where Redis cannot be reached now.

    A job accepted without a message is rung by the reaper only after `REPUBLISH_SECONDS`: until then it can be taken
    back unnoticed. One that cannot is answered twice and, having one id, recorded once.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._late: deque[str] = deque(maxlen=MOST_REMEMBERED)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def withdraw(self, job_id: str) -> bool:
        """Whether the query may be answered here; False where a worker or other callers already rely on the job."""
        try:
            return self._ledger.withdraw(job_id)
        except RedisError:
            self._remember(job_id)
            return True

    def _remember(self, job_id: str) -> None:
        with self._lock:
            self._late.append(job_id)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._catch_up, name="withdrawals", daemon=True)
                self._thread.start()

    def _catch_up(self) -> None:
        while job_id := self._next():
            try:
                self._ledger.withdraw(job_id)
            except RedisError:
                time.sleep(RETRY_S)
            else:
                self._forget(job_id)

    def _forget(self, job_id: str) -> None:
        with self._lock, suppress(ValueError):  # a deque that was full has forgotten it already
            self._late.remove(job_id)

    def _next(self) -> str | None:
        with self._lock:
            if not self._late:
                self._thread = None
            return self._late[0] if self._late else None
