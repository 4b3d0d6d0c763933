"""The values of the job ledger: what goes in, what a worker claims, what a caller may read."""

from dataclasses import dataclass
from typing import Any, Literal

import orjson

from storage.quota import Quota

INTERACTIVE, BATCH = 0, 9  # Celery's priorities on Redis: 0 is served first
PRIORITIES = {"interactive": INTERACTIVE, "batch": BATCH}

OPEN_STATUSES = ("queued", "running")


@dataclass(frozen=True, slots=True)
class Draft:
    """A query about to become a job. `payload` is what the worker needs, `caller` what the record needs; both JSON.

    `deadline_ms` and `start_by_ms` count from now: the job is given up when it has not ended, not begun by then.
    `text` is the query's, where it is to be recorded.
    """

    id: str
    tenant: str
    tier: str
    priority: int
    fingerprint: str
    coalesce: bool
    deadline_ms: int
    payload: bytes
    caller: bytes
    start_by_ms: int | None = None
    quota: Quota | None = None
    text: str = ""


Refusal = Literal["full", "tenant_full", "crowded", "backlog", "open_jobs", "tokens_day", "budget_day", "budget_month"]


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What became of a draft. `answer` for a hit, `job_id` for leader and follower, `number` where refused: how many
    there are already, or for a key's limits how many ms to wait. `withdrawn`: it had been taken back before it came.
    """

    kind: Literal["leader", "follower", "hit", "withdrawn"] | Refusal
    job_id: str | None = None
    needs_message: bool = False
    answer: bytes | None = None
    number: int = 0


@dataclass(frozen=True, slots=True)
class Claim:
    """One run of a job, held under `token` until its lease ends. `remaining_ms` of 0 or less: it is too late."""

    job_id: str
    token: str
    run: int
    remaining_ms: int
    tier: str
    payload: dict[str, Any]
    created_at: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the reaper found out about one due job (`lua/reap.lua` lists the kinds)."""

    kind: Literal["gone", "early", "ring", "expired", "dead", "cancelled"]
    job_id: str
    tier: str = ""
    priority: int = INTERACTIVE
    run: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """A job as its caller may see it. Times are Unix ms of the Redis server.

    `leader` is the job that answers in this one's place, where the query joined one that was in flight; `payer` the
    query whose account the answer goes on. A `cancelled` job that goes on for others shows no more than that.
    """

    id: str
    leader: str | None
    status: str
    tier: str
    tenant: str
    created_at: int
    deadline_at: int
    payload: dict[str, Any]
    started_at: int | None
    ended_at: int | None
    answer: bytes | None
    error: dict[str, Any] | None
    attempts: list[dict[str, Any]]
    priority: int = INTERACTIVE
    payer: str | None = None
    replays: int = 0
    is_cancelling: bool = False
    is_hit: bool = False

    @property
    def is_open(self) -> bool:
        return self.status in OPEN_STATUSES


@dataclass(frozen=True, slots=True)
class Glance:
    """As much of a job as its caller needs while it waits."""

    status: str
    answer: bytes | None = None
    payer: str | None = None

    @property
    def is_open(self) -> bool:
        return self.status in OPEN_STATUSES

    @property
    def is_answered(self) -> bool:
        return self.status == "completed" and self.answer is not None


def read_job(job_id: str, leader: str | None, fields: dict[bytes, bytes], attempts: list[bytes]) -> Job:
    """A job out of the fields of its hash and the JSON of its attempts."""
    payload = orjson.loads(fields.get(b"payload", b"{}"))  # of a job that was given up there is none left
    error = fields.get(b"error")
    return Job(
        id=job_id,
        leader=leader,
        status="cancelled" if b"left_at" in fields else fields[b"status"].decode(),
        tier=fields[b"tier"].decode(),
        tenant=fields[b"tenant"].decode(),
        created_at=int(fields[b"created_at"]),
        deadline_at=int(fields[b"deadline_at"]),
        payload=payload,
        started_at=int(fields[b"started_at"]) if b"started_at" in fields else None,
        ended_at=int(fields[b"ended_at"]) if b"ended_at" in fields else None,
        answer=fields.get(b"answer") or None,
        error=orjson.loads(error) if error else None,
        attempts=[{**orjson.loads(a), "number": n} for n, a in enumerate(attempts, 1)],
        priority=int(fields.get(b"priority", 0)),
        payer=fields[b"payer"].decode() if b"payer" in fields else None,
        replays=int(fields.get(b"replays", 0)),
        is_cancelling=b"cancel_at" in fields,
        is_hit=b"is_hit" in fields,
    )
