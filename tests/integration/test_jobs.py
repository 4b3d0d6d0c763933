"""What happens to jobs in real processes: cancelled while they run, kept waiting by a throttled provider, replayed."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from embedded import broker, valkey
from embedded.port import free_port
from tests.conftest import ROOT
from tests.fake_provider import KEYS, Fault
from tests.integration.stack import Stack, eventually, running

DEAD_KEY = "gsk_deadkeydeadkeydeadkey000000"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("jobs")
    servers = valkey.server(folder, free_port()), broker.server(free_port())
    keys = f"{DEAD_KEY},{KEYS['groq']}"
    with running(folder, f"sqlite:///{folder}/router.db", *servers, GROQ_API_KEY=keys) as stack:
        yield stack


@pytest.fixture(autouse=True)
def fresh_fake(stack: Stack) -> None:
    stack.fake.reset()


def cancel(stack: Stack, job_id: str) -> requests.Response:
    return requests.post(f"{stack.url}/api/v1/jobs/{job_id}/cancel", timeout=10)


def alerts(stack: Stack) -> list[Any]:
    return stack.rows("SELECT type, payload FROM events WHERE type LIKE 'provider.%' AND type <> 'provider.attempt'")


def test_a_dead_key_does_not_stop_its_provider_and_raises_one_alert(stack: Stack) -> None:
    for number in range(6):
        answered = stack.ask(f"What is key number {number}?").json()
        assert answered["provider"] == "groq"

    eventually(lambda: alerts(stack))
    [alert] = alerts(stack)
    assert alert.type == "provider.key_rejected"
    assert DEAD_KEY not in str(alert.payload)


def test_cancelling_a_running_job_closes_the_providers_connection(stack: Stack) -> None:
    stack.fake.set_latency(30)
    before = stack.fake.calls["groq"]
    job_id = stack.ask("Explain how a call is ended", wait_seconds=0).json()["id"]
    eventually(lambda: stack.fake.calls["groq"] > before)

    cancelled, at = cancel(stack, job_id), time.monotonic()
    assert cancelled.status_code == 202
    eventually(lambda: stack.fake.server.hung_up, limit_s=5)
    assert time.monotonic() - at < 1

    job = stack.poll(job_id)
    assert (job["status"], job["result"], job["attempts"][-1]["outcome"]) == ("cancelled", None, "aborted")
    eventually(lambda: stack.rows("SELECT 1 FROM queries WHERE id = :i AND status = 'cancelled'", i=job_id))
    [query] = stack.rows("SELECT error_code FROM queries WHERE id = :i", i=job_id)
    assert query.error_code == "cancelled"
    [row] = stack.rows("SELECT billing, cost_usd, possible_cost_usd FROM attempts WHERE job_id = :i", i=job_id)
    assert (row.billing, row.cost_usd) == ("unknown", 0)
    assert row.possible_cost_usd > 0
    assert not stack.rows("SELECT 1 FROM events WHERE key = :i AND type = 'usage.recorded'", i=job_id)


def test_a_cancelled_caller_does_not_take_the_answer_from_another(stack: Stack) -> None:
    stack.fake.set_latency(2)
    first, second = (stack.ask("Explain sharing an answer", wait_seconds=0).json()["id"] for _ in range(2))
    eventually(lambda: stack.fake.calls["groq"])

    assert cancel(stack, first).json()["status"] == "cancelled"
    assert stack.poll(second)["result"]["response"] == "answer to: Explain sharing an answer"
    assert (stack.fake.calls["groq"], stack.fake.server.hung_up) == (1, 0)

    def ended() -> Any:
        rows = stack.rows("SELECT id, status, cost_usd FROM queries WHERE job_id = :i", i=first)
        return rows if {row.status for row in rows} == {"cancelled", "completed"} else None

    paid = {row.id: row.cost_usd > 0 for row in eventually(ended)}
    assert paid == {first: False, second: True}


def test_a_throttled_provider_costs_no_job_a_run(stack: Stack) -> None:
    for provider in ("groq", "together"):
        stack.fake.fail_next(provider, Fault.status(429, retry_after=2))

    started = time.monotonic()
    answered = stack.ask("Explain patience", deadline_seconds=30)
    assert answered.status_code == 200
    assert time.monotonic() - started >= 1.5

    job = requests.get(f"{stack.url}/api/v1/jobs/{answered.json()['id']}", timeout=10).json()
    assert [attempt["outcome"] for attempt in job["attempts"]] == ["throttled", "throttled", "ok"]
    [runs] = [stack.redis.hget(f"aqr:job:{job['id']}", "runs")]
    assert runs == b"1"


def test_dead_letters_are_replayed_by_the_command(stack: Stack) -> None:
    for provider in ("groq", "together"):
        stack.fake.fail_next(provider, *[Fault.status(500)] * 2)
    failed = stack.ask("What is a dead letter?", wait_seconds=0).json()["id"]
    assert stack.poll(failed)["status"] == "failed"
    eventually(lambda: stack.rows("SELECT 1 FROM queries WHERE id = :i AND status = 'failed'", i=failed))

    def dead(*arguments: str) -> str:
        command = [sys.executable, "-m", "tasks.dead", *arguments]
        env = {**stack.env, "ENV_FILE": os.devnull}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout

    stack.fake.reset()
    assert f"{failed} " in dead("list", "--code", "provider_overloaded")
    assert dead("replay", failed) == "1 queued again\n"
    assert stack.poll(failed)["result"]["response"] == "answer to: What is a dead letter?"
    eventually(lambda: stack.rows("SELECT 1 FROM queries WHERE id = :i AND status = 'completed'", i=failed))
    told = {row.type for row in stack.rows("SELECT type FROM events WHERE key = :i", i=failed)}
    assert {"query.failed", "query.replayed", "query.completed", "usage.recorded"} <= told
