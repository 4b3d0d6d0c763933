"""Hedging: a second target beside a slow first, one answer, both calls on record, and no thread left over."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from providers.abort import AbortSignal
from providers.admission import Errand
from providers.caller import Caller
from providers.chain import Chain, Outcome
from providers.hedge import FEWEST_LATENCIES, KEPT_LATENCIES, Latencies, Second
from routing.catalogue import load_catalogue
from routing.errors import AllTargetsFailed, CallAborted, QueryRejected
from routing.lane import Wait
from routing.query import Query
from tests.chain_rig import GROQ, LOCAL, SIMPLE, TOGETHER, Rig, wait_until
from tests.fake_provider import FakeProvider, Fault

USUAL_MS = 60.0


@pytest.fixture
def rig() -> Iterator[Rig]:
    with FakeProvider() as fake:
        yield Rig(fake)
        wait_until(lambda: not hedges())


def hedges() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "hedge"]


def chain_that_knows_groq(rig: Rig, latencies: int = FEWEST_LATENCIES) -> Chain:
    chain = rig.chain(hedging=True)
    assert chain.latencies is not None
    for _ in range(latencies):
        chain.latencies.add(GROQ, USUAL_MS)
    return chain


def ask(chain: Chain, *, is_interactive: bool = True, seconds: float = 5, signal: AbortSignal | None = None) -> Outcome:
    deadline = time.monotonic() + seconds
    return chain.answer(Query("hello"), SIMPLE, deadline=deadline, is_interactive=is_interactive, signal=signal)


def story(outcome: Outcome) -> list[tuple[int, str, str, str]]:
    return [(attempt.number, attempt.provider, attempt.outcome, attempt.billing) for attempt in outcome.attempts]


def test_a_slow_target_is_overtaken_by_the_next_and_its_call_is_ended(rig: Rig) -> None:
    rig.fake.set_latency(10, "groq")
    started = time.monotonic()

    outcome = ask(chain_that_knows_groq(rig))

    assert USUAL_MS / 1000 <= time.monotonic() - started < 4
    assert outcome.target == TOGETHER
    assert story(outcome) == [(1, "groq", "aborted", "unknown"), (2, "together", "ok", "billed")]
    assert outcome.attempts[0].possible_cost_usd > 0
    assert rig.admission.is_settled
    assert {target: report.outcome for target, report in rig.admission.reports.items()} == {
        GROQ: "aborted",
        TOGETHER: "ok",
    }
    wait_until(lambda: rig.fake.hung_up == 1, seconds=5)


def test_the_first_may_still_win_and_then_the_second_is_ended(rig: Rig) -> None:
    rig.fake.set_latency(0.4, "groq")
    rig.fake.set_latency(10, "together")
    started = time.monotonic()

    outcome = ask(chain_that_knows_groq(rig))

    assert time.monotonic() - started < 4
    assert story(outcome) == [(1, "together", "aborted", "unknown"), (2, "groq", "ok", "billed")]
    assert rig.admission.is_settled
    wait_until(lambda: rig.fake.hung_up == 1, seconds=5)


@pytest.mark.parametrize(("groq_s", "together_s", "failing"), [(0.2, 0.5, "groq"), (0.5, 0.0, "together")])
def test_when_one_fails_the_other_goes_on(rig: Rig, groq_s: float, together_s: float, failing: str) -> None:
    rig.fake.set_latency(groq_s, "groq")
    rig.fake.set_latency(together_s, "together")
    rig.fake.fail_next(failing, Fault.status(503))

    outcome = ask(chain_that_knows_groq(rig))

    winning = {"groq": "together", "together": "groq"}[failing]
    assert story(outcome) == [(1, failing, "overloaded", "free"), (2, winning, "ok", "billed")]
    assert rig.fake.hung_up == 0


def test_when_both_fail_the_walk_goes_on(rig: Rig) -> None:
    rig.fake.set_latency(0.2, "groq")
    rig.fake.fail_next("groq", Fault.status(503))
    rig.fake.fail_next("together", Fault.status(500))

    outcome = ask(chain_that_knows_groq(rig))

    assert outcome.target == LOCAL
    assert [(a.provider, a.outcome) for a in outcome.attempts] == [
        ("groq", "overloaded"),
        ("together", "overloaded"),
        ("local", "ok"),
    ]


def test_a_query_that_the_first_rejects_is_not_waited_for(rig: Rig) -> None:
    rig.fake.set_latency(0.2, "groq")
    rig.fake.set_latency(10, "together")
    rig.fake.fail_next("groq", Fault.status(422))
    started = time.monotonic()

    with pytest.raises(AllTargetsFailed) as caught:
        ask(chain_that_knows_groq(rig))

    assert time.monotonic() - started < 4
    assert type(caught.value.last) is QueryRejected
    assert [attempt.outcome for attempt in caught.value.attempts] == ["aborted", "query_rejected"]


def test_a_signal_ends_both_calls(rig: Rig) -> None:
    rig.fake.set_latency(20)
    signal = AbortSignal()
    with ThreadPoolExecutor() as pool:
        asking = pool.submit(ask, chain_that_knows_groq(rig), seconds=20, signal=signal)
        wait_until(lambda: rig.fake.calls["together"])
        at = time.monotonic()
        signal.abort()
        error = asking.exception()

    assert time.monotonic() - at < 5
    assert isinstance(error, AllTargetsFailed)
    assert type(error.last) is CallAborted
    assert [attempt.outcome for attempt in error.attempts] == ["aborted", "aborted"]
    wait_until(lambda: rig.fake.hung_up == 2, seconds=5)


def test_a_call_that_is_not_slow_is_not_hedged_and_starts_no_thread(rig: Rig) -> None:
    outcome = ask(chain_that_knows_groq(rig))

    assert story(outcome) == [(1, "groq", "ok", "billed")]
    assert rig.fake.calls["together"] == 0


@pytest.mark.parametrize(
    ("hedging", "is_interactive", "latencies"),
    [(False, True, 0), (True, False, FEWEST_LATENCIES), (True, True, FEWEST_LATENCIES - 1)],
)
def test_only_interactive_queries_to_targets_that_are_known_are_hedged(
    rig: Rig, hedging: bool, is_interactive: bool, latencies: int
) -> None:
    rig.fake.set_latency(0.3, "groq")
    chain = chain_that_knows_groq(rig, latencies) if hedging else rig.chain()
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask, chain, is_interactive=is_interactive)
        wait_until(lambda: rig.fake.calls["groq"])
        outcome = asking.result()

    assert story(outcome) == [(1, "groq", "ok", "billed")]
    assert rig.fake.calls["together"] == 0


def test_without_a_free_lane_elsewhere_the_first_goes_on_alone(rig: Rig) -> None:
    rig.fake.set_latency(0.3, "groq")
    rig.admission.closed = {TOGETHER: Wait(9, "busy"), LOCAL: Wait(9, "busy")}

    assert story(ask(chain_that_knows_groq(rig))) == [(1, "groq", "ok", "billed")]
    assert len(rig.admission.asked) == 2


def test_a_call_that_was_overtaken_counts_as_slow(rig: Rig) -> None:
    chain = chain_that_knows_groq(rig)
    rig.fake.set_latency(10, "groq")
    rig.fake.set_latency(0.2, "together")
    for _ in range(2):
        ask(chain)

    assert chain.latencies is not None
    assert (chain.latencies.p95(GROQ) or 0) > 200


def test_no_more_second_calls_than_there_are_slots(rig: Rig) -> None:
    slots = threading.BoundedSemaphore(1)
    slots.acquire()
    caller = Caller({}, load_catalogue(), rig.admission, lambda: 0)
    errand = Errand(Query("hello"), SIMPLE, time.monotonic() + 5, AbortSignal(), 1)

    Second(caller, rig.admission, errand, [], lambda: None).start(slots)

    assert hedges() == []


def test_many_slow_calls_at_once_leave_no_thread_and_no_grant_behind(rig: Rig) -> None:
    chain = chain_that_knows_groq(rig)
    rig.fake.set_latency(10, "groq")
    rig.fake.set_latency(0.1, "together")
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda _: ask(chain), range(8)))

    assert {outcome.target for outcome in outcomes} == {TOGETHER}
    assert all(len(outcome.attempts) == 2 for outcome in outcomes)
    wait_until(lambda: not hedges())
    assert rig.admission.is_settled


def test_the_usual_latency_is_what_95_of_100_calls_do_not_exceed() -> None:
    latencies = Latencies()
    for ms in range(1, FEWEST_LATENCIES):
        latencies.add(GROQ, ms)
    assert latencies.p95(GROQ) is None

    for ms in range(FEWEST_LATENCIES, 101):
        latencies.add(GROQ, ms)
    assert latencies.p95(GROQ) == 95
    assert latencies.p95(TOGETHER) is None


def test_only_the_last_latencies_count() -> None:
    latencies = Latencies()
    for _ in range(50):
        latencies.add(GROQ, 10_000)
    for _ in range(KEPT_LATENCIES):
        latencies.add(GROQ, 10)

    assert latencies.p95(GROQ) == 10
