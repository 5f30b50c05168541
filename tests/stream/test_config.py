"""The configuration: a file, the environment over it, and what a person is told who got it
wrong."""

import re
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from niwaki.stream.config import Config, load_config
from niwaki.stream.drift.monitor import DetectorConfig, DriftConfig
from niwaki.stream.errors import ConfigError
from niwaki.stream.synthetic.columns import SCHEMA

COMPLETE = Path(__file__).parents[2] / "config" / "niwaki.toml"


@pytest.fixture
def load(tmp_path):
    """load(toml, NIWAKI_...=value) -> Config"""

    def load(toml: str = "", **env: str) -> Config:
        path = tmp_path / "niwaki.toml"
        path.write_text(toml, "utf-8")
        return load_config(path, env)

    return load


def test_without_a_file_everything_has_its_default():
    assert load_config(None, {}) == Config()


def test_a_file_replaces_what_it_names_and_nothing_else(load):
    config = load(
        '[schema]\ncategorical = ["user", "item"]\n[pruning]\nbudget = 0.05\n'
        "[model]\ntop = [256, 128]"
    )
    assert config.schema.categorical == ("user", "item")
    assert config.pruning == msgspec.structs.replace(Config().pruning, budget=0.05)
    assert config.model == msgspec.structs.replace(Config().model, top=(256, 128))
    assert config.kafka == Config().kafka


@pytest.mark.parametrize("topic", ["events", "events.dead-letters", "no such name!"])
def test_drifts_are_told_in_a_topic_of_their_own(load, topic):
    with pytest.raises(
        ConfigError,
        match="drift.topic: must be the name of another topic than events and events.dead",
    ):
        load(f'[drift]\ntopic = "{topic}"')
    assert load('[drift]\ntopic = "drifts"').drift.topic == "drifts"


def test_a_list_of_tables_becomes_detectors(load):
    toml = '[[drift.detectors]]\ndetector = "ADWIN"\n'
    toml += '[[drift.detectors]]\ndetector = "KSWIN"\nsignal = "prediction"'
    assert [(one.detector, one.signal) for one in load(toml).drift.detectors] == [
        ("ADWIN", "staleness"),
        ("KSWIN", "prediction"),
    ]


def test_a_configuration_cannot_be_changed_later():
    with pytest.raises(AttributeError):
        Config().pruning.budget = 0.5


@pytest.mark.parametrize(
    ("name", "text", "key", "value"),
    [
        ("NIWAKI_PRUNING__BUDGET", "0.2", "pruning.budget", 0.2),
        ("NIWAKI_TRAINING__BATCH_EVENTS", "64", "training.batch_events", 64),
        ("NIWAKI_KAFKA__TOPIC", "clicks", "kafka.topic", "clicks"),
        ("NIWAKI_KAFKA__TOPIC", '"clicks"', "kafka.topic", "clicks"),
        ("NIWAKI_KAFKA__TOPIC", "2024", "kafka.topic", "2024"),
        ("NIWAKI_KAFKA__SASL_PASSWORD", "true", "kafka.sasl_password", "true"),
        ("NIWAKI_KAFKA__SASL_PASSWORD", "a=b\nc=d", "kafka.sasl_password", "a=b\nc=d"),
        ("NIWAKI_KAFKA__SASL_PASSWORD", "1\nc = 2", "kafka.sasl_password", "1\nc = 2"),
        ("NIWAKI_REDIS__URL", "redis://redis:6379/0", "redis.url", "redis://redis:6379/0"),
        ("NIWAKI_MODEL__TOP", "[256, 128]", "model.top", (256, 128)),
        ("NIWAKI_MODEL__AUXILIARY__MIN_UNITS", "2", "model.auxiliary.min_units", 2),
    ],
)
def test_a_variable_is_read_as_toml_or_as_the_text_that_it_is(load, name, text, key, value):
    found = load("[kafka]\ntopic = 'from-the-file'", **{name: text})
    for step in key.split("."):
        found = getattr(found, step)
    assert found == value


def test_variables_alone_can_make_a_schema(load):
    config = load(NIWAKI_SCHEMA__CATEGORICAL='["user"]', NIWAKI_SCHEMA__LABEL="click")
    assert (config.events_schema().label, config.events_schema().categorical) == (
        "click",
        ("user",),
    )


