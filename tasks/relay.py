"""Outbox → Kafka: publishes the events that have no `published_at`, and marks them once the broker has answered."""

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import uuid4

from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient, NewTopic
from kafka.errors import KafkaError, KafkaTimeoutError, TopicAlreadyExistsError
from redis import RedisError
from sqlalchemy import Engine

from storage.event import TOPICS
from storage.presence import Presence
from storage.record import mark_published, unpublished

log = logging.getLogger(__name__)

BATCH = 500
CONFIRM_TIMEOUT_S = 9.0
LEADER_TTL_MS = 20_000  # longer than one batch may take, so that two relays do not publish the same rows
BOOTSTRAP_MS = 5_000
CLOSE_TIMEOUT_S = 2


def connect(servers: str) -> KafkaProducer:
    """A producer whose every wait has a limit, once the topics exist. Raises KafkaError where no broker answers."""
    make_topics(servers)
    return KafkaProducer(
        bootstrap_servers=servers.split(","),
        client_id="ai-query-router",
        acks="all",
        enable_idempotence=True,
        compression_type="gzip",
        linger_ms=20,
        batch_size=65_536,
        request_timeout_ms=5_000,
        delivery_timeout_ms=8_000,
        max_block_ms=3_000,
        bootstrap_timeout_ms=BOOTSTRAP_MS,
    )


def make_topics(servers: str) -> None:
    """Create our topics with the broker's default partitions and replication, where they are missing."""
    admin = KafkaAdminClient(bootstrap_servers=servers.split(","), bootstrap_timeout_ms=BOOTSTRAP_MS)
    try:
        missing = set(TOPICS) - set(admin.list_topics())
        for topic in sorted(missing):
            admin.create_topics([NewTopic(topic, num_partitions=-1, replication_factor=-1)])
    except TopicAlreadyExistsError:
        return
    finally:
        admin.close()


class Relay:
    """Publishes the outbox in order, one relay at a time. At least once: consumers drop repeats by `event_id`."""

    def __init__(self, engine: Engine, presence: Presence, producer: Callable[[], KafkaProducer]) -> None:
        self._engine, self._presence, self._connect = engine, presence, producer
        self._producer: KafkaProducer | None = None
        self._token = uuid4().hex
        self.state = "starting"

    def run(self) -> int:
        """Publish one batch; how many events were confirmed. Redis and SQLAlchemy errors pass through."""
        if not self._presence.lead("relay", self._token, LEADER_TTL_MS):
            self.state = "standby"
            return 0
        try:
            published = self._publish()
        except (KafkaError, ValueError) as error:  # ValueError: an address that cannot be one
            self._give_up(error)
            return 0
        self.state = "ok"
        return published

    def stop(self) -> None:
        """Close the producer and let another relay lead."""
        self._disconnect()
        with suppress(RedisError):
            self._presence.resign("relay", self._token)

    def _disconnect(self) -> None:
        """Drop the producer: one that has failed may never send again, a new one starts afresh."""
        producer, self._producer = self._producer, None
        if producer is None:
            return
        try:
            producer.close(timeout=CLOSE_TIMEOUT_S)
        except KafkaError:
            # kafka-python 3.0.12: close() raises when its flush times out, before it has stopped its own thread.
            producer._sender.force_close()
            producer._closed = True

    def _publish(self) -> int:
        self._producer = self._producer or self._connect()
        with self._engine.connect() as connection:
            waiting = unpublished(connection, BATCH)
        sent = [(row.seq, self._send(self._producer, row)) for row in waiting]
        if not sent:
            return 0
        with suppress(KafkaTimeoutError):  # what was confirmed until then is marked all the same
            self._producer.flush(timeout=CONFIRM_TIMEOUT_S)
        confirmed = [seq for seq, future in sent if future.succeeded()]
        with self._engine.begin() as connection:
            mark_published(connection, confirmed)
        if len(confirmed) < len(sent):
            raise KafkaError(f"{len(sent) - len(confirmed)} of {len(sent)} events were not confirmed")
        return len(confirmed)

    def _send(self, producer: KafkaProducer, row: Any) -> Any:
        headers = [("event_id", row.event_id.encode())]
        return producer.send(row.topic, key=row.key.encode(), value=row.payload, headers=headers)

    def _give_up(self, error: Exception) -> None:
        if self.state != "down":
            log.warning("relay.waiting", extra={"error": type(error).__name__, "detail": str(error)[:300]})
        self.state = "down"
        self._disconnect()
