"""`make run`: the whole service on this machine, with embedded servers for whatever is not configured."""

import fcntl
import http.client
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from config import Settings, load_settings
from embedded.environment import child_env, located, missing_servers
from embedded.port import accepts, is_free
from embedded.procfile import read_procfile
from embedded.server import Server
from embedded.supervisor import ProcessFailed, Supervisor
from routing.tier import TIERS

LIMIT_S = 60

# What to try when a step fails, by the process it was about.
_ADVICE = {
    "valkey": "Set REDIS_URL in .env to use a Redis of your own.",
    "kafka": "Set KAFKA_BOOTSTRAP_SERVERS in .env to use a Kafka of your own.",
    "model": "Set GROQ_API_KEY or TOGETHER_API_KEY in .env, or LOCAL_MODEL=off.",
    "migrate": "Check DATABASE_URL: the server must answer, and its user may create tables.",
    "web": "`make doctor` checks each part that the service talks to.",
}
_WORKER_ADVICE = "Check that the Redis of REDIS_URL answers; `make doctor` checks each part."


class Refused(Exception):
    """The launcher cannot start here; the text says why and what to do."""


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM: stop in order. It passes every `except Exception` on its way."""


class Console:
    """Lines for the one who typed `make run`; each step with the seconds since the start."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def step(self, text: str) -> None:
        print(f"{time.monotonic() - self._start:6.1f} s  {text}", flush=True)


def main() -> int:
    """Run until Ctrl-C; 0 after a clean stop, 1 where it could not start."""
    settings = load_settings()
    data_dir = Path(".data").resolve()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _interrupt)
    try:
        with _only_one(data_dir):
            _check_ports(settings)
            serve(settings, data_dir)
    except (Refused, ProcessFailed) as failure:
        print(f"\n{failure}", file=sys.stderr)
        if isinstance(failure, ProcessFailed):
            print(f"\n{_ADVICE.get(failure.name, _WORKER_ADVICE)}", file=sys.stderr)
        return 1
    except Interrupted:
        return 0
    return 0


def serve(settings: Settings, data_dir: Path) -> None:
    """Start everything, say where it is, and keep it running until Interrupted."""
    console = Console()
    servers = missing_servers(settings, data_dir)
    found = located(settings, data_dir, servers)
    env_file = data_dir / "env"
    with Supervisor(data_dir, child_env(settings, found), restart_dead=True, say=console.step) as supervisor:
        try:
            _start_servers(supervisor, servers, console)
            console.step("Database: migrating")
            supervisor.run("migrate", "python -m alembic upgrade head", LIMIT_S)
            if any(server.name == "kafka" for server in servers):
                # The embedded broker keeps its topics in memory; the events table fills them again.
                supervisor.run("republish", "python -m tasks.republish", LIMIT_S)
            _start_service(supervisor, settings, console)
            env_file.write_text("".join(f"{key}={shlex.quote(value)}\n" for key, value in found.items()))
            console.step("Ready")
            print(_welcome(settings, data_dir), flush=True)
            while True:
                signal.pause()
        finally:
            env_file.unlink(missing_ok=True)
            _stop(supervisor, servers, console)


def _start_servers(supervisor: Supervisor, servers: list[Server], console: Console) -> None:
    for server in servers:
        supervisor.start(server.name, server.command)
    for server in servers:
        console.step(f"{server.name}: starting")
        supervisor.wait(server.answers, LIMIT_S, server.name)


def _start_service(supervisor: Supervisor, settings: Settings, console: Console) -> None:
    processes = read_procfile()
    for name, command in processes.items():
        supervisor.start(name, command)
    console.step("web: starting")
    supervisor.wait(lambda: _get(settings, "/readyz")[0] == 200, LIMIT_S, "web")
    if _status(settings, "providers") == "down":
        console.step("No provider: set GROQ_API_KEY or TOGETHER_API_KEY in .env, or LOCAL_MODEL=on")
    if _status(settings, "redis") == "down":
        console.step("Redis does not answer: check REDIS_URL. Until it does, queries go without cache and queue")
        return
    for tier in TIERS:
        console.step(f"worker-{tier}: starting")
        supervisor.wait(partial(_has_worker, settings, tier), LIMIT_S, f"worker-{tier}")
    console.step("recorder and Flower: starting")
    supervisor.wait(lambda: accepts(settings.flower_port), LIMIT_S, "flower", "recorder")


def _stop(supervisor: Supervisor, servers: list[Server], console: Console) -> None:
    """In the order that loses nothing: new queries, then answers under way, their records, the servers."""

    def stop_now(*_: object) -> None:
        supervisor.kill()
        os._exit(130)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop_now)
    print(flush=True)
    console.step("Stopping (Ctrl-C again: at once)")
    supervisor.stop("web", limit_s=10)
    supervisor.stop(*(f"worker-{tier}" for tier in TIERS), limit_s=15)
    supervisor.stop("recorder", "flower", limit_s=10)
    supervisor.stop(*(server.name for server in servers), limit_s=10)
    console.step("Stopped")


def _has_worker(settings: Settings, tier: str) -> bool:
    # Without "alive" the web could not ask: Redis is away.
    return bool(_parts(settings).get("workers", {}).get("alive", {}).get(tier))


def _status(settings: Settings, part: str) -> str | None:
    status: str | None = _parts(settings).get(part, {}).get("status")
    return status


def _parts(settings: Settings) -> dict[str, Any]:
    """What GET /health says of each part; nothing where it does not answer in time."""
    status, body = _get(settings, "/health")
    parts: dict[str, Any] = json.loads(body)["parts"] if status in (200, 503) else {}
    return parts


def _get(settings: Settings, path: str) -> tuple[int, str]:
    """Status and body; 0 and nothing where nobody answers."""
    connection = http.client.HTTPConnection(_visible(settings.host), settings.port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()


def _visible(host: str) -> str:
    """The address to visit for an address to listen on."""
    return "127.0.0.1" if host in ("", "0.0.0.0", "::") else host  # noqa: S104


def _check_ports(settings: Settings) -> None:
    wanted = (("PORT", settings.host, settings.port), ("FLOWER_PORT", "127.0.0.1", settings.flower_port))
    if settings.port == settings.flower_port:
        raise Refused(f"PORT and FLOWER_PORT are both {settings.port}. Set one of them to another port.")
    for name, host, port in wanted:
        if not is_free(port, host):
            raise Refused(f"Port {port} is taken. Set another one: {name}={port + 1} make run (or {name} in .env).")


@contextmanager
def _only_one(data_dir: Path) -> Iterator[None]:
    """Hold the folder: two instances on the same files would spoil them. Raises Refused."""
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise Refused(
                f"The service already runs on {data_dir} (process {lock.read().strip()}). "
                "Stop it there with Ctrl-C first."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise Interrupted


def _welcome(settings: Settings, data_dir: Path) -> str:
    address = f"http://{_visible(settings.host)}:{settings.port}"
    with suppress(ValueError):
        data_dir = data_dir.relative_to(Path.cwd())
    key = " -H 'Authorization: Bearer <what `make key` shows>'" if settings.requires_key else ""
    return f"""
  Service     {address}/
  API         {address}/docs
  Tasks       http://127.0.0.1:{settings.flower_port}/
  Logs        {data_dir}/logs/

  Try it, in another terminal:

    curl -s {address}/api/v1/query -H 'Content-Type: application/json'{key} \\
      -d '{{"query": "What is machine learning?"}}'

  Ctrl-C stops everything.
"""


if __name__ == "__main__":
    sys.exit(main())
