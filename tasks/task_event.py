"""What Celery tells Flower of tasks, sent a few times a second: one message for each event costs more than the task."""

from functools import partial
from typing import Any

from celery import bootsteps
from celery.utils.functional import noop
from celery.worker import state
from celery.worker.consumer.events import Events

FLUSH_S = 0.5
MOST_BUFFERED = 1000


class TaskEventBatch(bootsteps.StartStopStep):  # type: ignore[misc]
    """A step of the worker's consumer; it starts anew with each connection to the broker."""

    requires = (Events,)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        dispatcher = consumer.event_dispatcher
        dispatcher.buffer_limit = MOST_BUFFERED
        dispatcher.on_send_buffered = partial(_wake_when_busy, consumer)
        self._timer = consumer.timer.call_repeatedly(FLUSH_S, dispatcher.flush)

    def stop(self, consumer: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if consumer.event_dispatcher:
            consumer.event_dispatcher.flush()


def _wake_when_busy(consumer: Any) -> None:
    """Celery's loop leaves the queue alone while every thread is taken, and learns of a free one only when it is woken.
    Its own flush after each event would have done that.
    """
    if 2 * len(state.reserved_requests) > consumer.pool.num_processes:
        consumer.hub.call_soon(noop)
