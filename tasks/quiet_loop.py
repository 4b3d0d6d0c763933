"""Spares the loop of a Celery worker what it would do for every single task: together that costs more than the task."""

from collections.abc import Callable
from typing import Any

from celery import bootsteps
from celery.utils.functional import noop
from celery.worker.consumer.events import Events
from celery.worker.consumer.tasks import Tasks

FLUSH_S = 0.5
MOST_BUFFERED = 1000


class QuietLoop(bootsteps.StartStopStep):  # type: ignore[misc]
    """A step of the worker's consumer, started anew with each connection to the broker.

    Events of tasks go to Flower twice a second, and an acknowledgement, which is a mark in memory (`ack_emulation` is
    off), does not wake the loop. Each of them would have, and so told it of a free thread: that is done here.
    """

    requires = (Events, Tasks)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._timer: Any = None
        self._wake: Callable[[], None] = noop
        self._is_full = False

    def start(self, consumer: Any) -> None:
        self._wake = lambda: consumer.hub.call_soon(noop)
        self._watch(consumer.task_consumer.channel.qos)
        dispatcher = consumer.event_dispatcher
        dispatcher.buffer_limit = MOST_BUFFERED
        dispatcher.on_send_buffered = self._wake_if_full
        consumer.call_soon_ack = _at_once
        self._timer = consumer.timer.call_repeatedly(FLUSH_S, dispatcher.flush)

    def stop(self, consumer: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if consumer.event_dispatcher:
            consumer.event_dispatcher.flush()

    def _watch(self, qos: Any) -> None:
        """Notes whether the loop leaves the queue alone, because every thread was taken when it last looked."""
        may_consume = qos.can_consume

        def can_consume() -> bool:
            self._is_full = True  # a task that ends while we look wakes the loop once too often rather than not
            is_free: bool = may_consume()
            self._is_full = not is_free
            return is_free

        qos.can_consume = can_consume

    def _wake_if_full(self) -> None:
        """Called with every event of a task. By its last one the thread is free."""
        if self._is_full:
            self._wake()


def _at_once(act: Callable[..., None], *args: Any, **options: Any) -> None:
    act(*args, **options)
