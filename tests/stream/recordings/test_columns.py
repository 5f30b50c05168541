from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from niwaki.stream.errors import ConfigError
from niwaki.stream.recordings.columns import Facts, backwards
from niwaki.stream.recordings.samples import Sample

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)
NOON_S = int(NOON.timestamp())


def facts(values: list, name: str = "x") -> Facts:
    return Facts(name, Sample.of_objects([{name: value} for value in values]).columns[name])


def of_arrow(values: list, kind: pa.DataType, name: str = "x") -> Facts:
    return Facts(name, Sample.of_table(pa.table({name: pa.array(values, kind)})).columns[name])


@pytest.mark.parametrize(
    "values, kind",
    [
        ([1, 2], "integers"),
        (["1", "2", None], "integers"),
        (["4711.0", "NaN"], "integers"),
        ([4711.0, None], "integers"),
        ([Decimal("3.00")], "integers"),
        (["-1", "+1"], "integers"),
        ([1.5, 2], "numbers"),
        (["1.5", "2", "NA"], "numbers"),
        (["1,234.5", "$5", "12 %", "-€3"], "numbers"),
        (["72,3", "1.234,5"], "numbers"),
        (["1.5"] * 9 + ["x"], "numbers"),
        (["1.5"] * 8 + ["x", "z"], "strings"),
        ([True, False], "booleans"),
        ([True], "booleans"),
        (["True", "FALSE"], "booleans"),
        (["yes", "no"], "booleans"),
        (["y", "n"], "booleans"),
        (["f"], "strings"),
        (["no", "no"], "strings"),
        (["f", "m"], "strings"),
        (["f", "yes"], "strings"),
        (["NA", "null", None], "strings"),
        ([None, None], "always missing"),
        ([float("nan")], "always missing"),
        (["2026-11-28 10:00:00", "2026-11-28T10:00:01.5+01:00"], "times"),
        (["2026-11-28"], "times"),
        (["11/28/2026 9:05:00 AM"], "times"),
        (["1950-03-01", "1960-01-01"], "strings"),
        ([NOON_S], "integers"),
        ([["a"], None], "lists"),
        (["a", ["a"]], "lists"),
        ([1, "a", "b"], "strings"),
        (["a\ud800", "b"], "strings"),
    ],
)
def test_a_column_is_of_the_kind_of_its_values(values, kind):
    assert facts(values).kind == kind


@pytest.mark.parametrize(
    "values, kind, found",
    [
        ([1, None], pa.uint8(), "integers"),
        ([1.0, 2.0], pa.float16(), "integers"),
        ([1.1, None], pa.float32(), "numbers"),
        ([Decimal("1.5")], pa.decimal128(5, 2), "numbers"),
        ([True], pa.bool_(), "booleans"),
        (["a", None], pa.large_string(), "strings"),
        (["a"], pa.string_view(), "strings"),
        ([b"1", b"2"], pa.binary(), "integers"),
        (["7", "8"], pa.dictionary(pa.int8(), pa.string()), "integers"),
        ([NOON], pa.timestamp("ns", "Asia/Tokyo"), "times"),
        ([NOON], pa.timestamp("s"), "times"),
        ([date(2026, 11, 28)], pa.date32(), "times"),
        ([date(2026, 11, 28)], pa.date64(), "times"),
        ([None], pa.null(), "always missing"),
        ([b"\xff"], pa.binary(), "bytes that are no text"),
        ([timedelta(1)], pa.duration("s"), "values of Arrow's type duration[s]"),
        ([b"abcd"], pa.binary(4), "values of Arrow's type fixed_size_binary[4]"),
        ([[1, 2]], pa.list_(pa.int8()), "lists"),
        ([[1, 2]], pa.list_view(pa.int8()), "lists"),
        ([[("a", 1)]], pa.map_(pa.string(), pa.int8()), "maps"),
    ],
)
def test_a_column_of_arrow_is_of_the_kind_of_its_values(values, kind, found):
    assert of_arrow(values, kind).kind == found


