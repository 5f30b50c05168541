import pytest

from niwaki.stream.recordings.proposal import Asked
from tests.support.proposals import column, cycle, noted, proposal

SHARES = cycle(0.1, 1.0, 0.25)


@pytest.mark.parametrize("name", ["weight", "sample_weight", "w", "n_weight"])
def test_a_column_that_could_be_a_weight_is_mentioned_and_not_taken(name):
    found = proposal(**{name: cycle(0.5, 2.0, 7.25)})
    assert (found.schema.weight, found.schema.numeric) == (None, (name,))
    assert noted(found, f"{name}: numeric, numbers; --weight {name} would weigh events by it")


def test_a_column_that_could_be_a_sampling_ratio_is_mentioned_and_not_taken():
    found = proposal(sampling_rate=SHARES)
    assert found.schema.sampling_ratio is None
    assert noted(found, "--sampling-ratio sampling_rate would undo a sampling of events without")


@pytest.mark.parametrize(
    "columns",
    [
        {"weight": cycle(-0.5, 1.5)},
        {"weight": cycle("a", "b")},
        {"weight": cycle(None, 1.5)},
        {"body": cycle(0.5, 2.5)},
        {"sampling_rate": cycle(0.0, 1.0)},
        {"sampling_rate": cycle(0.5, 1.5)},
    ],
)
def test_columns_of_other_names_or_values_are_not_mentioned(columns):
    found = proposal(**columns)
    assert not noted(found, "--weight") and not noted(found, "--sampling-ratio")


def test_what_is_asked_for_is_taken():
    found = proposal(
        weight=SHARES, rate=SHARES, asked=Asked(weight="weight", sampling_ratio="rate")
    )
    schema = found.schema
    assert (schema.weight, schema.sampling_ratio, schema.numeric) == ("weight", "rate", ())
    assert column(found, "weight").role == "weight"
