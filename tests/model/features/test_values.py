"""Values as their owners write them: labels, event times, names and numbers."""

import math
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from niwaki.model.errors import FeatureError
from niwaki.model.features.encoder import Encoder
from niwaki.model.features.event_rows import rows_to_batch
from niwaki.model.features.schema import Schema
from niwaki.model.features.values import (
    Odd,
    as_name,
    as_number,
    parse_number,
    parse_times,
    read_label,
    read_time,
)
from niwaki.pruning.errors import RuleError

NAMES = Schema(categorical=("item",), timestamp=None)


def schema(**changes: object) -> Schema:
    return Schema(categorical=("item",), **changes)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("4", 4),
        (" -1.5 ", -1.5),
        ("1e5", 1e5),
        (".5", 0.5),
        ("1,234.5", 1234.5),
        ("12,345,678", 12345678),
        ("$12.50", 12.5),
        ("-$3", -3),
        ("€ 1,000", 1000),
        ("72.3%", 72.3),
        ("true", 1),
        ("No", 0),
        ("inf", math.inf),
        ("-Infinity", -math.inf),
        *(
            (word, None)
            for word in ("", "n/a", "abc", "1,23", "1.2.3", "1_000", "+-5", "12 monkeys")
        ),
    ],
)
def test_a_number_in_text_may_have_the_marks_that_people_write(text, number):
    assert parse_number(text) == number


@given(st.floats(allow_nan=False, width=32), st.sampled_from(["{}", " {} ", "{:.3f}", "{:,.2f}"]))
def test_whatever_way_a_number_is_written_it_is_read(number, form):
    written = form.format(number)
    assert parse_number(written) == float(written.strip().replace(",", ""))


def test_a_decimal_comma_is_read_where_it_was_asked_for():
    assert as_number("1.234,5", "price", ",") == 1234.5
    assert as_number("72,3", "price", ",") == 72.3
    assert as_number("72,3", "price") is None


@pytest.mark.parametrize("value", [None, math.nan, "", "NA", "N/A", "null", "None", "\\N", "-"])
def test_a_missing_number_has_many_names(value):
    assert math.isnan(as_number(value, "price"))


@pytest.mark.parametrize(
    ("value", "label"),
    [(1, 1), (0.25, 0.25), (True, 1), ("1", 1), ("true", 1), ("FALSE", 0), ("Yes", 1), ("n", 0)],
)
def test_a_label_is_a_number_a_boolean_or_a_word_for_one(value, label):
    assert read_label(value, schema()) == label


@pytest.mark.parametrize("value", [2, -1, "maybe", [1], math.inf, "100", 10**400])
def test_a_label_out_of_range_is_refused(value):
    with pytest.raises(FeatureError, match=r"label: must be a number in \[0, 1\], got"):
        read_label(value, schema())


@pytest.mark.parametrize(
    ("threshold", "value", "label"),
    [(4, 4, 1), (4, 3.5, 0), (4, "5", 1), (1, -1, 0), (1, 1, 1), (1, 17, 1), (1, 0, 0)],
)
def test_a_threshold_makes_clicks_of_ratings_counts_and_signs(threshold, value, label):
    assert read_label(value, schema(label_threshold=threshold)) == label


