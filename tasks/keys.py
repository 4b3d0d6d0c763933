"""`make key`: makes, lists, revokes and rotates API keys. The key itself goes to standard output, alone on its line."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta

from sqlalchemy import inspect
from sqlalchemy.exc import SQLAlchemyError

from config import load_settings
from routing.tier import TIER_NAMES
from storage.api_key import LARGEST, OPERATOR_TENANT, SCOPES, ApiKey, KeyEnded, KeyFacts, KeyLimits, KeyStore
from storage.database import build_engine
from storage.table import api_keys

COLUMNS = "{:<14}{:<18}{:<18}{:<18}{:<24}{:<9}{:<18}{}\n"
PAGE = 1000
MOST_DAYS = 3660
MOST_GRACE_S = 30 * 86_400


class Refused(Exception):
    """What cannot be done, as one sentence with what to do."""


def create(store: KeyStore, asked: argparse.Namespace) -> None:
    if asked.tenant == OPERATOR_TENANT:
        raise Refused(f"No tenant can be named {OPERATOR_TENANT}: use --operator for a key that sees all tenants.")
    days = asked.expires_in_days
    try:
        facts = KeyFacts(
            tenant=OPERATOR_TENANT if asked.operator else asked.tenant,
            name=asked.name,
            scopes=asked.scopes,
            tiers=asked.tiers,
            limits=KeyLimits(**{name: getattr(asked, name) for name in LARGEST}),
            expires_at=store.now() + timedelta(days=days) if days else None,
        )
    except ValueError as error:
        raise Refused(f"{error}.") from None
    _show(*store.create(facts))


def show_all(store: KeyStore, asked: argparse.Namespace) -> None:
    page = store.list(asked.tenant, at_most=PAGE)
    write = sys.stdout.write
    write(COLUMNS.format("id", "tenant", "name", "scopes", "tiers", "state", "expires (UTC)", "limits"))
    while page:
        for key in page:
            expires = f"{key.expires_at:%Y-%m-%d %H:%M}" if key.expires_at else "never"
            facts = (_tenant(key), key.name, _words(key.scopes), _words(key.tiers) or "all", key.state(store.now()))
            write(COLUMNS.format(key.id, *(f"{fact} " for fact in facts), expires, _limits(key)).rstrip() + "\n")
        page = store.list(asked.tenant, after=page[-1].id, at_most=PAGE)


def revoke(store: KeyStore, asked: argparse.Namespace) -> None:
    if not store.revoke(asked.id):
        raise _unknown(asked.id)
    sys.stdout.write(f"{asked.id} is revoked; every process knows within AUTH_CACHE_SECONDS.\n")


def rotate(store: KeyStore, asked: argparse.Namespace) -> None:
    try:
        made = store.rotate(asked.id, asked.grace_seconds)
    except KeyEnded:
        raise Refused(f"{asked.id} has been revoked or has expired: make a new key instead.") from None
    if made is None:
        raise _unknown(asked.id)
    ends = f"ends in {asked.grace_seconds:g} s" if asked.grace_seconds else "ends now"
    sys.stderr.write(f"{asked.id} {ends}; this one takes its place.\n")
    _show(*made)


def main(arguments: list[str] | None = None) -> int:
    """0 = done, 1 = refused, 2 = the command line does not fit."""
    asked = _parser().parse_args(arguments)
    engine = build_engine(load_settings().sql_url)
    try:
        command: Callable[[KeyStore, argparse.Namespace], None] = asked.command
        command(KeyStore(engine), asked)
    except Refused as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except SQLAlchemyError:
        sys.stderr.write(_trouble(engine) + "\n")
        return 1
    finally:
        engine.dispose()
    return 0


def _trouble(engine: object) -> str:
    try:
        if not inspect(engine).has_table(api_keys.name):
            return "The database has no table of keys yet: run `make migrate`."
    except SQLAlchemyError:
        pass
    return "The database does not answer: check DATABASE_URL, or start `make run`."


def _show(key: ApiKey, text: str) -> None:
    facts = [f"scopes {_words(key.scopes)}", f"tiers {_words(key.tiers) or 'all'}", _limits(key) or "no limits"]
    expires = f"expires {key.expires_at:%Y-%m-%d %H:%M} UTC" if key.expires_at else "never expires"
    sys.stderr.write(f"Key {key.id} for {_tenant(key)}: {', '.join([*facts, expires])}.\n")
    sys.stderr.write("Send it as `Authorization: Bearer <key>`. It is shown only this once:\n")
    sys.stderr.flush()
    sys.stdout.write(f"{text}\n")


def _tenant(key: ApiKey) -> str:
    return "operators" if key.is_operator else key.tenant


def _words(names: frozenset[str]) -> str:
    return ",".join(name for name in (*SCOPES, *TIER_NAMES) if name in names)


def _limits(key: ApiKey) -> str:
    return " ".join(f"{name}={value:g}" for name, value in asdict(key.limits).items() if value is not None)


def _unknown(key_id: str) -> Refused:
    return Refused(f"No key has the id {key_id!r}: `make key ARGS=list` shows them all.")


def _set(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.split(",") if name.strip())


def _days(text: str) -> float:
    if not 0 < float(text) <= MOST_DAYS:
        raise argparse.ArgumentTypeError(f"must be more than 0 and at most {MOST_DAYS}")
    return float(text)


def _grace(text: str) -> float:
    if not 0 <= float(text) <= MOST_GRACE_S:
        raise argparse.ArgumentTypeError(f"must be from 0 to {MOST_GRACE_S}")
    return float(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tasks.keys", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="create | list | revoke | rotate")

    making = commands.add_parser("create", help="make a key and show it, once")
    owner = making.add_mutually_exclusive_group()
    owner.add_argument("--tenant", default="default", help="whose key it is (default: default)")
    owner.add_argument("--operator", action="store_true", help="a key that sees all tenants")
    making.add_argument("--name", default="unnamed", help="to tell keys apart")
    making.add_argument("--scopes", type=_set, default=frozenset({"query", "read"}), help=f"of {','.join(SCOPES)}")
    making.add_argument("--tiers", type=_set, default=frozenset(), help=f"of {','.join(TIER_NAMES)} (default: all)")
    for name in LARGEST:
        number = float if "usd" in name else int
        making.add_argument(f"--{name.replace('_', '-')}", type=number, metavar="N", help="no limit where not given")
    making.add_argument("--expires-in-days", type=_days, metavar="N", help="never where not given")
    making.set_defaults(command=create)

    listing = commands.add_parser("list", help="show all keys, without their secrets")
    listing.add_argument("--tenant", help="only this tenant's")
    listing.set_defaults(command=show_all)

    ending = commands.add_parser("revoke", help="end a key for good")
    ending.add_argument("id")
    ending.set_defaults(command=revoke)

    replacing = commands.add_parser("rotate", help="make a new key with the same facts and end the old one")
    replacing.add_argument("id")
    replacing.add_argument("--grace-seconds", type=_grace, default=0, metavar="N", help="how long the old one counts")
    replacing.set_defaults(command=rotate)
    return parser


if __name__ == "__main__":
    sys.exit(main())
