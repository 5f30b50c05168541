"""Click rates, and models of River and Vowpal Wabbit.

Shapes: B events, N numerics.
"""

from collections.abc import Sequence

import numpy as np
from river import linear_model, preprocessing

from benchmarks.baselines.stream import Stream

EPSILON = 1e-6


class RecentRate:
    """The click rate of the last events, or of all."""

    def __init__(self, stream: Stream, window_events: int | None = None):
        self._sums = np.concatenate([[0.0], np.cumsum(stream.events.labels_B, dtype=np.float64)])
        self._window_events, self._learned = window_events, 0

    def predict(self, start: int, stop: int) -> np.ndarray:
        first = 0 if self._window_events is None else max(0, self._learned - self._window_events)
        rate = (self._sums[self._learned] - self._sums[first] + 0.5) / (self._learned - first + 1)
        return np.full(stop - start, np.log(rate / (1 - rate)), np.float32)

    def learn(self, start: int, stop: int) -> None:
        self._learned = stop


class River:
    """A model of River's on one-hot fields, one feature for each different value of a list, and
    standardised numerics, event by event."""

    def __init__(
        self, stream: Stream, model: linear_model.LogisticRegression | linear_model.AdPredictor
    ):
        fields = [
            [f"{name}={value}" for value in column]
            for name, column in zip(stream.schema.categorical, stream.categories, strict=True)
        ]
        self._fields, self._names = list(zip(*fields, strict=True)) or None, stream.schema.numeric
        self._numerics_BN, self._labels_B = (
            stream.events.numerics_BN.astype(np.float64),
            stream.events.labels_B,
        )
        self._lists = [
            (words, [f"{name}={value}" for value in words.distinct])
            for name, words in zip(stream.schema.lists, stream.words, strict=True)
        ]
        self._scaler, self._model = preprocessing.StandardScaler(), model

    def predict(self, start: int, stop: int) -> np.ndarray:
        rates = [self._model.predict_proba_one(self._features(i))[True] for i in range(start, stop)]
        rates_B = np.clip(rates, EPSILON, 1 - EPSILON)
        return np.log(rates_B / (1 - rates_B)).astype(np.float32)

    def learn(self, start: int, stop: int) -> None:
        for i in range(start, stop):
            if self._names:
                self._scaler.learn_one(self._present(i))
            self._model.learn_one(self._features(i), bool(self._labels_B[i] > 0.5))

    def _features(self, i: int) -> dict[str, float]:
        features = dict.fromkeys(self._fields[i], 1.0) if self._fields else {}
        for words, tokens in self._lists:
            features |= {tokens[place]: weight for place, weight in words.at(i)}
        return features | (self._scaler.transform_one(self._present(i)) if self._names else {})

    def _present(self, i: int) -> dict[str, float]:
        row = zip(self._names, self._numerics_BN[i].tolist(), strict=True)
        return {name: value for name, value in row if value == value}


class VowpalWabbit:
    """Vowpal Wabbit from its wheel: each column a namespace of its own, numerics as they come, of
    a list one feature for each value, with its weight. It adds up values that come twice."""

    _LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

    def __init__(
        self, stream: Stream, options: str = "", *, crosses: Sequence[tuple[str, str]] = ()
    ):
        """`crosses`: pairs of categorical and list columns whose values are multiplied."""
        from vowpalwabbit import Workspace  # extra `bench`: the other systems run without it

        self._columns, self._numerics_BN = stream.categories, stream.events.numerics_BN
        self._labels_B = stream.events.labels_B
        self._lists = [
            (words, [value.translate(_NO_SYNTAX) or "_" for value in words.distinct])
            for words in stream.words
        ]
        named = (*stream.schema.categorical, *stream.schema.lists)
        letters = dict(zip(named, self._LETTERS, strict=False))
        options += "".join(f" -q {letters[a]}{letters[b]}" for a, b in crosses)
        self._workspace = Workspace(
            f"--quiet --loss_function logistic -b 22 --random_seed 0 {options}"
        )
        self._parsed: dict[int, object] = {}
        self._texts: dict[int, str] = {}

    def predict(self, start: int, stop: int) -> np.ndarray:
        return np.array(
            [self._workspace.predict(self._example(i)) for i in range(start, stop)], np.float32
        )

    def learn(self, start: int, stop: int) -> None:
        for i in range(start, stop):
            example = self._example(i)
            self._workspace.learn(example)
            self._workspace.finish_example(example)
            del self._parsed[i]

    def write(self, start: int, stop: int) -> None:
        """Write those events as Vowpal Wabbit's text, which is else done when one is first
        needed."""
        self._texts |= {i: self._text(i) for i in range(start, stop)}

    def _example(self, i: int) -> object:
        if i not in self._parsed:
            self._parsed[i] = self._workspace.example(self._texts.pop(i, None) or self._text(i))
        return self._parsed[i]

    def _text(self, i: int) -> str:
        words = ["1" if self._labels_B[i] > 0.5 else "-1"]
        for letter, column in zip(self._LETTERS, self._columns, strict=False):
            if column[i] is not None:
                words.append(f"|{letter} {column[i].translate(_NO_SYNTAX)}")
        for letter, (found, texts) in zip(
            self._LETTERS[len(self._columns) :], self._lists, strict=False
        ):
            values = [
                texts[place] if weight == 1 else f"{texts[place]}:{weight:.6g}"
                for place, weight in found.at(i)
            ]
            if values:
                words.append(f"|{letter} {' '.join(values)}")
        for letter, value in zip(
            reversed(self._LETTERS), self._numerics_BN[i].tolist(), strict=False
        ):
            if value == value:
                words.append(f"|{letter} x:{value:.6g}")
        return " ".join(words)


_NO_SYNTAX = str.maketrans({character: "_" for character in " :|\t\n\r"})
