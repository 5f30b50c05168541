"""The report: the same data for the same events, a page that needs nothing else, true drifts beside
detected ones."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from niwaki.model.features.schema import EventBatch
from niwaki.pruning.config import PruningConfig
from niwaki.stream.drift.monitor import DetectorConfig, DriftConfig
from niwaki.stream.offline.backtest import rebatch
from niwaki.stream.offline.colours import COLOURS
from niwaki.stream.offline.history import History
from niwaki.stream.offline.report import Measured, report_data, size, summary_rows, write_report
from niwaki.stream.training.trainer import Trainer, TrainerConfig, TrainingConfig
from tests.support.streams import SCHEMA, SMALL, click_events

FLIP, EVENTS = 6_000, 12_000
MEASURED = Measured(elapsed_s=7.7, checkpoint_bytes=98_765, more=(("score <difference>", "0"),))
TRUE_DRIFTS = [{"event": FLIP, "width": 0, "kind": "abrupt", "what": "concept", "share": 0.5}]


def learned(events: EventBatch, **training) -> tuple[Trainer, History]:
    """A trainer that has learned `events`, with its history."""
    trainer = Trainer(
        TrainerConfig(
            schema=SCHEMA,
            model=SMALL,
            pruning=PruningConfig(
                warmup_events=1500,
                regrowth_events=500,
                pruning_events=1000,
                longest_wait_events=3000,
                budget=0.3,
            ),
            drift=DriftConfig(
                detectors=(DetectorConfig(detector="ADWIN", signal="log_loss"),), quiet_events=500
            ),
            training=TrainingConfig(
                **(
                    {"batch_events": 50, "window_events": 500, "publish_every_events": 250}
                    | training
                )
            ),
        )
    )
    replica = trainer.add_replica(trainer.config.training.publish_every_events)
    history = History(trainer, replica)
    for batch in rebatch([events], trainer.config.training.batch_events):
        step = trainer.step(batch)
        if replica.due(step.move):
            replica.refresh()
        history.stepped(step)
    return trainer, history


def flipping(seed: int = 0) -> EventBatch:
    return EventBatch.concat(
        [click_events(FLIP, seed=seed), click_events(EVENTS - FLIP, seed=seed + 1, flipped=True)]
    )


def data_of(trainer: Trainer, history: History, true_drifts=(), title: str = "a run") -> dict:
    return report_data(title, trainer, trainer.replicas[0], history, true_drifts)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> SimpleNamespace:
    trainer, history = learned(flipping())
    data = data_of(trainer, history, TRUE_DRIFTS, "clicks & <drifts>")
    directory = tmp_path_factory.mktemp("report") / "made" / "here"
    page = write_report(directory, data, MEASURED)
    return SimpleNamespace(
        trainer=trainer,
        history=history,
        data=data,
        directory=directory,
        page=page.read_text("utf-8"),
    )


def test_the_data_is_the_same_byte_for_byte_for_the_same_seed_and_events(run, tmp_path):
    again = data_of(*learned(flipping()), TRUE_DRIFTS, "clicks & <drifts>")
    write_report(tmp_path, again, Measured(elapsed_s=99.0))
    assert (tmp_path / "report.json").read_bytes() == (run.directory / "report.json").read_bytes()


def test_the_data_on_disk_is_the_data_with_sorted_keys(run):
    text = (run.directory / "report.json").read_text("utf-8")
    assert json.loads(text) == run.data
    assert json.dumps(run.data, indent=1, sort_keys=True) + "\n" == text


def test_a_measure_that_is_no_number_is_null_in_the_data_and_unknown_on_the_page(tmp_path):
    events = click_events(600)
    nobody_clicks = EventBatch(
        np.zeros_like(events.labels_B), events.times_s_B, events.categorical, events.numerics_BN
    )
    data = data_of(*learned(nobody_clicks))
    page = write_report(tmp_path, data, MEASURED).read_text("utf-8")
    assert data["served"]["auc"] is None and data["windows"][0]["served"]["calibration"] is None
    assert "NaN" not in (tmp_path / "report.json").read_text("utf-8")
    assert dict(summary_rows(data, MEASURED))["AUC, served"] == "unknown" and "unknown" in page


def test_a_true_drift_has_its_detection_and_its_delay(run):
    (drift,) = run.data["true_drifts"]
    first = min(row["event"] for row in run.history.drifts if row["event"] >= FLIP)
    assert (drift["detected"], drift["delay_events"]) == (first, first - FLIP)
    assert drift["delay_events"] < 1000
    rows = dict(summary_rows(run.data, MEASURED))
    assert f"1 of 1 true ones, {first - FLIP:,} events late" in rows["detected drifts"]
    assert f"{FLIP:,}" in rows["true drifts"]


def test_a_detection_belongs_to_the_latest_true_drift_before_it(run, tmp_path):
    detected = run.data["true_drifts"][0]["detected"]
    missed, later = (
        {"event": 500, "kind": "abrupt", "what": "base_rate"},
        {"event": FLIP + 1, "kind": "x", "what": "y"},
    )
    data = data_of(run.trainer, run.history, [missed, *TRUE_DRIFTS, later])
    assert [drift["detected"] for drift in data["true_drifts"]] == [None, None, detected]
    assert write_report(tmp_path, data, MEASURED).read_text("utf-8").count(">never<") == 2


def test_a_true_drift_beyond_the_events_learned_is_not_spoken_of(run):
    beyond = {"event": EVENTS, "kind": "abrupt", "what": "concept"}
    assert (
        data_of(run.trainer, run.history, [*TRUE_DRIFTS, beyond])["true_drifts"]
        == run.data["true_drifts"]
    )


def test_the_drifts_of_a_stream_without_known_ones_are_those_detected(run, tmp_path):
    data = data_of(run.trainer, run.history)
    page = write_report(tmp_path, data, MEASURED).read_text("utf-8")
    assert dict(summary_rows(data, MEASURED))["true drifts"] == "none known"
    assert f"{run.history.drifts[0]['event']:,}" in page and "no true drift" not in page


def test_a_newly_pruned_network_follows_the_drift_in_data_and_page(run):
    cuts = [cut["event"] for cut in run.data["prunings"]]
    assert cuts[0] < FLIP < cuts[-1]
    assert f"{cuts[-1]:,}" in run.page
    assert run.data["multiply_adds"] <= 0.3 * run.data["dense_multiply_adds"]
    assert run.data["network_bytes"] < run.data["dense_network_bytes"]


def test_a_checkpoint_is_compared_with_a_dense_one_of_the_same_tables(run):
    dense_bytes = (
        MEASURED.checkpoint_bytes - run.data["network_bytes"] + run.data["dense_network_bytes"]
    )
    rows = dict(summary_rows(run.data, MEASURED))
    assert (
        rows["checkpoint, with its tables"]
        == f"{size(MEASURED.checkpoint_bytes)}, dense {size(dense_bytes)}"
    )


def test_what_a_clock_measured_is_on_the_page_and_called_so_and_not_in_the_data(run):
    assert ("events/s, measured", "1,558 (7.7 s)") in summary_rows(run.data, MEASURED)
    assert "events/s, measured" in run.page and "1,558 (7.7 s)" in run.page
    assert not re.search(
        r"per_s|seconds|elapsed|98765", (run.directory / "report.json").read_text("utf-8")
    )


class Page(HTMLParser):
    """What a browser would see."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_summary_is_on_the_page_row_by_row_with_foreign_text_escaped(run):
    text = Page(run.page).text
    for label, value in summary_rows(run.data, MEASURED):
        assert label + value in text
    assert "clicks & <drifts>" in text and "<drifts>" not in run.page


