"""The ledger against a model: whatever callers, workers, reapers and clocks do, each job ends once and none is lost."""

import json
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from redis import Redis

from storage.api_key import KeyLimits
from storage.dead_letter import DeadLetters, Filter
from storage.job import BATCH, INTERACTIVE
from storage.ledger import Ending, Ledger
from storage.line import Lines
from storage.name import DUE, USAGE
from storage.quota import Quota, spending
from tests.conftest import LIMITS, Clock
from tests.ledger_case import draft

DEADLINE_S = 200
OPEN = ("queued", "running")
HOLD_USD, CHARGE_USD = 0.5, 0.25


@dataclass
class Expected:
    """What the model knows of one job."""

    tenant: str
    priority: int
    deadline_at: int
    status: str = "queued"
    holder: str | None = None
    lease_until: int = 0
    runs: int = 0
    lives: int = 1
    is_cancelling: bool = False
    is_dead_letter: bool = False
    callers: set[str] = field(default_factory=set)


class LedgerMachine(RuleBasedStateMachine):
    """Accepts, cancels, claims, crashes (a claim that is never finished), renewals, finishes, reaps, replays; time
    passes in leaps.
    """

    redis: Redis
    queries = Bundle("queries")
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.redis.flushall()
        self.clock = Clock()
        self.ledger = Ledger(self.redis, LIMITS, now_ms=self.clock)
        self.model: dict[str, Expected] = {}
        self.left: set[str] = set()
        self.flights: dict[tuple[str, str], str] = {}
        self.charged: dict[str, float] = {}
        self.count = 0

    @rule(
        target=queries,
        fingerprint=st.sampled_from(["f1", "f2", "f3"]),
        tenant=st.sampled_from(["a", "b"]),
        priority=st.sampled_from([INTERACTIVE, BATCH]),
    )
    def accept(self, fingerprint: str, tenant: str, priority: int) -> tuple[str, str]:
        """The query's id, and that of the job that answers it."""
        self.count += 1
        query_id = f"j{self.count:03}"
        leader = self.flights.get((tenant, fingerprint))
        quota = Quota(tenant, KeyLimits(), HOLD_USD, 10)
        accepted = self.ledger.accept(
            draft(
                query_id,
                tenant=tenant,
                key=tenant,
                fingerprint=fingerprint,
                priority=priority,
                deadline_ms=DEADLINE_S * 1000,
                quota=quota,
            )
        )
        if leader and self._serves(leader, priority):
            assert (accepted.kind, accepted.job_id) == ("follower", leader)
            self.model[leader].callers.add(query_id)
            return query_id, leader
        if accepted.kind == "hit":  # the grace after a finish, which runs on the server's own clock
            assert leader is not None
            assert self.model[leader].status == "completed"
            return leader, leader
        assert accepted.kind == "leader"
        self.model[query_id] = Expected(tenant, priority, self.clock.ms + DEADLINE_S * 1000, callers={query_id})
        self.flights[tenant, fingerprint] = query_id
        return query_id, query_id

    def _serves(self, leader: str, priority: int) -> bool:
        job = self.model[leader]
        if job.is_cancelling or job.lives > 1 or job.status not in OPEN:
            return False
        is_prompt = job.status == "running" or job.priority <= priority
        return is_prompt and (job.deadline_at - self.clock.ms) * 2 >= DEADLINE_S * 1000

    @rule(query=queries)
    def cancel(self, query: tuple[str, str]) -> None:
        query_id, leader = query
        job, expected = self.ledger.job(query_id), self.model[leader]
        assert job is not None
        said = self.ledger.cancel(job, {"tier": "simple"})
        if query_id in self.left:
            assert said == "cancelled"
        elif expected.status not in OPEN:
            assert said == expected.status
        elif expected.is_cancelling:
            assert said == "cancelling"
        elif len(expected.callers) > 1:
            assert said == "cancelled"
            expected.callers.discard(query_id)
            self.left.add(query_id)
        elif expected.status == "queued":
            assert said == "cancelled"
            expected.status = "cancelled"
        else:
            assert said == "cancelling"
            expected.is_cancelling = True

    @rule(target=claims)
    def claim(self) -> tuple[str, str]:
        self.count += 1
        token = f"t{self.count}"
        waiting = {job_id for job_id, job in self.model.items() if job.status == "queued"}
        claim = self.ledger.claim("simple", token, "worker")
        if not waiting:
            assert claim is None
            return "", token
        assert claim is not None
        assert claim.job_id in waiting
        job = self.model[claim.job_id]
        assert claim.remaining_ms == job.deadline_at - self.clock.ms
        job.status, job.holder, job.runs = "running", token, job.runs + 1
        job.lease_until = self.clock.ms + LIMITS.lease_ms
        return claim.job_id, token

    @rule(claim=claims)
    def renew(self, claim: tuple[str, str]) -> None:
        job_id, token = claim
        job = self.model.get(job_id)
        renewed = self.ledger.renew(job_id, token)
        is_held = job is not None and job.status == "running" and job.holder == token
        if job is None or not is_held or self.clock.ms > job.deadline_at + LIMITS.lease_ms:  # past that it hangs
            assert not renewed
        else:
            assert renewed is not job.is_cancelling
            job.lease_until = self.clock.ms + LIMITS.lease_ms

    @rule(claim=claims, status=st.sampled_from(["completed", "failed"]))
    def finish(self, claim: tuple[str, str], status: str) -> None:
        job_id, token = claim
        job = self.model.get(job_id)
        was_holder = job is not None and job.holder == token
        answer = b"{}\n{}" if status == "completed" else b""
        ending = Ending(
            status, {"tier": "simple"}, answer=answer, charge_usd=CHARGE_USD, is_dead_letter=status == "failed"
        )
        assert self.ledger.finish(job_id, token, ending) == was_holder
        if job is not None and was_holder and job.status == "running":
            job.status = "cancelled" if job.is_cancelling else status
            job.is_dead_letter = job.status == "failed"
            self.charged[job.tenant] = self.charged.get(job.tenant, 0.0) + CHARGE_USD

    @rule(seconds=st.sampled_from([1, 5, 16, 70]))
    def pass_time(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: self.model)
    @rule(crashes=st.booleans())
    def reap(self, crashes: bool) -> None:
        """Looks after what is due; a reaper that crashes leaves what it took to the next one."""
        self.count += 1
        token = f"reaper:{self.count}"
        for verdict in self.ledger.reap(token):
            job = self.model[verdict.job_id]
            if verdict.kind == "ring":
                assert job.status == "queued" or job.lease_until <= self.clock.ms
                job.status, job.holder = "queued", None
            elif verdict.kind in ("expired", "dead", "cancelled"):
                self._end(verdict.job_id, verdict.kind, token, crashes)

    def _end(self, job_id: str, kind: str, token: str, crashes: bool) -> None:
        job = self.model[job_id]
        reasons = {
            "expired": self.clock.ms >= job.deadline_at,
            "dead": job.runs >= LIMITS.max_runs,
            "cancelled": job.is_cancelling,
        }
        assert reasons[kind]
        job.status, job.holder, job.lease_until = "running", token, self.clock.ms + LIMITS.lease_ms
        if not crashes:
            assert self.ledger.finish(job_id, token, Ending(kind, {"tier": "simple"}, is_dead_letter=kind == "dead"))
            job.status, job.is_dead_letter = kind, kind == "dead"

    @precondition(lambda self: any(job.is_dead_letter for job in self.model.values()))
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from([job_id for job_id, job in self.model.items() if job.is_dead_letter]))
        job = self.model[job_id]
        if DeadLetters(self.ledger).get(job_id) is None:  # there were too many
            job.is_dead_letter = False
            return
        assert self.ledger.replay(job_id, DEADLINE_S * 1000) == ("simple", job.priority)
        job.status, job.holder, job.runs, job.is_dead_letter = "queued", None, 0, False
        job.lives, job.deadline_at = job.lives + 1, self.clock.ms + DEADLINE_S * 1000

    @invariant()
    def statuses_agree(self) -> None:
        for job_id, expected in self.model.items():
            job = self.ledger.job(job_id)
            assert job is not None
            assert job.status == ("cancelled" if job_id in self.left else expected.status)

    @invariant()
    def no_open_job_is_out_of_the_reapers_sight(self) -> None:
        due = {member.decode() for member in self.redis.zrange(DUE, 0, -1)}
        assert {j for j, job in self.model.items() if job.status in OPEN} <= due

    @invariant()
    def each_life_of_a_job_is_recorded_once_with_all_its_callers(self) -> None:
        ended = [f for _, f in self.redis.xrange(USAGE) if f[b"kind"] == b"ended"]
        recorded = [f[b"job"].decode() for f in ended]
        lives = [job_id for job_id, job in self.model.items() for _ in range(job.lives - (job.status in OPEN))]
        assert sorted(recorded) == sorted(lives)
        for fields in ended:
            callers = {asked["caller"]["id"] for asked in json.loads(fields[b"callers"])}
            assert callers == self.model[fields[b"job"].decode()].callers
            assert fields[b"payer"].decode() in callers

    @invariant()
    def the_lines_hold_what_is_open(self) -> None:
        lines, states = Lines(self.redis), [job.status for job in self.model.values()]
        assert lines.depths(["simple"])["simple"] == {
            "queued": states.count("queued"),
            "running": states.count("running"),
        }
        for tenant in ("a", "b"):
            mine = [job for job in self.model.values() if job.tenant == tenant and job.status == "queued"]
            assert lines.waiting(tenant, ["simple"])["simple"] == len(mine)

    @invariant()
    def dead_letters_are_those_that_may_be_replayed(self) -> None:
        listed = {job.id for job in DeadLetters(self.ledger).find(Filter(), 100)}
        assert listed <= {job_id for job_id, job in self.model.items() if job.is_dead_letter}

    @invariant()
    def what_is_held_and_charged_adds_up(self) -> None:
        for tenant in ("a", "b"):
            spent = spending(self.redis, tenant)
            jobs = [job for job in self.model.values() if job.tenant == tenant and job.status in OPEN]
            waiting = {caller for job in jobs for caller in job.callers}
            assert spent.usd_held == HOLD_USD * len(waiting)
            assert spent.usd_today == self.charged.get(tenant, 0.0)
            assert {member.decode() for member in self.redis.zrange(f"aqr:open:{tenant}", 0, -1)} == waiting


def test_it_loses_no_job_ends_each_once_and_charges_it_once(redis: Redis) -> None:
    LedgerMachine.redis = redis
    run_state_machine_as_test(LedgerMachine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))
