"""Small trainers, and what drives them and bare learners through events."""

from collections.abc import Callable

import msgspec

from niwaki.model.evaluation import Evaluation
from niwaki.model.features.outcomes import Outcomes
from niwaki.model.features.schema import EventBatch
from niwaki.model.learner import Learner
from niwaki.model.published.served import ModelFrame, ServedModel
from niwaki.model.published.tensors import Export
from niwaki.pruning.config import PruningConfig
from niwaki.stream.drift.monitor import DetectorConfig, DriftConfig
from niwaki.stream.training.trainer import Trainer, TrainerConfig, TrainingConfig
from tests.support.streams import SCHEMA, SMALL, differing


def learn_all(
    learner: Learner, batch, batch_events: int = 64, target_ratio: float = 1.0
) -> Evaluation:
    evaluation = Evaluation()
    for start in range(0, len(batch), batch_events):
        part = batch.slice(start, start + batch_events)
        evaluation.update(
            learner.learn(learner.encoder.encode(part), Outcomes.of(part), target_ratio).logits_B,
            part.labels_B,
        )
    return evaluation


def small_trainer(**pruning) -> Trainer:
    lengths = {"warmup_events": 1024, "regrowth_events": 512, "pruning_events": 512, "budget": 0.3}
    lengths |= {"period_events": 1500, "longest_wait_events": 256}
    return Trainer(
        TrainerConfig(
            schema=SCHEMA,
            model=SMALL,
            pruning=PruningConfig(**(lengths | pruning)),
            drift=DriftConfig(
                detectors=(
                    DetectorConfig(detector="ADWIN", signal="log_loss", parameters={"delta": 5e-3}),
                ),
                quiet_events=256,
            ),
            training=TrainingConfig(batch_events=64, window_events=512),
        )
    )


def run(trainer: Trainer, batch) -> list:
    return [trainer.step(batch.slice(start, start + 64)) for start in range(0, len(batch), 64)]


def assert_restored_trainers_continue_bit_for_bit(
    events: EventBatch, also_at: Callable[[int], bool] = lambda start: False, **pruning
) -> None:
    """From where each phase begins, and from wherever `also_at` says."""
    whole = small_trainer(**pruning)
    phases, states = [], []
    for start in range(0, len(events), 64):
        state, tensors = whole.state()
        if not phases or whole.policy.phase != phases[-1] or also_at(start):
            phases.append(whole.policy.phase)
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
            states.append(
                (start, msgspec.convert(msgspec.to_builtins(state), type(state)), tensors)
            )
        whole.step(events.slice(start, start + 64))
    expected = whole.state()
    for at, state, tensors in states:
        second = small_trainer(**pruning)
        second.restore(state, tensors)
        run(second, events.slice(at, len(events)))
        actual = second.state()
        assert expected[0] == actual[0]
        assert differing(expected[1], actual[1]) == []


def served_by(learner: Learner, export: Export) -> ServedModel:
    """The model that a scorer would have after an export of everything."""
    config = learner.config
    frame = ModelFrame(
        learner.schema,
        learner.encoder,
        config.pair_budget,
        embedding_dim=config.embedding_dim,
        scales=len(config.half_lives_events),
    )
    return ServedModel(frame, frame.empty_tables(), export)
