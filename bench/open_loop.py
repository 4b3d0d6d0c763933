"""Load from one thread over raw sockets: requests fall due whatever happens, and wait from when they were due.

A stall is charged to every request that fell due in it (no coordinated omission). The same loop holds many
connections open: then a request falls due when its connection has been answered.
"""

import gc
import heapq
import re
import select
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.load import Call, Outcome

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_REPLY_BYTES = 1 << 16
_DRAIN_S = 30.0  # how long the last replies are waited for


def open_loop(
    call: Call, per_second: float, seconds: float, tokens: Iterator[str], *, connections: int = 64
) -> Outcome:
    """`per_second` requests fall due at even distances; all replies count, also those that come late."""
    due = [number / per_second for number in range(int(per_second * seconds))]
    return _Loop(call, connections, tokens).run(due, seconds, _DRAIN_S, lambda status: None)


def hold(
    call: Call, connections: int, seconds: float, tokens: Iterator[str], *, warm_s: float = 0, pause_s: float = 1
) -> Outcome:
    """Each connection asks again when it is answered, or `pause_s` later when it is sent away (202, 429, error).

    They begin spread over a second, or they would beat in step. Replies count from `warm_s` to `warm_s` + `seconds`,
    failures always.
    """
    due = [number / connections for number in range(connections)]
    loop = _Loop(call, connections, tokens)
    return loop.run(due, seconds, _DRAIN_S, lambda status: 0.0 if status == 200 else pause_s, warm_s)


@dataclass
class _Connection:
    sock: socket.socket
    due: float = 0.0
    token: bytes = b""
    received: bytes = b""


class _Loop:
    """Connections that are idle or wait for an answer, and the times at which requests fall due."""

    def __init__(self, call: Call, connections: int, tokens: Iterator[str]) -> None:
        self._port, self._tokens = call.port, tokens
        self._parts = call.request().split(b"@TOKEN@")
        self._poll = select.epoll()
        self._by_file: dict[int, _Connection] = {}
        self._late: deque[float] = deque()
        self._latencies: list[float] = []
        self._counts = Counter(asked=0, answered=0)
        self._sample = ""
        self._idle = deque(self._connect() for _ in range(connections))

    def run(
        self,
        offsets: list[float],
        seconds: float,
        drain_s: float,
        again: Callable[[int], float | None],
        warm_s: float = 0,
    ) -> Outcome:
        """`offsets` are sorted seconds from now; `again` says how long after a reply one more request falls due."""
        gc.disable()  # a collection would be counted as latency
        began = time.perf_counter()
        self._due, self._again = [began + offset for offset in offsets], again
        self._counted_from, self._end = began + warm_s, began + warm_s + seconds
        self._counted_until = self._end if warm_s else self._end + drain_s
        try:
            while self._is_unfinished(drain_s):
                self._step()
        finally:
            gc.enable()
            self._close()
        return self._outcome(seconds)

    def _is_unfinished(self, drain_s: float) -> bool:
        now = time.perf_counter()
        if self._due and now < self._end:
            return True
        is_waiting = len(self._idle) < len(self._by_file) or bool(self._due and self._due[0] < self._end)
        return (is_waiting or bool(self._late)) and now < self._end + drain_s

    def _step(self) -> None:
        now = time.perf_counter()
        while self._due and self._due[0] <= now and self._due[0] < self._end:
            self._offer(heapq.heappop(self._due))
        pause = min(self._due[0] - time.perf_counter(), 0.1) if self._due else 0.1
        # epoll's own timeout counts in ms; select's on epoll's file in µs.
        if select.select([self._poll], [], [], max(0.0, pause))[0]:
            for file, _ in self._poll.poll(0):
                self._receive(self._by_file[file])

    def _offer(self, due: float) -> None:
        if self._idle:
            self._send(self._idle.popleft(), due)
        else:
            self._late.append(due)

    def _send(self, connection: _Connection, due: float) -> None:
        connection.due, connection.token = due, next(self._tokens).encode()
        self._counts["asked"] += 1
        try:
            connection.sock.sendall(connection.token.join(self._parts))
        except OSError:
            self._break(connection)

    def _receive(self, connection: _Connection) -> None:
        try:
            data = connection.sock.recv(_REPLY_BYTES)
        except OSError:
            data = b""
        connection.received += data
        if not data:
            self._break(connection)
        elif _is_whole(connection.received):
            self._take(connection)

    def _take(self, connection: _Connection) -> None:
        now, reply, connection.received = time.perf_counter(), connection.received, b""
        status = int(reply[9:12])
        kind = _kind(status, connection.token, reply)
        if kind in ("wrong", "unavailable", "other"):
            self._counts[kind] += 1
            self._sample = reply[-300:].decode("utf-8", "replace")
        elif self._counted_from <= now < self._counted_until:
            self._counts[kind] += 1
            self._latencies.append(now - connection.due)
        self._release(connection, status)

    def _release(self, connection: _Connection, status: int) -> None:
        """The connection is free: for what is late, or until something falls due."""
        connection.token = b""
        pause = self._again(status)
        if pause is not None:
            heapq.heappush(self._due, time.perf_counter() + pause)
        if self._late:
            self._send(connection, self._late.popleft())
        else:
            self._idle.append(connection)

    def _break(self, connection: _Connection) -> None:
        """The server hung up: a failure where an answer was due; an idle connection is only replaced."""
        self._poll.unregister(connection.sock)
        del self._by_file[connection.sock.fileno()]
        connection.sock.close()
        fresh = self._connect()
        if connection.token:
            self._counts["broken"] += 1
            self._release(fresh, 0)
        else:
            self._idle.remove(connection)
            self._idle.append(fresh)

    def _connect(self) -> _Connection:
        sock = socket.create_connection(("127.0.0.1", self._port), timeout=10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection(sock)
        self._by_file[sock.fileno()] = connection
        self._poll.register(sock, select.EPOLLIN)
        return connection

    def _outcome(self, seconds: float) -> Outcome:
        unanswered = len(self._by_file) - len(self._idle) + len(self._late)
        self._counts["broken"] += unanswered
        found = sorted(self._latencies) or [0.0]
        p50, p95, p99 = (found[min(len(found) - 1, int(share * len(found)))] * 1000 for share in (0.5, 0.95, 0.99))
        return Outcome(
            seconds, p50_ms=p50, p95_ms=p95, p99_ms=p99, max_ms=found[-1] * 1000, sample=self._sample, **self._counts
        )

    def _close(self) -> None:
        for connection in self._by_file.values():
            connection.sock.close()
        self._poll.close()


def _kind(status: int, token: bytes, reply: bytes) -> str:
    """The name of what counts such replies."""
    if status == 200:
        return "answered" if token in reply else "wrong"
    if status == 503 and b"\r\nretry-after:" in reply.lower():
        return "unavailable"
    return {202: "accepted", 429: "refused"}.get(status, "other")


def _is_whole(received: bytes) -> bool:
    head_end = received.find(b"\r\n\r\n")
    if head_end < 0:
        return False
    if found := _LENGTH.search(received, 0, head_end):
        return len(received) >= head_end + 4 + int(found[1])
    return received.endswith(b"0\r\n\r\n")  # chunked
