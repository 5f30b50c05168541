"""Two threads at one step: what is learned is the same to the bit, errors come back, and no thread
is left behind."""

import gc
import threading

import pytest
import torch

from niwaki.pruning.config import PruningConfig
from niwaki.stream.drift.monitor import DriftConfig
from niwaki.stream.training.second_thread import SecondThread
from niwaki.stream.training.stopwatch import Stopwatch
from niwaki.stream.training.trainer import Trainer, TrainerConfig, TrainingConfig
from tests.support.streams import SCHEMA, SMALL, click_events


@pytest.mark.parametrize("policy", ["adaptive", "magnitude", "rigl"])
def test_two_threads_learn_to_the_bit_what_one_does(policy):
    pruning = PruningConfig(
        policy=policy, warmup_events=512, pruning_events=1024, regrowth_events=512
    )
    one, two = (
        Trainer(
            TrainerConfig(
                schema=SCHEMA,
                model=SMALL,
                pruning=pruning,
                drift=DriftConfig(),
                training=TrainingConfig(threads=threads),
            )
        )
        for threads in (1, 2)
    )
    for size in (600, 64, 33, 128, 129, 600, 1, 700, 640):
        batch = click_events(4000).slice(one.events, one.events + size)
        first, second = one.step(batch), two.step(batch)
        assert (first.losses_B == second.losses_B).all() and first.move == second.move
    (state, tensors), (other_state, other_tensors) = one.learner.state(), two.learner.state()
    assert state == other_state and tensors.keys() == other_tensors.keys()
    torch.testing.assert_close(tensors, other_tensors, rtol=0, atol=0, equal_nan=True)


def test_both_run_at_the_same_time_and_each_on_a_thread_of_its_own():
    second, barrier, threads = SecondThread(2), threading.Barrier(2), set()

    def meet() -> None:
        barrier.wait(timeout=60)
        threads.add(threading.get_ident())

    second.run_parallel(meet, meet)
    assert len(threads) == 2 and threading.get_ident() in threads


def test_an_error_of_either_is_raised_once_both_are_done_and_the_next_calls_work():
    second, done = SecondThread(2), []
    for first, other in (
        (lambda: 1 / 0, lambda: done.append("other")),
        (lambda: done.append("first"), lambda: 1 / 0),
    ):
        with pytest.raises(ZeroDivisionError):
            second.run_parallel(first, other)
    second.run_parallel(lambda: done.append("first"), lambda: done.append("other"))
    assert sorted(done) == ["first", "first", "other", "other"]


def test_the_thread_ends_with_its_trainer():
    before = set(threading.enumerate())
    trainer = Trainer(
        TrainerConfig(
            schema=SCHEMA,
            model=SMALL,
            pruning=PruningConfig(),
            drift=DriftConfig(),
            training=TrainingConfig(threads=2),
        )
    )
    trainer.step(click_events(64))
    (thread,) = set(threading.enumerate()) - before
    del trainer
    gc.collect()
    thread.join(timeout=60)
    assert not thread.is_alive()


def test_a_stopwatch_does_not_count_what_another_thread_did_meanwhile():
    watch = Stopwatch()
    SecondThread(2).run_parallel(lambda: watch.lap("encode"), lambda: watch.lap("predict"))
    assert list(watch.seconds) == ["encode"]
