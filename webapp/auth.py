"""Who may ask: provisional."""

from dataclasses import dataclass

from flask import g

from storage.quota import KeyLimits


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a request is made. No `tiers` means all. An operator sees all tenants."""

    tenant: str
    key_id: str
    scopes: frozenset[str]
    tiers: frozenset[str] = frozenset()
    limits: KeyLimits = KeyLimits()
    is_operator: bool = False

    def may_use(self, tier: str) -> bool:
        return not self.tiers or tier in self.tiers

    def may_see(self, tenant: str) -> bool:
        return self.is_operator or tenant == self.tenant

    @property
    def visible_tenant(self) -> str | None:
        return None if self.is_operator else self.tenant


ANYONE = Caller("default", key_id="", scopes=frozenset(("query", "read", "admin")), is_operator=True)


def caller() -> Caller:
    return g.get("caller", ANYONE)
