"""Groq: https://console.groq.com/docs/errors and https://console.groq.com/docs/rate-limits"""

from providers.facts import STATUS_ERRORS, ProviderFacts
from providers.rate_limit import REQUESTS_AND_TOKENS
from routing.errors import KeyRejected, ModelGone, PromptTooLong, TargetOverloaded

GROQ = ProviderFacts(
    name="groq",
    display_name="Groq",
    status_errors={
        **STATUS_ERRORS,
        498: TargetOverloaded,  # the flex tier's capacity
        499: TargetOverloaded,
    },
    code_errors={
        "model_not_found": ModelGone,
        "model_decommissioned": ModelGone,
        "model_permission_blocked_org": ModelGone,  # 403, yet the key is good for other models
        "model_terms_required": ModelGone,
        "organization_restricted": KeyRejected,  # 400
        "context_length_exceeded": PromptTooLong,
    },
    limit_headers=REQUESTS_AND_TOKENS,  # requests of a day, tokens of a minute
    # No row for "rate_limit_exceeded" above: with 413 it says that this one prompt is over a minute's allowance.
    private_codes=frozenset({"rate_limit_exceeded"}),  # names the organisation and what it has used
)
