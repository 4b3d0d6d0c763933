"""The one HTTP client of all providers: pooled connections, absolute deadlines, bounded replies."""

import ipaddress
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from urllib.parse import urlsplit

from requests.utils import get_environ_proxies
from urllib3 import BaseHTTPResponse, Timeout
from urllib3.exceptions import ClosedPoolError, ProtocolError

from providers.call import Call, ConnectFailed, Reply, broken_by
from providers.connection import HeldAdapter, Route, SocketHold, serving
from providers.watchdog import Watchdog

# A kept-alive connection that its server has closed says so within a round trip. One that breaks later broke
# while the request was being answered, and a second call might be billed twice.
STALE_WITHIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    """A POST to be sent, once or twice."""

    route: Route
    headers: Mapping[str, str]
    body: bytes


class HttpClient:
    """Safe to share between threads; after a fork the child goes on with connections of its own.

    Proxies and the CA bundle come from the environment, each read once; loopback is never proxied.
    """

    def __init__(self, *, pool_size: int, connect_timeout_s: float, max_reply_bytes: int) -> None:
        self._pool_size = pool_size
        self._connect_timeout_s = connect_timeout_s
        self._max_reply_bytes = max_reply_bytes
        self._ca_bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._watchdog = Watchdog()
        # A Session would look into .netrc and the environment on every call, keep cookies, and read a redirect's body
        # without limit. The adapter finds the way to an address once; what it does for each call costs half of one.
        self._adapter = HeldAdapter(pool_connections=8, pool_maxsize=self._pool_size, max_retries=0)
        self._routes: dict[str, Route] = {}

    def open(self, url: str, headers: Mapping[str, str], body: bytes, deadline: float) -> Call:
        """A POST, sent when the returned context is entered; `deadline` is `time.monotonic()` seconds."""
        if self._process != os.getpid():
            self._start()
        try:
            route = self._routes.get(url) or self._find_route(url)
        except ValueError as error:  # requests' InvalidURL; the text may hold what nobody should read
            raise ConnectFailed(type(error).__name__) from None
        send = partial(self._send, Request(route, headers, body), deadline)
        return Call(send, self._watchdog, deadline, self._max_reply_bytes)

    def post(self, url: str, headers: Mapping[str, str], body: bytes, deadline: float) -> Reply:
        """The whole reply, whatever its status. Raises a ClientError where there is none."""
        return self.open(url, headers, body, deadline).reply()

    def close(self) -> None:
        """Closes the idle connections; calls in flight go on, and new ones may be made."""
        self._adapter.close()
        self._routes = {}

    def _send(self, request: Request, deadline: float, hold: SocketHold) -> BaseHTTPResponse:
        sent_at = time.monotonic()
        try:
            return self._send_once(request, deadline, hold)
        except ProtocolError as error:
            is_stale = hold.is_reused and isinstance(broken_by(error), ConnectionError)
            if not is_stale or time.monotonic() > min(deadline, sent_at + STALE_WITHIN_S):
                raise
            self.close()  # the other idle ones are as old; beside other threads the second try could meet one
        except ClosedPoolError:
            pass  # by another call's second try, a moment ago
        again = replace(request, route=self._find_route(request.route.url))
        return self._send_once(again, deadline, hold)

    def _send_once(self, request: Request, deadline: float, hold: SocketHold) -> BaseHTTPResponse:
        left = max(0.001, deadline - time.monotonic())
        with serving(hold):
            return request.route.pool.urlopen(
                "POST",
                request.route.target,
                request.body,
                request.headers,
                retries=False,
                redirect=False,
                assert_same_host=False,
                timeout=Timeout(connect=min(self._connect_timeout_s, left), read=left),
                preload_content=False,
                decode_content=False,
            )

    def _find_route(self, url: str) -> Route:
        proxies = {} if _is_loopback(urlsplit(url).hostname) else get_environ_proxies(url)
        route = self._routes[url] = self._adapter.route(url, self._ca_bundle, proxies)
        return route


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
