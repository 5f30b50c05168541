"""Errors between a checkpoint and a score, grouped by what happens next.

A checkpoint that can't be trusted is `model.errors.CheckpointError` (refuse it, keep the old one),
and a row that the schema doesn't allow is `model.errors.FeatureError` (tell the caller).
"""

from niwaki.pruning.errors import NiwakiError


class ServingError(NiwakiError):
    """Root of this room's errors."""


class StoreError(ServingError):
    """The store does not do what it was asked to."""

    def __init__(self, text: str, kind: str = "other"):
        """`kind`: the cause, one of `STORE_KINDS`."""
        self.kind = kind
        super().__init__(text)


STORE_KINDS = (
    *("connection", "timeout", "loading", "readonly", "memory", "noreplicas", "misconf"),
    *("auth", "moved", "evicted", "other"),
)
"""Causes for which a store does not do what it was asked to."""


class StoreUnavailable(StoreError):
    """Redis can't answer now: try again, with backoff. Nothing has been published by halves."""


class StoreRefused(StoreError):
    """Redis said no, or holds something else under our keys: trying again changes nothing until a
    person acts."""


class NotReady(ServingError):
    """The scorer has no checkpoint yet."""
