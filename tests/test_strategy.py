"""Messages as a worker takes them up: what Flower hears, and what is left behind."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker import state

from tasks.strategy import Bell, answer_bells


class Events(list[tuple[str, dict[str, Any]]]):
    def send(self, kind: str, **facts: Any) -> None:
        self.append((kind, facts))

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self]


class Rig:
    """A consumer with one thread, and the task that it runs."""

    def __init__(self) -> None:
        self.events = Events()
        self.executor = ThreadPoolExecutor(1)
        self.error: Exception | None = None
        pool = SimpleNamespace(executor=self.executor)
        consumer = SimpleNamespace(event_dispatcher=self.events, pool=pool, hostname="simple@here")
        self.take = answer_bells(SimpleNamespace(name="answer_query", run=self._run), None, consumer)
        self.seen: list[Any] = []
        self.reconnected: Events | None = None

    def _run(self, job_id: str, tier: str) -> str:
        self.seen = [bell.info() for bell in state.active_requests]
        if self.reconnected is not None:
            for bell in tuple(state.reserved_requests):  # celery/worker/consumer/events.py
                bell.eventer = self.reconnected
        if self.error:
            raise self.error
        return f"{job_id} completed"

    def ring(self) -> None:
        headers = {"id": "j1:1", "argsrepr": "['j1', 'simple']"}
        message = SimpleNamespace(payload=[["j1", "simple"], {}, {}], headers=headers)
        self.take(message)
        self.executor.shutdown()


@pytest.fixture
def rig() -> Iterator[Rig]:
    state.reset_state()
    yield Rig()
    state.reset_state()


def test_flower_hears_of_a_task_from_its_coming_to_its_end(rig: Rig) -> None:
    rig.ring()

    assert rig.events.kinds == ["task-received", "task-started", "task-succeeded"]
    [received, _, succeeded] = [facts for _, facts in rig.events]
    assert (received["uuid"], received["name"], received["args"]) == ("j1:1", "answer_query", "['j1', 'simple']")
    assert succeeded["result"] == "j1 completed"
    assert succeeded["runtime"] >= 0


def test_a_task_that_fails_is_heard_of_and_leaves_its_thread(rig: Rig) -> None:
    rig.error = ValueError("a secret")
    rig.ring()

    assert rig.events.kinds[-1] == "task-failed"
    assert "secret" not in str(rig.events)
    assert not state.reserved_requests
    assert not state.active_requests


def test_a_worker_that_has_lost_its_connection_tells_over_the_new_one(rig: Rig) -> None:
    rig.reconnected = Events()
    rig.ring()

    assert rig.events.kinds == ["task-received", "task-started"]
    assert rig.reconnected.kinds == ["task-succeeded"]


def test_a_running_task_takes_no_notice_of_being_cancelled_by_celery(rig: Rig) -> None:
    rig.ring()

    bell = Bell("j1:1", SimpleNamespace(name="answer_query", acks_late=False), [], "here", rig.events)
    bell.cancel(None, emit_retry=True)
    bell.terminate(None, signal=15)
    assert bell.acknowledged


def test_whoever_inspects_the_worker_sees_what_runs(rig: Rig) -> None:
    rig.ring()

    [running] = rig.seen
    assert (running["id"], running["args"], running["hostname"]) == ("j1:1", ["j1", "simple"], "simple@here")
    assert running["time_start"] > 0
    assert not state.requests
