"""Spares the loop of a Celery worker what it would do for every single task: together that costs more than the task."""

from collections.abc import Callable
from functools import partial
from typing import Any

from celery import bootsteps
from celery.utils.functional import noop
from celery.worker import state
from celery.worker.consumer.events import Events

FLUSH_S = 0.5
MOST_BUFFERED = 1000


class QuietLoop(bootsteps.StartStopStep):  # type: ignore[misc]
    """A step of the worker's consumer, started anew with each connection to the broker.

    Events of tasks go to Flower twice a second, and an acknowledgement, which is a mark in memory (`ack_emulation` is
    off), does not wake the loop.
    """

    requires = (Events,)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        dispatcher = consumer.event_dispatcher
        dispatcher.buffer_limit = MOST_BUFFERED
        dispatcher.on_send_buffered = partial(_wake_when_busy, consumer)
        consumer.call_soon_ack = _at_once
        self._timer = consumer.timer.call_repeatedly(FLUSH_S, dispatcher.flush)

    def stop(self, consumer: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if consumer.event_dispatcher:
            consumer.event_dispatcher.flush()


def _wake_when_busy(consumer: Any) -> None:
    """The loop leaves the queue alone while every thread is taken, and learns of a free one only when it is woken."""
    if 2 * len(state.reserved_requests) > consumer.pool.num_processes:
        consumer.hub.call_soon(noop)


def _at_once(act: Callable[..., None], *args: Any, **options: Any) -> None:
    act(*args, **options)
