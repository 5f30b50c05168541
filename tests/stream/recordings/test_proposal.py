import string
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from niwaki.model.features.schema import Schema
from niwaki.stream.errors import ConfigError
from niwaki.stream.events.tables import table_to_batch
from niwaki.stream.recordings.proposal import Asked, Sample, propose
from tests.support.proposals import (
    BEGIN_S,
    ITEMS,
    LABELS,
    PRICES,
    ROWS,
    USERS,
    column,
    cycle,
    noted,
    proposal,
)


def role(name: str, values: list) -> str:
    return column(proposal(**{name: values}), name).role


@pytest.mark.parametrize("name", ["ts", "Event_Time", "created_at", "datetime", "viewTimestamp"])
def test_the_event_time_is_found_by_its_name_and_its_span_is_told(name):
    found = proposal(**{name: [str((BEGIN_S + at) * 10**6) for at in range(ROWS)]})
    assert (found.schema.timestamp, found.schema.timestamp_format) == (name, "us")
    assert noted(found, "microseconds since 1970, from 2023-11-14 22:13:20 to 2023-11-14 22:19:59")


def test_the_only_column_of_times_is_the_event_time_whatever_it_is_called():
    iso = [datetime.fromtimestamp(BEGIN_S + at, UTC).isoformat() for at in range(ROWS)]
    assert proposal(when=iso).schema.timestamp == "when"
    running = [(BEGIN_S + at) * 1000 for at in range(ROWS)]
    assert proposal(occurred=running).schema.timestamp == "occurred"
    assert proposal(occurred=running[::-1]).schema.timestamp is None
    assert proposal(item_id=running).schema.timestamp is None


def test_small_integers_are_no_times_and_that_is_said():
    found = proposal(hour=cycle(*range(24)))
    assert (found.schema.timestamp, "hour" in found.schema.categorical) == (None, True)
    assert noted(found, "hour: 0 to 23 are no times since 1970")
    assert noted(found, "no column is the event time; --timestamp names one")


def test_further_times_are_ignored_whatever_their_form():
    running = [BEGIN_S + at for at in range(ROWS)]
    iso = ["2026-11-28 10:00"] * ROWS
    found = proposal(ts=running, signup_time=[at - 10**7 for at in running], day=iso)
    assert (found.schema.timestamp, found.schema.ignore) == ("ts", ("signup_time", "day"))


def test_times_that_go_backwards_are_told_with_their_share():
    found = proposal(ts=[BEGIN_S + at % 2 for at in range(ROWS)])
    assert noted(found, "ts: 49.9% of the events are earlier than the one before them")


RANDOM = np.random.default_rng(6)
AMOUNTS = RANDOM.integers(100, 9000, ROWS).tolist()
COUNTS = np.minimum(RANDOM.geometric(0.2, ROWS) - 1, 60)
COUNTS[0] = 60


