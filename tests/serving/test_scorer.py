"""What the scorer promises: the newest checkpoint, whole, without a pause."""

import contextlib
import logging
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import redis

from niwaki.model.errors import FeatureError
from niwaki.serving.errors import NotReady, StoreRefused, StoreUnavailable
from niwaki.serving.scorer import Scorer
from niwaki.serving.store import CheckpointStore, StoreConfig
from tests.support import scorers
from tests.support.publisher import rows
from tests.support.redis_server import RedisServer

# Fixtures, in the place of those of the same names that all tests share.
store = scorers.store
publisher = scorers.publisher
scorer_of = scorers.scorer_of


def test_before_the_first_checkpoint_it_says_so(store, scorer_of):
    scorer = scorer_of(store)
    assert (scorer.version, scorer.age_s, scorer.following) == (0, math.inf, True)
    with pytest.raises(NotReady, match="no checkpoint of .* yet: nothing is published"):
        scorer.score([{}])


@pytest.mark.parametrize("pruned", [False, True])
def test_it_predicts_exactly_what_the_trainer_predicts(store, publisher, scorer_of, pruned):
    publisher.checkpoint(1)
    if pruned:
        publisher.prune()
    store.publish(*publisher.checkpoint(2))
    features = publisher.learner.encoder.encode(publisher.events)
    expected_B = 1 / (1 + np.exp(-publisher.learner.predict(features).astype(np.float64)))
    scorer = scorer_of(store)
    assert np.abs(scorer.score_batch(publisher.events) - expected_B).max() < 1e-6
    assert np.array_equal(
        scorer.score(rows(publisher.events)), scorer.score_batch(publisher.events)
    )
    header = scorer.model.header
    assert (header.multiply_adds < 0.31 * header.dense_multiply_adds) == pruned


def test_from_redis_has_the_present_checkpoint_when_it_returns(store, publisher):
    store.publish(*publisher.checkpoint(3))
    with Scorer.from_redis(store.config.url, store.name) as scorer:
        assert scorer.version == 3
        assert 0 <= scorer.age_s < 60
        probabilities_B = scorer.score(
            [{"user": "u1", "item": "i1"}, {}, {"user": None, "age": math.nan}]
        )
        assert probabilities_B.dtype == np.float32 and probabilities_B.shape == (3,)
        assert ((probabilities_B > 0) & (probabilities_B < 1)).all()
        assert scorer.score([]).shape == (0,)
    assert not scorer.following
    assert scorer.score([{}]).shape == (1,)


def test_a_scorer_with_compact_tables_predicts_to_the_bit_what_another_one_does(store, publisher):
    url, name = store.config.url, store.name
    publisher.checkpoint(1)
    store.publish(*publisher.checkpoint(2))
    plain, compact = Scorer.from_redis(url, name), Scorer.from_redis(url, name, compact_tables=True)
    with plain, compact:
        store.publish(*publisher.checkpoint(3, base=2))
        assert plain.wait(3, 30) and compact.wait(3, 30)
        assert set(compact.model.compact) == {"embedding", "linear"} and not plain.model.compact
        scores = plain.score_batch(publisher.events).tolist()
        assert compact.score_batch(publisher.events).tolist() == scores


def test_a_row_that_the_schema_does_not_allow_is_named(store, publisher, scorer_of):
    store.publish(*publisher.checkpoint(1))
    scorer = scorer_of(store)
    for row, text in [
        ({"colour": "red"}, "colour: must be a column of the schema, got 'red'"),
        ({"age": "old"}, "age: must be a number, got 'old'"),
        ({"user": {}}, "user: must be a string or a number, got {}"),
    ]:
        with pytest.raises(FeatureError, match=text):
            scorer.score([{}, row])


def test_a_follower_is_told_and_swaps_long_before_it_would_poll(store, publisher, scorer_of):
    scorer = scorer_of(store, poll_interval_s=3600.0)
    for version in range(1, 6):
        store.publish(*publisher.checkpoint(version))
        assert scorer.wait(version, timeout_s=10)
        assert scorer.score_batch(publisher.events).tolist() == publisher.answers[version]
    assert (scorer.swaps, scorer.refused) == (5, 0)


def test_without_notification_polling_finds_the_new_one(store, publisher, redis_url, scorer_of):
    """A user who may not subscribe, as behind a proxy without pub/sub."""
    with redis.Redis.from_url(redis_url) as client:
        rules = [
            "on",
            ">p",
            f"~niwaki:{{{store.name}}}:*",
            "resetchannels",
            "+get",
            "+mget",
            "+hget",
            "+ping",
        ]
        client.execute_command("ACL", "SETUSER", "poller", *rules)
    scorer = scorer_of(store, url=redis_url.replace("://", "://poller:p@"))
    for version in (1, 2):
        store.publish(*publisher.checkpoint(version))
        assert scorer.wait(version, timeout_s=20)


def test_deltas_lead_to_what_the_full_checkpoint_of_the_same_version_predicts(
    store, publisher, scorer_of
):
    """One scorer follows, one misses most of them, one comes last, and one still holds an old
    model."""
    follower, dropper = scorer_of(store, follow=False), scorer_of(store, follow=False)
    held = []
    for version in range(1, 13):
        if version == 7:
            publisher.prune()
        assert store.publish(
            *publisher.checkpoint(version, base=0 if version in (1, 7) else 1 if version < 7 else 7)
        )
        assert follower.refresh()
        assert follower.score_batch(publisher.events).tolist() == publisher.answers[version]
        if version in (2, 3, 6, 12):
            assert dropper.refresh()
            assert dropper.score_batch(publisher.events).tolist() == publisher.answers[version]
        if version in (2, 4, 9):
            held.append(follower.model)
    assert scorer_of(store).score_batch(publisher.events).tolist() == publisher.answers[12]
    for model in held:
        assert model.predict(publisher.events).tolist() == publisher.answers[model.header.version]


