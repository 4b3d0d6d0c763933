"""Together AI: https://docs.together.ai/docs/error-codes"""

from providers.facts import STATUS_ERRORS, ProviderFacts
from routing.errors import ModelGone, PromptTooLong

TOGETHER = ProviderFacts(
    name="together",
    display_name="Together AI",
    status_errors={
        **STATUS_ERRORS,
        403: PromptTooLong,  # prompt + max_tokens over the context window; not about the key
    },
    code_errors={
        "model_not_available": ModelGone,
        "dedicated_endpoint_not_running": ModelGone,
    },
    limit_headers={  # per second; the dynamic ones follow what the traffic has earned
        "requests_limit": ("x-ratelimit-limit-dynamic", "x-ratelimit-limit"),
        "requests_remaining": ("x-ratelimit-remaining-dynamic", "x-ratelimit-remaining"),
        "requests_reset_s": ("x-ratelimit-reset",),
        "tokens_limit": ("x-tokenlimit-limit-dynamic", "x-tokenlimit-limit"),
        "tokens_remaining": ("x-tokenlimit-remaining-dynamic", "x-tokenlimit-remaining"),
    },
)
