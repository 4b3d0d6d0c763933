"""The facts in which providers differ, and what most of them share."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from providers.rate_limit import Headers
from routing.errors import KeyRejected, ModelGone, PromptTooLong, ProviderError, TargetThrottled, TargetTimedOut

STATUS_ERRORS: Mapping[int, type[ProviderError]] = MappingProxyType(
    {
        401: KeyRejected,
        402: KeyRejected,
        403: KeyRejected,
        404: ModelGone,
        408: TargetTimedOut,
        413: PromptTooLong,
        429: TargetThrottled,
    }
)
"""What the statuses mean wherever a provider does not say otherwise."""

DOUBTFUL = frozenset({(403, KeyRejected), (404, ModelGone)})
"""What a gateway or a passing fault says as well: without a code of the provider's, one such reply proves nothing."""


@dataclass(frozen=True, slots=True)
class ProviderFacts:
    """How one provider differs from the others.

    `code_errors` go by the error's `code` or `type` and come before `status_errors`; other errors go by the
    class of their status. `private_codes` are of errors whose messages tell about the operator's account. `timeout_s`
    replaces the tier's. `names_models` is False where the reply's `model` is not a model's name. `limit_headers` names
    the headers that tell each field of RateLimits.
    """

    name: str
    display_name: str
    status_errors: Mapping[int, type[ProviderError]]
    code_errors: Mapping[str, type[ProviderError]]
    limit_headers: Headers
    private_codes: frozenset[str] = frozenset()
    max_tokens_cap: int | None = None
    timeout_s: float | None = None
    names_models: bool = True