@pytest.mark.parametrize(
    "name, values, expected",
    [
        ("item", ITEMS, "categorical"),
        ("item", [float(one) for one in ITEMS[1:]] + [None], "categorical"),
        ("price", AMOUNTS, "numeric"),
        ("userAge", AMOUNTS, "numeric"),
        ("price_id", AMOUNTS, "categorical"),
        ("priceless", AMOUNTS, "categorical"),
        ("stars", cycle(1, 2, 3), "categorical"),
        ("num_items", cycle(1, 2, 3), "categorical"),
        ("x", [one - 5000 for one in AMOUNTS], "numeric"),
        ("x", cycle(-1, *range(5, 35)), "categorical"),
        ("x", COUNTS.tolist(), "numeric"),
        ("item", COUNTS.tolist(), "categorical"),
        ("price", [f"{one:05}" for one in AMOUNTS], "categorical"),
        ("x", PRICES, "numeric"),
        ("x", [f"${one}" for one in PRICES], "numeric"),
        ("x", cycle(True, False), "numeric"),
        ("x", cycle("yes", "no"), "numeric"),
        ("gender", ["f"] * ROWS, "categorical"),
        ("x", ["a", "b", *AMOUNTS[2:]], "categorical"),
        ("price", ["a", "b", *AMOUNTS[2:]], "numeric"),
        ("city", cycle("x", "y", None), "categorical"),
        ("text", [f"{at} " + "word " * 12 for at in range(ROWS)], "ignored"),
        ("text", cycle("a long text that comes again and again, in many events"), "categorical"),
        ("nothing", [None] * ROWS, "ignored"),
        ("", AMOUNTS, "ignored"),
        ("a\ud800", AMOUNTS, "ignored"),
        ("title", [f"title {at}" for at in range(ROWS)], "categorical"),
        ("row", list(range(ROWS)), "ignored"),
        ("sequence", list(range(ROWS)), "ignored"),
        ("price", list(range(ROWS)), "numeric"),
        ("user_id", list(range(ROWS)), "categorical"),
        ("id", [f"e{at}" for at in range(ROWS)], "ignored"),
        ("Unnamed: 0.1", RANDOM.permutation(ROWS).tolist(), "ignored"),
        ("__index_level_0__", list(range(ROWS)), "ignored"),
        ("item", RANDOM.permutation(ROWS).tolist(), "categorical"),
    ],
)
def test_the_role_of_a_column_is_seen_in_its_name_and_its_values(name, values, expected):
    assert role(name, values) == expected


def test_what_can_not_be_named_or_read_is_told_and_is_not_in_the_schema():
    rows = [{"label": 1, "user": u, "": 1, "a\ud800": 1, "tags": ["t"]} for u in USERS]
    found = propose(Sample.of_objects(rows), Asked())
    assert (found.schema.lists, found.schema.ignore) == (("tags",), ())
    assert noted(found, "'' is ignored: it has no name")


def test_prefixes_decide_only_where_all_columns_have_them():
    found = propose(
        Sample(
            ROWS,
            {
                "label": LABELS,
                "c_price": PRICES,
                "c_tags": cycle("a|b", "b", "a"),
                "n_x": ITEMS,
                "c_list": cycle(["a"], []),
                "l_y": cycle("a", "b"),
                "l_z": cycle("a|b", "b", "c|a", "c"),
            },
        ),
        Asked(),
    )
    assert (found.schema.categorical, found.schema.numeric) == (("c_price", "c_tags"), ("n_x",))
    assert (found.schema.lists, found.schema.ignore) == (("c_list", "l_z"), ("l_y",))
    assert noted(found, "its name begins with l_, and its values are no lists; --categorical l_y")
    mixed = proposal(c_price=PRICES, l_x=ITEMS)
    assert (mixed.schema.categorical, mixed.schema.numeric) == (("user", "l_x"), ("c_price",))


def test_what_is_asked_for_goes_before_what_is_seen():
    asked = Asked(
        label="z", timestamp="", categorical=("price",), numeric=("item",), ignore=("user",)
    )
    found = proposal(z=LABELS, price=PRICES, item=ITEMS, ts=cycle(BEGIN_S), asked=asked)
    expected = Schema(
        label="z",
        timestamp=None,
        categorical=("label", "price"),
        numeric=("item",),
        ignore=("user", "ts"),
    )
    assert found.schema == expected
    assert column(found, "price").why == "--categorical asks for it"


