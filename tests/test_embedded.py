"""The launcher's parts: what it starts really runs, and what it stops is really gone."""

import fcntl
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kafka import KafkaConsumer, KafkaProducer
from redis import Redis

from config import Settings, load_settings
from embedded import broker, model, valkey
from embedded.environment import child_env, located, missing_servers
from embedded.port import accepts, free_port, is_free
from embedded.process import Process
from embedded.procfile import ROOT, read_procfile
from embedded.run import _welcome
from embedded.supervisor import ProcessFailed, Supervisor

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)",
]
FAMILY = [
    sys.executable,
    "-c",
    "import subprocess, sys, time;"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
    "print('up', flush=True); time.sleep(600)",
]
# The variables that would make a developer's own configuration show through.
CONFIGURED = [name.upper() for name in Settings.model_fields]


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    with Supervisor(tmp_path, os.environ) as supervisor:
        yield supervisor


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in CONFIGURED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def eventually(condition: Callable[[], bool], limit_s: float = 20) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or "\nState:\tZ" not in status.read_text("utf-8")


def says_up(supervisor: Supervisor, name: str) -> Callable[[], bool]:
    return lambda: "up" in supervisor.log(name).read_text("utf-8")


def start(supervisor: Supervisor, name: str, command: list[str]) -> int:
    supervisor.start(name, command, says_up(supervisor, name))
    pid = supervisor.pid(name)
    assert pid is not None
    return pid


# --- Supervisor


def test_it_starts_a_command_and_keeps_its_output(supervisor: Supervisor) -> None:
    supervisor.start("greeter", "echo good $WHO", env={"WHO": "morning"})
    eventually(lambda: supervisor.log("greeter").read_text("utf-8") == "good morning\n")


def test_it_empties_the_log_of_an_earlier_run(supervisor: Supervisor) -> None:
    supervisor.log("sleeper").write_text("from yesterday")
    start(supervisor, "sleeper", SLEEP)
    assert supervisor.log("sleeper").read_text("utf-8") == "up\n"


def test_it_refuses_to_start_what_runs_already(supervisor: Supervisor) -> None:
    start(supervisor, "sleeper", SLEEP)
    with pytest.raises(ValueError, match="sleeper runs already"):
        supervisor.start("sleeper", SLEEP)


def test_it_says_why_a_process_did_not_start_with_the_end_of_its_log(supervisor: Supervisor) -> None:
    with pytest.raises(ProcessFailed, match=r"(?s)broken ended with code 3.*no database here"):
        supervisor.start("broken", "sh -c 'echo no database here; exit 3'", lambda: False)


def test_it_gives_up_waiting_after_the_limit(supervisor: Supervisor) -> None:
    with pytest.raises(ProcessFailed, match=r"sleeper was not ready after 0.2 s"):
        supervisor.start("sleeper", SLEEP, lambda: False, limit_s=0.2)


def test_it_runs_a_command_to_its_end(supervisor: Supervisor) -> None:
    supervisor.run("step", "echo done")
    assert supervisor.log("step").read_text("utf-8") == "done\n"


def test_it_reports_a_command_that_fails(supervisor: Supervisor) -> None:
    with pytest.raises(ProcessFailed, match=r"(?s)step ended with code 1.*bad revision"):
        supervisor.run("step", "sh -c 'echo bad revision; exit 1'")


def test_it_ends_a_command_that_takes_too_long(supervisor: Supervisor) -> None:
    with pytest.raises(ProcessFailed, match="did not finish in 0.2 s"):
        supervisor.run("step", SLEEP, limit_s=0.2)
    assert supervisor.pids("step") == []


def test_it_stops_the_children_of_a_process_too(supervisor: Supervisor) -> None:
    start(supervisor, "family", FAMILY)
    pids = supervisor.pids("family")
    assert len(pids) == 2
    supervisor.stop("family")
    assert [pid for pid in pids if is_running(pid)] == []


def test_it_kills_what_does_not_stop(supervisor: Supervisor) -> None:
    pid = start(supervisor, "stubborn", STUBBORN)
    supervisor.stop("stubborn", limit_s=0.3)
    assert not is_running(pid)


def test_it_leaves_no_process_behind(tmp_path: Path) -> None:
    with Supervisor(tmp_path, os.environ) as supervisor:
        pids = [start(supervisor, name, SLEEP) for name in ("one", "two")]
    assert [pid for pid in pids if is_running(pid)] == []


def test_it_leaves_no_process_behind_when_a_test_fails(tmp_path: Path) -> None:
    pid = 0
    with pytest.raises(RuntimeError), Supervisor(tmp_path, os.environ) as supervisor:
        pid = start(supervisor, "sleeper", SLEEP)
        raise RuntimeError
    assert not is_running(pid)


def test_it_restarts_a_process_on_request(supervisor: Supervisor) -> None:
    before = start(supervisor, "sleeper", SLEEP)
    supervisor.restart("sleeper")
    assert supervisor.is_alive("sleeper")
    assert supervisor.pid("sleeper") != before


