"""The job ledger in Redis: the truth about every accepted query. Each transition is one Lua script."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from storage.answer import answer_key
from storage.connection import RedisClient, load_script
from storage.job import Acceptance, Claim, Draft, Job, Verdict

PREFIX = "aqr:"
DUE, USAGE, DONE = PREFIX + "due", PREFIX + "usage", PREFIX + "done"
UNRECORDED_HITS = PREFIX + "unrecorded_hits"

FLIGHT_GRACE_MS = 2_000  # how long a finished job still answers queries that missed the cache just before
FLIGHT_MARGIN_MS = 30_000  # over the deadline: the flight must not end before its job
BATCH_RANK_OFFSET_MS = 10**12  # batch jobs count after every interactive one in queue positions
DRAIN_WINDOW = 64  # ends that `finish.lua` keeps to measure how fast a tier drains


@dataclass(frozen=True, slots=True)
class LedgerLimits:
    """Bounds and periods; durations in ms."""

    max_queue_depth: int
    max_unrecorded_events: int
    max_runs: int
    lease_ms: int
    republish_ms: int
    keep_ms: int


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended. `facts` is what the record needs; `cache` is (fingerprint, ttl in ms) to store the answer."""

    status: str
    facts: dict[str, Any]
    attempts: Sequence[dict[str, Any]] = ()
    answer: bytes = b""
    error: dict[str, Any] | None = None
    cache: tuple[str, int] | None = None


class Ledger:
    """All transitions of a job: accept → claim → (renew …) → finish, and reap where a worker died.

    `holds_cache` says that answers live on the ledger's own server. `now_ms` replaces that server's clock in tests.
    Redis errors pass through to the caller.
    """

    def __init__(
        self,
        client: RedisClient,
        limits: LedgerLimits,
        *,
        holds_cache: bool = True,
        now_ms: Callable[[], int] | None = None,
    ) -> None:
        self.client = client
        self.limits = limits
        self._holds_cache = holds_cache
        self._now_ms = now_ms
        names = ("find", "record_hit", "accept", "withdraw", "claim", "renew", "finish", "reap")
        self._scripts = {name: load_script(client, name) for name in names}

    def find(self, fingerprint: str, caller: bytes) -> bytes | None:
        """The cached answer, its use recorded in the same round trip; only where cache and ledger share a server."""
        found: bytes | None = self._scripts["find"](
            keys=[answer_key(fingerprint), USAGE, UNRECORDED_HITS],
            args=[caller, self.limits.max_unrecorded_events],
        )
        return found

    def record_hit(self, caller: bytes, answer: bytes) -> None:
        """Record the use of an answer that came from a cache of its own."""
        self._scripts["record_hit"](
            keys=[USAGE, UNRECORDED_HITS], args=[caller, self.limits.max_unrecorded_events, answer]
        )

    def unrecorded_hits(self) -> int:
        """Hits that were answered but could not be recorded, since Redis was last emptied."""
        return int(self.client.get(UNRECORDED_HITS) or 0)

    def accept(self, draft: Draft) -> Acceptance:
        """Enter a query: as leader of a new job, follower of the same query in flight, hit, or refused."""
        flight = PREFIX + "flight:" + draft.fingerprint
        fields = {"tier": draft.tier} | ({"flight": flight} if draft.coalesce else {})
        kind, value = self._scripts["accept"](
            keys=[_job(draft.id), _callers(draft.id), flight, _queued(draft.tier), DUE, USAGE, UNRECORDED_HITS],
            args=[
                self._clock(),
                draft.id,
                int(draft.coalesce),
                self.limits.max_queue_depth,
                self.limits.max_unrecorded_events,
                draft.deadline_ms + FLIGHT_MARGIN_MS,
                self.limits.republish_ms,
                draft.deadline_ms,
                self.limits.keep_ms,
                BATCH_RANK_OFFSET_MS if draft.priority else 0,
                draft.caller,
                draft.payload,
                draft.priority,
                *(part for pair in fields.items() for part in pair),
            ],
        )
        return _acceptance(kind.decode(), value)

    def withdraw(self, job_id: str) -> bool:
        """Undo an accept, also one that may not have arrived; False where the job runs, or others have joined it."""
        return bool(self._scripts["withdraw"](keys=[_job(job_id), _callers(job_id), DUE], args=[job_id]))

    def claim(self, job_id: str, token: str, worker: str) -> Claim | str:
        """Take the job for one run, or the reason why not: `missing`, `running` or an ended status."""
        first, *rest = self._scripts["claim"](
            keys=[_job(job_id), DUE], args=[self._clock(), job_id, token, self.limits.lease_ms, worker]
        )
        if first != b"claimed":
            return str(first.decode())
        run, remaining, tier, payload, created = rest
        return Claim(job_id, token, run, remaining, tier.decode(), orjson.loads(payload), int(created))

    def renew(self, job_id: str, token: str) -> bool:
        """Extend the lease; False where the job is no longer the token's and its work is in vain."""
        args = [self._clock(), job_id, token, self.limits.lease_ms]
        return bool(self._scripts["renew"](keys=[_job(job_id), DUE], args=args))

    def finish(self, job_id: str, token: str, ending: Ending) -> bool:
        """End the job for good; False where another run took it over, whose result then stands."""
        key, ttl_ms = ("", 0)
        if ending.cache and self._holds_cache:
            key, ttl_ms = answer_key(ending.cache[0]), ending.cache[1]
        ended = self._scripts["finish"](
            keys=[_job(job_id), _callers(job_id), _attempts(job_id), DUE, USAGE, DONE],
            args=[
                self._clock(),
                job_id,
                token,
                ending.status,
                ending.answer,
                orjson.dumps(ending.error) if ending.error else b"",
                orjson.dumps(ending.facts),
                self.limits.keep_ms,
                key,
                ttl_ms,
                FLIGHT_GRACE_MS if ending.cache else 0,
                *(orjson.dumps(attempt) for attempt in ending.attempts),
            ],
        )
        return bool(ended)

    def reap(self, token: str, *, at_most: int = 200) -> list[Verdict]:
        """Look after the jobs that are due now; `lua/reap.lua` says how."""
        now = self._now_ms() if self._now_ms else _server_ms(self.client)
        due = self.client.zrangebyscore(DUE, "-inf", now, start=0, num=at_most)
        return [self._reap_one(job_id.decode(), token) for job_id in due]

    def _reap_one(self, job_id: str, token: str) -> Verdict:
        limits = self.limits
        kind, *rest = self._scripts["reap"](
            keys=[_job(job_id), _attempts(job_id), DUE],
            args=[self._clock(), job_id, token, limits.lease_ms, limits.republish_ms, limits.max_runs],
        )
        if not rest:
            return Verdict(kind.decode(), job_id)
        tier, priority, runs = rest
        return Verdict(kind.decode(), job_id, tier.decode(), priority, runs)

    def job(self, job_id: str) -> Job | None:
        """The job, or for a follower's id the job it joined, under the id asked for; None where unknown."""
        fields = self.client.hgetall(_job(job_id))
        leader = fields.pop(b"alias", None)
        if leader:
            fields = {**self.client.hgetall(_job(leader.decode())), **fields}
        if b"status" not in fields:
            return None
        attempts = self.client.lrange(_attempts(leader.decode() if leader else job_id), 0, -1)
        return _job_view(job_id, leader.decode() if leader else None, fields, attempts)

    def position(self, job: Job) -> int | None:
        """Place in its tier's queue, 1 = next; None where it is not queued."""
        rank = self.client.zrank(_queued(job.tier), job.leader or job.id)
        return None if rank is None else rank + 1

    def depths(self, tiers: Iterable[str]) -> dict[str, dict[str, int]]:
        """Jobs queued and running per tier."""
        names = list(tiers)
        with self.client.pipeline(transaction=False) as pipe:
            for tier in names:
                pipe.zcard(_queued(tier)).zcard(PREFIX + "running:" + tier)
            counts = pipe.execute()
        return {t: {"queued": counts[2 * i], "running": counts[2 * i + 1]} for i, t in enumerate(names)}

    def drain_rate(self, tier: str) -> float | None:
        """Jobs a second that the tier lately ended; None where too few have ended to tell."""
        ends = self.client.lrange(PREFIX + "drain:" + tier, 0, DRAIN_WINDOW - 1)
        if len(ends) < 2:
            return None
        elapsed_ms = _server_ms(self.client) - int(ends[-1])
        return len(ends) * 1000 / max(elapsed_ms, 1)

    def _clock(self) -> int | str:
        return self._now_ms() if self._now_ms else ""


