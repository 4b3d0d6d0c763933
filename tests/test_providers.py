"""The contract of every provider: the same wire, the same checks, each with its own error rows."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest

from config import Settings
from providers import PROVIDERS, build_providers
from providers.client import HttpClient
from providers.retry_after import parse_duration, retry_after
from providers.wire import Provider
from routing.catalogue import load_catalogue
from routing.errors import (
    KeyRejected,
    ModelGone,
    PromptTooLong,
    ProviderError,
    QueryRejected,
    ReplyUnusable,
    TargetOverloaded,
    TargetThrottled,
    TargetTimedOut,
    TargetUnreachable,
)
from routing.query import Completion, Query, Target, Usage
from routing.tier import TIERS, Tier
from tests.fake_provider import KEYS, FakeProvider, Fault

SIMPLE = TIERS["simple"]
PLAIN_MODEL = {
    "groq": "llama-3.1-8b-instant",
    "together": "Qwen/Qwen3.5-9B",
    "local": "smollm2-135m-instruct",
}

COMMON_ROWS = [
    (Fault.status(400), QueryRejected),
    (Fault.status(401), KeyRejected),
    (Fault.status(402), KeyRejected),
    (Fault.status(404), ModelGone),
    (Fault.status(408), TargetTimedOut),
    (Fault.status(413), PromptTooLong),
    (Fault.status(418), QueryRejected),
    (Fault.status(422), QueryRejected),
    (Fault.status(429), TargetThrottled),
    (Fault.status(500), TargetOverloaded),
    (Fault.status(502), TargetOverloaded),
    (Fault.status(503), TargetOverloaded),
    (Fault.status(504), TargetOverloaded),
    (Fault.status(529), TargetOverloaded),
]
OWN_ROWS = {
    "groq": [
        (Fault.status(403), KeyRejected),
        (Fault.status(403, code="model_permission_blocked_org"), ModelGone),
        (Fault.status(400, code="organization_restricted"), KeyRejected),
        (Fault.status(400, code="model_decommissioned"), ModelGone),
        (Fault.status(400, code="model_terms_required"), ModelGone),
        (Fault.status(404, code="model_not_found"), ModelGone),
        (Fault.status(400, code="context_length_exceeded"), PromptTooLong),
        (Fault.status(413, code="rate_limit_exceeded"), PromptTooLong),
        (Fault.status(498), TargetOverloaded),
        (Fault.status(499), TargetOverloaded),
    ],
    "together": [
        (Fault.status(403), PromptTooLong),
        (Fault.status(400, code="model_not_available"), ModelGone),
        (Fault.status(400, code="dedicated_endpoint_not_running"), ModelGone),
    ],
    "local": [
        (Fault.status(403), KeyRejected),
        (Fault.status(400, code=400, type="exceed_context_size_error"), PromptTooLong),
        (Fault.status(503, code=503, type="unavailable_error"), TargetOverloaded),
    ],
}
ERROR_ROWS = [
    pytest.param(name, fault, kind, id=f"{name}-{fault.http_status}-{fault.code or fault.type or ''}")
    for name in PROVIDERS
    for fault, kind in COMMON_ROWS + OWN_ROWS[name]
]


@dataclass(frozen=True)
class Rig:
    """One provider over the fake server."""

    name: str
    fake: FakeProvider
    provider: Provider

    @property
    def target(self) -> Target:
        return Target(self.name, PLAIN_MODEL[self.name])

    def ask(
        self, query: Query | str = "hello", *, tier: Tier = SIMPLE, model: str | None = None, seconds: float = 5
    ) -> Completion:
        target = Target(self.name, model) if model else self.target
        query = Query(query) if isinstance(query, str) else query
        return self.provider.complete(target, query, tier, time.monotonic() + seconds)

    def fails(self, fault: Fault, seconds: float = 5) -> ProviderError:
        self.fake.fail_next(self.name, fault)
        with pytest.raises(ProviderError) as caught:
            self.ask(seconds=seconds)
        return caught.value


def build(name: str, fake: FakeProvider, key: str | None) -> Rig:
    client = HttpClient(pool_size=4, connect_timeout_s=1, max_reply_bytes=256 * 1024)
    return Rig(name, fake, Provider(PROVIDERS[name], client, fake.base_url(name), key, load_catalogue()))


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as server:
        yield server


@pytest.fixture(params=PROVIDERS)
def rig(request: pytest.FixtureRequest, fake: FakeProvider) -> Rig:
    return build(request.param, fake, KEYS[request.param])


@pytest.fixture(params=["groq", "together"])
def keyed_rig(request: pytest.FixtureRequest, fake: FakeProvider) -> Rig:
    return build(request.param, fake, KEYS[request.param])


def test_it_answers_with_text_model_reason_and_usage(rig: Rig) -> None:
    assert rig.ask("two words") == Completion(
        text="answer to: two words", model=rig.target.model, finish_reason="stop", usage=Usage(2, 4)
    )


def test_it_sends_what_the_query_and_the_tier_say_and_nothing_else(rig: Rig) -> None:
    rig.ask(Query("hello", system="be brief", max_tokens=7, temperature=0.0))

    assert rig.fake.history == [
        {
            "provider": rig.name,
            "model": rig.target.model,
            "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}],
            "max_tokens": 7,
            "temperature": 0.0,
            "stream": False,
        }
    ]


def test_a_query_cannot_ask_for_more_tokens_than_its_tier_gives(rig: Rig) -> None:
    rig.ask(Query("hello", max_tokens=100_000))
    rig.ask(Query("hello"))

    assert [sent["max_tokens"] for sent in rig.fake.history] == [SIMPLE.max_tokens, SIMPLE.max_tokens]


def test_the_local_model_is_not_asked_for_long_answers(fake: FakeProvider) -> None:
    build("local", fake, None).ask("hello", tier=TIERS["complex"])

    assert fake.history[0]["max_tokens"] == 512


def test_only_reasoning_models_are_told_an_effort(keyed_rig: Rig) -> None:
    keyed_rig.ask(model="openai/gpt-oss-120b", tier=TIERS["complex"])
    keyed_rig.ask(model=PLAIN_MODEL[keyed_rig.name])
    keyed_rig.ask(model="a-model-we-do-not-know")

    assert [sent.get("reasoning_effort") for sent in keyed_rig.fake.history] == ["medium", None, None]


@pytest.mark.parametrize(("name", "fault", "kind"), ERROR_ROWS)
def test_each_error_has_its_class(fake: FakeProvider, name: str, fault: Fault, kind: type[ProviderError]) -> None:
    error = build(name, fake, KEYS[name]).fails(fault)

    assert type(error) is kind
    assert error.status == fault.http_status
    assert error.target == Target(name, PLAIN_MODEL[name])


def test_a_retired_model_is_gone_in_each_providers_own_words(rig: Rig) -> None:
    rig.fake.retire(rig.target.model)

    with pytest.raises(ModelGone):
        rig.ask()


@pytest.mark.parametrize(
    "fault",
    [
        "bad_json",
        "deep_json",
        "not_an_object",
        "html",
        "no_choices",
        "empty",
        "null",
        "content_filter",
        "endless",
        "bomb",
        "redirect",
    ],
)
def test_a_reply_that_is_no_answer_is_unusable(rig: Rig, fault: str) -> None:
    error = rig.fails(Fault(fault))

    assert type(error) is ReplyUnusable
    assert rig.fake.calls["stolen"] == 0


@pytest.mark.parametrize("fault", ["reset", "hang_up", "cut", "garbage"])
def test_a_broken_connection_means_unreachable(rig: Rig, fault: str) -> None:
    assert type(rig.fails(Fault(fault))) is TargetUnreachable


@pytest.mark.parametrize("fault", ["silence", "slow_headers", "slow_body"])
def test_no_whole_answer_in_time_means_timed_out(rig: Rig, fault: str) -> None:
    started = time.monotonic()

    error = rig.fails(Fault(fault, every=0.02), seconds=0.3)

    assert type(error) is TargetTimedOut
    assert time.monotonic() - started < 0.8


def test_no_server_means_unreachable(fake: FakeProvider) -> None:
    rig = build("groq", fake, KEYS["groq"])
    fake.stop()

    with pytest.raises(TargetUnreachable, match="Connection refused"):
        rig.ask()


def test_a_missing_usage_is_unknown_not_zero(rig: Rig) -> None:
    rig.fake.fail_next(rig.name, Fault("no_usage"))

    assert rig.ask() == Completion("bare", rig.target.model, "stop", None)


def test_text_that_cannot_be_stored_is_repaired(rig: Rig) -> None:
    rig.fake.fail_next(rig.name, Fault("surrogate"))

    assert rig.ask().text == "half ? and \ufffd"


def test_the_key_is_never_in_an_error(keyed_rig: Rig) -> None:
    key = KEYS[keyed_rig.name]
    assert key is not None
    said = f"Incorrect API key provided: {key}, or its beginning {key[:12]}…"

    error = keyed_rig.fails(Fault.status(401, message=said))

    assert "Incorrect API key provided: [key]" in (error.said or "")
    assert key[:8] not in str(error)


def test_a_wrong_key_is_rejected(fake: FakeProvider) -> None:
    with pytest.raises(KeyRejected):
        build("groq", fake, "gsk_wrong").ask()


def test_a_key_with_a_line_end_around_it_works(fake: FakeProvider) -> None:
    assert build("groq", fake, f"{KEYS['groq']}\n").ask().text == "answer to: hello"


def test_a_long_message_is_shortened(rig: Rig) -> None:
    error = rig.fails(Fault.status(400, message="long " * 500))

    assert error.said is not None
    assert error.said.startswith("long long")
    assert len(error.said) == 300


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": format_datetime(datetime.fromtimestamp(1060, UTC), usegmt=True)}, 60.0),
        ({"retry-after": format_datetime(datetime.fromtimestamp(10, UTC), usegmt=True)}, 0.0),
        ({"x-ratelimit-reset-requests": "2m59.56s", "x-ratelimit-reset-tokens": "7.66s"}, 7.66),
        ({"x-ratelimit-reset-requests": "2m59.56s"}, 179.56),
        ({"x-ratelimit-reset-requests": "soon"}, None),
        ({"retry-after": "9", "x-ratelimit-reset-tokens": "1s"}, 9.0),
        ({}, None),
    ],
)
def test_the_wait_is_read_from_the_headers(headers: Mapping[str, str], seconds: float | None) -> None:
    assert retry_after(headers, now=1000.0) == (seconds if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("120ms", 0.12), ("1h2m3s", 3723.0), ("1d", 86_400.0), ("5", None), ("", None), ("5s later", None)],
)
def test_durations_are_read_in_groqs_notation(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == seconds


def test_a_throttled_target_says_how_long_to_wait(rig: Rig) -> None:
    assert rig.fails(Fault.status(429, retry_after=2)).retry_after == 2.0
    assert rig.fails(Fault.status(429, headers={"x-ratelimit-reset-tokens": "1.5s"})).retry_after == 1.5
    assert rig.fails(Fault.status(500, retry_after=2)).retry_after is None


def test_only_configured_providers_are_built(fake: FakeProvider) -> None:
    settings = Settings(_env_file=None, groq_api_key="gsk_x", together_api_key=None, local_model="auto")
    alone = Settings(_env_file=None, groq_api_key=None, together_api_key=None, local_model="auto")

    assert set(build_providers(settings, pool_size=1)) == {"groq"}
    assert set(build_providers(alone, pool_size=1)) == {"local"}


def test_providers_are_built_to_the_settings(fake: FakeProvider) -> None:
    settings = Settings(
        _env_file=None, together_api_key=KEYS["together"], together_base_url=fake.base_url("together") + "/"
    )

    provider = build_providers(settings, pool_size=1)["together"]
    completion = provider.complete(Target("together", "Qwen/Qwen3.5-9B"), Query("hello"), SIMPLE, time.monotonic() + 5)

    assert completion.text == "answer to: hello"
    assert fake.calls["together"] == 1


def test_every_provider_of_the_tiers_has_its_facts() -> None:
    named = {target.provider for tier in TIERS.values() for target in tier.targets}

    assert named == set(PROVIDERS)
