"""Hedging: when a call takes longer than its target usually does, another target is asked beside it.

The first good answer counts and the other call is ended. Both are paid for, so the caller's records hold both.
"""

import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextvars import copy_context

from providers.abort import AbortSignal
from providers.admission import Admission, Errand
from providers.caller import Called, Caller, Start
from providers.watchdog import Watchdog
from routing.errors import CallAborted, ProviderError
from routing.lane import Grant, Lane
from routing.query import Completion, Target

KEPT_LATENCIES = 200
FEWEST_LATENCIES = 20
SHARE = 0.95
MAX_HEDGES = 32  # second calls at the same time in one process
LOSER_GRACE_S = 0.5  # an ended call says so at once, unless it waits for the resolver


class Latencies:
    """The last latencies of each target as this process saw them, in ms."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: defaultdict[Target, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT_LATENCIES))

    def add(self, target: Target, latency_ms: float) -> None:
        with self._lock:
            self._seen[target].append(latency_ms)

    def p95(self, target: Target) -> float | None:
        """What 95 of 100 calls do not exceed; None while too few are known."""
        with self._lock:
            seen = sorted(self._seen.get(target, ()))
        return seen[math.ceil(SHARE * len(seen)) - 1] if len(seen) >= FEWEST_LATENCIES else None


class Hedger:
    """Makes calls that may be hedged. A thread is started only for a call that is slow."""

    def __init__(self, caller: Caller, admission: Admission) -> None:
        self.latencies = Latencies()
        self._caller = caller
        self._admission = admission
        self._watchdog = Watchdog()
        self._slots = threading.BoundedSemaphore(MAX_HEDGES)

    def call(self, grant: Grant, errand: Errand, others: Sequence[Lane]) -> list[Called]:
        """How the granted call ended and, where one was made, that of one of `others`; an answer comes last."""
        usual_ms = self.latencies.p95(grant.lane.target)
        if usual_ms is None or not others:
            called = [self._caller.call(grant, errand, errand.signal)]
        else:
            called = self._race(grant, errand, others, usual_ms / 1000)
        self._remember(called, grant.lane)
        return called

    def _race(self, grant: Grant, errand: Errand, others: Sequence[Lane], usual_s: float) -> list[Called]:
        first_signal = AbortSignal()
        second = Second(self._caller, self._admission, errand, others, first_signal.abort)
        with errand.signal.calling(first_signal.abort), errand.signal.calling(second.signal.abort):
            alarm = self._watchdog.watch(time.monotonic() + usual_s, lambda: second.start(self._slots))
            try:
                first = self._caller.call(grant, errand, first_signal)
            except BaseException:
                second.signal.abort()
                raise
            finally:
                alarm.cancel()
                second.stay()
            return _in_order(first, second.result(after=first))

    def _remember(self, called: Sequence[Called], first: Lane) -> None:
        """Answers, and slow calls that lost to one: without those, the usual latency would shrink with every hedge."""
        has_answer = isinstance(called[-1].result, Completion)
        for one in called:
            is_overtaken = has_answer and one.lane == first and isinstance(one.result, CallAborted)
            if is_overtaken or isinstance(one.result, Completion):
                self.latencies.add(one.lane.target, one.attempt.latency_ms)


class Second:
    """The call beside a slow one, on a thread of its own."""

    def __init__(
        self,
        caller: Caller,
        admission: Admission,
        errand: Errand,
        lanes: Sequence[Lane],
        on_answer: Callable[[], None],
    ) -> None:
        self.signal = AbortSignal()
        self._caller = caller
        self._admission = admission
        self._errand = errand
        self._lanes = lanes
        self._on_answer = on_answer
        self._context = copy_context()  # the log's fields
        self._lock = threading.Lock()
        self._may_start = True
        self._has_ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._begun: tuple[Lane, Start] | None = None
        self._called: Called | None = None

    def start(self, slots: threading.BoundedSemaphore) -> None:
        """Begins on a new thread, if there is a slot and the first call still goes on. Never blocks."""
        with self._lock:
            if not self._may_start or not slots.acquire(blocking=False):
                return
            thread = threading.Thread(target=self._run, args=(slots,), name="hedge", daemon=True)
            try:
                thread.start()
                self._thread = thread
            except RuntimeError:  # the system has no more threads: the first call goes on alone
                slots.release()

    def stay(self) -> None:
        """From here on it does not start any more."""
        with self._lock:
            self._may_start = False

    def result(self, *, after: Called) -> Called | None:
        """How it ended, once the first call has; None where it did not begin."""
        if self._thread is None:
            return None
        if isinstance(after.result, Completion) or not after.result.try_next:
            self.signal.abort()
        with self.signal.calling(self._has_ended.set):
            self._has_ended.wait(max(0.0, self._errand.remaining_s))
        self._thread.join(LOSER_GRACE_S)
        if self._called is None and self._begun is not None:
            self.signal.abort()
            return self._caller.lost(self._begun[0], self._errand, self._begun[1])
        return self._called

    def _run(self, slots: threading.BoundedSemaphore) -> None:
        try:
            self._context.run(self._call)
        finally:
            slots.release()
            self._has_ended.set()

    def _call(self) -> None:
        granted = self._admission.admit(self._lanes, self._errand.tokens)
        if isinstance(granted, Grant):
            self._begun = granted.lane, self._caller.start()
            self._called = self._caller.call(granted, self._errand, self.signal)
            if isinstance(self._called.result, Completion):
                self._on_answer()


def _in_order(first: Called, second: Called | None) -> list[Called]:
    """The one that counts comes last: an answer, or else the error that ends the walk."""
    if second is None:
        return [first]
    if isinstance(first.result, Completion) or isinstance(second.result, CallAborted):
        return [second, first]
    is_final = isinstance(second.result, ProviderError) and not first.result.try_next
    return [second, first] if is_final else [first, second]
