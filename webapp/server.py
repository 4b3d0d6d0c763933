"""gunicorn's threaded worker, whose event loop answers plain queries by itself (`webapp.express`)."""

import gc
import logging
import selectors
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

from gunicorn.workers.gthread import TConn, ThreadWorker

from webapp.express import Errand, Express
from webapp.wire import is_begun

log = logging.getLogger(__name__)

READ_BYTES = 64 * 1024
GC_THRESHOLD = 20_000  # allocations between two looks for garbage in cycles, of which a request makes hardly any
SWITCH_S = 0.001  # threads have little to do but wait; at Python's 5 ms the loop would keep them from that
SEND_LIMIT_S = 30.0  # for a caller that does not take its answer
LOOK_AGAIN_S = 1.0


class Connection(TConn):  # type: ignore[misc]
    """A connection; while it has an `errand` its request is being answered.

    `is_watched`: the poller reports on it. `received` is of a request whose rest is still to come, `unsent` of a reply
    that its caller is slow to take. `used_at` is when it last was of use.
    """

    errand: Errand | None = None
    is_watched = False
    is_open = True
    used_at = 0.0
    received = b""
    unsent = b""


class RouterWorker(ThreadWorker):  # type: ignore[misc]
    """Every new request is offered to Express; what that leaves goes to a thread, as gunicorn has it."""

    express: Express | None = None

    def run(self) -> None:
        # What is here by now stays: the collector need not walk through it again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        sys.setswitchinterval(SWITCH_S)
        if not self.cfg.is_ssl:
            self._aside = self.get_thread_pool()  # gunicorn's own may all be with slow callers
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
            try:
                then(future.exception() or future.result())
            except Exception:  # gunicorn's loop would end, and with it everybody's connection
                log.exception("loop.failed")

        self._aside.submit(work).add_done_callback(lambda future: self.method_queue.defer(go_on, future))

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
        # Not among gunicorn's pending ones, which would hold up the end of this process.
        self.keepalived_conns.append(connection)
        self._watch(connection)

    def on_client_socket_readable(self, conn: Connection, client: socket.socket) -> None:
        if self.express is None:
            return super().on_client_socket_readable(conn, client)
        if not conn.is_watched or conn.unsent:  # this round began otherwise
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
        self._offer(conn, self.express, conn.received + data)

    def _offer(self, conn: Connection, express: Express, data: bytes) -> None:
        errand, conn.received = express.take(conn, data), b""
        if errand:
            conn.errand = None if errand.is_over else errand
        elif is_begun(data):
            conn.received = data
        else:
            self.hand_over(conn, data)

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
            self._unwatch(connection)
            connection.unsent = data[sent:]
            return self._watch(connection, selectors.EVENT_WRITE)
        connection.errand = None
        if self.is_closing:
            self._close(connection)
        elif not connection.is_watched:
            self._watch(connection)

    def _send_rest(self, conn: Connection, _: socket.socket) -> None:
        data, conn.unsent = conn.unsent, b""
        if data:
            self._unwatch(conn)
            self.respond(conn, data)

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

    def _watch(self, conn: Connection, event: int = selectors.EVENT_READ) -> None:
        act = self.on_client_socket_readable if event == selectors.EVENT_READ else self._send_rest
        conn.is_watched = True
        self.poller.register(conn.sock, event, partial(self._act, act, conn))

    def _act(self, act: Callable[[Connection, socket.socket], None], conn: Connection, client: socket.socket) -> None:
        try:
            act(conn, client)
        except Exception:  # gunicorn's loop would end, and with it everybody's connection
            log.exception("connection.failed")
            self._close(conn)

    def _unwatch(self, conn: Connection) -> None:
        if conn.is_watched:
            conn.is_watched = False
            self.poller.unregister(conn.sock)

    def _close(self, conn: Connection) -> None:
        if not conn.is_open:
            return
        conn.is_open = False
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
        if self.express is None:
            return super().murder_keepalived(force)
        now = time.monotonic()
        while self.keepalived_conns and (force or self.keepalived_conns[0].timeout <= now):
            conn = self.keepalived_conns[0]
            conn.timeout = self._may_stay_until(conn, now)
            if force or conn.timeout <= now:
                self._close(conn)
            else:
                self.keepalived_conns.rotate(-1)

    def _may_stay_until(self, conn: Connection, now: float) -> float:
        if conn.unsent:
            return conn.used_at + SEND_LIMIT_S
        if conn.errand:
            return now + LOOK_AGAIN_S
        return float(conn.used_at + self.cfg.keepalive if self.alive else 0)
