"""Admission: one word on whether a lane may be called now, the same for all workers."""

import threading
from collections.abc import Callable

import pytest
from redis import Redis

from routing.lane import CallReport, Grant, Lane, RateLimits, Wait
from routing.query import Target
from storage.admission import Admission, AdmissionLimits
from storage.connection import hot_client
from storage.ledger import USAGE
from tests.conftest import Clock

SMALL, LARGE = Target("groq", "openai/gpt-oss-20b"), Target("groq", "openai/gpt-oss-120b")
QWEN = Target("together", "Qwen/Qwen3.5-9B")
FIRST, SECOND, OTHER = Lane(SMALL, "aaaaaaaa"), Lane(SMALL, "bbbbbbbb"), Lane(QWEN, "cccccccc")
SIBLING = Lane(LARGE, "aaaaaaaa")
LIMITS = AdmissionLimits(max_in_flight=64, breaker_failures=3, breaker_open_ms=15_000)
NEUTRAL = ("prompt_too_long", "query_rejected", "aborted")
FAILURES = ("overloaded", "unreachable", "timed_out", "reply_unusable")

Maker = Callable[..., Admission]


@pytest.fixture
def make(redis: Redis, clock: Clock) -> Maker:
    """The admission of one more worker."""
    return lambda limits=LIMITS: Admission(redis, limits, now_ms=clock)


@pytest.fixture
def admission(make: Maker) -> Admission:
    return make()


def ok(latency_ms: float = 100) -> CallReport:
    return CallReport("ok", latency_ms, 50)


def failed(outcome: str, **more: object) -> CallReport:
    return CallReport(outcome, 100, **more)  # type: ignore[arg-type]


def granted(admission: Admission, *lanes: Lane, tokens: int = 100) -> Grant:
    leave = admission.admit(lanes or [FIRST], tokens)
    assert isinstance(leave, Grant), leave
    return leave


def refused(admission: Admission, *lanes: Lane, tokens: int = 100) -> Wait:
    leave = admission.admit(lanes or [FIRST], tokens)
    assert isinstance(leave, Wait), leave
    return leave


def open_breaker(admission: Admission, lane: Lane = FIRST) -> None:
    for _ in range(LIMITS.breaker_failures):
        admission.settle(granted(admission, lane), failed("overloaded"))


def alerts(redis: Redis) -> list[str]:
    return [fields[b"alert"].decode() for _, fields in redis.xrange(USAGE)]


def count_grants(admission: Admission, clock: Clock, seconds: float, lane: Lane = FIRST) -> int:
    """Calls granted to one who asks every 5 ms, each answered at once."""
    grants = 0
    for _ in range(int(seconds * 200)):
        leave = admission.admit([lane], 100)
        if isinstance(leave, Grant):
            grants += 1
            admission.settle(leave, ok())
        clock.advance(0.005)
    return grants


# In flight


def test_it_grants_the_first_lane_that_is_free(make: Maker) -> None:
    admission = make(AdmissionLimits(max_in_flight=1))

    assert [granted(admission, FIRST, SECOND, OTHER).lane for _ in range(3)] == [FIRST, SECOND, OTHER]
    wait = refused(admission, FIRST, SECOND, OTHER)
    assert wait.reason == "busy"
    assert 0 < wait.seconds < 1


def test_a_ticket_given_back_makes_room_for_all_workers(make: Maker) -> None:
    limits = AdmissionLimits(max_in_flight=1)
    grant = granted(make(limits))
    refused(make(limits))

    make(limits).settle(grant, ok())

    granted(make(limits))


def test_the_ticket_of_a_dead_worker_runs_out(make: Maker, clock: Clock) -> None:
    limits = AdmissionLimits(max_in_flight=1)
    granted(make(limits))
    clock.advance(29.9)
    refused(make(limits))
    clock.advance(0.2)

    granted(make(limits))


def test_a_living_worker_keeps_its_tickets_and_no_others(make: Maker, clock: Clock) -> None:
    living, dead = (make(AdmissionLimits(max_in_flight=1)) for _ in range(2))
    granted(living, FIRST)
    granted(dead, SECOND)
    for _ in range(10):
        clock.advance(8)
        living.beat()

    assert refused(living, FIRST)
    assert granted(living, SECOND)


def test_a_beat_does_not_bring_back_what_was_given_back(make: Maker, clock: Clock) -> None:
    living, other = (make(AdmissionLimits(max_in_flight=1)) for _ in range(2))
    grant = granted(living)
    other.settle(grant, ok())  # as if settle came between the beat's look and its call
    living.beat()

    assert living.states([FIRST])[FIRST].in_flight == 0


# Throttled without a word: the limit in flight is learned


def burst(admission: Admission, size: int) -> list[Grant]:
    return [granted(admission) for _ in range(size)]


def test_a_burst_that_is_throttled_teaches_how_many_the_provider_carried(admission: Admission, clock: Clock) -> None:
    grants = burst(admission, 48)
    for grant in grants[16:]:
        admission.settle(grant, failed("throttled"))

    assert admission.states([FIRST])[FIRST].limit == 16
    clock.advance(1)
    assert refused(admission).reason == "busy"
    for grant in grants[:16]:
        admission.settle(grant, ok())
    burst(admission, 16)
    assert refused(admission).reason == "busy"


def test_one_burst_never_cuts_the_limit_below_a_quarter(admission: Admission) -> None:
    for grant in burst(admission, 48):
        admission.settle(grant, failed("throttled"))

    assert admission.states([FIRST])[FIRST].limit == 12


