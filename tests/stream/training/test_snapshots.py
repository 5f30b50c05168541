"""Snapshots on disk: the newest whole one is gone on from, one that does not fit is refused, and
what stops their writing does not stop the learning."""

import contextlib
import logging
import os
import signal
import threading
from concurrent.futures import wait

import msgspec
import pytest

from niwaki.stream.errors import ConfigError
from niwaki.stream.kafka.reader import Positions
from niwaki.stream.training.snapshots.contents import Place, load_snapshot, save_snapshot
from niwaki.stream.training.snapshots.files import SnapshotConfig, SnapshotFiles, write_synced
from niwaki.stream.training.snapshots.writer import SnapshotWriter
from niwaki.stream.training.telemetry import Telemetry
from niwaki.stream.training.trainer import Trainer
from tests.support.streams import SMALL, click_events, differing
from tests.support.trainers import run, small_trainer

EVENTS = click_events(640)


def place(events: int) -> Place:
    return Place(topic="clicks", positions=Positions(offsets={0: events}), version=1)


@pytest.fixture
def config(tmp_path) -> SnapshotConfig:
    return SnapshotConfig(directory=str(tmp_path / "snapshots"))


def saved(config: SnapshotConfig, count: int) -> list:
    """Paths of the snapshots, oldest first, of a trainer that took one after each 64 events."""
    trainer = small_trainer()
    replica = trainer.add_replica(64, evaluates_all=False)
    for start in range(0, 64 * count, 64):
        run(trainer, EVENTS.slice(start, start + 64))
        replica.refresh()
        save_snapshot(config, trainer, replica, place(trainer.events))
    return SnapshotFiles(config).paths()[::-1]


def loaded(config: SnapshotConfig, trainer: Trainer | None = None):
    """The header that a new trainer went on from, or None; and the trainer."""
    trainer = trainer or small_trainer()
    replica = trainer.add_replica(64, evaluates_all=False)
    return load_snapshot(config, trainer, replica, "clicks"), trainer


def learned(events: int) -> Trainer:
    trainer = small_trainer()
    run(trainer, EVENTS.slice(0, events))
    return trainer


def test_the_last_three_are_kept_and_the_newest_is_gone_on_from(config):
    assert [path.name[-10:-7] for path in saved(config, 5)] == ["003", "004", "005"]
    header, trainer = loaded(config)
    assert header.positions.offsets == {0: 320}
    assert differing(trainer.state()[1], learned(320).state()[1]) == []


