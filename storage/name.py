"""Names of everything in the ledger's Redis."""

PREFIX = "aqr:"
DUE = PREFIX + "due"
USAGE = PREFIX + "usage"
DONE = PREFIX + "done"
CANCELLED = PREFIX + "cancelled"
DEAD_TENANTS = PREFIX + "dead_tenants"
UNRECORDED_HITS = PREFIX + "unrecorded_hits"


def dead_key(tenant: str) -> str:
    return PREFIX + "dead:" + tenant


def job_key(job_id: str) -> str:
    return PREFIX + "job:" + job_id


def withdrawn_key(job_id: str) -> str:
    return PREFIX + "withdrawn:" + job_id


def callers_key(job_id: str) -> str:
    return PREFIX + "callers:" + job_id


def attempts_key(job_id: str) -> str:
    return PREFIX + "attempts:" + job_id


def flight_key(tenant: str, fingerprint: str) -> str:
    return f"{PREFIX}flight:{tenant}:{fingerprint}"


def queued_key(tier: str, priority: int = 0) -> str:
    return PREFIX + "queued:" + (f"{tier}:{priority}" if priority else tier)


def share_key(tier: str) -> str:
    return PREFIX + "share:" + tier


def running_key(tier: str) -> str:
    return PREFIX + "running:" + tier


def spend_key(key_id: str) -> str:
    return PREFIX + "spend:" + key_id


def idempotency_key(tenant: str, digest: str) -> str:
    return f"{PREFIX}idempotency:{tenant}:{digest}"
