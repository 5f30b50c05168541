import stat
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import niwaki
from niwaki.model.features.schema import Schema
from niwaki.stream.config import load_config
from niwaki.stream.errors import ConfigError
from niwaki.stream.events.config import EventsConfig
from niwaki.stream.recordings.schema_toml import schema_toml, write_into

PLAIN = EventsConfig()
NAME = st.text(st.characters(exclude_categories=["Cs"]), min_size=1) | st.sampled_from(
    ['a"b', "c\\d", "a\nb", "\x7f", "\x00", "été\tx", "'''", '"""', "🙂", "#no comment", "\u2028"]
)
SCHEMA = Schema(label="click", categorical=("user",), numeric=("price",))


@st.composite
def schemas(draw) -> Schema:
    """A schema of any names, with any of the settings that a proposal makes."""
    names = draw(st.lists(NAME, min_size=4, max_size=9, unique=True))
    label, time, first, *others = names
    cut = draw(st.integers(0, len(others)))
    lists = others[cut::2]
    shared = [name for name in (*lists, *others[:cut]) if draw(st.booleans())]
    way = draw(st.sampled_from(["plain", "threshold", "positive"]))
    return Schema(
        label=label,
        timestamp=draw(st.sampled_from([time, None])),
        timestamp_format=draw(st.sampled_from(["ms", "s", "iso", "%y%m%d%H"])),
        label_threshold=draw(st.floats(-10, 10)) if way == "threshold" else None,
        label_positive=tuple(draw(st.lists(NAME, min_size=1))) if way == "positive" else (),
        missing_label=draw(st.sampled_from(["reject", "negative"])),
        categorical=(first, *others[:cut]),
        lists=tuple(lists),
        list_separator=draw(st.sampled_from(["|", ";", " ", ", ", "\t", '"', "\\"])),
        max_list_values=draw(st.sampled_from([100, 7])),
        shares={name: first for name in shared},
        weight=draw(st.sampled_from([None, "w" + "".join(names)])),
        sampling_ratio=draw(st.sampled_from([None, "s" + "".join(names)])),
        ignore=tuple(others[cut + 1 :: 2]),
    )


def read(text: str) -> tuple[Schema, EventsConfig]:
    sections = tomllib.loads(text)
    return (
        msgspec.convert(sections["schema"], Schema),
        msgspec.convert(sections.get("events", {}), EventsConfig),
    )


def into(path: Path, text: str, schema: Schema = SCHEMA, events: EventsConfig = PLAIN) -> list[str]:
    path.write_bytes(text.encode())
    return write_into(path, schema, events)


@given(schemas(), st.sampled_from(["", "payload.after"]), st.sampled_from([".", ","]))
def test_whatever_the_names_of_columns_the_toml_can_be_read_back(schema, envelope, decimal):
    events = EventsConfig(envelope=envelope, decimal=decimal)
    assert read(schema_toml(schema, events)) == (schema, events)


@given(schemas())
def test_a_schema_goes_into_a_file_and_leaves_the_rest_of_it_as_it_was(tmp_path_factory, schema):
    path = tmp_path_factory.mktemp("config") / "niwaki.toml"
    into(path, '# ours\n[schema]\nlabel = "y" # old\n\n[kafka] # there\ntopic = "t"\n', schema)
    text = path.read_text("utf-8")
    assert read(text)[0] == schema
    assert text.startswith("# ours\n[schema]\n") and text.endswith('[kafka] # there\ntopic = "t"\n')


def test_settings_that_are_the_default_are_not_written():
    assert schema_toml(SCHEMA, PLAIN) == (
        '[schema]\nlabel = "click"\ntimestamp = "ts"\ncategorical = ["user"]\n'
        'numeric = ["price"]\nignore = []\n'
    )


LISTS = Schema(
    categorical=("item",), lists=("history", "basket"), shares={"history": "item", "basket": "item"}
)


def test_lists_and_shares_are_lines_of_the_section():
    text = schema_toml(LISTS, PLAIN)
    assert 'lists = ["history", "basket"]\n' in text
    assert 'shares = {history = "item", basket = "item"}\n' in text


@pytest.mark.parametrize(
    "old",
    [
        '[schema.shares]\na = "b" # old\n',
        'shares = {a = "b"}\n',
        'shares.a = "b"\n',
        '\n[kafka]\ntopic = "t"\n[schema.shares]\na = "b"\n',
    ],
)
def test_however_shares_are_written_they_are_replaced(tmp_path, old):
    path = tmp_path / "niwaki.toml"
    text = f'[schema]\ncategorical = ["b"]\nlists = ["a"]\n{old}[model]\nseed = 3\n'
    assert into(path, text, LISTS) == []
    assert load_config(path, {}).schema == LISTS
    assert into(path, path.read_text()) == []
    assert load_config(path, {}).schema == SCHEMA


def test_settings_that_no_proposal_makes_stay_where_they_still_hold(tmp_path):
    path = tmp_path / "niwaki.toml"
    text = '[schema]\nmax_list_values = 7\nweight = "price"\nsampling_ratio = "r"\n'
    assert into(path, text) == [
        "schema.weight: 'price' is removed (numeric: column 'price' has more than one role)"
    ]
    schema = load_config(path, {}).schema
    assert (schema.max_list_values, schema.weight, schema.sampling_ratio) == (7, None, "r")