DAMAGE = {
    "a bit": lambda data: data[:500] + bytes([data[500] ^ 1]) + data[501:],
    "its sha256": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "its end": lambda data: data[: len(data) // 2],
    "everything": lambda data: b"",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_one_is_named_and_set_aside_and_the_one_before_is_used(config, damage, caplog):
    *_, older, newest = saved(config, 4)
    newest.write_bytes(damage(newest.read_bytes()))
    header, trainer = loaded(config)
    assert header.positions.offsets == {0: 192}
    assert differing(trainer.state()[1], learned(192).state()[1]) == []
    assert f"{newest} is damaged (its sha256 does not match): set aside as" in caplog.text
    assert f"going on from the older snapshot {older}" in caplog.text
    assert not newest.exists() and newest.with_name(f"{newest.name}.damaged").exists()
    replica = trainer.replicas[0]
    assert save_snapshot(config, trainer, replica, place(192)).name == "snapshot-00000005.niwaki"


def test_where_none_is_whole_the_trainer_stops_with_one_line_and_nothing_is_renamed(config):
    paths = saved(config, 3)
    for path in paths:
        path.write_bytes(path.read_bytes()[:-1])
    for _ in range(2):  # a service that is started again must not begin anew either
        with pytest.raises(ConfigError, match="can't be read .*2 older; move the folder") as error:
            loaded(config)
        assert str(paths[-1]) in str(error.value) and "\n" not in str(error.value)
    for path in paths:
        SnapshotFiles(config).set_aside(path)
    with pytest.raises(ConfigError, match="is damaged, and there is no other"):
        loaded(config)


def test_a_whole_one_of_another_program_is_refused_and_not_set_aside(config):
    (*_, newest) = saved(config, 2)
    write_synced(newest, [b"NIWAKI\x63\x00 of a later version"])
    with pytest.raises(ConfigError, match="is whole, but not for this program"):
        loaded(config)
    assert newest.exists()


def test_the_single_file_of_earlier_versions_is_gone_on_from(config):
    (path,) = saved(config, 1)
    path.with_name("snapshot.niwaki").write_bytes(path.read_bytes()[:-32])
    path.unlink()
    assert loaded(config)[0].positions.offsets == {0: 64}


def test_a_config_that_does_not_fit_is_refused_with_the_keys_and_both_values(config):
    saved(config, 1)
    mine = small_trainer().config
    width, top = SMALL.embedding_dim, list(SMALL.top)
    model = msgspec.structs.replace(SMALL, embedding_dim=width + 4, top=(7, 5))
    with pytest.raises(ConfigError) as error:
        loaded(config, Trainer(msgspec.structs.replace(mine, model=model)))
    assert f"model.embedding_dim: {width} in the snapshot, {width + 4} in the config" in str(
        error.value
    )
    assert f"; model.top: {top} in the snapshot, [7, 5] in the config" in str(error.value)
    assert "\n" not in str(error.value) and "pruning" not in str(error.value)
    trainer = small_trainer()
    with pytest.raises(ConfigError, match="kafka.topic: 'clicks' in the snapshot, 'views' in"):
        load_snapshot(config, trainer, trainer.add_replica(64), "views")


def test_changes_that_do_no_harm_are_taken_and_said_in_one_line(config, caplog):
    caplog.set_level(logging.INFO)
    saved(config, 1)
    mine = small_trainer().config
    training = msgspec.structs.replace(mine.training, batch_events=32, publish_every_events=7)
    drift = msgspec.structs.replace(mine.drift, quiet_events=99)
    pruning = msgspec.structs.replace(mine.pruning, budget=0.25)
    changed = msgspec.structs.replace(mine, training=training, drift=drift, pruning=pruning)
    header, trainer = loaded(config, Trainer(changed))
    assert header is not None and trainer.events == 64
    (line,) = (r.message for r in caplog.records if "changed since the snapshot" in r.message)
    for told in (
        "training.batch_events: 64 in the snapshot, 32 in the config",
        "training.publish_every_events: 1000 in the snapshot, 7 in the config",
        "drift.quiet_events: 256 in the snapshot, 99 in the config",
        "pruning.budget: 0.3 in the snapshot, 0.25 in the config",
    ):
        assert told in line
    run(trainer, EVENTS.slice(64, 256))
    caplog.clear()
    loaded(config)
    assert "changed since the snapshot" not in caplog.text


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Writing:
    """A trainer that has learned 64 events, and the writer of its snapshots."""

    def __init__(self, config: SnapshotConfig):
        self.trainer, self.clock, self.telemetry = small_trainer(), Clock(), Telemetry()
        self.replica = self.trainer.add_replica(64, evaluates_all=False)
        run(self.trainer, EVENTS.slice(0, 64))
        self.replica.refresh()
        parts = config, self.trainer, self.replica, self.telemetry
        self.writer = SnapshotWriter(*parts, clock=self.clock)

    def save(self) -> Place | None:
        self.writer.begin(place(self.trainer.events))
        return self.writer.settle(wait=True)

    def shown(self, metric: str) -> float | None:
        return self.telemetry.registry.get_sample_value(metric)


def test_one_that_is_written_beside_the_learning_is_of_the_moment_at_which_it_began(config):
    writing, held = Writing(config), threading.Event()
    writing.replica.begin(held.wait)  # nothing is written before that
    writing.writer.begin(place(64))
    run(writing.trainer, EVENTS.slice(64, 640))
    assert writing.writer.settle() is None and not writing.writer.due()
    held.set()
    assert writing.writer.settle(wait=True) == place(64)
    header, trainer = loaded(config)
    assert header.positions.offsets == {0: 64}
    assert differing(trainer.state()[1], learned(64).state()[1]) == []
    run(trainer, EVENTS.slice(64, 640))
    assert differing(trainer.state()[1], writing.trainer.state()[1]) == []
    writing.writer.close()


def test_one_written_beside_the_learning_is_the_very_file_that_one_written_in_it_is(config):
    writing = Writing(config)
    writing.save()
    save_snapshot(config, writing.trainer, writing.replica, place(64))
    first, second = SnapshotFiles(config).paths()
    assert first.read_bytes() == second.read_bytes()
    writing.writer.close()


def test_a_snapshot_is_due_by_time_by_events_and_after_a_cut_and_not_while_one_is_written(config):
    writing = Writing(msgspec.structs.replace(config, every_s=60.0, every_events=128))
    writer = writing.writer
    writing.save()
    assert not writer.due() and not writer.is_new(place(64)) and writer.is_new(place(65))
    writing.clock.now_s += 60
    assert writer.due()
    writing.save()
    run(writing.trainer, EVENTS.slice(64, 128))
    assert not writer.due()
    run(writing.trainer, EVENTS.slice(128, 192))
    assert writer.due()
    writing.save()
    assert not writer.due()
    writer.hurry()
    assert writer.due()
    writer.begin(place(192))
    writer.hurry()
    assert not writer.due()
    writer.close()


def test_a_full_disk_costs_a_line_and_a_snapshot_and_the_next_one_is_tried_after_a_pause(
    small_disk, caplog
):
    caplog.set_level(logging.INFO)
    folder = small_disk / "snapshots"
    writing = Writing(SnapshotConfig(directory=str(folder), every_s=1e9))
    writer, clock = writing.writer, writing.clock
    for failures, pause_s in enumerate((1, 2, 4), 1):
        assert writing.save() is None
        assert list(folder.iterdir()) == []
        assert writing.shown("niwaki_snapshot_failures_total") == failures
        assert writing.shown("niwaki_snapshot_failing") == 1
        clock.now_s += pause_s - 0.1
        assert not writer.due()
        clock.now_s += 0.1
        assert writer.due()
        run(writing.trainer, EVENTS.slice(64 * failures, 64 * failures + 64))
    (line,) = (r.message for r in caplog.records if "no snapshot was written" in r.message)
    assert f"at event 64: {folder}" in line and "No space left on device" in line
    (small_disk / "ballast").unlink()
    assert writing.save() == place(256)
    assert "snapshots are written again" in caplog.text
    assert writing.shown("niwaki_snapshot_failing") == 0 and not writer.due()
    _, trainer = loaded(SnapshotConfig(directory=str(folder)))
    assert differing(trainer.state()[1], learned(256).state()[1]) == []
    writer.close()


def test_a_folder_that_can_not_be_made_is_named_and_learning_goes_on(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    writing = Writing(SnapshotConfig(directory=str(tmp_path / "file" / "snapshots")))
    assert writing.save() is None
    assert f"{tmp_path / 'file'}" in caplog.text and "Not a directory" in caplog.text
    writing.writer.close()


def test_a_writer_that_is_killed_leaves_the_snapshot_before_and_nothing_else(config, caplog):
    writing, held = Writing(config), threading.Event()
    writing.save()
    job = writing.replica.begin(held.wait)
    before = children()
    writing.writer.begin(place(64))
    (fork,) = children() - before
    os.kill(fork, signal.SIGKILL)
    held.set()
    wait([job])
    assert writing.writer.settle(wait=True) is None
    assert "the process that wrote it ended by SIGKILL" in caplog.text
    assert [path.name for path in SnapshotFiles(config).directory.iterdir()] == [
        "snapshot-00000001.niwaki"
    ]
    writing.writer.close()


def children() -> set[int]:
    """Processes that this one has begun, and not waited for."""
    found = set()
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/self/task/{task}/children") as f:
            found |= {int(pid) for pid in f.read().split()}
    return found


def test_what_a_trainer_that_died_had_begun_to_write_is_removed(config):
    saved(config, 1)
    left = SnapshotFiles(config).unfinished(12345)
    left.write_bytes(b"half of it")
    writing = Writing(config)
    writing.writer.clear()
    assert not left.exists() and len(SnapshotFiles(config).paths()) == 1
    writing.writer.close()
