"""Cancelling: a job ends when the last of its callers has gone, and what its last call cost stays on record."""

import json
from dataclasses import replace

import pytest
from redis import Redis

from storage.answer import answer_key
from storage.job import Job
from storage.ledger import Ending, Ledger
from storage.line import Lines
from storage.name import CANCELLED, DONE, USAGE
from tests.conftest import LIMITS, Clock
from tests.ledger_case import DONE_WELL, claimed, draft, usage_kinds

FACTS = {"tier": "simple", "error_code": "cancelled"}


def cancel(ledger: Ledger, job_id: str) -> str:
    return ledger.cancel(known(ledger, job_id), FACTS)


def known(ledger: Ledger, job_id: str) -> Job:
    job = ledger.job(job_id)
    assert job is not None
    return job


def test_a_queued_job_ends_at_once(ledger: Ledger, redis: Redis) -> None:
    ledger.accept(draft())

    assert cancel(ledger, "j1") == "cancelled"
    assert known(ledger, "j1").status == "cancelled"
    assert ledger.claim("simple", "token", "worker") is None
    assert Lines(redis).depths(["simple"])["simple"] == {"queued": 0, "running": 0}
    assert usage_kinds(redis) == [b"accepted", b"ended"]
    assert redis.xlen(DONE) == 1


def test_cancelling_twice_says_the_same(ledger: Ledger) -> None:
    ledger.accept(draft())
    claimed(ledger)

    assert [cancel(ledger, "j1"), cancel(ledger, "j1")] == ["cancelling", "cancelling"]


def test_a_running_job_is_told_to_its_worker_and_ends_when_that_has_stopped(ledger: Ledger, redis: Redis) -> None:
    ledger.accept(draft())
    claimed(ledger)

    assert cancel(ledger, "j1") == "cancelling"
    assert [fields[b"job"] for _, fields in redis.xrange(CANCELLED)] == [b"j1"]
    assert known(ledger, "j1").status == "running"
    assert not ledger.renew("j1", "token")  # what a worker that missed the word learns it by

    assert ledger.finish("j1", "token", Ending("expired", FACTS, [{"outcome": "aborted"}], error={"code": "expired"}))
    job = known(ledger, "j1")
    assert (job.status, job.error, job.attempts[0]["outcome"]) == ("cancelled", None, "aborted")


def test_an_answer_that_came_before_the_abort_is_paid_kept_and_not_shown(ledger: Ledger, redis: Redis) -> None:
    ledger.accept(draft())
    claimed(ledger)
    cancel(ledger, "j1")

    assert ledger.finish("j1", "token", DONE_WELL)
    assert known(ledger, "j1").status == "cancelled"
    assert redis.exists(answer_key("f1"))
    assert redis.xrange(USAGE)[-1][1][b"status"] == b"cancelled"


@pytest.mark.parametrize("first", ["j1", "j2"])
def test_the_others_still_get_their_answer(ledger: Ledger, redis: Redis, first: str) -> None:
    ledger.accept(draft("j1"))
    ledger.accept(draft("j2"))
    claimed(ledger)
    other = {"j1": "j2", "j2": "j1"}[first]

    assert cancel(ledger, first) == cancel(ledger, first) == "cancelled"
    assert (known(ledger, first).status, known(ledger, other).status) == ("cancelled", "running")
    assert redis.xlen(CANCELLED) == 0
    ledger.finish("j1", "token", DONE_WELL)

    assert (known(ledger, first).status, known(ledger, other).status) == ("cancelled", "completed")
    ended = redis.xrange(USAGE)[-1][1]
    assert [asked["caller"]["id"] for asked in json.loads(ended[b"callers"])] == [other]
    assert ended[b"payer"].decode() == other == known(ledger, other).payer
    assert usage_kinds(redis) == [b"accepted", b"accepted", b"left", b"ended"]


def test_the_last_caller_to_cancel_ends_the_job(ledger: Ledger) -> None:
    ledger.accept(draft("j1"))
    ledger.accept(draft("j2"))

    assert [cancel(ledger, "j1"), cancel(ledger, "j2")] == ["cancelled", "cancelled"]
    assert [known(ledger, job_id).status for job_id in ("j1", "j2")] == ["cancelled", "cancelled"]
    assert ledger.claim("simple", "token", "worker") is None


def test_nobody_joins_a_job_that_is_being_aborted(ledger: Ledger) -> None:
    ledger.accept(draft("j1"))
    claimed(ledger)
    cancel(ledger, "j1")

    assert ledger.accept(draft("j2")).kind == "leader"


def test_a_job_that_has_ended_keeps_its_status(ledger: Ledger) -> None:
    ledger.accept(draft())
    claimed(ledger)
    ledger.finish("j1", "token", DONE_WELL)

    assert cancel(ledger, "j1") == "completed"
    assert known(ledger, "j1").status == "completed"


def test_a_job_that_was_forgotten_meanwhile_is_missing(ledger: Ledger, redis: Redis) -> None:
    ledger.accept(draft())
    job = known(ledger, "j1")
    redis.flushall()

    assert ledger.cancel(job, FACTS) == "missing"


def test_a_cancelled_job_whose_worker_died_is_not_run_again(ledger: Ledger, clock: Clock) -> None:
    ledger.accept(draft())
    claimed(ledger)
    cancel(ledger, "j1")
    clock.advance(16)

    [verdict] = ledger.reap("reaper:1")
    assert verdict.kind == "cancelled"
    assert ledger.finish("j1", "reaper:1", Ending("cancelled", FACTS))
    assert known(ledger, "j1").status == "cancelled"


def test_what_the_aborted_call_cost_is_charged(redis: Redis, clock: Clock) -> None:
    ledger = Ledger(redis, replace(LIMITS), now_ms=clock)
    ledger.accept(draft(key="k1"))
    claimed(ledger)
    cancel(ledger, "j1")
    ledger.finish("j1", "token", Ending("failed", FACTS, charge_usd=0.25, charge_tokens=7))

    spend = redis.hgetall("aqr:spend:k1")
    assert (spend[b"day_usd"], spend[b"day_tokens"]) == (b"250000000", b"7")
