"""A scripted stand-in for Groq, Together AI and llama.cpp: real HTTP on 127.0.0.1, with faults on demand.

In a test: `with FakeProvider() as fake: fake.fail_next("groq", Fault.status(429, retry_after=2))`. For processes:
`python -m tests.fake_provider --port 9000`, scripted over `/__fake/…` or by the question (`[[fault=429]]`,
`[[fault.groq=reset]]`, `[[latency_ms=500]]`).
"""

import argparse
import gzip
import json
import os
import re
import select
import socket
import ssl
import struct
import sys
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Self

from tests.hard_limit import HardLimit

KEYS = {"groq": "gsk_fakefakefakefake1234567890", "together": "tgp_fakefakefakefake1234567890", "local": None}
KNOWN_KEYS = {None, *(f"Bearer {key}" for key in KEYS.values() if key)}
PREFIXES = {"groq": "/openai/v1", "together": "/v1", "local": "/local/v1"}
PROVIDER_OF = {f"{prefix}/chat/completions": name for name, prefix in PREFIXES.items()}
MODELS = ("openai/gpt-oss-20b", "openai/gpt-oss-120b", "Qwen/Qwen3.5-9B", "smollm2-135m-instruct")
HUGE = 64 * 1024 * 1024

# (status, provider or None for all) -> message, type, code: as the providers write them.
ERRORS: dict[tuple[int, str | None], tuple[str, str, str | None]] = {
    (400, None): ("'messages' : invalid value", "invalid_request_error", None),
    (401, None): ("Invalid API Key", "invalid_request_error", "invalid_api_key"),
    (402, None): ("Spending limit reached", "credit_limit", None),
    (403, "groq"): ("Forbidden", "permissions_error", None),
    (403, "together"): ("Input tokens plus max_tokens exceed the context", "invalid_request_error", None),
    (404, "groq"): ("The model does not exist", "invalid_request_error", "model_not_found"),
    (404, None): ("Not found", "invalid_request_error", None),
    (413, "groq"): ("Request too large on tokens per minute (TPM)", "tokens", "rate_limit_exceeded"),
    (413, None): ("Payload too large", "invalid_request_error", None),
    (422, None): ("Unprocessable", "invalid_request_error", None),
    (429, "groq"): ("Rate limit reached on tokens per minute (TPM)", "tokens", "rate_limit_exceeded"),
    (429, None): ("Rate limit reached", "rate_limit", "rate_limit"),
    (498, None): ("Flex tier capacity exceeded", "capacity", "capacity_exceeded"),
    (500, None): ("Internal server error", "internal_server_error", None),
    (503, None): ("Service unavailable", "service_unavailable", None),
}
RETIRED = {
    "groq": (404, "The model does not exist or you do not have access", "model_not_found"),
    "together": (400, "Unable to access non-serverless model", "model_not_available"),
    "local": (404, "File Not Found", None),
}


