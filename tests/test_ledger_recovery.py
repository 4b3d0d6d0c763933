"""What the ledger does about workers that die, messages that get lost and accepts that are taken back."""

import pytest
from redis import Redis

from storage.ledger import Ending, Ledger
from storage.line import Lines
from storage.name import DUE
from tests.conftest import LIMITS, Clock
from tests.ledger_case import claimed, draft


def test_it_keeps_a_renewed_lease_from_the_reaper(ledger: Ledger, clock: Clock) -> None:
    ledger.accept(draft())
    claimed(ledger)
    clock.advance(14)
    assert ledger.renew("j1", "token")
    clock.advance(14)

    assert [verdict.kind for verdict in ledger.reap("reaper:1")] == []


def test_it_does_not_renew_what_another_holds(ledger: Ledger) -> None:
    ledger.accept(draft())
    claimed(ledger)

    assert not ledger.renew("j1", "other")


def test_it_puts_a_dead_workers_job_back_in_its_place(ledger: Ledger, clock: Clock) -> None:
    ledger.accept(draft("j1"))
    ledger.accept(draft("j2", fingerprint="f2"))
    claimed(ledger, "j1")
    clock.advance(16)

    [verdict] = [v for v in ledger.reap("reaper:1") if v.job_id == "j1"]

    assert (verdict.kind, verdict.tier, verdict.run) == ("ring", "simple", 1)
    job = ledger.job("j1")
    assert job is not None
    assert job.attempts[0]["outcome"] == "worker_lost"
    assert Lines(ledger.client).position(job) == 1
    assert claimed(ledger, "j1", "second").run == 2


def test_it_gives_a_job_up_after_its_last_run(ledger: Ledger, clock: Clock) -> None:
    ledger.accept(draft(deadline_ms=600_000))
    for run in range(LIMITS.max_runs):
        claimed(ledger, token=f"run{run}")
        clock.advance(16)
        [verdict] = ledger.reap("reaper:1")

    assert verdict.kind == "dead"
    assert ledger.finish("j1", "reaper:1", Ending("dead", {"tier": "simple"}, error={"code": "dead"}))
    job = ledger.job("j1")
    assert job is not None
    assert (job.status, len(job.attempts)) == ("dead", LIMITS.max_runs)


def test_it_finds_a_dead_reapers_job_again(ledger: Ledger, clock: Clock) -> None:
    ledger.accept(draft())
    clock.advance(61)
    assert ledger.reap("reaper:1")[0].kind == "expired"
    assert ledger.reap("reaper:2") == []
    clock.advance(16)

    assert ledger.reap("reaper:2")[0].kind == "expired"
    assert ledger.finish("j1", "reaper:2", Ending("expired", {"tier": "simple"}))
    assert ledger.job("j1").attempts == []  # type: ignore[union-attr]


def test_it_rings_again_only_where_the_queue_has_lost_a_message(ledger: Ledger, redis: Redis, clock: Clock) -> None:
    ledger.accept(draft())
    redis.lpush("simple", "the message")
    clock.advance(11)
    assert [v.kind for v in ledger.reap("reaper:1")] == ["early"]

    redis.delete("simple")
    clock.advance(11)
    assert [v.kind for v in ledger.reap("reaper:1")] == ["ring"]


def test_it_forgets_due_jobs_that_no_longer_exist(ledger: Ledger, redis: Redis) -> None:
    redis.zadd(DUE, {"ghost": 1})

    assert [v.kind for v in ledger.reap("reaper:1")] == ["gone"]
    assert redis.zcard(DUE) == 0


def test_it_withdraws_a_job_that_never_arrived(ledger: Ledger) -> None:
    assert ledger.withdraw("nope")


def test_it_withdraws_a_job_nobody_relies_on(ledger: Ledger, redis: Redis) -> None:
    ledger.accept(draft("j1"))

    assert ledger.withdraw("j1")
    assert ledger.job("j1") is None
    assert ledger.accept(draft("j2")).kind == "leader"
    assert Lines(ledger.client).depths(["simple"])["simple"]["queued"] == 1


@pytest.mark.parametrize("happened", ["joined", "claimed"])
def test_it_keeps_a_job_that_others_rely_on(ledger: Ledger, happened: str) -> None:
    ledger.accept(draft("j1"))
    if happened == "joined":
        ledger.accept(draft("j2"))
    else:
        claimed(ledger)

    assert not ledger.withdraw("j1")
    assert ledger.job("j1") is not None


def test_what_was_withdrawn_before_it_came_stays_out(ledger: Ledger) -> None:
    assert ledger.withdraw("j1")

    assert ledger.accept(draft("j1")).kind == "withdrawn"
    assert ledger.claim("simple", "token", "worker") is None
    assert ledger.accept(draft("j2")).kind == "leader"


def test_it_does_not_withdraw_what_another_caller_was_left_with(ledger: Ledger) -> None:
    ledger.accept(draft("j1"))
    ledger.accept(draft("j2"))
    ledger.cancel(ledger.job("j1"), {"tier": "simple"})  # type: ignore[arg-type]

    assert not ledger.withdraw("j1")
    assert ledger.job("j2").status == "queued"  # type: ignore[union-attr]


def test_it_does_not_withdraw_what_has_run(ledger: Ledger, clock: Clock) -> None:
    ledger.accept(draft())
    claimed(ledger)
    clock.advance(16)
    ledger.reap("reaper:1")

    assert not ledger.withdraw("j1")


def test_a_run_that_hangs_past_its_deadline_is_ended(ledger: Ledger, clock: Clock) -> None:
    """Its lease is renewed by another thread, which cannot know."""
    ledger.accept(draft(deadline_ms=20_000))
    claimed(ledger)
    for _ in range(9):
        clock.advance(4)
        ledger.renew("j1", "token")
    clock.advance(15)

    assert [verdict.kind for verdict in ledger.reap("reaper:1")] == ["expired"]


def test_a_clock_that_was_set_back_keeps_no_job(ledger: Ledger, clock: Clock) -> None:
    ledger.accept(draft("j1"))
    ledger.accept(draft("j2", fingerprint="f2"))
    claimed(ledger)
    clock.advance(-3600)  # the worker of j1 has died, the message of j2 is lost

    rung: set[str] = set()
    for _ in range(3):
        rung |= {verdict.job_id for verdict in ledger.reap("reaper:1") if verdict.kind == "ring"}
        clock.advance(16)
    assert rung == {"j1", "j2"}
    clock.advance(60)
    assert {verdict.kind for verdict in ledger.reap("reaper:1")} == {"expired"}
