"""HTTP connections that tell the call they serve which socket it is, so that it can be ended from outside."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import NewConnectionError
from urllib3.util.connection import create_connection

_serving = threading.local()


class SocketHold:
    """A call's own descriptor of the socket that serves it; `shut` may come from any thread.

    It is a duplicate, because urllib3 wraps (TLS), closes and hands over its own descriptor when it sees fit.
    """

    def __init__(self) -> None:
        self.is_reused = False
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._is_shut = False

    def take(self, descriptor: int, *, is_reused: bool) -> None:
        with self._lock:
            self._drop()
            self._socket = socket.socket(fileno=os.dup(descriptor))
            self.is_reused = is_reused
            if self._is_shut:
                self._shut()

    def shut(self) -> None:
        """Ends all reading and writing on the socket, and on any that is taken later."""
        with self._lock:
            self._is_shut = True
            self._shut()

    def let_go(self) -> None:
        with self._lock:
            self._drop()

    def _shut(self) -> None:
        if self._socket is not None:
            with suppress(OSError):  # the peer was faster
                self._socket.shutdown(socket.SHUT_RDWR)

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


@contextmanager
def serving(hold: SocketHold) -> Iterator[None]:
    """Within this block the sockets that this thread connects or takes from a pool are given to `hold`."""
    _serving.hold = hold
    try:
        yield
    finally:
        del _serving.hold


class HeldConnection(HTTPConnection):
    """Gives its socket to the hold of the call it serves, before TLS and before the request."""

    _hold: SocketHold | None = None

    def _new_conn(self) -> socket.socket:
        try:
            connected = connect_within(self.timeout or 0, self._dns_host, self.port, self.socket_options)
        except OSError as error:
            raise NewConnectionError(self, str(error)) from error
        self._pass_to(_serving.hold, connected.fileno(), is_reused=False)
        return connected

    def request(self, *args: Any, **kwargs: Any) -> None:
        if self.sock is not None and self._hold is not _serving.hold:
            self._pass_to(_serving.hold, self.sock.fileno(), is_reused=True)
        super().request(*args, **kwargs)

    def _pass_to(self, hold: SocketHold, descriptor: int, *, is_reused: bool) -> None:
        # The call before us has read its whole reply, but its deadline must not strike our request.
        if self._hold is not None:
            self._hold.let_go()
        self._hold = hold
        hold.take(descriptor, is_reused=is_reused)


class HeldTLSConnection(HeldConnection, HTTPSConnection):
    """The same over TLS, through a proxy's tunnel too."""


def connect_within(seconds: float, host: str, port: int, options: Any) -> socket.socket:
    """A connected socket; `seconds` are shared by all of the host's addresses (urllib3 grants them to each).

    The resolver's own time is not bounded: the system offers no way to interrupt it.
    """
    give_up = time.monotonic() + seconds
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    failure: OSError = OSError(f"{host} has no address")
    for left, (*_, address) in zip(range(len(addresses), 0, -1), addresses, strict=True):
        share = max(0.001, (give_up - time.monotonic()) / left)
        try:
            return create_connection((str(address[0]), port), share, socket_options=options)
        except OSError as error:
            failure = error
    raise failure


class _HeldPool(HTTPConnectionPool):
    ConnectionCls = HeldConnection


class _HeldTLSPool(HTTPSConnectionPool):
    ConnectionCls = HeldTLSConnection


class HeldAdapter(HTTPAdapter):
    """requests' adapter over the connections above, with and without a proxy."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _use_held_pools(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        return _use_held_pools(super().proxy_manager_for(proxy, **kwargs))


def _use_held_pools(manager: Any) -> PoolManager:
    manager.pool_classes_by_scheme = {"http": _HeldPool, "https": _HeldTLSPool}
    return cast(PoolManager, manager)
