"""What the store promises: whole checkpoints, newest last, whoever publishes."""

import secrets
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from niwaki.pruning.errors import RuleError
from tests.support.stored import blob, header, keys, with_config


def test_before_the_first_checkpoint_there_is_nothing(store):
    assert store.head() is None
    assert store.fetch() is None
    assert store.versions() == []


def test_what_was_published_is_fetched_byte_for_byte(store):
    data = secrets.token_bytes(100_001)
    assert store.publish(header(7), data)
    assert store.fetch() == data
    pointer = store.head()
    assert (pointer.version, pointer.kind, pointer.base, pointer.bytes) == (7, "full", 7, 100_001)
    assert pointer.created_s == 1_700_000_007.0


def test_a_blob_longer_than_a_chunk_is_cut_and_joined(store):
    data = secrets.token_bytes(1001)
    with with_config(store, chunk_bytes=100) as small:
        assert small.publish(header(1), data)
    assert store.head().chunks == 11
    assert store.fetch() == data


def test_a_blob_over_64_mb_survives_the_way(store):
    data = secrets.token_bytes(2**20) * 70
    assert store.publish(header(1), data)
    assert store.head().chunks == 2
    assert store.fetch() == data


@pytest.mark.parametrize("late", [1, 4, 5])
def test_a_version_that_is_not_greater_is_refused_and_leaves_no_trace(store, late):
    assert store.publish(header(5), blob(5))
    before = keys(store)
    assert not store.publish(header(late), blob(99))
    assert store.fetch() == blob(5)
    assert keys(store) == before


@pytest.mark.parametrize("version", [0, -1, 2**53])
def test_a_version_that_can_not_be_ordered_is_a_mistake(store, version):
    with pytest.raises(RuleError, match="version: must be in 1 .."):
        store.publish(header(version), b"x")


def test_great_versions_keep_their_order(store):
    for version in (2**53 - 2, 2**53 - 1):
        assert store.publish(header(version), blob(1))
    assert [pointer.version for pointer in store.versions()] == [2**53 - 2, 2**53 - 1]


def test_the_last_k_are_kept_and_older_bytes_are_gone(store):
    pointers = []
    with with_config(store, keep_versions=3, chunk_bytes=400) as three:
        for version in range(1, 8):
            assert three.publish(header(version), blob(version))
            pointers.append(three.head())
    assert store.versions() == pointers[-3:]
    assert [store.fetch(pointer) for pointer in pointers[-4:]] == [None, blob(5), blob(6), blob(7)]
    assert len(keys(store)) == 2 + 3 * 3


def test_a_delta_keeps_the_full_checkpoint_that_it_needs(store):
    with with_config(store, keep_versions=2) as two:
        two.publish(header(1), blob(1))
        for version in range(2, 7):
            two.publish(header(version, base=1), blob(version))
        assert [pointer.version for pointer in two.versions()] == [1, 2, 3, 4, 5, 6]
        assert (two.head().kind, two.head().base) == ("delta", 1)
        for version in (7, 8):
            two.publish(header(version), blob(version))
        assert [pointer.version for pointer in two.versions()] == [7, 8]


def test_a_path_leads_from_what_is_held_or_from_the_last_full_checkpoint(store):
    for version in range(1, 6):
        assert store.publish(
            header(version, base=0 if version in (1, 3) else 1 if version < 3 else 3), blob(version)
        )
    one, _, three, four, five = store.versions()
    assert store.path(five) == [three, four, five]
    assert store.path(five, held=four.upload) == [five]
    assert store.path(five, held=three.upload) == [four, five]
    assert store.path(five, held=one.upload) == [three, four, five]
    assert store.path(three, held=one.upload) == [three]


@pytest.mark.parametrize("between", ["rival", "restart", "emptied"])
def test_a_delta_is_taken_only_right_after_what_it_changes(store, between):
    assert store.publish(header(1), blob(1)) and store.publish(header(2, base=1), blob(2))
    publisher = store
    if between == "rival":
        with with_config(store) as rival:
            assert rival.publish(header(3), blob(3))
        late = header(4, base=1)
        late.parent = 2
    elif between == "restart":
        publisher, late = with_config(store), header(3, base=1)
    else:
        late = header(3, base=1)
        with redis.Redis.from_url(store.config.url) as client:
            client.delete(*keys(store))
    before = keys(store)
    assert not publisher.publish(late, blob(late.version))
    assert keys(store) == before
    assert publisher.publish(header(9), blob(9)) and publisher.publish(header(10, base=9), blob(10))
    if publisher is not store:
        publisher.close()


def test_deleting_the_pointer_by_hand_lets_a_fresh_trainer_begin_again(store):
    for version in (1, 50, 51):
        store.publish(header(version), blob(version))
    with redis.Redis.from_url(store.config.url) as client:
        client.delete(f"niwaki:{{{store.name}}}:pointer")
    assert store.publish(header(1), b"anew")
    assert store.fetch() == b"anew"
    assert [pointer.version for pointer in store.versions()] == [1]
    assert len(keys(store)) == 3


def test_models_under_other_names_do_not_meet(store):
    with with_config(store, name=store.name + ".b") as other:
        store.publish(header(5), blob(5))
        other.publish(header(1), blob(1))
        assert (store.fetch(), other.fetch()) == (blob(5), blob(1))


def test_a_subscriber_is_told_and_finds_the_whole_checkpoint_at_once(store):
    with store.watch() as watch:
        assert not watch.wait(0.0)
        for version in range(1, 20):
            store.publish(header(version), blob(version))
            assert watch.wait(5.0)
            assert store.fetch() == blob(version)


def test_a_reader_never_sees_a_pointer_without_its_bytes_nor_versions_going_back(store):
    """Only one version is kept, so that every publication takes the bytes from under a reader's
    feet."""
    last, seen = 400, []

    def read() -> int:
        versions = [0]
        while versions[-1] < last:
            data = store.fetch()
            if data is not None:
                assert data == data[:8] * 125
                versions.append(int.from_bytes(data[:8], "big"))
        assert versions == sorted(versions)
        return len(set(versions))

    with ThreadPoolExecutor(2) as pool, with_config(store, keep_versions=1, chunk_bytes=300) as one:
        readers = [pool.submit(read) for _ in range(2)]
        for version in range(1, last + 1):
            assert one.publish(header(version), blob(version))
        seen = [reader.result(timeout=30) for reader in readers]
    assert min(seen) > 2


def test_rival_trainers_never_turn_the_pointer_back(store):
    def publish(versions: range) -> list[int]:
        return [version for version in versions if store.publish(header(version), blob(version))]

    told = []
    with store.watch() as watch, ThreadPoolExecutor(3) as pool:
        rivals = [pool.submit(publish, range(start, 300, 3)) for start in (1, 2, 3)]
        published = sorted(version for rival in rivals for version in rival.result())
        while watch.wait(0.2):
            told.append(store.head().version)
    assert published[-1] == store.head().version == 299
    assert len(set(published)) == len(published) == len(told)
    assert store.fetch() == blob(299)
    assert len(keys(store)) == 2 + store.config.keep_versions
