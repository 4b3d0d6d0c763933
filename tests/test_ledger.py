"""The ledger's transitions, one by one, on a real Valkey."""

import json
from dataclasses import replace

import pytest
from redis import Redis, RedisError

from storage.answer import answer_key
from storage.job import BATCH
from storage.ledger import Ending, Ledger
from storage.line import Lines
from storage.name import DONE, DUE, USAGE
from tests.conftest import LIMITS, Clock
from tests.ledger_case import ANSWER, DONE_WELL, claimed, draft, usage_kinds


def test_it_makes_a_new_query_the_leader_of_a_job(ledger: Ledger, redis: Redis) -> None:
    accepted = ledger.accept(draft())

    assert (accepted.kind, accepted.job_id) == ("leader", "j1")
    job = ledger.job("j1")
    assert job is not None
    assert (job.status, job.tier, job.payload["query"]["text"]) == ("queued", "simple", "q")
    assert job.deadline_at - job.created_at == 60_000
    assert usage_kinds(redis) == [b"accepted"]


def test_it_lets_the_same_query_join_the_job_in_flight(ledger: Ledger) -> None:
    ledger.accept(draft("j1"))

    accepted = ledger.accept(draft("j2"))

    assert (accepted.kind, accepted.job_id) == ("follower", "j1")
    follower = ledger.job("j2")
    assert follower is not None
    assert (follower.id, follower.status) == ("j2", "queued")
    assert Lines(ledger.client).depths(["simple"])["simple"] == {"queued": 1, "running": 0}


def test_it_does_not_join_where_coalescing_is_off(ledger: Ledger) -> None:
    ledger.accept(draft("j1"))

    assert ledger.accept(draft("j2", coalesce=False)).kind == "leader"


def test_it_answers_a_repeated_accept_as_the_first_time(ledger: Ledger, redis: Redis) -> None:
    ledger.accept(draft("j1"))
    ledger.accept(draft("j2"))

    assert ledger.accept(draft("j1")).kind == "leader"
    assert ledger.accept(draft("j2")).kind == "follower"
    assert usage_kinds(redis) == [b"accepted", b"accepted"]


def test_it_refuses_a_query_when_the_queue_is_full(redis: Redis, clock: Clock) -> None:
    ledger = Ledger(redis, replace(LIMITS, max_queue_depth=1), now_ms=clock)
    ledger.accept(draft("j1"))

    refused = ledger.accept(draft("j2", fingerprint="f2"))

    assert (refused.kind, refused.number) == ("full", 1)
    assert ledger.job("j2") is None


def test_it_refuses_new_jobs_while_too_much_is_unrecorded(redis: Redis, clock: Clock) -> None:
    ledger = Ledger(redis, replace(LIMITS, max_unrecorded_events=1), now_ms=clock)
    ledger.accept(draft("j1"))

    assert ledger.accept(draft("j2", fingerprint="f2")).kind == "backlog"


def test_it_gives_a_job_to_one_worker_only(ledger: Ledger) -> None:
    ledger.accept(draft())
    claim = claimed(ledger)

    assert (claim.run, claim.remaining_ms, claim.tier) == (1, 60_000, "simple")
    assert ledger.claim("simple", "another", "worker") is None
    assert Lines(ledger.client).depths(["simple"])["simple"] == {"queued": 0, "running": 1}


def test_it_repeats_a_claim_whose_reply_was_lost(ledger: Ledger) -> None:
    ledger.accept(draft())
    first = claimed(ledger)

    assert claimed(ledger) == first


def test_it_knows_no_job_that_was_never_accepted(ledger: Ledger) -> None:
    assert ledger.claim("simple", "token", "worker") is None
    assert ledger.job("nope") is None


def test_it_says_how_late_a_claimed_job_is(ledger: Ledger, clock: Clock) -> None:
    ledger.accept(draft())
    clock.advance(61)

    assert claimed(ledger).remaining_ms == -1_000


def test_it_finishes_a_job_once(ledger: Ledger, redis: Redis) -> None:
    ledger.accept(draft())
    claimed(ledger)

    assert ledger.finish("j1", "token", DONE_WELL)
    assert ledger.finish("j1", "token", DONE_WELL)  # the first reply was lost

    job = ledger.job("j1")
    assert job is not None
    assert (job.status, job.answer, len(job.attempts)) == ("completed", ANSWER, 1)
    assert usage_kinds(redis) == [b"accepted", b"ended"]
    assert redis.get(answer_key("f1")) == ANSWER
    assert 0 < redis.pttl(answer_key("f1")) <= 5_000
    assert [fields[b"job"] for _, fields in redis.xrange(DONE)] == [b"j1"]
    assert redis.zcard(DUE) == 0


