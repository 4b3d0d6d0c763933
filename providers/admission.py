"""The port to what all workers know together of lanes, and the wait for a lane that may be called."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from providers.abort import AbortSignal
from providers.lineup import Lineup
from routing.errors import CallAborted, ProviderError, TargetOverloaded, TargetThrottled, TargetTimedOut
from routing.lane import CallReport, Grant, Lane, Wait
from routing.query import Query, Target
from routing.tier import Tier

LONGEST_SLEEP_S = 5.0  # then ask again: a lane may have been freed early
SHORTEST_SLEEP_S = 0.01
JITTER_SHARE = 0.25
LONGEST_JITTER_S = 0.5
BROKEN_WAIT_S = 2.0  # for a target that is out of order a caller is better told than kept waiting


class Admission(Protocol):
    """Grants calls and learns from how they ended. None of these raises; without Redis the first lane is granted."""

    def admit(self, lanes: Sequence[Lane], tokens: int) -> Grant | Wait:
        """Leave to call one of `lanes`, the first that is free; `tokens` is what the call may take at most."""
        ...

    def settle(self, grant: Grant, report: CallReport) -> None: ...

    def gone(self, targets: Sequence[Target]) -> frozenset[Target]:
        """Those of `targets` whose model was reported gone."""
        ...


@dataclass(frozen=True, slots=True)
class Errand:
    """A query to be answered, by when (`time.monotonic()` seconds), and the signal that ends it.

    `tokens` is what one call may take at most, as estimated.
    """

    query: Query
    tier: Tier
    deadline: float
    signal: AbortSignal
    tokens: int

    @property
    def remaining_s(self) -> float:
        return self.deadline - time.monotonic()


def await_grant(admission: Admission, errand: Errand, lineup: Lineup) -> Grant | ProviderError:
    """Leave to call one lane of the line, or why there is none in time; waiting is no attempt."""
    while True:
        target = lineup.first.target
        if errand.signal.is_aborted:
            return CallAborted(target, "no longer wanted")
        if errand.remaining_s <= 0:
            return TargetTimedOut(target, "no time left to call")
        answer = _ask(admission, errand, lineup)
        if isinstance(answer, Grant):
            return answer
        if refusal := _refusal(answer, target, errand):
            return refusal
        errand.signal.wait(min(_sleep_s(answer.seconds), max(0.0, errand.remaining_s)))


def _ask(admission: Admission, errand: Errand, lineup: Lineup) -> Grant | Wait:
    """A grant, or the shorter of what the admission says and what this walk was told itself."""
    now = time.monotonic()
    ready, own = lineup.ready(now), lineup.wait(now)
    said = admission.admit(ready, errand.tokens) if ready else None
    if isinstance(said, Grant):
        return said
    return min((wait for wait in (said, own) if wait), key=lambda wait: wait.seconds)


def _refusal(wait: Wait, target: Target, errand: Errand) -> ProviderError | None:
    if wait.reason == "broken" and wait.seconds > BROKEN_WAIT_S:
        return TargetOverloaded(target, "no target is in order", retry_after=wait.seconds)
    if wait.seconds >= errand.remaining_s:
        return TargetThrottled(target, f"no target is free ({wait.reason})", retry_after=wait.seconds)
    return None


def _sleep_s(seconds: float) -> float:
    """A little longer than asked, by chance, so that those who wait do not all ask at once."""
    jitter = min(seconds * JITTER_SHARE, LONGEST_JITTER_S)
    return max(SHORTEST_SLEEP_S, min(seconds, LONGEST_SLEEP_S)) + random.uniform(0, jitter)  # noqa: S311 - no secret
