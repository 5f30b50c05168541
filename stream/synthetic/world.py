"""The world behind a synthetic click stream: users, items, contexts, preferences, and their drifts.

Users meet items in a context; users and items are popular by Zipf's law. A click depends on single
values, on pairs of them (segment x category, latent vectors of user and item) and on heavy-tailed
numerics, so a model that learns interactions beats a linear one. Missing values are drawn before
the click: the true probability is that of the *visible* event. Each block of events has a random
generator of its own, and so has each generation of items, so a drift changes nothing before it.
Shapes: B events, N numerics, L latent dimensions.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from niwaki.pruning.errors import check_rules
from niwaki.stream.synthetic.columns import MAY_MISS, SCHEMA, VALUES, Draw, drawn_table
from niwaki.stream.synthetic.drift_plan import DriftPoint, plan_drifts
from niwaki.stream.synthetic.preferences import (
    LATENT,
    SPREADS,
    Preferences,
    click_logits,
    click_probabilities,
    redrawn_weights,
)

_BLOCK_EVENTS = 16_384
_CALIBRATION_EVENTS = 65_536


class SyntheticConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A drifting click stream."""

    events: int = 300_000
    """Length of the stream, >= 1."""
    seed: int = 0
    """Same seed, same stream; >= 0."""
    base_rate: float = 0.1
    """Share of clicks at the start, above 0 and below 1."""
    drifts: tuple[str, ...] = ("abrupt:concept@35%", "abrupt:concept@70%")
    """Any number of drifts, in the language of `drift_plan`."""
    users: int = 5_000
    """Number of users, 1 to 10 million."""
    items: int = 1_000
    """Number of items on offer at any one time, 1 to 10 million."""
    signal: float = 1.0
    """Spread of the true logits, >= 0; 0 = clicks are pure chance, 1 = the least normalized entropy
    is about 0.65."""
    missing_ratio: float = 0.02
    """Share of missing values in c_brand, c_device and the numerics, 0..1."""
    daily_cycle: float = 0.0
    """Amplitude of a daily wave in the logit, >= 0."""
    events_per_s: float = 1.0
    """Events per second of event time, > 0."""
    start_s: int = 1_704_067_200
    """Event time of the first event, seconds since the epoch (2024-01-01 UTC)."""

    def __post_init__(self) -> None:
        rules = {
            "events": (self.events >= 1, "must be >= 1"),
            "seed": (self.seed >= 0, "must be >= 0"),
            "base_rate": (0 < self.base_rate < 1, "must be above 0 and below 1"),
            "users": (1 <= self.users <= 10_000_000, "must be 1 to 10,000,000"),
            "items": (1 <= self.items <= 10_000_000, "must be 1 to 10,000,000"),
            "signal": (0 <= self.signal < math.inf, "must be >= 0"),
            "missing_ratio": (0 <= self.missing_ratio <= 1, "must be 0 to 1"),
            "daily_cycle": (0 <= self.daily_cycle < math.inf, "must be >= 0"),
            "events_per_s": (0 < self.events_per_s < math.inf, "must be > 0"),
        }
        check_rules(self, rules)
        self.plan()

    def plan(self) -> list[DriftPoint]:
        """The true drifts, in the order of their events."""
        return plan_drifts(self.drifts, self.events, SCHEMA.categorical + SCHEMA.numeric)


class _Visits(NamedTuple):
    """Users who meet items in contexts."""

    columns: dict[str, np.ndarray]
    missing_BN: np.ndarray
    """bool, the numerics that are missing."""
    response_BN: np.ndarray
    """The effect of each numeric on a click."""


class _Sample(NamedTuple):
    """Events with items of one generation."""

    columns: dict[str, np.ndarray]
    response_BN: np.ndarray
    wave_B: np.ndarray
    """The part of the logit that follows the hour of the day."""


