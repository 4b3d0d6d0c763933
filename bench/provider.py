"""A provider that costs next to nothing: OpenAI's and Groq's chat completions on one event loop.

`python -m bench.provider --port 9000`. `POST /control {"latency_ms": 50}` changes it while it runs and starts its
counts anew, `GET /control` reads them. An answer repeats the question, so that a mixed-up one shows.
"""

import argparse
import asyncio
import os
import re
import time
import urllib.request
from dataclasses import dataclass, fields
from typing import Any

import orjson

from embedded.port import accepts, free_port
from embedded.supervisor import Supervisor

KEY = "bench-key"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_HEAD_END = b"\r\n\r\n"
_FILLER = (
    " -- A query router keeps earlier answers, sends each new question to the cheapest model that can answer it, and "
    "falls back to another provider when the first is slow or out of quota, so that people wait briefly and pay little."
)
# The headers of Groq's replies, with limits that nobody reaches. No other rival reads or pays for them.
_GROQ_HEADERS = b"".join(
    b"x-ratelimit-%b: %b\r\n" % pair
    for pair in (
        (b"limit-requests", b"1000000000"),
        (b"remaining-requests", b"999999999"),
        (b"reset-requests", b"60ms"),
        (b"limit-tokens", b"1000000000"),
        (b"remaining-tokens", b"999999999"),
        (b"reset-tokens", b"60ms"),
    )
)


@dataclass
class State:
    """How it answers, and what it has counted since it was last told.

    `fail_every` n: each n-th call gets 503; with `fails_as_groq` only where it is one on Groq's path.
    """

    latency_ms: float = 0
    fail_every: int = 0
    fails_as_groq: bool = False
    calls: int = 0
    failed: int = 0
    waiting: int = 0
    most_waiting: int = 0
    connections: int = 0

    def change(self, wanted: dict[str, Any]) -> None:
        self.calls = self.failed = 0
        self.most_waiting = self.waiting
        self.latency_ms = float(wanted.get("latency_ms", self.latency_ms))
        self.fail_every = int(wanted.get("fail_every", self.fail_every))
        self.fails_as_groq = bool(wanted.get("fails_as_groq", self.fails_as_groq))


class Chat(asyncio.Protocol):
    """One kept-alive connection. Requests must have a Content-Length; pipelined ones are answered in turn."""

    def __init__(self, state: State, loop: asyncio.AbstractEventLoop) -> None:
        self._state, self._loop = state, loop
        self._received = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._state.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._state.connections -= 1

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (head_end := self._received.find(_HEAD_END)) >= 0:
            found = _LENGTH.search(self._received, 0, head_end)
            end = head_end + len(_HEAD_END) + (int(found[1]) if found else 0)
            if len(self._received) < end:
                return
            request, self._received = self._received[:end], self._received[end:]
            self._take(request, request[head_end + len(_HEAD_END) :])

    def _take(self, request: bytes, body: bytes) -> None:
        path = request[: request.index(b"\r")].split(b" ")[1]
        if path.endswith(b"/chat/completions"):
            self._complete(body, is_groq=path.startswith(b"/openai/"))
        elif path == b"/control":
            if body:
                self._state.change(orjson.loads(body))
            self._send(b"200 OK", orjson.dumps(self._state))
        else:
            self._send(b"200 OK", b'{"object":"list","data":[]}')

    def _complete(self, body: bytes, is_groq: bool) -> None:
        state = self._state
        state.calls += 1
        may_fail = state.fail_every and (is_groq or not state.fails_as_groq)
        if may_fail and state.calls % state.fail_every == 0:
            state.failed += 1
            self._send(b"503 Service Unavailable", b'{"error":{"message":"overloaded","type":"server_error"}}')
        elif state.latency_ms:
            state.waiting += 1
            state.most_waiting = max(state.most_waiting, state.waiting)
            self._loop.call_later(state.latency_ms / 1000, self._answer_late, body, is_groq)
        else:
            self._answer(body, is_groq)

    def _answer_late(self, body: bytes, is_groq: bool) -> None:
        self._state.waiting -= 1
        self._answer(body, is_groq)

    def _answer(self, body: bytes, is_groq: bool) -> None:
        reply = orjson.dumps(completion(orjson.loads(body), self._state.calls, is_groq))
        self._send(b"200 OK", reply, _GROQ_HEADERS if is_groq else b"")

    def _send(self, status: bytes, body: bytes, headers: bytes = b"") -> None:
        if not self._transport.is_closing():
            head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n"
            self._transport.write(head % (status, headers, len(body)) + body)


def completion(asked: dict[str, Any], number: int, is_groq: bool) -> dict[str, Any]:
    """A reply as OpenAI and Together send it, and with Groq's additions (timings in seconds, `x_groq`)."""
    question = asked["messages"][-1]["content"]
    text = f"Answer to: {question}{_FILLER}"
    prompt_tokens, completion_tokens = 8 + len(question) // 4, len(text) // 4
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    timings = {"queue_time": 0.001, "prompt_time": 0.002, "completion_time": 0.05, "total_time": 0.052}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", "logprobs": None}
    reply = {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": asked.get("model", "fake"),
        "choices": [choice],
        "usage": usage | timings if is_groq else usage,
        "system_fingerprint": "fp_bench",
    }
    return reply | ({"x_groq": {"id": f"req_{number}"}} if is_groq else {})


@dataclass(frozen=True)
class FakeProvider:
    """A started provider, seen from the harness. `pid` leads its processes."""

    port: int
    pid: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def control(self, **wanted: float) -> State:
        """Change it and start its counts anew; without arguments only read them."""
        body = orjson.dumps(wanted) if wanted else None
        with urllib.request.urlopen(f"{self.url}/control", body, timeout=10) as reply:
            found = orjson.loads(reply.read())
        return State(**{field.name: found[field.name] for field in fields(State)})


def start_provider(supervisor: Supervisor) -> FakeProvider:
    """A provider on a free port as one of the supervisor's processes."""
    port = free_port()
    supervisor.start("provider", ["python", "-m", "bench.provider", "--port", str(port)], lambda: accepts(port))
    return FakeProvider(port, supervisor.pid("provider") or 0)


async def serve(port: int) -> None:
    """Until the process that started this one ends."""
    loop, state, parent = asyncio.get_running_loop(), State(), os.getppid()
    await loop.create_server(lambda: Chat(state, loop), "127.0.0.1", port, backlog=4096)
    while os.getppid() == parent:
        await asyncio.sleep(1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.provider", description=__doc__)
    parser.add_argument("--port", type=int, default=9000)
    asyncio.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
