"""The Celery app: how jobs travel. Settings and their reasons: docs/decisions/0001-ledger-beside-celery.md."""

from typing import Any

from celery import Celery
from kombu.entity import Queue

from config import Settings
from routing.tier import TIERS
from storage.job import BATCH, INTERACTIVE

ANSWER_QUERY = "answer_query"

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
    "task_queues": [Queue(tier.queue) for tier in TIERS.values()],
    "task_serializer": "json",
    "accept_content": ["json"],
    "task_publish_retry_policy": {
        "max_retries": 1,
        "interval_start": 0.05,
        "interval_step": 0.1,
        "interval_max": 0.2,
    },
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "broker_pool_limit": 32,
    "broker_pool_acquire_timeout": 2.0,
}
_TRANSPORT: dict[str, Any] = {
    "socket_keepalive": True,
    "health_check_interval": 15,
    # A message is no more than a bell: kept in Redis until it is acknowledged, each would cost two transactions.
    "ack_emulation": False,
    "priority_steps": [INTERACTIVE, BATCH],
    "sep": ":",
    "queue_order_strategy": "priority",
}


def build_celery(settings: Settings, *, is_web: bool = False) -> Celery:
    """A Celery app on the ledger's Redis. A web process gives up on the broker in about a second, a worker waits."""
    app = Celery("ai-query-router", set_as_current=not is_web)
    timeouts = {"socket_timeout": 0.5, "socket_connect_timeout": 0.25} if is_web else _WORKER_TIMEOUTS
    app.conf.update(
        _SETTINGS,
        broker_url=settings.ledger_url,
        broker_transport_options={**_TRANSPORT, **timeouts},
    )
    return app


_WORKER_TIMEOUTS = {"socket_timeout": 10, "socket_connect_timeout": 2}
