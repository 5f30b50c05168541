"""Small trainers, and what drives them and bare learners through events."""

from streams import SCHEMA, SMALL

from model.evaluation import Evaluation
from model.learner import Learner
from pruning.policy import PruningConfig
from stream.drift import DetectorConfig, DriftConfig
from stream.trainer import Trainer, TrainingConfig


def learn_all(learner: Learner, batch, batch_events: int = 64, target_ratio: float = 1.0) -> Evaluation:
    evaluation = Evaluation()
    for start in range(0, len(batch), batch_events):
        part = batch.slice(start, start + batch_events)
        evaluation.update(learner.learn(learner.encoder.encode(part), part.labels_B, target_ratio), part.labels_B)
    return evaluation


def small_trainer(**pruning) -> Trainer:
    lengths = {"warmup_events": 1024, "regrowth_events": 512, "pruning_events": 512, "budget": 0.3}
    lengths |= {"period_events": 1500, "longest_wait_events": 256}
    return Trainer(
        SCHEMA,
        SMALL,
        PruningConfig(**(lengths | pruning)),
        DriftConfig(
            detectors=(DetectorConfig(detector="ADWIN", signal="log_loss", parameters={"delta": 1e-3}),),
            quiet_events=256,
        ),
        TrainingConfig(batch_events=64, window_events=512),
    )


def run(trainer: Trainer, batch) -> list:
    return [trainer.step(batch.slice(start, start + 64)) for start in range(0, len(batch), 64)]
