"""A backtest: the baseline that policies are compared with, and the memory of several of them."""

import weakref

import numpy as np
import pytest

from niwaki.model.evaluation import binary_entropy
from niwaki.model.features.schema import Schema
from niwaki.pruning.config import PruningConfig
from niwaki.stream.drift.monitor import DriftConfig
from niwaki.stream.events.rejects import Tally
from niwaki.stream.offline import backtest as offline
from niwaki.stream.offline.backtest import backtest, survey
from niwaki.stream.recordings.recording import Recording
from niwaki.stream.training.trainer import Trainer, TrainerConfig, TrainingConfig
from tests.support.inputs import BASE, EVENTS, csv_text
from tests.support.streams import SMALL

CLICKS = Schema(label="label", timestamp="ts", categorical=("user", "item"), numeric=("price",))


def test_the_baseline_is_the_click_rate_before_each_event_however_the_events_lie_in_files(put):
    labels, loss, clicks = [row["label"] for row in BASE], 0.0, 0.5
    for seen, label in enumerate(labels):
        rate = clicks / (seen + 1)
        loss -= np.log(rate if label else 1 - rate)
        clicks += label
    expected = loss / EVENTS / binary_entropy(np.mean(labels))
    whole = put("clicks.csv", csv_text(BASE))
    parts = [put("first.csv", csv_text(BASE[:150])), put("second.csv", csv_text(BASE[150:]))]
    for files in ([whole], parts):
        found = survey(Recording(files), CLICKS, Tally())
        assert (found.events, found.constant_ne) == (EVENTS, pytest.approx(expected, abs=1e-6))
    assert 1 < expected < 1.05


def test_a_policy_is_forgotten_before_the_next_one_begins(put, monkeypatch):
    alive, made = [], []

    class Watched(Trainer):
        def __init__(self, config: TrainerConfig):
            alive.append(sum(one() is not None for one in made))
            super().__init__(config)
            made.append(weakref.ref(self))

    monkeypatch.setattr(offline, "Trainer", Watched)
    recording = Recording(put("clicks.csv", csv_text(BASE)))
    config = TrainerConfig(
        schema=CLICKS,
        model=SMALL,
        pruning=PruningConfig(),
        drift=DriftConfig(),
        training=TrainingConfig(),
    )
    found = survey(recording, CLICKS, Tally())
    backtest(
        recording, config, found, policies=["dense", "static", "adaptive"], publish_every=[100]
    )
    assert alive == [0, 0, 0]
