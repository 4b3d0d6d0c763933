"""Keys in the table, on SQLite and PostgreSQL alike."""

import hmac
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest
from sqlalchemy import Engine, select

from storage.api_key import ApiKey, KeyEnded, KeyFacts, KeyLimits, KeyStore, is_secret_of, split_key
from storage.table import api_keys
from tests.conftest import Clock

LIMITS = KeyLimits(60, 5, 10**12, 2.5, 50.0)


def facts(**given: Any) -> KeyFacts:
    return KeyFacts(**{"tenant": "acme", "name": "ci", "scopes": frozenset({"query"}), **given})


@pytest.fixture
def store(engine: Engine, clock: Clock) -> KeyStore:
    return KeyStore(engine, now_ms=clock)


def made(store: KeyStore, **given: Any) -> ApiKey:
    return store.create(facts(**given))[0]


def test_it_reads_back_what_was_made(store: KeyStore) -> None:
    until = store.now() + timedelta(days=90)
    key, _ = store.create(facts(tiers=frozenset({"simple", "medium"}), limits=LIMITS, expires_at=until))

    assert store.find(key.id) == key
    assert (key.tenant, key.name, key.scopes, key.tiers) == ("acme", "ci", {"query"}, {"simple", "medium"})
    assert (key.limits, key.created_at, key.expires_at, key.revoked_at) == (LIMITS, store.now(), until, None)


def test_only_the_hash_of_the_secret_is_stored(store: KeyStore, engine: Engine) -> None:
    key, text = store.create(facts())
    _, secret = split_key(text) or ("", "")

    with engine.connect() as connection:
        row = str(connection.execute(select(api_keys)).one())
    assert secret not in row
    assert sha256(secret.encode()).hexdigest() in row
    assert secret not in repr(key)
    assert key.secret_sha256 not in repr(key)


def test_a_key_is_its_id_and_its_secret_whatever_characters_that_has(store: KeyStore) -> None:
    for _ in range(50):
        key, text = store.create(facts())
        key_id, secret = split_key(text) or ("", "")
        assert key_id == key.id
        assert text == f"aqr_{key.id}_{secret}"
        assert is_secret_of(key, secret)


@pytest.mark.parametrize(
    "text",
    ["", "aqr", "aqr_", "aqr__", "aqr_abcdefghijkl", "aqr_abcdefghijkl_", "aqr_abcdefghijkl_" + "x" * 42]
    + ["aqr_abcdefghijkl_" + "x" * 44, "AQR_abcdefghijkl_" + "x" * 43, "aqr_ABCDEFGHIJKL_" + "x" * 43]
    + ["aqr_abcdefghijkl_" + "é" * 43, "aqr_abcdefghijkl_" + "x" * 43 + "\n", " aqr_abcdefghijkl_" + "x" * 43],
)
def test_what_is_no_key_is_not_split(text: str) -> None:
    assert split_key(text) is None


def test_secrets_are_compared_in_constant_time_also_where_there_is_no_key(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, text = store.create(facts())
    _, secret = split_key(text) or ("", "")
    compared = []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or compare(a, b))

    assert is_secret_of(key, secret)
    assert not is_secret_of(key, "x" + secret[1:] if secret[0] != "x" else "y" + secret[1:])
    assert not is_secret_of(None, secret)
    assert [(len(a), len(b)) for a, b in compared] == [(64, 64)] * 3


def test_it_lists_by_tenant_and_page_by_page(store: KeyStore) -> None:
    ids = sorted(made(store, tenant=tenant).id for tenant in ("acme", "acme", "acme", "other"))
    acme = [key.id for key in store.list("acme")]

    assert [key.id for key in store.list()] == ids
    assert len(acme) == 3
    assert [key.id for key in store.list("acme", at_most=2)] == acme[:2]
    assert [key.id for key in store.list("acme", after=acme[1])] == acme[2:]
    assert store.list("nobody") == []


def test_a_tenant_finds_ends_and_rotates_only_its_own(store: KeyStore) -> None:
    key = made(store)

    assert store.find(key.id, "other") is None
    assert store.revoke(key.id, "other") is False
    assert store.rotate(key.id, 0, "other") is None
    assert store.find(key.id, "acme") == key
    assert len(store.list()) == 1


