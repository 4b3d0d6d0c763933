"""The one HTTP client of all providers: pooled connections, absolute deadlines, bounded replies."""

import ipaddress
import os
import time
from collections.abc import Mapping
from functools import partial
from urllib.parse import urlsplit

import requests
from requests.utils import get_environ_proxies

from providers.call import Call, ConnectFailed, Reply, broken_by
from providers.connection import HeldAdapter, SocketHold, serving
from providers.watchdog import Watchdog

# A kept-alive connection that its server has closed says so within a round trip. One that breaks later broke
# while the request was being answered, and a second call might be billed twice.
STALE_WITHIN_S = 1.0


class HttpClient:
    """Safe to share between threads; after a fork the child goes on with connections of its own.

    Proxies and the CA bundle come from the environment, each read once; loopback is never proxied.
    """

    def __init__(self, *, pool_size: int, connect_timeout_s: float, max_reply_bytes: int) -> None:
        self._pool_size = pool_size
        self._connect_timeout_s = connect_timeout_s
        self._max_reply_bytes = max_reply_bytes
        self._ca_bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
        self._proxies: dict[str, dict[str, str]] = {}
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._watchdog = Watchdog()
        # Straight to the adapter: a Session would look into .netrc and the environment on every call, keep
        # cookies, and read a redirect's body without limit.
        self._adapter = HeldAdapter(pool_connections=8, pool_maxsize=self._pool_size, max_retries=0)

    def open(self, url: str, headers: Mapping[str, str], body: bytes, deadline: float) -> Call:
        """A POST, sent when the returned context is entered; `deadline` is `time.monotonic()` seconds."""
        if self._process != os.getpid():
            self._start()
        try:
            request = requests.Request("POST", url, headers=dict(headers), data=body).prepare()
        except ValueError as error:  # requests' InvalidURL and InvalidHeader; the text may hold the key
            raise ConnectFailed(type(error).__name__) from None
        return Call(partial(self._send, request, deadline), self._watchdog, deadline, self._max_reply_bytes)

    def post(self, url: str, headers: Mapping[str, str], body: bytes, deadline: float) -> Reply:
        """The whole reply, whatever its status. Raises a ClientError where there is none."""
        return self.open(url, headers, body, deadline).reply()

    def close(self) -> None:
        """Closes the idle connections; calls in flight go on, and new ones may be made."""
        self._adapter.close()

    def _send(self, request: requests.PreparedRequest, deadline: float, hold: SocketHold) -> requests.Response:
        sent_at = time.monotonic()
        try:
            return self._send_once(request, deadline, hold)
        except requests.ConnectionError as error:
            is_stale = hold.is_reused and isinstance(broken_by(error), ConnectionError)
            if not is_stale or time.monotonic() > min(deadline, sent_at + STALE_WITHIN_S):
                raise
        self.close()  # the other idle ones are as old; beside other threads the second try could meet one
        return self._send_once(request, deadline, hold)

    def _send_once(self, request: requests.PreparedRequest, deadline: float, hold: SocketHold) -> requests.Response:
        left = max(0.001, deadline - time.monotonic())
        with serving(hold):
            return self._adapter.send(
                request,
                stream=True,
                timeout=(min(self._connect_timeout_s, left), left),
                verify=self._ca_bundle,
                proxies=self._proxies_for(str(request.url)),
            )

    def _proxies_for(self, url: str) -> dict[str, str]:
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        if origin not in self._proxies:
            self._proxies[origin] = {} if _is_loopback(parts.hostname) else get_environ_proxies(url)
        return self._proxies[origin]


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
