"""How a worker takes messages up. One is no more than a bell, so most of what Celery does for a task is not needed.

Kept is what shows: the events that Flower lives on, and the requests that `celery inspect` lists.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from celery.worker import state

log = logging.getLogger(__name__)


class Bell:
    """A message that is being answered, with what Celery's worker asks of its own requests (celery/worker/request.py).

    `eventer` sends events; the worker sets a new one when it has lost its connection.
    """

    __slots__ = ("__weakref__", "_args", "_hostname", "eventer", "id", "name", "task", "time_start")
    acknowledged = True

    def __init__(self, task_id: str, task: Any, args: Sequence[Any], hostname: str, eventer: Any) -> None:
        self.id, self.task, self.name, self.eventer = task_id, task, task.name, eventer
        self._args, self._hostname = args, hostname
        self.time_start: float | None = None

    def tell(self, kind: str, **facts: Any) -> None:
        self.eventer.send(kind, uuid=self.id, **facts)

    def cancel(self, *_: Any, **__: Any) -> None:
        """A thread cannot be stopped: it is the ledger that cancels jobs."""

    terminate = cancel

    def info(self, safe: bool = False) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "args": self._args,
            "kwargs": {},
            "type": self.name,
            "hostname": self._hostname,
            "time_start": self.time_start,
            "acknowledged": self.acknowledged,
            "delivery_info": {},
            "worker_pid": os.getpid(),
        }


def answer_bells(task: Any, app: Any, consumer: Any, **_: Any) -> Callable[..., None]:
    """A Celery strategy: what to do with each message of the task. Content that is not JSON is refused by kombu."""
    submit, hostname = consumer.pool.executor.submit, consumer.hostname

    def run(bell: Bell, args: Sequence[Any]) -> None:
        bell.time_start = time.time()
        started = time.monotonic()
        state.task_accepted(bell)
        bell.tell("task-started")
        try:
            said = task.run(*args)
        except Exception as error:
            state.task_ready(bell)
            log.exception("task.failed", extra={"task_id": bell.id})
            bell.tell("task-failed", exception=type(error).__name__, traceback=None)
        else:
            state.task_ready(bell, successful=True)
            bell.tell("task-succeeded", result=said, runtime=time.monotonic() - started)

    def take(message: Any, *_: Any, **__: Any) -> None:
        args, headers = message.payload[0], message.headers
        bell = Bell(headers["id"], task, args, hostname, consumer.event_dispatcher)
        state.task_reserved(bell)
        bell.tell("task-received", name=bell.name, args=headers["argsrepr"], kwargs="{}", retries=0)
        submit(run, bell, args)

    return take
