"""The worker's loop is not disturbed for each task, but hears of a free thread when it waits for one. It takes up
several messages at a time.
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from redis import Redis

from config import Settings
from storage.job import BATCH, INTERACTIVE
from tasks.app import build_celery
from tasks.dispatch import Dispatcher
from tasks.quiet_loop import FLUSH_S, MOST_AT_ONCE, BulkPop, QuietLoop


class Consumer:
    """What a step sees of Celery's consumer."""

    def __init__(self) -> None:
        self.has_free_thread = True
        self.wakes = 0
        self.flushes = 0
        self.periods: list[float] = []
        self.cancelled = 0
        self.qos = SimpleNamespace(can_consume=lambda: self.has_free_thread)
        self.task_consumer = SimpleNamespace(channel=SimpleNamespace(qos=self.qos, handlers={}))
        self.event_dispatcher = SimpleNamespace(flush=self._flush)
        self.hub = SimpleNamespace(call_soon=self._wake)
        self.timer = SimpleNamespace(call_repeatedly=self._repeat)

    def _wake(self, _: Any) -> None:
        self.wakes += 1

    def _flush(self) -> None:
        self.flushes += 1

    def _repeat(self, period: float, _: Any) -> Any:
        self.periods.append(period)
        return SimpleNamespace(cancel=self._cancel)

    def _cancel(self) -> None:
        self.cancelled += 1


@pytest.fixture
def consumer() -> Consumer:
    consumer = Consumer()
    QuietLoop(consumer).start(consumer)
    return consumer


def test_an_event_does_not_wake_a_loop_that_listens(consumer: Consumer) -> None:
    assert consumer.qos.can_consume()
    consumer.event_dispatcher.on_send_buffered()

    assert consumer.wakes == 0


def test_an_event_wakes_a_loop_that_found_no_thread_free(consumer: Consumer) -> None:
    consumer.has_free_thread = False
    assert not consumer.qos.can_consume()
    consumer.event_dispatcher.on_send_buffered()

    assert consumer.wakes == 1


def test_a_task_that_ends_while_the_loop_looks_wakes_it() -> None:
    seen = Consumer()

    def look() -> bool:  # the thread is free, but the loop has looked before
        seen.event_dispatcher.on_send_buffered()
        return False

    seen.qos.can_consume = look
    QuietLoop(seen).start(seen)
    assert not seen.qos.can_consume()

    assert seen.wakes == 1


def test_events_are_sent_now_and_then_and_at_the_end() -> None:
    consumer = Consumer()
    step = QuietLoop(consumer)
    step.start(consumer)
    assert (consumer.periods, consumer.flushes) == ([FLUSH_S], 0)

    step.stop(consumer)
    assert (consumer.cancelled, consumer.flushes) == (1, 1)


# Messages


@pytest.fixture
def channel(redis: Redis, settings: Callable[..., Settings]) -> Iterator[Any]:
    with build_celery(settings()).connection_for_read() as connection:
        yield connection.default_channel


@pytest.fixture
def taken(channel: Any) -> list[str]:
    """The ids of the messages that were taken up, as three threads are free."""
    ids: list[str] = []
    for queue in ("simple", "medium"):
        channel.basic_consume(queue, True, lambda message: ids.append(message.headers["id"]), queue)
    BulkPop(channel, lambda: 3)
    return ids


def turn(channel: Any) -> None:
    """The loop's next message, or heap of messages."""
    channel.connection.drain_events(channel.connection.client, timeout=5)


def test_it_takes_as_many_messages_as_threads_are_free(redis: Redis, channel: Any, taken: list[str]) -> None:
    for number in range(5):
        Dispatcher(redis).ring(f"j{number}", "simple", INTERACTIVE)

    turn(channel)
    assert (taken, redis.llen("simple")) == (["j0:1", "j1:1", "j2:1"], 2)
    turn(channel)
    assert taken == [f"j{number}:1" for number in range(5)]


def test_it_leaves_messages_to_other_workers(redis: Redis, channel: Any, taken: list[str]) -> None:
    BulkPop(channel, lambda: 100)
    for number in range(MOST_AT_ONCE + 1):
        Dispatcher(redis).ring(f"j{number}", "simple", INTERACTIVE)

    turn(channel)
    assert (len(taken), redis.llen("simple")) == (MOST_AT_ONCE, 1)


def test_it_takes_the_urgent_ones_first(redis: Redis, channel: Any, taken: list[str]) -> None:
    for priority, job_id in ((BATCH, "slow"), (INTERACTIVE, "quick")):
        Dispatcher(redis).ring(job_id, "medium", priority)

    turn(channel)
    turn(channel)
    assert taken == ["quick:1", "slow:1"]


def test_one_it_cannot_read_does_not_take_the_others_with_it(
    redis: Redis, channel: Any, taken: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    Dispatcher(redis).ring("first", "simple", INTERACTIVE)
    redis.lpush("simple", "not JSON")
    Dispatcher(redis).ring("last", "simple", INTERACTIVE)

    turn(channel)
    assert taken == ["first:1", "last:1"]
    assert [record.getMessage() for record in caplog.records] == ["message.unreadable"]


def test_it_goes_on_after_a_lost_connection(redis: Redis, channel: Any, taken: list[str]) -> None:
    with pytest.raises(TimeoutError):
        channel.connection.drain_events(channel.connection.client, timeout=0.1)
    host, port = channel.client.connection._sock.getsockname()
    redis.client_kill_filter(addr=f"{host}:{port}")
    with pytest.raises(channel.connection_errors):
        turn(channel)

    Dispatcher(redis).ring("after", "simple", INTERACTIVE)
    turn(channel)
    assert taken == ["after:1"]
