"""One HTTP request in flight: read in pieces, ended at its deadline or from another thread."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPException
from types import TracebackType
from typing import Self

from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError, ProtocolError, ReadTimeoutError

from providers.connection import SocketHold
from providers.watchdog import Watchdog

CHUNK_BYTES = 64 * 1024


class ClientError(Exception):
    """A call without a whole reply. The text never holds a header or a body.

    `is_sent`: whether anything of the request went out, so that somebody may charge for it.
    """

    def __init__(self, text: str, *, is_sent: bool = False) -> None:
        super().__init__(text)
        self.is_sent = is_sent


class ConnectFailed(ClientError):
    """Nothing was sent: no address, refused, TLS, proxy."""


class DeadlinePassed(ClientError):
    """The reply was not whole in time."""


class ReplyCut(ClientError):
    """The connection broke after the request was sent, or the reply is not HTTP."""


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


class Call:
    """Sends on entering its context; `status`, `headers` and `chunks()` are there from then on.

    `send` sends the request on a socket that it gives to the hold; `deadline` is `time.monotonic()` seconds.
    """

    status: int
    headers: Mapping[str, str]
    _response: BaseHTTPResponse
    _close: Callable[[], None]

    def __init__(
        self,
        send: Callable[[SocketHold], BaseHTTPResponse],
        watchdog: Watchdog,
        deadline: float,
        max_reply_bytes: int,
    ) -> None:
        self._send = send
        self._watchdog = watchdog
        self._deadline = deadline
        self._max_reply_bytes = max_reply_bytes
        self._hold = SocketHold()
        self._is_aborted = False

    def abort(self) -> None:
        """Ends the call from any thread: the one that waits on it gets Aborted."""
        self._is_aborted = True
        self._hold.shut()

    def reply(self) -> Reply:
        """Sends and reads the whole reply. An error status is as good as whole without its body.

        Raises a ClientError where there is no reply.
        """
        with self:
            try:
                body = b"".join(self.chunks())
            except (ReplyCut, ReplyTooLarge, DeadlinePassed):
                if self.status < 400:
                    raise
                body = b""
            return Reply(self.status, self.headers, body)

    def chunks(self) -> Iterator[bytes]:
        """The body as it arrives, decompressed. Raises a ClientError where it does not arrive whole."""
        size = 0
        while chunk := self._read():
            size += len(chunk)
            if size > self._max_reply_bytes:
                raise ReplyTooLarge(f"the reply is over {self._max_reply_bytes} bytes", is_sent=True)
            yield chunk

    def __enter__(self) -> Self:
        self._raise_if_over()
        with ExitStack() as closing:
            closing.callback(self._hold.let_go)
            closing.callback(self._watchdog.watch(self._deadline, self._hold.shut).cancel)
            self._response = self._sent()
            closing.callback(self._response.close)
            self._close = closing.pop_all().close
        self.status = self._response.status
        self.headers = self._response.headers
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _sent(self) -> BaseHTTPResponse:
        try:
            return self._send(self._hold)
        except (HTTPError, OSError, ValueError) as error:
            kind = ConnectFailed if broken_by(error) is None else ReplyCut
            raise self._explained(error, kind) from None

    def _read(self) -> bytes:
        try:
            chunk: bytes = self._response.read1(CHUNK_BYTES, decode_content=True)
        except (HTTPError, OSError) as error:
            raise self._explained(error, ReplyCut) from None
        self._raise_if_over()  # a shut socket looks like the end of a reply that has no length
        return chunk

    def _raise_if_over(self) -> None:
        if self._is_aborted:
            raise Aborted("the call was aborted", is_sent=self._hold.is_sent)
        if time.monotonic() >= self._deadline:
            raise self._late()

    def _late(self) -> ClientError:
        return DeadlinePassed("no whole reply before the deadline", is_sent=self._hold.is_sent)

    def _explained(self, error: Exception, kind: type[ClientError]) -> ClientError:
        try:
            self._raise_if_over()
        except ClientError as ending:
            return ending
        if isinstance(error, ReadTimeoutError):
            return self._late()
        return kind(_reason(error), is_sent=kind is ReplyCut)


def broken_by(error: Exception) -> BaseException | None:
    """What broke the connection of a sent request; None where nothing was sent."""
    return error.args[-1] if isinstance(error, ProtocolError) else None


def _reason(error: BaseException) -> str:
    """The innermost cause, by the system's words or its type: library texts may quote headers."""
    while isinstance(cause := error.__cause__ or error.__context__, OSError | HTTPError | HTTPException):
        error = cause
    return getattr(error, "strerror", None) or type(error).__name__
