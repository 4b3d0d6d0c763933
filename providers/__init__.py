"""LLM providers over HTTP: one small file of facts each, over one shared client and one wire format."""

from collections.abc import Mapping

from config import Settings
from providers.client import HttpClient
from providers.facts import ProviderFacts
from providers.groq import GROQ
from providers.local import LOCAL
from providers.together import TOGETHER
from providers.wire import Provider
from routing.catalogue import load_catalogue

PROVIDERS: Mapping[str, ProviderFacts] = {facts.name: facts for facts in (GROQ, TOGETHER, LOCAL)}


def build_providers(settings: Settings, *, pool_size: int) -> dict[str, Provider]:
    """The configured providers over one client, which keeps up to `pool_size` connections to each host."""
    client = HttpClient(
        pool_size=pool_size,
        connect_timeout_s=settings.provider_connect_timeout_seconds,
        max_reply_bytes=settings.max_reply_bytes,
    )
    return {
        name: Provider(facts, client, settings.base_url(name), settings.keys(name), load_catalogue())
        for name, facts in PROVIDERS.items()
        if settings.is_configured(name)
    }
