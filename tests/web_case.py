"""A web process in this one, on a real Valkey and SQLite, with a thread that plays the workers."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis
from werkzeug.test import TestResponse

from config import Settings
from providers.abort import AbortSignal
from providers.chain import Outcome
from routing.catalogue import load_catalogue
from routing.query import Completion, Query, Target, Usage
from routing.tier import TIERS, Tier
from storage.answer import AnswerCache
from storage.ledger import Ledger
from storage.line import Lines
from tasks.answer import Answerer
from tasks.lease import LeaseKeeper
from tests.conftest import LIMITS
from tests.test_answer import ATTEMPT
from webapp import create_app

QUERY = "/api/v1/query"


class EchoChain:
    """Answers every query with its own text; counts; can be held, or told to refuse."""

    def __init__(self) -> None:
        self.calls: list[Query] = []
        self.deadlines: list[float] = []
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None

    def answer(
        self, query: Query, tier: Tier, *, deadline: float, signal: AbortSignal, is_interactive: bool
    ) -> Outcome:
        self.calls.append(query)
        self.deadlines.append(deadline)
        self.gate.wait(10)
        if self.error:
            raise self.error
        said = Completion(f"answer to: {query.text}", "openai/gpt-oss-20b", "stop", Usage(10, 20))
        attempt = replace(ATTEMPT, usage=said.usage, cost_usd=10 * 0.075e-6 + 20 * 0.30e-6)
        return Outcome(said, Target("groq", "openai/gpt-oss-20b"), (attempt,))


@pytest.fixture
def chain() -> EchoChain:
    return EchoChain()


@contextmanager
def serving(
    redis: Redis, chain: EchoChain, *, holds_cache: bool = True, cache: AnswerCache | None = None
) -> Iterator[None]:
    """Answers whatever is queued, in the ledger's order."""
    ledger = Ledger(redis, LIMITS, holds_cache=holds_cache)
    leases = LeaseKeeper(ledger)
    answerer = Answerer(ledger, chain, TIERS, load_catalogue(), leases, "thread", cache)  # type: ignore[arg-type]
    stop = threading.Event()

    def work() -> None:
        with ThreadPoolExecutor(8) as pool:
            while not stop.wait(0.005):
                for tier, depth in Lines(redis).depths(TIERS).items():
                    for _ in range(depth["queued"]):
                        pool.submit(answerer.answer, tier)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        chain.gate.set()
        stop.set()
        thread.join()


@pytest.fixture
def worker(redis: Redis, chain: EchoChain) -> Iterator[None]:
    with serving(redis, chain):
        yield


@pytest.fixture
def app(redis: Redis, settings: Callable[..., Settings]) -> Flask:
    return create_app(settings(groq_api_key="gsk_planted_secret", max_query_chars=1_000, max_body_bytes=8_192))


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def ask(
    client: FlaskClient, query: str = "What is AI?", headers: dict[str, str] | None = None, **body: Any
) -> TestResponse:
    return client.post(QUERY, json={"query": query, **body}, headers=headers)


def poll(client: FlaskClient, path: str) -> Any:
    until = time.monotonic() + 5
    while (response := client.get(path)).status_code == 202:
        assert time.monotonic() < until
        assert int(response.headers["Retry-After"]) >= 1
        time.sleep(0.01)
    return response.json
