"""The worker's loop is not disturbed for each task, but hears of a free thread when it waits for one."""

from types import SimpleNamespace
from typing import Any

import pytest

from tasks.quiet_loop import FLUSH_S, QuietLoop


class Consumer:
    """What a step sees of Celery's consumer."""

    def __init__(self) -> None:
        self.has_free_thread = True
        self.wakes = 0
        self.flushes = 0
        self.periods: list[float] = []
        self.cancelled = 0
        self.qos = SimpleNamespace(can_consume=lambda: self.has_free_thread)
        self.task_consumer = SimpleNamespace(channel=SimpleNamespace(qos=self.qos))
        self.event_dispatcher = SimpleNamespace(flush=self._flush)
        self.hub = SimpleNamespace(call_soon=self._wake)
        self.timer = SimpleNamespace(call_repeatedly=self._repeat)
        self.call_soon_ack: Any = None

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


def test_a_message_is_acknowledged_without_the_loop(consumer: Consumer) -> None:
    acknowledged: list[Any] = []
    consumer.call_soon_ack(lambda *args: acknowledged.append(args), "log", ())

    assert (acknowledged, consumer.wakes) == ([("log", ())], 0)


def test_events_are_sent_now_and_then_and_at_the_end() -> None:
    consumer = Consumer()
    step = QuietLoop(consumer)
    step.start(consumer)
    assert (consumer.periods, consumer.flushes) == ([FLUSH_S], 0)

    step.stop(consumer)
    assert (consumer.cancelled, consumer.flushes) == (1, 1)