def test_it_drops_the_result_of_a_run_that_was_overtaken(ledger: Ledger, redis: Redis, clock: Clock) -> None:
    ledger.accept(draft())
    claimed(ledger, token="slow")
    clock.advance(16)
    ledger.reap("reaper:1")
    claimed(ledger, token="quick")

    assert not ledger.finish("j1", "slow", DONE_WELL)
    assert redis.get(answer_key("f1")) is None
    assert ledger.finish("j1", "quick", DONE_WELL)


def test_it_ends_every_caller_of_a_job_with_it(ledger: Ledger, redis: Redis) -> None:
    ledger.accept(draft("j1"))
    ledger.accept(draft("j2"))
    claimed(ledger)
    ledger.finish("j1", "token", DONE_WELL)

    ended = redis.xrange(USAGE)[-1][1]
    assert {asked["caller"]["id"] for asked in json.loads(ended[b"callers"])} == {"j1", "j2"}
    follower = ledger.job("j2")
    assert follower is not None
    assert (follower.status, follower.answer) == ("completed", ANSWER)


def test_it_answers_from_the_job_that_has_just_finished(redis: Redis, clock: Clock) -> None:
    ledger = Ledger(redis, LIMITS, holds_cache=False, now_ms=clock)
    ledger.accept(draft("j1"))
    claimed(ledger)
    ledger.finish("j1", "token", DONE_WELL)

    accepted = ledger.accept(draft("j2"))

    assert (accepted.kind, accepted.answer) == ("hit", ANSWER)
    assert usage_kinds(redis) == [b"accepted", b"ended", b"hit"]


def test_it_asks_again_where_the_answer_was_not_to_be_kept(ledger: Ledger) -> None:
    ledger.accept(draft("j1"))
    claimed(ledger)
    ledger.finish("j1", "token", replace(DONE_WELL, cache=None))

    assert ledger.accept(draft("j2")).kind == "leader"


def test_it_does_not_join_a_job_that_has_too_little_time_left(ledger: Ledger, clock: Clock) -> None:
    ledger.accept(draft("j1"))
    clock.advance(29)
    assert ledger.accept(draft("j2")).kind == "follower"

    clock.advance(2)
    assert ledger.accept(draft("j3")).kind == "leader"
    assert ledger.accept(draft("j4")).job_id == "j3"
    claimed(ledger, "j1")
    ledger.finish("j1", "token", DONE_WELL)
    assert ledger.accept(draft("j5")).job_id == "j3"


def test_an_interactive_query_does_not_wait_in_the_batch_queue(ledger: Ledger) -> None:
    ledger.accept(draft("j1", priority=BATCH))
    assert ledger.accept(draft("j2", priority=BATCH)).kind == "follower"
    assert ledger.accept(draft("j3")).kind == "leader"


def test_an_interactive_query_joins_a_batch_job_that_is_running(ledger: Ledger) -> None:
    ledger.accept(draft("j1", priority=BATCH))
    claimed(ledger)

    assert ledger.accept(draft("j2")).kind == "follower"


def test_an_open_job_does_not_expire_and_an_ended_one_does(ledger: Ledger, redis: Redis) -> None:
    ledger.accept(draft("j1"))
    ledger.accept(draft("j2"))
    assert redis.pttl("aqr:job:j1") == redis.pttl("aqr:callers:j1") == -1
    assert redis.pttl("aqr:job:j2") > LIMITS.keep_ms

    claimed(ledger)
    ledger.finish("j1", "token", DONE_WELL)
    assert 0 < redis.pttl("aqr:job:j1") <= LIMITS.keep_ms
    assert not redis.exists("aqr:callers:j1")


def test_a_follower_keeps_its_own_words_and_time(ledger: Ledger, clock: Clock) -> None:
    ledger.accept(draft("j1"))
    clock.advance(3)
    ledger.accept(draft("j2", payload=b'{"tenant":"t","query":{"text":"Q"}}'))

    leader, follower = ledger.job("j1"), ledger.job("j2")
    assert leader is not None
    assert follower is not None
    assert (follower.leader, follower.payload["query"]["text"]) == ("j1", "Q")
    assert follower.created_at - leader.created_at == 3_000


def test_a_full_redis_takes_nothing_in_but_ends_what_it_has(redis: Redis) -> None:
    ledger = Ledger(redis, LIMITS)
    redis.set(answer_key("f2"), ANSWER)
    ledger.accept(draft("j1"))
    redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(RedisError):
            ledger.accept(draft("j2"))
        claimed(ledger)
        assert ledger.renew("j1", "token")
        assert ledger.finish("j1", "token", DONE_WELL)
        assert ledger.find("f2", b"{}") == ANSWER
    finally:
        redis.config_set("maxmemory", 0)
    assert usage_kinds(redis) == [b"accepted", b"ended", b"hit"]
    assert ledger.unrecorded_hits() == 0


def test_hits_of_a_cache_apart_are_bounded_too(redis: Redis) -> None:
    ledger = Ledger(redis, replace(LIMITS, max_unrecorded_events=1), holds_cache=False)
    ledger.record_hit(b'{"id":"h1"}', ANSWER)
    ledger.record_hit(b'{"id":"h2"}', ANSWER)

    assert (redis.xlen(USAGE), ledger.unrecorded_hits()) == (1, 1)


