"""Walks a tier's targets until one answers, and keeps a record of every attempt."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from providers.abort import AbortSignal
from providers.admission import Admission, Errand, await_grant
from providers.caller import Called, Caller
from providers.hedge import Hedger, Latencies
from providers.lineup import Lineup, choose_targets
from providers.wire import Provider, max_completion_tokens
from routing.catalogue import Catalogue
from routing.errors import AllTargetsFailed, CallAborted, ModelGone, NoTargets, ProviderError
from routing.estimate import estimate_prompt_tokens
from routing.lane import Grant, Lane
from routing.query import Attempt, Completion, Query, Target
from routing.tier import Tier

__all__ = ["Admission", "Chain", "Outcome"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """An answer, the target that gave it, and the attempts that led there; the last one is the answer's."""

    completion: Completion
    target: Target
    attempts: tuple[Attempt, ...]


class Chain:
    """The providers that are configured, what is known about their models, and the admission to their lanes.

    `hedging`: whether interactive queries may ask a second target when the first is slower than usual.
    """

    def __init__(
        self,
        providers: Mapping[str, Provider],
        catalogue: Catalogue,
        admission: Admission,
        *,
        now_ms: Callable[[], int],
        hedging: bool = False,
    ) -> None:
        self._providers = providers
        self._catalogue = catalogue
        self._admission = admission
        self._caller = Caller(providers, catalogue, admission, now_ms)
        self._hedger = Hedger(self._caller, admission) if hedging else None

    @property
    def latencies(self) -> Latencies | None:
        """What hedging goes by; None where it is off."""
        return self._hedger.latencies if self._hedger else None

    def answer(
        self,
        query: Query,
        tier: Tier,
        *,
        deadline: float,
        signal: AbortSignal | None = None,
        is_interactive: bool = False,
    ) -> Outcome:
        """The first answer of the tier's targets; `deadline` is `time.monotonic()` seconds.

        Raises NoTargets, or AllTargetsFailed with every attempt. Setting `signal` ends the call in flight at once.
        """
        tokens = estimate_prompt_tokens(query) + max_completion_tokens(query, tier)
        errand = Errand(query, tier, deadline, signal or AbortSignal(), tokens)
        lineup = self._line_up(tier)
        if not lineup:
            raise NoTargets(f"No provider is configured for tier {tier.name}.")
        return self._walk(errand, lineup, self._hedger if is_interactive else None)

    def _walk(self, errand: Errand, lineup: Lineup, hedger: Hedger | None) -> Outcome:
        attempts: list[Attempt] = []
        error: ProviderError | None = None
        while True:
            granted = await_grant(self._admission, errand, lineup)
            if isinstance(granted, ProviderError):
                raise AllTargetsFailed(attempts, _last(error, granted))
            if error is not None:
                self._log_turn(error, granted.lane)
            for called in self._call(granted, errand, lineup, hedger):
                attempts.append(called.attempt.numbered(len(attempts) + 1))
                if isinstance(called.result, ProviderError):
                    lineup.learn(called.lane, called.result, time.monotonic())
            if isinstance(called.result, Completion):
                return Outcome(called.result, called.lane.target, tuple(attempts))
            error = called.result
            if not (error.try_next and lineup):
                raise AllTargetsFailed(attempts, error)

    def _line_up(self, tier: Tier) -> Lineup:
        targets = choose_targets(tier, self._providers, self._catalogue, self._admission.gone)
        key_ids = {name: self._providers[name].key_ids() for name in {target.provider for target in targets}}
        return Lineup(targets, key_ids, self._catalogue)

    def _call(self, grant: Grant, errand: Errand, lineup: Lineup, hedger: Hedger | None) -> Sequence[Called]:
        if hedger is None:
            return [self._caller.call(grant, errand, errand.signal)]
        return hedger.call(grant, errand, lineup.beside(grant.lane.target, time.monotonic()))

    def _log_turn(self, error: ProviderError, lane: Lane) -> None:
        target = lane.target
        is_successor = isinstance(error, ModelGone) and target.provider == error.target.provider
        fields = {
            "event": "model.replaced" if is_successor else "provider.fell_back",
            "provider": error.target.provider,
            "model": error.target.model,
            "reason": error.code,
            "status": error.status,
            "to_provider": target.provider,
            "to_model": target.model,
            "to_key_id": lane.key_id,
        }
        if is_successor:
            logger.warning("Model %s is gone; using %s", error.target.model, target.model, extra=fields)
        else:
            said = "%s did not answer (%s); falling back to %s"
            logger.warning(said, self._name(error.target), error.code, self._name(target), extra=fields)

    def _name(self, target: Target) -> str:
        return self._providers[target.provider].facts.display_name


def _last(error: ProviderError | None, refusal: ProviderError) -> ProviderError:
    """What the caller is told when the walk ends without another call: the last real error, and when to come back."""
    if error is None or isinstance(refusal, CallAborted):
        return refusal
    if refusal.retry_after is not None:
        error.retry_after = refusal.retry_after
    return error
