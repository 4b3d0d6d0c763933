"""What the workers know of the targets together: paused until when, or gone. One worker's discovery serves all."""

from collections.abc import Mapping, Sequence

from redis import RedisError

from routing.query import Target
from storage.connection import RedisClient


def _key(target: Target) -> str:
    return f"aqr:hold:{target}"


class SharedBoard:
    """The chain's board of held targets over Redis. Without Redis every target counts as free."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    def states(self, targets: Sequence[Target]) -> Mapping[Target, str]:
        """Reason (`paused`, `model_gone`) of each target that is held now."""
        if not targets:
            return {}
        try:
            reasons = self._client.mget([_key(target) for target in targets])
        except RedisError:
            return {}
        return {target: reason.decode() for target, reason in zip(targets, reasons, strict=True) if reason}

    def hold(self, target: Target, reason: str, seconds: float) -> None:
        try:
            self._client.set(_key(target), reason, px=max(1, int(seconds * 1000)))
        except RedisError:
            return