@pytest.mark.parametrize(
    "asked, text",
    [
        (Asked(label="lable"), "--label: must be .* nearest is 'label', got 'lable'"),
        (Asked(timestamp="usr"), "--timestamp: must be .* nearest is 'user'"),
        (Asked(timestamp="user"), "--timestamp: must be a column of times since 1990; it has u"),
        (Asked(ignore=("prize",)), "--ignore: must be .* nearest is 'price'"),
        (Asked(numeric=("user",), ignore=("user",)), "--ignore: asks for a second role"),
        (Asked(numeric=("tags",)), "--numeric: takes no lists; --lists does, got 'tags'"),
        (Asked(lists=("tgs",)), "--lists: must be .* nearest is 'tags'"),
        (Asked(lists=("tags",), ignore=("tags",)), "--ignore: asks for a second role"),
        (Asked(list_separator=""), "--list-separator: must not be empty"),
        (Asked(shares=(("tgs", "user"),)), "--shares: must be .* nearest is 'tags'"),
        (
            Asked(shares=(("price", "user"),)),
            "--shares: takes list and categorical columns, got 'p",
        ),
        (Asked(shares=(("tags", "price"),)), "--shares: 'tags' takes a categorical column with"),
        (
            Asked(weight="user"),
            "--weight: must be a column of numbers >= 0 in every event; it has u",
        ),
        (Asked(sampling_ratio="price"), "--sampling-ratio: must be a column of numbers in .0, 1."),
        (Asked(label="tags"), "tags: the label is a column of lists"),
        (Asked(envelope="pay"), "--envelope: must be the path of an object; the nearest is o.p"),
        (
            Asked(ignore=("user", "price", "tags", "o.p.q")),
            "have no column to learn from beside 'label'",
        ),
    ],
)
def test_what_is_asked_for_in_vain_is_named_with_the_nearest(asked, text):
    rows = [
        {"label": label, "user": user, "price": price, "tags": [], "o": {"p": {"q": 1.5}}}
        for label, user, price in zip(LABELS, USERS, PRICES, strict=True)
    ]
    with pytest.raises(ConfigError, match=text):
        propose(Sample.of_objects(rows), asked)


def test_a_column_that_gives_the_label_away_is_a_warning():
    leak = "gives the label away: AUC 1.000"
    names = ["bought" if one else "not" for one in LABELS]
    paid = [one or None for one in (p * label for p, label in zip(PRICES, LABELS, strict=True))]
    noise = np.random.default_rng(7).uniform(0, 0.9, ROWS)
    shifted = (np.array(LABELS) + noise).tolist()
    comma = [f"{one:.3f}".replace(".", ",") for one in shifted]
    for values in (names, paid, shifted, [-one for one in shifted], comma):
        found = proposal(x=values)
        assert any(leak in warning for warning in column(found, "x").warnings)
        assert noted(found, leak)
    for values in (USERS, PRICES, [f"v{at}" for at in range(ROWS)], cycle(1.5, None)):
        assert not noted(proposal(x=values), "gives the label away")


@pytest.mark.parametrize(
    "values, text",
    [
        (["a"] * ROWS, "it has one value only"),
        (cycle("a", "b", None, None, None), "60% of the values are missing"),
        ([f"v{at}" for at in range(ROWS)], f"nearly every one of the first {ROWS:,} values is new"),
        (cycle("$1.5", "2.5", "7"), "its numbers are decorated: '$1.5' is read"),
        (cycle(1, 2, 3, "b", "c"), "60% of the values are numbers, others are text like 'b'"),
    ],
)
def test_a_column_with_little_to_learn_or_of_several_kinds_is_a_warning(values, text):
    found = proposal(x=values)
    assert any(text in warning for warning in column(found, "x").warnings)
    assert noted(found, f"x: {text}")


def test_decimal_commas_are_read_and_points_beside_them_are_told():
    commas = [f"{price:.2f}".replace(".", ",") for price in PRICES]
    found = proposal(a=commas, b=commas, score=PRICES)
    assert (found.decimal, found.schema.numeric) == (",", ("a", "b", "score"))
    found = proposal(a=commas, b=commas, score=[f"{price:.2f}" for price in PRICES])
    assert found.decimal == ","
    assert noted(found, "score: its decimals follow a point, those of others a comma")


def test_a_report_of_a_column_says_what_it_is_and_what_it_is_used_as():
    found = proposal(item=[None, *ITEMS[1:]])
    report = column(found, "item").as_dict()
    assert msgspec.json.decode(msgspec.json.encode(report)) == report
    assert (report["kind"], report["missing"], report["role"]) == ("integers", 1, "categorical")
    assert (report["distinct"], len(report["examples"])) == (len(set(ITEMS[1:])), 3)


