import json
import random

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from niwaki.stream.errors import ConfigError
from niwaki.stream.events.tables import table_to_batch
from niwaki.stream.recordings.proposal import Asked, Proposal, Sample, propose
from tests.support.proposals import LABELS, NOTHING, ROWS, USERS, column, cycle, noted, proposal

RANDOM = random.Random(3)
GENRES = "Action Adventure Comedy Crime Drama Fantasy Horror Romance Sci-Fi Thriller War".split()
SETS = [sorted(RANDOM.sample(GENRES, RANDOM.choice([1, 1, 2, 3]))) for _ in range(ROWS)]


PAIRS = list(zip(LABELS, USERS, strict=True))


def ids(*, least: int, most: int) -> list[list[str]]:
    """Lists of ids of 60 things, some of them frequent."""
    counts = [RANDOM.randint(least, most) for _ in range(ROWS)]
    return [[f"N{min(int(RANDOM.paretovariate(0.8)), 60)}" for _ in range(n)] for n in counts]


HISTORY = ids(least=1, most=12)
ITEMS = [one[0] for one in ids(least=1, most=1)]


def of_rows(asked: Asked = NOTHING, **columns: list) -> Proposal:
    """The proposal for JSON objects."""
    names = ["label", "user", *columns]
    rows = zip(LABELS, USERS, *columns.values(), strict=True)
    return propose(Sample.of_objects([dict(zip(names, row, strict=True)) for row in rows]), asked)


