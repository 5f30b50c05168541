"""A backtest: the baseline that policies are compared with."""

import numpy as np
import pytest

from niwaki.model.evaluation import binary_entropy
from niwaki.model.features.schema import Schema
from niwaki.stream.events.rejects import Tally
from niwaki.stream.offline.backtest import survey
from niwaki.stream.recordings.recording import Recording
from tests.support.inputs import BASE, EVENTS, csv_text

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
