"""The contract of every provider: the same wire, the same checks, each with its own error rows."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

import pytest

from config import Settings
from providers import PROVIDERS, build_providers
from providers.abort import AbortSignal
from providers.client import HttpClient
from providers.key import key_id
from providers.wire import Answered, Provider
from routing.catalogue import load_catalogue
from routing.errors import (
    Aftermath,
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
from routing.lane import Lane, RateLimits
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
ENDS_LATE = ("silence", "slow_headers", "slow_body")  # after a minute


@dataclass(frozen=True)
class Rig:
    """One provider over the fake server."""

    name: str
    fake: FakeProvider
    provider: Provider

    @property
    def target(self) -> Target:
        return Target(self.name, PLAIN_MODEL[self.name])

    def ask(self, query: Query | str = "hello", *, tier: Tier = SIMPLE, model: str | None = None) -> Completion:
        return self.answer(query, tier=tier, model=model).completion

    def answer(
        self, query: Query | str = "hello", *, tier: Tier = SIMPLE, model: str | None = None, seconds: float = 5
    ) -> Answered:
        target = Target(self.name, model) if model else self.target
        query = Query(query) if isinstance(query, str) else query
        lane = Lane(target, self.provider.key_ids()[0])
        return self.provider.complete(lane, query, tier, time.monotonic() + seconds, AbortSignal())

    def fails(self, fault: Fault, seconds: float = 5) -> ProviderError:
        self.fake.fail_next(self.name, fault)
        with pytest.raises(ProviderError) as caught:
            self.answer(seconds=seconds)
        return caught.value


def build(name: str, fake: FakeProvider, *keys: str | None) -> Rig:
    client = HttpClient(pool_size=4, connect_timeout_s=1, max_reply_bytes=256 * 1024)
    return Rig(
        name,
        fake,
        Provider(PROVIDERS[name], client, fake.base_url(name), [key for key in keys if key], load_catalogue()),
    )


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
        "refusal",
        "odd_finish",
        "endless",
        "bomb",
        "redirect",
    ],
)
def test_a_reply_that_is_no_answer_is_unusable(rig: Rig, fault: str) -> None:
    error = rig.fails(Fault(fault))

    assert type(error) is ReplyUnusable
    assert error.try_next
    assert rig.fake.calls["stolen"] == 0


@pytest.mark.parametrize("fault", ["empty", "null", "content_filter", "refusal", "odd_finish"])
def test_an_answer_of_no_use_that_names_its_usage_is_billed(rig: Rig, fault: str) -> None:
    left = rig.fails(Fault(fault)).aftermath

    assert (left.billing, left.usage) == ("billed", Usage(1, 2))


@pytest.mark.parametrize("fault", ENDS_LATE)
def test_nobody_knows_whether_a_reply_that_did_not_come_in_time_is_billed(rig: Rig, fault: str) -> None:
    assert rig.fails(Fault(fault, every=0.02), seconds=0.5).aftermath == Aftermath("unknown")


@pytest.mark.parametrize(
    "fault",
    [
        *("reset", "hang_up", "cut", "cut_chunk", "garbage"),
        *("endless", "bomb", "bad_json", "deep_json", "not_an_object", "html", "no_choices", "empty_unbilled"),
    ],
)
def test_nobody_knows_whether_a_reply_that_is_not_whole_is_billed(rig: Rig, fault: str) -> None:
    assert rig.fails(Fault(fault)).aftermath == Aftermath("unknown")


def test_an_error_status_is_free(rig: Rig) -> None:
    for status in (400, 401, 429, 500, 503):
        assert rig.fails(Fault.status(status)).aftermath == Aftermath("free")


def test_an_error_status_counts_even_where_its_body_is_cut(rig: Rig) -> None:
    error = rig.fails(Fault("cut_error", 429, headers={"Retry-After": "9"}))

    assert (type(error), error.retry_after, error.aftermath.billing) == (TargetThrottled, 9, "free")


@pytest.mark.parametrize("fault", ["reset", "hang_up", "cut", "garbage"])
def test_a_broken_connection_means_unreachable(rig: Rig, fault: str) -> None:
    assert type(rig.fails(Fault(fault))) is TargetUnreachable


@pytest.mark.parametrize("fault", ENDS_LATE)
def test_no_whole_answer_in_time_means_timed_out(rig: Rig, fault: str) -> None:
    started = time.monotonic()

    error = rig.fails(Fault(fault, every=0.02), seconds=0.5)

    assert type(error) is TargetTimedOut
    assert time.monotonic() - started < 5


def test_no_server_means_unreachable(fake: FakeProvider) -> None:
    rig = build("groq", fake, KEYS["groq"])
    fake.stop()

    with pytest.raises(TargetUnreachable, match="Connection refused") as caught:
        rig.ask()

    assert caught.value.aftermath == Aftermath("free")


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

    error = keyed_rig.fails(Fault.status(400, message=said))

    assert "Incorrect API key provided: [key]" in (error.said or "")
    assert key[:8] not in str(error)


def test_none_of_several_keys_is_in_an_error(fake: FakeProvider) -> None:
    keys = ("gsk_first_111111", "tgp_second_22222", "$(special).*[3")
    fake.accept_key("groq", keys[0])

    error = build("groq", fake, *keys).fails(Fault.status(400, message=f"bad {keys[2]} and {keys[0][:10]} {keys[1]}"))

    assert error.said == "bad [key] and [key] [key]"


def test_each_key_is_called_under_its_own_id_and_they_take_turns(fake: FakeProvider) -> None:
    other = "gsk_other"
    fake.accept_key("groq", other)
    rig = build("groq", fake, KEYS["groq"], other)

    for _ in range(3):
        rig.ask()

    assert fake.keys_used == [KEYS["groq"], other, KEYS["groq"]]
    assert set(rig.provider.key_ids()) == {key_id(str(KEYS["groq"])), key_id(other)}


def test_a_key_id_is_eight_digits_of_the_keys_hash() -> None:
    assert key_id("gsk_x") == sha256(b"gsk_x").hexdigest()[:8]


def test_a_provider_without_a_key_has_one_lane(fake: FakeProvider) -> None:
    assert build("local", fake).provider.key_ids() == ("-",)


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
    ("name", "headers", "limits", "seconds"),
    [
        ("groq", {"x-ratelimit-reset-tokens": "7.66s"}, RateLimits(tokens_reset_s=7.66), 7.66),
        ("together", {"x-ratelimit-reset": "2", "x-ratelimit-limit": "9"}, RateLimits(9, requests_reset_s=2), 2),
    ],
)
def test_answers_and_failures_tell_the_lanes_limits(
    fake: FakeProvider, name: str, headers: dict[str, str], limits: RateLimits, seconds: float
) -> None:
    rig = build(name, fake, KEYS[name])
    fake.set_headers(headers)

    assert rig.answer().limits == limits
    error = rig.fails(Fault.status(429, headers=headers))
    assert (error.aftermath.limits, error.retry_after) == (limits, seconds)


def test_a_throttled_target_says_how_long_to_wait(rig: Rig) -> None:
    assert rig.fails(Fault.status(429, retry_after=2)).retry_after == 2.0
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
    assert Rig("together", fake, provider).ask().text == "answer to: hello"
    assert fake.calls["together"] == 1


def test_a_provider_gets_all_of_its_keys() -> None:
    settings = Settings(_env_file=None, groq_api_key="gsk_a, gsk_b", local_model="off")

    assert build_providers(settings, pool_size=1)["groq"].key_ids() == (key_id("gsk_a"), key_id("gsk_b"))


def test_every_provider_of_the_tiers_has_its_facts() -> None:
    named = {target.provider for tier in TIERS.values() for target in tier.targets}

    assert named == set(PROVIDERS)
