"""Following a Redis stream on an event loop, from now on and through lost connections."""

import logging
import time
from collections.abc import Callable
from typing import Any

from redis import RedisError

from storage.connection import RedisClient
from webapp.link import Loop, RedisLink

log = logging.getLogger(__name__)

BLOCK_MS = 2_000
AT_MOST = 16  # entries at a time: others on the loop have their turn in between
LIMIT_S = 5.0
REST_S = 0.5  # after Redis has refused: it is still loading, say


class Feed:
    """Calls `act` with the fields of each entry that is added from now on. `connect` makes a client for an address."""

    def __init__(
        self,
        connect: Callable[[str, float], RedisClient],
        url: str,
        stream: str,
        loop: Loop,
        act: Callable[[dict[bytes, bytes]], None],
    ) -> None:
        self._link = RedisLink(connect(url, BLOCK_MS / 1000), loop, LIMIT_S)
        self._stream, self._act = stream, act
        self._last: bytes | None = None
        self._is_asking, self._ask_at = False, 0.0

    @property
    def is_up(self) -> bool:
        """Whether nothing that is added from now on will be missed for long."""
        return self._link.is_up and self._last is not None

    def flush(self) -> None:
        if self._link.is_up and not self._is_asking and time.monotonic() >= self._ask_at:
            self._is_asking = True
            if self._last is None:
                self._link.ask(("XREVRANGE", self._stream, "+", "-", "COUNT", 1), self._begin)
            else:
                since = ("XREAD", "COUNT", AT_MOST, "BLOCK", BLOCK_MS, "STREAMS", self._stream, self._last)
                self._link.ask(since, self._read)
        self._link.flush()

    def tend(self) -> None:
        self._link.tend()

    def _begin(self, reply: Any) -> None:
        if not self._is_refused(reply):
            self._last = reply[0][0] if reply else b"0-0"

    def _read(self, reply: Any) -> None:
        if self._is_refused(reply) or not reply:
            return
        # As it comes on the wire: by stream, a map in RESP3, each entry an id and a list of names and values.
        [entries] = reply.values() if isinstance(reply, dict) else (entries for _, entries in reply)
        for entry_id, fields in entries:
            self._last = entry_id
            self._act(dict(zip(fields[::2], fields[1::2], strict=True)))

    def _is_refused(self, reply: Any) -> bool:
        self._is_asking = False
        if isinstance(reply, RedisError):
            self._ask_at = time.monotonic() + REST_S
            return True
        return False