class World:
    """Users, items and preferences of a stream, and the time at which each of them holds."""

    def __init__(self, config: SyntheticConfig):
        self.config = config
        self.blocks = -(-config.events // _BLOCK_EVENTS)
        self._points = config.plan()
        self._rates: list[float | None] = [config.base_rate]
        # Click rate of each generation of items; None: that of the stream.
        self._groups: list[float | None] = [None]
        self._groups += [
            p.base_rate for p in self._points if p.what == "new_items" and p.kind != "recurring"
        ]
        rng = self._rng(0)
        self._user_id = rng.permutation(config.users)
        self._segment = np.minimum(
            rng.geometric(0.3, config.users) - 1, len(VALUES["c_segment"]) - 1
        )
        self._activity_z = rng.standard_exponential(config.users, np.float32) - 1
        self._item_id = self._by_group(lambda rng, first: first + rng.permutation(config.items), 1)
        self._category = self._by_group(
            lambda rng, _: rng.integers(0, len(VALUES["c_category"]), config.items), 2
        )
        self._brand = self._by_group(
            lambda rng, _: _zipf(rng.random(config.items), len(VALUES["c_brand"])), 3
        )
        self._price_z = self._by_group(
            lambda rng, _: rng.standard_normal(config.items, np.float32), 4
        )
        self._concepts = [self._preferences(0)]
        self._catalogues = [np.arange(config.items)]  # rank of popularity -> item
        self._schedule()
        self._intercepts = [self._calibrate(concept, rate) for _, concept, rate in self._regimes]

    def draw(self, block: int) -> Draw:
        """The events of one block of the stream."""
        config, rng = self.config, self._rng(10, block)
        events_B = np.arange(block * _BLOCK_EVENTS, min((block + 1) * _BLOCK_EVENTS, config.events))
        size = len(events_B)
        offset_ms_B = (events_B + rng.random(size)) * (1000 / config.events_per_s)
        times_ms_B = config.start_s * 1000 + offset_ms_B.astype(np.int64)
        catalogue = self._level(("new_items", None), events_B)
        visits = self._visit(rng, size, catalogue)
        columns = visits.columns
        probability_B = self._click_probability(events_B, times_ms_B, columns, visits.response_BN)
        labels_B = (rng.random(size) < probability_B).astype(np.float32)
        renamed = {
            field: self._level((what, field), events_B)
            for what, field in self._switches
            if what == "values" and field is not None
        }
        return Draw(times_ms_B, columns, visits.missing_BN, renamed, probability_B, labels_B)

    def table(self, draw: Draw) -> pa.Table:
        """Arrow table of drawn events: ts, label and the columns of `SCHEMA`."""
        return drawn_table(draw, {"c_user": self._user_id, "c_item": self._item_id})

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.config.seed, spawn_key=key))

    def _by_group(
        self, draw: Callable[[np.random.Generator, int], np.ndarray], *key: int
    ) -> np.ndarray:
        """One row for each item of each generation, from random numbers of its own and the first
        item's number."""
        return np.concatenate(
            [draw(self._rng(*key, g), g * self.config.items) for g in range(len(self._groups))]
        )

    def _preferences(
        self, level: int, before: Preferences | None = None, share: float = 1.0
    ) -> Preferences:
        """Preferences of one concept. With `before`, only a `share` of its weights is redrawn."""
        sizes = {field: len(values) + (field in MAY_MISS) for field, values in VALUES.items()}
        sizes |= {"c_user": self.config.users, "c_item": self.config.items}
        sizes |= {"+numeric": len(SCHEMA.numeric), "+latent": LATENT}
        preferences: Preferences = {}
        for position, (axes, spread) in enumerate(SPREADS.items()):
            scale = spread if axes == ("c_item", "+latent") else spread * self.config.signal
            draw = partial(redrawn_weights, axes=axes, sizes=sizes, scale=scale, share=share)
            key = (20, level, position)
            weights = (
                self._by_group(draw, *key) if axes[0] == "c_item" else draw(self._rng(*key), 0)
            )
            preferences[axes] = (
                weights if before is None else np.where(np.isnan(weights), before[axes], weights)
            )
        return preferences

    def _schedule(self) -> None:
        """Walk through the drifts: which concept, click rate, catalogue and names hold from which
        drift on."""
        levels: dict[
            tuple[str, str | None], list[int]
        ] = {}  # of each thing that drifts, one after the other
        # After each drift of the concept or the click rate, which of them holds; and when the
        # others go to which level.
        self._regimes: list[tuple[DriftPoint | None, int, int]] = [(None, 0, 0)]
        self._switches: dict[tuple[str, str | None], list[tuple[DriftPoint, int]]] = {}
        for point in self._points:
            history = levels.setdefault((point.what, point.field), [0])
            if point.kind == "recurring":
                history.append(history[-2])
            else:
                level = max(history) + 1
                match point:
                    case DriftPoint(what="concept", share=float(share)):
                        before = self._concepts[history[-1]]
                        self._concepts.append(self._preferences(level, before, share))
                    case DriftPoint(what="base_rate"):
                        self._rates.append(point.base_rate)
                    case DriftPoint(what="new_items", share=float(share)):
                        catalogue = self._catalogues[history[-1]]
                        self._catalogues.append(self._replaced(catalogue, level, share))
                history.append(level)
            if point.what in ("concept", "base_rate"):
                concept, rate = (
                    levels.get((what, None), [0])[-1] for what in ("concept", "base_rate")
                )
                self._regimes.append((point, concept, rate))
            else:
                self._switches.setdefault((point.what, point.field), []).append(
                    (point, history[-1])
                )
        self._slots = np.stack(self._catalogues)
        self._samples = [self._sample(group) for group in range(len(self._groups))]

    def _replaced(self, before: np.ndarray, level: int, share: float) -> np.ndarray:
        """A catalogue in which new items have a `share` of the visits, from the most popular ranks
        on."""
        ranks = np.arange(self.config.items)
        visits = np.diff(np.log(np.arange(1, self.config.items + 2)))
        new, debt = [], 0.0  # share of visits that new items still lack
        for visit in visits.tolist():
            debt += share * visit
            new.append(debt > visit / 2)
            debt -= visit * new[-1]
        return np.where(new, level * self.config.items + ranks, before)

    def _level(self, key: tuple[str, str | None], events_B: np.ndarray) -> np.ndarray | int:
        """Which catalogue, or which names, each event has; in a gradual drift chance decides."""
        level: np.ndarray | int = 0
        for point, after in self._switches.get(key, ()):
            share_B = _share_after(point, events_B)
            if share_B.min() == 1:
                level = after
            elif share_B.any():
                rng = self._rng(11, int(events_B[0]), self._points.index(point))
                level = np.where(rng.random(len(events_B)) < share_B, after, level)
        return level

    def _visit(self, rng: np.random.Generator, size: int, catalogue: np.ndarray | int) -> _Visits:
        """`size` users who meet items in contexts."""
        user_B = _zipf(rng.random(size), self.config.users)
        item_B = self._slots[catalogue, _zipf(rng.random(size), self.config.items)]
        price_z_B = self._price_z[item_B] + 0.2 * rng.standard_normal(size, np.float32)
        age_z_B, scroll_z_B = rng.standard_normal((2, size), np.float32)
        activity_z_B = self._activity_z[user_B]
        columns = {
            "c_user": user_B,
            "c_segment": self._segment[user_B],
            "c_item": item_B,
            "c_category": self._category[item_B],
            "c_brand": self._brand[item_B],
            "c_device": _zipf(rng.random(size), len(VALUES["c_device"])),
            "c_placement": _zipf(rng.random(size), len(VALUES["c_placement"])),
            "n_price": np.exp(2.5 + 1.1 * price_z_B),
            "n_age_h": np.exp(3 + 1.5 * age_z_B),
            "n_clicks": np.round(10 * np.exp(0.7 * activity_z_B)),
            "n_scroll": scroll_z_B,
        }
        missing = (
            rng.random((len(MAY_MISS) + len(SCHEMA.numeric), size), np.float32)
            < self.config.missing_ratio
        )
        for field, missing_B in zip(MAY_MISS, missing, strict=False):
            columns[field] = np.where(missing_B, len(VALUES[field]), columns[field])
        missing_BN = missing[len(MAY_MISS) :].T
        bump_B = 3 * (np.exp(-(scroll_z_B**2)) - 0.58)  # neither low nor high, but in the middle
        response_BN = np.stack(
            [price_z_B, 1.6 * np.tanh(age_z_B), np.tanh(activity_z_B), bump_B], axis=1
        )
        response_BN[missing_BN] = 0
        return _Visits(columns, missing_BN, response_BN)

    def _click_probability(
        self,
        events_B: np.ndarray,
        times_ms_B: np.ndarray,
        columns: dict[str, np.ndarray],
        response_BN: np.ndarray,
    ) -> np.ndarray:
        """float64 (B,). In a gradual drift each event belongs to the old regime or to the new one:
        the mean of both."""
        wave_B = self._wave(times_ms_B)
        group_B = columns["c_item"] // self.config.items
        probability_B = np.zeros(len(events_B))
        shares = [
            _share_after(point, events_B) if point else np.ones(1) for point, _, _ in self._regimes
        ]
        first = max(i for i, share_B in enumerate(shares) if share_B.min() == 1)
        for i in range(first, len(self._regimes)):
            if shares[i].any():
                logits_B = click_logits(self._concepts[self._regimes[i][1]], columns, response_BN)
                logits_B = logits_B + self._intercepts[i][group_B] + wave_B
                probability_B += shares[i] * (click_probabilities(logits_B) - probability_B)
        return probability_B

    def _wave(self, times_ms_B: np.ndarray) -> np.ndarray:
        return self.config.daily_cycle * np.sin(times_ms_B * (2 * math.pi / 86_400_000))

    def _sample(self, group: int) -> _Sample:
        """Events with items of one generation, from which its intercept is found."""
        visits = self._visit(self._rng(40, group), _CALIBRATION_EVENTS, group)
        wave_B = self._wave(np.linspace(0, 86_400_000, _CALIBRATION_EVENTS))
        theirs_B = visits.columns["c_item"] // self.config.items == group
        columns = {name: column[theirs_B] for name, column in visits.columns.items()}
        return _Sample(columns, visits.response_BN[theirs_B], wave_B[theirs_B])

    def _calibrate(self, concept: int, rate: int) -> np.ndarray:
        """float64 (generations,): what to add to the logits for the mean probability to be the
        click rate."""
        intercepts = []
        for sample, own_rate in zip(self._samples, self._groups, strict=True):
            preferences = self._concepts[concept]
            logits_B = click_logits(preferences, sample.columns, sample.response_BN) + sample.wave_B
            low, high = -100.0, 100.0
            for _ in range(40):  # bisection
                middle = (low + high) / 2
                too_low = len(logits_B) and click_probabilities(logits_B + middle).mean() < (
                    own_rate or self._rates[rate]
                )
                low, high = (middle, high) if too_low else (low, middle)
            intercepts.append((low + high) / 2)
        return np.array(intercepts)


def _zipf(uniform_B: np.ndarray, size: int) -> np.ndarray:
    """Ranks 0 .. size-1, the k-th with a probability in proportion to log(1 + 1 / (k + 1)), which
    falls like 1 / k."""
    return np.minimum(np.exp(uniform_B * math.log(size + 1)).astype(np.int64) - 1, size - 1)


def _share_after(point: DriftPoint, events_B: np.ndarray) -> np.ndarray:
    """The share of events, 0..1, that a drift has reached: a step, or a ramp over its width."""
    return np.clip((events_B - point.event + 1) / (point.width + 1), 0, 1)
