"""A sample of 400 clicks, and the schema that is proposed for it."""

import numpy as np

from niwaki.stream.recordings.proposal import Asked, ColumnReport, Proposal, Sample, propose

ROWS = 400
BEGIN_S = 1_700_000_000
_RANDOM = np.random.default_rng(5)
LABELS = (_RANDOM.random(ROWS) < 0.3).astype(int).tolist()
USERS = [f"u{at}" for at in _RANDOM.integers(0, 40, ROWS)]
PRICES = _RANDOM.uniform(2, 99, ROWS).round(2).tolist()
ITEMS = (4000 + _RANDOM.integers(0, 60, ROWS)).tolist()
NOTHING = Asked()


def proposal(*, label: str | None = "label", asked: Asked = NOTHING, **columns) -> Proposal:
    """The proposal for a sample with a label, users and other columns."""
    labels = {label: LABELS} if label else {}
    return propose(Sample(ROWS, labels | {"user": USERS} | columns), asked)


def column(found: Proposal, name: str) -> ColumnReport:
    return next(one for one in found.columns if one.name == name)


def noted(found: Proposal, text: str) -> bool:
    return any(text in note for note in found.notes)


def cycle(*values) -> list:
    return [values[at % len(values)] for at in range(ROWS)]
