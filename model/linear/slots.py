"""The slots of the linear expert: the rows of its table that fields, pairs of fields, numerics and
the constant read.

In: a schema and its encoder. Out: first row numbers, and the group and the initial prior variance
of each slot. Evidence is not here (`niwaki.model.linear.expert`).

Shapes: S slots, G groups of slots, N numerics.
"""

from typing import NamedTuple

from niwaki.model.features.encoder import Encoder
from niwaki.model.features.numerics import CODES
from niwaki.model.features.schema import Schema

_VARIANCES = {"field": 0.03, "pair": 0.003, "score": 0.01, "code": 0.01, "constant": 0.3}
"""Initial prior variances by kind of slot; the stream changes them."""


class Places(NamedTuple):
    """Numbers from which a kernel computes the rows of slots, beside those of fields."""

    first_pair: int
    """First row of pairs."""
    first_score: int
    """First row of scores and marks of missing values."""
    first_code: int
    """First row of codes."""
    codes: int
    """Rows of each numeric's codes."""


class Slots:
    """The rows of each field, pair, numeric and of the constant in the linear expert's table.

    Rows in their order: fields, pairs, scores and marks of missing values (2N), codes (N x CODES),
    the constant.
    """

    def __init__(self, schema: Schema, encoder: Encoder):
        fields = len(schema.fields)
        pairs = len(encoder.pairs)
        numerics = len(schema.numerics)
        first_pair = fields * encoder.rows
        first_score = first_pair + encoder.pair_rows
        first_code = first_score + 2 * numerics
        self.places = Places(first_pair, first_score, first_code, CODES)
        self.rows = first_code + numerics * CODES + 1
        """Rows of the table."""
        kinds = (
            ["field"] * fields
            + ["pair"] * pairs
            + ["score"] * 2 * numerics
            + ["code"] * numerics
            + ["constant"]
        )
        self.variance_G = [_VARIANCES[kind] for kind in kinds]
        """Initial prior variance of each group."""
        others = fields + pairs + 2 * numerics
        codes = range(others, others + numerics)
        self.group_S = [*range(others), *codes, *codes, others + numerics]
        """The group of each slot: one for each field, pair, score, mark and numeric, and the
        constant; the codes below and above a value share one group."""

    def __len__(self) -> int:
        """Number of slots S."""
        return len(self.group_S)
