"""The strict reader: what it takes, gunicorn's own parser takes for the very same request; and replies that parse."""

import io
import random
from collections.abc import Iterable
from http.client import HTTPResponse
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.parser import RequestParser
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from webapp.problem import PROBLEMS
from webapp.reply import Reply
from webapp.wire import MAX_HEAD_BYTES, is_begun, read_request, write_reply

LINE = b"POST /api/v1/query HTTP/1.1"
BODY = b'{"query":"What is AI?"}'
FIELDS = (
    b"Host: localhost",
    b"Content-Type: application/json",
    b"Accept: */*",
    b"X-Request-Id: abc",
    b"Content-Length: %d" % len(BODY),
)


def whole(*fields: bytes, line: bytes = LINE, body: bytes = BODY) -> bytes:
    return b"\r\n".join([line, *(fields or FIELDS)]) + b"\r\n\r\n" + body


def as_gunicorn_reads(data: bytes) -> tuple[Any, ...]:
    """Method, path, version, headers, body and whether the connection is kept, of the only request in `data`."""
    parser = RequestParser(Config(), iter([data]), ("127.0.0.1", 1))
    request = next(parser)
    headers = {name.lower(): value for name, value in request.headers}
    assert len(headers) == len(request.headers)
    assert (request.query, request.trailers) == ("", [])
    body = request.body.read()
    keeps = not request.should_close()
    assert parser.unreader.read() == b"", "there is more in it than one request"
    return request.method, request.path, request.version, headers, body, keeps


def assert_same(data: bytes) -> bool:
    """Whether it was taken; fails where gunicorn reads it differently."""
    taken = read_request(data)
    if taken is None:
        return False
    headers, body = taken
    assert as_gunicorn_reads(data) == ("POST", "/api/v1/query", (1, 1), headers, body, True)
    return True