def test_without_events_nothing_is_proposed():
    with pytest.raises(ConfigError, match="events: there are none"):
        propose(Sample.of_objects([]), Asked())


@pytest.mark.parametrize(
    "value, kind",
    [
        (3, pa.uint64()),
        (1.5, pa.float16()),
        (Decimal("1.5"), pa.decimal256(40, 2)),
        (b"a", pa.large_binary()),
        (b"\xff", pa.binary()),
        (b"ab", pa.binary(2)),
        ("a", pa.string_view()),
        ("a", pa.dictionary(pa.int32(), pa.string())),
        (time(10), pa.time32("s")),
        (timedelta(1), pa.duration("us")),
        (date(1950, 1, 1), pa.date32()),
        (datetime(1950, 1, 1), pa.timestamp("ns")),
        ([1], pa.list_(pa.int8(), 1)),
        ({"b": 1, "t": time(10)}, pa.struct([("b", pa.int8()), ("t", pa.time64("us"))])),
        ({}, pa.struct([])),
    ],
)
def test_whatever_type_of_arrow_a_column_has_its_table_can_be_read(value, kind):
    table = pa.table({"label": LABELS, "user": USERS, "x": pa.array([value] * ROWS, kind)})
    found = propose(Sample.of_table(table), Asked())
    events = table_to_batch(table, found.schema, unknown_columns="ignore")
    assert (len(events.batch), events.rejects) == (ROWS, [])


TYPES = {
    pa.int64(): st.integers(-5, 30) | st.integers(0, 10**6),
    pa.float64(): st.floats(-1e6, 1e6),
    pa.float32(): st.floats(-1000, 1000, width=32),
    pa.bool_(): st.booleans(),
    pa.string(): st.text(string.ascii_letters + string.digits, min_size=1, max_size=4),
    pa.timestamp("us"): st.datetimes(datetime(1960, 1, 1), datetime(2030, 1, 1)),
    pa.decimal128(8, 2): st.decimals(-9999, 9999, places=2),
}
NAMES = st.sampled_from("a b user item_id price n_views c_x ts hour text id".split())


@st.composite
def typed_tables(draw) -> pa.Table:
    """Columns of several types, with missing values."""
    rows = draw(st.integers(1, 60))
    columns = {"label": pa.array(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))}
    for name in draw(st.lists(NAMES, min_size=1, max_size=5, unique=True)):
        kind = draw(st.sampled_from(list(TYPES)))
        values = st.lists(st.none() | TYPES[kind], min_size=rows, max_size=rows)
        columns[name] = pa.array(draw(values), kind)
    return pa.table(columns)


@given(typed_tables())
def test_types_texts_and_objects_of_one_table_give_one_schema_and_it_can_be_read(table):
    texts = pa.table({name: table[name].cast(pa.string()) for name in table.column_names})
    objects = [
        {k: v.isoformat() if isinstance(v, datetime) else v for k, v in row.items()}
        for row in table.cast(plain(table.schema)).to_pylist()
    ]
    forms = (Sample.of_table(table), Sample.of_table(texts), Sample.of_objects(objects))
    found = [attempt(sample) for sample in forms]
    assert found[0] == found[1] == found[2]
    if isinstance(found[0], Schema):
        events = table_to_batch(table, found[0], unknown_columns="ignore")
        assert len(events.batch) + len(events.rejects) == len(table)


def plain(schema: pa.Schema) -> pa.Schema:
    """The types that JSON has: decimals become floats."""
    types = [pa.float64() if pa.types.is_decimal(field.type) else field.type for field in schema]
    return pa.schema(list(zip(schema.names, types, strict=True)))


def attempt(sample: Sample) -> Schema | str:
    try:
        return propose(sample, Asked()).schema
    except ConfigError as error:
        return str(error)
