"""Batches whose loss or gradient is not finite reach no weight: they are set aside, written to a
file, and learning goes on."""

import dataclasses
import json
import math

import msgspec
import numpy as np
import pytest
import torch

from niwaki.model.errors import LearnError
from niwaki.model.features.schema import EventBatch
from niwaki.stream.training import observers
from niwaki.stream.training.trainer import Trainer
from tests.support.pipelines import Running, json_messages, never, new_trainer, produce
from tests.support.streams import SCHEMA, click_events, differing

BATCH = 64
WEIGHED = msgspec.structs.replace(SCHEMA, weight="w")


def weighed(count: int, weight: float = 1.0, at: int = 0, seed: int = 0) -> EventBatch:
    """Events of weight 1, but for one at `at`."""
    weights_B = np.ones(count, np.float32)
    weights_B[at] = weight
    return dataclasses.replace(click_events(count, seed=seed), weights_B=weights_B)


def cloned(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.learner.state()[1].items()}


@pytest.mark.parametrize(("weight", "part"), [(math.inf, "loss"), (1e25, "gradient")])
@pytest.mark.parametrize("pruned", [False, True])
def test_a_batch_that_is_not_finite_changes_no_weight_and_the_next_is_learned(weight, part, pruned):
    trainer, other = new_trainer(schema=WEIGHED), new_trainer(schema=WEIGHED)
    replica = trainer.add_replica(256)
    for at in range(0, 2560 if pruned else 320, BATCH):
        for one in (trainer, other):
            one.step(weighed(BATCH, seed=at))
    replica.refresh()
    before = {name: tensor.clone() for name, tensor in trainer.state()[1].items()}
    bad = weighed(BATCH, weight, 5, seed=99)
    step = trainer.step(bad)
    assert differing(before, trainer.state()[1]) == []
    assert (step.events, len(step.losses_B), trainer.quarantine.events) == (0, 0, BATCH)
    (one,) = step.quarantined
    assert f"the {part} of events" in one.reason
    assert one.events.weights_B.tolist() == bad.weights_B.tolist()
    for one in (trainer, other):
        assert one.step(weighed(BATCH, seed=100)).events == BATCH
    assert differing(other.learner.state()[1], trainer.learner.state()[1]) == []
    assert math.isfinite(replica.evaluation.total.normalized_entropy)


def test_of_a_long_batch_only_the_step_that_is_not_finite_is_set_aside():
    trainer = new_trainer(schema=WEIGHED)
    for at in range(0, 512, BATCH):
        trainer.step(weighed(BATCH, seed=at))
    step = trainer.step(weighed(768, 1e25, 300))
    assert (step.events, len(step.losses_B), trainer.events) == (512, 512, 1024)
    (one,) = step.quarantined
    assert len(one.events) == 256 and one.events.weights_B[300 - 256] > 1
    assert trainer.quarantine.batches_in_a_row == 0


def test_a_restart_behind_a_quarantined_batch_goes_on_to_the_bit():
    batches = [weighed(BATCH, 1e25 if place % 5 == 2 else 1.0, seed=place) for place in range(30)]
    whole, states = new_trainer(schema=WEIGHED), []
    for place, batch in enumerate(batches):
        if place in (2, 3):
            state, tensors = whole.state()
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
            state = msgspec.convert(msgspec.to_builtins(state), type(state))
            states.append((place, state, tensors))
        whole.step(batch)
    for place, state, tensors in states:
        second = new_trainer(schema=WEIGHED)
        second.restore(state, tensors)
        for batch in batches[place:]:
            second.step(batch)
        assert whole.state()[0] == second.state()[0]
        assert differing(whole.state()[1], second.state()[1]) == []
    assert whole.quarantine.events == 6 * BATCH


def test_weights_that_are_not_finite_are_not_published():
    trainer = new_trainer()
    replica = trainer.add_replica(256)
    trainer.step(click_events(BATCH))
    next(iter(trainer.learner.branches.dense.parameters.values())).view(-1)[3] = math.nan
    with pytest.raises(LearnError, match="network.* is not finite"):
        replica.checkpoint(trainer.status(), version=1, parent=0)


def test_quarantined_events_are_in_the_file_with_reason_and_positions_and_count_as_passed(
    setting, tmp_path
):
    bad = weighed(BATCH, 1e25, 7, seed=1)
    good = weighed(512), weighed(512, seed=2)
    for events in (good[0], bad, good[1]):
        produce(setting[0], json_messages(events, WEIGHED))
    with Running(*setting, schema=WEIGHED) as running:
        running.pipeline.run(never, limit_events=1024 + BATCH)
        assert running.trainer.events == 1024 and running.store.head() is not None
        registry = running.telemetry.registry
        outcome = "niwaki_events_total", {"outcome": "quarantined"}
        assert registry.get_sample_value(*outcome) == BATCH
        weights = cloned(running.trainer)
    (line,) = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    written = json.loads(line)
    assert written["after_event"] == 512 and written["offsets"] == {"0": 512 + BATCH}
    assert "the gradient of events 512 to 576 is not finite" in written["reason"]
    assert [event["w"] for event in written["events"]] == pytest.approx(bad.weights_B.tolist())
    assert [event["user"] for event in written["events"]] == bad.categorical[0].to_pylist()
    with Running(*setting, schema=WEIGHED) as again:
        assert again.trainer.quarantine.events == BATCH
        assert differing(weights, again.trainer.learner.state()[1]) == []
        again.pipeline.run(never, limit_events=1024 + BATCH)  # there is nothing left to learn


def test_a_run_of_quarantined_batches_stops_the_trainer_at_the_last_good_state(setting):
    good, bad = weighed(512), weighed(BATCH, 1e25)
    for events in (good, *[bad] * 5):
        produce(setting[0], json_messages(events, WEIGHED))
    with Running(*setting, schema=WEIGHED) as running:
        running.trainer.quarantine._most_batches = 3
        with pytest.raises(LearnError, match="3 batches in a row were quarantined") as raised:
            running.pipeline.run(never, limit_events=512 + 5 * BATCH)
        assert "\n" not in str(raised.value)
        weights = cloned(running.trainer)
    alone = new_trainer(schema=WEIGHED)
    for start in range(0, 512, BATCH):
        alone.step(good.slice(start, start + BATCH))
    assert differing(alone.learner.state()[1], weights) == []
    with Running(*setting, schema=WEIGHED) as again:
        assert again.trainer.events == 512
        assert differing(weights, again.trainer.learner.state()[1]) == []


def test_the_file_of_quarantined_events_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(observers, "QUARANTINE_BYTES", 30_000)
    trainer = new_trainer(schema=WEIGHED)
    file = observers.QuarantineFile(tmp_path / "q" / "quarantine.jsonl", trainer, dict)
    for place in range(20):
        file.stepped(trainer.step(weighed(BATCH, 1e25, seed=place)))
    sizes = [path.stat().st_size for path in (tmp_path / "q").iterdir()]
    assert len(sizes) == 2 and max(sizes) <= 30_000