def test_it_leaves_a_killed_process_dead_unless_told_to_restart(supervisor: Supervisor) -> None:
    pid = start(supervisor, "sleeper", SLEEP)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not supervisor.is_alive("sleeper"))
    assert supervisor.pid("sleeper") is None


def test_it_starts_a_dead_process_again_and_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    with Supervisor(tmp_path, os.environ, restart_dead=True, say=said.append) as supervisor:
        pid = start(supervisor, "sleeper", SLEEP)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: supervisor.pid("sleeper") not in (None, pid))
    assert len(said) == 1
    assert said[0].startswith("sleeper ended with code -9; starting it again in 1 s")


def test_it_does_not_start_again_what_was_stopped(tmp_path: Path) -> None:
    said: list[str] = []
    with Supervisor(tmp_path, os.environ, restart_dead=True, say=said.append) as supervisor:
        start(supervisor, "stopped", SLEEP)
        supervisor.stop("stopped")
        pid = start(supervisor, "killed", SLEEP)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: len(said) == 1)  # the watcher has looked at both
        assert not supervisor.is_alive("stopped")


def test_it_waits_longer_with_each_death_and_forgets_after_a_steady_minute(tmp_path: Path) -> None:
    process = Process("worker", "true", tmp_path / "log", {}, tmp_path)
    assert [process.next_delay(now=0.0) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    assert process.next_delay(now=61.0) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_it_takes_its_processes_with_it_when_it_is_killed(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, sys, time\n"
        "from embedded.supervisor import Supervisor\n"
        "supervisor = Supervisor(pathlib.Path(sys.argv[1]), os.environ)\n"
        "supervisor.start('sleeper', 'sleep 600')\n"
        "print(supervisor.pid('sleeper'), flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout
        pid = int(launcher.stdout.readline())
        assert is_running(pid)
        launcher.kill()
    eventually(lambda: not is_running(pid))


# --- Servers


def test_it_starts_valkey_and_keeps_its_data_over_a_kill(supervisor: Supervisor, tmp_path: Path) -> None:
    server = valkey.server(tmp_path, free_port())
    server.start(supervisor)
    client = Redis.from_url(server.env["REDIS_URL"])
    client.set("kept", "yes")
    assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    client.config_set("appendfsync", "always")
    client.set("kept", "still")

    supervisor.kill("valkey")
    assert not server.answers()
    supervisor.restart("valkey")
    supervisor.wait(server.answers, 20, "valkey")
    assert client.get("kept") == b"still"
    client.close()


def test_it_starts_a_broker_that_speaks_kafka(supervisor: Supervisor) -> None:
    server = broker.server(free_port())
    server.start(supervisor)
    address = server.env["KAFKA_BOOTSTRAP_SERVERS"]
    producer = KafkaProducer(bootstrap_servers=address)
    producer.send("greetings", b"hello").get(timeout=20)
    producer.close()
    consumer = KafkaConsumer(
        "greetings", bootstrap_servers=address, auto_offset_reset="earliest", consumer_timeout_ms=20_000
    )
    assert next(consumer).value == b"hello"
    consumer.close()
    supervisor.stop("kafka")
    assert not server.answers()


def test_it_starts_a_model_that_answers_like_openai(supervisor: Supervisor) -> None:
    server = model.server(free_port())
    server.start(supervisor)
    address = server.env["LOCAL_BASE_URL"].removeprefix("http://").removesuffix("/v1")
    connection = http.client.HTTPConnection(address, timeout=60)
    question = {"model": model.NAME, "max_tokens": 8, "messages": [{"role": "user", "content": "Say hello."}]}
    connection.request("POST", "/v1/chat/completions", json.dumps(question), {"Content-Type": "application/json"})
    answer = json.load(connection.getresponse())
    assert answer["model"] == model.NAME
    assert answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] <= 8

    pid = supervisor.pid("model")
    supervisor.stop("model", limit_s=20)
    assert pid is not None
    assert not is_running(pid)


# --- Ports


def test_it_sees_that_a_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert not is_free(port)
        assert not is_free(port, "0.0.0.0")
        assert accepts(port)


def test_it_finds_a_free_port_outside_the_range_of_outgoing_connections() -> None:
    port = free_port()
    assert is_free(port)
    assert port < 32_768


# --- What is embedded


@pytest.mark.usefixtures("no_settings")
def test_it_embeds_everything_where_nothing_is_configured(tmp_path: Path) -> None:
    servers = missing_servers(load_settings(), tmp_path)
    assert [server.name for server in servers] == ["valkey", "kafka", "model"]
    assert located(load_settings(), tmp_path, servers).keys() == {
        "HOST",
        "PORT",
        "FLOWER_PORT",
        "REDIS_URL",
        "DATABASE_URL",
        "KAFKA_BOOTSTRAP_SERVERS",
        "LOCAL_BASE_URL",
    }


@pytest.mark.usefixtures("no_settings")
@pytest.mark.parametrize(
    ("name", "value", "left_out"),
    [
        ("REDIS_URL", "redis://10.0.0.1/0", "valkey"),
        ("REDIS_HOST", "10.0.0.1", "valkey"),
        ("KAFKA_BOOTSTRAP_SERVERS", "10.0.0.1:9092", "kafka"),
        ("GROQ_API_KEY", "key", "model"),
        ("TOGETHER_API_KEY", "key", "model"),
        ("LOCAL_MODEL", "off", "model"),
        ("LOCAL_BASE_URL", "http://10.0.0.1:8081/v1", "model"),
    ],
)
def test_it_embeds_no_server_that_is_configured(
    name: str, value: str, left_out: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(name, value)
    names = {server.name for server in missing_servers(load_settings(), tmp_path)}
    assert names == {"valkey", "kafka", "model"} - {left_out}


@pytest.mark.usefixtures("no_settings")
def test_it_writes_no_secret_among_the_addresses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://router:hidden@10.0.0.1/router")
    monkeypatch.setenv("REDIS_URL", "redis://:hidden@10.0.0.1/0")
    settings = load_settings()
    assert "hidden" not in str(located(settings, tmp_path, missing_servers(settings, tmp_path)))


@pytest.mark.usefixtures("no_settings")
def test_it_hands_the_processes_what_the_env_file_says() -> None:
    Path(".env").write_text("SIMPLE_WORKER_THREADS=7\nFLOWER_BASIC_AUTH=me:secret\nGROQ_API_KEY=\n")
    env = child_env(load_settings(), {"PORT": "8001"})
    assert env["SIMPLE_WORKER_THREADS"] == "7"
    assert env["FLOWER_BASIC_AUTH"] == "me:secret"
    assert env["PORT"] == "8001"
    assert "GROQ_API_KEY" not in env
    assert "FLOWER_UNAUTHENTICATED_API" not in env


@pytest.mark.usefixtures("no_settings")
def test_it_prefers_the_environment_to_the_env_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("SIMPLE_WORKER_THREADS=7\nMEDIUM_WORKER_THREADS=7\n")
    monkeypatch.setenv("SIMPLE_WORKER_THREADS", "9")
    monkeypatch.setenv("MEDIUM_WORKER_THREADS", "")
    env = child_env(load_settings(), {})
    assert (env["SIMPLE_WORKER_THREADS"], env["MEDIUM_WORKER_THREADS"]) == ("9", "7")


@pytest.mark.usefixtures("no_settings")
def test_it_opens_the_task_api_of_flower_on_this_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert child_env(load_settings(), {})["FLOWER_UNAUTHENTICATED_API"] == "true"
    monkeypatch.setenv("FLOWER_ADDRESS", "0.0.0.0")
    assert "FLOWER_UNAUTHENTICATED_API" not in child_env(load_settings(), {})


@pytest.mark.usefixtures("no_settings")
def test_it_keeps_a_proxy_away_from_its_own_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "example.org")
    assert child_env(load_settings(), {})["NO_PROXY"] == "example.org,127.0.0.1,localhost"


def test_it_reads_the_procfile_in_order() -> None:
    assert next(iter(read_procfile().items())) == (
        "web",
        "gunicorn -c gunicorn.conf.py 'webapp:create_app()'",
    )


# --- python -m embedded.run


def launch(folder: Path, **env: str) -> subprocess.Popen[str]:
    """The launcher with its data in `folder`/.data and no settings but `env`."""
    clean = {key: value for key, value in os.environ.items() if key not in CONFIGURED}
    return subprocess.Popen(
        [sys.executable, "-m", "embedded.run"],
        cwd=folder,
        env={**clean, "PYTHONPATH": str(ROOT), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("name", ["PORT", "FLOWER_PORT"])
def test_it_says_which_port_is_taken_and_what_to_do(name: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = {"PORT": str(free_port()), "FLOWER_PORT": str(free_port()), name: str(port)}
        with launch(tmp_path, **ports) as launcher:
            said = launcher.communicate(timeout=30)[0]
    assert f"Port {port} is taken. Set another one: {name}={port + 1} make run (or {name} in .env)." in said
    assert launcher.returncode == 1


def test_it_refuses_to_run_twice_on_the_same_data(tmp_path: Path) -> None:
    (tmp_path / ".data").mkdir()
    with (tmp_path / ".data/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711")
        lock.flush()
        with launch(tmp_path, PORT=str(free_port()), FLOWER_PORT=str(free_port())) as launcher:
            said = launcher.communicate(timeout=30)[0]
    assert "already runs" in said
    assert "process 4711" in said
    assert launcher.returncode == 1


def test_it_says_what_to_do_when_a_step_fails(tmp_path: Path) -> None:
    env = {"DATABASE_URL": "postgresql://router@127.0.0.1:1/router", "LOCAL_MODEL": "off"}
    with launch(tmp_path, PORT=str(free_port()), FLOWER_PORT=str(free_port()), **env) as launcher:
        said = launcher.communicate(timeout=60)[0]
    assert "migrate ended with code 1" in said
    assert "Check DATABASE_URL" in said
    assert launcher.returncode == 1


@pytest.mark.parametrize(("host", "needs_key"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_the_example_it_prints_has_a_key_only_where_one_is_needed(tmp_path: Path, host: str, needs_key: bool) -> None:
    assert ("Authorization: Bearer" in _welcome(Settings(host=host), tmp_path)) is needs_key
