"""Fixtures for tests of the scorer: a store, what publishes to it, and scorers that follow it."""

from collections.abc import Callable, Iterator

import msgspec
import pytest

from niwaki.serving.scorer import Scorer
from niwaki.serving.store import CheckpointStore
from tests.support.publisher import Publisher


@pytest.fixture
def store(redis_url: str, key_prefix: Callable[[], str]) -> Iterator[CheckpointStore]:
    """The trainer's side."""
    with CheckpointStore.from_url(redis_url, key_prefix()) as store:
        yield store


@pytest.fixture
def publisher() -> Publisher:
    return Publisher()


@pytest.fixture
def scorer_of() -> Iterator[Callable[..., Scorer]]:
    """Makes scorers on a store's model, with changes to its config; following ones unless asked
    otherwise."""
    scorers: list[Scorer] = []

    def factory(store: CheckpointStore, *, follow: bool = True, **changes) -> Scorer:
        scorer = Scorer(CheckpointStore(msgspec.structs.replace(store.config, **changes)))
        scorers.append(scorer)
        return scorer.follow() if follow else scorer

    yield factory
    for scorer in scorers:
        scorer.close()
