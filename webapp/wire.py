"""The plainest form of one request, read strictly and fast; and replies as bytes. gunicorn reads everything else."""

import re
from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

from webapp.header import ALWAYS, DATA_POLICY
from webapp.reply import Reply

MAX_HEAD_BYTES = 8_190
KEPT_BYTES = 64 * 1024  # of a request whose rest is still on its way; a larger one has a thread of its own
# Field names and values as RFC 9112 has them, nothing folded, nothing else between the lines. gunicorn drops names with
# an underscore, but for some that a proxy may set (SCRIPT_NAME): they are its business.
_HEAD = re.compile(
    rb"POST /api/v1/query HTTP/1\.1(?:\r\n[!#$%&'*+\-.^`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*){1,60}", re.DOTALL
)
_LENGTH = re.compile(r"[1-9][0-9]{0,9}")
# What these ask for takes the long way; of the last two, gunicorn minds that they do not contradict X-Forwarded-Proto.
_LEFT_TO_OTHERS = frozenset(
    {"transfer-encoding", "expect", "upgrade", "content-encoding", "idempotency-key", "origin", "trailer"}
    | {"x-forwarded-protocol", "x-forwarded-ssl"}
)


def read_request(data: bytes) -> tuple[dict[str, str], bytes] | None:
    """Headers by lower-case name, and the body, of one whole POST /api/v1/query; None where `data` is not just that."""
    head, end, body = data.partition(b"\r\n\r\n")
    headers = _read_head(head) if end else None
    if headers is None or headers.get("content-length") != str(len(body)) or not _is_plain(headers):
        return None
    return headers, body


def is_begun(data: bytes) -> bool:
    """Whether more has to come before anybody can answer: of the head, or of the body of a plain request."""
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        return len(data) <= MAX_HEAD_BYTES
    headers = _read_head(head)
    length = headers.get("content-length", "") if headers else ""
    # An exact number: its form is checked once the body is there.
    return bool(headers and _is_plain(headers) and _LENGTH.fullmatch(length) and len(body) < int(length) <= KEPT_BYTES)


def _read_head(head: bytes) -> dict[str, str] | None:
    if len(head) > MAX_HEAD_BYTES or not _HEAD.fullmatch(head):
        return None
    headers: dict[str, str] = {}
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        key = name.decode("ascii").lower()
        if key in headers:
            return None
        headers[key] = value.decode("latin-1").strip(" \t")
    return headers


def _is_plain(headers: Mapping[str, str]) -> bool:
    return (
        "host" in headers
        and headers.get("content-type", "").partition(";")[0].strip(" ").lower() == "application/json"
        and headers.get("connection", "keep-alive").lower() == "keep-alive"
        and _LEFT_TO_OTHERS.isdisjoint(headers)
    )


def write_reply(reply: Reply, request_id: str, date: int, *, varies: bool = False, is_last: bool = False) -> bytes:
    """The reply as Flask and gunicorn would send it. `date` in Unix seconds; `varies`: other origins may be let in."""
    own = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
    head = (
        f"{_opening(reply.status, reply.media_type, varies, is_last)}Date: {_http_date(date)}\r\n"
        f"Content-Length: {len(reply.body)}\r\n{own}X-Request-Id: {request_id}\r\n\r\n"
    )
    return head.encode("latin-1") + reply.body


@lru_cache(maxsize=64)
def _opening(status: int, media_type: str, varies: bool, is_last: bool) -> str:
    always = {
        "Server": "gunicorn",
        "Connection": "close" if is_last else "keep-alive",
        "Content-Type": media_type,
        "Content-Security-Policy": DATA_POLICY,
        **ALWAYS,
        "Cache-Control": "no-store",
    }
    if varies:
        always["Vary"] = "Origin"
    lines = "".join(f"{name}: {value}\r\n" for name, value in always.items())
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{lines}"


@lru_cache(maxsize=2)
def _http_date(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)
