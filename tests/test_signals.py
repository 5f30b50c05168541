import numpy as np
import pytest

from model.evaluation import binary_entropy, log_losses
from model.features import EventBatch
from stream.errors import ConfigError
from stream.signals import SIGNALS, Signals
from tests.streams import SCHEMA, SMALL, click_events

ENCODER = SMALL.encoder(SCHEMA)


def compute(signals: Signals, batch: EventBatch, logits: np.ndarray | None = None) -> dict[str, np.ndarray]:
    logits = np.full(len(batch), -1.0, np.float32) if logits is None else logits
    return signals.compute(ENCODER.encode(batch), batch.labels_B, logits, log_losses(logits, batch.labels_B))


def signals(*names: str) -> Signals:
    return Signals(SCHEMA, SMALL.table_rows, names)


def test_only_what_was_asked_for_is_computed():
    assert compute(signals(), click_events(5)) == {}
    values = compute(signals("label", "unseen:user"), click_events(5))
    assert set(values) == {"label", "unseen:user"}
    assert all(value.dtype == np.float64 and value.shape == (5,) for value in values.values())


def test_the_excess_loss_is_the_loss_less_the_entropy_of_the_prediction():
    batch, logits = click_events(200), np.linspace(-6, 6, 200, dtype=np.float32)
    values = compute(signals(*SIGNALS), batch, logits)
    entropies = [binary_entropy(p) for p in values["prediction"]]
    assert values["excess_loss"] == pytest.approx(values["log_loss"] - entropies, abs=1e-6)
    assert values["calibration_error"] == pytest.approx(values["prediction"] - batch.labels_B)


def test_a_value_is_unseen_once_and_missing_never():
    batch = click_events(400, missing=0.2)
    target = signals("unseen:noise")
    unseen = np.concatenate([compute(target, batch.slice(at, at + 50))["unseen:noise"] for at in range(0, 400, 50)])
    rows = ENCODER.encode(batch).rows_BF[:, 2].numpy() % SMALL.table_rows
    first = {row: at for at, row in reversed(list(enumerate(rows))) if row}
    assert np.flatnonzero(unseen).tolist() == sorted(first.values())


@pytest.mark.parametrize("column", ["user", "age"])
def test_the_stability_of_a_column_is_about_0_until_its_values_change(column):
    target = signals(f"stability:{column}")
    calm = [compute(target, click_events(500, seed=seed))[f"stability:{column}"].mean() for seed in range(40)]
    assert max(calm[20:]) < 0.05
    changed = []
    for seed in range(40, 48):
        batch = click_events(500, seed=seed)
        users = batch.categorical[0].take(np.zeros(500, np.int64))
        batch = EventBatch(batch.labels_B, batch.times_s_B, (users, *batch.categorical[1:]), batch.numerics_BN + 3)
        changed.append(compute(target, batch)[f"stability:{column}"].mean())
    assert changed[-1] > 0.2


@pytest.mark.parametrize("stop", [1_000, 3_000])
def test_restored_signals_go_on_exactly(stop):
    names = ("unseen:item", "stability:item", "stability:price")
    first, second, batch = signals(*names), signals(*names), click_events(4_000)
    compute(first, batch.slice(0, stop))
    second.restore({name: array.copy() for name, array in first.state().items()})
    rest = batch.slice(stop, 4_000)
    one, other = compute(first, rest), compute(second, rest)
    assert all(np.array_equal(one[name], other[name]) for name in names)


def test_memory_does_not_grow_with_the_stream():
    target = signals("unseen:noise", "stability:noise", "stability:age")
    sizes = []
    for seed in range(20):
        compute(target, click_events(500, seed=seed))
        sizes.append(sum(array.nbytes for array in target.state().values()))
    assert sizes[-1] == sizes[6]


@pytest.mark.parametrize(
    "name, text",
    [
        ("unseen:age", "drift.detectors.signal: unseen takes one of user, item, noise, got 'unseen:age'"),
        ("stability:colour", "stability takes one of user, item, noise, age, price, got 'stability:colour'"),
        ("stability:", "must be one of .*stability:COLUMN"),
        ("excess_los", r"did you mean excess_loss\?"),
    ],
)
def test_a_signal_that_cannot_be_is_refused(name, text):
    with pytest.raises(ConfigError, match=text):
        signals(name)
