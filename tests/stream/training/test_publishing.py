"""What the loop publishes over a real Kafka and a real Redis is what it has learned, also after
Redis was away."""

import numpy as np
import pytest
import torch

from niwaki.serving.scorer import Scorer
from tests.support.pipelines import PRUNING, Running, json_messages, never, produce
from tests.support.streams import click_events


def test_the_scorer_follows_and_predicts_what_the_sparse_branch_does_at_that_version(setting):
    kafka, store, _ = setting
    events, scored = click_events(8000), click_events(500, seed=3)
    produce(
        kafka,
        json_messages(events.slice(0, 4000))
        + json_messages(click_events(4000, seed=1, flipped=True)),
    )
    exact = Running(*setting, precision="float32")
    with Scorer.from_redis(store.url, store.name) as scorer, exact as running:
        learner, checked = running.trainer.learner, []
        publisher = running.pipeline.publisher
        publish = publisher.publish

        def publish_and_compare(status, offsets):
            publish(status, offsets)
            publisher.settle()
            assert scorer.wait(publisher.version, 30)
            weights = running.pipeline.replica.mixture.weights
            logits = torch.from_numpy(learner.predict(learner.encoder.encode(scored), weights))
            checked.append(
                float(np.abs(scorer.score_batch(scored) - logits.sigmoid().numpy()).max())
            )

        publisher.publish = publish_and_compare
        running.pipeline.run(never, limit_events=8000)
        header = scorer.model.header
        assert running.trainer.policy.state.cycle >= 2, "no newly pruned network after the drift"
    assert max(checked) <= 1e-6 and len(checked) > 20
    assert header.multiply_adds <= PRUNING.budget * header.dense_multiply_adds
    assert header.events == 8000 and header.offsets == {"0": 8000}


def test_a_published_network_is_as_small_as_it_says(setting):
    from niwaki.model.published.checkpoint import unpack

    kafka, store, _ = setting
    produce(kafka, json_messages(click_events(2048)))
    with Running(*setting) as running:
        running.pipeline.run(never, limit_events=2048)
        header, tensors = unpack(running.store.fetch())
    matrices = {
        name: tensor
        for name, tensor in tensors.items()
        if name.startswith("network.") and tensor.dim() == 2
    }
    assert header.phase == "sparse"
    assert (
        sum(tensor.numel() for tensor in matrices.values())
        <= header.multiply_adds
        <= PRUNING.budget * header.dense_multiply_adds
    )


def test_the_first_publication_is_logged_and_a_trainer_that_begins_anew_warns_what_it_replaces(
    setting, tmp_path, caplog
):
    kafka, store, _ = setting
    caplog.set_level("INFO")
    produce(kafka, json_messages(click_events(1024)))
    anew = tmp_path / "another"
    for directory, limit in ((tmp_path, 512), (tmp_path, 1024), (anew, 512)):
        with Running(kafka, store, directory) as running:
            running.pipeline.run(never, limit_events=limit)
    lines = [record for record in caplog.records if "is published as" in record.message]
    assert [line.levelname for line in lines] == ["INFO", "INFO", "WARNING", "INFO"]
    assert lines[0].message == f"version 1 is published as {store.name}"
    last = int(lines[2].message.split()[1])
    assert "is not this trainer's" in lines[2].message
    assert lines[3].message == f"version {last + 1} is published as {store.name}"


def test_while_redis_is_away_learning_goes_on_and_the_next_version_is_published_later(setting):
    from niwaki.serving.errors import StoreUnavailable

    produce(setting[0], json_messages(click_events(2048)))
    with Running(*setting) as running:
        publish, attempts = running.store.publish, []

        def away_at_first(header, data):
            attempts.append(header.version)
            if len(attempts) < 2:
                raise StoreUnavailable("away")
            return publish(header, data)

        running.store.publish = away_at_first
        running.pipeline.run(never, limit_events=2048)
        assert running.trainer.events == 2048
        assert attempts[0] == attempts[1] == 1
        assert running.store.head().version == running.pipeline.version >= 1
        failures = "niwaki_publication_failures_total", {"kind": "other"}
        assert running.telemetry.registry.get_sample_value(*failures) == 1


@pytest.mark.parametrize("fails", [1, 3, 4])
def test_what_was_on_its_way_when_redis_went_away_is_in_the_next_version(setting, fails):
    """Redis goes away after the loop has gone on: the scorer ends where the trainer does all the
    same."""
    from niwaki.serving.errors import StoreUnavailable

    produce(setting[0], json_messages(click_events(3000)))
    scored = click_events(200, seed=3)
    exact = Running(*setting, precision="float32")
    with Scorer.from_redis(setting[1].url, setting[1].name) as scorer, exact as running:
        publisher, publish, kinds = running.pipeline.publisher, running.store.publish, []

        def sometimes_away(header, data):
            kinds.append("full" if not header.base else "delta")
            if len(kinds) == fails:
                raise StoreUnavailable("away")
            return publish(header, data)

        running.store.publish = sometimes_away
        publisher._retry_s = 0.0
        running.pipeline.run(never, limit_events=3000)
        assert scorer.wait(publisher.version, 30)
        learner, weights = running.trainer.learner, publisher.replica.mixture.weights
        logits = torch.from_numpy(learner.predict(learner.encoder.encode(scored), weights))
        assert np.abs(scorer.score_batch(scored) - logits.sigmoid().numpy()).max() <= 1e-6
        served = publisher.replica.served
        assert scorer.score_batch(scored).tolist() == served.predict(scored).tolist()
    assert kinds[fails] == "full" and "delta" in kinds[fails + 1 :]
