"""The model on this machine: llama.cpp's server, https://github.com/ggml-org/llama.cpp/tree/master/tools/server"""

from providers.facts import STATUS_ERRORS, ProviderFacts
from routing.errors import PromptTooLong

LOCAL = ProviderFacts(
    name="local",
    display_name="local model",
    status_errors=STATUS_ERRORS,
    code_errors={"exceed_context_size_error": PromptTooLong},  # the `type`; its `code` is the status again
    limit_headers={},
    max_tokens_cap=512,  # a small CPU makes some 100 tokens a second, shared by all callers
    timeout_s=90,  # for the same reason
    names_models=False,  # it reports the path of the weights
)
