"""Entry of a worker: `celery -A tasks.worker worker -Q simple`. Built at import because Celery asks for the app so."""

import logging
import os
import socket
import sys
from contextlib import suppress
from typing import Any

from celery import Celery
from celery.signals import setup_logging, worker_ready, worker_shutdown
from redis import RedisError

from config import Settings, load_settings
from logs import configure_logging
from routing.tier import TIER_NAMES
from storage.answer import AnswerCache
from storage.connection import blocking_client, patient_client
from storage.follow import BLOCK_MS, StreamFollower
from storage.name import CANCELLED
from storage.presence import Presence
from tasks.answer import Answerer
from tasks.app import build_celery
from tasks.build import build_admission, build_answerer, build_ledger, build_tiers
from tasks.dispatch import ANSWER_QUERY, Dispatcher
from tasks.lease import LeaseKeeper
from tasks.periodic import Periodic
from tasks.quiet_loop import QuietLoop
from tasks.reaper import Reaper

log = logging.getLogger(__name__)

PRESENCE_PERIOD_S = 3.0
SWITCH_S = 0.001  # threads here work for a moment and wait: at Python's 5 ms they queue for each other (measured: 10 %)
TICKETS_PERIOD_S = 7.0  # a call's ticket runs out after 30 s


class Worker:
    """What one worker process consists of, besides Celery."""

    def __init__(self, settings: Settings, app: Celery) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        client = patient_client(settings.ledger_url)
        ledger = build_ledger(settings, client)
        leases = LeaseKeeper(ledger)
        self._presence = Presence(client)
        self._tiers_served: tuple[str, ...] = ()
        self._slots = 1
        admission = build_admission(settings, client)
        self.answerer: Answerer = build_answerer(
            settings,
            ledger,
            leases,
            admission,
            tiers=build_tiers(settings),
            cache=AnswerCache(patient_client(settings.cache_url)) if settings.cache_redis_url else None,
            worker=self.name,
            pool_size=settings.simple_worker_threads + settings.medium_worker_threads + settings.complex_worker_threads,
        )
        self._reaper = Reaper(ledger, Dispatcher(client), self._presence)
        self._cancelled = StreamFollower(
            blocking_client(settings.ledger_url, BLOCK_MS / 1000),
            CANCELLED,
            lambda entry: leases.abort(entry[b"job"].decode()),
        )
        self._loops = [
            Periodic("leases", settings.lease_seconds / 4, leases.renew),
            Periodic("tickets", TICKETS_PERIOD_S, admission.beat),
            Periodic("reaper", settings.reaper_seconds, self._reaper.run),
            Periodic("presence", PRESENCE_PERIOD_S, self._show),
        ]

    def start(self, queues: tuple[str, ...], slots: int) -> None:
        self._tiers_served, self._slots = queues, slots
        sys.setswitchinterval(SWITCH_S)
        self._cancelled.start()
        for loop in self._loops:
            loop.start()
        log.info("worker.started", extra={"tiers": queues, "worker": self.name})

    def stop(self) -> None:
        for loop in self._loops:
            loop.stop()
        with suppress(RedisError):
            self._reaper.resign()
            self._presence.hide_worker(self.name, self._tiers_served)
        log.info("worker.stopped", extra={"worker": self.name})

    def _show(self) -> None:
        self._presence.show_worker(self.name, self._tiers_served, self._slots)


def create_worker() -> Celery:
    settings = load_settings()
    app = build_celery(settings)
    app.steps["consumer"].add(QuietLoop)
    worker: Worker | None = None

    def get_worker() -> Worker:
        nonlocal worker
        worker = worker or Worker(settings, app)
        return worker

    @app.task(name=ANSWER_QUERY, Strategy="tasks.strategy:answer_bells")  # type: ignore[untyped-decorator]
    def answer_query(job_id: str, tier: str) -> str:
        """Answers the job whose turn it is in the tier; `job_id` is the one that this message was sent for."""
        return get_worker().answerer.answer(tier)

    def log_as_json(**_: Any) -> None:
        configure_logging(settings.log_level, "worker")

    def start(sender: Any, **_: Any) -> None:
        served = tuple(queue for queue in sender.app.amqp.queues.consume_from if queue in TIER_NAMES)
        get_worker().start(served, sender.pool.limit)

    def stop(**_: Any) -> None:
        if worker:
            worker.stop()

    setup_logging.connect(log_as_json, weak=False)
    worker_ready.connect(start, weak=False)
    worker_shutdown.connect(stop, weak=False)
    return app


app = create_worker()