def test_it_asks_again_after_a_failure(ledger: Ledger) -> None:
    ledger.accept(draft("j1"))
    claimed(ledger)
    ledger.finish("j1", "token", Ending("failed", {"tier": "simple"}, error={"code": "x"}))

    assert ledger.accept(draft("j2")).kind == "leader"


def test_it_finds_a_cached_answer_and_records_its_use(ledger: Ledger, redis: Redis) -> None:
    redis.set(answer_key("f1"), ANSWER)

    assert ledger.find("f1", b'{"id":"h1"}') == ANSWER
    assert ledger.find("f2", b'{"id":"h2"}') is None

    [(_, fields)] = redis.xrange(USAGE)
    assert (fields[b"kind"], fields[b"caller"], fields[b"answer"]) == (b"hit", b'{"id":"h1"}', b'{"tier":"simple"}')


def test_it_still_answers_hits_while_too_much_is_unrecorded(redis: Redis) -> None:
    ledger = Ledger(redis, replace(LIMITS, max_unrecorded_events=0))
    redis.set(answer_key("f1"), ANSWER)

    assert ledger.find("f1", b"{}") == ANSWER
    assert ledger.unrecorded_hits() == 1


def test_it_uses_the_servers_clock_so_that_workers_need_not_agree(redis: Redis) -> None:
    seconds, _ = redis.time()
    ledger = Ledger(redis, LIMITS)
    ledger.accept(draft())

    job = ledger.job("j1")
    assert job is not None
    assert abs(job.created_at - seconds * 1000) < 5_000


@pytest.mark.parametrize(
    ("leaders", "followers"),
    [
        ({"deadline_ms": 60_000}, {"deadline_ms": 30_000}),
        ({"start_by_ms": 5_000}, {}),
        ({}, {"start_by_ms": 5_000}),
        ({"start_by_ms": 9_000}, {"start_by_ms": 5_000}),
    ],
)
def test_nobody_joins_a_job_whose_limits_are_not_its_own(
    ledger: Ledger, leaders: dict[str, int], followers: dict[str, int]
) -> None:
    ledger.accept(draft("j1", **leaders))

    assert ledger.accept(draft("j2", **followers)).kind == "leader"


def test_it_joins_a_job_that_has_to_begin_a_little_earlier(ledger: Ledger) -> None:
    ledger.accept(draft("j1", start_by_ms=4_000))

    assert ledger.accept(draft("j2", start_by_ms=5_000)).kind == "follower"


def test_a_job_asks_for_a_message_only_where_one_is_missing(ledger: Ledger, redis: Redis) -> None:
    assert ledger.accept(draft("j1", fingerprint="f1")).needs_message
    redis.lpush("simple", "for j1")
    assert ledger.accept(draft("j2", fingerprint="f2")).needs_message
    redis.lpush("simple:9", "for j2", "of a job that was cancelled")

    assert not ledger.accept(draft("j3", fingerprint="f3")).needs_message


def test_a_keyed_hit_is_kept_as_a_job_that_has_ended(ledger: Ledger, redis: Redis) -> None:
    ledger.keep_hit(draft("j1"), ANSWER)

    job = ledger.job("j1")
    assert job is not None
    assert (job.status, job.answer, job.is_hit, job.payer) == ("completed", ANSWER, True, None)
    assert 0 < redis.pttl("aqr:job:j1") <= LIMITS.keep_ms


@pytest.mark.parametrize("end", ["cancel", "expire"])
def test_of_a_job_that_was_given_up_no_text_is_kept(ledger: Ledger, redis: Redis, clock: Clock, end: str) -> None:
    ledger.accept(draft("j1"))
    ledger.accept(draft("j2"))
    if end == "cancel":
        for job_id in ("j1", "j2"):
            ledger.cancel(ledger.job(job_id), {"tier": "simple"})  # type: ignore[arg-type]
    else:
        clock.advance(61)
        claimed(ledger)
        ledger.finish("j1", "token", Ending("expired", {"tier": "simple"}))

    assert not redis.hexists("aqr:job:j2", "payload")
    assert not redis.hexists("aqr:job:j1", "payload")
    assert [ledger.job(job_id).tenant for job_id in ("j1", "j2")] == ["t", "t"]  # type: ignore[union-attr]


def test_the_text_of_a_query_is_recorded_once_however_many_ask(ledger: Ledger, redis: Redis) -> None:
    for number in range(3):
        ledger.accept(draft(f"j{number}", text="What is AI?"))
    claimed(ledger, "j0")
    ledger.finish("j0", "token", DONE_WELL)

    ended = redis.xrange(USAGE)[-1][1]
    assert ended[b"text"] == b"What is AI?"
    assert b"What is AI?" not in ended[b"callers"]
