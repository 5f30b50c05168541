"""The AUC of one column by itself: near 1, it gives the label away.

In: facts of a column, its role, and labels. Out: the area under the ROC curve of a score made of
the column alone: of a number its rank, of a name the mean label of the other rows that have it, of
a list its length, and the mean, greatest and least of its values' scores.
"""

from collections.abc import Sequence

import numpy as np

from niwaki.stream.recordings.columns import Facts


def auc_of(facts: Facts, role: str, labels_B: np.ndarray) -> float:
    """The AUC, 0..1; 0.5 where one class is missing. A missing value is a value of its own.

    `labels_B`: float64, NaN where there is none.
    """
    known_B = ~np.isnan(labels_B)
    clicks_B = labels_B[known_B] >= 0.5
    if role == "numeric":
        scores_B = facts.numbers_B[known_B]
        missing_B = np.isnan(scores_B)
        if missing_B.all():
            return 0.5
        # A number may be there for clicks only, such as a price paid: missing ones come first or
        # last, or tell nothing.
        finite = np.nan_to_num(scores_B, nan=np.nanmedian(scores_B))
        ends = (finite.min() - 1, np.median(finite), finite.max() + 1)
        aucs = [_auc(np.where(missing_B, end, finite), clicks_B) for end in ends]
        return max(max(auc, 1 - auc) for auc in aucs)
    codes = {text: code for code, text in enumerate((None, *facts.counts))}
    codes_B = np.array([codes[text] for text in facts.texts])[known_B]
    return _auc(_click_rates(codes_B, clicks_B, _mean(clicks_B)), clicks_B)


def auc_of_lists(rows: Sequence[Sequence[str] | None], labels_B: np.ndarray) -> float:
    """The AUC of a list column, as that of another column. Missing and empty lists have a value of
    their own each."""
    known_B = ~np.isnan(labels_B)
    clicks_B = labels_B[known_B] >= 0.5
    lists = [rows[at] for at in np.flatnonzero(known_B).tolist()]
    if not lists:
        return 0.5
    codes: dict[str | None, int] = {None: 0, "": 1}
    places: list[int] = []
    flat: list[int] = []
    starts = []
    for at, one in enumerate(lists):
        starts.append(len(flat))
        names = [None] if one is None else dict.fromkeys(one) or [""]
        flat += [codes.setdefault(name, len(codes)) for name in names]
        places += [at] * len(names)
    places_V, starts_B = np.array(places), np.array(starts)
    rates_V = _click_rates(np.array(flat), clicks_B[places_V], _mean(clicks_B))
    lengths_B = np.array([-1 if one is None else len(one) for one in lists])
    scores = (
        lengths_B,
        -lengths_B,
        np.add.reduceat(rates_V, starts_B) / np.diff(np.append(starts_B, len(flat))),
        np.maximum.reduceat(rates_V, starts_B),
        np.minimum.reduceat(rates_V, starts_B),
    )
    return max(_auc(scores_B, clicks_B) for scores_B in scores)


def _mean(clicks_B: np.ndarray) -> float:
    return float(clicks_B.mean()) if len(clicks_B) else 0.5


def _click_rates(codes_B: np.ndarray, clicks_B: np.ndarray, rate: float) -> np.ndarray:
    """The mean label of the other rows with a row's value: the row itself would give away the label
    of a value that comes once. `rate`: of all rows."""
    rows = np.bincount(codes_B)[codes_B]
    clicks = np.bincount(codes_B, clicks_B)[codes_B]
    rates_B: np.ndarray = (clicks - clicks_B + rate) / rows
    return rates_B


def _auc(scores_B: np.ndarray, clicks_B: np.ndarray) -> float:
    """Area under the ROC curve, by the mean rank of clicks (Mann and Whitney 1947)."""
    clicks, others = int(clicks_B.sum()), int((~clicks_B).sum())
    if not clicks or not others:
        return 0.5
    _, codes_B, counts = np.unique(scores_B, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[codes_B]
    return float((ranks[clicks_B].sum() - clicks * (clicks + 1) / 2) / (clicks * others))
