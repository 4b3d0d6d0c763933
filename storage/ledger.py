"""The job ledger in Redis: the truth about every accepted query. Each transition is one Lua script."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from storage.answer import answer_key, bare
from storage.connection import Command, RedisClient, load_script, script_command, server_ms
from storage.job import Acceptance, Claim, Draft, Glance, Job, Verdict, read_job
from storage.name import (
    CANCELLED,
    DEAD_TENANTS,
    DONE,
    DUE,
    PREFIX,
    UNRECORDED_HITS,
    USAGE,
    attempts_key,
    callers_key,
    flight_key,
    job_key,
    withdrawn_key,
)
from storage.quota import nano

Arguments = tuple[list[str], list[Any]]  # of a script: its KEYS and ARGV

JOB_PARTS = ("line", "spend", "ending")  # Lua that the scripts about jobs share
FLIGHT_GRACE_MS = 2_000  # how long a finished job still answers queries that missed the cache just before
WITHDRAWN_MS = 60_000  # longer than a packet may be on its way
SLACK_MS = 1_000
FLIGHT_MARGIN_MS = 30_000  # over the deadline: the flight must not end before its job


@dataclass(frozen=True, slots=True)
class LedgerLimits:
    """Bounds and periods; durations in ms."""

    max_queue_depth: int
    max_tenant_queue_depth: int
    max_callers_per_job: int
    max_unrecorded_events: int
    max_completion_entries: int
    max_runs: int
    max_dead_letters: int
    lease_ms: int
    republish_ms: int
    keep_ms: int
    keep_dead_ms: int
    batch_share: float


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended. `facts` is what the record needs; `cache` is (fingerprint, ttl in ms) to store the answer.

    `charge_usd` and `charge_tokens` go on the payer's account; a dead letter is kept to be replayed.
    """

    status: str
    facts: dict[str, Any]
    attempts: Sequence[dict[str, Any]] = ()
    answer: bytes = b""
    error: dict[str, Any] | None = None
    cache: tuple[str, int] | None = None
    charge_usd: float = 0.0
    charge_tokens: int = 0
    is_dead_letter: bool = False


