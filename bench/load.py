"""What is asked of every target, what came back, and the closed loop: wrk, whose script checks every answer."""

import itertools
import json
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

QUESTION = (
    "Question @TOKEN@: explain in two sentences how a cache in front of a language model lowers latency and cost."
)
POOL = 100
_SCRIPT = Path(__file__).with_name("load.lua")
_TIMEOUT_S = 60
_runs = itertools.count(random.SystemRandom().randrange(36**3))


@dataclass(frozen=True)
class Call:
    """How a target on this machine is asked. `body` holds @QUESTION@."""

    port: int
    path: str
    body: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def request(self) -> bytes:
        """The whole HTTP request, with @TOKEN@ where the question's token goes, which has as many bytes as all have."""
        body = self.body.replace("@QUESTION@", QUESTION)
        length = len(body.replace("@TOKEN@", new_seed() + "0" * 7))
        headers = {
            "Host": f"127.0.0.1:{self.port}",
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Content-Length": str(length),
            **self.headers,
        }
        lines = [f"POST {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


@dataclass(frozen=True)
class Outcome:
    """What a load met. `answered`: 200 with the right token; `accepted`: 202; `refused`: 429; latencies in ms.

    `asked` are all requests, those included whose replies came too late to count or were cut off at the end. `wrong`
    are 200s to another question, `unavailable` 503s that say when to come back, `other` other statuses, `broken`
    connections; `sample` shows a bad reply.
    """

    seconds: float
    asked: int
    answered: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    accepted: int = 0
    refused: int = 0
    wrong: int = 0
    unavailable: int = 0
    other: int = 0
    broken: int = 0
    sample: str = ""

    @property
    def failed(self) -> int:
        return self.wrong + self.unavailable + self.other + self.broken

    @property
    def per_second(self) -> float:
        return self.answered / self.seconds if self.seconds else 0.0


def new_seed() -> str:
    """Begins the tokens of one run; no two runs of a harness share one. Five letters and digits."""
    number, letters = next(_runs) % 36**3, ""
    for _ in range(3):
        number, rest = divmod(number, 36)
        letters += "0123456789abcdefghijklmnopqrstuvwxyz"[rest]
    return f"q{letters}x"


def unique_tokens(seed: str) -> Iterator[str]:
    return (f"{seed}{number:07d}" for number in itertools.count())


def all_tokens(seed: str, size: int = POOL) -> Iterator[str]:
    """Each of the pool once."""
    return itertools.islice(unique_tokens(seed), size)


def pooled_tokens(seed: str, size: int = POOL) -> Iterator[str]:
    """Some of the same few, again and again, at random."""
    while True:
        yield f"{seed}{random.randrange(size):07d}"


def closed_loop(call: Call, connections: int, seconds: float, *, seed: str, pool: int = 0) -> Outcome:
    """Every connection asks, waits for its answer and asks again; for providers that answer soon.

    Takes whole seconds. Raises RuntimeError where wrk cannot run.
    """
    program = shutil.which("wrk")
    if program is None:
        raise RuntimeError("wrk is missing: bench/install.sh")
    with tempfile.NamedTemporaryFile(prefix="bench-request-") as file:
        file.write(call.request())
        file.flush()
        command = [program, "-t", "1", "-c", str(connections), "-d", f"{max(1, round(seconds))}s"]
        command += ["--timeout", f"{_TIMEOUT_S}s", "-s", str(_SCRIPT), f"http://127.0.0.1:{call.port}{call.path}"]
        done = subprocess.run([*command, "--", file.name, seed, str(pool)], capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.startswith('{"seconds"')]
    if not found:
        raise RuntimeError(f"wrk failed: {done.stdout[-500:]}{done.stderr[-500:]}")
    said: dict[str, Any] = json.loads(found[-1])
    return Outcome(**said)
