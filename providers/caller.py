"""Makes one granted call, gives the grant back whatever happens, and writes the attempt down as it was."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from providers.abort import AbortSignal
from providers.admission import Admission, Errand
from providers.facts import ProviderFacts
from providers.wire import Provider, max_completion_tokens
from routing.catalogue import Catalogue
from routing.errors import Aftermath, CallAborted, KeyRejected, ProviderError, TargetTimedOut
from routing.estimate import estimate_prompt_tokens
from routing.lane import CallReport, Grant, Lane, RateLimits
from routing.query import Attempt, Completion, Usage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Start:
    """When a call began: Unix ms for people, `time.monotonic()` seconds for measuring."""

    at_ms: int
    at: float

    @property
    def elapsed_ms(self) -> float:
        return (time.monotonic() - self.at) * 1000


@dataclass(frozen=True, slots=True)
class Called:
    """How a call on a lane ended, with its record."""

    lane: Lane
    result: Completion | ProviderError
    attempt: Attempt


class Caller:
    """Calls lanes of the configured providers; safe to share between threads."""

    def __init__(
        self,
        providers: Mapping[str, Provider],
        catalogue: Catalogue,
        admission: Admission,
        now_ms: Callable[[], int],
    ) -> None:
        self._providers = providers
        self._catalogue = catalogue
        self._admission = admission
        self._now_ms = now_ms

    def start(self) -> Start:
        return Start(self._now_ms(), time.monotonic())

    def call(self, grant: Grant, errand: Errand, signal: AbortSignal) -> Called:
        """The granted lane's answer or error. A bug passes through, and even then the grant is given back."""
        lane, start = grant.lane, self.start()
        report = CallReport(ProviderError.code, 0.0)
        try:
            result, limits = self._complete(lane, errand, signal)
            called = self.record(lane, errand, start, result)
            report = _report(called, limits)
        finally:
            self._admission.settle(grant, report)
        if isinstance(result, KeyRejected):
            fields = {"event": "provider.key_rejected", **_fields(lane), "status": result.status}
            logger.error("%s rejects the key %s", self._facts(lane).display_name, lane.key_id, extra=fields)
        return called

    def lost(self, lane: Lane, errand: Errand, start: Start) -> Called:
        """The record of a call that was told to end and has not said how it ended."""
        error = CallAborted(lane.target, "ended before it had an answer", aftermath=Aftermath("unknown"))
        return self.record(lane, errand, start, error)

    def record(self, lane: Lane, errand: Errand, start: Start, result: Completion | ProviderError) -> Called:
        """The call with its attempt, which says what it cost or, where nobody knows, may have cost at most."""
        target = lane.target
        attempt = Attempt(target.provider, target.model, start.at_ms, start.elapsed_ms, outcome="ok", status=200)
        if isinstance(result, Completion):
            attempt = replace(attempt, usage=result.usage, billing="billed")
        else:
            attempt = _failed(attempt, result)
        return Called(lane, result, self._charged(attempt, lane, errand))

    def _charged(self, attempt: Attempt, lane: Lane, errand: Errand) -> Attempt:
        if attempt.billing == "free":
            return attempt
        target, tier, most = lane.target, errand.tier, self._most(lane, errand)
        if attempt.usage is None:  # a budget counts it all the same
            attempt = replace(attempt, possible_tokens=most.total_tokens)
        if attempt.billing == "billed":
            return replace(attempt, cost_usd=self._catalogue.cost_usd(target, attempt.usage, tier))
        return replace(attempt, possible_cost_usd=self._catalogue.cost_usd(target, most, tier))

    def _most(self, lane: Lane, errand: Errand) -> Usage:
        longest = max_completion_tokens(errand.query, errand.tier, self._facts(lane).max_tokens_cap)
        return Usage(estimate_prompt_tokens(errand.query), longest)

    def _complete(
        self, lane: Lane, errand: Errand, signal: AbortSignal
    ) -> tuple[Completion | ProviderError, RateLimits | None]:
        facts = self._facts(lane)
        logger.info(
            "Calling %s with model: %s",
            facts.display_name,
            lane.target.model,
            extra={"event": "provider.called", **_fields(lane), "tier": errand.tier.name},
        )
        patience = time.monotonic() + (facts.timeout_s or errand.tier.timeout_s)
        deadline = min(errand.deadline, patience)
        provider = self._providers[lane.target.provider]
        try:
            answered = provider.complete(lane, errand.query, errand.tier, deadline, signal)
        except ProviderError as error:
            if deadline < patience and isinstance(error, TargetTimedOut) and error.status is None:
                error.standing = CallAborted.code  # it was the caller who had less time than the target is given
            return error, error.aftermath.limits
        return answered.completion, answered.limits

    def _facts(self, lane: Lane) -> ProviderFacts:
        return self._providers[lane.target.provider].facts


def _failed(attempt: Attempt, error: ProviderError) -> Attempt:
    return replace(
        attempt,
        outcome=error.code,
        status=error.status,
        detail=error.detail,
        said=error.said,
        usage=error.aftermath.usage,
        billing=error.aftermath.billing,
    )


def _report(called: Called, limits: RateLimits | None) -> CallReport:
    attempt, result = called.attempt, called.result
    error = result if isinstance(result, ProviderError) else None
    return CallReport(
        error.standing if error else attempt.outcome,
        attempt.latency_ms,
        tokens=attempt.usage.total_tokens if attempt.usage else None,
        retry_after_s=error.retry_after if error else None,
        limits=limits,
    )


def _fields(lane: Lane) -> dict[str, object]:
    return {"provider": lane.target.provider, "model": lane.target.model, "key_id": lane.key_id}