def test_the_limit_grows_again_only_where_it_is_used(admission: Admission, clock: Clock) -> None:
    for number, grant in enumerate(burst(admission, 8)):
        admission.settle(grant, failed("throttled") if number >= 4 else ok())
    assert admission.states([FIRST])[FIRST].limit == 4
    for _ in range(20):
        clock.advance(1)
        admission.settle(granted(admission), ok())
    assert admission.states([FIRST])[FIRST].limit == 4

    for _ in range(20):
        clock.advance(1)
        for grant in burst(admission, admission.states([FIRST])[FIRST].limit):
            admission.settle(grant, ok())
    assert 6 <= admission.states([FIRST])[FIRST].limit <= 20


def test_growth_that_goes_too_far_is_taken_back_and_tried_later(admission: Admission, clock: Clock) -> None:
    """A provider that carries 4: each try of a fifth costs one throttled call, and they become rarer."""
    tries = []
    for second in range(120):
        clock.advance(1)
        leaves = [admission.admit([FIRST], 1) for _ in range(8)]
        grants = [leave for leave in leaves if isinstance(leave, Grant)]
        tries += [second] * (len(grants) > 4)
        for number, grant in enumerate(grants):
            admission.settle(grant, failed("throttled") if number >= 4 else ok())

    assert admission.states([FIRST])[FIRST].limit in (4, 5)
    assert 2 <= len(tries) <= 7
    assert tries[-1] - tries[-2] > 2 * (tries[2] - tries[1])


# Pauses


@pytest.mark.parametrize(
    ("report", "seconds"),
    [
        (failed("throttled", retry_after_s=20.0), 20),
        (failed("throttled", retry_after_s=9999.0), 300),
        (failed("throttled", limits=RateLimits(tokens_limit=100, tokens_remaining=0, tokens_reset_s=7.5)), 7.5),
        (failed("throttled"), 0.1),
    ],
    ids=["Retry-After", "no longer than five minutes", "reset of what is used up", "nothing said"],
)
def test_a_throttled_lane_is_paused_for_all(make: Maker, clock: Clock, report: CallReport, seconds: float) -> None:
    make().settle(granted(make()), report)

    wait = refused(make())
    assert wait.reason == "paused"
    assert wait.seconds == pytest.approx(seconds, abs=0.2)
    assert granted(make(), FIRST, SECOND).lane == SECOND
    clock.advance(seconds - 0.05)
    refused(make())
    clock.advance(0.1)
    assert granted(make()).lane == FIRST


def test_a_lane_throttled_again_and_again_without_a_word_is_paused_ever_longer(
    admission: Admission, clock: Clock
) -> None:
    pauses = []
    for _ in range(16):
        admission.settle(granted(admission), failed("throttled"))
        pauses.append(admission.states([FIRST])[FIRST].until - clock.ms)  # type: ignore[operator]
        clock.ms += pauses[-1]

    assert pauses[:4] == [100, 200, 400, 800]
    assert pauses[-1] == 300_000


# Redis away


def test_without_redis_the_first_lane_is_granted_and_nothing_raises() -> None:
    admission = Admission(hot_client("redis://127.0.0.1:1/0"), LIMITS)

    grant = granted(admission, FIRST, SECOND)
    admission.settle(grant, failed("throttled"))
    admission.beat()

    assert grant == Grant(FIRST, "")
    assert admission.gone([SMALL]) == frozenset()
    assert admission.states([FIRST]) == {}


def test_a_call_that_was_granted_without_redis_still_teaches(admission: Admission) -> None:
    admission.settle(Grant(FIRST, ""), failed("throttled", retry_after_s=20.0))

    assert refused(admission).reason == "paused"


# All together


def test_many_askers_get_no_more_than_the_limit(redis: Redis) -> None:
    limits, grants = AdmissionLimits(max_in_flight=7), []
    workers = [Admission(redis, limits) for _ in range(24)]
    threads = [
        threading.Thread(target=lambda worker=worker: grants.append(worker.admit([FIRST], 1))) for worker in workers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(isinstance(leave, Grant) for leave in grants) == 7


def test_those_who_wait_are_told_moments_one_after_the_other(make: Maker) -> None:
    admission = make(AdmissionLimits({"groq": 600}))
    granted(admission)

    waits = [refused(admission).seconds for _ in range(5)]

    assert waits == sorted(waits)
    assert waits[-1] - waits[0] == pytest.approx(4 * 0.102, abs=0.01)


def test_every_key_expires_by_itself(admission: Admission, redis: Redis, clock: Clock) -> None:
    open_breaker(admission)
    admission.settle(granted(admission, SECOND), failed("key_rejected"))
    admission.settle(granted(admission, OTHER), failed("model_gone"))
    granted(admission, SIBLING)

    assert {key: redis.ttl(key) for key in redis.keys("aqr:*") if key != USAGE.encode() and redis.ttl(key) < 0} == {}


def test_states_say_how_each_lane_stands(admission: Admission, clock: Clock) -> None:
    granted(admission, SIBLING)
    open_breaker(admission, FIRST)
    admission.settle(granted(admission, OTHER), failed("throttled", retry_after_s=20.0))

    states = admission.states([FIRST, SIBLING, OTHER])

    assert (states[FIRST].state, states[FIRST].until, states[FIRST].failures) == ("open", clock.ms + 15_000, 3)
    assert (states[SIBLING].state, states[SIBLING].in_flight, states[SIBLING].limit) == ("closed", 1, 64)
    assert (states[OTHER].state, states[OTHER].until) == ("paused", clock.ms + 20_000)
    clock.advance(15)
    assert admission.states([FIRST])[FIRST].state == "half_open"
