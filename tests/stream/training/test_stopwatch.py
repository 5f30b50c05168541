"""Where the time goes: nothing is counted twice, nothing between laps is lost, and the walk names
all of its stages."""

import itertools

import pytest

from niwaki.pruning.config import PruningConfig
from niwaki.stream.drift.monitor import DriftConfig
from niwaki.stream.offline.backtest import backtest_policy, rebatch
from niwaki.stream.training import stopwatch
from niwaki.stream.training.stopwatch import STAGES, Stopwatch, shares
from niwaki.stream.training.trainer import TrainerConfig, TrainingConfig
from tests.support.streams import SCHEMA, SMALL, click_events


def test_laps_share_the_time_between_them(monkeypatch):
    monkeypatch.setattr(stopwatch.time, "perf_counter", itertools.count().__next__)
    watch = Stopwatch()
    for stage in ("read", "encode", "read"):
        watch.lap(stage)
    watch.add({"encode": 10.0, "watch": 1.0})  # in the place of the second that the clock says
    watch.lap("publish")
    assert watch.seconds == {"read": 2.0, "encode": 11.0, "watch": 1.0, "publish": 1.0}
    assert shares(watch.seconds) == pytest.approx(
        {"read": 2 / 15, "encode": 11 / 15, "watch": 1 / 15, "publish": 1 / 15}
    )


def test_a_backtest_says_where_its_time_went():
    result, _ = backtest_policy(
        rebatch([click_events(512)], 64),
        TrainerConfig(
            schema=SCHEMA,
            model=SMALL,
            pruning=PruningConfig(policy="static", warmup_events=128, pruning_events=128),
            drift=DriftConfig(),
            training=TrainingConfig(batch_events=64),
        ),
        publish_every=[128],
    )
    assert list(result["profile"]) == [stage for stage in STAGES if stage != "save"]
    assert sum(result["profile"].values()) == pytest.approx(1)
    assert all(share > 0 for share in result["profile"].values())
