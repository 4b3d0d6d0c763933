"""The Celery app: how jobs travel. Settings and their reasons: docs/decisions/0001-ledger-beside-celery.md."""

from typing import Any

import orjson
from celery import Celery
from kombu import serialization
from kombu.entity import Queue

from config import Settings
from routing.tier import TIERS
from storage.job import BATCH, INTERACTIVE
from tasks.dispatch import PRIORITY_SEPARATOR

_SETTINGS: dict[str, Any] = {
    "result_backend": None,
    "task_ignore_result": True,
    "task_acks_late": False,  # the ledger and its reaper recover jobs; late acks on Redis run them twice
    "task_store_errors_even_if_ignored": False,
    "worker_prefetch_multiplier": 1,
    "worker_disable_prefetch": True,  # so that LLEN of a queue is its true backlog
    "worker_send_task_events": True,
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
    "task_create_missing_queues": False,
    "task_default_queue": next(iter(TIERS)),
    "task_queues": [Queue(tier.queue, no_ack=True) for tier in TIERS.values()],
    "task_serializer": "json",
    "accept_content": ["json"],
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
}
_TRANSPORT: dict[str, Any] = {
    "socket_timeout": 10,
    "socket_connect_timeout": 2,
    "socket_keepalive": True,
    "health_check_interval": 15,
    # A message is no more than a bell: kept in Redis until it is acknowledged, each would cost two transactions.
    "ack_emulation": False,
    "priority_steps": [INTERACTIVE, BATCH],
    "sep": PRIORITY_SEPARATOR,
    "queue_order_strategy": "priority",
}


def build_celery(settings: Settings) -> Celery:
    """The app of workers and Flower, on the ledger's Redis. Messages and events go through orjson."""
    serialization.register("json", _dumps, orjson.loads, "application/json", "utf-8")
    app = Celery("ai-query-router")
    app.conf.update(_SETTINGS, broker_url=settings.ledger_url, broker_transport_options=_TRANSPORT)
    return app


def _dumps(value: Any) -> str:
    return orjson.dumps(value, default=str).decode()
