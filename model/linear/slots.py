"""The slots of the linear expert: the rows of its table that fields, pairs of fields, numerics, the
constant and lists read.

In: a schema and its encoder. Out: first row numbers, and the group and the initial prior variance
of each slot. Evidence is not here (`niwaki.model.linear.expert`).

Shapes: S slots, G groups of slots, N numerics.
"""

from collections.abc import Sequence
from typing import NamedTuple

from niwaki.model.features.encoder import Encoder
from niwaki.model.features.lists import ListRows, ListSlots
from niwaki.model.features.numerics import CODES
from niwaki.model.features.schema import Schema

_VARIANCES = {
    "field": 0.03,
    "pair": 0.003,
    "score": 0.01,
    "code": 0.01,
    "constant": 0.3,
    "list": 0.03,
}
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

    Rows in their order: fields, lists among them, pairs, scores and marks of missing values (2N),
    codes (N x CODES), the constant. The slots of lists come last: each reads the mean of what its
    values do.
    """

    def __init__(self, schema: Schema, encoder: Encoder):
        fields = len(schema.single_fields)
        lists = len(schema.list_fields)
        pairs = len(encoder.pairs)
        numerics = len(schema.numerics)
        pair_names = [
            f"{schema.single_fields[a]}*{schema.single_fields[b]}" for a, b in encoder.pairs
        ]
        first_pair = (fields + lists) * encoder.rows
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
            + ["list"] * lists
        )
        names = [*schema.single_fields, *pair_names, *schema.numerics * 2, *schema.numerics]
        names += ["", *schema.list_fields]
        marks = ["score"] * numerics + ["mark"] * numerics
        roles = (
            ["field"] * fields + ["pair"] * pairs + marks + kinds[fields + pairs + 2 * numerics :]
        )
        self.names_G = [
            ("field" if role == "list" else role, name)
            for role, name in zip(roles, names, strict=True)
        ]
        """A name of each group, that it has in any schema with the same columns; a column that was
        made a list keeps its own."""
        self.variance_G = [_VARIANCES[kind] for kind in kinds]
        """Initial prior variance of each group."""
        others = fields + pairs + 2 * numerics
        codes = range(others, others + numerics)
        rest = range(others + numerics, len(kinds))
        self.group_S = [*range(others), *codes, *codes, *rest]
        """The group of each slot: one for each field, pair, score, mark and numeric, the constant,
        and each list; the codes below and above a value share one group."""
        self.shares = bool(schema.shares or schema.histories)
        """True where fields share embeddings."""
        self.lists = lists
        """Number of slots that read lists; they are the last."""

    def __len__(self) -> int:
        """Number of slots S."""
        return len(self.group_S)

    @property
    def single(self) -> int:
        """Number of slots with one row in each event: all but those of lists."""
        return len(self) - self.lists

    def of_lists(self, lists: Sequence[ListRows], events: int) -> ListSlots:
        """The values of lists, as slots."""
        return ListSlots.of(lists, events, self.single)
