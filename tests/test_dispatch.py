"""Our messages are the ones that Celery itself would send."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis

from config import Settings
from storage.job import BATCH, INTERACTIVE
from tasks.app import build_celery
from tasks.dispatch import ANSWER_QUERY, Dispatcher

# What Celery may leave out, and reads as absent (as_task_v2 in celery/app/amqp.py): None, empty, or who sent it.
OPTIONAL = {
    "shadow",
    "eta",
    "expires",
    "group",
    "group_index",
    "timelimit",
    "parent_id",
    "replaced_task_nesting",
    "stamped_headers",
    "stamps",
    "origin",
}


def taken(redis: Redis, queue: str) -> Any:
    """The message on the queue; which ids it was sent under is its sender's affair."""
    message = json.loads(redis.lpop(queue))
    message["body"] = json.loads(base64.b64decode(message["body"]))
    for name in ("delivery_tag", "reply_to"):
        message["properties"].pop(name, None)
    message["headers"] = {name: value for name, value in message["headers"].items() if name not in OPTIONAL}
    return message


@pytest.mark.parametrize(("priority", "queue"), [(INTERACTIVE, "simple"), (BATCH, "simple:9")])
def test_a_message_is_the_one_that_celery_would_send(
    redis: Redis, settings: Callable[..., Settings], priority: int, queue: str
) -> None:
    Dispatcher(redis).ring("j1", "simple", priority, run=2)
    ours = taken(redis, queue)

    build_celery(settings()).send_task(
        ANSWER_QUERY, args=["j1", "simple"], task_id="j1:3", queue="simple", priority=priority, ignore_result=True
    )
    assert ours == taken(redis, queue)


def test_two_messages_never_share_a_delivery_tag(redis: Redis) -> None:
    dispatcher = Dispatcher(redis)
    for _ in range(2):
        dispatcher.ring("j1", "simple", INTERACTIVE)

    tags = {json.loads(message)["properties"]["delivery_tag"] for message in redis.lrange("simple", 0, -1)}
    assert len(tags) == 2
