"""What a hit, the same hit again and a miss cost, in instructions: those a busy machine does not change, so that a test
can hold them.

`python -m bench.cost` counts under valgrind and compares with `bench/cost.json`; `--write` makes that file anew.
Counted are the web process's part and, of a miss, the worker's: one process plays both, on a real Redis and a provider
that speaks HTTP. Not counted: gunicorn's sockets, Celery, Redis, the recorder.
"""

import argparse
import json
import os
import re
import selectors
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.load import Call
from bench.product import TIER, environment
from bench.provider import KEY, start_provider
from bench.rival import QUERY
from config import load_settings
from embedded import valkey
from embedded.port import free_port
from embedded.supervisor import Supervisor
from logs import clear_log_context, configure_logging
from storage.api_key import KeyFacts
from tasks.app import build_celery
from tasks.worker import Worker
from webapp import create_app
from webapp.express import Express

REFERENCE = Path(__file__).with_name("cost.json")
PATHS = {"hit": "0", "again": "60", "miss": "0"}
"""What is counted, and for how many seconds the web process answers from memory (RECENT_ANSWER_SECONDS)."""

ALLOWED = 1.20  # of the reference: more is a regression
WARM_UP, COUNTED = 30, 60
LIMIT_S = 280
_COLLECTED = re.compile(r"Collected : (\d+)")


class NotCounted(Exception):
    """valgrind is missing, or the run failed; the text says which."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cost", description=__doc__)
    parser.add_argument("--write", action="store_true", help="make the reference anew")
    parser.add_argument("--play", choices=PATHS, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.play:
        _play(asked.play)
    found = count()
    if asked.write:
        REFERENCE.write_text(json.dumps(found, indent=2) + "\n")
    reference = json.loads(REFERENCE.read_text())
    for path in PATHS:
        share = found[path] / reference[path]
        sys.stdout.write(f"{path}: {found[path]:,} instructions, {share:.2f} of the reference\n")
    return int(bool(regressions(found, reference)))


def count() -> dict[str, int]:
    """Instructions of one request by path. Takes a minute or two. Raises NotCounted."""
    if not (shutil.which("valgrind") and shutil.which("callgrind_control")):
        raise NotCounted("valgrind is missing: tests/install_servers.sh installs it")
    with tempfile.TemporaryDirectory(prefix="cost-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with Supervisor(folder, environment()) as supervisor:
            redis = valkey.server(folder, free_port())
            redis.start(supervisor)
            provider = start_provider(supervisor)
            env = environment() | redis.env | _settings(provider.url, folder)
            subprocess.run(
                [sys.executable, "-m", "alembic", "upgrade", "head"], env=env, check=True, capture_output=True
            )
            return {path: _count(path, env | {"RECENT_ANSWER_SECONDS": age}, folder) for path, age in PATHS.items()}


def regressions(found: Mapping[str, int], reference: Mapping[str, int]) -> list[str]:
    return [path for path in PATHS if found[path] > reference[path] * ALLOWED]


def _settings(provider_url: str, folder: Path) -> dict[str, str]:
    return {
        "DATABASE_URL": f"sqlite:///{folder}/router.db",
        "AUTH": "on",
        "LOG_LEVEL": "INFO",
        "GROQ_API_KEY": KEY,
        "GROQ_BASE_URL": f"{provider_url}/openai/v1",
        "PYTHONHASHSEED": "0",
    }


def _count(path: str, env: Mapping[str, str], folder: Path) -> int:
    """Instructions a request, from where the player says that it is warm to its end."""
    command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/{path}.out"]
    command += [sys.executable, "-m", "bench.cost", "--play", path]
    with (folder / f"{path}.log").open("w+") as log:
        player = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert player.stdin and player.stdout  # noqa: S101 - they are pipes
            if player.stdout.readline() != "warm\n":
                raise NotCounted(f"it did not get warm: {_end_of(log)}")
            subprocess.run(["callgrind_control", "--instr=on", str(player.pid)], check=True, capture_output=True)
            player.stdin.write("go\n")
            player.stdin.flush()
            player.wait(LIMIT_S)
        finally:
            player.kill()
            player.communicate()
        said = _end_of(log)
    found = _COLLECTED.search(said)
    if player.returncode or not found:
        raise NotCounted(f"the run failed: {said}")
    return int(found[1]) // COUNTED


def _end_of(log: Any) -> str:
    log.seek(0)
    return str(log.read()[-3000:])


class Loop:
    """An event loop for one request at a time, in place of the server's (`webapp.express.Server`)."""

    is_closing = False

    def __init__(self) -> None:
        self.poller = selectors.DefaultSelector()
        self.reply: bytes | None = None

    def apart(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        then(work())

    def respond(self, connection: Any, data: bytes) -> None:
        self.reply = data


def _play(path: str) -> None:
    """Serve requests, say `warm`, wait for a line, serve those that are counted, and end at once."""
    ask = _asker(path)
    for number in range(WARM_UP):
        ask(number)
    sys.stdout.write("warm\n")
    sys.stdout.flush()
    sys.stdin.readline()
    for number in range(WARM_UP, WARM_UP + COUNTED):
        ask(number)
    os._exit(0)


class Player:
    """Web process and worker in one thread, turn by turn."""

    def __init__(self) -> None:
        settings = load_settings()
        configure_logging("INFO", "web")
        app = create_app(settings)
        door = app.extensions["door"]
        key, secret = door.store.create(KeyFacts("cost", "cost", frozenset({"query"})))
        door.cache.find(key.id)
        self._request = Call(0, "/api/v1/query", QUERY, {"Authorization": f"Bearer {secret}"}).request()
        self._loop = Loop()
        self._express = Express(app, self._loop)
        self._worker = Worker(settings, build_celery(settings))
        self._ask_application(app, secret)

    def _ask_application(self, app: Any, secret: str) -> None:
        """Scripts are loaded by the first request that Redis does not know them for."""
        headers = {"Authorization": f"Bearer {secret}"}
        app.test_client().post("/api/v1/query", json={"query": "first", "wait_seconds": 0}, headers=headers)
        clear_log_context()  # the loop has a thread of its own
        while not self._express.is_open:
            self._turn()

    def ask(self, token: str) -> bytes:
        """The reply to the question of this token."""
        self._loop.reply = None
        errand = self._express.take(object(), self._request.replace(b"@TOKEN@", token.encode()))
        assert errand  # noqa: S101 - a plain request
        while self._loop.reply is None:
            self._turn()
            if errand.is_entered and not errand.is_done:
                self._worker.answerer.answer(TIER)
        return self._loop.reply

    def _turn(self) -> None:
        self._express.tend()
        for key, _ in self._loop.poller.select(1):
            key.data(key.fileobj)


def _asker(path: str) -> Callable[[int], None]:
    """One request as a function of its number."""
    player, seed = Player(), path.ljust(5, "0")  # as long as `load.new_seed`
    is_hit = path != "miss"
    if is_hit:
        player.ask(f"{seed}{0:07d}")
    cache = b"HIT" if is_hit else b"MISS"

    def ask(number: int) -> None:
        reply = player.ask(f"{seed}{0 if is_hit else number:07d}")
        assert b"X-Cache: " + cache in reply, reply  # noqa: S101 - or it would not be the path that is measured

    return ask


if __name__ == "__main__":
    sys.exit(main())
