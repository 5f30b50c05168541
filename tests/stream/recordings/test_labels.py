import pytest

from niwaki.stream.errors import ConfigError
from niwaki.stream.recordings.proposal import Asked
from tests.support.proposals import LABELS, ROWS, column, cycle, noted, proposal


@pytest.mark.parametrize("name", "label click clicked Is_Click isclick y Target converted".split())
def test_the_label_is_found_by_its_name(name):
    found = proposal(label=name)
    assert (found.schema.label, found.schema.label_threshold) == (name, None)
    assert column(found, name).role == "label"


def test_of_several_labels_the_surest_is_taken_and_the_others_are_named():
    found = proposal(label="click", purchase=LABELS[::-1], target=LABELS[::-1])
    assert found.schema.label == "click"
    assert noted(found, "'click' is the label, not 'target', 'purchase'; --label decides otherwise")


def test_a_list_with_the_name_of_a_label_is_no_label_beside_one():
    found = proposal(label=None, liked=[["a"]] * ROWS, rating=cycle(0, 1))
    assert (found.schema.label, found.schema.lists) == ("rating", ("liked",))
    with pytest.raises(ConfigError, match="liked: the label is a column of lists"):
        proposal(label=None, liked=[["a"]] * ROWS)


def test_without_a_label_the_columns_are_listed_those_with_two_values_first():
    with pytest.raises(ConfigError) as caught:
        proposal(label="bought_it", city=cycle("a", "b", "c"))
    assert "called label, click, clicked, isclick or the like: name it with --label COLUMN" in str(
        caught.value
    )
    assert "two values: bought_it; others: user, city" in str(caught.value)


@pytest.mark.parametrize(
    "values, threshold",
    [
        (LABELS, None),
        (list(map(bool, LABELS)), None),
        (["no" if one else "Yes" for one in LABELS], None),
        (["T" if one else "f" for one in LABELS], None),
        (["no"] * ROWS, None),
        ([one / 2 for one in LABELS], None),
        ([f"{one}.0" for one in LABELS], None),
        ([one or -1 for one in LABELS], 1.0),
        ([str(one or -1) for one in LABELS], 1.0),
    ],
)
def test_labels_are_read_as_they_are_and_minus_one_is_no_click(values, threshold):
    found = proposal(label=None, label_=values, asked=Asked(label="label_"))
    assert found.schema.label_threshold == threshold
    assert noted(found, "label_: 1 is a click, -1 is none") == (threshold is not None)


def test_counts_of_clicks_are_clicks_and_the_same_numbers_of_another_name_are_asked_for():
    counts = cycle(0, 0, 3, 1, 0)
    found = proposal(label=None, clicks=counts)
    assert (found.schema.label, found.schema.label_threshold) == ("clicks", 1.0)
    assert noted(found, "clicks: a count; 1 and more is a click")
    assert proposal(label="clicks").schema.label_threshold is None
    with pytest.raises(ConfigError, match="target: is not 0 and 1"):
        proposal(label=None, target=counts)


@pytest.mark.parametrize("values", [cycle(1, 2, 3, 4, 5), cycle(0.5, 5.0), cycle(0, 100)])
def test_a_rating_is_no_click_until_a_threshold_says_so(values):
    with pytest.raises(ConfigError, match=r"rating: is not 0 .* \(\d+\).*: --threshold N makes"):
        proposal(label=None, rating=values)
    found = proposal(label=None, rating=values, asked=Asked(threshold=4))
    assert (found.schema.label, found.schema.label_threshold) == ("rating", 4)


def test_names_of_events_are_no_clicks_until_they_are_named():
    kinds = cycle("view", "view", "view", "cart", "purchase")
    with pytest.raises(ConfigError, match=r"view \(240\), cart \(80\), .*: --positive VALUE,VALUE"):
        proposal(label=None, event_type=kinds)
    found = proposal(label=None, event_type=kinds, asked=Asked(positive=("cart", "purchase")))
    assert found.schema.label_positive == ("cart", "purchase")
    with pytest.raises(ConfigError, match="--positive: must be .* such as 'purchase'; .* 'buy'"):
        proposal(label=None, event_type=kinds, asked=Asked(positive=("buy",)))
    with pytest.raises(ConfigError, match="--threshold: needs a label of numbers; event_type has"):
        proposal(label=None, event_type=kinds, asked=Asked(threshold=1))
    with pytest.raises(ConfigError, match="--positive: can't be given together"):
        proposal(label=None, event_type=kinds, asked=Asked(threshold=1, positive=("cart",)))


def test_missing_labels_are_asked_for_unless_they_are_few():
    many = [one or None for one in LABELS]
    with pytest.raises(
        ConfigError, match=r"label_: \d+ of 400 rows have no label: --missing-label"
    ):
        proposal(label=None, label_=many, asked=Asked(label="label_"))
    asked = Asked(label="label_", missing_label="negative")
    assert proposal(label=None, label_=many, asked=asked).schema.missing_label == "negative"
    few = proposal(label=None, click=[None, "NA", *LABELS[2:]])
    assert few.schema.missing_label == "reject"
    assert noted(few, "click: 2 of 400 rows have no label and are left out")
    with pytest.raises(ConfigError, match="click: all 400 labels are missing"):
        proposal(label=None, click=[None] * ROWS)
    with pytest.raises(ConfigError, match="--missing-label: must be reject or negative"):
        proposal(asked=Asked(missing_label="maybe"))


def test_labels_that_are_all_alike_are_a_warning():
    found = proposal(label=None, click=["false"] * ROWS)
    assert column(found, "click").warnings == ["all 400 labels are 0"]
    assert noted(found, "click: all 400 labels are 0")
