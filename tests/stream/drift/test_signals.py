import numpy as np
import pytest

from niwaki.model.evaluation import binary_entropy, log_losses
from niwaki.model.features.schema import EventBatch
from niwaki.stream.drift.observations import Observations
from niwaki.stream.drift.signals import SIGNALS, Signals
from niwaki.stream.errors import ConfigError
from tests.support.streams import SCHEMA, SMALL, click_events

ENCODER = SMALL.encoder(SCHEMA)


def compute(
    signals: Signals, batch: EventBatch, logits: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    logits = np.full(len(batch), -1.0, np.float32) if logits is None else logits
    losses = log_losses(logits, batch.labels_B)
    experts = np.stack([logits, logits / 2, logits], 1)
    return signals.compute(observed(batch, experts, logits, losses))


def observed(batch: EventBatch, *predicted: np.ndarray) -> Observations:
    features = ENCODER.encode(batch)
    return Observations(
        batch.labels_B,
        batch.times_s_B,
        *predicted,
        features.rows_BF.numpy(),
        features.raw_numerics_BN.numpy(),
    )


def signals(*names: str) -> Signals:
    return Signals(SCHEMA, SMALL.table_rows, names)


def test_only_what_was_asked_for_is_computed():
    assert compute(signals(), click_events(5)) == {}
    values = compute(signals("label", "unseen:user"), click_events(5))
    assert set(values) == {"label", "unseen:user"}
    assert all(value.dtype == np.float64 and value.shape == (5,) for value in values.values())


def test_the_excess_loss_is_the_loss_less_the_entropy_of_the_prediction():
    batch, logits = click_events(200), np.linspace(-6, 6, 200, dtype=np.float32)
    of_no_column = [name for name, signal in SIGNALS.items() if not signal.columns]
    values = compute(signals(*of_no_column), batch, logits)
    assert "staleness" not in values  # nothing to measure it by yet
    entropies = [binary_entropy(p) for p in values["prediction"]]
    assert values["excess_loss"] == pytest.approx(values["log_loss"] - entropies, abs=1e-6)
    assert values["calibration_error"] == pytest.approx(values["prediction"] - batch.labels_B)


def with_times(labels_B: np.ndarray, times_s_B: np.ndarray) -> EventBatch:
    batch = click_events(len(labels_B))
    return EventBatch(labels_B.astype(np.float32), times_s_B, batch.categorical, batch.numerics_BN)


def test_staleness_is_about_0_for_a_calibrated_model_and_above_it_where_the_slow_expert_is_behind():
    rng, target = np.random.default_rng(0), signals("staleness")
    slow, fast = rng.normal(-2, 1, (2, 40_000)).astype(np.float32)

    def mean(truth: np.ndarray, at: slice) -> float:
        batch = with_times(rng.random(20_000) < 1 / (1 + np.exp(-truth[at])), np.zeros(20_000))
        experts, losses = np.stack([slow, fast, slow], 1)[at], np.zeros(20_000)
        values = [
            target.compute(
                observed(
                    batch.slice(i, i + 500),
                    experts[i : i + 500],
                    slow[at][i : i + 500],
                    losses[i : i + 500],
                )
            )
            for i in range(0, 20_000, 500)
        ]
        return float(np.mean(np.concatenate([value["staleness"] for value in values if value])))

    assert abs(mean(slow, slice(0, 20_000))) < 0.02
    assert mean(fast, slice(20_000, 40_000)) > 0.3


def test_before_experts_have_differed_there_is_no_staleness():
    batch = click_events(10)
    same = np.ones((10, 3), np.float32)
    target = signals("staleness")
    assert [target.compute(observed(batch, same, same[:, 0], same[:, 0])) for _ in range(3)] == [
        {},
        {},
        {},
    ]


def adjusted(target: Signals, labels: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    """The adjusted label, NaN where it is not defined."""
    values = []
    for at in range(0, len(labels), 500):
        batch = with_times(labels[at : at + 500], times_s[at : at + 500])
        values.append(compute(target, batch).get("adjusted_label", np.full(len(batch), np.nan)))
    return np.concatenate(values)


def test_from_the_second_day_on_the_adjusted_label_has_no_daily_cycle_and_keeps_its_mean():
    times_s = 1_700_000_000 + np.arange(4 * 86_400) * 1.0
    rate = 0.2 + 0.15 * np.sin(times_s * 2 * np.pi / 86_400)
    labels = np.random.default_rng(0).random(len(rate)) < rate
    values = adjusted(signals("adjusted_label"), labels, times_s)
    assert (
        np.flatnonzero(~np.isnan(values))[0] == 86_500
    )  # the first batch that begins after a whole day
    day = np.flatnonzero(~np.isnan(values))[-86_400:]
    by_hour = [values[day][(times_s[day] // 3600 % 24) == hour].mean() for hour in range(24)]
    assert max(by_hour) - min(by_hour) < 0.06  # of 0.3
    assert values[day].mean() == pytest.approx(0.2, abs=0.01)


def test_staleness_is_in_units_of_its_spread_without_outliers():
    rng, target = np.random.default_rng(0), signals("staleness", "recent_staleness")
    logits, experts = (
        rng.normal(-4, 1, 4_000).astype(np.float32),
        rng.normal(-4, 1, (4_000, 4)).astype(np.float32),
    )
    batch = with_times(rng.random(4_000) < 1 / (1 + np.exp(-logits)), np.zeros(4_000))
    halves = (slice(0, 2_000), slice(2_000, 4_000))
    _, values = [
        target.compute(
            observed(batch.slice(at.start, at.stop), experts[at], logits[at], logits[at])
        )
        for at in halves
    ]
    errors = (1 / (1 + np.exp(-logits.astype(np.float64))) - batch.labels_B)[2_000:]
    for name, slow in (("staleness", 0), ("recent_staleness", 1)):
        raw, scaled = (
            errors * (experts[2_000:, slow].astype(np.float64) - experts[2_000:, slow + 1]),
            values[name],
        )
        inside = np.abs(scaled) < 8
        assert np.abs(scaled).max() == 8 and inside.any()
        assert np.ptp((raw / scaled)[inside]) < 1e-6
        assert (raw / scaled)[inside][0] == pytest.approx(np.sqrt((raw**2).mean()), rel=0.3)


def test_after_a_reset_staleness_is_soon_in_units_of_what_comes_then():
    rng, target = np.random.default_rng(0), signals("staleness")
    batch, spreads = with_times(np.zeros(500), np.zeros(500)), []
    for turmoil in [3.0] * 40 + [1.0] * 20:
        if turmoil == 1.0 and not spreads:
            target.reset()
        logits_BE = rng.normal(0, turmoil, (500, 3)).astype(np.float32)
        found = target.compute(
            observed(batch, logits_BE, np.full(500, -1.0, np.float32), logits_BE[:, 0])
        )
        if turmoil == 1.0:
            spreads.append(found["staleness"].std())
    assert spreads[0] == pytest.approx(1 / 3, abs=0.05)
    assert spreads[15:] == pytest.approx([1.0] * 5, abs=0.3)


def test_staleness_has_no_daily_cycle_once_that_has_been_foretold_and_keeps_what_is_new():
    """The truth goes up and down within the day, the prediction and the slow expert do not."""
    rng, target = np.random.default_rng(0), signals("staleness")
    events = 6 * 86_400
    times_s = 1_700_006_400 + np.arange(events) * 1.0
    wave = np.sin(times_s * 2 * np.pi / 86_400).astype(np.float32)
    truth = -1 + 0.8 * wave
    truth[-86_400:] += 0.8  # something new on the last day
    labels = rng.random(events) < 1 / (1 + np.exp(-truth))
    experts, values = np.stack([np.full(events, -1, np.float32), -0.5 + 0.1 * wave, wave], 1), []
    for at in range(0, events, 1_200):
        batch, cut = (
            with_times(labels[at : at + 1_200], times_s[at : at + 1_200]),
            slice(at, at + 1_200),
        )
        values.append(
            target.compute(observed(batch, experts[cut], experts[cut, 0], experts[cut, 0])).get(
                "staleness"
            )
        )
    values = np.concatenate([np.zeros(1_200), *values[1:]])

    def by_hour(day: int) -> np.ndarray:
        today = values[day * 86_400 : (day + 1) * 86_400]
        return today.reshape(24, -1).mean(1)

    assert np.ptp(by_hour(2)) > 0.5  # not trusted yet
    assert np.ptp(by_hour(4)) < 0.2
    assert (by_hour(5) - by_hour(4)).min() > 0.1


def test_what_happened_once_becomes_no_daily_cycle():
    target, days = signals("adjusted_label"), 4
    times_s, rng = np.arange(days * 86_400) * 1.0, np.random.default_rng(0)
    rate = np.where((times_s >= 86_400 + 6 * 3_600) & (times_s < 86_400 + 9 * 3_600), 0.4, 0.2)
    values = adjusted(target, rng.random(len(rate)) < rate, times_s)
    last = values[3 * 86_400 :].reshape(24, -1).mean(1)
    assert np.ptp(last) < 0.06  # and not the 0.1 that it would be, had the second day become usual


def test_days_of_few_events_are_taken_in_together():
    times_s = np.arange(6_000) * 86.4  # a thousand a day
    values = adjusted(signals("adjusted_label"), times_s // 3600 % 24 < 12, times_s)
    assert (
        np.flatnonzero(~np.isnan(values))[0] == 2_500
    )  # the first batch after as many as make a day


def test_without_times_the_adjusted_label_is_the_label():
    labels = np.arange(1_000) % 3 == 0
    assert np.array_equal(adjusted(signals("adjusted_label"), labels, np.zeros(1_000)), labels)


def test_a_value_is_unseen_once_and_missing_never():
    batch = click_events(400, missing=0.2)
    target = signals("unseen:noise")
    unseen = np.concatenate(
        [compute(target, batch.slice(at, at + 50))["unseen:noise"] for at in range(0, 400, 50)]
    )
    rows = ENCODER.encode(batch).rows_BF[:, 2].numpy() % SMALL.table_rows
    first = {row: at for at, row in reversed(list(enumerate(rows))) if row}
    assert np.flatnonzero(unseen).tolist() == sorted(first.values())


@pytest.mark.parametrize("column", ["user", "age"])
def test_the_stability_of_a_column_is_about_0_until_its_values_change(column):
    target = signals(f"stability:{column}")
    calm = [
        compute(target, click_events(500, seed=seed))[f"stability:{column}"].mean()
        for seed in range(40)
    ]
    assert max(calm[20:]) < 0.05
    changed = []
    for seed in range(40, 48):
        batch = click_events(500, seed=seed)
        users = batch.categorical[0].take(np.zeros(500, np.int64))
        batch = EventBatch(
            batch.labels_B, batch.times_s_B, (users, *batch.categorical[1:]), batch.numerics_BN + 3
        )
        changed.append(compute(target, batch)[f"stability:{column}"].mean())
    assert changed[-1] > 0.2


@pytest.mark.parametrize("stop", [1_000, 3_000])
def test_restored_signals_go_on_exactly(stop):
    names = ("unseen:item", "stability:item", "stability:price", "staleness", "recent_staleness")
    first, second = signals(*names), signals(*names)
    batch = click_events(4_000)
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
        (
            "unseen:age",
            "drift.detectors.signal: unseen takes one of user, item, noise, got 'unseen:age'",
        ),
        (
            "stability:colour",
            "stability takes one of user, item, noise, age, price, got 'stability:colour'",
        ),
        ("stability:", "must be one of .*stability:COLUMN"),
        ("excess_los", r"did you mean excess_loss\?"),
    ],
)
def test_a_signal_that_cannot_be_is_refused(name, text):
    with pytest.raises(ConfigError, match=text):
        signals(name)


def test_restored_the_usual_course_of_the_day_is_known_at_once():
    first, second = signals("adjusted_label"), signals("adjusted_label")
    times_s = np.arange(4_000) * 30.0
    labels = times_s // 3600 % 24 < 12
    adjusted(first, labels, times_s)
    second.restore(first.state())
    values = adjusted(second, labels, times_s + 120_000)
    assert np.array_equal(values, adjusted(first, labels, times_s + 120_000))
    assert not np.isnan(values).any() and np.abs(values - labels).max() > 0.05


@pytest.mark.parametrize("wrong_s", [32_503_680_000.0, 1.0])
@pytest.mark.parametrize("at", [0, 500 * 400])
def test_an_event_of_another_age_that_comes_first_in_a_batch_does_not_end_the_adjustment(
    wrong_s, at
):
    times_s = 1_700_000_000 + np.arange(6 * 86_400) * 1.0
    rate = 0.2 + 0.15 * np.sin(times_s * 2 * np.pi / 86_400)
    labels = np.random.default_rng(0).random(len(rate)) < rate
    right, wrong = signals("adjusted_label"), signals("adjusted_label")
    expected = adjusted(right, labels, times_s)
    times_s[at] = wrong_s
    np.testing.assert_allclose(
        adjusted(wrong, labels, times_s)[-86_400:], expected[-86_400:], atol=1e-2
    )


@pytest.mark.parametrize("days", [60, -3 * 365])
def test_a_stream_that_goes_on_at_another_time_is_adjusted_again(days):
    times_s = 1_700_000_000 + np.arange(8 * 86_400) * 1.0
    rate = 0.2 + 0.15 * np.sin(times_s * 2 * np.pi / 86_400)
    times_s[3 * 86_400 :] += days * 86_400.0
    labels = np.random.default_rng(0).random(len(rate)) < rate
    day = slice(-86_400, None)
    values, hours = adjusted(signals("adjusted_label"), labels, times_s)[day], times_s[day] // 3600
    by_hour = [values[hours % 24 == hour].mean() for hour in range(24)]
    assert max(by_hour) - min(by_hour) < 0.06  # of 0.3
