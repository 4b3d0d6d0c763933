"""HTTP connections that tell the call they serve which socket it is, so that it can be ended from outside."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import NewConnectionError

_serving = threading.local()


class SocketHold:
    """A call's own descriptor of the socket that serves it; `shut` may come from any thread.

    It is a duplicate, because urllib3 wraps (TLS), closes and hands over its own descriptor when it sees fit.
    `is_sent`: whether anything of a request was given to a connection; a proxy's tunnel counts too.
    """

    def __init__(self) -> None:
        self.is_reused = False
        self.is_sent = False
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._is_shut = False

    @property
    def is_shut(self) -> bool:
        return self._is_shut

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
    """Gives its socket to the hold of the call it serves, before it connects, before TLS and before the request."""

    _hold: SocketHold | None = None

    def _new_conn(self) -> socket.socket:
        if self._hold is not None:
            self._hold.let_go()
        self._hold = _serving.hold
        try:
            return connect_within(self.timeout or 0, (self._dns_host, self.port), self.socket_options, self._hold)
        except OSError as error:
            raise NewConnectionError(self, str(error)) from error

    def request(self, *args: Any, **kwargs: Any) -> None:
        if self.sock is not None and self._hold is not _serving.hold:
            # The call before us has read its whole reply, but its deadline must not strike our request.
            if self._hold is not None:
                self._hold.let_go()
            self._hold = _serving.hold
            self._hold.take(self.sock.fileno(), is_reused=True)
        super().request(*args, **kwargs)

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        if self._hold is not None:
            self._hold.is_sent = True
        super().send(data)


class HeldTLSConnection(HeldConnection, HTTPSConnection):
    """The same over TLS, through a proxy's tunnel too."""


def connect_within(seconds: float, address: tuple[str, int], options: Any, hold: SocketHold) -> socket.socket:
    """A connected socket; `seconds` are shared by all of the host's addresses (urllib3 grants them to each).

    The hold has it from before it connects, so that this can be ended too. The resolver's own time is not bounded:
    the system offers no way to interrupt it.
    """
    give_up = time.monotonic() + seconds
    found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
    failure: OSError = OSError(f"{address[0]} has no address")
    for left, (family, kind, protocol, _, resolved) in zip(range(len(found), 0, -1), found, strict=True):
        if hold.is_shut:
            break
        connecting = socket.socket(family, kind, protocol)
        try:
            connecting.settimeout(max(0.001, (give_up - time.monotonic()) / left))
            _connect(connecting, resolved, options, hold)
        except OSError as error:
            connecting.close()
            failure = error
        else:
            return connecting
    raise failure


def _connect(connecting: socket.socket, address: Any, options: Any, hold: SocketHold) -> None:
    for option in options or ():
        connecting.setsockopt(*option)
    hold.take(connecting.fileno(), is_reused=False)
    connecting.connect(address)
    hold.take(connecting.fileno(), is_reused=False)  # who shut it before it was connected has shut nothing


class _HeldPool(HTTPConnectionPool):
    ConnectionCls = HeldConnection


class _HeldTLSPool(HTTPSConnectionPool):
    ConnectionCls = HeldTLSConnection


@dataclass(frozen=True, slots=True)
class Route:
    """Connections to a URL's server, or to the proxy before it, and what to ask of them."""

    url: str
    pool: HTTPConnectionPool
    target: str


class HeldAdapter(HTTPAdapter):
    """requests' adapter over the connections above, with and without a proxy."""

    def route(self, url: str, verify: bool | str, proxies: dict[str, str]) -> Route:
        """The way to `url`, to be found once. Raises ValueError where there is none."""
        request = requests.Request("POST", url).prepare()
        pool = cast(HTTPConnectionPool, self.get_connection_with_tls_context(request, verify, proxies=proxies))
        self.cert_verify(pool, request.url, verify, None)  # type: ignore[no-untyped-call]
        return Route(url, pool, self.request_url(request, proxies))

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _use_held_pools(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        return _use_held_pools(super().proxy_manager_for(proxy, **kwargs))


def _use_held_pools(manager: Any) -> PoolManager:
    manager.pool_classes_by_scheme = {"http": _HeldPool, "https": _HeldTLSPool}
    return cast(PoolManager, manager)
