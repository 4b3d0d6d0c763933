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
    """A message that is being answered, as Celery's own requests look to those who ask the worker for them."""

    __slots__ = ("__weakref__", "_args", "_hostname", "id", "name", "time_start")

    def __init__(self, task_id: str, name: str, args: Sequence[Any], hostname: str) -> None:
        self.id, self.name, self._args, self._hostname = task_id, name, args, hostname
        self.time_start: float | None = None

    def info(self, safe: bool = False) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "args": self._args,
            "kwargs": {},
            "type": self.name,
            "hostname": self._hostname,
            "time_start": self.time_start,
            "acknowledged": True,
            "delivery_info": {},
            "worker_pid": os.getpid(),
        }


def answer_bells(task: Any, app: Any, consumer: Any, **_: Any) -> Callable[..., None]:
    """A Celery strategy: what to do with each message of the task. Content that is not JSON is refused by kombu."""
    tell, submit, hostname = consumer.event_dispatcher.send, consumer.pool.executor.submit, consumer.hostname

    def run(bell: Bell, args: Sequence[Any]) -> None:
        bell.time_start = time.time()
        started = time.monotonic()
        state.task_accepted(bell)
        tell("task-started", uuid=bell.id)
        try:
            said = task.run(*args)
        except Exception as error:
            state.task_ready(bell)
            log.exception("task.failed", extra={"task_id": bell.id})
            tell("task-failed", uuid=bell.id, exception=type(error).__name__, traceback=None)
        else:
            state.task_ready(bell, successful=True)
            tell("task-succeeded", uuid=bell.id, result=said, runtime=time.monotonic() - started)

    def take(message: Any, _body: Any, ack: Callable[..., None], *_: Any, **__: Any) -> None:
        args, headers = message.payload[0], message.headers
        bell = Bell(headers["id"], task.name, args, hostname)
        ack(log, consumer.connection_errors)
        state.task_reserved(bell)
        tell("task-received", uuid=bell.id, name=bell.name, args=headers["argsrepr"], kwargs="{}", retries=0)
        submit(run, bell, args)

    return take