@pytest.mark.parametrize(
    "values, form",
    [
        ([NOON_S], "s"),
        ([NOON_S + 0.5], "s"),
        ([str(NOON_S)], "s"),
        ([NOON_S * 10**3], "ms"),
        ([str(NOON_S * 10**6)], "us"),
        ([NOON_S * 10**9], "ns"),
        (["2026-11-28T12:00:00Z"], "iso"),
        (["2026-11-28 12:00:00 UTC"], "iso"),
        (["2026-11-28T14:00:00+02:00", "2026-11-28 12:00"], "iso"),
        (["11/28/2026 12:00:00 PM"], "%m/%d/%Y %I:%M:%S %p"),
        (["28.11.2026 12:00"], "%d.%m.%Y %H:%M"),
        ([26112812], "%y%m%d%H"),
        (["20261128120000"], "%Y%m%d%H%M%S"),
        (["28/Nov/2026:12:00:00"], "%d/%b/%Y:%H:%M:%S"),
    ],
)
def test_the_form_of_times_is_seen_in_their_values(values, form):
    found = facts([*values, None]).time
    assert found is not None and found.form == form
    np.testing.assert_allclose(found.times_s_B[:-1], NOON_S, atol=1)
    assert np.isnan(found.times_s_B[-1])


@pytest.mark.parametrize("values", [[0, 5, 23], ["a"], [1950], [2**80], [[1]], [None], [4e9 * 2]])
def test_what_is_no_time_since_1990_has_no_form_of_times(values):
    assert facts(values).time is None


def test_one_value_in_a_hundred_may_be_no_time():
    good = [str(NOON_S + at) for at in range(99)]
    assert facts([*good, "soon"]).time.form == "s"
    assert facts([*good[:-1], "soon", "later"]).time is None
    assert facts(["2026-11-28"] * 99 + ["soon"]).time.form == "iso"


def test_days_and_months_are_told_apart_by_the_order_of_events():
    days = [f"0{1 + at // 20}/{1 + at % 20:02}/2026" for at in range(60)]
    assert facts(days).time.form == "%m/%d/%Y"
    swapped = ["/".join([d, m, y]) for m, d, y in (text.split("/") for text in days)]
    assert facts(swapped).time.form == "%d/%m/%Y"


def test_eight_digits_are_a_date_unless_the_name_says_hour():
    values = ["20111203", "20111204"]
    assert facts(values, "day").time.form == "%Y%m%d"
    assert facts(values, "hour").time.form == "%y%m%d%H"


def test_a_value_is_one_whatever_its_type():
    mixed = facts([12, "12", 12.0, Decimal(12)])
    assert (mixed.distinct, mixed.examples) == (1, ["12"])
    assert facts([True, "true"]).distinct == 1
    assert of_arrow([0.1, 0.1], pa.float32()).examples == ["0.1"]


def test_words_for_missing_are_values_of_names_and_not_of_numbers():
    names = facts(["NA", "DE", None])
    assert (names.missing, names.distinct, names.known) == (1, 2, 2)
    numbers = facts(["NA", "1.5", None, "-"])
    assert (numbers.missing, numbers.distinct, numbers.known) == (3, 1, 1)
    assert (facts([["a"], None]).missing, facts([["a"], None]).distinct) == (1, 0)


def test_the_mark_before_decimals_is_the_one_that_makes_numbers():
    assert facts(["72,3", "1,5"]).decimal == ","
    assert facts(["1,234", "1,234.5"]).decimal == "."
    assert facts(["a,b", "c"]).decimal == "."
    assert facts(["72,3"]).numbers == {72.3: 1}
    assert facts(["1,5"]).decimals == {","} and facts(["1.5"]).decimals == {"."}
    assert facts([1.5]).decimals == facts(["15"]).decimals == frozenset()