def _job(job_id: str) -> str:
    return PREFIX + "job:" + job_id


def _callers(job_id: str) -> str:
    return PREFIX + "callers:" + job_id


def _attempts(job_id: str) -> str:
    return PREFIX + "attempts:" + job_id


def _queued(tier: str) -> str:
    return PREFIX + "queued:" + tier


def _server_ms(client: RedisClient) -> int:
    seconds, micros = client.time()
    return int(seconds * 1000 + micros // 1000)


def _acceptance(kind: Any, value: bytes) -> Acceptance:
    if kind == "hit":
        return Acceptance(kind, answer=value)
    if kind in ("leader", "follower"):
        return Acceptance(kind, job_id=value.decode())
    return Acceptance(kind, depth=int(value))


def _job_view(job_id: str, leader: str | None, fields: dict[bytes, bytes], attempts: list[bytes]) -> Job:
    payload = orjson.loads(fields[b"payload"])
    error = fields.get(b"error")
    return Job(
        id=job_id,
        leader=leader,
        status=fields[b"status"].decode(),
        tier=fields[b"tier"].decode(),
        tenant=payload["tenant"],
        created_at=int(fields[b"created_at"]),
        deadline_at=int(fields[b"deadline_at"]),
        payload=payload,
        started_at=int(fields[b"started_at"]) if b"started_at" in fields else None,
        ended_at=int(fields[b"ended_at"]) if b"ended_at" in fields else None,
        answer=fields.get(b"answer") or None,
        error=orjson.loads(error) if error else None,
        attempts=[{**orjson.loads(a), "number": n} for n, a in enumerate(attempts, 1)],
    )