def test_half_of_a_surrogate_pair_is_refused_since_no_file_holds_it(tmp_path):
    schema = Schema(categorical=("a\ud800",))
    with pytest.raises(ConfigError, match="schema: has a name that TOML can't hold"):
        schema_toml(schema, PLAIN)
    path = tmp_path / "niwaki.toml"
    with pytest.raises(ConfigError, match="schema: has a name that TOML can't hold"):
        into(path, "[kafka]\n", schema)
    assert [one.read_text() for one in tmp_path.iterdir()] == ["[kafka]\n"]


def test_a_file_that_is_not_there_is_made(tmp_path):
    path = tmp_path / "niwaki.toml"
    assert write_into(path, SCHEMA, EventsConfig(separator=";")) == []
    config = load_config(path, {})
    assert (config.schema, config.events.separator) == (SCHEMA, ";")


@pytest.mark.parametrize(
    "text",
    [
        '[kafka]\ntopic = "t"',
        '[kafka]\ntopic = "t"\n\n[schema]\n',
        'schema = {label = "y", categorical = ["a"]}\n[kafka]\ntopic = "t"\n',
        'schema.label = "y"\nschema.categorical = ["a"]\n[kafka]\ntopic = "t"\n',
        '\ufeff[schema]\nlabel = "y"\n[kafka]\ntopic = "t"\n',
        '[schema]\r\nlabel = "y"\r\n[kafka]\r\ntopic = "t"\r\n',
        '[schema]\ncategorical = [\n  "a", # one\n  "b",\n]\n[kafka]\ntopic = "t"\n',
    ],
)
def test_however_a_section_is_written_it_is_replaced(tmp_path, text):
    path = tmp_path / "niwaki.toml"
    into(path, text)
    config = load_config(path, {})
    assert (config.schema, config.kafka.topic) == (SCHEMA, "t")
    lines = path.read_bytes().splitlines(keepends=True)
    assert {line.endswith(b"\r\n") for line in lines} == {"\r\n" in text}


def test_the_commented_configuration_of_the_project_keeps_all_its_comments(tmp_path):
    path = tmp_path / "niwaki.toml"
    before = (Path(niwaki.__file__).parents[1] / "config" / "niwaki.toml").read_text("utf-8")
    into(path, before)
    after = path.read_text("utf-8")
    comments = [line for line in before.splitlines() if line.startswith("#")]
    assert [line for line in after.splitlines() if line.startswith("#")] == comments
    assert load_config(path, {}).schema == SCHEMA


def test_what_is_new_in_a_section_stands_before_the_comment_of_the_next_one(tmp_path):
    path = tmp_path / "niwaki.toml"
    before = (Path(niwaki.__file__).parents[1] / "config" / "niwaki.toml").read_text("utf-8")
    schema = msgspec.structs.replace(SCHEMA, timestamp_format="iso")
    into(path, before, schema, EventsConfig(separator=";"))
    config, lines = load_config(path, {}), path.read_text("utf-8").splitlines()
    assert (config.schema, config.events.separator) == (schema, ";")
    assert lines[lines.index("[events]") - 1].startswith("# The way that events are read")
    assert lines[lines.index("[kafka]") - 1].startswith("# The Kafka topic")


def test_crosses_and_time_features_stay_where_their_columns_are_still_there(tmp_path):
    path = tmp_path / "niwaki.toml"
    notes = into(
        path,
        '[schema]\nlabel_threshold = 4\ncategorical = ["user", "item"]\n'
        'crosses = [["user", "item"], ["user", "city"]]\ntime_features = ["hour", "age:item"]\n',
        Schema(categorical=("user", "city")),
    )
    schema = load_config(path, {}).schema
    assert (schema.crosses, schema.time_features) == ((("user", "city"),), ("hour",))
    assert schema.label_threshold is None
    assert [note.partition(" is removed")[0] for note in notes] == [
        "schema.crosses: ['user', 'item']",
        "schema.time_features: 'age:item'",
    ]
    assert into(path, path.read_text(), Schema(timestamp=None, categorical=("user", "city"))) == [
        "schema.time_features: 'hour' is removed (time_features: needs a timestamp column)"
    ]


def test_the_form_of_other_events_does_not_stay_and_what_else_a_person_set_does(tmp_path):
    path = tmp_path / "niwaki.toml"
    text = '[events]\nenvelope = "payload"\ndecimal = ","\nmax_rejected_ratio = 0.5\n'
    into(path, text, events=EventsConfig(names=("a", "b")))
    expected = EventsConfig(names=("a", "b"), max_rejected_ratio=0.5)
    assert load_config(path, {}).events == expected


@pytest.mark.parametrize(
    "text, rule",
    [
        ("schema = 3\n", "schema must be a section: .schema."),
        ("[[schema]]\n", "schema must be a section: .schema."),
        ("events = 3\n", "events must be a section: .events."),
        ("[schema\n", "can't be read as TOML"),
    ],
)
def test_a_file_that_is_no_configuration_is_said_and_stays_as_it_is(tmp_path, text, rule):
    path = tmp_path / "niwaki.toml"
    with pytest.raises(ConfigError, match=f"niwaki.toml: {rule}"):
        into(path, text)
    assert [one.read_text() for one in tmp_path.iterdir()] == [text]


def test_a_file_for_its_owner_alone_stays_so_and_a_link_stays_a_link(tmp_path):
    path, link = tmp_path / "niwaki.toml", tmp_path / "link.toml"
    path.write_text('[kafka]\nsasl_password = "x"\n')
    path.chmod(0o600)
    link.symlink_to(path)
    write_into(link, SCHEMA, PLAIN)
    assert link.is_symlink() and load_config(path, {}).schema == SCHEMA
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ConfigError, match="can't be written .No such file"):
        write_into(tmp_path / "nowhere" / "niwaki.toml", SCHEMA, PLAIN)
