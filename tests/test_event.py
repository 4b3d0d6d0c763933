"""Usage-stream entries become rows: the right ones, the same ones every time, and paid for once."""

import json
from typing import Any

import pytest

from storage.event import ANALYTICS_TOPIC, USAGE_TOPIC, Rows, rows_of
from tests.usage_entries import AT, accepted, ended, hit


def by_id(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in rows}


def types(rows: Rows) -> list[str]:
    return [event["type"] for event in rows.events]


def test_it_opens_a_query_when_it_is_accepted() -> None:
    rows = rows_of([accepted("q1")])

    [query] = rows.opened
    assert (query["id"], query["status"], query["cache"], query["tier"]) == ("q1", "queued", "MISS", "medium")
    assert types(rows) == ["query.accepted"]


def test_it_marks_a_query_that_joined_another_job() -> None:
    assert rows_of([accepted("q2", job="q1")]).opened[0]["cache"] == "COALESCED"


def test_it_charges_a_job_to_the_query_that_led_it_and_nothing_to_those_that_joined() -> None:
    rows = rows_of([ended("q1", callers=["q1", "q2"])])

    queries = by_id(rows.ended)
    assert (queries["q1"]["cost_usd"], queries["q1"]["prompt_tokens"]) == (0.002, 10)
    assert (queries["q2"]["cost_usd"], queries["q2"]["prompt_tokens"]) == (0.0, None)
    assert {q["status"] for q in rows.ended} == {"completed"}
    charged = [e["payload"]["cost_usd"] for e in rows.events if e["topic"] == USAGE_TOPIC]
    assert sorted(charged) == [0.0, 0.002]


def test_it_records_every_attempt_in_order() -> None:
    attempts = [{"outcome": "worker_lost", "started_at": AT}, {"outcome": "ok", "started_at": AT, "provider": "groq"}]
    rows = rows_of([ended("q1", attempts=attempts)])

    assert [(a["number"], a["outcome"]) for a in rows.attempts] == [(1, "worker_lost"), (2, "ok")]
    assert [e["event_id"] for e in rows.events if e["type"] == "provider.attempt"] == ["q1.attempt.1", "q1.attempt.2"]


@pytest.mark.parametrize("status", ["failed", "expired", "dead", "cancelled"])
def test_it_logs_no_usage_of_a_query_that_was_not_answered(status: str) -> None:
    rows = rows_of([ended("q1", status=status)])

    assert types(rows)[0] == f"query.{status}"
    assert "usage.recorded" not in types(rows)


def test_it_counts_a_hit_as_answered_for_nothing() -> None:
    rows = rows_of([hit("q3")])

    [query] = rows.ended
    assert (query["status"], query["cache"], query["cost_usd"], query["baseline_usd"]) == (
        "completed",
        "HIT",
        0.0,
        0.01,
    )
    assert types(rows) == ["query.cache_hit", "usage.recorded"]
    usage = rows.events[1]["payload"]
    assert (usage["cached"], usage["cost_usd"], usage["prompt_tokens"]) == (True, 0.0, 0)


def test_it_measures_latency_from_each_callers_own_arrival() -> None:
    rows = rows_of([ended("q1", callers=["q1", "q2"], arrivals={"q2": AT + 500})])

    queries = by_id(rows.ended)
    assert queries["q1"]["latency_ms"] - queries["q2"]["latency_ms"] == 500


def test_it_makes_the_same_rows_of_an_entry_delivered_twice() -> None:
    once, twice = rows_of([ended("q1")]), rows_of([ended("q1")])

    assert once == twice


def test_it_keys_every_event_by_its_job_and_versions_it() -> None:
    rows = rows_of([accepted("q2", job="q1"), ended("q1", callers=["q1", "q2"]), hit("q3")])

    for event in rows.events:
        assert event["payload"]["schema_version"] == 1
        assert event["payload"]["event_id"] == event["event_id"]
        assert event["key"] == event["payload"]["job_id"]
        assert event["topic"] in (ANALYTICS_TOPIC, USAGE_TOPIC)
    assert len({event["event_id"] for event in rows.events}) == len(rows.events)


def test_it_keeps_the_query_text_out_unless_it_was_recorded() -> None:
    assert "query_text" not in json.dumps([e["payload"] for e in rows_of([accepted("q1")]).events])

    rows = rows_of([accepted("q1", text="What is AI?")])
    assert rows.opened[0]["query_text"] == "What is AI?"
    assert rows.events[0]["payload"]["query_text"] == "What is AI?"


def test_it_keeps_the_answer_text_only_by_choice_and_never_in_an_event() -> None:
    entries = [
        ended("q1", callers=["q1", "q2"], facts={"answer_text": "forty-two"}),
        hit("q3", answer_text="forty-two"),
    ]

    assert "forty-two" not in repr(rows_of(entries))
    rows = rows_of(entries, keeps_answers=True)
    assert [query["answer_text"] for query in rows.ended] == ["forty-two"] * 3
    assert "forty-two" not in repr(rows.events)


def test_every_event_says_whose_it_is() -> None:
    rows = rows_of([accepted("q1"), ended("q1"), hit("q2")])

    assert {event["type"] for event in rows.events} >= {"provider.attempt", "usage.recorded", "query.cache_hit"}
    assert {event["tenant"] for event in rows.events} == {"t"}


def test_it_refuses_an_entry_that_is_none_of_ours() -> None:
    with pytest.raises(KeyError):
        rows_of([{"kind": b"surprise"}])
