"""The service as processes on real servers, for tests that ask, kill and stop."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import requests
from kafka import KafkaConsumer, TopicPartition
from redis import Redis
from sqlalchemy import Engine, text

from config import Settings
from embedded.port import free_port
from embedded.procfile import read_procfile
from embedded.server import Server
from embedded.supervisor import Supervisor
from storage.database import build_engine
from storage.event import TOPICS
from tests.fake_provider import KEYS, FakeProvider

T = TypeVar("T")
SERVICE = ("web", "worker-simple", "worker-medium", "worker-complex", "recorder")


def eventually(look: Callable[[], T], limit_s: float = 30) -> T:
    """The first truthy value of `look`, or a failure after `limit_s`."""
    until = time.monotonic() + limit_s
    while not (found := look()):
        assert time.monotonic() < until, f"not true after {limit_s} s"
        time.sleep(0.05)
    return found


@dataclass
class Stack:
    """A running service. `fake` plays Groq and Together."""

    supervisor: Supervisor
    fake: FakeProvider
    env: Mapping[str, str]
    redis_server: Server
    kafka_server: Server
    http: requests.Session = field(default_factory=requests.Session)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.env['PORT']}"

    def ask(self, query: str, headers: Mapping[str, str] | None = None, **body: Any) -> requests.Response:
        return requests.post(
            f"{self.url}/api/v1/query", json={"query": query, **body}, headers=dict(headers or {}), timeout=90
        )

    def get(self, path: str) -> Any:
        return self.http.get(self.url + path, timeout=30).json()

    def health(self) -> Any:
        return self.get("/health")

    def poll(self, job_id: str, limit_s: float = 40) -> Any:
        """The job once it has ended."""

        def look() -> Any:
            response = requests.get(f"{self.url}/api/v1/jobs/{job_id}", timeout=30)
            return response.json() if response.status_code == 200 else None

        return eventually(look, limit_s)

    def rows(self, sql: str, **values: Any) -> list[Any]:
        with self.engine.connect() as connection:
            return list(connection.execute(text(sql), values).all())

    @property
    def engine(self) -> Engine:
        return build_engine(Settings(database_url=self.env["DATABASE_URL"]).sql_url)

    @property
    def redis(self) -> Redis:
        return Redis.from_url(self.env["REDIS_URL"], socket_timeout=5)

    def events(self) -> list[tuple[str, bytes]]:
        """(topic, value) of everything in Kafka."""
        consumer = KafkaConsumer(
            bootstrap_servers=self.env["KAFKA_BOOTSTRAP_SERVERS"],
            consumer_timeout_ms=1_500,
            bootstrap_timeout_ms=10_000,
        )
        parts = [TopicPartition(t, n) for t in TOPICS for n in consumer.partitions_for_topic(t) or ()]
        found = []
        if parts:
            consumer.assign(parts)
            consumer.seek_to_beginning(*parts)
            found = [(message.topic, message.value) for message in consumer]
        consumer.close()
        return found

    def wait_until_well(self) -> None:
        eventually(lambda: _is_up(self), 45)


@contextmanager
def running(
    folder: Path, database_url: str, redis_server: Server, kafka_server: Server, **changes: str
) -> Iterator[Stack]:
    """Start the servers, migrate, start every process of the Procfile but Flower, and wait until all is well."""
    with FakeProvider() as fake:
        env = {
            **os.environ,
            **redis_server.env,
            **kafka_server.env,
            "ENV_FILE": os.devnull,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONUNBUFFERED": "1",
            "PORT": str(free_port()),
            "DATABASE_URL": database_url,
            "GROQ_API_KEY": KEYS["groq"] or "",
            "GROQ_BASE_URL": fake.base_url("groq"),
            "TOGETHER_API_KEY": KEYS["together"] or "",
            "TOGETHER_BASE_URL": fake.base_url("together"),
            "LEASE_SECONDS": "2",
            "REAPER_SECONDS": "0.5",
            "REPUBLISH_SECONDS": "2",
            **changes,
        }
        with Supervisor(folder, env) as supervisor:
            redis_server.start(supervisor)
            kafka_server.start(supervisor)
            supervisor.run("migrate", "python -m alembic upgrade head")
            commands = read_procfile()
            for name in SERVICE:
                supervisor.start(name, commands[name])
            stack = Stack(supervisor, fake, env, redis_server, kafka_server)
            supervisor.wait(lambda: _is_up(stack), 60, *SERVICE)
            yield stack


def _is_up(stack: Stack) -> bool:
    try:
        return bool(stack.health()["status"] == "ok")
    except (requests.RequestException, KeyError):
        return False
