"""Spares the loop of a Celery worker what it would do for every single task: together that costs more than the task."""

import logging
import time
from collections.abc import Callable
from queue import Empty
from typing import Any

import orjson
from celery import bootsteps
from celery.utils.functional import noop
from celery.worker import state
from celery.worker.consumer.events import Events
from celery.worker.consumer.tasks import Tasks

log = logging.getLogger(__name__)

FLUSH_S = 0.5
MOST_BUFFERED = 1000
MOST_AT_ONCE = 8  # messages; others are for other workers


class QuietLoop(bootsteps.StartStopStep):  # type: ignore[misc]
    """A step of the worker's consumer, started anew with each connection to the broker.

    Events of tasks go to Flower twice a second. Each of them would have woken the loop, and so told it of a free
    thread: that is done here. Messages are taken up several at a time where several threads are free.
    """

    requires = (Events, Tasks)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._timer: Any = None
        self._wake: Callable[[], None] = noop
        self._is_full = False

    def start(self, consumer: Any) -> None:
        self._wake = lambda: consumer.hub.call_soon(noop)
        channel = consumer.task_consumer.channel
        self._watch(channel.qos)
        BulkPop(channel, lambda: consumer.pool.num_processes - len(state.reserved_requests))
        dispatcher = consumer.event_dispatcher
        dispatcher.buffer_limit = MOST_BUFFERED
        dispatcher.on_send_buffered = self._wake_if_full
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


class BulkPop:
    """Has a channel of kombu's Redis transport take up to `free()` messages with one command, where it takes one.

    What is lost with a connection, or cannot be read, is a bell: the reaper rings again for jobs that still wait.
    """

    def __init__(self, channel: Any, free: Callable[[], int]) -> None:
        self._channel, self._free = channel, free
        channel._brpop_start = self._ask
        channel._brpop_read = channel.handlers["BRPOP"] = self._take

    def _ask(self) -> None:
        channel = self._channel
        queues = channel._queue_cycle.consume(len(channel.active_queues))
        keys = [channel._q_for_pri(queue, priority) for priority in channel.priority_steps for queue in queues]
        if keys:
            channel._in_poll, channel._brpop_sent_at = channel.client.connection, time.monotonic()
            count = max(1, min(self._free(), MOST_AT_ONCE))
            channel._in_poll.send_command("BLMPOP", channel.brpop_timeout, len(keys), *keys, "RIGHT", "COUNT", count)

    def _take(self, **options: Any) -> bool:
        channel, connection = self._channel, self._channel.client.connection
        try:
            found = channel.client.parse_response(connection, "BLMPOP", **options)
        except channel.connection_errors:
            connection.disconnect()  # so that it is made anew
            raise
        finally:
            channel._in_poll = None
        if not found:
            raise Empty
        queue = found[0].decode().rsplit(channel.sep, 1)[0]
        for message in found[1]:
            self._deliver(message, queue)
        return True

    def _deliver(self, message: bytes, queue: str) -> None:
        try:
            self._channel.connection._deliver(orjson.loads(message), queue)
        except Exception:  # it would end the worker, and take the other messages with it
            log.exception("message.unreadable", extra={"queue": queue})
