"""Slots and experts: the part of the forward pass that a learner and a scorer share.

In: `Features`, and the parameters of the moment. Out: the logits of all experts: the linear one at each of its time
scales, and the deep one, which corrects the first. What a learner computes here and what a scorer does is one code.

Shapes: B events, S slots, K time scales, E = K + 1 experts; see `model.linear` and `model.network` for the others.
"""

from typing import NamedTuple

import torch

from model import kernels
from model.encoder import Encoder, Features
from model.features import Schema
from model.linear import logits
from model.network import Network, Parameters
from model.numerics import CODES, Prepared, Scale, prepare

_VARIANCES = {"field": 0.03, "pair": 0.003, "score": 0.01, "code": 0.01, "constant": 0.3}
"""Prior variances to begin with, by kind of slot; they are learned from there."""


class Slots:
    """Where each field, pair, numeric and the constant has its rows in the linear expert's table.

    Rows: of fields, of pairs, of missing-value marks and scores (2N), of codes (N x CODES), the constant.
    """

    def __init__(self, schema: Schema, encoder: Encoder):
        fields, pairs, numerics = len(schema.fields), len(encoder.pairs), len(schema.numerics)
        first_pair = fields * encoder.rows
        first_score = first_pair + encoder.pair_rows
        first_row_of_codes = first_score + 2 * numerics
        self.rows = first_row_of_codes + numerics * CODES + 1
        self.places = first_pair, first_score, first_row_of_codes, CODES
        """First rows of pairs, scores and codes, and the rows of each numeric's codes."""
        kinds = ["field"] * fields + ["pair"] * pairs + ["score"] * 2 * numerics + ["code"] * numerics + ["constant"]
        self.variance_G = [_VARIANCES[kind] for kind in kinds]
        first_code = fields + pairs + 2 * numerics
        codes = list(range(first_code, first_code + numerics))
        self.group_S = [*range(first_code), *codes, *codes, first_code + numerics]
        """A group for each field, pair and numeric; the codes below and above a value share theirs."""

    def __len__(self) -> int:
        return len(self.group_S)

    def locate(self, features: Features, prepared: Prepared) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows int64 and values float32 of each event's slots, both (B, S)."""
        shape = len(features.rows_BF), len(self)
        rows_BS, values_BS = torch.empty(shape, dtype=torch.int64), torch.empty(shape)
        kernels.locate_slots(
            features.rows_BF.numpy(),
            features.pairs_BP.numpy(),
            *(part.numpy() for part in prepared),
            *self.places,
            rows_BS.numpy(),
            values_BS.numpy(),
        )
        return rows_BS, values_BS


class Inputs(NamedTuple):
    """What the experts read of B events."""

    rows_BF: torch.Tensor
    numerics_BM: torch.Tensor
    slot_rows_BS: torch.Tensor
    slot_values_BS: torch.Tensor
    said_BS: torch.Tensor
    """What each slot adds to the linear expert's logit at the first time scale."""
    linear_BK: torch.Tensor
    """Logits of the linear expert at each time scale."""


def assemble(
    slots: Slots, features: Features, scale: Scale, evidence_R2K: torch.Tensor, prior_SK: torch.Tensor
) -> Inputs:
    """Everything but the embeddings. `prior_SK`: 1 / prior variance of each slot."""
    prepared = prepare(features.numerics_BN, scale)
    rows_BS, values_BS = slots.locate(features, prepared)
    said_BS, linear_BK = logits(evidence_R2K, prior_SK, rows_BS, values_BS)
    return Inputs(features.rows_BF, prepared.scores_BM, rows_BS, values_BS, said_BS, linear_BK)


def deep_logits(network: Network, parameters: Parameters, inputs: Inputs, vectors_BFD: torch.Tensor) -> torch.Tensor:
    """(B,): the first linear logit, corrected. What the linear expert says is taken as given, not differentiated."""
    return inputs.linear_BK[:, 0] + network.correction(parameters, vectors_BFD, inputs.numerics_BM, inputs.said_BS)
