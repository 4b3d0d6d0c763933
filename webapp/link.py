"""A pipelined connection to Redis for an event loop: what is asked in one round goes out at once, and nobody waits."""

import logging
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import hiredis
from redis import RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from storage.connection import Command, RedisClient

log = logging.getLogger(__name__)

RECONNECT_S = 0.5
READ_BYTES = 256 * 1024

OnReply = Callable[[Any], None]  # gets the reply, or the RedisError in its place
_NOTHING_YET = object()


class Loop(Protocol):
    """Where a link lives: everything but the work of `apart` happens on the loop's one thread."""

    poller: selectors.BaseSelector

    def apart(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Do work that may block on another thread, then go on here with its result, or the exception it raised."""


class RedisLink:
    """Commands of many requests on one connection; replies come in the order of the commands.

    A reply that takes longer than `limit_s` takes the connection down, since all after it are as late. What was asked
    then gets a RedisError, and a new connection is made every RECONNECT_S until one stands.
    """

    def __init__(self, client: RedisClient, loop: Loop, limit_s: float) -> None:
        self._pool, self._loop, self._limit_s = client.connection_pool, loop, limit_s
        self._connection: Any = None
        self._socket: socket.socket | None = None
        self._reader = hiredis.Reader(notEnoughData=_NOTHING_YET)
        self._unsent: list[bytes] = []
        self._waiting: deque[tuple[float, OnReply]] = deque()
        self._is_connecting, self._connect_at = False, 0.0

    @property
    def is_up(self) -> bool:
        return self._socket is not None

    @property
    def is_busy(self) -> bool:
        return bool(self._waiting)

    def ask(self, command: Command, on_reply: OnReply) -> None:
        """Send with the next `flush`; never calls `on_reply` before it returns."""
        self._unsent.append(hiredis.pack_command(command))
        self._waiting.append((time.monotonic(), on_reply))

    def flush(self) -> None:
        """Send what was asked since the last time. To be called once a round."""
        if not self._unsent:
            return
        data, self._unsent = b"".join(self._unsent), []
        try:
            if self._socket is None:
                raise RedisConnectionError("Redis cannot be reached")
            self._socket.sendall(data)
        except (OSError, RedisError) as error:
            self._drop(error)

    def tend(self) -> None:
        """Give up what waits too long, and connect where need be. To be called at least every `limit_s`."""
        now = time.monotonic()
        if self._waiting and now - self._waiting[0][0] > self._limit_s:
            self._drop(TimeoutError("Redis took too long"))
        if self._socket is None and not self._is_connecting and now >= self._connect_at:
            self._is_connecting = True
            self._loop.apart(self._connect, self._adopt)

    def close(self) -> None:
        self._drop(RedisConnectionError("closed"))

    def _connect(self) -> Any:
        # Not `make_connection`: the pool counts those, and makes no more than `max_connections` of them ever.
        connection = self._pool.connection_class(**self._pool.connection_kwargs)
        connection.connect()
        return connection

    def _adopt(self, connection: Any) -> None:
        self._is_connecting, self._connect_at = False, time.monotonic() + RECONNECT_S
        if isinstance(connection, Exception):
            log.debug("link.down", extra={"error": type(connection).__name__})
            return
        # redis-py has greeted the server and knows all ways to reach it; from here on we talk.
        self._connection, self._socket = connection, connection._sock
        self._reader = hiredis.Reader(notEnoughData=_NOTHING_YET)
        self._socket.settimeout(self._limit_s)
        self._loop.poller.register(self._socket, selectors.EVENT_READ, self._read)

    def _read(self, readable: socket.socket) -> None:
        if readable is not self._socket:  # it was lost earlier in this round
            return
        try:
            data = readable.recv(READ_BYTES)
        except TimeoutError:  # TLS: bytes came, but nothing for us
            return
        except OSError as error:
            return self._drop(error)
        if not data:
            return self._drop(RedisConnectionError("Redis has closed the connection"))
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not _NOTHING_YET:
                if not isinstance(reply, hiredis.PushNotification):  # nobody asked for those
                    _, on_reply = self._waiting.popleft()
                    _call(on_reply, RedisError(str(reply)) if isinstance(reply, hiredis.ReplyError) else reply)
        except (hiredis.ProtocolError, IndexError) as error:  # it is not Redis, or it answers what nobody asked
            self._drop(error)

    def _drop(self, error: Exception) -> None:
        if self._socket is not None:
            self._loop.poller.unregister(self._socket)
            self._connection.disconnect()
            log.info("link.lost", extra={"error": type(error).__name__})
        self._connection = self._socket = None
        self._unsent.clear()
        asked, self._waiting = self._waiting, deque()
        kind = RedisTimeoutError if isinstance(error, TimeoutError) else RedisConnectionError
        failure = error if isinstance(error, RedisError) else kind(str(error))
        for _, on_reply in asked:
            _call(on_reply, failure)


def _call(on_reply: OnReply, reply: Any) -> None:
    try:
        on_reply(reply)
    except Exception:  # the others on this connection have nothing to do with it
        log.exception("link.reply_failed")
