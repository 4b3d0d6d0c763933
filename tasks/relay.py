"""Outbox → Kafka: publishes the events that have no `published_at`, and marks them once the broker has answered."""

import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any
from uuid import uuid4

from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient, NewTopic
from kafka.errors import KafkaError, KafkaTimeoutError, TopicAlreadyExistsError
from kafka.partitioner.abc import Partitioner
from kafka.partitioner.default import murmur2
from redis import RedisError
from sqlalchemy import Engine

from storage.event import TOPICS
from storage.presence import Presence
from storage.record import Outgoing, mark_published, unpublished, unpublished_seqs

log = logging.getLogger(__name__)

BATCH = 1_000
MOST_OFFERED = 10_000  # events; where more wait they are read again
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
        compression_type=None,  # any consumer can read it; `compression.type` of a topic has the broker pack
        partitioner=KeyPartitioner(),
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


class KeyPartitioner(Partitioner):  # type: ignore[misc]
    """The partition that Java's clients choose. Events of one job come together, so the key is hashed once for all."""

    def partition(self, topic: str, key: Any, serialized_key: bytes, value: Any, data: bytes, cluster: Any) -> int:
        partitions = sorted(cluster.partitions_for_topic(topic))
        return int(partitions[_hash(serialized_key) % len(partitions)])


@lru_cache(4_096)
def _hash(key: bytes) -> int:
    return int(murmur2(key)) & 0x7FFFFFFF


class Relay:
    """Publishes the outbox in order, one relay at a time. At least once: consumers drop repeats by `event_id`."""

    def __init__(self, engine: Engine, presence: Presence, producer: Callable[[], KafkaProducer]) -> None:
        self._engine, self._presence, self._connect = engine, presence, producer
        self._producer: KafkaProducer | None = None
        self._offered: deque[Outgoing] = deque(maxlen=MOST_OFFERED)
        self._token = uuid4().hex
        self.state = "starting"

    def offer(self, events: list[Outgoing]) -> None:
        """Events that were just committed, in their order: if nothing else waits they need not be read from SQL.

        Another thread may call it.
        """
        if self.state in ("starting", "ok"):  # else nobody takes them, and they may hold texts
            self._offered.extend(events)

    def run(self) -> int:
        """Publish one batch; how many events were confirmed. Redis and SQLAlchemy errors pass through."""
        if not self._presence.lead("relay", self._token, LEADER_TTL_MS):
            self.state = "standby"
            self._offered.clear()
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
        sent = [(event.seq, self._send(self._producer, event)) for event in self._next()]
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

    def _next(self) -> list[Outgoing]:
        """The events that have waited longest. The table says which those are; what was offered is only not read."""
        offered = [self._offered.popleft() for _ in range(min(BATCH, len(self._offered)))]
        with self._engine.connect() as connection:
            if offered and unpublished_seqs(connection, len(offered)) == [event.seq for event in offered]:
                return offered
            self._offered.clear()
            return unpublished(connection, BATCH)

    def _send(self, producer: KafkaProducer, event: Outgoing) -> Any:
        headers = [("event_id", event.event_id.encode())]
        return producer.send(event.topic, key=event.key.encode(), value=event.payload, headers=headers)

    def _give_up(self, error: Exception) -> None:
        if self.state != "down":
            log.warning("relay.waiting", extra={"error": type(error).__name__, "detail": str(error)[:300]})
        self.state = "down"
        self._offered.clear()
        self._disconnect()
