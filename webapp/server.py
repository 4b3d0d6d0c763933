"""gunicorn's threaded worker, whose event loop answers plain queries by itself (`webapp.express`)."""

import gc
import logging
import selectors
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

from gunicorn.workers.gthread import TConn, ThreadWorker

from webapp.express import Errand, Express

log = logging.getLogger(__name__)

READ_BYTES = 64 * 1024
GC_THRESHOLD = 20_000  # allocations between two looks for garbage in cycles, of which a request makes hardly any
SEND_LIMIT_S = 30.0  # for a caller that does not take its answer


class Connection(TConn):  # type: ignore[misc]
    """A connection; while it has an `errand` its request is being answered.

    `is_watched`: the poller reports what comes in. `used_at` is when it last was of use.
    """

    errand: Errand | None = None
    is_watched = True
    is_open = True
    used_at = 0.0


class RouterWorker(ThreadWorker):  # type: ignore[misc]
    """Every new request is offered to Express; what that leaves goes to a thread, as gunicorn has it."""

    express: Express | None = None

    def run(self) -> None:
        # What is here by now stays: the collector need not walk through it again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        if not self.cfg.is_ssl:
            self.express = Express(self.wsgi, self)
            self.express.tend()
        super().run()
        if self.express:
            self.express.close()

    @property
    def is_closing(self) -> bool:
        return not self.alive

    def apart(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        def go_on(future: Future[Any]) -> None:
            self.method_queue.defer(then, future.exception() or future.result())

        self.tpool.submit(work).add_done_callback(go_on)

    def accept(self, listener: socket.socket) -> None:
        if self.express is None:
            return super().accept(listener)
        try:
            client, address = listener.accept()
        except OSError:  # another process was faster, or the caller has changed its mind
            return
        self.nr_conns += 1
        connection = Connection(self.cfg, client, address, listener.getsockname())
        connection.set_timeout()
        self.pending_conns.append(connection)
        self.poller.register(client, selectors.EVENT_READ, partial(self.on_pending_socket_readable, connection))

    def on_pending_socket_readable(self, conn: Connection, client: socket.socket) -> None:
        if not conn.is_open:
            return
        self.pending_conns.remove(conn)
        self.keepalived_conns.append(conn)
        self.poller.modify(client, selectors.EVENT_READ, partial(self.on_client_socket_readable, conn))
        self.on_client_socket_readable(conn, client)

    def on_client_socket_readable(self, conn: Connection, client: socket.socket) -> None:
        if not conn.is_open:
            return
        if conn.errand:
            return self._disturbed(conn)
        try:
            data = client.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            return self._close(conn)
        assert self.express  # noqa: S101 - without it gunicorn's own `accept` makes the connections
        errand = self.express.take(conn, data)
        if errand is None:
            self.hand_over(conn, data)
        elif not errand.is_over:
            conn.errand = errand

    def hand_over(self, connection: Connection, data: bytes) -> None:
        connection.errand = None
        self._unwatch(connection)
        self.keepalived_conns.remove(connection)
        connection.init()
        connection.parser.unreader.unread(data)
        connection.data_ready = True
        self.enqueue_req(connection)

    def finish_request(self, conn: Connection, fs: Future[Any]) -> None:
        conn.is_watched = True  # if it is kept, the poller has it again
        super().finish_request(conn, fs)

    def respond(self, connection: Connection, data: bytes) -> None:
        connection.used_at = time.monotonic()
        try:
            sent = connection.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return self._close(connection)
        if sent < len(data):
            return self.apart(partial(_send_all, connection.sock, data[sent:]), partial(self._sent, connection))
        self._sent(connection, None)

    def _sent(self, conn: Connection, failure: Exception | None) -> None:
        conn.errand = None
        if failure or self.is_closing:
            return self._close(conn)
        if not conn.is_watched:
            conn.is_watched = True
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_client_socket_readable, conn))

    def _disturbed(self, conn: Connection) -> None:
        """While a request is being answered the caller either leaves, or sends the next one, which has to wait."""
        try:
            is_gone = not conn.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            is_gone = True
        if not is_gone:
            return self._unwatch(conn)
        if conn.errand and self.express:
            self.express.abandon(conn.errand)
        self._close(conn)

    def _unwatch(self, conn: Connection) -> None:
        if conn.is_watched:
            conn.is_watched = False
            self.poller.unregister(conn.sock)

    def _close(self, conn: Connection) -> None:
        if not conn.is_open:
            return
        conn.is_open = False
        with suppress(KeyError, ValueError):
            self._unwatch(conn)
        with suppress(ValueError):
            self.keepalived_conns.remove(conn)
        self.nr_conns -= 1
        conn.close()

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        if self.express is None:
            return super().wait_for_and_dispatch_events(timeout)
        super().wait_for_and_dispatch_events(min(timeout, self.express.patience_s))
        self.express.tend()

    def murder_keepalived(self, force: bool = False) -> None:
        """gunicorn closes what its threads have not used for long: what Express uses stays."""
        now = time.monotonic()
        while not force and self.keepalived_conns and self.keepalived_conns[0].timeout <= now:
            conn = self.keepalived_conns[0]
            until = now + 1 if conn.errand else conn.used_at + self.cfg.keepalive if self.alive else 0
            if until <= now:
                break
            self.keepalived_conns.rotate(-1)
            conn.timeout = until
        super().murder_keepalived(force)


def _send_all(client: socket.socket, data: bytes) -> None:
    """Send the rest of a reply, on a thread."""
    client.settimeout(SEND_LIMIT_S)
    try:
        client.sendall(data)
    finally:
        client.settimeout(0)
