"""Checkpoints with the right checksum and any contents: refused or served, and the next good one
serves. The thread that follows never ends."""

import json
import logging
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from niwaki.model.features.schema import EventBatch, History, Schema
from niwaki.model.learner import Learner
from niwaki.model.published.checkpoint import Header, TrainingStatus, pack, unpack
from niwaki.model.published.table_codes import Precision
from niwaki.serving.double_buffer import CompactShelf
from niwaki.serving.errors import StoreRefused
from niwaki.serving.scorer import REFUSALS, Scorer
from niwaki.serving.store import CheckpointStore
from tests.support import scorers
from tests.support.mutations import Change, as_version, changed, changes
from tests.support.streams import SMALL, click_events
from tests.support.trainers import learn_all

# Fixtures, in the place of those of the same names that all tests share.
store = scorers.store
publisher = scorers.publisher

SCHEMA = Schema(
    categorical=("user", "item", "noise"),
    numeric=("age", "price"),
    histories=(History(name="liked", of="item", by="user", last=5),),
    rates=("item",),
    time_features=("age:item",),
    max_keys=100,
)


class Good(NamedTuple):
    """A full checkpoint and a delta to it, and what both predict."""

    full: bytes
    delta: bytes
    events: EventBatch


def good(precision: Precision) -> Good:
    learner = Learner(SCHEMA, SMALL)
    changes = learner.track_dirty_rows()
    data = []
    for rows in (None, "changed"):
        learn_all(learner, click_events(200, seed=len(data)))
        export = learner.export(learner.mixture.weights, changes.rows() if rows else None)
        changes.clear(learner.events)
        header = Header.of(
            learner.description(),
            TrainingStatus("dense", "adaptive", 0.1),
            shape=export.shape,
            version=1 + len(data),
            parent=len(data),
            base=len(data),
            table_precision=precision,
        )
        data.append(pack(header, export.tensors))
    return Good(*data, click_events(50, seed=7))


class Followed:
    """A scorer on a store of its own, and the version that it was given last."""

    def __init__(self, store: CheckpointStore, good: Good, compact: bool):
        self.store, self.good, self.version = store, good, 0
        self.scorer = Scorer(CheckpointStore(store.config), CompactShelf() if compact else None)
        self.publish(good.full)
        assert self.scorer.refresh()
        self.answers = self.scorer.score_batch(good.events).tolist()

    def publish(self, data: bytes, base: int = 0, wanted: list[Change] | None = None) -> None:
        self.version += 1
        header, data = as_version(data, self.version, base)
        assert self.store.publish(header, changed(data, wanted) if wanted else data)


@pytest.fixture(scope="module", params=["int4", "float32", "compact"])
def followed(request: pytest.FixtureRequest, redis_url: str) -> Iterator[Followed]:
    compact = request.param == "compact"
    precision: Any = "int4" if compact else request.param
    with CheckpointStore.from_url(redis_url, f"any-{uuid4().hex[:8]}") as store:
        followed = Followed(store, good(precision), compact)
        yield followed
        followed.scorer.close()


@settings(max_examples=150)
@given(wanted=changes, is_delta=st.booleans())
def test_any_contents_are_refused_or_served_and_the_next_good_checkpoint_serves(
    followed: Followed, wanted, is_delta
):
    scorer, data = followed.scorer, followed.good
    refused = scorer.refused
    if is_delta:
        followed.publish(data.delta, followed.version, wanted)
    else:
        followed.publish(data.full, 0, wanted)
    if scorer.refresh():
        assert np.isfinite(scorer.score_batch(data.events)).all()
    else:
        assert scorer.refused == refused + 1
    assert set(scorer.refusals) == set(REFUSALS)
    followed.publish(data.full)
    assert scorer.refresh() and scorer.version == followed.version
    assert scorer.score_batch(data.events).tolist() == followed.answers


def of_a_history(data: bytes, value: int) -> bytes:
    """A checkpoint in which every value of every history is this one."""
    header, tensors = unpack(data)
    values = tensors["history.liked.values"].numpy().view(np.int32)
    values[:, 8:] = value
    return pack(header, tensors)


