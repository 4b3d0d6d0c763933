"""Breakers of lanes and keys, models that are gone, and the alerts about them."""

import threading

import pytest
from redis import Redis

from routing.lane import Grant
from storage.admission import Admission, AdmissionLimits
from storage.event import rows_of
from storage.ledger import USAGE
from tests.conftest import Clock
from tests.test_admission import (
    FAILURES,
    FIRST,
    LIMITS,
    NEUTRAL,
    OTHER,
    SECOND,
    SIBLING,
    SMALL,
    Maker,
    admission,
    alerts,
    failed,
    granted,
    make,
    ok,
    open_breaker,
    refused,
)

__all__ = ["admission", "make"]  # fixtures


@pytest.mark.parametrize("outcome", FAILURES)
def test_failures_in_a_row_open_the_lane(admission: Admission, clock: Clock, outcome: str) -> None:
    for _ in range(LIMITS.breaker_failures):
        admission.settle(granted(admission), failed(outcome))

    wait = refused(admission)
    assert (wait.reason, wait.seconds) == ("broken", 15)
    assert granted(admission, FIRST, SIBLING).lane == SIBLING


def test_a_success_in_between_starts_the_count_again(admission: Admission) -> None:
    for outcome in ("overloaded", "overloaded", "ok", "overloaded", "overloaded"):
        admission.settle(granted(admission), failed(outcome))

    granted(admission)


@pytest.mark.parametrize("outcome", NEUTRAL)
def test_what_is_the_querys_fault_is_not_the_lanes(admission: Admission, outcome: str) -> None:
    for _ in range(10):
        admission.settle(granted(admission), failed(outcome))

    state = admission.states([FIRST])[FIRST]
    assert (state.state, state.failures, state.in_flight) == ("closed", 0, 0)


