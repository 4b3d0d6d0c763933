"""Jobs that this process answers itself are taken back from Redis, now or as soon as it can be reached."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from redis import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tests.ledger_case import draft
from webapp.accept import after_lost_message
from webapp.caller import ANYONE
from webapp.withdrawal import Withdrawals


class FrozenLedger:
    """Says nothing for the first `silent` times; then withdraws."""

    def __init__(self, silent: int) -> None:
        self.silent = silent
        self.withdrawn: list[str] = []
        self.changed = threading.Event()

    def withdraw(self, job_id: str) -> bool:
        if self.silent:
            self.silent -= 1
            raise RedisTimeoutError("frozen")
        self.withdrawn.append(job_id)
        self.changed.set()
        return job_id != "relied-on"


def test_it_withdraws_at_once_where_redis_answers() -> None:
    ledger = FrozenLedger(silent=0)
    withdrawals = Withdrawals(ledger)  # type: ignore[arg-type]

    assert withdrawals.withdraw("j1")
    assert not withdrawals.withdraw("relied-on")
    assert ledger.withdrawn == ["j1", "relied-on"]


def test_it_withdraws_later_where_redis_is_frozen() -> None:
    ledger = FrozenLedger(silent=3)
    withdrawals = Withdrawals(ledger)  # type: ignore[arg-type]

    assert withdrawals.withdraw("j1")
    assert withdrawals.withdraw("j2")
    while ledger.withdrawn != ["j1", "j2"]:
        assert ledger.changed.wait(10)
        ledger.changed.clear()


def test_it_can_be_needed_again_after_it_has_caught_up() -> None:
    ledger = FrozenLedger(silent=1)
    withdrawals = Withdrawals(ledger)  # type: ignore[arg-type]
    for job_id in ("j1", "j2"):
        assert withdrawals.withdraw(job_id)
        assert ledger.changed.wait(10)
        ledger.changed.clear()
        ledger.silent = 1

    assert ledger.withdrawn == ["j1", "j2"]


@pytest.mark.parametrize("said", [False, RedisError("away")])
def test_a_job_whose_message_may_arrive_is_not_answered_here_too(said: bool | RedisError) -> None:
    def withdraw(job_id: str) -> bool:
        if isinstance(said, RedisError):
            raise said
        return said

    inline = SimpleNamespace(has_room=lambda: True)  # it has no `answer`: asked for one, the test fails
    parts: Any = SimpleNamespace(ledger=SimpleNamespace(withdraw=withdraw), inline=inline)
    ask: Any = SimpleNamespace(cache_mode="default", is_idempotent=False, caller=ANYONE, wait_s=0)

    outcome = after_lost_message(ask, draft("j1"), parts, RedisError("late"))
    assert (outcome.answer, outcome.is_degraded) == (None, False)
