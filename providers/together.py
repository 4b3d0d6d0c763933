"""Together AI: https://docs.together.ai/docs/error-codes"""

from providers.wire import STATUS_ERRORS, ProviderFacts
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
)
