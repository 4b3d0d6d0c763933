"""Following a Redis stream from now on, on a thread of its own that survives everything but its process."""

import logging
import threading
import time
from collections.abc import Callable, Mapping

from redis import RedisError

from storage.connection import RedisClient, stream_entries

log = logging.getLogger(__name__)

BLOCK_MS = 2_000
RECONNECT_S = 0.5


class StreamFollower:
    """Calls `act` with the fields of each entry that is added after `start`. Every process that follows sees them all.

    `client` must outwait BLOCK_MS (`storage.connection.blocking_client`). What is added while Redis is away is seen
    later; what its bounded stream forgot meanwhile is not.
    """

    def __init__(self, client: RedisClient, stream: str, act: Callable[[Mapping[bytes, bytes]], None]) -> None:
        self._client, self._stream, self._act = client, stream, act

    def start(self) -> None:
        threading.Thread(target=self._follow, name=self._stream, daemon=True).start()

    def _follow(self) -> None:
        last: bytes | None = None
        while True:
            try:
                last = self._last_id() if last is None else last
                last = self._read(last)
            except RedisError as error:
                log.debug("stream.reconnecting", extra={"stream": self._stream, "error": type(error).__name__})
                time.sleep(RECONNECT_S)
            except Exception:  # noqa: BLE001 - whoever relies on this thread has only slow ways to notice its end
                log.exception("stream.failed", extra={"stream": self._stream})
                time.sleep(RECONNECT_S)

    def _last_id(self) -> bytes:
        newest = self._client.xrevrange(self._stream, count=1)
        return newest[0][0] if newest else b"0-0"

    def _read(self, last: bytes) -> bytes:
        for entry_id, fields in stream_entries(self._client.xread({self._stream: last}, block=BLOCK_MS)):
            last = entry_id
            self._act(fields)
        return last
