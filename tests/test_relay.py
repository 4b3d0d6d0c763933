"""The relay: outbox to a broker that speaks Kafka's protocol, in order, and nothing lost while it is away."""

from collections.abc import Iterator
from functools import partial
from uuid import uuid4

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.cluster import ClusterMetadata
from kafka.partitioner import DefaultPartitioner
from redis import Redis
from sqlalchemy import Engine, delete

from embedded import broker
from embedded.port import free_port
from embedded.supervisor import Supervisor
from storage.event import TOPICS, USAGE_TOPIC, rows_of
from storage.presence import Presence
from storage.record import count_unpublished, write
from storage.table import events
from tasks.relay import MOST_OFFERED, KeyPartitioner, Relay, connect
from tests.usage_entries import accepted, ended


def consume(servers: str, topic: str) -> list[tuple[bytes, dict[str, bytes]]]:
    consumer = KafkaConsumer(bootstrap_servers=servers, consumer_timeout_ms=1_000)
    parts = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic) or ()]
    found = []
    if parts:
        consumer.assign(parts)
        consumer.seek_to_beginning(*parts)
        found = [(message.key, dict(message.headers)) for message in consumer]
    consumer.close()
    return found


def unpublished(engine: Engine) -> int:
    with engine.connect() as connection:
        return count_unpublished(connection)


def test_it_publishes_both_topics_and_marks_the_rows(engine: Engine, redis: Redis, kafka_servers: str) -> None:
    write(engine, rows_of([accepted("k1"), ended("k1")]))
    relay = Relay(engine, Presence(redis), partial(connect, kafka_servers))
    before = len(consume(kafka_servers, USAGE_TOPIC))

    assert relay.run() == 4
    assert relay.state == "ok"
    assert relay.run() == 0
    relay.stop()

    assert unpublished(engine) == 0
    key, headers = consume(kafka_servers, USAGE_TOPIC)[before:][-1]
    assert (key, headers["event_id"]) == (b"k1", b"k1.recorded")


def test_it_keeps_the_order_of_one_job(engine: Engine, redis: Redis, kafka_servers: str) -> None:
    write(engine, rows_of([accepted("k2"), ended("k2")]))
    relay = Relay(engine, Presence(redis), partial(connect, kafka_servers))
    relay.run()
    relay.stop()

    ids = [headers["event_id"] for key, headers in consume(kafka_servers, TOPICS[0]) if key == b"k2"]
    assert ids[:3] == [b"k2.accepted", b"k2.completed", b"k2.attempt.1"]


def test_it_waits_for_a_broker_that_is_away_and_then_publishes(
    engine: Engine, redis: Redis, supervisor: Supervisor
) -> None:
    port = free_port()
    write(engine, rows_of([accepted("k3")]))
    relay = Relay(engine, Presence(redis), partial(connect, f"127.0.0.1:{port}"))

    assert relay.run() == 0
    assert relay.state == "down"
    assert unpublished(engine) == 1

    server = broker.server(port, "late-kafka")
    supervisor.start(server.name, server.command, server.answers)
    assert relay.run() == 1
    assert unpublished(engine) == 0
    relay.stop()
    supervisor.stop("late-kafka")


def test_only_one_of_two_relays_publishes(engine: Engine, redis: Redis, kafka_servers: str) -> None:
    write(engine, rows_of([accepted("k4")]))
    first = Relay(engine, Presence(redis), partial(connect, kafka_servers))
    second = Relay(engine, Presence(redis), partial(connect, kafka_servers))

    assert (first.run(), second.run()) == (1, 0)
    assert second.state == "standby"
    first.stop()


def test_a_relay_that_stops_lets_another_lead_at_once(engine: Engine, redis: Redis, kafka_servers: str) -> None:
    first = Relay(engine, Presence(redis), partial(connect, kafka_servers))
    second = Relay(engine, Presence(redis), partial(connect, kafka_servers))
    first.run()
    first.stop()
    write(engine, rows_of([accepted("k5")]))

    assert second.run() == 1
    second.stop()


