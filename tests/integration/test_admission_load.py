"""Shared admission against providers with hard limits: twice the load they carry, over real HTTP and a real Valkey.

Required of the seconds that are measured after the warm-up: fewer than 1 % of the calls are throttled, and at least
95 % of what the provider's limit allows is served.
"""

import http.client
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from embedded.port import free_port
from routing.lane import CallReport, Grant, Lane, RateLimits, Wait
from routing.query import Target
from storage.admission import Admission, AdmissionLimits
from storage.connection import patient_client
from tests.conftest import ROOT
from tests.fake_provider import KEYS

THREADS = 48
TOKENS = 100
LANE = Lane(Target("groq", "openai/gpt-oss-20b"), "0badc0de")
TOKEN_LIMIT = {"units": 80 * TOKENS, "window_s": 2, "cost": TOKENS, "headers": "tokens"}


@dataclass(frozen=True)
class Case:
    """`per_second`: calls that the limit allows. `settings` are the provider's, as in `tests.hard_limit`.

    A whole Retry-After makes each look for the limit cost a second, so there it takes a minute and more to tell.
    """

    per_second: float
    settings: dict[str, Any]
    per_minute: int | None = None
    latency_ms: int = 150
    warm_up_s: float = 10.0
    measured_s: float = 18.0


CASES = {
    "operator's number": Case(40, {"units": 40, "kind": "sliding"}, per_minute=2400),
    "headers, fixed window": Case(
        40, {"units": 8000, "window_s": 2, "cost": 100, "kind": "fixed", "headers": "tokens"}
    ),
    "headers, bucket": Case(40, {"units": 8000, "window_s": 2, "cost": 100, "kind": "bucket", "headers": "tokens"}),
    "concurrency": Case(40, {"concurrency": 16}, latency_ms=400),
    "rate, exact Retry-After": Case(40, {"units": 40, "kind": "sliding", "retry_after": "exact"}),
    "rate, whole Retry-After": Case(
        40, {"units": 40, "kind": "fixed", "retry_after": "whole"}, warm_up_s=30, measured_s=90
    ),
}


class Provider:
    """The fake provider in a process of its own, so that its clock is not ours."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, connection: http.client.HTTPConnection, verb: str, path: str, body: object = None) -> Any:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEYS['groq']}"}
        connection.request(verb, path, json.dumps(body) if body is not None else None, headers)
        reply = connection.getresponse()
        return reply, json.loads(reply.read())

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)

    def counts(self) -> dict[str, int]:
        connection = self.connect()
        found: dict[str, int] = self.ask(connection, "GET", "/__fake/limit")[1]
        connection.close()
        return found


@pytest.fixture
def provider() -> Iterator[Provider]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "tests.fake_provider", "--port", str(port)], cwd=ROOT, stdout=-3)
    found = Provider(port)
    try:
        _wait_for(found)
        yield found
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(provider: Provider) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            provider.counts()
            return
        except OSError:
            assert time.monotonic() < deadline, "the fake provider does not start"
            time.sleep(0.05)


class Load:
    """Threads that offer twice the limit; each query waits for admission as long as it takes."""

    def __init__(self, case: Case, provider: Provider, redis_url: str) -> None:
        self.case, self.provider = case, provider
        given = {"groq": case.per_minute} if case.per_minute else {}
        self.admission = Admission(patient_client(redis_url), AdmissionLimits(given))
        self.numbers = itertools.count()
        self.started = time.monotonic()
        self.asked = itertools.count()
        self.is_over = threading.Event()
        self.failures: list[BaseException] = []

    def run(self) -> None:
        try:
            connection = self.provider.connect()
            while not self.is_over.is_set():
                self._one(connection)
        except BaseException as error:  # noqa: BLE001 - a thread's failure must fail the test
            self.failures.append(error)

    def _one(self, connection: http.client.HTTPConnection) -> None:
        arrival = self.started + next(self.numbers) / (2 * self.case.per_second)
        if self.is_over.wait(max(0.0, arrival - time.monotonic())):
            return
        while not self.is_over.is_set():
            next(self.asked)
            leave = self.admission.admit([LANE], TOKENS)
            if isinstance(leave, Wait):
                self.is_over.wait(leave.seconds)
            elif self._call(connection, leave):
                return

    def _call(self, connection: http.client.HTTPConnection, grant: Grant) -> bool:
        began = time.monotonic()
        body = {"model": LANE.target.model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": TOKENS}
        reply, _ = self.provider.ask(connection, "POST", "/openai/v1/chat/completions", body)
        assert grant.ticket
        self.admission.settle(grant, _report(reply, (time.monotonic() - began) * 1000))
        return bool(reply.status == 200)


def _report(reply: http.client.HTTPResponse, latency_ms: float) -> CallReport:
    def number(name: str) -> float | None:
        said = reply.headers.get(name)
        return float(said.removesuffix("s")) if said else None

    said = (
        number(f"x-ratelimit-{what}-{of}") for of in ("requests", "tokens") for what in ("limit", "remaining", "reset")
    )
    outcome = {200: "ok", 429: "throttled"}[reply.status]
    return CallReport(outcome, latency_ms, TOKENS, number("retry-after"), RateLimits(*said))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_at_twice_the_load_hardly_a_call_is_throttled_and_hardly_a_slot_is_lost(
    name: str, provider: Provider, redis: object, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    connection = provider.connect()
    provider.ask(connection, "POST", "/__fake/latency", {"latency_ms": case.latency_ms})
    provider.ask(connection, "POST", "/__fake/limit", case.settings)
    load = Load(case, provider, redis_url)
    threads = [threading.Thread(target=load.run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(case.warm_up_s)
        before, since = provider.counts(), time.monotonic()
        time.sleep(case.measured_s)
        after, lasted = provider.counts(), time.monotonic() - since
    finally:
        load.is_over.set()
        for thread in threads:
            thread.join()

    served, throttled = after["served"] - before["served"], after["throttled"] - before["throttled"]
    useful, refused = served / (lasted * case.per_second), throttled / (served + throttled)
    with capsys.disabled():
        sys.stdout.write(
            f"\n{name}: {useful:.1%} of the limit used, {refused:.2%} throttled ({throttled} of {served + throttled}); "
            f"warm-up {before}; {next(load.asked) / (lasted + case.warm_up_s):.0f} asks/s\n"
        )
    assert not load.failures
    assert refused < 0.01
    assert useful >= 0.95