@pytest.mark.parametrize("key_id", ["", "nope", "a\x00b", "é" * 12, "x" * 10_000, "abcdefghijkl"])
def test_an_id_that_nobody_has_is_not_found(store: KeyStore, key_id: str) -> None:
    assert store.find(key_id) is None
    assert store.revoke(key_id) is False
    assert store.rotate(key_id) is None


def test_a_revoked_key_stays_revoked_since_the_first_time(store: KeyStore, clock: Clock) -> None:
    key = made(store)
    assert store.revoke(key.id)
    first = store.now()
    clock.advance(60)

    assert store.revoke(key.id)
    found = store.find(key.id)
    assert found
    assert found.revoked_at == first
    assert found.state(first) == "revoked"


def test_it_expires_at_the_moment_and_not_before() -> None:
    at = datetime(2030, 1, 1, tzinfo=UTC)
    key = ApiKey("i", "t", "n", "h", frozenset(), frozenset(), KeyLimits(), at, at, None)

    assert key.state(at - timedelta(milliseconds=1)) == "live"
    assert key.state(at) == "expired"


def test_rotation_makes_the_same_key_with_another_id_and_secret(store: KeyStore, clock: Clock) -> None:
    until = store.now() + timedelta(days=90)
    old, old_text = store.create(facts(tiers=frozenset({"simple"}), limits=LIMITS, expires_at=until))
    new, new_text = store.rotate(old.id, grace_s=60) or pytest.fail("not found")

    assert (new.tenant, new.name, new.scopes, new.tiers) == (old.tenant, old.name, old.scopes, old.tiers)
    assert (new.limits, new.expires_at) == (LIMITS, until)
    assert new.id != old.id
    assert not is_secret_of(new, (split_key(old_text) or ("", ""))[1])
    assert is_secret_of(new, (split_key(new_text) or ("", ""))[1])
    found = store.find(old.id)
    assert found
    assert found.state(store.now()) == "live"
    clock.advance(60)
    assert found.state(store.now()) == "expired"
    assert new.state(store.now()) == "live"


def test_rotation_without_grace_ends_the_old_key_now(store: KeyStore) -> None:
    old = made(store)
    store.rotate(old.id)

    found = store.find(old.id)
    assert found
    assert found.state(store.now()) == "expired"


def test_rotation_never_lengthens_a_life(store: KeyStore) -> None:
    until = store.now() + timedelta(seconds=10)
    old = made(store, expires_at=until)
    store.rotate(old.id, grace_s=3_600)

    found = store.find(old.id)
    assert found
    assert found.expires_at == until


def test_a_key_that_has_ended_is_not_rotated(store: KeyStore, clock: Clock) -> None:
    revoked, expiring = made(store), made(store, expires_at=store.now() + timedelta(seconds=10))
    store.revoke(revoked.id)
    clock.advance(10)

    for key in (revoked, expiring):
        with pytest.raises(KeyEnded):
            store.rotate(key.id, 60)
    assert len(store.list()) == 2


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tenant": ""}, "tenant"),
        ({"tenant": "a b"}, "tenant"),
        ({"tenant": "**"}, "tenant"),
        ({"tenant": "acme\n"}, "tenant"),
        ({"tenant": "x" * 65}, "tenant"),
        ({"name": ""}, "name"),
        ({"name": "a\x1b[31m"}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"scopes": frozenset()}, "scopes"),
        ({"scopes": frozenset({"root"})}, "scopes"),
        ({"tiers": frozenset({"huge"})}, "tiers"),
        ({"limits": KeyLimits(requests_per_minute=0)}, "requests_per_minute"),
        ({"limits": KeyLimits(tokens_per_day=10**18)}, "tokens_per_day"),
        ({"limits": KeyLimits(budget_usd_per_day=float("nan"))}, "budget_usd_per_day"),
        ({"limits": KeyLimits(budget_usd_per_month=-1)}, "budget_usd_per_month"),
    ],
)
def test_facts_that_do_not_fit_are_named(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        facts(**given)
