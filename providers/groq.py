"""Groq: https://console.groq.com/docs/errors"""

from providers.wire import STATUS_ERRORS, ProviderFacts
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
    # No row for "rate_limit_exceeded": with 413 it says that this one prompt is over a minute's allowance.
)
