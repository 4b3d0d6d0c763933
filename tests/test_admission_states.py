"""Admission against a model: whatever is asked, answered, lost and waited for, no promise to a provider is broken."""

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test
from redis import Redis

from routing.lane import CallReport, Grant, Lane
from routing.query import Target
from storage.admission import TICKET_LIFE_MS, Admission, AdmissionLimits
from storage.lane_state import flights_key
from tests.conftest import Clock

PER_MINUTE, MOST, FAILURES = 20, 4, 1
BURST = 1
SMALL, LARGE = Target("groq", "small"), Target("groq", "large")
LANES = [Lane(SMALL, "k1"), Lane(LARGE, "k1"), Lane(SMALL, "k2"), Lane(Target("local", "tiny"), "-")]
LIMITS = AdmissionLimits({"groq": PER_MINUTE}, MOST, FAILURES, breaker_open_ms=1_000)
OUTCOMES = ["ok", "overloaded", "timed_out", "key_rejected", "model_gone", "aborted", "query_rejected"]


class AdmissionMachine(RuleBasedStateMachine):
    """Workers ask, report, crash (tickets that nobody gives back) and beat; time passes in leaps."""

    redis: Redis
    grants = Bundle("grants")

    def __init__(self) -> None:
        super().__init__()
        self.redis.flushall()
        self.clock = Clock()
        self.workers = [Admission(self.redis, LIMITS, now_ms=self.clock) for _ in range(2)]
        self.expiry: dict[str, int] = {}
        self.holder: dict[str, int] = {}
        self.lane: dict[str, Lane] = {}
        self.granted_at: dict[Lane, deque[int]] = {lane: deque() for lane in LANES}
        self.paused_until = dict.fromkeys(LANES, 0)
        self.probes: set[str] = set()

    def _flying(self, lane: Lane) -> set[str]:
        return {t for t, expiry in self.expiry.items() if expiry > self.clock.ms and self.lane[t] == lane}

    @rule(target=grants, worker=st.integers(0, 1), lanes=st.permutations(LANES), how_many=st.integers(1, 4))
    def admit(self, worker: int, lanes: list[Lane], how_many: int) -> Grant | None:
        return self._admit(worker, lanes[:how_many])

    @rule(lane=st.sampled_from(LANES), seconds=st.sampled_from([5, 65]))
    def ask_on_and_on(self, lane: Lane, seconds: int) -> None:
        """Two workers who ask five times a second, each call answered at once."""
        for number in range(seconds * 5):
            grant = self._admit(number % 2, [lane])
            if grant:
                self._settle(grant, CallReport("ok", 100))
            self.no_minute_has_more_calls_than_the_operators_number_and_the_burst()
            self.clock.advance(0.2)

    @rule(target=grants, lane=st.sampled_from(LANES))
    def ask_twice_after_a_failure(self, lane: Lane) -> Grant | None:
        failing = self._admit(0, [lane])
        if failing:
            self._settle(failing, CallReport("overloaded", 100))
        self.clock.advance(6)
        grant = self._admit(0, [lane])
        self.clock.advance(4)
        return self._admit(1, [lane]) or grant

    def _admit(self, worker: int, asked: list[Lane]) -> Grant | None:
        before = self.workers[worker].states(asked)
        leave = self.workers[worker].admit(asked, 100)
        if not isinstance(leave, Grant):
            assert leave.seconds > 0
            return None
        self._check_grant(leave, before[leave.lane].state)
        self.expiry[leave.ticket] = self.clock.ms + TICKET_LIFE_MS
        self.holder[leave.ticket], self.lane[leave.ticket] = worker, leave.lane
        self.granted_at[leave.lane].append(self.clock.ms)
        return leave

    def _check_grant(self, grant: Grant, state: str) -> None:
        assert self.paused_until[grant.lane] <= self.clock.ms
        assert state not in ("open", "model_gone", "paused")
        assert grant.is_probe == (state in ("half_open", "key_rejected"))
        assert len(self._flying(grant.lane)) < MOST
        if grant.is_probe:
            assert not self.probes & self._flying(grant.lane), "a second probe"
            self.probes.add(grant.ticket)

    @rule(grant=consumes(grants), outcome=st.sampled_from(OUTCOMES))
    def settle(self, grant: Grant | None, outcome: str) -> None:
        if grant:
            self._settle(grant, CallReport(outcome, 100))

    @rule(grant=consumes(grants), seconds=st.sampled_from([1, 40, 400]))
    def throttle(self, grant: Grant | None, seconds: int) -> None:
        if grant:
            self._settle(grant, CallReport("throttled", 10, retry_after_s=seconds))
            until = self.clock.ms + min(seconds, 300) * 1000
            self.paused_until[grant.lane] = max(self.paused_until[grant.lane], until)

    def _settle(self, grant: Grant, report: CallReport) -> None:
        self.workers[self.holder[grant.ticket]].settle(grant, report)
        self.expiry.pop(grant.ticket)
        self.probes.discard(grant.ticket)

    @rule(worker=st.integers(0, 1))
    def beat(self, worker: int) -> None:
        self.workers[worker].beat()
        for ticket, expiry in self.expiry.items():
            if self.holder[ticket] == worker and expiry > self.clock.ms:
                self.expiry[ticket] = self.clock.ms + TICKET_LIFE_MS

    @rule(worker=st.integers(0, 1))
    def crash(self, worker: int) -> None:
        """A new process in the old one's place knows nothing of its tickets."""
        self.workers[worker] = Admission(self.redis, LIMITS, now_ms=self.clock)
        self.holder = {t: -1 if holder == worker else holder for t, holder in self.holder.items()}

    @rule(seconds=st.sampled_from([0.05, 1, 3, 6, 31, 70, 3700]))
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def tickets_never_leak(self) -> None:
        for lane in LANES:
            living = {t.decode() for t in self.redis.zrangebyscore(flights_key(lane), f"({self.clock.ms}", "+inf")}
            assert living == self._flying(lane)
            assert len(living) <= MOST

    @invariant()
    def no_minute_has_more_calls_than_the_operators_number_and_the_burst(self) -> None:
        for lane in LANES[:3]:
            recent = self.granted_at[lane]
            while recent and recent[0] <= self.clock.ms - 60_000:
                recent.popleft()
            assert len(recent) <= PER_MINUTE + BURST


def test_no_promise_to_a_provider_is_broken(redis: Redis) -> None:
    AdmissionMachine.redis = redis
    chosen = settings(max_examples=40, stateful_step_count=50, deadline=None)
    run_state_machine_as_test(AdmissionMachine, settings=chosen)