class Ledger:
    """All transitions of a job: accept → claim → (renew …) → finish; cancel; and reap where a worker died.

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
        names = (
            "find",
            "count_request",
            "record_hit",
            "accept",
            "withdraw",
            "claim",
            "renew",
            "finish",
            "cancel",
            "reap",
            "replay",
        )
        self._scripts = {name: load_script(client, name, *JOB_PARTS) for name in names}

    def find(self, fingerprint: str, caller: bytes, rate: tuple[str, int] | None = None) -> bytes | int | None:
        """The cached answer, its use recorded in the same round trip; only where cache and ledger share a server.

        `rate` is the API key's id and its requests per minute, where it has a limit: over that, the ms to wait.
        """
        return read_found(self._scripts["find"](*self._finding(fingerprint, caller, rate)))

    def find_command(self, fingerprint: str, caller: bytes, rate: tuple[str, int] | None = None) -> Command:
        """What `find` sends; `read_found` reads the reply."""
        return script_command(self._scripts["find"], *self._finding(fingerprint, caller, rate))

    def _finding(self, fingerprint: str, caller: bytes, rate: tuple[str, int] | None) -> Arguments:
        keys = [answer_key(fingerprint), USAGE, UNRECORDED_HITS]
        return keys, [self._clock(), caller, self.limits.max_unrecorded_events, *(rate or ("", ""))]

    def count_request(self, rate: tuple[str, int]) -> int | None:
        """Count a request that looks no answer up; ms to wait where the key has had its requests of the minute."""
        wait: int | None = self._scripts["count_request"](keys=[], args=[self._clock(), *rate])
        return wait

    def record_hit(self, caller: bytes, answer: bytes) -> None:
        """Record the use of an answer that came from a cache of its own."""
        self._scripts["record_hit"](*self._recording(caller, answer))

    def record_hit_command(self, caller: bytes, answer: bytes) -> Command:
        """What `record_hit` sends."""
        return script_command(self._scripts["record_hit"], *self._recording(caller, answer))

    def _recording(self, caller: bytes, answer: bytes) -> Arguments:
        return [USAGE, UNRECORDED_HITS], [caller, self.limits.max_unrecorded_events, answer]

    def unrecorded_hits(self) -> int:
        """Hits that were answered but could not be recorded, since Redis was last emptied."""
        return int(self.client.get(UNRECORDED_HITS) or 0)

    def accept(self, draft: Draft) -> Acceptance:
        """Enter a query: as leader of a new job, follower of the same query in flight, hit, or refused."""
        return read_acceptance(self._scripts["accept"](*self._accepting(draft)))

    def accept_command(self, draft: Draft) -> Command:
        """What `accept` sends; `read_acceptance` reads the reply."""
        return script_command(self._scripts["accept"], *self._accepting(draft))

    def _accepting(self, draft: Draft) -> Arguments:
        limits, flight = self.limits, flight_key(draft.tenant, draft.fingerprint)
        bounds = {
            "queue": limits.max_queue_depth,
            "tenant_queue": limits.max_tenant_queue_depth,
            "callers": limits.max_callers_per_job,
            "usage": limits.max_unrecorded_events,
        }
        job, callers, mark = job_key(draft.id), callers_key(draft.id), withdrawn_key(draft.id)
        return [job, callers, flight, DUE, USAGE, UNRECORDED_HITS, mark], [
            self._clock(),
            draft.id,
            int(draft.coalesce),
            orjson.dumps(bounds),
            draft.deadline_ms + FLIGHT_MARGIN_MS,
            limits.republish_ms,
            draft.deadline_ms,
            "" if draft.start_by_ms is None else draft.start_by_ms,
            limits.keep_ms,
            draft.caller,
            draft.tenant,
            draft.quota.encode() if draft.quota else b"",
            draft.payload,
            draft.priority,
            draft.tier,
            draft.text,
        ]

    def withdraw(self, job_id: str) -> bool:
        """Undo an accept, also one that is still on its way; False where the job has run, or others have joined it."""
        keys = [job_key(job_id), callers_key(job_id), attempts_key(job_id), DUE, withdrawn_key(job_id)]
        return bool(self._scripts["withdraw"](keys=keys, args=[job_id, WITHDRAWN_MS]))

    def claim(self, tier: str, token: str, worker: str) -> Claim | None:
        """Take the job whose turn it is in the tier for one run; None where nobody waits."""
        found = self._scripts["claim"](
            keys=[DUE, PREFIX + "claimed:" + token],
            args=[self._clock(), tier, token, self.limits.lease_ms, worker, self.limits.batch_share],
        )
        if not found:
            return None
        job_id, run, remaining, payload, created = found
        return Claim(job_id.decode(), token, run, remaining, tier, orjson.loads(payload), int(created))

    def renew(self, job_id: str, token: str) -> bool:
        """Extend the lease; False where the work is in vain: the job is no longer the token's, or was cancelled."""
        args = [self._clock(), job_id, token, self.limits.lease_ms]
        return bool(self._scripts["renew"](keys=[job_key(job_id), DUE], args=args))

    def finish(self, job_id: str, token: str, ending: Ending) -> bool:
        """End the job for good; False where another run took it over, whose result then stands."""
        key, ttl_ms = ("", 0)
        if ending.cache and self._holds_cache:
            key, ttl_ms = answer_key(ending.cache[0]), ending.cache[1]
        ended = self._scripts["finish"](
            keys=self._ending_keys(job_id),
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
                self.limits.max_completion_entries,
                nano(ending.charge_usd),
                ending.charge_tokens,
                int(ending.is_dead_letter),
                self.limits.max_dead_letters,
                self.limits.keep_dead_ms,
                bare(ending.cache[0]) if ending.cache else "",
                *(orjson.dumps(attempt) for attempt in ending.attempts),
            ],
        )
        return bool(ended)

    def cancel(self, job: Job, facts: dict[str, Any]) -> str:
        """Take one caller's interest in its answer back; the job ends with its last caller.

        `facts` is what the record needs. Returns `cancelled`, `cancelling` (its call is being aborted), `missing`, or
        the status it had ended with before.
        """
        leader = job.leader or job.id
        args = [self._clock(), job.id, leader, orjson.dumps(facts), self.limits.keep_ms]
        said: bytes = self._scripts["cancel"](
            keys=[job_key(job.id), *self._ending_keys(leader), CANCELLED],
            args=[*args, self.limits.max_completion_entries],
        )
        return said.decode()

    def keep_hit(self, draft: Draft, answer: bytes) -> None:
        """Keep a hit as a job that has ended, so that its Idempotency-Key stands for this answer from now on."""
        now = self._now_ms() if self._now_ms else server_ms(self.client)
        fields = {"status": "completed", "tenant": draft.tenant, "tier": draft.tier, "priority": draft.priority}
        moments = dict.fromkeys(("created_at", "started_at", "ended_at", "deadline_at"), now)
        with self.client.pipeline() as pipe:
            pipe.hset(job_key(draft.id), mapping=fields | moments | {"payload": draft.payload, "answer": answer})
            pipe.hset(job_key(draft.id), "is_hit", 1)
            pipe.pexpire(job_key(draft.id), self.limits.keep_ms)
            pipe.execute()

    def replay(self, job_id: str, deadline_ms: int) -> tuple[str, int] | None:
        """Queue a dead letter again, with a new deadline; its tier and priority, or None where it is none.

        None, too, where the limits of a key that it is for do not allow it now.
        """
        found = self._scripts["replay"](
            keys=[job_key(job_id), callers_key(job_id), attempts_key(job_id), DUE, USAGE],
            args=[self._clock(), job_id, deadline_ms, self.limits.republish_ms, self.limits.keep_dead_ms],
        )
        return (found[1].decode(), found[2]) if found[0] == b"replayed" else None

    def reap(self, token: str, *, at_most: int = 200) -> list[Verdict]:
        """Look after the jobs that are due now; `lua/reap.lua` says how."""
        now = self._now_ms() if self._now_ms else server_ms(self.client)
        due = self.client.zrangebyscore(DUE, "-inf", now, start=0, num=at_most)
        # Nothing is ever due later than this, unless the server's clock was set back.
        latest = now + max(self.limits.lease_ms, self.limits.republish_ms) + SLACK_MS
        due += self.client.zrangebyscore(DUE, f"({latest}", "+inf", start=0, num=at_most - len(due))
        return [self._reap_one(job_id.decode(), token) for job_id in due]

    def _reap_one(self, job_id: str, token: str) -> Verdict:
        limits = self.limits
        kind, *rest = self._scripts["reap"](
            keys=[job_key(job_id), attempts_key(job_id), DUE],
            args=[self._clock(), job_id, token, limits.lease_ms, limits.republish_ms, limits.max_runs],
        )
        if not rest:
            return Verdict(kind.decode(), job_id)
        tier, priority, runs = rest
        return Verdict(kind.decode(), job_id, tier.decode(), priority, runs)

    def job(self, job_id: str) -> Job | None:
        """The job, or for a follower's id the job it joined, under the id asked for; None where unknown."""
        fields = self.client.hgetall(job_key(job_id))
        leader = fields.pop(b"alias", None)
        if leader:
            leaders = self.client.hgetall(job_key(leader.decode()))
            leaders.pop(b"left_at", None)  # that the first caller has left is its own affair
            fields = {**leaders, **fields}
        if b"status" not in fields:
            return None
        attempts = self.client.lrange(attempts_key(leader.decode() if leader else job_id), 0, -1)
        return read_job(job_id, leader.decode() if leader else None, fields, attempts)

    @staticmethod
    def glance_command(job_id: str, *, is_leader: bool = False) -> Command:
        """Asks for what `read_glance` reads. That a leader's own caller has left is not its followers' affair."""
        return ("HMGET", job_key(job_id), "status", "answer", "payer", "" if is_leader else "left_at")

    @staticmethod
    def _ending_keys(job_id: str) -> list[str]:
        return [job_key(job_id), callers_key(job_id), attempts_key(job_id), DUE, USAGE, DONE, DEAD_TENANTS]

    def _clock(self) -> int | str:
        return self._now_ms() if self._now_ms else ""


def read_found(reply: list[Any]) -> bytes | int | None:
    """The answer; ms to wait where the key is over its limit; None where there is no answer."""
    found: bytes | int | None = reply[1] if reply[0] != b"miss" else None
    return found


def read_glance(reply: list[bytes | None]) -> Glance | None:
    """None where there is no such job, or only a name for its leader."""
    status, answer, payer, left_at = reply
    if left_at:
        return Glance("cancelled")
    return Glance(status.decode(), answer or None, payer.decode() if payer else None) if status else None


def read_acceptance(reply: list[Any]) -> Acceptance:
    return _acceptance(reply[0].decode(), *reply[1:])


def _acceptance(kind: Any, value: bytes, needs_message: int = 0) -> Acceptance:
    if kind == "hit":
        return Acceptance(kind, answer=value)
    if kind in ("leader", "follower", "withdrawn"):
        return Acceptance(kind, job_id=value.decode(), needs_message=bool(needs_message))
    return Acceptance(kind, number=int(value))
