"""Words beside the figures: of how many events they are, and what they cannot show."""

from tests.support.inputs import BASE, EVENTS, csv_text


def test_a_backtest_that_ends_before_the_first_pruning_says_so(put, niwaki):
    path = put("clicks.csv", csv_text(BASE))
    ran = niwaki("backtest", path, "--policy", "dense,static,rigl")
    assert ran.code == 0, ran.err
    note = (
        f"{EVENTS} events are too few for static: pruning begins after 40,000"
        " (pruning.warmup_events) and takes at least 10,000 (pruning.pruning_events)"
    )
    assert f"niwaki: {note}\n" in ran.err
    assert note in niwaki("backtest", path, "--policy", "static", "--json").json["notes"]
    assert "too few" not in niwaki("backtest", path, "--policy", "dense,rigl").err


def test_a_backtest_tells_its_baseline_as_normalized_entropy(put, niwaki):
    ran = niwaki("backtest", put("clicks.csv", csv_text(BASE)), "--policy", "dense")
    first, *_ = ran.out.splitlines()
    assert first.startswith(f"{EVENTS} events. Normalized entropy (NE), lower is better; of the ")
    baseline = float(first.rpartition(" ")[2])
    assert 1 < baseline < 1.05


def test_check_says_how_many_events_it_has_looked_at(put, niwaki):
    path = put("clicks.csv", csv_text(BASE))
    for arguments, events in (((), EVENTS), (("--events", 150), 150)):
        ran = niwaki("check", path, *arguments)
        assert ran.out.splitlines()[0].endswith(f"clicks.csv, the first {events} events")
