"""Bad weather at a provider: for as long as it lasts, a share of its calls fails."""

import random
from collections import deque
from collections.abc import Iterator

from tests.chaos.fault import fault
from tests.chaos.world import World
from tests.fake_provider import FakeProvider
from tests.fake_provider import Fault as ProviderFault


class Weather(deque[ProviderFault]):
    """A queue of faults that never runs dry, and is empty for the calls that it spares."""

    def __init__(self, fault: ProviderFault, share: float) -> None:
        super().__init__()
        self._fault, self._share = fault, share
        self.struck = 0

    def __bool__(self) -> bool:
        return random.random() < self._share

    def popleft(self) -> ProviderFault:
        self.struck += 1
        return self._fault


@fault
def storm(world: World, what: ProviderFault, share: float = 1.0, *providers: str) -> Iterator[None]:
    """A share of the calls of Groq (or of these providers) fails so."""
    fakes = [world.providers[name].server for name in providers or ("groq",)]
    weather = Weather(what, share)
    for name, fake in zip(providers or ("groq",), fakes, strict=True):
        fake.faults[name] = weather
    yield
    for name, fake in zip(providers or ("groq",), fakes, strict=True):
        fake.faults[name] = deque()
    assert weather.struck, "the fault struck no call"


@fault
def refuse_connections(world: World) -> Iterator[None]:
    """Nobody listens at Groq's address; connections that were open are reset."""
    old = world.providers["groq"]
    old.server.faults["groq"] = Weather(ProviderFault("reset"), 1.0)
    old.stop()
    yield
    world.providers["groq"] = FakeProvider(old.port)
    world.providers["groq"].__enter__()
    world.providers["groq"].set_latency(old.server.latency_s)


@fault
def untrusted(world: World) -> Iterator[None]:
    """Groq's certificate is one that nobody trusts, all the time."""
    yield
    assert world.providers["together"].calls, "Together was not asked"
    assert not world.providers["groq"].calls, "a call was made over an untrusted connection"
