"""The service as real processes on real servers, under a supervisor that restarts what dies, as a container's would."""

import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import requests
from redis import Redis

from embedded import broker, valkey
from embedded.port import free_port
from embedded.procfile import read_procfile
from embedded.server import Server
from embedded.supervisor import Supervisor
from tests import system_servers
from tests.chaos.load import JOB_DEADLINE_S, SYNC_WAIT_S, Load
from tests.fake_provider import KEYS, FakeProvider
from tests.integration.stack import SERVICE, eventually

WELL = ("ok", "off")
BUG_EVENTS = ("request.failed", "periodic.failed", "stream.failed")


class CannotRun(Exception):
    """The machine lacks something that a scenario needs; the text says what."""


@dataclass(frozen=True)
class Plan:
    """What a scenario wants to run on.

    `disk_mb` puts SQLite on a small disk of its own, `jumping` names whose clock can jump: `service` or `ledger`.
    """

    database: str = "sqlite"
    broker: str = "tansu"
    env: Mapping[str, str] = field(default_factory=dict)
    has_cache_apart: bool = False
    is_kafka_late: bool = False
    is_groq_untrusted: bool = False
    disk_mb: int | None = None
    web_replicas: int = 1
    recorders: int = 1
    jumping: str = ""


@dataclass
class World:
    """What the faults act on. `servers` are not restarted by themselves, the processes of `service` are.

    `restarts` has a line for each of those restarts, `out` the ports that the balancer leaves alone.
    """

    folder: Path
    plan: Plan
    env: dict[str, str]
    servers: Supervisor
    service: Supervisor
    providers: dict[str, FakeProvider]
    ledger: Server
    kafka: Server
    ports: list[int]
    restarts: list[str]
    out: set[int] = field(default_factory=set)
    load: Load = field(init=False)

    def address(self) -> str:
        """One web server, as a load balancer chooses: any that was not taken out."""
        return f"http://127.0.0.1:{random.choice([p for p in self.ports if p not in self.out])}"

    @property
    def redis(self) -> Redis:
        return Redis.from_url(self.env["REDIS_URL"], socket_timeout=5)

    @property
    def cache_redis(self) -> Redis:
        return Redis.from_url(self.env["CACHE_REDIS_URL"], socket_timeout=5)

    def health(self) -> dict[str, Any]:
        """The parts as GET /health names them; nothing where it does not answer."""
        try:
            found: dict[str, Any] = requests.get(f"{self.address()}/health", timeout=30).json()["parts"]
        except (requests.RequestException, ValueError, KeyError):
            return {}
        return found

    def ailing(self) -> list[str]:
        """The parts that do not say that they are well; providers may be held for long and are left out."""
        parts = self.health()
        if not parts:
            return ["web"]
        return [name for name, part in parts.items() if name != "providers" and part["status"] not in WELL]

    def metrics(self) -> Any:
        """Statistics as the API gives them; an empty object where it does not answer."""
        try:
            reply = requests.get(f"{self.address()}/api/v1/metrics", timeout=30)
            return reply.json() if reply.status_code == 200 else {}
        except (requests.RequestException, ValueError):
            return {}

    def jump(self, seconds: int) -> None:
        """Set the clock that can jump so far ahead."""
        with (self.folder / "clock").open("r+b", buffering=0) as clock:  # not truncated: it is mapped
            clock.write(struct.pack("l", seconds))

    def skew_s(self) -> float:
        """How far ahead the clock that can jump is now, as its owner says."""
        if self.plan.jumping == "ledger":
            return float(self.redis.time()[0]) - time.time()
        said = requests.get(f"{self.address()}/livez", timeout=10).headers["Date"]
        return parsedate_to_datetime(said).timestamp() - time.time()

    def bugs(self) -> list[str]:
        """What the service's own logs call a bug."""
        lines = (
            line for log in (self.folder / "service" / "logs").glob("*.log") for line in log.open(errors="replace")
        )
        return [line.strip() for line in lines if any(f'"{event}"' in line for event in BUG_EVENTS)]

    def is_ready(self, port: int) -> bool:
        """Whether a web server takes requests, by its own word."""
        try:
            return requests.get(f"http://127.0.0.1:{port}/readyz", timeout=10).status_code == 200
        except requests.RequestException:
            return False

    def workers(self, tier: str) -> int:
        """How many of the tier's workers show themselves."""
        parts = self.health()
        return int(parts["workers"]["alive"][tier]) if parts.get("workers", {}).get("alive") else 0

    def start_kafka(self) -> None:
        self.kafka.start(self.servers)

    def wait_until_up(self, limit_s: float = 90, but: Iterable[str] = ()) -> None:
        eventually(lambda: set(self.ailing()) <= set(but), limit_s)


