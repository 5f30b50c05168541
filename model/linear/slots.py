"""The slots of the linear expert: the rows of its table that fields, pairs of fields, numerics, the
constant and lists read.

In: a schema and its encoder. Out: first row numbers, and the group and the initial prior variance
of each slot. Evidence is not here (`niwaki.model.linear.expert`).

Shapes: S slots, G groups of slots, N numerics.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from niwaki.model.features.encoder import Encoder
from niwaki.model.features.lists import Crossed, ListRows, ListSlots
from niwaki.model.features.numerics import CODES
from niwaki.model.features.schema import Schema
from niwaki.model.linear.pairs import Candidates, PairBudget

_VARIANCES = {
    "field": 0.03,
    "pair": 0.003,
    "score": 0.01,
    "code": 0.01,
    "constant": 0.3,
    "list": 0.03,
    "crossed": 0.01,
}
"""Initial prior variances by kind of slot; the stream changes them."""
_MANY_PAIRS = 66
"""With more candidates than this, pairs begin with a smaller variance."""


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
    pair_rows: int
    """Rows of pairs."""


class LivingPairs(NamedTuple):
    """The living pairs of fields with one value each, as a kernel reads them."""

    fields_P2: np.ndarray
    """int64, the two fields of each."""
    seeds_P: np.ndarray
    """uint64, the seed of each such pair."""


class Slots:
    """The rows of each field, pair, numeric and of the constant in the linear expert's table.

    Rows in their order: fields, lists among them, pairs, scores and marks of missing values (2N),
    codes (N x CODES), the constant. The slots of lists come last, and after them those of living
    pairs with lists: each reads the mean of what its values do. An object is never changed: where
    other pairs live, there is another one.
    """

    def __init__(
        self,
        schema: Schema,
        encoder: Encoder,
        budget: PairBudget,
        living: np.ndarray | None = None,
    ):
        """`living`: int64, number of the candidate in each slot of pairs, see
        `niwaki.model.linear.pairs.Candidates`; None: those that live at first."""
        self._made_of = schema, encoder, budget
        self.candidates = Candidates(schema, encoder, budget)
        self.living = self.candidates.first() if living is None else living
        fields = len(schema.single_fields)
        lists = len(schema.list_fields)
        pairs, with_lists = self.candidates.slots
        numerics = len(schema.numerics)
        pair_names = ["*".join(self.candidates.names[one]) for one in self.living.tolist()]
        fields_2 = self.candidates.fields_C2[self.living]
        seeds = self.candidates.seeds_C[self.living]
        first_pair = (fields + lists) * encoder.rows
        first_score = first_pair + budget.rows
        first_code = first_score + 2 * numerics
        self.places = Places(first_pair, first_score, first_code, CODES, budget.rows)
        self.pairs = LivingPairs(np.ascontiguousarray(fields_2[:pairs]), seeds[:pairs])
        crossed = np.ascontiguousarray(fields_2[pairs:]), seeds[pairs:]
        self._crossed = Crossed(*crossed, first_pair, budget.rows, encoder.rows)
        self.rows = first_code + numerics * CODES + 1
        """Rows of the table."""
        kinds = (
            ["field"] * fields
            + ["pair"] * pairs
            + ["score"] * 2 * numerics
            + ["code"] * numerics
            + ["constant"]
            + ["list"] * lists
            + ["crossed"] * with_lists
        )
        names = [*schema.single_fields, *pair_names[:pairs], *schema.numerics * 2, *schema.numerics]
        names += ["", *schema.list_fields, *pair_names[pairs:]]
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
        few = min(1.0, _MANY_PAIRS / max(self.candidates.singles, 1))
        self.variance_G = [_VARIANCES[kind] * (few if kind == "pair" else 1.0) for kind in kinds]
        """Initial prior variance of each group. Of many pairs few say something: each begins with
        less, so that all pairs that there can be have no more of it together."""
        others = fields + pairs + 2 * numerics
        codes = range(others, others + numerics)
        rest = range(others + numerics, len(kinds))
        self.group_S = [*range(others), *codes, *codes, *rest]
        """The group of each slot: one for each field, pair, score, mark and numeric, the constant,
        and each list; the codes below and above a value share one group."""
        self.shares = bool(schema.shares or schema.histories)
        """True where fields share embeddings."""
        self.lists = lists + with_lists
        """Number of slots that read lists; they are the last."""
        after = fields + pairs + 4 * numerics + 1 + lists
        self.pair_columns = np.array(
            [*range(fields, fields + pairs), *range(after, after + with_lists)], np.int64
        )
        """The slots of pairs, in the order of `living`."""

    def __len__(self) -> int:
        """Number of slots S."""
        return len(self.group_S)

    @property
    def single(self) -> int:
        """Number of slots with one row in each event: all but those of lists."""
        return len(self) - self.lists

    def with_living(self, living: np.ndarray) -> "Slots":
        """The slots where these pairs live; this object, where they do so already."""
        if np.array_equal(living, self.living):
            return self
        return Slots(*self._made_of, living)

    def of_lists(self, lists: Sequence[ListRows], hashes_BF: np.ndarray) -> ListSlots:
        """The values of lists and of living pairs with lists, as slots. `hashes_BF`: see
        `HashedEvents`."""
        return ListSlots.of(lists, self.single, hashes_BF, self._crossed)
