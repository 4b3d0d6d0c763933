"""Servers that no PyPI wheel brings, for the slow tests: Debian's Redis and PostgreSQL, and Apache Kafka."""

import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path
from urllib.parse import quote

import psycopg2
from kafka import KafkaConsumer
from kafka.errors import KafkaError
from redis import Redis, RedisError

from embedded.port import accepts, free_port
from embedded.server import Server
from embedded.supervisor import Supervisor
from tests.integration.stack import eventually

KAFKA = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ai-query-router" / "kafka-4.1.1"
POSTGRES_USER = "router"
POSTGRES_PASSWORD = "p@ss"  # the @ has to survive every place that reads DATABASE_URL


class NotInstalled(Exception):
    """The machine lacks a server; the text says which."""

    def __init__(self, part: str) -> None:
        super().__init__(f"{part} is not installed: tests/install_servers.sh")


def redis(folder: Path, port: int, name: str = "redis", found_as: str = "REDIS_URL", *options: str) -> Server:
    """Debian's redis-server, which the service finds as the setting `found_as`. Raises NotInstalled."""
    program = shutil.which("redis-server")
    if program is None:
        raise NotInstalled("redis-server")
    data = folder / name
    data.mkdir(parents=True, exist_ok=True)
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(data), "--save", "", *options]
    return Server(name, command, {found_as: f"redis://127.0.0.1:{port}/0"}, lambda: _redis_answers(port))


def ledger_redis(folder: Path, port: int) -> Server:
    """Redis as the README wants it for queues and jobs: on disk, and never evicting."""
    options = ("--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction")
    return redis(folder, port, "redis", "REDIS_URL", *options)


def cache_redis(folder: Path, port: int) -> Server:
    """Redis as the README wants it for answers: in memory, and evicting."""
    options = ("--appendonly", "no", "--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru")
    return redis(folder, port, "cache", "CACHE_REDIS_URL", *options)


def postgres(folder: Path, port: int, name: str = "postgres") -> Server:
    """PostgreSQL with a new cluster in `folder`, over TCP and with a password only. Raises NotInstalled.

    As root it runs as the user `postgres`, who must be able to reach `folder` (pytest's own folders are closed).
    """
    programs = _postgres_programs()
    user = _postgres_owner()
    data, password = folder / name, folder / "password"
    password.write_text(POSTGRES_PASSWORD)
    if os.getuid() == 0:
        for path in (folder, password):
            shutil.chown(path, "postgres")
    init = [str(programs / "initdb"), "--pgdata", str(data), "--username", POSTGRES_USER, "--pwfile", str(password)]
    subprocess.run(
        [*user, *init, "--auth", "scram-sha-256", "--encoding", "UTF8", "--no-sync"],
        check=True,
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    url = f"postgresql://{POSTGRES_USER}:{quote(POSTGRES_PASSWORD)}@127.0.0.1:{port}/postgres"
    command = [*user, str(programs / "postgres"), "-D", str(data), "-p", str(port), "-h", "127.0.0.1"]
    return Server(name, [*command, "-k", ""], {"DATABASE_URL": url}, lambda: _postgres_answers(url))


def stop_postgres(supervisor: Supervisor, name: str = "postgres") -> None:
    """Stop it where it runs, without waiting for its clients to hang up, as the supervisor's SIGTERM would."""
    if (pid := supervisor.pid(name)) is not None:
        os.kill(pid, signal.SIGINT)
        eventually(lambda: not supervisor.is_alive(name))


def kafka(folder: Path, port: int, name: str = "kafka") -> Server:
    """Apache Kafka, one node in KRaft mode with its log in `folder`, three partitions a topic. Raises NotInstalled."""
    java = shutil.which("java")
    if java is None:
        raise NotInstalled("Java")
    if not (KAFKA / ".complete").exists():
        raise NotInstalled("Apache Kafka")
    data = folder / name
    data.mkdir(parents=True)
    properties = data / "server.properties"
    properties.write_text(_kafka_properties(data / "log", port, free_port()))
    run = [java, "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", f"{KAFKA}/libs/*"]
    subprocess.run(
        [*run, "kafka.tools.StorageTool", "format", "--cluster-id", "tests", "--config", str(properties)],
        check=True,
        capture_output=True,
    )
    address = f"127.0.0.1:{port}"
    command = [*run, "kafka.Kafka", str(properties)]
    return Server(name, command, {"KAFKA_BOOTSTRAP_SERVERS": address}, lambda: _kafka_answers(port))


def _postgres_programs() -> Path:
    """The folder of the newest installed initdb and postgres."""
    installed = list(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if installed:
        return max(installed, key=lambda path: int(path.parent.parent.name)).parent
    found = shutil.which("postgres")
    if found is None or not (programs := Path(found).resolve().parent).joinpath("initdb").exists():
        raise NotInstalled("PostgreSQL")
    return programs


def _postgres_owner() -> list[str]:
    """What to put before PostgreSQL's commands, since it refuses to run as root."""
    if os.getuid() != 0:
        return []
    try:
        pwd.getpwnam("postgres")
    except KeyError:
        raise NotInstalled("PostgreSQL (its user)") from None
    # setpriv and not runuser: a change of user drops the tie to the test's process, and setpriv can renew it.
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--pdeathsig=KILL"]


def _kafka_properties(log: Path, port: int, controller_port: int) -> str:
    lines = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "log.dirs": log,
        "num.partitions": 3,
        # One node: without these its own topics would wait for three.
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 3,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "group.initial.rebalance.delay.ms": 0,
        # After a kill it may not register again before the old session is over, by default 9 s.
        "broker.session.timeout.ms": 3_000,
        "broker.heartbeat.interval.ms": 500,
    }
    return "".join(f"{key}={value}\n" for key, value in lines.items())


def _redis_answers(port: int) -> bool:
    try:
        with Redis(port=port, socket_timeout=1) as client:
            return bool(client.ping())
    except RedisError:
        return False


def _postgres_answers(url: str) -> bool:
    try:
        psycopg2.connect(url, connect_timeout=1).close()
    except psycopg2.OperationalError:
        return False
    return True


def _kafka_answers(port: int) -> bool:
    """Whether a client gets metadata; the port alone opens some seconds earlier."""
    if not accepts(port):
        return False
    try:
        consumer = KafkaConsumer(bootstrap_servers=f"127.0.0.1:{port}", bootstrap_timeout_ms=1_000)
        consumer.topics()
    except KafkaError:
        return False
    consumer.close()
    return True
