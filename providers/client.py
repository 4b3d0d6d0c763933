"""The one HTTP client of all providers: pooled connections, absolute deadlines, bounded replies, no redirects."""

import ipaddress
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import requests
from requests.utils import get_environ_proxies
from urllib3.exceptions import HTTPError, ProtocolError

from providers.connection import HeldAdapter, SocketHold, serving
from providers.watchdog import Alarm, Watchdog

CHUNK_BYTES = 64 * 1024

# A kept-alive connection that the server has closed says so within a round trip. One that breaks later broke
# while the request was being answered, and a second call might be billed twice.
STALE_WITHIN_S = 1.0


class ClientError(Exception):
    """A call without a whole reply. The text never holds a header or a body."""


class ConnectFailed(ClientError):
    """Nothing was sent: no address, refused, TLS, proxy."""


class DeadlinePassed(ClientError):
    """The reply was not whole in time."""


class ReplyCut(ClientError):
    """The connection broke, or the reply cannot be decoded."""


class ReplyTooLarge(ClientError):
    """The reply, decompressed, is over the limit."""


class Aborted(ClientError):
    """`Call.abort` was called."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply. Header names are case-insensitive; the body is decompressed."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpClient:
    """Safe to share between threads; after a fork the child starts with connections of its own.

    Proxies and the CA bundle come from the environment, which is read once; loopback is never proxied.
    """

    def __init__(self, *, pool_size: int, connect_timeout_s: float, max_reply_bytes: int) -> None:
        self.connect_timeout_s = connect_timeout_s
        self.max_reply_bytes = max_reply_bytes
        self.ca_bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
        self._pool_size = pool_size
        self._proxies: dict[str, dict[str, str]] = {}
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self.watchdog = Watchdog()
        # Straight to the adapter: a Session would read .netrc and the environment on every call, keep
        # cookies, and read a redirect's body without limit.
        self.adapter = HeldAdapter(pool_connections=8, pool_maxsize=self._pool_size, max_retries=0)

    def open(self, url: str, headers: Mapping[str, str], body: bytes, deadline: float) -> "Call":
        """A POST that is sent on entering the returned context; `deadline` is `time.monotonic()` seconds."""
        if self._process != os.getpid():
            self._start()
        return Call(self, url, headers, body, deadline)

    def post(self, url: str, headers: Mapping[str, str], body: bytes, deadline: float) -> Reply:
        """The whole reply. Raises a ClientError; an HTTP error status is a reply like any other."""
        with self.open(url, headers, body, deadline) as call:
            return Reply(call.status, call.headers, b"".join(call.chunks()))

    def close(self) -> None:
        """Closes the idle connections; the client stays usable."""
        self.adapter.close()

    def proxies_for(self, url: str) -> dict[str, str]:
        origin = "{0.scheme}://{0.netloc}".format(urlsplit(url))
        if origin not in self._proxies:
            self._proxies[origin] = {} if _is_loopback(url) else get_environ_proxies(url)
        return self._proxies[origin]


class Call:
    """One request in flight: `status`, `headers` and `chunks()` are there once the context is entered."""

    status: int
    headers: Mapping[str, str]

    def __init__(
        self, client: HttpClient, url: str, headers: Mapping[str, str], body: bytes, deadline: float
    ) -> None:
        self._client = client
        self._request = _prepare(url, headers, body)
        self._proxies = client.proxies_for(url)
        self._deadline = deadline
        self._hold = SocketHold()
        self._is_aborted = False
        self._alarm: Alarm | None = None
        self._response: requests.Response | None = None

    def abort(self) -> None:
        """Ends the call from any thread: the one that waits on it gets Aborted."""
        self._is_aborted = True
        self._hold.shut()

    def chunks(self) -> Iterator[bytes]:
        """The body's bytes as they arrive, decompressed."""
        size = 0
        while chunk := self._read():
            size += len(chunk)
            if size > self._client.max_reply_bytes:
                raise ReplyTooLarge(f"the reply is over {self._client.max_reply_bytes} bytes")
            yield chunk

    def __enter__(self) -> Self:
        self._raise_if_over()
        self._alarm = self._client.watchdog.watch(self._deadline, self._hold.shut)
        try:
            self._response = self._send()
            self._raise_if_over()
        except BaseException:
            self._close()
            raise
        self.status = self._response.status_code
        self.headers = self._response.headers
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _send(self) -> requests.Response:
        sent_at = time.monotonic()
        try:
            return self._send_once()
        except (requests.RequestException, HTTPError, OSError, ValueError) as error:
            if not self._hit_stale_connection(error, sent_at):
                raise self._explain(error) from None
        self._client.close()  # so that the second try gets a new connection, not another stale one
        try:
            return self._send_once()
        except (requests.RequestException, HTTPError, OSError, ValueError) as error:
            raise self._explain(error) from None

    def _send_once(self) -> requests.Response:
        left = max(0.001, self._deadline - time.monotonic())
        with serving(self._hold):
            return self._client.adapter.send(
                self._request,
                stream=True,
                timeout=(min(self._client.connect_timeout_s, left), left),
                verify=self._client.ca_bundle,
                proxies=self._proxies,
            )

    def _read(self) -> bytes:
        assert self._response is not None, "enter the context first"
        try:
            chunk: bytes = self._response.raw.read1(CHUNK_BYTES, decode_content=True)
        except (HTTPError, OSError) as error:
            raise self._explain(error, default=ReplyCut) from None
        self._raise_if_over()  # a shut socket looks like the end of a reply that has no length
        return chunk

    def _hit_stale_connection(self, error: Exception, sent_at: float) -> bool:
        return (
            self._hold.is_reused
            and _broke_unanswered(error)
            and not self._is_aborted
            and time.monotonic() < min(self._deadline, sent_at + STALE_WITHIN_S)
        )

    def _explain(self, error: Exception, default: type[ClientError] | None = None) -> ClientError:
        ...

    def _raise_if_over(self) -> None:
        if self._is_aborted:
            raise Aborted("the call was aborted")
        if time.monotonic() >= self._deadline:
            raise DeadlinePassed("no whole reply before the deadline")

    def _close(self) -> None:
        ...
