"""What can go wrong between a checkpoint and a score, grouped by what happens next.

A checkpoint that can't be trusted is `model.checkpoint.CheckpointError` (refuse it, keep the old one), and a row that
the schema doesn't allow is `model.features.FeatureError` (tell the caller).
"""


class ServingError(Exception):
    """Root of this room's errors."""


class StoreUnavailable(ServingError):
    """Redis can't answer now: try again, with backoff. Nothing has been published by halves."""


class StoreRefused(ServingError):
    """Redis said no, or holds something else under our keys: trying again changes nothing until a person acts."""


class NotReady(ServingError):
    """The scorer has no checkpoint yet."""
