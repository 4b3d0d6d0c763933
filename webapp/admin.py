"""The routes of /api/v1/keys: administrators manage the keys of their own tenant, operators those of all."""

import logging
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from flask import Response
from flask_openapi3 import APIBlueprint, Tag
from sqlalchemy.exc import SQLAlchemyError

from storage.api_key import OPERATOR_TENANT, ApiKey, KeyEnded, KeyFacts, KeyLimits
from webapp.auth import caller, door
from webapp.caller import Caller
from webapp.document import problems, with_headers
from webapp.key_schema import KeyBody, KeyListView, KeyPath, KeysQuery, KeyView, NewKeyView, RotateBody
from webapp.problem import Problem, invalid, problem_response
from webapp.view import json_response

log = logging.getLogger(__name__)

admin = APIBlueprint("admin", __name__, url_prefix="/api/v1", abp_tags=[Tag(name="keys")])


@admin.post(
    "/keys",
    summary="Make a key",
    responses={201: with_headers(NewKeyView, "Location"), **problems(400, 403, 413, 415, 422, 500, 503)},
)
def create_key(body: KeyBody) -> Response:
    """The key is shown in this answer and never again. It may do no more than the key that makes it."""
    asking = caller()
    tenant = body.tenant or asking.tenant
    if tenant == OPERATOR_TENANT:
        raise invalid("tenant", "say whose key it is; keys of operators are made by the command (`make key`)")
    if not asking.may_see(tenant):
        raise Problem("forbidden", "Keys of another tenant are for operators to make.")
    facts = _facts(body, tenant)
    _refuse_growth(asking, facts)
    return _made(*door().store.create(facts))


@admin.get("/keys", summary="List keys", responses={200: KeyListView, **problems(422, 500, 503)})
def list_keys(query: KeysQuery) -> Response:
    """Those of the caller's tenant, or of all for operators; keys that have ended too."""
    asking = caller()
    if query.tenant and not asking.may_see(query.tenant):
        return json_response({"object": "list", "data": [], "next": None})
    tenant = query.tenant or asking.visible_tenant
    found = door().store.list(tenant, after=query.after, at_most=query.limit + 1)
    page = found[: query.limit]
    more = page[-1].id if len(found) > len(page) else None
    return json_response({"object": "list", "data": [_view(key) for key in page], "next": more})


@admin.get("/keys/<string:id>", summary="Read a key", responses={200: KeyView, **problems(404, 422, 500, 503)})
def get_key(path: KeyPath) -> Response:
    """What the key may do, and whether it still counts."""
    return json_response(_view(_found(path.id)))


@admin.post(
    "/keys/<string:id>/rotate",
    summary="Replace a key",
    responses={
        201: with_headers(NewKeyView, "Location"),
        **problems(400, 403, 404, 409, 413, 415, 422, 500, 503),
    },
)
def rotate_key(path: KeyPath, body: RotateBody) -> Response:
    """A new key with a new id and the same facts; the old one ends after the grace period."""
    asking, old = caller(), _found(path.id)
    if old.is_operator:
        raise Problem("forbidden", "Keys of operators are rotated by the command (`make key`).")
    _refuse_growth(asking, old)
    try:
        made = door().store.rotate(old.id, body.grace_seconds, asking.visible_tenant)
    except KeyEnded:
        raise Problem("key_ended", "The key has been revoked or has expired: make a new one.") from None
    if made is None:
        raise _unknown()
    door().cache.forget(old.id)
    return _made(*made)


@admin.delete(
    "/keys/<string:id>",
    summary="Revoke a key",
    responses={204: {"description": "Revoked, now or before"}, **problems(404, 422, 500, 503)},
)
def revoke_key(path: KeyPath) -> Response:
    """For good, on every machine within AUTH_CACHE_SECONDS."""
    if not door().store.revoke(path.id, caller().visible_tenant):
        raise _unknown()
    door().cache.forget(path.id)
    log.info("key.revoked", extra={"revoked_key": path.id, "by": caller().key_id})
    return Response(status=204)


@admin.errorhandler(SQLAlchemyError)
def _database_away(error: SQLAlchemyError) -> Response:
    log.warning("keys.unreachable", extra={"error": type(error).__name__})
    return problem_response(Problem("database_unavailable", "Keys live in the database, which is away.", retry_after=5))


def _found(key_id: str) -> ApiKey:
    key = door().store.find(key_id, caller().visible_tenant)
    if key is None:
        raise _unknown()
    return key


def _unknown() -> Problem:
    """The same for an id that nobody has and for another tenant's."""
    return Problem("key_unknown", "No key has this id.")


def _facts(body: KeyBody, tenant: str) -> KeyFacts:
    life = body.expires_in_seconds
    limits = KeyLimits(**body.limits.model_dump())
    expires_at = door().store.now() + timedelta(seconds=life) if life else None
    try:
        return KeyFacts(tenant, body.name, frozenset(body.scopes), frozenset(body.tiers), limits, expires_at)
    except ValueError as error:
        raise invalid("body", str(error)) from None


def _refuse_growth(asking: Caller, wanted: KeyFacts | ApiKey) -> None:
    """Raises Problem where a key of `wanted` could do what the one that asks for it cannot."""
    if asking.limits != KeyLimits():  # each new key would begin with unspent limits of its own
        raise Problem("forbidden", "A key that has limits makes and rotates no keys: use one without, or the command.")
    grown = list(_growth(asking, wanted))
    if grown:
        raise Problem("forbidden", f"The key would be allowed more than yours: {', '.join(grown)}.")


def _growth(asking: Caller, wanted: KeyFacts | ApiKey) -> Iterator[str]:
    if wanted.scopes - asking.scopes:
        yield "scopes"
    if asking.tiers and not (wanted.tiers and wanted.tiers <= asking.tiers):
        yield "tiers"
    if _exceeds(wanted.expires_at, asking.expires_at):
        yield "expires_in_seconds"


def _exceeds(value: Any, most: Any) -> bool:
    """None is without limit."""
    return most is not None and (value is None or value > most)


def _made(key: ApiKey, text: str) -> Response:
    log.info("key.created", extra={"made_key": key.id, "for_tenant": key.tenant, "by": caller().key_id})
    return json_response({**_view(key), "key": text}, 201, {"Location": f"/api/v1/keys/{key.id}"})


def _view(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "object": "api_key",
        "tenant": key.tenant,
        "name": key.name,
        "state": key.state(door().store.now()),
        "scopes": sorted(key.scopes),
        "tiers": sorted(key.tiers),
        "limits": asdict(key.limits),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
    }
