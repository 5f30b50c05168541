"""The AUC of one column by itself: near 1, it gives the label away.

In: facts of a column, its role, and labels. Out: the area under the ROC curve of a score made of
the column alone: of a number its rank, of a name the mean label of the other rows that have it.
"""

from collections.abc import Sequence

import numpy as np

from niwaki.model.features.values import parse_number
from niwaki.stream.recordings.columns import Facts, as_text


def auc_of(facts: Facts, role: str, labels: Sequence[float | None]) -> float:
    """The AUC, 0.5..1; 0.5 where one class is missing. A missing value is a value of its own."""
    known = np.array([label is not None for label in labels])
    labels_B = np.array([label or 0.0 for label in labels])[known] >= 0.5
    texts = [as_text(value) or "" for value in facts.values]
    texts = [text for text, one in zip(texts, known, strict=True) if one]
    if role == "numeric":
        scores = [parse_number(text) for text in texts]
        scores_B = np.array([np.nan if score is None else score for score in scores])
        median = np.nanmedian(scores_B) if not np.isnan(scores_B).all() else 0.0
        auc = _auc(np.where(np.isnan(scores_B), median, scores_B), labels_B)
        return max(auc, 1 - auc)
    _, codes_B = np.unique(texts, return_inverse=True)
    rows = np.bincount(codes_B)[codes_B]
    clicks = np.bincount(codes_B, labels_B)[codes_B]
    rate = labels_B.mean() if len(labels_B) else 0.5
    # Without the row itself, which would give away the label of a value that comes once.
    return _auc((clicks - labels_B + rate) / rows, labels_B)


def _auc(scores_B: np.ndarray, labels_B: np.ndarray) -> float:
    """Area under the ROC curve, by the mean rank of clicks (Mann and Whitney 1947)."""
    clicks, others = int(labels_B.sum()), int((~labels_B).sum())
    if not clicks or not others:
        return 0.5
    _, codes_B, counts = np.unique(scores_B, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[codes_B]
    return float((ranks[labels_B].sum() - clicks * (clicks + 1) / 2) / (clicks * others))
