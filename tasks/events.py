"""`make events`: shows the events of both Kafka topics, from the beginning and as they come."""

import argparse
import json
import sys

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from config import load_settings
from storage.event import TOPICS

PARTITIONS_WAIT_MS = 5_000


def open_consumer(servers: str, wait_ms: int | None) -> KafkaConsumer:
    """A consumer of every partition of both topics, at their beginning. No group: it leaves no trace."""
    consumer = KafkaConsumer(
        bootstrap_servers=servers.split(","),
        bootstrap_timeout_ms=PARTITIONS_WAIT_MS,
        group_id=None,
        enable_auto_commit=False,
        **({"consumer_timeout_ms": wait_ms} if wait_ms is not None else {}),
    )
    parts = [TopicPartition(t, number) for t in TOPICS for number in consumer.partitions_for_topic(t) or ()]
    if parts:
        consumer.assign(parts)
        consumer.seek_to_beginning(*parts)
    return consumer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wait", type=float, metavar="S", help="stop after S seconds without an event")
    wait_s = parser.parse_args().wait
    servers = load_settings().kafka_bootstrap_servers
    if not servers:
        sys.stderr.write("No Kafka is known: start `make run` in another terminal, or set KAFKA_BOOTSTRAP_SERVERS.\n")
        return 1
    try:
        consumer = open_consumer(servers, None if wait_s is None else int(wait_s * 1000))
        if not consumer.assignment():
            sys.stderr.write("The topics do not exist yet: ask a query first.\n")
            return 1
        for message in consumer:
            event = json.loads(message.value)
            sys.stdout.write(f"{message.topic:<23} {event['type']:<17} {json.dumps(event)}\n")
            sys.stdout.flush()
    except KafkaError as error:
        sys.stderr.write(f"Kafka at {servers} does not answer ({type(error).__name__}). Is the service running?\n")
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