def test_zeros_in_front_and_odd_and_decorated_values_are_seen():
    assert facts(["007", "8"]).leading_zeros and not facts(["0", "10", "0.5"]).leading_zeros
    assert facts(["1"] * 20 + ["x", "x"]).odd == (2, "x")
    assert facts(["1", "$2"]).decorated == "$2" and facts(["1", "2"]).decorated == ""


def test_a_column_that_counts_rows_increases_and_lacks_nothing():
    counting = facts(list(range(5, 60)))
    assert counting.increasing and counting.different
    assert facts(["1.0", "2.0"]).increasing
    assert not facts([1, 1, 2]).increasing and not facts([1, 2, None]).increasing
    assert not facts([1, 2, None]).different and not facts([3]).different


def test_times_that_go_backwards_are_counted_without_missing_ones():
    assert backwards(np.array([1.0, 2, np.nan, 1, 5])) == pytest.approx(1 / 3)
    assert backwards(np.array([1.0])) == backwards(np.array([np.nan])) == 0


NESTED = [
    {"a": 1, "user": {"id": "u1", "geo": {"city": "x"}}, "tags": []},
    {"a": 2, "user": None, "tags": ["t"]},
    {"user": {"id": "u2", "geo": None}},
]


def test_objects_are_columns_of_their_paths_in_json_as_in_arrow():
    expected = {
        "a": [1, 2, None],
        "user.id": ["u1", None, "u2"],
        "user.geo.city": ["x", None, None],
    }
    for sample in (Sample.of_objects(NESTED), Sample.of_table(pa.Table.from_pylist(NESTED))):
        assert list(sample.columns) == [*expected, "tags"]
        assert {name: sample.columns[name] for name in expected} == expected
        assert Facts("tags", sample.columns["tags"]).kind == "lists"


@pytest.mark.parametrize("flipped", [False, True])
def test_a_column_of_that_very_name_goes_before_a_path(flipped):
    row = {"user.id": "own", "user": {"id": "nested"}}
    row = dict(reversed(row.items())) if flipped else row
    for sample in (Sample.of_objects([row, row]), Sample.of_table(pa.Table.from_pylist([row] * 2))):
        assert sample.columns == {"user.id": ["own", "own"]}


def test_objects_that_are_too_deep_are_one_value():
    deep: dict = {"x": 1}
    for _ in range(12):
        deep = {"d": deep}
    for sample in (Sample.of_objects([deep]), Sample.of_table(pa.Table.from_pylist([deep]))):
        ((name, values),) = sample.columns.items()
        assert Facts(name, values).kind == "objects"


def test_two_columns_of_one_name_are_said():
    table = pa.table([pa.array([1]), pa.array([2])], ["user", "user"])
    with pytest.raises(ConfigError, match="user: there are two columns of that name"):
        Sample.of_table(table)


def test_messages_may_be_json_or_arrow_or_broken():
    sink = pa.BufferOutputStream()
    table = pa.table({"a": [3, 4], "when": pa.array([NOON, NOON], pa.timestamp("us", "UTC"))})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    arrow = sink.getvalue().to_pybytes()
    sample = Sample.of_messages([b'{"a": 1}', None, b"nonsense", b"[1]", arrow, b'{"a": NaN}'])
    assert (sample.rows, list(sample.columns)) == (4, ["a", "when"])
    assert [value == value and value for value in sample.columns["a"]] == [3, 4, 1, False]
    assert Sample.of_messages([arrow[:-40], b"\xff"]).rows == 0


def test_rows_without_an_object_are_not_rows_of_its_columns():
    sample = Sample.of_objects([{"after": {"a": 1, "b": None}}, {"after": None}, {"op": "d"}])
    inner = sample.within("after")
    assert (inner.rows, inner.columns) == (1, {"a": [1], "b": [None]})
    assert sample.within("nothing").columns == {}
