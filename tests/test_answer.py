"""The worker's story: the next job of a tier, with a scripted chain in place of the providers."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from providers.abort import AbortSignal
from providers.chain import Outcome
from routing.catalogue import load_catalogue
from routing.errors import AllTargetsFailed, NoTargets, TargetThrottled
from routing.query import Attempt, Completion, Query, Target, Usage
from routing.tier import TIERS, Tier
from storage.answer import Answer, AnswerCache, answer_key
from storage.job import Claim
from storage.ledger import Ending, Ledger
from storage.name import USAGE
from tasks.answer import Answerer
from tasks.lease import LeaseKeeper
from tests import ledger_case

TARGET = Target("groq", "openai/gpt-oss-20b")
ATTEMPT = Attempt("groq", TARGET.model, 1_800_000_000_000, 250.0, "ok", 200, number=1, cost_usd=0.375)


class ScriptedChain:
    """Answers with what was enqueued, and keeps what it was asked."""

    def __init__(self) -> None:
        self.script: list[Any] = []
        self.asked: list[tuple[Query, Tier, float, AbortSignal]] = []

    def answer(
        self, query: Query, tier: Tier, *, deadline: float, signal: AbortSignal, is_interactive: bool
    ) -> Outcome:
        self.asked.append((query, tier, deadline, signal))
        step = self.script.pop(0)
        if callable(step):
            step = step()
        if isinstance(step, Exception):
            raise step
        return Outcome(step, TARGET, (ATTEMPT,))


def completion(finish_reason: str = "stop") -> Completion:
    return Completion("42", TARGET.model, finish_reason, Usage(1_000_000, 1_000_000))


@pytest.fixture
def chain() -> ScriptedChain:
    return ScriptedChain()


@pytest.fixture
def answerer(ledger: Ledger, chain: ScriptedChain) -> Answerer:
    leases = LeaseKeeper(ledger)
    return Answerer(ledger, chain, TIERS, load_catalogue(), leases, "worker")  # type: ignore[arg-type]


def accept(ledger: Ledger, job_id: str = "j1", **changes: Any) -> None:
    payload = {
        "query": {"text": "q", "tier": None, "system": None, "max_tokens": None, "temperature": None},
        "tenant": "t",
        "request_id": "r1",
        "priority": "interactive",
        "routing": {"score": 0, "words": 1, "signals": []},
        "cache": {"fingerprint": "f1", "ttl_ms": 60_000},
    }
    draft = ledger_case.draft(job_id, payload=json.dumps({**payload, **changes}).encode())
    assert ledger.accept(draft).kind == "leader"


def test_it_answers_a_job_and_caches_the_answer(
    answerer: Answerer, ledger: Ledger, chain: ScriptedChain, redis: Redis
) -> None:
    accept(ledger)
    chain.script = [completion()]

    assert answerer.answer("simple") == "j1 completed"

    job = ledger.job("j1")
    assert job is not None
    assert job.answer is not None
    answer = Answer.decode(job.answer)
    assert (answer.response, answer.tier, answer.target) == ("42", "simple", TARGET)
    assert answer.cost_usd == pytest.approx(0.375)
    assert answer.baseline_usd == pytest.approx(0.75)
    assert redis.get(answer_key("f1")) == job.answer
    assert job.attempts[0]["outcome"] == "ok"


@pytest.mark.parametrize("is_recorded", [False, True])
def test_the_text_of_an_answer_travels_to_the_record_only_by_choice(
    answerer: Answerer, ledger: Ledger, chain: ScriptedChain, redis: Redis, is_recorded: bool
) -> None:
    accept(ledger)
    chain.script = [completion()]
    replace(answerer, records_text=is_recorded).answer("simple")
    ledger.find("f1", b"{}")

    [ended, hit] = [entry for _, entry in redis.xrange(USAGE) if entry[b"kind"] != b"accepted"]
    texts = [json.loads(entry[field]).get("answer_text") for entry, field in ((ended, b"facts"), (hit, b"answer"))]
    assert texts == (["42", "42"] if is_recorded else [None, None])


def test_it_gives_the_chain_what_is_left_of_the_deadline(
    answerer: Answerer, ledger: Ledger, chain: ScriptedChain, clock: Any
) -> None:
    accept(ledger)
    clock.advance(50)
    chain.script = [completion()]
    answerer.answer("simple")

    query, tier, deadline, _ = chain.asked[0]
    assert (query.text, tier.name) == ("q", "simple")
    assert 9 < deadline - time.monotonic() <= 10


def test_it_leaves_a_job_alone_that_is_not_queued(answerer: Answerer, ledger: Ledger, chain: ScriptedChain) -> None:
    accept(ledger)
    chain.script = [completion()]
    answerer.answer("simple")

    assert answerer.answer("simple") == "none"
    assert len(chain.asked) == 1


def test_it_does_not_call_a_provider_after_the_deadline(
    answerer: Answerer, ledger: Ledger, chain: ScriptedChain, clock: Any
) -> None:
    accept(ledger)
    clock.advance(61)

    assert answerer.answer("simple") == "j1 expired"
    assert chain.asked == []
    assert ledger.job("j1").error["code"] == "expired"  # type: ignore[union-attr, index]


def test_it_fails_with_what_each_attempt_said(answerer: Answerer, ledger: Ledger, chain: ScriptedChain) -> None:
    accept(ledger)
    failed = Attempt("groq", "m", 1, 5.0, "throttled", 429, "HTTP 429: slow down", number=1)
    chain.script = [AllTargetsFailed([failed], TargetThrottled(TARGET, "HTTP 429", retry_after=7))]

    assert answerer.answer("simple") == "j1 failed"
    error = ledger.job("j1").error  # type: ignore[union-attr]
    assert error is not None
    assert (error["code"], error["retry_after"]) == ("provider_throttled", 7)
    assert "groq:m: HTTP 429: slow down" in error["detail"]


def test_it_fails_where_no_provider_is_configured(answerer: Answerer, ledger: Ledger, chain: ScriptedChain) -> None:
    accept(ledger)
    chain.script = [NoTargets("none")]

    answerer.answer("simple")
    assert ledger.job("j1").error["code"] == "no_provider"  # type: ignore[union-attr, index]


@pytest.mark.parametrize(
    ("finish_reason", "is_first_target", "is_kept"),
    [("stop", False, True), ("length", True, True), ("length", False, False), ("tool_calls", True, False)],
)
def test_it_caches_an_answer_that_asking_again_would_not_better(
    ledger: Ledger, chain: ScriptedChain, redis: Redis, finish_reason: str, is_first_target: bool, is_kept: bool
) -> None:
    first = TARGET if is_first_target else Target("groq", "larger")
    tiers = {**TIERS, "simple": replace(TIERS["simple"], targets=(first, TARGET))}
    answerer = Answerer(ledger, chain, tiers, load_catalogue(), LeaseKeeper(ledger), "w")  # type: ignore[arg-type]
    accept(ledger)
    chain.script = [completion(finish_reason)]

    assert answerer.answer("simple") == "j1 completed"
    assert (redis.get(answer_key("f1")) is not None) is is_kept


def test_it_does_not_cache_what_the_caller_wants_bypassed(
    answerer: Answerer, ledger: Ledger, chain: ScriptedChain, redis: Redis
) -> None:
    accept(ledger, cache=None)
    chain.script = [completion()]

    answerer.answer("simple")
    assert redis.get(answer_key("f1")) is None


def test_it_writes_to_a_cache_of_its_own(ledger: Ledger, chain: ScriptedChain, redis: Redis, redis_url: str) -> None:
    apart = Redis.from_url(redis_url.removesuffix("0") + "1")
    ledger = Ledger(redis, ledger.limits, holds_cache=False)
    leases = LeaseKeeper(ledger)
    answerer = Answerer(ledger, chain, TIERS, load_catalogue(), leases, "w", AnswerCache(apart))  # type: ignore[arg-type]
    accept(ledger)
    chain.script = [completion()]

    answerer.answer("simple")
    assert apart.get(answer_key("f1")) == ledger.job("j1").answer  # type: ignore[union-attr]
    assert redis.get(answer_key("f1")) is None


def test_it_drops_a_result_when_its_job_was_taken_over(
    answerer: Answerer, ledger: Ledger, chain: ScriptedChain, clock: Any, redis: Redis
) -> None:
    accept(ledger)

    def be_overtaken() -> Completion:
        clock.advance(16)
        ledger.reap("reaper:1")
        return completion()

    chain.script = [be_overtaken]
    assert answerer.answer("simple") == "j1 overtaken"
    assert ledger.job("j1").status == "queued"  # type: ignore[union-attr]
    assert redis.get(answer_key("f1")) is None


def test_it_stops_wanting_an_answer_when_the_lease_is_lost(
    answerer: Answerer, ledger: Ledger, chain: ScriptedChain, clock: Any
) -> None:
    accept(ledger)
    wanted: list[bool] = []

    def lose_the_lease() -> Completion:
        signal = chain.asked[0][3]
        wanted.append(not signal.is_aborted)
        clock.advance(16)
        ledger.reap("reaper:1")
        answerer.leases.renew()  # type: ignore[attr-defined]
        wanted.append(not signal.is_aborted)
        return completion()

    chain.script = [lose_the_lease]
    answerer.answer("simple")
    assert wanted == [True, False]


def test_a_second_run_in_the_same_process_keeps_its_own_lease(
    answerer: Answerer, ledger: Ledger, chain: ScriptedChain, clock: Any
) -> None:
    accept(ledger)
    wanted: list[bool] = []

    def second_run() -> Completion:
        """Takes the job while the first run, overtaken, ends."""
        first.set()
        first_ended.wait(5)
        wanted.append(not chain.asked[1][3].is_aborted)
        return completion()

    def first_run() -> Completion:
        clock.advance(16)
        ledger.reap("reaper:1")
        pool.submit(answerer.answer, "simple")
        first.wait(5)
        wanted.append(not chain.asked[0][3].is_aborted)
        return completion()

    first, first_ended = Event(), Event()
    chain.script = [first_run, second_run]
    with ThreadPoolExecutor() as pool:
        assert answerer.answer("simple") == "j1 overtaken"
        first_ended.set()

    assert wanted == [True, True]
    assert ledger.job("j1").status == "completed"  # type: ignore[union-attr]


class FlakyLedger(Ledger):
    """A ledger whose Redis is away for the first tries to finish."""

    failures = 0

    def finish(self, job_id: str, token: str, ending: Ending) -> bool:
        if self.failures:
            self.failures -= 1
            raise RedisConnectionError("away")
        return super().finish(job_id, token, ending)


def test_it_keeps_an_answer_until_redis_is_back(ledger: Ledger, chain: ScriptedChain, redis: Redis) -> None:
    flaky = FlakyLedger(redis, ledger.limits)
    flaky.failures = 3
    slept: list[float] = []
    leases = LeaseKeeper(flaky)
    answerer = Answerer(flaky, chain, TIERS, load_catalogue(), leases, "w", sleep=slept.append)  # type: ignore[arg-type]
    accept(flaky)
    chain.script = [completion()]

    assert answerer.answer("simple") == "j1 completed"
    assert len(slept) == 3
    assert [fields[b"kind"] for _, fields in redis.xrange(USAGE)] == [b"accepted", b"ended"]


class Stuttering(Ledger):
    """A ledger whose reply to the first claim is lost on the way."""

    is_lost = False

    def claim(self, tier: str, token: str, worker: str) -> Claim | None:
        claim = super().claim(tier, token, worker)
        if not self.is_lost:
            self.is_lost = True
            raise RedisConnectionError("cut")
        return claim


def test_a_claim_whose_reply_was_lost_costs_no_run(ledger: Ledger, chain: ScriptedChain, redis: Redis) -> None:
    cut = Stuttering(redis, ledger.limits)
    leases = LeaseKeeper(cut)
    answerer = Answerer(cut, chain, TIERS, load_catalogue(), leases, "w", sleep=lambda _: None)  # type: ignore[arg-type]
    accept(cut)
    chain.script = [completion()]

    assert answerer.answer("simple") == "j1 completed"
    assert redis.hget("aqr:job:j1", "runs") == b"1"
