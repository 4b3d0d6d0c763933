"""Dead letters: kept with reason and attempts, and replayed for the callers that still wait."""

import json
from dataclasses import replace

from redis import Redis

from storage.dead_letter import DeadLetters, Filter
from storage.job import BATCH
from storage.ledger import Ending, Ledger
from storage.name import USAGE
from tests.conftest import LIMITS, Clock
from tests.ledger_case import DONE_WELL, claimed, draft


def failing(code: str = "provider_unreachable") -> Ending:
    error = {"code": code, "detail": "No target answered.", "retry_after": None}
    return Ending("failed", {"tier": "simple"}, [{"outcome": "unreachable"}], error=error, is_dead_letter=True)


def bury(ledger: Ledger, job_id: str, ending: Ending | None = None, **changes: object) -> None:
    ledger.accept(draft(job_id, fingerprint=job_id, **changes))
    claimed(ledger, job_id, f"token-{job_id}")
    ledger.finish(job_id, f"token-{job_id}", ending or failing())


def test_a_job_that_failed_is_listed_with_reason_and_attempts(ledger: Ledger) -> None:
    bury(ledger, "j1")

    [letter] = DeadLetters(ledger).find(Filter(), 10)
    assert (letter.id, letter.status) == ("j1", "failed")
    assert letter.error is not None
    assert letter.error["code"] == "provider_unreachable"
    assert [attempt["outcome"] for attempt in letter.attempts] == ["unreachable"]


def test_an_answered_job_is_not(ledger: Ledger) -> None:
    bury(ledger, "j1", DONE_WELL)

    assert DeadLetters(ledger).find(Filter(), 10) == []
    assert ledger.replay("j1", 60_000) is None


def test_they_are_found_by_tenant_tier_code_and_time(ledger: Ledger, clock: Clock) -> None:
    letters = DeadLetters(ledger)
    bury(ledger, "a1", tenant="a")
    clock.advance(1)
    bury(ledger, "b1", failing("provider_throttled"), tenant="b")

    def ids(**wanted: object) -> list[str]:
        return [job.id for job in letters.find(Filter(**wanted), 10)]  # type: ignore[arg-type]

    assert ids() == ["b1", "a1"]
    assert ids(tenant="a") == ["a1"]
    assert ids(code="provider_throttled") == ["b1"]
    assert ids(tier="complex") == []
    assert ids(before=clock.ms) == ["a1"]
    assert letters.get("b1", "a") is letters.get("nope") is None


def test_a_replayed_job_runs_again_for_all_its_callers(ledger: Ledger, redis: Redis, clock: Clock) -> None:
    ledger.accept(draft("j1", priority=BATCH))
    ledger.accept(draft("j2", priority=BATCH))
    claimed(ledger)
    ledger.finish("j1", "token", failing())
    clock.advance(300)

    assert ledger.replay("j1", 60_000) == ("simple", BATCH)
    assert ledger.replay("j1", 60_000) is None
    job = ledger.job("j1")
    assert job is not None
    assert (job.status, job.error, job.replays, len(job.attempts)) == ("queued", None, 1, 1)
    assert claimed(ledger, "j1", "again").remaining_ms == 60_000
    assert ledger.finish("j1", "again", replace(DONE_WELL, cache=None))

    assert [ledger.job(j).status for j in ("j1", "j2")] == ["completed", "completed"]  # type: ignore[union-attr]
    ended = redis.xrange(USAGE)[-1][1]
    assert ended[b"replays"] == b"1"
    assert len(json.loads(ended[b"callers"])) == 2
    assert len(json.loads(ended[b"attempts"])) == 2
    assert DeadLetters(ledger).count() == 0


def test_a_replay_that_fails_is_a_dead_letter_again(ledger: Ledger) -> None:
    bury(ledger, "j1")
    ledger.replay("j1", 60_000)
    claimed(ledger, "j1", "again")
    ledger.finish("j1", "again", failing())

    assert [job.replays for job in DeadLetters(ledger).find(Filter(), 10)] == [1]


def test_the_oldest_go_when_there_are_too_many(ledger: Ledger, clock: Clock) -> None:
    for number in range(LIMITS.max_dead_letters + 3):
        clock.advance(1)
        bury(ledger, f"j{number:02}")

    kept = [job.id for job in DeadLetters(ledger).find(Filter(), 100)]
    assert len(kept) == LIMITS.max_dead_letters
    assert kept[-1] == "j03"


def test_no_tenant_pushes_out_anothers(ledger: Ledger) -> None:
    bury(ledger, "b1", tenant="b")
    for number in range(LIMITS.max_dead_letters + 3):
        bury(ledger, f"a{number:02}", tenant="a")

    letters = DeadLetters(ledger)
    assert [job.id for job in letters.find(Filter(tenant="b"), 10)] == ["b1"]
    assert letters.count() == LIMITS.max_dead_letters + 1


def test_a_dropped_letter_is_not_replayed(ledger: Ledger) -> None:
    bury(ledger, "j1")

    letters = DeadLetters(ledger)
    job = letters.get("j1")
    assert job is not None
    assert [letters.drop(job), letters.drop(job), letters.get("j1")] == [True, False, None]
    assert ledger.replay("j1", 60_000) is None


def test_a_letter_is_kept_for_its_time(ledger: Ledger, redis: Redis) -> None:
    bury(ledger, "j1")

    for name in ("aqr:job:j1", "aqr:callers:j1", "aqr:attempts:j1", "aqr:dead:t"):
        assert LIMITS.keep_ms < redis.pttl(name) <= LIMITS.keep_dead_ms


def test_what_is_replayed_between_two_looks_is_none_any_more(ledger: Ledger, redis: Redis) -> None:
    bury(ledger, "j1")
    redis.hset("aqr:job:j1", "status", "queued")  # the list was read just before

    assert DeadLetters(ledger).find(Filter(), 10) == []
    assert DeadLetters(ledger).get("j1") is None
