"""The reaper rings, ends and retries; the loops around it outlive Redis and bugs."""

import json
import threading
from dataclasses import replace

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from storage.job import BATCH
from storage.ledger import Ledger
from storage.line import Lines
from storage.presence import Presence
from tasks.lease import LeaseKeeper
from tasks.periodic import Periodic
from tasks.reaper import Reaper
from tests.conftest import LIMITS, Clock
from tests.ledger_case import claimed, draft


class Doorbell:
    """Keeps what was rung; fails while `is_broken`."""

    def __init__(self) -> None:
        self.rung: list[tuple[str, str, int, int]] = []
        self.is_broken = False

    def ring(self, job_id: str, tier: str, priority: int, run: int = 0) -> None:
        if self.is_broken:
            raise RedisConnectionError("away")
        self.rung.append((job_id, tier, priority, run))


@pytest.fixture
def doorbell() -> Doorbell:
    return Doorbell()


@pytest.fixture
def reaper(ledger: Ledger, redis: Redis, doorbell: Doorbell) -> Reaper:
    return Reaper(ledger, doorbell, Presence(redis))  # type: ignore[arg-type]


def accept(ledger: Ledger, job_id: str, deadline_ms: int = 600_000) -> None:
    payload = {"tenant": "t", "query": {"text": "q"}, "routing": {"score": 0, "words": 1}}
    changes = {"fingerprint": job_id, "priority": BATCH, "deadline_ms": deadline_ms}
    ledger.accept(draft(job_id, payload=json.dumps(payload).encode(), **changes))


def test_it_rings_for_a_job_whose_worker_died(ledger: Ledger, reaper: Reaper, doorbell: Doorbell, clock: Clock) -> None:
    accept(ledger, "j1")
    ledger.claim("simple", "token", "w")
    clock.advance(16)
    reaper.run()

    assert doorbell.rung == [("j1", "simple", 9, 1)]


def test_it_ends_a_job_that_took_every_worker_with_it(
    ledger: Ledger, reaper: Reaper, doorbell: Doorbell, clock: Clock
) -> None:
    accept(ledger, "j1")
    for run in range(LIMITS.max_runs):
        ledger.claim("simple", f"t{run}", "w")
        clock.advance(16)
        reaper.run()

    job = ledger.job("j1")
    assert job is not None
    assert job.error is not None
    assert (job.status, job.error["code"]) == ("dead", "dead")
    assert len(doorbell.rung) == LIMITS.max_runs - 1


def test_it_ends_a_job_at_its_deadline(ledger: Ledger, reaper: Reaper, clock: Clock) -> None:
    accept(ledger, "j1", deadline_ms=5_000)
    clock.advance(6)
    reaper.run()

    job = ledger.job("j1")
    assert job is not None
    assert job.status == "expired"


def test_it_looks_after_more_jobs_than_one_batch(
    ledger: Ledger, reaper: Reaper, doorbell: Doorbell, clock: Clock, redis: Redis
) -> None:
    roomy = Ledger(redis, replace(LIMITS, max_queue_depth=1_000, max_tenant_queue_depth=1_000), now_ms=clock)
    for n in range(450):
        accept(roomy, f"j{n}", deadline_ms=5_000)
    clock.advance(6)
    reaper.run()

    assert Lines(redis).depths(["simple"])["simple"] == {"queued": 0, "running": 0}


def test_it_rings_again_when_the_broker_is_back(
    ledger: Ledger, reaper: Reaper, doorbell: Doorbell, clock: Clock
) -> None:
    accept(ledger, "j1")
    doorbell.is_broken = True
    clock.advance(11)
    reaper.run()
    doorbell.is_broken = False
    clock.advance(11)
    reaper.run()

    assert doorbell.rung == [("j1", "simple", 9, 0)]


def test_only_the_leader_reaps(ledger: Ledger, redis: Redis, doorbell: Doorbell, clock: Clock) -> None:
    accept(ledger, "j1")
    clock.advance(11)
    first, second = (Reaper(ledger, doorbell, Presence(redis)) for _ in range(2))  # type: ignore[arg-type]
    assert Presence(redis).lead("reaper", "somebody else", 60_000)
    first.run()
    second.run()
    assert doorbell.rung == []

    redis.delete("aqr:leader:reaper")
    first.run()
    second.run()
    assert len(doorbell.rung) == 1


def test_a_run_whose_lease_is_lost_is_told(ledger: Ledger, clock: Clock, reaper: Reaper) -> None:
    accept(ledger, "j1")
    leases = LeaseKeeper(ledger)
    signal = leases.hold(claimed(ledger))
    leases.renew()
    assert not signal.is_aborted

    clock.advance(16)
    reaper.run()
    leases.renew()
    assert signal.is_aborted


def test_only_the_run_of_a_cancelled_job_is_told(ledger: Ledger) -> None:
    leases = LeaseKeeper(ledger)
    accept(ledger, "j1")
    accept(ledger, "j2")
    first, second = leases.hold(claimed(ledger, "j1", "t1")), leases.hold(claimed(ledger, "j2", "t2"))

    leases.abort("j2")
    assert (first.is_aborted, second.is_aborted) == (False, True)


def test_it_ends_a_cancelled_job_whose_worker_died(ledger: Ledger, reaper: Reaper, clock: Clock) -> None:
    accept(ledger, "j1")
    claimed(ledger)
    ledger.cancel(ledger.job("j1"), {"tier": "simple"})  # type: ignore[arg-type]
    clock.advance(16)
    reaper.run()

    assert ledger.job("j1").status == "cancelled"  # type: ignore[union-attr]


@pytest.mark.parametrize("error", [RedisConnectionError("away"), ValueError("a bug")])
def test_a_loop_outlives_errors(error: Exception) -> None:
    calls: list[int] = []
    done = threading.Event()

    def act() -> None:
        calls.append(1)
        if len(calls) < 3:
            raise error
        done.set()

    loop = Periodic("test", 0.01, act)
    loop.start()
    assert done.wait(5)
    loop.stop()
