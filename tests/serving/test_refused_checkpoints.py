"""Checkpoints and deltas that cannot be trusted: the scorer refuses them, and the last good one
serves on."""

import logging
import math

import msgspec
import pytest
import redis

from niwaki.model.published.checkpoint import pack, unpack
from tests.support import scorers

# Fixtures, in the place of those of the same names that all tests share.
store = scorers.store
publisher = scorers.publisher
scorer_of = scorers.scorer_of


def damaged(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def not_finite(data: bytes) -> bytes:
    header, tensors = unpack(data)
    return pack(header, tensors | {"mixture": tensors["mixture"] * math.nan})


def of_another_type(data: bytes) -> bytes:
    header, tensors = unpack(data)
    return pack(header, {name: tensor.double() for name, tensor in tensors.items()})


def without_a_tensor(data: bytes) -> bytes:
    header, tensors = unpack(data)
    return pack(header, {name: tensor for name, tensor in tensors.items() if name != "mixture"})


def of_another_version(data: bytes) -> bytes:
    header, tensors = unpack(data)
    return pack(msgspec.structs.replace(header, version=77), tensors)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (damaged, "checksum does not match"),
        (lambda data: data[:-1], "checksum does not match"),
        (lambda data: b"", "must not be cut short"),
        (lambda data: b"PK" + data[2:], "must begin with"),
        (not_finite, "must be finite"),
        (of_another_type, "rows: must be unsigned"),
        (without_a_tensor, "tensor mixture"),
        (of_another_version, "header.version: must be 2, got 77"),
    ],
)
def test_a_checkpoint_that_can_not_be_trusted_is_refused_once_and_the_old_one_serves_on(
    store, publisher, scorer_of, caplog, spoil, reason
):
    caplog.set_level(logging.WARNING, "niwaki")
    scorer = scorer_of(store, follow=False)
    store.publish(*publisher.checkpoint(1))
    assert scorer.refresh()
    header, data = publisher.checkpoint(2)
    store.publish(header, spoil(data))
    assert not scorer.refresh() and not scorer.refresh()
    assert (scorer.version, scorer.refused, scorer.swaps) == (1, 1, 1)
    assert scorer.score_batch(publisher.events).tolist() == publisher.answers[1]
    assert [
        record.getMessage() for record in caplog.records if reason in record.getMessage()
    ] == caplog.messages
    assert len(caplog.messages) == 1
    store.publish(*publisher.checkpoint(3))
    assert scorer.refresh() and scorer.version == 3


def test_bytes_that_redis_has_lost_are_refused(store, publisher, scorer_of):
    scorer = scorer_of(store, follow=False)
    store.publish(*publisher.checkpoint(1))
    assert scorer.refresh()
    store.publish(*publisher.checkpoint(2))
    with redis.Redis.from_url(store.config.url) as client:
        client.delete(f"niwaki:{{{store.name}}}:blob:{store.head().upload}:0")
    assert not scorer.refresh()
    assert (scorer.version, scorer.refused) == (1, 1)


def test_a_kind_of_checkpoint_from_a_later_niwaki_is_refused(store, publisher, scorer_of):
    scorer = scorer_of(store, follow=False)
    store.publish(*publisher.checkpoint(1))
    assert scorer.refresh()
    store.publish(*publisher.checkpoint(2, base=1))
    with redis.Redis.from_url(store.config.url) as client:
        key = f"niwaki:{{{store.name}}}:pointer"
        client.set(key, client.get(key).replace(b"delta", b"patch"))
    assert not scorer.refresh()
    assert (scorer.version, scorer.refused) == (1, 1)


def test_after_a_damaged_delta_the_next_full_checkpoint_is_taken_over(store, publisher, scorer_of):
    scorer = scorer_of(store, follow=False)
    store.publish(*publisher.checkpoint(1))
    assert scorer.refresh()
    header, data = publisher.checkpoint(2, base=1)
    store.publish(header, damaged(data))
    assert not scorer.refresh()
    store.publish(*publisher.checkpoint(3, base=1))
    assert not scorer.refresh()  # it goes back to the damaged one
    assert (scorer.version, scorer.refused) == (1, 2)
    assert scorer.score_batch(publisher.events).tolist() == publisher.answers[1]
    for version, base in ((4, 0), (5, 4)):
        store.publish(*publisher.checkpoint(version, base=base))
        assert scorer.refresh()
        assert scorer.score_batch(publisher.events).tolist() == publisher.answers[version]


def test_a_delta_that_can_not_be_predicted_with_leaves_the_one_that_serves_untouched(
    store, publisher, scorer_of
):
    scorer = scorer_of(store, follow=False)
    for version, base in ((1, 0), (2, 1)):
        store.publish(*publisher.checkpoint(version, base=base))
        assert scorer.refresh()
    header, data = publisher.checkpoint(3, base=1)
    store.publish(header, not_finite(data))
    assert not scorer.refresh()
    assert scorer.score_batch(publisher.events).tolist() == publisher.answers[2]
