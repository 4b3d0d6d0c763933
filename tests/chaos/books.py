"""What SQL and Kafka hold after a run: every row and every event, read once."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from kafka import KafkaConsumer, TopicPartition
from sqlalchemy import Engine, select

from config import Settings
from storage.database import build_engine
from storage.event import TOPICS
from storage.table import attempts, events, queries

OPEN = ("queued", "running")
QUIET_MS = 2_000  # Kafka has said all when it has said nothing for so long


@dataclass(frozen=True)
class Books:
    """Rows as they are in the tables. `kafka` counts each (topic, event_id), repeats included."""

    queries: Sequence[Any] = ()
    attempts: Sequence[Any] = ()
    events: Sequence[Any] = ()
    kafka: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def open_ids(self) -> set[str]:
        """Queries that were accepted and have not ended."""
        return {row.id for row in self.queries if row.status in OPEN}

    @property
    def event_ids(self) -> set[str]:
        return {row.event_id for row in self.events}

    def missing_events(self) -> set[str]:
        """Events that the queries' rows say happened, and that are not in SQL."""
        expected: set[str] = set()
        for row in self.queries:
            expected |= {f"{row.id}.{name}" for name in _life_of(row)}
        return expected - self.event_ids

    def missing_in_kafka(self) -> set[tuple[str, str]]:
        return {(row.topic, row.event_id) for row in self.events} - set(self.kafka)

    def unknown_in_kafka(self) -> set[tuple[str, str]]:
        """Events that were published and are not in SQL."""
        return set(self.kafka) - {(row.topic, row.event_id) for row in self.events}


def read_books(database_url: str, kafka_servers: str | None = None) -> Books:
    """Everything in the tables and, where servers are given, in the topics. Database and Kafka errors pass through."""
    engine = build_engine(Settings(database_url=database_url).sql_url)
    try:
        found = {table.name: _rows(engine, table) for table in (queries, attempts, events)}
    finally:
        engine.dispose()
    return Books(**found, kafka=_read_kafka(kafka_servers) if kafka_servers else Counter())


def _life_of(row: Any) -> tuple[str, ...]:
    if row.status in OPEN:
        return ("accepted",)
    if row.cache == "HIT":
        return ("cache_hit", "recorded")
    # What a web process answered itself, while Redis was away, was never queued.
    accepted = () if row.is_degraded else ("accepted",)
    return (*accepted, row.status, *(("recorded",) if row.status == "completed" else ()))


def _rows(engine: Engine, table: Any) -> Sequence[Any]:
    with engine.connect() as connection:
        return connection.execute(select(table)).all()


def _read_kafka(servers: str) -> Counter[tuple[str, str]]:
    consumer = KafkaConsumer(
        bootstrap_servers=servers, consumer_timeout_ms=QUIET_MS, bootstrap_timeout_ms=20_000, fetch_max_wait_ms=200
    )
    try:
        parts = [TopicPartition(t, n) for t in TOPICS for n in consumer.partitions_for_topic(t) or ()]
        if not parts:
            return Counter()
        consumer.assign(parts)
        consumer.seek_to_beginning(*parts)
        return Counter((message.topic, orjson.loads(message.value)["event_id"]) for message in consumer)
    finally:
        consumer.close()