def test_one_of_many_askers_is_the_probe(redis: Redis) -> None:
    workers = [Admission(redis, AdmissionLimits(breaker_failures=1, breaker_open_ms=1)) for _ in range(16)]
    workers[0].settle(granted(workers[0]), failed("overloaded"))
    start, leaves = threading.Barrier(len(workers)), []

    def ask(worker: Admission) -> None:
        start.wait()
        leaves.append(worker.admit([FIRST], 1))

    threads = [threading.Thread(target=ask, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    grants = [leave for leave in leaves if isinstance(leave, Grant)]
    assert [grant.is_probe for grant in grants] == [True]


def test_a_probe_that_succeeds_closes_the_breaker(admission: Admission, clock: Clock) -> None:
    open_breaker(admission)
    clock.advance(15)
    admission.settle(granted(admission), ok())

    assert [granted(admission).is_probe for _ in range(2)] == [False, False]
    assert admission.states([FIRST])[FIRST].failures == 0


def test_a_breaker_stays_open_twice_as_long_each_time_up_to_five_minutes(admission: Admission, clock: Clock) -> None:
    open_breaker(admission)
    waits = []
    for _ in range(7):
        waits.append(refused(admission).seconds)
        clock.advance(waits[-1])
        probe = granted(admission)
        assert probe.is_probe
        admission.settle(probe, failed("unreachable"))

    assert waits == [15, 30, 60, 120, 240, 300, 300]


@pytest.mark.parametrize("outcome", [*NEUTRAL, "throttled"])
def test_a_probe_that_says_nothing_leaves_room_for_the_next(admission: Admission, clock: Clock, outcome: str) -> None:
    open_breaker(admission)
    clock.advance(15)
    admission.settle(granted(admission), failed(outcome))
    clock.advance(1)

    assert granted(admission).is_probe


def test_a_probe_whose_worker_died_is_followed_by_another(make: Maker, clock: Clock) -> None:
    open_breaker(make())
    clock.advance(15)
    assert granted(make()).is_probe
    clock.advance(29)
    assert refused(make()).reason == "broken"
    clock.advance(1)

    assert granted(make()).is_probe


def test_a_slow_probe_stays_the_only_one(make: Maker, clock: Clock) -> None:
    prober = make()
    open_breaker(prober)
    clock.advance(15)
    granted(prober)
    for _ in range(8):
        clock.advance(10)
        prober.beat()

    assert refused(make()).reason == "broken"


def test_calls_from_before_the_breaker_opened_decide_nothing(admission: Admission, clock: Clock) -> None:
    early, late = granted(admission), granted(admission)
    open_breaker(admission)
    admission.settle(early, ok())
    admission.settle(late, failed("overloaded"))

    assert refused(admission).seconds == 15


def test_a_rejected_key_is_left_alone_in_all_its_lanes(admission: Admission, clock: Clock) -> None:
    admission.settle(granted(admission, FIRST), failed("key_rejected"))

    assert refused(admission, FIRST, SIBLING).seconds == 60
    assert granted(admission, FIRST, SIBLING, SECOND).lane == SECOND
    assert admission.states([SIBLING])[SIBLING].state == "key_rejected"
    clock.advance(60)
    probe = granted(admission, SIBLING)
    assert probe.is_probe
    assert refused(admission, FIRST).reason == "broken"
    admission.settle(probe, failed("key_rejected"))
    assert refused(admission, FIRST).seconds == 120
    clock.advance(120)
    admission.settle(granted(admission, FIRST), ok())
    assert not granted(admission, SIBLING).is_probe


def test_a_model_that_is_gone_is_left_alone_for_an_hour(make: Maker, clock: Clock) -> None:
    admission = make()
    admission.settle(granted(admission), failed("model_gone"))

    assert make().gone([SMALL, OTHER.target]) == {SMALL}
    assert admission.gone([SMALL]) == {SMALL}
    assert refused(admission, FIRST, SECOND).reason == "broken"
    assert granted(admission, FIRST, SIBLING).lane == SIBLING
    clock.advance(3600)
    granted(admission)


def test_what_is_gone_is_asked_once_in_two_seconds(admission: Admission, redis: Redis) -> None:
    admission.gone([SMALL])
    before = redis.info("commandstats")["cmdstat_mget"]["calls"]
    for _ in range(50):
        admission.gone([SMALL])

    assert redis.info("commandstats")["cmdstat_mget"]["calls"] == before


# Alerts


def test_each_change_is_told_once(admission: Admission, redis: Redis, clock: Clock) -> None:
    open_breaker(admission)
    clock.advance(15)
    admission.settle(granted(admission), failed("overloaded"))  # still open: no news
    clock.advance(30)
    admission.settle(granted(admission), ok())
    admission.settle(granted(admission, SECOND), failed("key_rejected"))
    clock.advance(60)
    admission.settle(granted(admission, SECOND), ok())
    admission.settle(granted(admission, OTHER), failed("model_gone"))

    assert alerts(redis) == ["breaker_opened", "breaker_closed", "key_rejected", "key_restored", "model_gone"]


@pytest.mark.parametrize(
    ("outcome", "alert"),
    [("overloaded", "breaker_opened"), ("key_rejected", "key_rejected"), ("model_gone", "model_gone")],
)
def test_what_many_workers_find_at_once_is_told_once(redis: Redis, outcome: str, alert: str) -> None:
    workers = [Admission(redis, LIMITS) for _ in range(16)]
    grants = [granted(worker) for worker in workers]
    threads = [
        threading.Thread(target=worker.settle, args=(grant, failed(outcome)))
        for worker, grant in zip(workers, grants, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert alerts(redis) == [alert]


def test_a_full_stream_takes_no_alert(make: Maker, redis: Redis) -> None:
    redis.xadd(USAGE, {"kind": "other"})
    admission = make(AdmissionLimits(max_unrecorded_events=1))
    admission.settle(granted(admission), failed("model_gone"))

    assert redis.xlen(USAGE) == 1
    assert admission.gone([SMALL]) == {SMALL}


def test_an_alert_becomes_one_event_the_same_every_time(admission: Admission, redis: Redis, clock: Clock) -> None:
    admission.settle(granted(admission), failed("key_rejected"))
    [(_, fields)] = redis.xrange(USAGE)
    entry = {name.decode(): value for name, value in fields.items()}

    rows = rows_of([entry])

    [event] = rows.events
    assert (rows.opened, rows.ended, rows.attempts) == ([], [], [])
    assert (event["type"], event["topic"], event["key"]) == (
        "provider.key_rejected",
        "router.query-analytics",
        str(SMALL),
    )
    assert event["event_id"] == f"{SMALL}#aaaaaaaa.key_rejected.{clock.ms}"
    facts = {name: event["payload"][name] for name in ("provider", "model", "key_id", "reason", "until_ms")}
    assert facts == {
        "provider": "groq",
        "model": "openai/gpt-oss-20b",
        "key_id": "aaaaaaaa",
        "reason": "key_rejected",
        "until_ms": clock.ms + 60_000,
    }
    assert rows_of([entry]).events == rows.events
