"""Taking away what has been kept long enough, at leisure, by one recorder at a time."""

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from redis import RedisError
from sqlalchemy import Engine

from config import Settings
from storage.connection import RedisClient
from storage.poison import Poison
from storage.presence import Presence
from storage.retention import Chore, Periods, chores, sweep

log = logging.getLogger(__name__)

PERIOD_S = 600
PAUSE_S = 0.05  # between batches: what the recorder wants to write meanwhile goes first
LEADER_TTL_MS = int(PERIOD_S * 2.5 * 1000)  # over a period, so that the one that looked at everything goes on
LOOK_AT_ALL = timedelta(days=1)


def periods_of(settings: Settings) -> Periods:
    return Periods(
        texts=settings.text_retention_days,
        queries=settings.query_retention_days,
        attempts=settings.attempt_retention_days,
        events=settings.event_retention_days,
        is_relayed=settings.kafka_bootstrap_servers is not None,
    )


class Purge:
    """Every recorder has one; the one that leads works.

    Once a day it looks at every row that is old enough, in between only at those that have become so since: a row that
    could not go at its time (an event that waited for Kafka) goes within a day.
    """

    def __init__(
        self,
        engine: Engine,
        client: RedisClient,
        periods: Periods,
        stopped: threading.Event,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._engine, self._periods, self._stopped, self._now = engine, periods, stopped, now
        self._presence, self._poison = Presence(client), Poison(client)
        self._token = uuid4().hex
        self._swept: dict[str, datetime] = {}
        self._looked_at_all: datetime | None = None

    def run(self) -> None:
        """Take away what is due, if this purge leads. Redis and SQLAlchemy errors pass through."""
        if not self._may_go_on():
            return
        now = self._now()
        if self._looked_at_all is None or now - self._looked_at_all >= LOOK_AT_ALL:
            self._swept.clear()
            self._looked_at_all = now
        oldest = now - timedelta(days=self._periods.texts)
        _tell("poison", self._poison.forget(int(oldest.timestamp() * 1000)), oldest)
        for chore in chores(self._periods):
            if not self._sweep(chore, now - timedelta(days=chore.days)):
                return

    def resign(self) -> None:
        """Let another recorder's purge lead at once."""
        with suppress(RedisError):
            self._presence.resign("purge", self._token)

    def _sweep(self, chore: Chore, before: datetime) -> bool:
        """Whether it came to its end."""
        count = 0
        try:
            for changed in sweep(self._engine, chore, before, self._swept.get(chore.name)):
                count += changed
                if self._stopped.wait(PAUSE_S) or not self._may_go_on():
                    return False
        finally:
            _tell(chore.name, count, before)
        self._swept[chore.name] = before
        return True

    def _may_go_on(self) -> bool:
        return not self._stopped.is_set() and self._presence.lead("purge", self._token, LEADER_TTL_MS)


def _tell(what: str, count: int, before: datetime) -> None:
    if count:
        log.info("purge.done", extra={"what": what, "count": count, "before": before.isoformat()})