@pytest.mark.parametrize("value", [-1, SMALL.table_rows, 2**31 - 1])
def test_a_history_whose_values_no_table_has_is_refused_before_anything_reads_it(followed, value):
    header, data = as_version(of_a_history(followed.good.full, value), followed.version + 1)
    refused = followed.scorer.refusals["content"]
    followed.version += 1
    assert followed.store.publish(header, data)
    assert not followed.scorer.refresh()
    assert followed.scorer.refusals["content"] == refused + 1
    followed.publish(followed.good.full)
    assert followed.scorer.refresh()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dense_multiply_adds", 0),
        ("table_rows", 10**12),
        ("pair_rows", -1),
        ("half_lives_events", [1.0] * 1000),
        ("half_lives_events", []),
        ("events", -5),
    ],
)
def test_an_absurd_header_is_refused_by_the_name_of_its_field(followed, caplog, field, value):
    caplog.set_level(logging.WARNING, "niwaki")
    followed.publish(followed.good.full, 0, [lambda parts: parts[0].update({field: value})])
    assert not followed.scorer.refresh()
    assert f"header.{field}: must be" in caplog.messages[-1]
    followed.publish(followed.good.full)
    assert followed.scorer.refresh()


@pytest.mark.parametrize("error", [KeyError, TypeError, OverflowError, RecursionError])
def test_an_error_of_any_type_while_a_model_is_made_is_a_refusal(
    followed, monkeypatch, caplog, error
):
    caplog.set_level(logging.WARNING, "niwaki")
    refused = followed.scorer.refusals["content"]
    with monkeypatch.context() as patched:

        def fails(path):
            raise error("nobody\nthought of it")

        patched.setattr(followed.scorer._versions, "make", fails)
        followed.publish(followed.good.full)
        assert not followed.scorer.refresh()
    assert followed.scorer.refusals["content"] == refused + 1
    assert error.__name__ in caplog.messages[-1] and "\n" not in caplog.messages[-1]
    followed.publish(followed.good.full)
    assert followed.scorer.refresh()


def test_the_thread_that_follows_outlives_any_error_and_logs_it_once(
    store, publisher, caplog, monkeypatch
):
    caplog.set_level(logging.WARNING, "niwaki")
    scorer = Scorer(CheckpointStore(store.config))
    asked = threading.Event()
    head, broken = scorer.store.head, [True]

    def fails_for_a_while():
        if threading.current_thread() is not threading.main_thread() and broken:
            asked.set()
            raise ZeroDivisionError("of nobody's making")
        return head()

    monkeypatch.setattr(scorer.store, "head", fails_for_a_while)
    scorer.follow()
    assert asked.wait(10) and scorer.following
    store.publish(*publisher.checkpoint(1))
    broken.clear()
    assert scorer.wait(1, timeout_s=20) and scorer.following
    scorer.close()
    assert len([line for line in caplog.messages if "of nobody's making" in line]) == 1


def test_workers_that_can_not_be_told_of_a_version_are_told_of_the_next(
    store, publisher, monkeypatch
):
    """As where no memory is left for the file that workers read."""
    scorer = Scorer(CheckpointStore(store.config))
    told = []

    def fails_at_first(model):
        told.append(model.header.version)
        if len(told) == 1:
            raise OSError("no memory")

    monkeypatch.setattr(scorer, "swapped", fails_at_first)
    store.publish(*publisher.checkpoint(1))
    with pytest.raises(OSError):
        scorer.refresh()
    store.publish(*publisher.checkpoint(2, base=1))
    assert scorer.refresh() and told == [1, 2]
    assert scorer.score_batch(publisher.events).tolist() == publisher.answers[2]
    assert scorer.refused == 0
    scorer.close()


@pytest.mark.parametrize("changes", [{"chunks": 10**12}, {"chunks": 0}, {"chunks": -3}])
def test_a_pointer_to_absurdly_many_keys_is_not_followed(store, publisher, changes):
    store.publish(*publisher.checkpoint(1))
    with redis.Redis.from_url(store.config.url) as client:
        key = f"niwaki:{{{store.name}}}:pointer"
        client.set(key, json.dumps(json.loads(client.get(key)) | changes))
    with pytest.raises(StoreRefused, match="chunks"):
        store.head()
