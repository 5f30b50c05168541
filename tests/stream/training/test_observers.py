"""The lines that observers of the loop write to the log."""

import logging

import msgspec

from niwaki.pruning.config import PruningConfig
from niwaki.stream.training.observers import StepLog
from niwaki.stream.training.trainer import Trainer, TrainerConfig
from tests.support.streams import SCHEMA, SMALL, click_events


def test_the_log_says_when_the_network_rests_and_when_it_learns_again(caplog):
    model = msgspec.structs.replace(SMALL, network_rate="auto", network_worth=0.5)
    config = TrainerConfig(schema=SCHEMA, model=model, pruning=PruningConfig(policy="dense"))
    trainer = Trainer(config)
    observer, events = StepLog(trainer), click_events(25_600)
    caplog.set_level(logging.INFO, "niwaki")
    while not trainer.learner.branches.resting:  # half of the loss is more than it can save
        observer.stepped(trainer.step(events.slice(trainer.events, trainer.events + 64)))
    trainer.learner.branches.wake()
    observer.stepped(trainer.step(events.slice(0, 64)))
    first, second = (record.getMessage() for record in caplog.records)
    assert "the network rests for up to 200000 events: it saves" in first
    assert "less than the 50.000 % of model.network_worth" in first
    assert second.endswith("the network learns again")
