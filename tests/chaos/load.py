"""The load: client threads that ask over HTTP, poll what they were promised, and keep all they saw."""

import itertools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import requests

from tests.chaos.mix import TIERS, Mix, Question

SYNC_WAIT_S = 10.0  # the service's SYNC_WAIT_SECONDS in these runs
JOB_DEADLINE_S = 40.0  # and its JOB_DEADLINE_SECONDS
SLACK_S = 15.0  # a busy machine is slow; what hangs is slower
POLL_S = 0.3
LOOK_S = 0.5
LOOKED_AT = ("/health", "/metrics", "/api/v1/metrics", "/readyz")  # what an operator's tools ask all the time
POLLED_AT_ONCE_S = 3.0  # then the client asks on, and the job is polled again when the load is over


@dataclass(slots=True)
class Seen:
    """One request and what came back. Times are `time.monotonic()` seconds; status 0 = no reply came."""

    question: Question
    request_id: str
    started: float
    ended: float = 0.0
    status: int = 0
    code: str | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
    cache: str | None = None
    is_degraded: bool = False
    error: str | None = None

    @property
    def seconds(self) -> float:
        return self.ended - self.started

    @property
    def limit_s(self) -> float:
        """How long the request may take at most."""
        wait_s = self.question.wait_s
        return (SYNC_WAIT_S if wait_s is None else wait_s) + SLACK_S

    @property
    def is_answered(self) -> bool:
        return self.status == 200

    @property
    def is_refused(self) -> bool:
        """A problem that the API documents, and no bug."""
        return self.status >= 400 and self.code is not None and self.code != "internal_error"

    @property
    def is_normal(self) -> bool:
        """Answered the ordinary way: by a worker, not from the cache and not in the web process."""
        return self.is_answered and self.cache == "MISS" and not self.is_degraded


@dataclass(slots=True)
class Promise:
    """A job that a 202 named; `status` is None until a poll found it ended, `missing` where it is unknown."""

    id: str
    question: Question
    status: str | None = None
    body: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Look:
    """One request of an operator's tool; status 0 = no reply came."""

    path: str
    status: int
    seconds: float


class Load:
    """`clients` threads, each with its own seeded mix. `address` says where the next request goes.

    One more thread looks at the operator's routes, which have to answer whatever happens.
    """

    def __init__(
        self,
        address: Callable[[], str],
        seed: str,
        *,
        clients: int = 16,
        pause_s: float = 0.12,
        tiers: Mapping[str, int] = TIERS,
    ) -> None:
        self.seen: list[Seen] = []
        self.promises: list[Promise] = []
        self.looks: list[Look] = []
        self._address, self._pause_s = address, pause_s
        self._stopped = threading.Event()
        self._started = time.monotonic()
        self._numbers = itertools.count(1)
        mixes = [Mix(f"{seed}:c{number}", tiers) for number in range(clients)]
        self._threads = [threading.Thread(target=self._run, args=[mix], daemon=True) for mix in mixes]
        self._threads.append(threading.Thread(target=self._look_around, daemon=True))

    def start(self) -> None:
        self._started = time.monotonic()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let every client finish what it does."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def ask(self, question: Question) -> Seen:
        """Ask one question now and keep what came back."""
        seen = Seen(question, f"chaos-{next(self._numbers)}", time.monotonic())
        self.seen.append(seen)
        try:
            reply = requests.post(
                f"{self._address()}/api/v1/query",
                json={"query": question.text, **question.body},
                headers={"X-Request-Id": seen.request_id},
                timeout=seen.limit_s + SLACK_S,
            )
            _keep(reply, seen)
        except (requests.RequestException, ValueError) as error:
            seen.error = type(error).__name__
        seen.ended = time.monotonic()
        if seen.status == 202:
            self.promises.append(Promise(seen.body["id"], question))
        return seen

    def poll(self, promise: Promise) -> bool:
        """Whether the job has ended, or is not known any more."""
        try:
            reply = requests.get(f"{self._address()}/api/v1/jobs/{promise.id}", timeout=SLACK_S)
            body = reply.json()
        except (requests.RequestException, ValueError):
            return False
        if reply.status_code == 200:
            promise.status, promise.body = body["status"], body
        elif reply.status_code == 404:
            promise.status = "missing"
        return promise.status is not None

    def _run(self, mix: Mix) -> None:
        while not self._stopped.is_set():
            seen = self.ask(mix.next(time.monotonic() - self._started))
            if seen.status == 202:
                self._poll_a_while(self._promise_of(seen))
            self._stopped.wait(mix.pause_s(self._pause_s))

    def _look_around(self) -> None:
        for path in itertools.cycle(LOOKED_AT):
            started = time.monotonic()
            try:
                status = requests.get(self._address() + path, timeout=2 * SLACK_S).status_code
            except requests.RequestException:
                status = 0
            self.looks.append(Look(path, status, time.monotonic() - started))
            if self._stopped.wait(LOOK_S):
                return

    def _promise_of(self, seen: Seen) -> Promise:
        return next(p for p in reversed(self.promises) if p.id == seen.body["id"])

    def _poll_a_while(self, promise: Promise) -> None:
        until = time.monotonic() + POLLED_AT_ONCE_S
        while time.monotonic() < until and not self._stopped.wait(POLL_S):
            if self.poll(promise):
                return


def _keep(reply: requests.Response, seen: Seen) -> None:
    seen.body = reply.json()
    seen.status, seen.code = reply.status_code, seen.body.get("code")
    seen.cache = reply.headers.get("X-Cache")
    seen.is_degraded = "X-Router-Degraded" in reply.headers
