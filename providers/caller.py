"""Makes one granted call, gives the grant back whatever happens, and writes the attempt down as it was."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from providers.abort import AbortSignal
from providers.admission import Admission, Errand
from providers.wire import Answered, Provider, max_completion_tokens
from routing.catalogue import Catalogue
from routing.errors import Aftermath, CallAborted, KeyRejected, ProviderError
from routing.estimate import estimate_prompt_tokens
from routing.lane import CallReport, Grant, Lane, RateLimits
from routing.query import Attempt, Completion, Target, Usage

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
        result: Completion | ProviderError
        try:
            try:
                answered = self._complete(lane, errand, signal)
                result, limits, usage = answered.completion, answered.limits, answered.completion.usage
            except ProviderError as error:
                result, limits, usage = error, error.aftermath.limits, error.aftermath.usage
            called = self.record(lane, errand, start, result)
            report = _report(called, usage, limits)
        finally:
            self._admission.settle(grant, report)
        if isinstance(result, KeyRejected):
            fields = {"event": "provider.key_rejected", **self._fields(lane), "status": result.status}
            logger.error("%s rejects the key %s", self._name(lane.target), lane.key_id, extra=fields)
        return called

    def lost(self, lane: Lane, errand: Errand, start: Start) -> Called:
        """The record of a call that was told to end and has not said how it ended."""
        error = CallAborted(lane.target, "ended before it had an answer", aftermath=Aftermath("unknown"))
        return self.record(lane, errand, start, error)

    def record(self, lane: Lane, errand: Errand, start: Start, result: Completion | ProviderError) -> Called:
        target = lane.target
        attempt = Attempt(target.provider, target.model, start.at_ms, start.elapsed_ms, outcome="ok", status=200)
        if isinstance(result, Completion):
            cost_usd = self._catalogue.cost_usd(target, result.usage, errand.tier)
            return Called(lane, result, replace(attempt, usage=result.usage, cost_usd=cost_usd, billing="billed"))
        return Called(lane, result, self._failed(attempt, target, errand, result))

    def _failed(self, attempt: Attempt, target: Target, errand: Errand, error: ProviderError) -> Attempt:
        billing, usage = error.aftermath.billing, error.aftermath.usage
        is_billed, is_unknown = billing == "billed", billing == "unknown"
        most = self._most(target, errand) if is_unknown else None
        return replace(
            attempt,
            outcome=error.code,
            status=error.status,
            detail=error.detail,
            said=error.said,
            usage=usage,
            cost_usd=self._catalogue.cost_usd(target, usage, errand.tier) if is_billed else 0.0,
            billing=billing,
            possible_cost_usd=self._catalogue.cost_usd(target, most, errand.tier) if is_unknown else 0.0,
        )

    def _most(self, target: Target, errand: Errand) -> Usage:
        cap = self._providers[target.provider].facts.max_tokens_cap
        return Usage(estimate_prompt_tokens(errand.query), max_completion_tokens(errand.query, errand.tier, cap))

    def _complete(self, lane: Lane, errand: Errand, signal: AbortSignal) -> Answered:
        provider = self._providers[lane.target.provider]
        logger.info(
            "Calling %s with model: %s",
            provider.facts.display_name,
            lane.target.model,
            extra={"event": "provider.called", **self._fields(lane), "tier": errand.tier.name},
        )
        timeout_s = provider.facts.timeout_s or errand.tier.timeout_s
        deadline = min(errand.deadline, time.monotonic() + timeout_s)
        return provider.complete(lane, errand.query, errand.tier, deadline, signal)

    def _name(self, target: Target) -> str:
        return self._providers[target.provider].facts.display_name

    @staticmethod
    def _fields(lane: Lane) -> dict[str, object]:
        return {"provider": lane.target.provider, "model": lane.target.model, "key_id": lane.key_id}


def _report(called: Called, usage: Usage | None, limits: RateLimits | None) -> CallReport:
    return CallReport(
        called.attempt.outcome,
        called.attempt.latency_ms,
        tokens=usage.total_tokens if usage else None,
        retry_after_s=called.result.retry_after if isinstance(called.result, ProviderError) else None,
        limits=limits,
    )
