"""The plainest form of one request, read strictly and fast; and replies as bytes. gunicorn reads everything else."""

import re
from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

from webapp.header import ALWAYS, DATA_POLICY
from webapp.reply import Reply

MAX_HEAD_BYTES = 8_190
# Field names and values as RFC 9112 has them, nothing folded, nothing else between the lines.
_HEAD = re.compile(
    rb"POST /api/v1/query HTTP/1\.1(?:\r\n[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*){1,60}", re.DOTALL
)
# What these ask for takes the long way.
_LEFT_TO_OTHERS = frozenset(
    {"transfer-encoding", "expect", "upgrade", "content-encoding", "idempotency-key", "origin", "trailer"}
)


def read_request(data: bytes) -> tuple[dict[str, str], bytes] | None:
    """Headers by lower-case name, and the body, of one whole POST /api/v1/query; None where `data` is not just that."""
    head, end, body = data.partition(b"\r\n\r\n")
    if not end or len(head) > MAX_HEAD_BYTES or not _HEAD.fullmatch(head):
        return None
    headers: dict[str, str] = {}
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        key = name.decode("ascii").lower()
        if key in headers:
            return None
        headers[key] = value.decode("latin-1").strip(" \t")
    return (headers, body) if _is_plain(headers, len(body)) else None


def _is_plain(headers: Mapping[str, str], length: int) -> bool:
    return (
        headers.get("content-length") == str(length)
        and "host" in headers
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
