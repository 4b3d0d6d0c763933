"""What can go wrong at a provider, as a tree of classes that carry the two bits the chain needs.

RouterError
├─ NoTargets                          nothing is configured that could answer
├─ AllTargetsFailed                   every target was tried; carries the attempts
└─ ProviderError          retryable  try_next
   ├─ TargetThrottled        yes        yes     429: slow down, this lane only
   ├─ TargetOverloaded       yes        yes     498, 5xx: their capacity
   ├─ TargetUnreachable      yes        yes     refused, DNS, TLS, cut before an answer
   ├─ TargetTimedOut         yes        yes     no whole answer in time
   ├─ KeyRejected            no         yes     401, 402, 403: the key, not the query
   ├─ ModelGone              no         yes     404 model_not_found, 400 model_not_available …
   ├─ PromptTooLong          no         yes     another target may have a larger window
   ├─ ReplyUnusable          yes        yes     malformed, empty, oversized or refused answer
   ├─ CallAborted            no         no      the caller no longer wants the answer
   └─ QueryRejected          no         no      400, 422: the next target would refuse too

`retryable`: may the same target succeed later? `try_next`: may another target succeed now?
What the call may have cost all the same stands in `aftermath`, and what all workers learn of it in `standing`.
Statuses and codes: each provider's own table over `providers.wire`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from routing.lane import RateLimits
from routing.query import Attempt, Billing, Target, Usage


class RouterError(Exception):
    """Base of all errors that the router itself raises."""

    code = "router_error"


class NoTargets(RouterError):
    """No provider is configured that could answer this tier."""

    code = "no_provider"


@dataclass(frozen=True, slots=True)
class Aftermath:
    """What a failed call leaves: whether it was charged, the tokens its reply named, the limits its headers named."""

    billing: Billing = "free"
    usage: Usage | None = None
    limits: RateLimits | None = None


class ProviderError(RouterError):
    """One call to one target failed.

    `detail` is what happened in our words; `said` is the provider's own message, which may quote the query: it goes
    back to the caller and nowhere else. `standing` is what the admission is told instead of the code, where the call
    proves less than its code says: one tenant's query must not close a lane to all others.
    """

    code = "provider_error"
    retryable = True
    try_next = True

    def __init__(
        self,
        target: Target,
        detail: str,
        *,
        said: str | None = None,
        status: int | None = None,
        retry_after: float | None = None,
        aftermath: Aftermath = Aftermath(),
        standing: str | None = None,
    ) -> None:
        super().__init__(f"{target}: {detail}")
        self.target = target
        self.detail = detail
        self.said = said
        self.status = status
        self.retry_after = retry_after
        self.aftermath = aftermath
        self.standing = standing or self.code


class TargetThrottled(ProviderError):
    code = "throttled"


class TargetOverloaded(ProviderError):
    code = "overloaded"


class TargetUnreachable(ProviderError):
    code = "unreachable"


class TargetTimedOut(ProviderError):
    code = "timed_out"


class KeyRejected(ProviderError):
    code = "key_rejected"
    retryable = False


class ModelGone(ProviderError):
    code = "model_gone"
    retryable = False


class PromptTooLong(ProviderError):
    code = "prompt_too_long"
    retryable = False


class ReplyUnusable(ProviderError):
    code = "reply_unusable"


class CallAborted(ProviderError):
    code = "aborted"
    retryable = False
    try_next = False


class QueryRejected(ProviderError):
    code = "query_rejected"
    retryable = False
    try_next = False


class AllTargetsFailed(RouterError):
    """Every target was tried and none answered; `last` decides what the caller is told."""

    code = "all_targets_failed"

    def __init__(self, attempts: Sequence[Attempt], last: ProviderError) -> None:
        told = "; ".join(f"{a.provider}:{a.model}: {a.told}" for a in attempts)
        super().__init__(f"No target answered. {told}")
        self.attempts = tuple(attempts)
        self.last = last