@dataclass(frozen=True)
class Fault:
    """One scripted failure. `kind` is "status" or a name in `Handler.FAULTS`; `every` is a trickle's pause in s."""

    kind: str
    http_status: int = 0
    code: str | None = None
    type: str | None = None
    message: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    every: float = 1.0

    @classmethod
    def status(cls, http_status: int, *, retry_after: object = None, **details: Any) -> Self:
        headers = {**details.pop("headers", {})}
        if retry_after is not None:
            headers["retry-after"] = str(retry_after)
        return cls("status", http_status, headers=headers, **details)

    @classmethod
    def parse(cls, text: str) -> Self:
        """`429` or `reset`, as they stand in a question or a control request."""
        return cls.status(int(text)) if text.isdigit() else cls(text)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def __init__(self, port: int) -> None:
        self.lock = threading.Lock()
        self.reset()
        super().__init__(("127.0.0.1", port), Handler)

    def reset(self) -> None:
        self.calls: Counter[str] = Counter()
        self.history: list[dict[str, Any]] = []
        self.faults: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self.retired: set[str] = set()
        self.latency_s = 0.0
        self.latency_of: dict[str, float] = {}
        self.headers: dict[str, str] = {}
        self.keys: dict[str, set[str | None]] = {name: {key} for name, key in KEYS.items()}
        self.keys_used: list[str] = []
        self.connections = 0
        self.hung_up = 0
        self.limit = HardLimit()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up in the middle are what the faults are about."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    provider = "groq"
    limits: dict[str, str] = {}

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/__fake/calls":
            counted = {"calls": self.server.calls, "history": self.server.history, "hung_up": self.server.hung_up}
            self.send(200, counted)
        elif self.path == "/__fake/limit":
            self.send(200, self.server.limit.counts())
        elif self.path.endswith("/models") and self.headers["Authorization"] not in KNOWN_KEYS:
            self.fail(Fault.status(401))
        elif self.path.endswith("/models"):
            listed = [{"id": name, "object": "model"} for name in MODELS if name not in self.server.retired]
            self.send(200, {"object": "list", "data": listed})
        else:
            self.send(404, {"error": {"message": "Not found"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        if self.path.startswith("/__fake/"):
            self.control(self.path.removeprefix("/__fake/"), body)
            return
        provider = PROVIDER_OF.get(self.path)
        if provider is None:
            self.send(404, {"error": {"message": "Not found"}})
            return
        self.provider = provider
        is_served, self.limits = self.server.limit.enter()
        if is_served:
            self.complete(body)
        else:
            self.fail(Fault.status(429, headers=self.limits))

    def control(self, verb: str, body: dict[str, Any]) -> None:
        if verb == "faults":
            self.server.faults[body["provider"]].extend(map(Fault.parse, body["faults"]))
        elif verb == "latency":
            self.server.latency_s = body["latency_ms"] / 1000
        elif verb == "limit":
            self.server.limit = HardLimit(**body)
        elif verb == "retired":
            self.server.retired = set(body["models"])
        elif verb == "reset":
            self.server.reset()
        else:
            self.server.calls["stolen"] += 1  # where the redirect points
        self.send(200, {"ok": True})

    def complete(self, body: dict[str, Any]) -> None:
        question = body["messages"][-1]["content"]
        script = dict(re.findall(r"\[\[([\w.]+)=([\w.]+)\]\]", question))
        key = (self.headers["Authorization"] or "").removeprefix("Bearer ") or None
        with self.server.lock:
            self.server.calls.update((self.provider, f"{self.provider}:{body['model']}"))
            self.server.keys_used.append(key or "-")
            self.server.history.append({"provider": self.provider, **body})
            queue = self.server.faults[self.provider]
            fault = queue.popleft() if queue else None
        scripted = script.get(f"fault.{self.provider}") or script.get("fault")
        fault = fault or (Fault.parse(scripted) if scripted else None)
        latency_s = self.server.latency_of.get(self.provider, self.server.latency_s)
        is_awaited = self.think(float(script.get("latency_ms", 0)) / 1000 or latency_s)
        self.server.limit.leave()
        if not is_awaited:
            self.close_connection = True
        elif KEYS[self.provider] and key not in self.server.keys[self.provider]:
            self.fail(Fault.status(401))
        elif fault is not None:
            self.FAULTS[fault.kind](self, fault)
        elif body["model"] in self.server.retired:
            status, message, code = RETIRED[self.provider]
            self.fail(Fault.status(status, message=message, code=code, type="invalid_request_error"))
        else:
            self.send(200, self.completion(body, f"answer to: {question}"), {**self.server.headers, **self.limits})

    def think(self, seconds: float) -> bool:
        """Takes its time, unless the client hangs up meanwhile; whether somebody still waits for the answer."""
        heard = select.poll()
        heard.register(self.connection, select.POLLIN)
        if not heard.poll(seconds * 1000) or isinstance(self.connection, ssl.SSLSocket):
            return True
        self.connection.setblocking(False)
        is_gone = self.connection.recv(1, socket.MSG_PEEK) == b""
        self.connection.setblocking(True)
        self.count_hang_up(is_gone)
        return not is_gone

    def count_hang_up(self, is_gone: bool) -> None:
        with self.server.lock:
            self.server.hung_up += is_gone

    def completion(self, body: dict[str, Any], text: str | None) -> dict[str, Any]:
        prompt = sum(len(message["content"].split()) for message in body["messages"])
        spoken = len((text or "").split())
        usage = {"prompt_tokens": prompt, "completion_tokens": spoken, "total_tokens": prompt + spoken}
        finish = "eos" if self.provider == "together" else "stop"
        model = "/weights/model.gguf" if self.provider == "local" else body["model"]
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        return {
            "id": "chatcmpl-fake",
            "object": "chat.completion",
            "created": 1,
            "model": model,
            "choices": [choice],
            "usage": usage,
        }

    def send(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        self.send_bytes(status, json.dumps(body).encode(), headers)

    def send_bytes(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.begin(status, {"Content-Length": str(len(body)), **(headers or {})})
        self.wfile.write(body)

    def begin(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    # Faults

    def fail(self, fault: Fault) -> None:
        found = ERRORS.get((fault.http_status, self.provider)) or ERRORS.get((fault.http_status, None))
        message, kind, code = found or (f"HTTP {fault.http_status}", "error", None)
        error = {
            "message": fault.message or message,
            "type": fault.type or kind,
            "code": fault.code or code,
        }
        self.send(fault.http_status, {"error": error}, fault.headers)

    def reset(self, fault: Fault) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        os.close(self.connection.detach())

    def hang_up(self, fault: Fault) -> None:
        self.close_connection = True

    def silence(self, fault: Fault) -> None:
        self.close_connection = True
        self.connection.settimeout(60)
        self.count_hang_up(self.connection.recv(1) == b"")  # until the client gives up

    def trickle(self, head: bytes, fault: Fault) -> None:
        self.close_connection = True
        self.wfile.write(head)
        for _ in range(int(60 / fault.every)):
            self.wfile.write(b"a")
            time.sleep(fault.every)

    def slow_headers(self, fault: Fault) -> None:
        self.trickle(b"HTTP/1.1 200 OK\r\nX-Slow: ", fault)

    def slow_body(self, fault: Fault) -> None:
        self.trickle(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99999\r\n\r\n", fault)

    def slow_body_without_length(self, fault: Fault) -> None:
        self.trickle(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n", fault)

    def cut(self, fault: Fault) -> None:
        self.close_connection = True
        self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"id')

    def cut_chunk(self, fault: Fault) -> None:
        self.close_connection = True
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.wfile.write(head + b'50\r\n{"id')

    def cut_error(self, fault: Fault) -> None:
        self.close_connection = True
        self.begin(fault.http_status, {"Content-Length": "500", **fault.headers})
        self.wfile.write(b'{"err')

    def endless(self, fault: Fault) -> None:
        self.close_connection = True
        self.begin(200, {"Transfer-Encoding": "chunked"})
        while True:
            self.wfile.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")

    def bomb(self, fault: Fault) -> None:
        self.send_bytes(200, gzip.compress(b" " * HUGE), {"Content-Encoding": "gzip"})

    def redirect(self, fault: Fault) -> None:
        self.send(307, {}, {"Location": "/__fake/elsewhere"})

    def garbage(self, fault: Fault) -> None:
        self.close_connection = True
        self.wfile.write(b"\x16\x03\x01 this is not HTTP\r\n\r\n")

    def answer_with(self, **changes: Any) -> None:
        body = self.completion(self.server.history[-1], "an answer")
        body["choices"][0].update(changes)
        self.send(200, body)

    FAULTS: ClassVar[dict[str, Callable[["Handler", Fault], None]]] = {
        "status": fail,
        "reset": reset,
        "hang_up": hang_up,
        "silence": silence,
        "slow_headers": slow_headers,
        "slow_body": slow_body,
        "slow_body_without_length": slow_body_without_length,
        "cut": cut,
        "cut_chunk": cut_chunk,
        "cut_error": cut_error,
        "endless": endless,
        "bomb": bomb,
        "redirect": redirect,
        "garbage": garbage,
        "bad_json": lambda self, _: self.send_bytes(200, b'{"choices": ['),
        "deep_json": lambda self, _: self.send_bytes(200, b"[" * 200_000),
        "not_an_object": lambda self, _: self.send(200, ["no", "object"]),
        "html": lambda self, _: self.send_bytes(200, b"<html>", {"Content-Type": "text/html"}),
        "no_choices": lambda self, _: self.send(200, {"choices": []}),
        "empty": lambda self, _: self.answer_with(message={"content": ""}, finish_reason="length"),
        "null": lambda self, _: self.answer_with(message={"content": None}),
        "no_text": lambda self, _: self.answer_with(message={"content": 7}),
        "content_filter": lambda self, _: self.answer_with(finish_reason="content_filter"),
        "odd_finish": lambda self, _: self.answer_with(finish_reason="paused"),
        "refusal": lambda self, _: self.answer_with(message={"content": None, "refusal": "I cannot help with that."}),
        "empty_unbilled": lambda self, _: self.send(200, {"choices": [{"message": {"content": " "}}]}),
        "surrogate": lambda self, _: self.answer_with(message={"content": "half \ud83d and \0"}),
        "no_usage": lambda self, _: self.send(200, {"choices": [{"message": {"content": "bare"}}]}),
    }


class FakeProvider:
    """The server on a thread of its own, as a context manager; over TLS where a certificate with key is given."""

    def __init__(self, port: int = 0, certificate: Path | None = None) -> None:
        self.server = Server(port)
        self._scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
            self._scheme = "https"
        self.port: int = self.server.server_address[1]
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Closes the port; calling it again changes nothing."""
        if self._thread.is_alive():
            self.server.shutdown()
            self.server.server_close()
            self._thread.join()

    def base_url(self, provider: str) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}{PREFIXES[provider]}"

    def fail_next(self, provider: str, *faults: Fault) -> None:
        self.server.faults[provider].extend(faults)

    def retire(self, *models: str) -> None:
        self.server.retired.update(models)

    def set_latency(self, seconds: float, provider: str | None = None) -> None:
        if provider is None:
            self.server.latency_s = seconds
        else:
            self.server.latency_of[provider] = seconds

    def set_headers(self, headers: dict[str, str]) -> None:
        """Of every answer from here on."""
        self.server.headers = headers

    def accept_key(self, provider: str, key: str) -> None:
        self.server.keys[provider].add(key)

    def reset(self) -> None:
        self.server.reset()

    @property
    def calls(self) -> Counter[str]:
        """How often, by provider (`groq`) and by target (`groq:model`)."""
        return self.server.calls

    @property
    def history(self) -> list[dict[str, Any]]:
        """The requests' JSON bodies, each with its `provider`."""
        return self.server.history

    @property
    def connections(self) -> int:
        return self.server.connections

    @property
    def keys_used(self) -> list[str]:
        """The key of each call, "-" where it had none."""
        return self.server.keys_used

    @property
    def hung_up(self) -> int:
        """How many clients closed the connection while they were to wait."""
        return self.server.hung_up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9000)
    server = Server(parser.parse_args().port)
    sys.stdout.write(f"fake provider on http://127.0.0.1:{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
