"""The model and how it learns, as a user sets it, and the parts that follow from these settings
alone."""

import math
from typing import Literal

import msgspec

from niwaki.model.deep.network import Network, NetworkShape
from niwaki.model.experts import columns_of_experts
from niwaki.model.features.encoder import Encoder
from niwaki.model.features.schema import Schema
from niwaki.model.linear.pairs import PairBudget
from niwaki.model.mixture.mixture import Mixture
from niwaki.pruning.auxiliary import AuxiliaryConfig
from niwaki.pruning.errors import RuleError

_AUTO_RATE = 0.001
_NOT_NEGATIVE = (
    "embedding_dim",
    "pair_rows",
    "max_pairs",
    "max_list_pairs",
    "pair_trial_events",
    "network_rate",
    "network_worth",
    "shrinkage_rate",
    "mixture_half_life_events",
    "debt_rate",
    "replays",
)


class LearnerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The model and how it learns (the `[model]` section)."""

    embedding_dim: int = 16
    """Width of an embedding, >= 0; 0: none, the network reads numerics and what the linear expert
    says."""
    bottom: tuple[int, ...] = (64,)
    """Hidden widths of the bottom MLP, which makes one more vector of the numerics; empty: there is
    none."""
    top: tuple[int, ...] = (512, 256)
    """Hidden widths of the top MLP, at least one."""
    interaction: Literal["cosine", "dot", "none"] = "cosine"
    """cosine: cosines of all pairs of vectors beside the vectors themselves. dot: dot products in
    their place. none: the vectors only."""
    table_rows: int = 262_144
    """Rows of each field's table, >= 2; values are hashed to them."""
    pair_rows: int = 8_388_608
    """Rows of the linear expert's table of pairs of fields; 0: no pairs."""
    max_pairs: int = 100
    """Pairs of fields with one value each that live at once, >= 0. Where there can be more, the
    stream chooses."""
    max_list_pairs: int = 32
    """Pairs of such a field and a list that live at once, >= 0; likewise."""
    pair_trial_events: int = 5_000
    """Events for which pairs are tried where there can be more than may live, >= 0; 0: the first
    ones live for ever."""
    half_lives_events: tuple[float, ...] = (100_000, 10_000, 1_000)
    """Half-lives of evidence in the linear expert, one for each time scale, events; the deep expert
    corrects the first."""
    shrinkage_rate: float = 0.2
    """Rate at which the linear expert's prior variances follow the stream, >= 0; 0: they stay as
    they are set."""
    numeric_codes: bool = True
    """True: the linear expert reads piecewise-linear codes of numerics beside their standard
    scores."""
    mixture_half_life_events: float = 50_000
    """Half-life of what the mixture of the experts has learned, events, >= 0; 0: it learns nothing,
    and the deep expert alone predicts."""
    debt_rate: float = 0.002
    """Strength with which the mean prediction is held to the click rate, logit for each click too
    many or too few, >= 0; 0: the mixture alone holds it. It falls with the cube of the delay
    beyond 1,000 events."""
    hash_seed: int = 0
    """Seed of the hash from values to rows."""
    seed: int = 0
    """Seed of the initial weights."""
    prior_rate: float = 0.0
    """Click rate that is expected before any event, 0 to 1 (excluded); 0: not known."""
    embedding_rate: float = 0.05
    """Learning rate of embeddings (row-wise Adagrad), > 0."""
    network_rate: float | Literal["auto"] = 0.001
    """Learning rate of the network (Adam) for batches of 128, >= 0; it grows with the square root
    of the batch. 0: the deep expert is left out. auto: 0.001, and the network rests while it does
    not earn its cost."""
    network_worth: float = 0.002
    """Share of the log loss that the network has to save, where `network_rate` is auto, >= 0."""
    narrow_rate_ratio: float = 2.0
    """Factor on that rate in a network that is narrow from the start, > 0: it takes larger steps
    well. A network that was cut out of the dense one does not."""
    replays: int = 1
    """Steps on earlier events that a sparse network takes for each step on new ones, >= 0; a step
    costs as little as the network does. They make good for its learning more slowly."""
    replayed_events: int = 25_600
    """Events before, since the last drift, of which they are, >= 1; their inputs of the network are
    kept."""
    numeric_horizon_events: float = 100_000
    """Events over which the moments of numerics are averaged, >= 1."""
    auxiliary: AuxiliaryConfig = AuxiliaryConfig()
    """Settings of the auxiliary parameters' learning while pruning."""

    def __post_init__(self) -> None:
        for name, least in {
            "table_rows": 2,
            "replayed_events": 1,
            **dict.fromkeys(_NOT_NEGATIVE, 0),
        }.items():
            if name == "network_rate" and self.network_rate == "auto":
                continue
            if not getattr(self, name) >= least:
                raise RuleError(name, f"must be >= {least}", getattr(self, name))
        for name in ("embedding_rate", "narrow_rate_ratio"):
            if not getattr(self, name) > 0:
                raise RuleError(name, "must be > 0", getattr(self, name))
        if not 0 <= self.prior_rate < 1:
            raise RuleError("prior_rate", "must be >= 0 and < 1", self.prior_rate)
        if not self.top or min(self.top + self.bottom) < 1:
            rule = "needs at least one hidden width, all widths >= 1"
            raise RuleError("top", rule, list(self.top))
        if self.interaction not in ("cosine", "dot", "none"):
            raise RuleError("interaction", "must be cosine, dot or none", self.interaction)
        if not self.half_lives_events or min(self.half_lives_events) <= 0:
            rule = "must be > 0, at least one"
            raise RuleError("half_lives_events", rule, list(self.half_lives_events))

    @property
    def prior_logit(self) -> float:
        """The logit of `prior_rate`; 0 where that is not known."""
        rate = self.prior_rate or 0.5
        return math.log(rate / (1 - rate))

    def encoder(self, schema: Schema) -> Encoder:
        """Maps events of `schema` to the rows of this model's tables."""
        return Encoder(schema, rows=self.table_rows, seed=self.hash_seed)

    @property
    def pair_budget(self) -> PairBudget:
        """The number of pairs of fields that may live."""
        return PairBudget(self.pair_rows, self.max_pairs, self.max_list_pairs)

    def network(self, schema: Schema, slots: int, block: tuple[int, int] | None) -> Network:
        """The dense network. `block`: outputs and inputs of the blocks of weights that are its
        units; None: neurons are."""
        return Network(
            NetworkShape(
                fields=len(schema.fields),
                numerics=2 * len(schema.numerics),
                slots=slots,
                embedding_dim=self.embedding_dim,
                bottom=self.bottom if schema.numerics and self.embedding_dim else (),
                top=self.top,
                interaction=self.interaction,
                block=block,
            )
        )

    @property
    def first_network_rate(self) -> float:
        """The learning rate of a network that learns."""
        return _AUTO_RATE if self.network_rate == "auto" else self.network_rate

    def mixture(self, left_out: int = 0, seen_ratio: float = 1.0) -> Mixture:
        """The mixture of the experts, as it begins. `left_out`: experts that are not among them.
        `seen_ratio`: share of the events that it learns from, (0, 1]."""
        return Mixture.initial(
            columns_of_experts(len(self.half_lives_events)) - 1 - left_out,
            self.mixture_half_life_events,
            self.debt_rate,
            seen_ratio,
        )
