"""The ledger against a model: whatever workers, reapers and clocks do, every job ends once and none is lost."""

import json
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from redis import Redis

from storage.job import Claim, Draft
from storage.ledger import Ending, Ledger
from storage.name import DUE, USAGE
from tests.conftest import LIMITS, Clock

DEADLINE_S = 200


@dataclass
class Expected:
    """What the model knows of one job."""

    accepted_at: int
    status: str = "queued"
    holder: str | None = None
    lease_until: int = 0
    runs: int = 0
    callers: set[str] = field(default_factory=set)


class LedgerMachine(RuleBasedStateMachine):
    """Accepts, claims, crashes (a claim that is never finished), renewals, finishes, reaps; time passes in leaps."""

    redis: Redis
    jobs = Bundle("jobs")
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.redis.flushall()
        self.clock = Clock()
        self.ledger = Ledger(self.redis, LIMITS, now_ms=self.clock)
        self.model: dict[str, Expected] = {}
        self.flights: dict[str, str] = {}
        self.count = 0

    @rule(target=jobs, fingerprint=st.sampled_from(["f1", "f2", "f3"]))
    def accept(self, fingerprint: str) -> str:
        self.count += 1
        job_id = f"j{self.count}"
        leader = self.flights.get(fingerprint)
        accepted = self.ledger.accept(self._draft(job_id, fingerprint))
        if leader and self._serves(leader):
            assert (accepted.kind, accepted.job_id) == ("follower", leader)
            self.model[leader].callers.add(job_id)
            return leader
        if accepted.kind == "hit":  # the grace after a finish, which runs on the server's own clock
            assert leader is not None
            assert self.model[leader].status == "completed"
            return leader
        assert accepted.kind == "leader"
        self.model[job_id] = Expected(self.clock.ms, callers={job_id})
        self.flights[fingerprint] = job_id
        return job_id

    def _serves(self, leader: str) -> bool:
        job = self.model[leader]
        time_left = job.accepted_at + DEADLINE_S * 1000 - self.clock.ms
        return job.status in ("queued", "running") and time_left * 2 >= DEADLINE_S * 1000

    @rule(target=claims, job_id=jobs)
    def claim(self, job_id: str) -> tuple[str, str]:
        self.count += 1
        token = f"t{self.count}"
        job = self.model[job_id]
        claim = self.ledger.claim(job_id, token, "worker")
        if job.status == "queued":
            assert isinstance(claim, Claim)
            job.status, job.holder, job.runs = "running", token, job.runs + 1
            job.lease_until = self.clock.ms + LIMITS.lease_ms
        else:
            assert claim == job.status
        return job_id, token

    @rule(claim=claims)
    def renew(self, claim: tuple[str, str]) -> None:
        job_id, token = claim
        job = self.model[job_id]
        holds = job.status == "running" and job.holder == token
        assert self.ledger.renew(job_id, token) == holds
        if holds:
            job.lease_until = self.clock.ms + LIMITS.lease_ms

    @rule(claim=claims, status=st.sampled_from(["completed", "failed"]))
    def finish(self, claim: tuple[str, str], status: str) -> None:
        job_id, token = claim
        job = self.model[job_id]
        was_holder = job.holder == token
        answer = b"{}\n{}" if status == "completed" else b""
        finished = self.ledger.finish(job_id, token, Ending(status, {"tier": "simple"}, answer=answer))
        assert finished == was_holder
        if was_holder and job.status == "running":
            job.status = status

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
            elif verdict.kind in ("expired", "dead"):
                self._end(verdict.job_id, verdict.kind, token, crashes)

    def _end(self, job_id: str, kind: str, token: str, crashes: bool) -> None:
        job = self.model[job_id]
        assert (
            self.clock.ms >= job.accepted_at + DEADLINE_S * 1000 if kind == "expired" else job.runs >= LIMITS.max_runs
        )
        job.status, job.holder, job.lease_until = "running", token, self.clock.ms + LIMITS.lease_ms
        if not crashes:
            assert self.ledger.finish(job_id, token, Ending(kind, {"tier": "simple"}))
            job.status = kind

    @invariant()
    def statuses_agree(self) -> None:
        for job_id, expected in self.model.items():
            job = self.ledger.job(job_id)
            assert job is not None
            assert job.status == expected.status

    @invariant()
    def no_open_job_is_out_of_the_reapers_sight(self) -> None:
        due = {member.decode() for member in self.redis.zrange(DUE, 0, -1)}
        assert {j for j, job in self.model.items() if job.status in ("queued", "running")} <= due

    @invariant()
    def each_ended_job_is_recorded_once_with_all_its_callers(self) -> None:
        ended = [f for _, f in self.redis.xrange(USAGE) if f[b"kind"] == b"ended"]
        recorded = [f[b"job"].decode() for f in ended]
        done = {j for j, job in self.model.items() if job.status not in ("queued", "running")}
        assert sorted(recorded) == sorted(done)
        for fields in ended:
            callers = {asked["caller"]["id"] for asked in json.loads(fields[b"callers"])}
            assert callers == self.model[fields[b"job"].decode()].callers

    @invariant()
    def the_queues_hold_what_is_open(self) -> None:
        states = [job.status for job in self.model.values()]
        depths = self.ledger.depths(["simple"])["simple"]
        assert depths == {"queued": states.count("queued"), "running": states.count("running")}

    @staticmethod
    def _draft(job_id: str, fingerprint: str) -> Draft:
        caller = json.dumps({"id": job_id}).encode()
        payload = b'{"tenant":"t","query":{"text":"q"}}'
        return Draft(job_id, "simple", 0, fingerprint, True, DEADLINE_S * 1000, payload, caller)


def test_it_loses_no_job_and_ends_each_once(redis: Redis) -> None:
    LedgerMachine.redis = redis
    run_state_machine_as_test(LedgerMachine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))
