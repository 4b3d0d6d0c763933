"""`make run` as a newcomer meets it: one command, no key, the embedded model, and everything where it is said to be."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil
import pytest
import requests
from dotenv import dotenv_values
from redis import Redis
from sqlalchemy import make_url, text

from config import Settings
from embedded.port import free_port
from embedded.procfile import ROOT
from storage.database import build_engine
from storage.event import TOPICS
from tests.fake_provider import KEYS, FakeProvider, Fault
from tests.integration.stack import eventually

MODEL = "smollm2-135m-instruct"
SERVICE = {"web", "worker-simple", "worker-medium", "worker-complex", "recorder", "flower"}
# The variables that would make a developer's own configuration show through.
CONFIGURED = {name.upper() for name in Settings.model_fields}


def free_ports() -> dict[str, str]:
    return {"PORT": str(free_port()), "FLOWER_PORT": str(free_port())}


@dataclass
class Launcher:
    """`python -m embedded.run` in `folder`, with `configured` in its env file. As a context manager it leaves nothing.

    `said` is what the last start has printed.
    """

    folder: Path
    configured: dict[str, str] = field(default_factory=dict)
    ports: dict[str, str] = field(default_factory=free_ports)
    process: psutil.Popen = field(init=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is not None:
            return
        family = [*self.family(), self.process]
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(30)
        finally:
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    def spawn(self) -> psutil.Popen:
        self.env_file.write_text("".join(f"{name}='{value}'\n" for name, value in self.configured.items()))
        with self.output.open("wb") as output:
            self.process = psutil.Popen(
                [sys.executable, "-m", "embedded.run"],
                cwd=self.folder,
                env=self.env,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self.process

    def start(self) -> None:
        process = self.spawn()
        eventually(lambda: "Ctrl-C stops everything" in self.said or process.poll() is not None, 120)
        assert process.poll() is None, self.said

    def stop(self) -> int:
        """As Ctrl-C does; the exit code."""
        self.process.send_signal(signal.SIGINT)
        return int(self.process.wait(60))

    @property
    def env(self) -> dict[str, str]:
        """No setting but the ports and what the env file says."""
        clean = {name: value for name, value in os.environ.items() if name not in CONFIGURED}
        return {**clean, **self.ports, "PYTHONPATH": str(ROOT), "ENV_FILE": str(self.env_file)}

    @property
    def env_file(self) -> Path:
        return self.folder / "settings.env"

    @property
    def output(self) -> Path:
        return self.folder / "output.txt"

    @property
    def said(self) -> str:
        return self.output.read_text("utf-8")

    @property
    def data(self) -> Path:
        return self.folder / ".data"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['PORT']}"

    def ask(self, query: str, **body: Any) -> requests.Response:
        return requests.post(f"{self.url}/api/v1/query", json={"query": query, **body}, timeout=90)

    def get(self, path: str) -> Any:
        return requests.get(self.url + path, timeout=30).json()

    def family(self) -> list[psutil.Process]:
        """Every process below the launcher."""
        return list(self.process.children(recursive=True))

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.data / "router.db")
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()

    def wait_until_published(self, queries: int) -> None:
        """Until so many queries are recorded as completed, and all their events are in Kafka."""

        def is_done() -> bool:
            metrics = self.get("/api/v1/metrics")
            return bool(metrics["queries"]["completed"] >= queries and metrics["unpublished_events"] == 0)

        eventually(is_done, 60)

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        """(topic, event) of each line that `make events` prints."""
        command = f"set -a; . {self.data}/env; set +a; exec {sys.executable} -m tasks.events --wait 3"
        shown = subprocess.run(["/bin/sh", "-c", command], env=self.env, capture_output=True, text=True, timeout=60)
        assert shown.returncode == 0, shown.stderr
        lines = [line.split(maxsplit=2) for line in shown.stdout.splitlines()]
        return [(topic, json.loads(event)) for topic, _, event in lines]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """A running service that nothing was configured for."""
    with Launcher(tmp_path_factory.mktemp("launcher")) as launcher:
        launcher.start()
        yield launcher


def still_there(processes: list[psutil.Process], sessions: set[int]) -> list[str]:
    """Which of these live, and who else belongs to their sessions."""

    def is_one(process: psutil.Process) -> bool:
        try:
            is_known = process in processes or os.getsid(process.pid) in sessions
            return is_known and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, ProcessLookupError):
            return False

    return [str(process) for process in psutil.process_iter() if is_one(process)]


def test_it_prints_the_address_and_a_command_that_works(service: Launcher) -> None:
    assert f"Service     {service.url}/" in service.said
    [curl] = re.findall(r"curl -s .*\\\n.*", service.said)
    shown = subprocess.run(["/bin/sh", "-c", curl], capture_output=True, text=True, timeout=90, check=True)
    answer = json.loads(shown.stdout)
    assert answer["query"] == "What is machine learning?"
    assert answer["response"].strip()


@pytest.mark.parametrize(
    ("query", "tier"),
    [
        ("What is AI?", "simple"),
        ("Explain binary search", "medium"),
        ("Provide a comprehensive analysis of microservices", "complex"),
    ],
)
def test_the_model_on_this_machine_answers_and_the_second_time_the_cache(
    service: Launcher, query: str, tier: str
) -> None:
    first = service.ask(query, max_tokens=48)
    second = service.ask(query, max_tokens=48)

    assert (first.status_code, second.status_code) == (200, 200)
    body, again = first.json(), second.json()
    assert (body["complexity"], body["provider"], body["model_used"]) == (tier, "local", MODEL)
    assert body["response"].strip()
    assert 0 < body["usage"]["completion_tokens"] <= 48
    assert (body["cached"], again["cached"], second.headers["X-Cache"]) == (False, True, "HIT")
    assert again["response"] == body["response"]


def test_a_job_ends_in_the_answer_that_a_later_query_finds(service: Launcher) -> None:
    accepted = service.ask("What is a queue?", max_tokens=48, wait_seconds=0)
    assert accepted.status_code == 202

    job = eventually(lambda: (j := service.get(accepted.headers["Location"]))["status"] == "completed" and j)
    assert job["result"]["model_used"] == MODEL
    assert job["result"]["response"].strip()
    hit = service.ask("What is a queue?", max_tokens=48)
    assert (hit.json()["cached"], hit.json()["response"]) == (True, job["result"]["response"])


def test_flower_lists_the_tasks_of_each_tier(service: Launcher) -> None:
    ids = {
        tier: service.ask(f"What is a task, {tier}?", tier=tier, max_tokens=4).json()["id"]
        for tier in ("simple", "medium", "complex")
    }

    def done() -> dict[str, str]:
        """Worker → arguments of the tasks above."""
        tasks = requests.get(f"http://127.0.0.1:{service.ports['FLOWER_PORT']}/api/tasks", timeout=10).json()
        mine = [t for t in tasks.values() if t["state"] == "SUCCESS" and any(i in t["args"] for i in ids.values())]
        return {t["worker"].split("@")[0]: t["args"] for t in mine}

    shown = eventually(lambda: len(found := done()) == 3 and found)
    assert {tier: ids[tier] in args for tier, args in shown.items()} == dict.fromkeys(ids, True)


def test_the_metrics_agree_with_what_was_asked(service: Launcher) -> None:
    before = service.get("/api/v1/metrics")
    for _ in range(3):
        assert service.ask("What is a metric?", max_tokens=8).status_code == 200
    service.wait_until_published(before["queries"]["completed"] + 3)

    after = service.get("/api/v1/metrics")
    assert after["queries"]["total"] - before["queries"]["total"] == 3
    assert after["cache"]["misses"] - before["cache"]["misses"] == 1
    assert after["cache"]["hits"] - before["cache"]["hits"] == 2
    assert after["queries"]["total"] == service.rows("SELECT count(*) FROM queries")[0][0]
    spent = service.rows("SELECT sum(cost_usd) FROM queries")[0][0]
    assert after["cost"]["spent_usd"] == pytest.approx(spent, abs=1e-8)


def test_the_event_reader_shows_both_topics(service: Launcher) -> None:
    completed = service.get("/api/v1/metrics")["queries"]["completed"]
    query_id = service.ask("What is an event?", max_tokens=8).json()["id"]
    service.wait_until_published(completed + 1)

    mine = [(topic, event["type"]) for topic, event in service.events() if event["job_id"] == query_id]
    assert {topic for topic, _ in mine} == set(TOPICS)
    assert {kind for _, kind in mine} == {"query.accepted", "query.completed", "provider.attempt", "usage.recorded"}


def test_it_refuses_a_second_start_on_the_same_data(service: Launcher) -> None:
    other = subprocess.run(
        [sys.executable, "-m", "embedded.run"],
        cwd=service.folder,
        env={**service.env, **free_ports()},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert other.returncode == 1
    assert f"already runs on {service.data} (process {service.process.pid})" in other.stderr
    assert service.get("/health")["status"] == "ok"


def test_it_says_how_to_change_a_port_that_is_taken(service: Launcher, tmp_path: Path) -> None:
    with Launcher(tmp_path, ports={"PORT": service.ports["PORT"], "FLOWER_PORT": str(free_port())}) as other:
        assert other.spawn().wait(60) == 1
        port = int(service.ports["PORT"])
        assert f"Port {port} is taken. Set another one: PORT={port + 1} make run (or PORT in .env)." in other.said
        assert not (tmp_path / ".data/logs").exists()


def test_ctrl_c_leaves_no_process_and_a_new_start_finds_everything_again(service: Launcher) -> None:
    answer = service.ask("What is AI?").json()
    service.wait_until_published(1)
    rows = service.rows("SELECT id FROM queries ORDER BY id")
    events = {event_id for (event_id,) in service.rows("SELECT event_id FROM events")}
    family = service.family()
    assert len(family) > 8
    sessions = {os.getsid(process.pid) for process in family}
    kafka = dotenv_values(service.data / "env")["KAFKA_BOOTSTRAP_SERVERS"]

    assert service.stop() == 0
    assert still_there(family, sessions) == []
    assert not (service.data / "env").exists()

    service.start()
    assert dotenv_values(service.data / "env")["KAFKA_BOOTSTRAP_SERVERS"] != kafka  # a new broker, with no topics
    again = eventually(lambda: hit(service, "What is AI?"))
    assert (again["cached"], again["response"]) == (True, answer["response"])
    assert set(rows) <= set(service.rows("SELECT id FROM queries"))
    service.wait_until_published(len(rows) + 1)
    assert events <= {event["event_id"] for _, event in service.events()}


def test_it_starts_without_the_redis_of_the_env_file_and_says_so(tmp_path: Path) -> None:
    with FakeProvider() as fake:
        configured = {
            "GROQ_API_KEY": KEYS["groq"] or "",
            "GROQ_BASE_URL": fake.base_url("groq"),
            "REDIS_URL": "redis://127.0.0.1:1/0",
        }
        with Launcher(tmp_path, configured) as service:
            service.start()
            assert "Redis does not answer: check REDIS_URL" in service.said
            response = service.ask("What is a late Redis?")
            assert (response.status_code, response.headers["X-Router-Degraded"]) == (200, "redis")


def hit(service: Launcher, query: str) -> Any:
    """The cached answer; it must not be made anew, and a machine that has just started may be too busy to say."""
    response = service.ask(query, cache={"mode": "only"})
    return response.json() if response.status_code == 200 else None


@pytest.fixture
def own_database(postgres_url: str) -> Iterator[str]:
    """An empty database on the PostgreSQL of the tests."""
    server = build_engine(postgres_url).execution_options(isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text("CREATE DATABASE launcher"))
        yield make_url(postgres_url).set(database="launcher").render_as_string(hide_password=False)
        connection.execute(text("DROP DATABASE launcher WITH (FORCE)"))
    server.dispose()


def test_it_uses_the_servers_and_keys_of_the_env_file(
    tmp_path: Path, redis: Redis, redis_url: str, own_database: str, kafka_servers: str
) -> None:
    with FakeProvider() as fake:
        configured = {
            "GROQ_API_KEY": KEYS["groq"] or "",
            "GROQ_BASE_URL": fake.base_url("groq"),
            "TOGETHER_API_KEY": KEYS["together"] or "",
            "TOGETHER_BASE_URL": fake.base_url("together"),
            "REDIS_URL": redis_url,
            "DATABASE_URL": own_database,
            "KAFKA_BOOTSTRAP_SERVERS": kafka_servers,
        }
        with Launcher(tmp_path, configured) as launcher:
            launcher.start()
            first = launcher.ask("What is a setting?").json()
            fake.fail_next("groq", Fault.status(503))
            second = launcher.ask("What is an env file?").json()

            assert (first["provider"], second["provider"]) == ("groq", "together")
            assert first["response"] == "answer to: What is a setting?"
            assert len(list(redis.scan_iter("aqr:answer:*"))) == 2
            launcher.wait_until_published(2)
            engine = build_engine(own_database)
            with engine.connect() as connection:
                ids = connection.execute(text("SELECT id FROM queries WHERE status = 'completed'")).scalars().all()
            engine.dispose()
            assert set(ids) == {first["id"], second["id"]}
            in_kafka = {event.get("query_id") for _, event in launcher.events()}
            assert {first["id"], second["id"]} <= in_kafka

            assert {log.stem for log in (launcher.data / "logs").iterdir()} == SERVICE | {"migrate"}
            assert not (launcher.data / "router.db").exists()
            assert (KEYS["groq"] or "") not in (launcher.data / "env").read_text()
            assert launcher.stop() == 0
