"""The errors of learning and of what is published, grouped by what the caller does next."""

from niwaki.pruning.errors import NiwakiError, RuleError


class FeatureError(RuleError):
    """A row breaks a rule of the schema. Tell its sender, or dead-letter it, and go on."""


class CheckpointError(RuleError):
    """These bytes are not a checkpoint that can be trusted. Refuse them, and keep the checkpoint
    that serves."""


class LearnError(NiwakiError, ArithmeticError):
    """Learning has gone wrong beyond repair, such as a loss that is not finite. Go back to the last
    snapshot."""