def empty(store: CheckpointStore) -> None:
    with redis.Redis.from_url(store.config.url) as client:
        client.delete(*client.keys(f"niwaki:{{{store.name}}}:*"))


@pytest.mark.parametrize("begins_at", [1, 9])
def test_a_trainer_that_begins_again_in_an_emptied_redis_is_followed(
    store, publisher, scorer_of, begins_at
):
    scorer = scorer_of(store, follow=False)
    for version, base in ((8, 0), (9, 8)):
        store.publish(*publisher.checkpoint(version, base=base))
        assert scorer.refresh()
    empty(store)
    assert not scorer.refresh() and scorer.version == 9
    for version, base in ((begins_at, 0), (begins_at + 1, begins_at)):
        assert store.publish(*publisher.checkpoint(version, base=base))
        assert scorer.refresh()
        assert scorer.score_batch(publisher.events).tolist() == publisher.answers[version]
    assert (scorer.version, scorer.refused) == (begins_at + 1, 0)


def test_a_redis_that_has_lost_its_last_writes_does_not_turn_a_scorer_back(
    store, publisher, scorer_of
):
    """As after a failover to a replica that lagged behind: its pointer was made before what
    serves."""
    scorer = scorer_of(store, follow=False)
    store.publish(*publisher.checkpoint(8))
    with redis.Redis.from_url(store.config.url) as client:
        before = {key: client.dump(key) for key in client.keys(f"niwaki:{{{store.name}}}:*")}
        store.publish(*publisher.checkpoint(9))
        assert scorer.refresh()
        empty(store)
        for key, value in before.items():
            client.restore(key, 0, value)
    assert not scorer.refresh()
    assert (scorer.version, scorer.refused) == (9, 1)
    store.publish(*publisher.checkpoint(10))
    assert scorer.refresh()


def test_an_outage_changes_nothing_for_those_who_score_and_ends_by_itself(publisher, caplog):
    caplog.set_level(logging.INFO, "niwaki")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(RedisServer())
        config = StoreConfig(url=server.url, timeout_s=0.5)
        store, scorer = (
            stack.enter_context(part)
            for part in (CheckpointStore(config), Scorer(CheckpointStore(config)))
        )
        store.publish(*publisher.checkpoint(1))
        scorer.follow()
        server.kill()
        with pytest.raises(StoreUnavailable):
            scorer.refresh()
        assert scorer.score_batch(publisher.events).tolist() == publisher.answers[1]
        server.start()
        store.publish(*publisher.checkpoint(2))
        assert scorer.wait(2, timeout_s=20)
        assert scorer.following


def test_it_starts_before_redis_does(publisher):
    with (
        RedisServer() as server,
        Scorer(CheckpointStore(StoreConfig(url=server.url, timeout_s=0.5))) as scorer,
    ):
        server.kill()
        scorer.follow()
        with pytest.raises(NotReady, match=f"127.0.0.1:{server.port}"):
            scorer.score([{}])
        server.start()
        with CheckpointStore.from_url(server.url) as store:
            store.publish(*publisher.checkpoint(1))
        assert scorer.wait(1, timeout_s=20)


def test_a_wrong_password_is_said_at_once():
    with (
        RedisServer("--requirepass", "s3cret") as server,
        pytest.raises(StoreRefused, match="[Aa]uthentication"),
    ):
        Scorer.from_redis(server.url)


def test_waiting_for_what_does_not_come_ends(store, scorer_of):
    assert not scorer_of(store).wait(1, timeout_s=0.05)


def test_closing_is_prompt_whatever_the_poll_interval(store, scorer_of):
    scorer = scorer_of(store, poll_interval_s=3600.0)
    started_s = time.monotonic()
    scorer.close()
    assert time.monotonic() - started_s < 2


def test_concurrent_scoring_through_many_swaps_never_mixes_two_versions(
    store, publisher, scorer_of
):
    """Each answer must be, to the last bit, what one version predicts, and the versions a caller
    sees only rise."""
    store.publish(*publisher.checkpoint(1))
    scorer, last, finished = scorer_of(store), 60, threading.Event()
    events = rows(publisher.events)

    def score() -> list[tuple[int, list[float]]]:
        answers = []
        while not finished.is_set():
            model = scorer.model
            answers.append((model.header.version, scorer_answer(model)))
            answers.append((0, scorer.score(events).tolist()))
        return answers

    def scorer_answer(model) -> list[float]:
        return model.predict(publisher.events).tolist()

    with ThreadPoolExecutor(3) as pool:
        callers = [pool.submit(score) for _ in range(3)]
        for version in range(2, last + 1):
            full = version % 20 == 0
            assert store.publish(
                *publisher.checkpoint(version, base=0 if full else max(version // 20 * 20, 1))
            )
            if version % 10 == 0:
                assert scorer.wait(version, timeout_s=20)
        finished.set()
        answers = [caller.result() for caller in callers]
    known = {tuple(answer): version for version, answer in publisher.answers.items()}
    assert len(known) == last
    for mine in answers:
        seen = [known[tuple(probabilities)] for _, probabilities in mine]
        assert seen == sorted(seen)
        assert all(said in (0, version) for (said, _), version in zip(mine, seen, strict=True))
    assert len({version for mine in answers for version in (known[tuple(p)] for _, p in mine)}) > 3
    assert scorer.version == last and scorer.refused == 0