@contextmanager
def running(plan: Plan, latency_s: float) -> Iterator[World]:
    """Servers, migrated database and every process of the Procfile but Flower. Raises CannotRun."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="router-chaos-")))
        folder.chmod(0o755)  # PostgreSQL runs as a user of its own
        servers = _supervisor(stack, folder / "servers", dict(os.environ))
        database_url = _database(plan, folder, servers, stack)
        providers = _providers(plan, folder, latency_s, stack)
        ledger, kafka = valkey.server(folder, free_port()), _kafka(plan, folder)
        servers.start(ledger.name, ledger.command, ledger.answers, env=_clock(plan, "ledger", folder))
        env = {**_environment(providers), **ledger.env, **kafka.env, "DATABASE_URL": database_url, **plan.env}
        env["TMPDIR"] = str(folder)  # what killed processes leave behind goes with it
        if plan.has_cache_apart:
            env |= _cache(folder, servers)
        restarts: list[str] = []
        own_clock = _clock(plan, "service", folder)
        service = _supervisor(stack, folder / "service", env | own_clock, restart_dead=True, say=restarts.append)
        ports = [int(env["PORT"])]
        world = World(folder, plan, env, servers, service, providers, ledger, kafka, ports, restarts)
        if not plan.is_kafka_late:
            world.start_kafka()
        _start(world)
        yield world


def _supervisor(stack: ExitStack, folder: Path, env: Mapping[str, str], **how: Any) -> Supervisor:
    """A supervisor whose processes end at once with the stack: nobody waits for them to drain."""
    supervisor = stack.enter_context(Supervisor(folder, env, **how))
    stack.callback(supervisor.kill)
    return supervisor


def _providers(plan: Plan, folder: Path, latency_s: float, stack: ExitStack) -> dict[str, FakeProvider]:
    certificate = _own_certificate(folder) if plan.is_groq_untrusted else None
    fakes = {"groq": FakeProvider(certificate=certificate), "together": FakeProvider()}
    for fake in fakes.values():
        stack.enter_context(fake).set_latency(latency_s)
    return fakes


def _start(world: World) -> None:
    with Supervisor(world.folder / "migration", world.env) as migration:
        migration.run("migrate", "python -m alembic upgrade head")
    commands = read_procfile()
    for name in SERVICE:
        world.service.start(name, commands[name])
    for number in range(2, world.plan.recorders + 1):
        world.service.start(f"recorder-{number}", commands["recorder"])
    for number in range(2, world.plan.web_replicas + 1):
        world.ports.append(free_port())
        world.service.start(f"web-{number}", commands["web"], env={"PORT": str(world.ports[-1])})
    world.wait_until_up(but={"kafka"} if world.plan.is_kafka_late else ())
    for port in world.ports:
        eventually(lambda port=port: world.is_ready(port))


def _environment(providers: Mapping[str, FakeProvider]) -> dict[str, str]:
    return {
        **os.environ,
        "ENV_FILE": os.devnull,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONUNBUFFERED": "1",
        "PORT": str(free_port()),
        "GROQ_API_KEY": KEYS["groq"] or "",
        "GROQ_BASE_URL": providers["groq"].base_url("groq"),
        "TOGETHER_API_KEY": KEYS["together"] or "",
        "TOGETHER_BASE_URL": providers["together"].base_url("together"),
        "MAX_INLINE_ANSWERS": "3",  # so that some are refused while Redis is away
        "LEASE_SECONDS": "4",
        "REAPER_SECONDS": "0.5",
        "REPUBLISH_SECONDS": "3",
        "SYNC_WAIT_SECONDS": f"{SYNC_WAIT_S:g}",
        "JOB_DEADLINE_SECONDS": f"{JOB_DEADLINE_S:g}",
    }


def _database(plan: Plan, folder: Path, servers: Supervisor, stack: ExitStack) -> str:
    """The URL of an empty database, started where it is a server."""
    if plan.database == "sqlite":
        disk = folder / "disk"
        disk.mkdir()
        if plan.disk_mb:
            stack.enter_context(_small_disk(disk, plan.disk_mb))
        return f"sqlite:///{disk}/router.db"
    home = folder / "postgres"
    home.mkdir()
    try:
        server = system_servers.postgres(home, free_port())
    except system_servers.NotInstalled as missing:
        raise CannotRun(str(missing)) from None
    server.start(servers)
    stack.callback(system_servers.stop_postgres, servers)
    return server.env["DATABASE_URL"]


@contextmanager
def _small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        raise CannotRun("a small disk can only be mounted by root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _own_certificate(folder: Path) -> Path:
    """A certificate for 127.0.0.1 that nobody else trusts, with its key in the same file."""
    path = folder / "own.pem"
    said = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=fake"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", f"{path}.crt"]
    try:
        subprocess.run([*said.split(), *names], check=True, capture_output=True)
    except FileNotFoundError:
        raise CannotRun("openssl is missing") from None
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


def _kafka(plan: Plan, folder: Path) -> Server:
    if plan.broker == "tansu":
        return broker.server(free_port())
    try:
        return system_servers.kafka(folder, free_port())
    except system_servers.NotInstalled as missing:
        raise CannotRun(str(missing)) from None


def _cache(folder: Path, servers: Supervisor) -> Mapping[str, str]:
    """A Redis for the answers alone; how the service finds it."""
    started = valkey.server(folder, free_port(), "cache")
    cache = replace(started, env={"CACHE_REDIS_URL": started.env["REDIS_URL"]})
    cache.start(servers)
    return cache.env


def _clock(plan: Plan, whose: str, folder: Path) -> Mapping[str, str]:
    """The environment of processes whose wall clock can jump, where the plan wants theirs to."""
    if plan.jumping != whose:
        return {}
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        raise CannotRun("a clock that jumps needs Linux and a C compiler: tests/install_servers.sh")
    library, clock = folder / "jump.so", folder / "clock"
    source = Path(__file__).with_name("jump.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source)], check=True)
    clock.write_bytes(struct.pack("l", 0))
    return {"LD_PRELOAD": str(library), "JUMP_FILE": str(clock)}