def test_an_address_that_cannot_be_one_is_down_and_not_the_end(engine: Engine, redis: Redis) -> None:
    relay = Relay(engine, Presence(redis), partial(connect, "kafka:notaport"))

    assert relay.run() == 0
    assert relay.state == "down"


def event_ids(servers: str, key: str) -> list[str]:
    """The job's events on the topic of analytics, repeats included, in their order."""
    return [headers["event_id"].decode() for found, headers in consume(servers, TOPICS[0]) if found == key.encode()]


@pytest.fixture
def relay(engine: Engine, redis: Redis, kafka_servers: str) -> Iterator[Relay]:
    made = Relay(engine, Presence(redis), partial(connect, kafka_servers))
    yield made
    made.stop()


def test_it_publishes_what_it_is_offered_without_reading_it(
    engine: Engine, relay: Relay, kafka_servers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, read = uuid4().hex, []
    monkeypatch.setattr("tasks.relay.unpublished", lambda connection, at_most: read.append(at_most) or [])
    relay.offer(write(engine, rows_of([accepted(job), ended(job)])))

    assert (relay.run(), unpublished(engine), read) == (4, 0, [])
    assert event_ids(kafka_servers, job) == [f"{job}.accepted", f"{job}.completed", f"{job}.attempt.1"]


def test_what_waits_in_the_table_goes_before_what_is_offered(engine: Engine, relay: Relay, kafka_servers: str) -> None:
    job = uuid4().hex
    write(engine, rows_of([accepted(job)]))  # by another recorder
    relay.offer(write(engine, rows_of([ended(job)])))

    assert (relay.run(), relay.run(), unpublished(engine)) == (4, 0, 0)
    assert event_ids(kafka_servers, job) == [f"{job}.accepted", f"{job}.completed", f"{job}.attempt.1"]


def test_what_was_published_from_the_table_is_not_published_again_from_the_offer(
    engine: Engine, relay: Relay, kafka_servers: str
) -> None:
    job = uuid4().hex
    made = write(engine, rows_of([accepted(job), ended(job)]))
    assert relay.run() == 4
    relay.offer(made)

    assert relay.run() == 0
    assert len(event_ids(kafka_servers, job)) == 3


def test_what_was_erased_meanwhile_is_not_published(engine: Engine, relay: Relay, kafka_servers: str) -> None:
    gone, kept = uuid4().hex, uuid4().hex
    relay.offer(write(engine, rows_of([accepted(gone), accepted(kept)])))
    with engine.begin() as connection:
        connection.execute(delete(events).where(events.c.key == gone))

    assert relay.run() == 1
    assert event_ids(kafka_servers, gone) == []
    assert event_ids(kafka_servers, kept) == [f"{kept}.accepted"]


def test_offers_that_nobody_takes_are_bounded_and_nothing_is_lost(
    engine: Engine, relay: Relay, kafka_servers: str
) -> None:
    made = write(engine, rows_of([accepted(uuid4().hex)]))
    relay.offer(made * (MOST_OFFERED + 5))

    assert len(relay._offered) == MOST_OFFERED
    assert relay.run() == 1
    assert (unpublished(engine), len(relay._offered)) == (0, 0)


def test_nothing_that_is_offered_is_kept_while_kafka_is_away(engine: Engine, redis: Redis) -> None:
    relay = Relay(engine, Presence(redis), partial(connect, f"127.0.0.1:{free_port()}"))
    made = write(engine, rows_of([accepted(uuid4().hex)]))
    relay.offer(made)
    relay.run()
    relay.offer(made)

    assert (relay.state, len(relay._offered), unpublished(engine)) == ("down", 0, 1)


def test_events_go_to_the_partitions_that_other_clients_would_choose() -> None:
    class Cluster(ClusterMetadata):  # type: ignore[misc]
        def topics(self) -> set[str]:
            return {"t"}

        def partitions_for_topic(self, topic: str) -> set[int]:
            return {2, 0, 1, 4, 3}

        def available_partitions_for_topic(self, topic: str) -> set[int]:
            return {0}

    for key in (uuid4().hex.encode() for _ in range(50)):
        asked = ("t", key, key, b"", b"", Cluster())
        assert KeyPartitioner().partition(*asked) == DefaultPartitioner().partition(*asked)