def test_names_that_a_cluster_sets_for_services_are_not_overrides(load):
    assert (
        load(
            NIWAKI_SERVER_PORT="tcp://10.0.0.1:80", NIWAKI_REDIS_SERVICE_HOST="10.0.0.2", NIWAKI="x"
        )
        == Config()
    )


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[pruning]\nbudget = 2", "pruning.budget: must be in (0, 1], got 2.0"),
        (
            "[pruning]\nbudget = 'a tenth'",
            "pruning.budget: must be a number or one of auto, got 'a tenth'",
        ),
        (
            "[pruning]\npolicy = 'lazy'",
            "pruning.policy: must be one of adaptive, adaptive-live, dense, magnitude, periodic,"
            " rigl, small, static, got 'lazy'",
        ),
        (
            "[pruning]\nbudgt = 0.2",
            "pruning.budgt: is not a known key; did you mean pruning.budget?",
        ),
        ("[prunning]\nbudget = 0.2", "prunning: is not a known key; did you mean pruning?"),
        ("[model]\nbudget = 0.2", "model.budget: is not a known key; did you mean pruning.budget?"),
        ("budget = 0.2", "budget: is not a known key; did you mean pruning.budget?"),
        ("pruning = 0.2", "pruning: must be a table, got 0.2"),
        ("[model]\ntop = [512, 'b']", "model.top[1]: must be an integer, got 'b'"),
        (
            "[model]\nauxiliary = {min_unit = 2}",
            "model.auxiliary.min_unit: is not a known key; did you mean model.",
        ),
        ("[schema]\ncategorical = 'user'", "schema.categorical: must be a list, got 'user'"),
        (
            "[schema]\ncategorical = ['a', 'a']",
            "schema.categorical: column 'a' has more than one role",
        ),
        ("[schema]\nlabel = 'y'", "schema.categorical: needs at least one column, or numeric does"),
        ("[kafka]\ntopic = 'no spaces'", "kafka.topic: must be 1 to 249 letters"),
        (
            "[[drift.detectors]]\n[[drift.detectors]]\nsignl = 'x'",
            "drift.detectors[1].signl: is not a known key; did",
        ),
        (
            "[[drift.detectors]]\n[[drift.detectors]]\nsignal = 'x'",
            "drift.detectors[1].signal: must be one of ",
        ),
        (
            "[[drift.detectors]]\ndirection = 'x'",
            "drift.detectors[0].direction: must be one of both, down, up",
        ),
        ("[telemetry]\nport = 70000", "telemetry.port: must be in 0..65535, got 70000"),
    ],
)
def test_each_mistake_is_one_line_with_key_rule_and_value(load, toml, message):
    with pytest.raises(ConfigError) as caught:
        load(toml)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("NIWAKI_PRUNING__BUDGET", "2", "NIWAKI_PRUNING__BUDGET: must be in (0, 1], got 2.0"),
        (
            "NIWAKI_PRUNING__BUDGET",
            "a tenth",
            "NIWAKI_PRUNING__BUDGET: must be a number or one of auto, got 'a tenth'",
        ),
        (
            "NIWAKI_PRUNING__BUDGT",
            "0.2",
            "NIWAKI_PRUNING__BUDGT: is not a known key; did you mean pruning.budget?",
        ),
        ("NIWAKI_PRUNING__BUDGET__X", "0.2", "NIWAKI_PRUNING__BUDGET__X: budget is not a table"),
        (
            "NIWAKI_PRUNNING__BUDGET",
            "0.2",
            "NIWAKI_PRUNNING__BUDGET: is not a known key; did you mean pruning?",
        ),
    ],
)
def test_a_mistake_in_a_variable_names_the_variable(load, name, text, message):
    with pytest.raises(ConfigError) as caught:
        load("[pruning]\nbudget = 0.3", **{name: text})
    assert str(caught.value) == message


def test_no_message_shows_a_password(load):
    for toml in ("[kafka]\nsasl_password = 1234567", "[redis]\nurl = 'http://me:1234567@host'"):
        with pytest.raises(ConfigError) as caught:
            load(toml)
        assert "1234567" not in str(caught.value)


def test_a_missing_schema_is_noticed_by_those_who_need_it(load):
    with pytest.raises(ConfigError, match=r"^schema: is missing; `niwaki schema FILE` proposes"):
        load().events_schema()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't be read (No such file or directory)"),
        (b"[kafka", "is not TOML: "),
        (b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, message):
    path = tmp_path / "my.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path, {})
    assert str(caught.value).startswith(f"{path}: {message}")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=4,
)
KEYS = [
    f"{section}.{key}" for section, struct in Config.__annotations__.items() for key in dir(struct)
] + ["a.b"]


@given(key=st.sampled_from(KEYS), text=st.text(max_size=20) | VALUES.map(lambda value: repr(value)))
def test_whatever_a_variable_holds_the_answer_is_a_config_or_one_line(key, text):
    section, _, name = key.partition(".")
    variable = f"NIWAKI_{section}__{name}".upper()
    try:
        assert isinstance(load_config(None, {variable: text}), Config)
    except ConfigError as error:
        assert "\n" not in str(error)


def test_the_complete_file_names_every_key_with_its_default(tmp_path):
    shown = tmp_path / "shown.toml"
    shown.write_text(
        re.sub(r"^#(?! )", "", COMPLETE.read_text("utf-8"), flags=re.MULTILINE), "utf-8"
    )
    config = load_config(shown, {})
    up = DriftConfig(
        detectors=(DetectorConfig(direction="up"),)
    )  # what None comes to, which TOML can't say
    assert config == msgspec.structs.replace(Config(), schema=config.schema, drift=up)

    tree = tomllib.loads(shown.read_text("utf-8"))
    for section, value in msgspec.to_builtins(config).items():
        assert keys(tree[section], section) == keys(value, section)


def test_the_complete_file_as_it_stands_is_for_the_generated_stream():
    assert load_config(COMPLETE, {}) == Config(schema=SCHEMA)


def keys(tree: object, path: str) -> set[str]:
    """The dotted keys of everything in `tree`."""
    if isinstance(tree, dict):
        return {path}.union(*(keys(value, f"{path}.{key}") for key, value in tree.items()))
    if isinstance(tree, list | tuple):
        return {path}.union(*(keys(value, path) for value in tree))
    return {path}
