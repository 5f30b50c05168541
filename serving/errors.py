"""Errors between a checkpoint and a score, grouped by what happens next.

A checkpoint that can't be trusted is `model.errors.CheckpointError` (refuse it, keep the old one),
and a row that the schema doesn't allow is `model.errors.FeatureError` (tell the caller).
"""

from niwaki.pruning.errors import NiwakiError


class ServingError(NiwakiError):
    """Root of this room's errors."""


class StoreUnavailable(ServingError):
    """Redis can't answer now: try again, with backoff. Nothing has been published by halves."""


class StoreRefused(ServingError):
    """Redis said no, or holds something else under our keys: trying again changes nothing until a
    person acts."""


class NotReady(ServingError):
    """The scorer has no checkpoint yet."""
