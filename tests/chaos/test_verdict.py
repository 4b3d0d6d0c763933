"""The suite's own judgement: each thing that must never happen is seen when it does."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from tests.chaos.books import Books
from tests.chaos.load import Load, Look, Promise, Seen
from tests.chaos.mix import Mix, Question
from tests.chaos.verdict import Figures, charged_twice, count, judge, recovery

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WELL = Look("/health", 200, 0.1)
QUESTION = Question("sync", "What is token1?")


def answered(body: dict[str, Any] | None = None, **changes: Any) -> Seen:
    whole = {"id": "q1", "query": QUESTION.text, "response": QUESTION.answer, "complexity": "simple"}
    facts = {"ended": 1.0, "status": 200, "cache": "MISS", **changes}
    return Seen(QUESTION, "r1", 0.0, body={**whole, **(body or {})}, **facts)


def query(**changes: Any) -> Any:
    row = {"id": "q1", "job_id": "q1", "request_id": "r1", "status": "completed", "cache": "MISS", "cost_usd": 0.1}
    row |= {"is_degraded": False, "created_at": NOW, "ended_at": NOW}
    return SimpleNamespace(**{**row, **changes})


def event(event_id: str, **changes: Any) -> Any:
    row = {"event_id": event_id, "topic": "t", "key": "q1", "type": "query.accepted", "payload": {"cost_usd": 0.1}}
    return SimpleNamespace(**{**row, **changes})


EVENTS = [event("q1.accepted"), event("q1.completed"), event("q1.recorded", type="usage.recorded")]
ATTEMPT = SimpleNamespace(job_id="q1", provider="groq", cost_usd=0.1)
IN_KAFKA = Counter({("t", row.event_id): 1 for row in EVENTS})


def books(**changes: Any) -> Books:
    whole = {"queries": [query()], "attempts": [ATTEMPT], "events": EVENTS, "kafka": IN_KAFKA}
    return Books(**{**whole, **changes})


def figures(
    seen: Sequence[Seen] = (), promises: Sequence[Promise] = (), held: Books | None = None, look: Look = WELL
) -> Figures:
    load = Load(lambda: "", "1")
    load.seen, load.promises = list(seen or [answered()]), list(promises)
    load.looks.append(look)
    return count(load, held or books(), fault_s=0, provider_calls=1, uncounted=0)


def violations(found: Figures) -> list[str]:
    found.recovery_s = 1.0
    return judge(found, may_cut=False, may_refuse=False, ailing=[])


def test_a_run_in_which_all_went_well_violates_nothing() -> None:
    found = figures(promises=[Promise("q1", QUESTION, "completed", {"result": answered().body})])

    assert violations(found) == []
    assert (found.asked, found.answered, found.jobs, found.ended, found.extra_calls) == (1, 1, 1, 1, 0)


@pytest.mark.parametrize("status", [None, "missing"])
def test_a_job_that_never_ended_is_lost(status: str | None) -> None:
    assert violations(figures(promises=[Promise("q1", QUESTION, status)])) == ["lost 1"]


def test_a_query_that_is_still_open_in_the_books_is_lost_though_its_caller_heard_nothing() -> None:
    held = books(queries=[query(), query(id="q2", request_id="r2", job_id="q2", status="running", cost_usd=0)])
    assert "lost 1" in violations(figures(held=held))


@pytest.mark.parametrize("body", [{"response": "answer to: What is token2?"}, {"query": "What is token2?"}])
def test_another_querys_answer_is_mixed_up(body: dict[str, Any]) -> None:
    assert violations(figures([answered(body)])) == ["mixed_up 1"]
    job = Promise("q1", QUESTION, "completed", {"result": {**answered().body, **body}})
    assert violations(figures(promises=[job])) == ["mixed_up 1"]


def test_every_way_of_charging_twice_is_seen() -> None:
    follower = query(id="q2", request_id="r2")
    again = query(id="q2", cost_usd=0, job_id="q2")
    twice_used = [*EVENTS, event("q2.recorded", type="usage.recorded")]

    assert charged_twice(books()) == set()
    assert charged_twice(books(queries=[query(), follower])) == {"q1"}
    assert charged_twice(books(queries=[query(), again])) == {"r1"}
    assert charged_twice(books(events=twice_used)) == {"q1"}
    assert charged_twice(books(queries=[query(cost_usd=0.2)])) == {"q1"}


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_an_event_that_is_missing_is_seen(missing: int) -> None:
    left = EVENTS[:missing] + EVENTS[missing + 1 :]
    kafka = Counter({("t", row.event_id): 1 for row in left})

    assert violations(figures(held=books(events=left, kafka=kafka))) == ["missing_in_sql 1"]
    assert violations(figures(held=books(kafka=kafka))) == ["missing_in_kafka 1"]


def test_kafka_may_repeat_but_not_know_what_sql_does_not() -> None:
    repeated = figures(held=books(kafka=IN_KAFKA + IN_KAFKA))
    assert (violations(repeated), repeated.repeated_in_kafka) == ([], 3)

    invented = books(kafka=IN_KAFKA + Counter({("t", "q9.accepted"): 1}))
    assert violations(figures(held=invented)) == ["missing_in_sql 1"]


def test_an_answer_that_nobody_recorded_is_missing() -> None:
    found = figures([answered(), answered({"id": "q2"})])
    assert violations(found) == ["missing_in_sql 1"]


def test_what_takes_too_long_hangs() -> None:
    assert violations(figures([answered(ended=26.0)])) == ["hanging 1"]
    late = query(ended_at=NOW + timedelta(seconds=60))
    assert violations(figures(held=books(queries=[late]))) == ["hanging 1"]


def test_a_bug_is_no_refusal_and_a_closed_connection_no_answer() -> None:
    bug = Seen(QUESTION, "r2", 0.0, status=500, code="internal_error")
    full = Seen(QUESTION, "r2", 0.0, status=429, code="queue_full")
    cut = Seen(QUESTION, "r2", 0.0, error="ConnectionError")

    assert violations(figures([answered(), bug])) == ["broken 1"]
    assert violations(figures([answered(), full])) == ["refused"]
    assert violations(figures([answered(), cut])) == ["cut 1"]
    assert judge(Figures(answered=1), may_cut=True, may_refuse=True, ailing=["kafka"]) == [
        "no recovery",
        "kafka not well",
    ]


def test_the_operators_routes_must_answer_too() -> None:
    assert violations(figures(look=Look("/metrics", 500, 0.1))) == ["broken 1"]
    assert violations(figures(look=Look("/health", 200, 20.0))) == ["hanging 1"]
    assert violations(figures(look=Look("/health", 503, 0.1))) == []


def test_what_the_logs_call_a_bug_is_one() -> None:
    found = figures()
    found.add_bugs(['{"message": "periodic.failed"}'])
    assert violations(found) == ["broken 1"]


def test_recovery_is_the_first_normal_answer_of_the_slowest_tier() -> None:
    def asked_at(started: float, tier: str, cache: str = "MISS") -> Seen:
        seen = answered({"complexity": tier}, ended=started + 1, cache=cache)
        seen.started = started
        return seen

    seen = [asked_at(9, "simple"), asked_at(11, "simple"), asked_at(12, "complex", "HIT"), asked_at(15, "complex")]
    assert recovery(seen, 10, ["simple", "complex"]) == 6
    assert recovery(seen, 10, ["simple", "medium"]) is None


def test_the_same_seed_asks_the_same() -> None:
    first, second, other = (Mix(seed) for seed in ("1:none:c0", "1:none:c0", "2:none:c0"))
    asked = [[mix.next(0.0) for _ in range(200)] for mix in (first, second, other)]

    assert asked[0] == asked[1] != asked[2]
    assert {question.kind for question in asked[0]} == {"sync", "async", "repeat", "crowd", "batch", "hurried"}