def joined(separator: str, lists: list[list[str]] = SETS) -> list[str]:
    return [separator.join(one) for one in lists]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (SETS, "lists of strings"),
        ([[1, 2, None], [], None, [True]] * (ROWS // 4), "lists of strings"),
        ([[4711.0, 2], []] * (ROWS // 2), "lists of integers"),
        ([{"a": 1, "b": 0.5}, {}] * (ROWS // 2), "maps of strings to weights"),
        ([json.dumps(one) for one in SETS], "lists of strings"),
        ([repr(one) for one in SETS], "lists of strings"),
        ([repr(one).replace(",", "") for one in SETS], "lists of strings"),
        (["[1 2  3]", "[2]", "[]", None] * (ROWS // 4), "lists of integers"),
        ([json.dumps({name: 2 for name in one}) for one in SETS], "maps of strings to weights"),
    ],
)
def test_lists_and_maps_of_plain_values_are_lists_however_they_are_written(values, kind):
    found = proposal(x=values)
    assert (found.schema.lists, column(found, "x").kind) == (("x",), kind)
    assert noted(found, "x: list, ")


@pytest.mark.parametrize(
    "kind", [pa.list_, pa.large_list, pa.list_view, lambda of: pa.list_(of, 1)]
)
@pytest.mark.parametrize(
    ("values", "of"), [(["a"], pa.dictionary(pa.int8(), pa.string())), ([1], pa.uint16())]
)
def test_lists_of_arrow_are_lists_of_their_values(kind, values, of):
    if kind is pa.list_view and pa.types.is_dictionary(of):
        of = pa.large_string()
    array = pa.array([values, None] * 30, kind(of) if kind(pa.int8()) else None)
    found = propose(Sample.of_table(pa.table({"label": [0, 1] * 30, "x": array})), Asked())
    report = column(found, "x")
    assert (found.schema.lists, report.missing, report.distinct) == (("x",), 30, 1)
    assert report.examples == [f"[{values[0]}]"]


@pytest.mark.parametrize(("broken", "kept"), [(1, True), (ROWS // 2, False)])
def test_some_objects_that_are_no_maps_leave_the_others_maps(broken, kept):
    maps = [dict.fromkeys(one, 2) for one in SETS]
    for at in range(broken):
        maps[7 * at % ROWS] = {"Drama": -1}
    found = of_rows(tags=maps)
    assert ("tags" in found.schema.lists) == kept


def test_maps_of_arrow_are_maps():
    array = pa.array([[("a", 1)], None] * 30, pa.map_(pa.string(), pa.float32()))
    found = propose(Sample.of_table(pa.table({"label": [0, 1] * 30, "x": array})), Asked())
    assert column(found, "x").kind == "maps of strings to weights"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([[{"id": 1, "name": "Drama"}]] * ROWS, "lists of objects are not read; a list of strings"),
        ([[["a"], ["b"]]] * ROWS, "lists of lists are not read"),
        (['[{"id": 1, "name": "Drama"}]'] * ROWS, "lists of objects are not read"),
        (["[{'id': 1, 'name': 'Drama'}]"] * ROWS, "lists of objects are not read"),
        (['{"a": "b"}', '{"a": "c"}'] * (ROWS // 2), "maps to values that are no weights"),
        ([[0.25, -1.5], [0.5, 3]] * (ROWS // 2), "vectors of numbers, such as embeddings"),
        ([[], []] * (ROWS // 2), "all lists are empty"),
    ],
)
def test_lists_that_can_not_be_read_are_ignored_with_the_way_on(values, reason):
    found = proposal(x=values)
    assert (found.schema.lists, found.schema.ignore) == ((), ("x",))
    assert noted(found, f"'x' is ignored: {reason}")


def test_lists_that_are_empty_so_far_stay_where_the_name_says_what_they_are():
    found = proposal(tags=[[] for _ in LABELS])
    assert found.schema.lists == ("tags",)
    assert column(found, "tags").warnings == ["all its lists are empty"]


@pytest.mark.parametrize(
    ("name", "values", "separator"),
    [
        ("x", joined("|"), "|"),
        ("x", joined("; "), ";"),
        ("x", joined(", ", [one * 2 for one in SETS]), ","),
        ("x", joined(" ", HISTORY), " "),
        ("genres", cycle("Action", "Sci-Fi|Drama|War", "Drama|Comedy", "War"), "|"),
        ("item_ids", cycle("7", "7,12", "12,7,3", "3"), ","),
    ],
)
def test_text_of_values_that_recur_is_split_at_its_separator(name, values, separator):
    found = proposal(**{name: values})
    assert (found.schema.lists, found.schema.list_separator) == ((name,), separator)
    assert column(found, name).why == f"text, split at {separator!r}"


WORDS = "the of and good bad lord ring war star night day love king queen".split()
LAST = [f"{a}{b}son" for a in "ABCDEFGHIJ" for b in "aeiou"] + ["James", "Scott", "Lee"]
FIRST = "James John Mary Ann Thomas Scott Lee Paul Peter Anna Ruth Jo Kim Eva".split()


def some(*values: str) -> list[str]:
    return RANDOM.choices(values, k=ROWS)


def made(form: str, *parts: list[str]) -> list[str]:
    return [form.format(*(RANDOM.choice(part) for part in parts)) for _ in range(ROWS)]


@pytest.mark.parametrize(
    "values",
    [
        made("{} {} {} {}", WORDS, WORDS, WORDS, WORDS),
        made("{} {} {}, {} {}", WORDS, WORDS, WORDS, WORDS, WORDS),
        made("{} {}, The", WORDS, WORDS),
        made("{}, {}", LAST, FIRST),
        made("{}{}, Inc.", LAST, FIRST),
        some("Paris, France", "Lyon, France", "Rome, Italy", "Milan, Italy", "Austin, TX, USA"),
        [f"{a}|{a}{b}|{a}{b}{c}" for a, b, c in made("{}{}{}", [*"XYZ"], [*"pqr"], [*"klm"])],
        some("Mozilla/5.0 (X11; Linux x86_64)", "Mozilla/5.0 (iPhone; CPU iPhone OS 13_2)"),
        made("http://shop.example/a;y={};z={}", [*"123"], [*"456"]),
        made("4{}.25,2.{}5", [*"123"], [*"456"]),
        made("{},{},{}", [*"01"], [*"01"], [*"01"]),
        made("Mon, {} Jan 2026", [*"123456789"]),
        made("N{}-{} N{}-{}", [*"123456789"], [*"01"], [*"123456789"], [*"01"]),
        made("2026-11-2{} 10:0{}", [*"0123"], [*"456"]),
        made("{}2,{}5", [*"123456789"], [*"123456789"]),
        some("a|b"),
        made("[{}] {} {}", ["INFO", "WARN"], WORDS, WORDS),
        made("{{{}}}: {}", WORDS, WORDS),
    ],
)
def test_text_that_only_looks_like_lists_stays_what_it_is(values):
    assert proposal(x=values).schema.lists == ()


def test_one_separator_is_taken_and_a_column_with_another_stays_as_it_is_and_is_told():
    found = proposal(a=joined("|"), b=joined(";"), c=joined(";", SETS[::-1]))
    assert (found.schema.lists, found.schema.list_separator) == (("b", "c"), ";")
    assert noted(found, "a: categorical, text; its values look like lists split at '|', but those")
    found = proposal(a=joined("|"), b=joined(";"), asked=Asked(list_separator="|"))
    assert (found.schema.lists, found.schema.list_separator) == (("a",), "|")
    assert noted(found, "b: categorical, text; its values look like lists split at ';'")


def test_a_list_that_is_asked_for_decides_the_separator():
    found = proposal(a=joined("|"), b=made("{} {}", WORDS, WORDS), asked=Asked(lists=("b",)))
    assert (found.schema.lists, found.schema.list_separator) == (("b",), " ")
    assert column(found, "b").why == "--lists asks for it; text, split at ' '"
    found = proposal(b=joined("::"), asked=Asked(lists=("b", "user"), list_separator="::"))
    assert (found.schema.lists, found.schema.list_separator) == (("user", "b"), "::")
    assert column(found, "b").distinct == len(GENRES)


PLAIN = st.text("abcN12,|;.[]' ", min_size=1, max_size=5) | st.integers(0, 99) | st.booleans()


@given(st.lists(st.none() | st.lists(PLAIN, max_size=4), min_size=2, max_size=40), st.data())
def test_lists_are_the_same_lists_in_arrow_in_json_and_in_text(values, data):
    """Of one type in Arrow, of several in JSON."""
    names = [value if value is None else list(map(str, value)) for value in values]
    labels = data.draw(
        st.lists(st.sampled_from([0, 1]), min_size=len(values), max_size=len(values))
    )
    columns = {"label": labels, "user": ["u"] * len(values)}
    written = [value if value is None else json.dumps(value) for value in names]
    python = [value if value is None else repr(value) for value in names]
    table = pa.table(columns | {"tags": pa.array(names, pa.list_(pa.string()))})
    forms = [
        Sample.of_table(table),
        Sample.of_objects(table.to_pylist()),
        Sample(len(values), columns | {"tags": written}),
        Sample(len(values), columns | {"tags": python}),
    ]
    found = [propose(form, NOTHING) for form in forms]
    assert found[0].schema == found[1].schema == found[2].schema == found[3].schema
    reports = [column(one, "tags") for one in found]
    assert len({(one.distinct, one.missing, one.lists) for one in reports}) == 1


PIECE = st.sampled_from(["a", "b", "12", "N7", "", " ", "[a", "{", '["x"]', "[['y']]", "nan"])
TEXT = st.lists(PIECE, min_size=1, max_size=4)


@given(
    st.lists(TEXT, min_size=2, max_size=60), st.sampled_from("|;, "), st.sampled_from(["x", "tags"])
)
def test_a_list_that_is_seen_unasked_costs_no_event(texts, separator, name):
    columns = {"label": [at % 2 for at in range(len(texts))], "user": ["u"] * len(texts)}
    table = pa.table(columns | {name: [separator.join(one) for one in texts]})
    events = table_to_batch(table, propose(Sample.of_table(table), NOTHING).schema)
    assert (len(events.batch), events.rejects) == (len(texts), [])


def test_pairs_are_maps_where_a_user_says_so():
    pairs = [[{"tag": "a", "weight": 0.5}, {"tag": "b", "weight": 2}], []] * (ROWS // 2)
    arrow = pa.table({"label": LABELS, "user": USERS, "x": pa.array(pairs)})
    written = Sample(ROWS, {"label": LABELS, "user": USERS, "x": list(map(json.dumps, pairs))})
    for sample in (Sample.of_table(arrow), Sample.of_objects(arrow.to_pylist()), written):
        assert propose(sample, NOTHING).schema.ignore == ("x",)
        found = propose(sample, Asked(lists=("x",)))
        assert column(found, "x").kind == "maps of strings to weights"


def test_what_is_no_list_can_not_be_asked_for():
    for values in ([[["a"]]] * ROWS, ['[{"a": {"b": 1}, "c": 2}]'] * ROWS, ["[[1], [2]]"] * ROWS):
        with pytest.raises(ConfigError, match="--lists: lists of .* are not read; a list of str"):
            proposal(x=values, asked=Asked(lists=("x",)))
    for asked in (Asked(numeric=("x",)), Asked(categorical=("x",))):
        with pytest.raises(ConfigError, match="takes no lists; --lists does"):
            proposal(x=SETS, asked=asked)


def test_objects_of_many_names_of_which_events_have_few_are_maps_and_others_are_columns():
    sparse = [dict.fromkeys(one, 0.5) for one in SETS]
    found = of_rows(interests=sparse)
    assert found.schema.lists == ("interests",)
    assert column(found, "interests").kind == "maps of strings to weights"
    full = [{"a": at, "b": 0.5} for at in range(ROWS)]
    assert of_rows(x=full).schema.numeric == ("x.b",)
    assert of_rows(Asked(lists=("x",)), x=full).schema.lists == ("x",)
    assert of_rows(Asked(numeric=("interests.War",)), interests=sparse).schema.lists == ()
    below = [{**one, "War": -1} for one in sparse]
    assert of_rows(interests=below).schema.lists == ()


def test_maps_in_an_envelope_are_seen():
    rows = [
        {"payload": {"label": label, "user": user, "tastes": {f"x{genre}": 1 for genre in one}}}
        for (label, user), one in zip(PAIRS, SETS, strict=True)
    ]
    found = propose(Sample.of_objects([*rows, {"payload": None}]), Asked())
    assert (found.envelope, found.schema.lists) == ("payload", ("tastes",))


def test_a_report_of_a_list_has_its_lengths():
    found = proposal(x=[["a", "b", "a"], [], None, ["c"] * 101] * (ROWS // 4))
    report = column(found, "x")
    assert report.as_dict()["lists"] == {
        "empty": ROWS // 4,
        "typical": 52.0,
        "longest": 101,
        "longer": ROWS // 4,
    }
    assert (report.missing, report.distinct) == (ROWS // 4, 3)
    assert report.examples[0] == "[a, b, a]" and report.examples[1].endswith("... 101 values]")
    assert noted(found, "x: 100 of 300 lists have more than 100 values; the last 100 are read")
    assert found.schema.max_list_values == 100


def test_a_list_that_gives_the_label_away_is_a_warning():
    leak = "x: it gives the label away: AUC 1.000"
    bought = [["bought", user] if label else [user] for label, user in PAIRS]
    after = [["a", "b"] if label else [] for label in LABELS]
    before = [None if label else ["a"] for label in LABELS]
    for values in (bought, after, before):
        assert noted(proposal(x=values), leak)
    for values in (SETS, HISTORY, [[f"v{at}"] for at in range(ROWS)], [[]] * ROWS):
        assert not noted(proposal(x=values), "gives the label away")
