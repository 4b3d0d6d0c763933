"""Records of hits that were answered from this process's memory: sent before the answer, kept until Redis has them."""

import logging
import time
from collections import deque
from typing import Any

from redis import RedisError

from storage.ledger import Ledger
from webapp.link import Loop, RedisLink

log = logging.getLogger(__name__)

MOST_UNCONFIRMED = 10_000
RETRY_S = 0.5

Record = tuple[bytes, bytes]  # who asked, and what the answer's record says; JSON


class HitLog:
    """A record that may not have arrived is sent again, on a thread: the recorder takes one that comes twice as one."""

    def __init__(self, ledger: Ledger, link: RedisLink, loop: Loop) -> None:
        self._ledger, self._link, self._loop = ledger, link, loop
        self._sent: deque[Record] = deque()
        self._lost: deque[Record] = deque()
        self._retry_at, self._is_retrying = 0.0, False

    @property
    def has_room(self) -> bool:
        """Whether all is well enough to answer before Redis has confirmed the record."""
        return not self._lost and len(self._sent) < MOST_UNCONFIRMED

    def record(self, caller: bytes, facts: bytes) -> None:
        """Hand the record to the system, so that it arrives even if this process is killed the next moment."""
        self._sent.append((caller, facts))
        self._link.ask(self._ledger.record_hit_command(caller, facts), self._confirm)
        self._link.flush()

    def tend(self) -> None:
        """To be called after every round of the loop."""
        if self._lost and not self._is_retrying and time.monotonic() >= self._retry_at:
            self._is_retrying = True
            records, self._lost = list(self._lost), deque()
            self._loop.apart(lambda: self._record_late(records), self._keep_lost)

    def close(self) -> None:
        """Last of all: record what can be, and say what cannot."""
        if rest := self._record_late([*self._lost, *self._sent]):
            log.error("hit.unrecorded", extra={"count": len(rest)})

    def _confirm(self, reply: Any) -> None:
        record = self._sent.popleft()
        if isinstance(reply, RedisError):
            self._lost.append(record)

    def _record_late(self, records: list[Record]) -> list[Record]:
        """What could still not be recorded."""
        for place, record in enumerate(records):
            try:
                self._ledger.record_hit(*record)
            except RedisError:
                return records[place:]
        return []

    def _keep_lost(self, records: list[Record] | Exception) -> None:
        self._is_retrying = False
        if isinstance(records, list):
            self._lost.extendleft(reversed(records))
            self._retry_at = time.monotonic() + (RETRY_S if records else 0)
