"""Snapshots of the real loop: whatever dies or fills up, each event is learned once, and what is
committed and published stays right."""

import logging
import os
import signal
from contextlib import closing

import msgspec
import pytest

from niwaki.stream.kafka.connection import Committer, KafkaConfig
from niwaki.stream.training.observers import StepCallback
from niwaki.stream.training.snapshots.files import SnapshotConfig, SnapshotFiles
from tests.support.pipelines import (
    Running,
    assert_same,
    json_messages,
    never,
    produce,
    uninterrupted,
)
from tests.support.streams import click_events

ALWAYS_S = 1e-9


class Crash(BaseException):
    """Ends a run the hard way: nothing is saved after it."""


def committed(kafka: KafkaConfig) -> int | None:
    """The offset that the trainer's group has committed."""
    from kafka import KafkaAdminClient, TopicPartition

    with closing(KafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)) as admin:
        offsets = admin.list_group_offsets(kafka.group_id)[kafka.group_id]
    at = offsets.get(TopicPartition(kafka.topic, 0))
    return at.offset if at else None


def snapshots(setting) -> list:
    return SnapshotFiles(SnapshotConfig(directory=str(setting[2]))).paths()


@pytest.fixture
def grouped(setting, key_prefix):
    """The setting with a group, whose commits are of this test alone."""
    return msgspec.structs.replace(setting[0], group_id=key_prefix()), *setting[1:]


def test_a_topic_of_nothing_but_bad_events_is_saved_and_committed_while_it_is_read(grouped):
    produce(grouped[0], [b"not json"] * 200)
    with closing(Committer(grouped[0])) as committer:
        running = Running(*grouped, every_s=ALWAYS_S, committer=committer)

        def at_the_end() -> bool:
            if snapshots(grouped) and running.pipeline.batcher.positions.offsets == {0: 200}:
                running.pipeline.snapshots.settle(wait=True)
                raise Crash  # so that nothing is saved for the sake of the end
            return False

        with running, pytest.raises(Crash):
            running.pipeline.run(at_the_end)
    with Running(*grouped) as again:
        assert again.pipeline.batcher.positions.offsets == {0: 200}


def test_committed_offsets_end_behind_the_last_bad_event_of_an_idle_topic(grouped):
    produce(grouped[0], [*json_messages(click_events(64)), *[b"not json"] * 20])
    with closing(Committer(grouped[0])) as committer:
        running = Running(*grouped, every_s=ALWAYS_S, committer=committer)
        with running:
            running.pipeline.run(lambda: committed(grouped[0]) == 84)  # else it never ends
        assert running.trainer.events == 64


def test_an_idle_trainer_publishes_and_saves_what_it_has_learned_and_then_rests(setting):
    events = click_events(320)  # no multiple of the 256 from one publication to the next
    produce(setting[0], json_messages(events))
    first = Running(*setting, every_s=ALWAYS_S)
    idle = []

    def saved() -> bool:
        if first.trainer.events == 320 and not first.pipeline.replica.behind:
            first.pipeline.snapshots.settle(wait=True)
            idle.append(snapshots(setting)[0])
            if len(idle) == 10:
                raise Crash
        return False

    with first, pytest.raises(Crash):
        first.pipeline.run(saved)
    assert len(set(idle[5:])) == 1  # there is nothing new to save
    with Running(*setting) as second:
        assert second.trainer.events == 320
        assert second.pipeline.replica.state()["at_event"] == 320
        assert_same(second.trainer, uninterrupted(events))


def test_where_the_newest_snapshot_is_damaged_each_event_is_still_learned_once(grouped, caplog):
    caplog.set_level(logging.INFO)
    events = click_events(2048)
    produce(grouped[0], json_messages(events))
    for limit in (512, 1024):
        with (
            closing(Committer(grouped[0])) as committer,
            Running(*grouped, committer=committer) as running,
        ):
            running.pipeline.run(never, limit_events=limit)
    assert committed(grouped[0]) == 1024
    newest, _ = snapshots(grouped)
    newest.write_bytes(newest.read_bytes()[:-7])
    with closing(Committer(grouped[0])) as committer:
        third = Running(*grouped, committer=committer)
        with third:
            assert third.trainer.events == 512
            committer.close()
            assert committed(grouped[0]) == 512
    assert f"{newest} is damaged" in caplog.text
    with Running(*grouped) as fourth:
        before = fourth.store.head().version
        assert fourth.pipeline.version == before
        fourth.pipeline.run(never, limit_events=2048)
        assert_same(fourth.trainer, uninterrupted(events, fourth.pipeline.replica))
        assert fourth.store.head().version > before
        header = fourth.store.head()
        assert header.version == fourth.pipeline.version


def test_a_trainer_on_a_full_disk_learns_everything_and_saves_once_there_is_room(
    setting, small_disk, caplog
):
    events = click_events(2048)
    produce(setting[0], json_messages(events))
    kafka, store, _ = setting
    folder = small_disk / "snapshots"
    with Running(kafka, store, folder, every_s=ALWAYS_S) as running:
        running.pipeline.run(never, limit_events=1024)
        shown = running.telemetry.registry.get_sample_value
        assert running.trainer.events == 1024
        assert shown("niwaki_snapshot_failing") == 1
        assert shown("niwaki_snapshot_failures_total") >= 1
        assert list(folder.iterdir()) == []
        assert running.pipeline.version > 3
        (small_disk / "ballast").unlink()
        running.pipeline.run(never, limit_events=2048)
        assert shown("niwaki_snapshot_failing") == 0
        assert_same(running.trainer, uninterrupted(events, running.pipeline.replica))
    assert sum("no snapshot was written" in one.message for one in caplog.records) == 1
    with Running(kafka, store, folder) as again:
        assert again.trainer.events == 2048


@pytest.mark.parametrize("at_step", [5, 9, 13, 14])
def test_a_trainer_that_is_killed_while_it_saves_comes_back_bit_for_bit(setting, at_step):
    events = click_events(2048)
    produce(setting[0], json_messages(events))
    if not (pid := os.fork()):  # a process that may die
        try:
            steps = []

            def die(step):
                steps.append(step)
                if len(steps) == at_step:
                    os.kill(os.getpid(), signal.SIGKILL)

            doomed = Running(*setting, every_s=ALWAYS_S, observers=[StepCallback(die)])
            doomed.pipeline.resume()
            doomed.pipeline.run(never, limit_events=2048)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    with Running(*setting) as second:
        assert second.trainer.events in (0, 256, 512, 768)
        assert second.trainer.events < 64 * at_step
        second.pipeline.run(never, limit_events=2048)
        assert_same(second.trainer, uninterrupted(events, second.pipeline.replica))
    assert not list(setting[2].glob("*unfinished*"))
