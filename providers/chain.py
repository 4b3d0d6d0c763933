"""Walks a tier's targets until one answers, and keeps a record of every attempt."""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from providers.abort import AbortSignal
from providers.wire import Provider
from routing.catalogue import Catalogue
from routing.errors import (
    AllTargetsFailed,
    CallAborted,
    KeyRejected,
    ModelGone,
    NoTargets,
    ProviderError,
    TargetThrottled,
    TargetTimedOut,
)
from routing.query import Attempt, Completion, Query, Target
from routing.tier import Tier

PAUSED = "paused"
MODEL_GONE = "model_gone"

THROTTLE_PAUSE_S = 5.0
LONGEST_THROTTLE_PAUSE_S = 300.0
KEY_PAUSE_S = 60.0
MODEL_GONE_S = 3600.0

logger = logging.getLogger(__name__)


class TargetBoard(Protocol):
    """What all workers know about targets. Neither method raises: without the board all targets are tried."""

    def states(self, targets: Sequence[Target]) -> Mapping[Target, str]:
        """Those of `targets` that are held now, as "paused" or "model_gone"."""
        ...

    def hold(self, target: Target, reason: str, seconds: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """An answer, the target that gave it, and the attempts that led there; the last one is the answer's."""

    completion: Completion
    target: Target
    attempts: tuple[Attempt, ...]


class Chain:
    """The providers that are configured, what is known about their models, and what the board remembers."""

    def __init__(
        self,
        providers: Mapping[str, Provider],
        catalogue: Catalogue,
        board: TargetBoard,
        *,
        now_ms: Callable[[], int],
    ) -> None:
        self._providers = providers
        self._catalogue = catalogue
        self._board = board
        self._now_ms = now_ms

    def answer(
        self,
        query: Query,
        tier: Tier,
        *,
        deadline: float,
        signal: AbortSignal | None = None,
        is_interactive: bool = True,
    ) -> Outcome:
        """The first answer of the tier's targets; `deadline` is `time.monotonic()` seconds.

        Raises NoTargets, or AllTargetsFailed with every attempt. `signal` is looked at before each call.
        """
        line = self._line_up(tier)
        if not line:
            raise NoTargets(f"No provider is configured for tier {tier.name}.")
        attempts: list[Attempt] = []
        error: ProviderError | None = None
        while True:
            target = line.popleft()
            if signal and signal.is_aborted:
                raise AllTargetsFailed(attempts, CallAborted(target, "no longer wanted"))
            if time.monotonic() >= deadline:
                raise AllTargetsFailed(attempts, error or TargetTimedOut(target, "no time left to call"))
            if error is not None:
                self._log_turn(error, target)
            result, attempt = self._call(target, query, tier, deadline)
            attempts.append(attempt.numbered(len(attempts) + 1))
            if isinstance(result, Completion):
                return Outcome(result, target, tuple(attempts))
            error = result
            self._learn(error)
            self._put_successor_next(error, line, attempts)
            if not (error.try_next and line):
                raise AllTargetsFailed(attempts, error)

    def _line_up(self, tier: Tier) -> deque[Target]:
        """The tier's targets in the order to try them; a model that is gone stands back for its successor."""
        families = [self._family(target) for target in tier.targets if target.provider in self._providers]
        held = self._board.states([target for family in families for target in family])
        chosen = [
            next((target for target in family if held.get(target) != MODEL_GONE), family[0]) for family in families
        ]
        ranks = {PAUSED: 1, MODEL_GONE: 2}
        return deque(sorted(dict.fromkeys(chosen), key=lambda target: ranks.get(held.get(target, ""), 0)))

    def _family(self, target: Target) -> list[Target]:
        """The target, its successor, that one's successor and so on."""
        family = [target]
        while (successor := self._catalogue.successor(family[-1])) and successor not in family:
            family.append(successor)
        return family

    def _call(
        self, target: Target, query: Query, tier: Tier, deadline: float
    ) -> tuple[Completion | ProviderError, Attempt]:
        provider = self._providers[target.provider]
        logger.info(
            "Calling %s with model: %s",
            provider.facts.display_name,
            target.model,
            extra={"event": "provider.called", **_fields(target), "tier": tier.name},
        )
        timeout_s = provider.facts.timeout_s or tier.timeout_s
        started_at, started = self._now_ms(), time.monotonic()
        result: Completion | ProviderError
        try:
            result = provider.complete(target, query, tier, min(deadline, started + timeout_s))
        except ProviderError as error:
            result = error
        latency_ms = (time.monotonic() - started) * 1000
        attempt = Attempt(target.provider, target.model, started_at, latency_ms, outcome="ok", status=200)
        if isinstance(result, ProviderError):
            return result, replace(
                attempt, outcome=result.code, status=result.status, detail=result.detail, said=result.said
            )
        cost_usd = self._catalogue.cost_usd(target, result.usage, tier)
        return result, replace(attempt, usage=result.usage, cost_usd=cost_usd)

    def _learn(self, error: ProviderError) -> None:
        """Tells the board what every worker should know about the target."""
        match error:
            case TargetThrottled():
                pause = min(error.retry_after or THROTTLE_PAUSE_S, LONGEST_THROTTLE_PAUSE_S)
                self._board.hold(error.target, PAUSED, pause)
            case KeyRejected():
                self._board.hold(error.target, PAUSED, KEY_PAUSE_S)
                fields = {"event": "provider.key_rejected", **_fields(error.target), "status": error.status}
                logger.error("%s rejects the key", self._name(error.target), extra=fields)
            case ModelGone():
                self._board.hold(error.target, MODEL_GONE, MODEL_GONE_S)

    def _put_successor_next(self, error: ProviderError, line: deque[Target], attempts: Sequence[Attempt]) -> None:
        successor = self._catalogue.successor(error.target) if isinstance(error, ModelGone) else None
        if successor is None or successor in {Target(done.provider, done.model) for done in attempts}:
            return
        if successor in line:
            line.remove(successor)
        line.appendleft(successor)

    def _log_turn(self, error: ProviderError, target: Target) -> None:
        is_successor = isinstance(error, ModelGone) and target.provider == error.target.provider
        fields = {
            "event": "model.replaced" if is_successor else "provider.fell_back",
            **_fields(error.target),
            "reason": error.code,
            "status": error.status,
            "to_provider": target.provider,
            "to_model": target.model,
        }
        if is_successor:
            logger.warning("Model %s is gone; using %s", error.target.model, target.model, extra=fields)
        else:
            said = "%s did not answer (%s); falling back to %s"
            logger.warning(said, self._name(error.target), error.code, self._name(target), extra=fields)

    def _name(self, target: Target) -> str:
        return self._providers[target.provider].facts.display_name


def _fields(target: Target) -> dict[str, object]:
    return {"provider": target.provider, "model": target.model}
