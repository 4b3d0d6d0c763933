"""What the tests of the chain share: its targets, and a chain over the scripted providers."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from providers import PROVIDERS
from providers.abort import AbortSignal
from providers.chain import Chain, Outcome
from providers.client import HttpClient
from providers.wire import Provider
from routing.catalogue import Catalogue, load_catalogue
from routing.errors import AllTargetsFailed
from routing.query import Query, Target
from routing.tier import TIERS, Tier
from tests.fake_provider import KEYS, FakeProvider
from tests.open_admission import OpenAdmission

GROQ = Target("groq", "llama-3.1-8b-instant")
GROQ_SUCCESSOR = Target("groq", "openai/gpt-oss-20b")
TOGETHER = Target("together", "meta-llama/Llama-3.2-3B-Instruct-Turbo")
LOCAL = Target("local", "smollm2-135m-instruct")
SIMPLE = TIERS["simple"]
STARTED_AT = 1_700_000_000_000


@dataclass
class Rig:
    """A chain over the fake server and an admission in memory."""

    fake: FakeProvider
    admission: OpenAdmission = field(default_factory=OpenAdmission)
    keys: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def chain(self, *names: str, catalogue: Catalogue | None = None, hedging: bool = False) -> Chain:
        client = HttpClient(pool_size=4, connect_timeout_s=1, max_reply_bytes=256 * 1024)
        known = catalogue or load_catalogue()
        providers = {
            name: Provider(PROVIDERS[name], client, self.fake.base_url(name), self._keys(name), known)
            for name in names or PROVIDERS
        }
        return Chain(providers, known, self.admission, now_ms=lambda: STARTED_AT, hedging=hedging)

    def ask(self, *names: str, tier: Tier = SIMPLE, seconds: float = 5, signal: AbortSignal | None = None) -> Outcome:
        deadline = time.monotonic() + seconds
        return self.chain(*names).answer(Query("hello"), tier, deadline=deadline, signal=signal)

    def fails(
        self, *names: str, tier: Tier = SIMPLE, seconds: float = 5, signal: AbortSignal | None = None
    ) -> AllTargetsFailed:
        with pytest.raises(AllTargetsFailed) as caught:
            self.ask(*names, tier=tier, seconds=seconds, signal=signal)
        return caught.value

    def _keys(self, name: str) -> tuple[str, ...]:
        own = KEYS[name]
        return self.keys.get(name, (own,) if own else ())


def wait_until(condition: Callable[[], object], seconds: float = 3) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