def test_the_page_asks_for_nothing_that_is_not_in_it(run):
    page = Page(run.page)
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in page.tags}
    references = [
        value
        for _, attrs in page.tags
        for name, value in attrs.items()
        if name in ("src", "href", "xlink:href")
    ]
    assert references and all(value.startswith("#") for value in references)
    assert "@import" not in run.page and all(
        target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", run.page)
    )


def test_ids_on_the_page_are_unique_and_each_reference_finds_its_own(run):
    ids = re.findall(r'\sid="([^"]*)"', run.page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', run.page)) <= set(ids)


def test_each_drawing_says_in_words_what_it_shows(run):
    drawings = re.findall(r"<svg.*?</svg>", run.page, flags=re.DOTALL)
    assert len(drawings) == 5  # two for wide screens and phones, one for both
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)
        assert root.get("role") == "img" and len(root.get("aria-label")) > 40
        assert root.get("viewBox") and not root.get("width") and not root.get("height")


def test_drawings_have_only_colours_that_the_page_knows_for_light_and_dark(run):
    drawings = "".join(re.findall(r"<svg.*?</svg>", run.page, flags=re.DOTALL))
    assert not re.search(r"#[0-9a-fA-F]{6}\b", drawings)
    assert set(re.findall(r"var\(--([\w-]+)\)", run.page)) <= set(COLOURS)
    assert len({light for light, _ in COLOURS.values()}) == len(COLOURS)


def test_plots_are_written_as_png(run):
    plots = sorted(run.directory.glob("*.png"))
    assert [plot.stem for plot in plots] == ["calibration", "normalized_entropy", "sparsity"]
    for plot in plots:
        head = plot.read_bytes()[:24]
        assert head.startswith(b"\x89PNG") and int.from_bytes(head[16:20], "big") > 600


def test_a_stream_shorter_than_a_window_has_a_page_without_a_course(tmp_path):
    data = data_of(*learned(click_events(300)))
    page = write_report(tmp_path, data, MEASURED).read_text("utf-8")
    assert data["windows"] == [] and "shorter than a window" in page
    assert [path.name for path in tmp_path.glob("*.png")] == ["calibration.png"]


def test_drawing_leaves_matplotlibs_settings_alone(run, tmp_path: Path):
    def settings() -> dict[str, object]:  # to ask for the backend would be to choose one
        return {
            name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != "backend"
        }

    before, backend = settings(), matplotlib.get_backend(auto_select=False)
    write_report(tmp_path, run.data, MEASURED)
    assert settings() == before
    assert matplotlib.get_backend(auto_select=False) == backend


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (83_600, "83.6 kB"), (2_500_000, "2.5 MB")],
)
def test_sizes_are_written_in_the_unit_that_suits_them(count, text):
    assert size(count) == text
