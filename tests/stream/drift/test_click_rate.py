"""Steps of the click rate alone: told, and not answered."""

import numpy as np
import pytest

from niwaki.model.config import LearnerConfig
from niwaki.pruning.config import PruningConfig
from niwaki.stream.drift.click_rate import ClickRate
from niwaki.stream.drift.monitor import DriftConfig
from niwaki.stream.drift.observations import Observations
from niwaki.stream.events.tables import table_to_batch
from niwaki.stream.offline.backtest import rebatch
from niwaki.stream.synthetic.columns import SCHEMA
from niwaki.stream.synthetic.world import SyntheticConfig, World
from niwaki.stream.training.trainer import Step, Trainer, TrainerConfig, TrainingConfig

AT = 49_152


def seen(events: int, seed: int, *, step: float = 0.0, tilt: float = 0.0) -> Observations:
    """Events whose slow expert is right but for a step of the logit and a taste that it does not
    know; the faster one knows half of both."""
    rng = np.random.default_rng(seed)
    slow_B, taste_B = rng.normal(-2, 1, events), rng.normal(0, 1, events)
    true_B = slow_B + step + tilt * taste_B
    labels_B = (rng.random(events) < 1 / (1 + np.exp(-true_B))).astype(np.float32)
    fast_B = slow_B + (step + tilt * taste_B) / 2 + 0.1 * rng.normal(size=events)
    experts_BE = np.stack([slow_B, fast_B], 1).astype(np.float32)
    return Observations(labels_B, np.zeros(events), experts_BE, experts_BE[:, 1], labels_B)


def found(expected: str, signal: str = "staleness", **change: float) -> int:
    """Of forty changes, how many turn out to be of what is expected."""
    count = 0
    for seed in range(40):
        target = ClickRate()
        target.add(seen(4_000, 1_000 + seed))
        target.add(seen(1_000, seed, **change))
        count += target.changed(1_000, signal) == expected
    return count


def test_a_step_of_the_click_rate_explains_itself_and_no_change_of_taste():
    assert found("click rate", step=1.0) >= 38
    assert found("click rate", step=-1.0) >= 38
    assert found("more", tilt=1.0) == found("more", step=1.0, tilt=1.0) == 40


def test_staleness_without_a_change_is_nothing_and_the_label_noticed_is_the_click_rate():
    assert found("nothing") >= 34
    assert found("click rate", "adjusted_label") >= 36
    assert found("more", "log_loss") >= 39


def test_one_expert_alone_explains_nothing():
    target, one = ClickRate(), seen(1_000, 0, step=1.0)
    target.add(one._replace(experts_BE=one.experts_BE[:, :1]))
    assert target.changed(1_000, "label") == "more"


def run(drift: str, **settings: bool) -> list[Step]:
    config = SyntheticConfig(events=AT + 6_000, base_rate=0.1, drifts=(drift,))
    trainer = Trainer(
        TrainerConfig(
            schema=SCHEMA,
            model=LearnerConfig(),
            pruning=PruningConfig(warmup_events=8_000, pruning_events=4_000),
            drift=DriftConfig(quiet_events=2_000, calibration_events=10_000, **settings),
            training=TrainingConfig(batch_events=512),
        )
    )
    world = World(config)
    tables = (
        table_to_batch(world.table(world.draw(block)), SCHEMA)[0] for block in range(world.blocks)
    )
    return [trainer.step(batch) for batch in rebatch(tables, 512, None)]


@pytest.mark.parametrize(
    "drift, settings, regrown",
    [
        (f"abrupt:base_rate@{AT}:0.2", {}, False),
        (f"abrupt:base_rate@{AT}:0.2", {"answer_click_rate": True}, True),
        (f"abrupt:concept@{AT}", {}, True),
    ],
)
def test_a_step_of_the_click_rate_alone_is_told_and_no_network_regrown(drift, settings, regrown):
    steps = run(drift, **settings)
    drifts = [one for step in steps for one in step.drifts]
    assert any(AT <= one.event < AT + 2_000 for one in drifts)
    assert any(step.move == "regrow" for step in steps) is regrown
    assert any(one.answered for one in drifts) is regrown
    answered = [one.sign_of for one in drifts if one.answered]
    assert len(answered) == len(set(answered))  # each once


@pytest.mark.parametrize("stop", [0, 100, 4_096, 6_000])
def test_a_restored_test_of_the_click_rate_goes_on_exactly(stop):
    events, first, second = seen(7_000, 0, step=0.5), ClickRate(), ClickRate()

    def add(target: ClickRate, start: int, end: int) -> None:
        for at in range(start, end, 100):
            cut = slice(at, min(at + 100, end))
            target.add(Observations(*(array[cut] for array in events[:5])))

    add(first, 0, stop)
    second.restore(first.state())
    for target in (first, second):
        add(target, stop, 7_000)
    one, other = first.state(), second.state()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert len(one["labels_R"]) == 4_096