ODD = [
    b"Host: other", b"host: localhost", b"Content-Length: 0", b"Content-Length: 23", b"content-length: +23",
    b"Content-Length: 023", b"Content-Length: 23, 23", b"Content-Length: 2 3", b"Content-Length:\x0b23",
    b"Content-Length : 23", b"Content-Length: 0x17", b"Content-Length: -1", b"Content-Length: 24",
    b"Content-Length: \xb2\xb3", b"Content_Length: 5", b"Transfer-Encoding: chunked", b"transfer-encoding: identity",
    b"Transfer-Encoding : chunked", b"Transfer_Encoding: chunked", b"Transfer-Encoding:\x0bchunked", b" folded",
    b"\tfolded", b"X-A: b\r\n folded", b"X-A: b\rX-B: c", b"X-A: b\nX-B: c", b"X-A: \x00", b"X-A: \x7f", b"X-A: \xff",
    b"X-\xc3\xa4: b", b": nameless", b"nameless", b"", b"X A: b", b"X-A : b", b"X-A:b", b"X-A:\t b \t",
    b"Connection: close", b"Connection: Keep-Alive", b"Connection: keep-alive, upgrade", b"Connection: upgrade",
    b"Connection: keep-alive, close", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA", b"TE: trailers",
    b"Trailer: X-A", b"Expect: 100-continue", b"Expect: nothing", b"Keep-Alive: 5", b"Proxy-Connection: close",
    b"Script_Name: /api", b"SCRIPT_NAME: /x", b"PATH_INFO: /x", b"X_Forwarded_For: 1.1.1.1",
    b"X-Forwarded-Proto: https", b"X-Forwarded-Protocol: ssl", b"X-Forwarded-Ssl: on", b"X-Forwarded-Ssl: off",
    b"Content-Encoding: gzip", b"Origin: http://x", b"Idempotency-Key: k", b"X-Long: " + b"a" * 8_000,
    b"X-Http-Method-Override: GET", b"Content-Type: text/plain", b"Content-Type: APPLICATION/JSON ;charset=utf-8",
]  # fmt: skip
LINES = [
    b"POST /api/v1/query HTTP/1.0", b"POST /api/v1/query HTTP/2.0", b"POST /api/v1/query HTTP/1.1 ",
    b"POST  /api/v1/query HTTP/1.1", b"post /api/v1/query HTTP/1.1", b"GET /api/v1/query HTTP/1.1",
    b"POST http://localhost/api/v1/query HTTP/1.1", b"POST /api/v1/query?a=b HTTP/1.1", b"\r\n" + LINE,
    b"POST /api/v1/query/ HTTP/1.1", b"POST //api/v1/query HTTP/1.1", b"POST /api/v1/query#x HTTP/1.1",
    b"POST /api/v1/../v1/query HTTP/1.1", b"POST /api/v1/quer%79 HTTP/1.1", b"POST\t/api/v1/query HTTP/1.1",
]  # fmt: skip
_bits = st.sampled_from(
    [b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b":", b"\x0b", b"\x85", b"\xa0", b"_", b"0", b"\r\n\r\n"]
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A real request with something odd about it, more often than not."""
    line = draw(st.sampled_from([LINE] * 8 + LINES))
    fields = list(draw(st.permutations(FIELDS))) if draw(st.booleans()) else list(FIELDS)
    for odd in draw(st.lists(st.sampled_from(ODD) | st.binary(max_size=12), max_size=3)):
        at = draw(st.integers(0, len(fields)))
        fields[at : at + draw(st.integers(0, 1))] = [odd]
    if draw(st.booleans()):
        change = draw(st.sampled_from([bytes.lower, bytes.upper, bytes.swapcase]))
        fields = [change(field) for field in fields]
    data = bytearray(whole(*fields or [b""], line=line, body=draw(st.just(BODY) | st.binary(max_size=30))))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 2))] = draw(_bits | st.binary(max_size=3))
    after = draw(st.sampled_from([b"", b"", b"", b"\r\n", b"GET /livez HTTP/1.1\r\n\r\n", whole()]))
    return bytes(data) + after


@hypothesis_settings(max_examples=1_000, deadline=None)
@given(requests())
@example(whole())
@example(whole(*FIELDS, b"SCRIPT_NAME: /api"))
@example(whole(*FIELDS, b"X-Forwarded-Proto: https", b"X-Forwarded-Ssl: off"))
def test_what_it_takes_is_the_same_request_to_gunicorn(data: bytes) -> None:
    assert_same(data)


def test_every_odd_header_in_every_place_is_left_to_gunicorn_or_read_the_same() -> None:
    for odd in ODD:
        for at in range(len(FIELDS) + 1):
            assert_same(whole(*FIELDS[:at], odd, *FIELDS[at:]))
            assert_same(whole(*FIELDS[:at], odd, *FIELDS[at + 1 :]))
    for pair in [(a, b) for a in ODD for b in ODD]:
        assert_same(whole(*FIELDS, *pair))


@pytest.mark.parametrize("line", LINES)
def test_any_other_request_line_is_left_to_gunicorn(line: bytes) -> None:
    assert read_request(whole(line=line)) is None


def test_what_clients_really_send_is_taken() -> None:
    for fields in [
        FIELDS,
        (b"Host: a", b"User-Agent: curl/8", b"Accept: */*", b"Content-Type: application/json", FIELDS[-1]),
        (b"host:localhost:8000", b"connection:keep-alive", b"content-type:application/json; charset=utf-8", FIELDS[-1]),
        (*FIELDS, b"Authorization: Bearer aqr_x_y", b"Accept-Encoding: gzip, br", b"Connection: keep-alive"),
    ]:
        assert assert_same(whole(*fields)), fields


def test_one_request_and_the_beginning_of_the_next_are_left_to_gunicorn() -> None:
    assert read_request(whole() + b"P") is None
    assert read_request(whole() + whole()) is None
    assert read_request(whole()[:-1]) is None


def test_a_request_is_begun_until_it_is_whole_or_clearly_for_others() -> None:
    data = whole()
    assert all(is_begun(data[:length]) for length in range(1, len(data)))
    assert not is_begun(data)
    assert not is_begun(data + b"P")
    head = whole(*FIELDS, b"Expect: 100-continue", body=b"")
    assert not is_begun(head), "its client waits for a word before it sends more"
    assert not is_begun(whole(b"Host: a", b"Transfer-Encoding: chunked", body=b""))
    assert not is_begun(whole(b"Host: a", b"Content-Length: x", body=b""))
    assert not is_begun(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
    assert is_begun(b"GET /livez HTTP/1.1\r\nHost: a\r\n"), "no thread waits for the rest of a head"
    assert not is_begun(b"a" * (MAX_HEAD_BYTES + 4))
    assert not is_begun(whole(*FIELDS[:-1], b"Content-Length: 999999999999", body=b"{")), "more than is kept here"


def test_reading_takes_time_in_proportion_to_what_came() -> None:
    """Nothing in the head makes the expression look at it over and over."""
    rng = random.Random(1)
    for _ in range(200):
        head = LINE + b"\r\nHost: a\r\n" + bytes(rng.choices(b"aA:- \t\r\n!", k=8_000))
        read_request(head + b"\r\n\r\n{}")  # would hang


class _Wire:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def makefile(self, _: str) -> io.BytesIO:
        return io.BytesIO(self.data)


STATUSES = sorted({200, 202} | {status for status, _ in PROBLEMS.values()})
_values = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=30)


@given(
    st.sampled_from(STATUSES),
    st.binary(max_size=300),
    st.dictionaries(st.sampled_from(["X-Cache", "Age", "Retry-After", "Location", "Server-Timing"]), _values),
    st.booleans(),
    st.booleans(),
)
def test_a_reply_parses_to_what_went_in(
    status: int, body: bytes, headers: dict[str, str], varies: bool, is_last: bool
) -> None:
    written = write_reply(Reply(status, body, headers=headers), "id-1", 1_800_000_000, varies=varies, is_last=is_last)

    response = HTTPResponse(_Wire(written))  # type: ignore[arg-type]
    response.begin()
    assert (response.status, response.read(), response.will_close) == (status, body, is_last)
    assert {name: response.getheader(name) for name in headers} == headers
    assert response.getheader("X-Request-Id") == "id-1"
    assert response.getheader("Date") == "Fri, 15 Jan 2027 08:00:00 GMT"
    assert response.getheader("Vary") == ("Origin" if varies else None)
    assert_once(response.getheaders())


def assert_once(headers: Iterable[tuple[str, str]]) -> None:
    names = [name.lower() for name, _ in headers]
    assert len(names) == len(set(names)), names