def test_labels_that_are_names_are_clicks_where_they_are_listed():
    events = schema(label_positive=("purchase", "cart", "1"))
    values = ["purchase", "view", "cart", 1, 1.0, 0, True]
    assert [read_label(value, events) for value in values] == [1, 0, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("value", [None, "", math.nan, "NA"])
def test_an_event_without_a_label_is_no_click_only_where_that_was_said(value):
    assert math.isnan(read_label(value, schema()))
    assert read_label(value, schema(missing_label="negative")) == 0
    assert read_label(value, schema(missing_label="negative", label_positive=("x",))) == 0


MOMENT = datetime(2026, 11, 28, 10, 0, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("form", "value"),
    [
        ("s", 1795860030),
        ("s", 1795860030.0),
        ("s", "1795860030"),
        ("ms", 1795860030000),
        ("us", 1795860030000000),
        ("ns", 1795860030000000000),
        ("iso", "2026-11-28T10:00:30Z"),
        ("iso", "2026-11-28 10:00:30"),
        ("iso", "2026-11-28 10:00:30 UTC"),
        ("iso", "2026-11-28T12:00:30+02:00"),
        ("iso", "2026-11-28 04:30:30.000-0530"),
        ("%m/%d/%Y %I:%M:%S %p", "11/28/2026 10:00:30 AM"),
        ("%Y%m%d%H%M%S", 20261128100030),
    ],
)
def test_one_moment_is_read_from_every_form(form, value):
    assert read_time(value, schema(timestamp_format=form)) == MOMENT.timestamp()


@given(
    st.lists(st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)), min_size=1, max_size=5),
    st.integers(-14 * 60, 14 * 60),
    st.sampled_from(["seconds", "milliseconds", "microseconds"]),
)
def test_times_of_any_zone_are_read_as_the_standard_library_reads_them(moments, minutes, digits):
    zone = timezone(timedelta(minutes=minutes))
    texts = [moment.replace(tzinfo=zone).isoformat(timespec=digits) for moment in moments]
    expected = [datetime.fromisoformat(text).timestamp() for text in texts]
    # One of another form makes all take the way of the regular expression.
    for column in (texts, [*texts, "2026-11-28 10:00:30 UTC"]):
        found = parse_times(pa.array(column), "iso")[: len(texts)]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("form", "value"),
    [
        ("ms", 10**18),
        ("s", 1795860030000),
        ("iso", "soon"),
        ("iso", 5),
        ("ms", "2026-11-28"),
        ("ms", True),
    ],
)
def test_a_time_of_another_form_is_refused_and_not_read_as_the_year_55840(form, value):
    with pytest.raises(FeatureError, match="ts: must be a "):
        read_time(value, schema(timestamp_format=form))


def test_an_id_is_one_value_however_it_is_written():
    values = [4711, 4711.0, "4711", "4711.0"]
    assert [as_name(value, "item") for value in values] == ["4711", "4711", "4711", "4711.0"]
    rows = (
        Encoder(NAMES, rows=2**20)
        .encode(rows_to_batch([{"item": value} for value in values], NAMES))
        .rows_BF
    )
    assert len(set(rows[:, 0].tolist())) == 1


@pytest.mark.parametrize("text", ["4711.0a", "1.0.0", ".0", "-.0", "a.0", "4711.00", "4711."])
def test_other_strings_that_end_alike_are_names_of_their_own(text):
    both = rows_to_batch(
        [{"item": text}, {"item": text.removesuffix("0").removesuffix(".")}], NAMES
    )
    rows = Encoder(NAMES, rows=2**20).encode(both).rows_BF
    assert rows[0, 0] != rows[1, 0] or text.removesuffix("0").removesuffix(".") == text


def test_columns_may_be_paths_into_nested_objects():
    nested = Schema(categorical=("user.id", "item"), numeric=("user.age",), timestamp=None)
    rows = [
        {"user": {"id": 7, "age": 30}, "item": "a"},
        {"user.id": "7", "item": "b"},
        {"user": None},
    ]
    batch = rows_to_batch(rows, nested, unknown_columns="ignore")
    assert batch.categorical[0].to_pylist() == ["7", "7", None]
    np.testing.assert_array_equal(batch.numerics_BN[:, 0], [30, np.nan, np.nan])
    with pytest.raises(FeatureError, match="user.name: must be a column of the schema, got 'ann'"):
        rows_to_batch([{"user": {"name": "ann"}}], nested)


def test_text_that_is_no_number_is_missing_and_told_or_an_error():
    events = Schema(categorical=(), numeric=("price",), timestamp=None)
    rows = [{"price": "1.5"}, {"price": "cheap"}, {"price": "dear"}, {"price": 2}]
    odd: list[Odd] = []
    batch = rows_to_batch(rows, events, odd=odd)
    np.testing.assert_array_equal(batch.numerics_BN[:, 0], [1.5, np.nan, np.nan, 2])
    assert odd == [Odd("price", 2, "'cheap'")]
    with pytest.raises(FeatureError, match="price: must be a number, got 'cheap'"):
        rows_to_batch(rows, events)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"timestamp_format": "minutes"}, "timestamp_format"),
        ({"label_positive": ("a",), "label_threshold": 1.0}, "label_positive"),
    ],
)
def test_settings_of_the_schema_that_contradict_are_refused(settings, field):
    with pytest.raises(RuleError) as raised:
        schema(**settings)
    assert raised.value.field == field
