"""The slots of the linear expert: which row of its table each field, pair of fields, numeric and
the constant reads.

In: a schema and its encoder. Out: row numbers, and the group and prior variance of each slot.
"""

from niwaki.model.features.encoder import Encoder
from niwaki.model.features.numerics import CODES
from niwaki.model.features.schema import Schema

_VARIANCES = {"field": 0.03, "pair": 0.003, "score": 0.01, "code": 0.01, "constant": 0.3}
"""Prior variances to begin with, by kind of slot; they are learned from there."""


class Slots:
    """Where each field, pair, numeric and the constant has its rows in the linear expert's table.

    Rows: of fields, of pairs, of missing-value marks and scores (2N), of codes (N x CODES), the
    constant.
    """

    def __init__(self, schema: Schema, encoder: Encoder):
        fields, pairs, numerics = len(schema.fields), len(encoder.pairs), len(schema.numerics)
        first_pair = fields * encoder.rows
        first_score = first_pair + encoder.pair_rows
        first_row_of_codes = first_score + 2 * numerics
        self.rows = first_row_of_codes + numerics * CODES + 1
        self.places = first_pair, first_score, first_row_of_codes, CODES
        """First rows of pairs, scores and codes, and the rows of each numeric's codes."""
        kinds = (
            ["field"] * fields
            + ["pair"] * pairs
            + ["score"] * 2 * numerics
            + ["code"] * numerics
            + ["constant"]
        )
        self.variance_G = [_VARIANCES[kind] for kind in kinds]
        first_code = fields + pairs + 2 * numerics
        codes = list(range(first_code, first_code + numerics))
        self.group_S = [*range(first_code), *codes, *codes, first_code + numerics]
        """A group for each field, pair and numeric; the codes below and above a value share
        theirs."""

    def __len__(self) -> int:
        return len(self.group_S)
