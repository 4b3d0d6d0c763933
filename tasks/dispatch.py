"""Ringing the doorbell: a Celery message on a tier's queue for every job that waits in it."""

import base64
import secrets

import orjson

from storage.connection import RedisClient
from storage.job import INTERACTIVE

ANSWER_QUERY = "answer_query"
PRIORITY_SEPARATOR = ":"  # between a queue and its priority, in the names of its lists
_EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


class Dispatcher:
    """Publishes messages. One says that a job waits; the ledger says which is next. A lost message is rung again by the
    reaper, one too many finds nobody waiting.
    """

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    def ring(self, job_id: str, tier: str, priority: int, run: int = 0) -> None:
        """Redis errors pass through."""
        self._client.execute_command(*ring_command(job_id, tier, priority, run))


def ring_command(job_id: str, tier: str, priority: int, run: int = 0) -> tuple[str, str, bytes]:
    """The Redis command that rings.

    What Celery itself would send: its message protocol 2 in the envelope of kombu's Redis transport, at a fifth of the
    work, and without its connections; a test holds the two together.
    """
    queue = tier if priority == INTERACTIVE else f"{tier}{PRIORITY_SEPARATOR}{priority}"
    return "LPUSH", queue, _message(f"{job_id}:{run + 1}", job_id, tier, priority)


def _message(task_id: str, job_id: str, tier: str, priority: int) -> bytes:
    headers = {
        "lang": "py",
        "task": ANSWER_QUERY,
        "id": task_id,
        "root_id": task_id,
        "argsrepr": f"['{job_id}', '{tier}']",
        "kwargsrepr": "{}",
        "origin": "router",
        "retries": 0,
        "ignore_result": True,
    }
    properties = {
        "correlation_id": task_id,
        "delivery_tag": secrets.token_hex(16),
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": tier},
        "priority": priority,
        "body_encoding": "base64",
    }
    body = base64.b64encode(orjson.dumps(([job_id, tier], {}, _EMBED))).decode()
    message = {"body": body, "content-encoding": "utf-8", "content-type": "application/json"}
    return orjson.dumps(message | {"headers": headers, "properties": properties})
