"""The trainer's metrics: what `/metrics` says, that Prometheus takes it, and that somebody looks at
each of them."""

import json
import math
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from niwaki.serving.errors import STORE_KINDS
from niwaki.stream.errors import ConfigError
from niwaki.stream.training.stopwatch import STAGES
from niwaki.stream.training.telemetry import MAX_LABEL_VALUES, Telemetry, TelemetryConfig

ROOT = Path(__file__).parents[3]
ANY_PORT = TelemetryConfig(port=0)
SUMMARY = {
    "log_loss": 0.4,
    "normalized_entropy": 0.8,
    "calibration": 1.1,
    "auc": 0.7,
    "base_rate": 0.2,
}


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    telemetry = Telemetry([("ADWIN", "log_loss")], clock=lambda: 1_000.0)
    yield telemetry
    telemetry.stop()


def samples(telemetry: Telemetry) -> dict[str, float]:
    """What the registry holds: {'name{label="value"}': value}"""
    found = {}
    for family in telemetry.registry.collect():
        for sample in family.samples:
            labels = ",".join(f'{key}="{value}"' for key, value in sample.labels.items())
            found[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


def scrape(port: int) -> dict[str, float]:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {sample.name: sample.value for family in families for sample in family.samples}


def fill(telemetry: Telemetry) -> Telemetry:
    """Something in each of the metrics."""
    telemetry.learned(128, event_time_s=990.0, outlier_times=2)
    telemetry.rejected("label must be a number")
    telemetry.lag({0: 12, 1: 30})
    telemetry.polled(130, 84_000)
    telemetry.spent({"encode": 0.25})
    telemetry.evaluated("learning", SUMMARY)
    telemetry.evaluated("served", SUMMARY)
    telemetry.collisions({"user": 0.25})
    telemetry.pairs({"user*item": 0.5, "user*device": 0.1})
    telemetry.pairs({"user*item": 0.25})  # the other one lives no longer
    telemetry.network(resting=True, gain_ratio=0.001)
    telemetry.phase("sparse")
    telemetry.drift("ADWIN", "log_loss", before=0.3, after=0.5, error=0.02, answered=True)
    telemetry.watched("ADWIN", "log_loss", 4_000, expected_events=1_000)
    telemetry.pruned(forced=True)
    telemetry.regrown()
    telemetry.sparsity({"top.0": 0.9, "top.1": 0.8}, multiply_adds_ratio=0.1, budget_ratio=0.12)
    telemetry.published(7, 5_000, dense_bytes=40_000, created_s=970.0)
    telemetry.publication_failed("timeout")
    telemetry.quarantined(64)
    telemetry.saved(900.0)
    telemetry.snapshot_failed()
    return telemetry


def test_each_number_handed_over_is_shown(telemetry):
    assert samples(fill(telemetry)) == {
        'niwaki_events_total{outcome="learned"}': 128,
        'niwaki_events_total{outcome="quarantined"}': 64,
        'niwaki_events_total{outcome="rejected"}': 1,
        'niwaki_rejected_events_total{rule="label must be a number"}': 1,
        "niwaki_outlier_times_total": 2,
        'niwaki_lag_events{partition="0"}': 12,
        'niwaki_lag_events{partition="1"}': 30,
        "niwaki_polled_messages_total": 130,
        "niwaki_polled_bytes_total": 84_000,
        **{
            f'niwaki_stage_seconds_total{{stage="{stage}"}}': 0.25 if stage == "encode" else 0
            for stage in STAGES
        },
        "niwaki_event_age_seconds": 10,
        **{f'niwaki_log_loss_nats{{series="{series}"}}': 0.4 for series in ("learning", "served")},
        **{
            f'niwaki_normalized_entropy_ratio{{series="{series}"}}': 0.8
            for series in ("learning", "served")
        },
        **{
            f'niwaki_calibration_ratio{{series="{series}"}}': 1.1
            for series in ("learning", "served")
        },
        **{f'niwaki_auc_ratio{{series="{series}"}}': 0.7 for series in ("learning", "served")},
        **{
            f'niwaki_base_rate_ratio{{series="{series}"}}': 0.2 for series in ("learning", "served")
        },
        'niwaki_collision_ratio{field="user"}': 0.25,
        'niwaki_pair_worth_nats{pair="user*item"}': 0.25,
        "niwaki_network_resting": 1,
        "niwaki_network_gain_ratio": 0.001,
        'niwaki_phase{phase="dense"}': 0,
        'niwaki_phase{phase="pruning"}': 0,
        'niwaki_phase{phase="sparse"}': 1,
        'niwaki_drifts_total{detector="ADWIN",signal="log_loss",answered="true"}': 1,
        'niwaki_drifts_total{detector="ADWIN",signal="log_loss",answered="false"}': 0,
        **{
            f'niwaki_drift_mean{{detector="ADWIN",signal="log_loss",side="{side}"}}': mean
            for side, mean in (("before", 0.3), ("after", 0.5))
        },
        'niwaki_drift_error{detector="ADWIN",signal="log_loss"}': 0.02,
        'niwaki_watched_events{detector="ADWIN",signal="log_loss"}': 4_000,
        'niwaki_expected_events{detector="ADWIN",signal="log_loss"}': 1_000,
        "niwaki_prunings_total": 1,
        "niwaki_forced_handovers_total": 1,
        "niwaki_regrowths_total": 1,
        'niwaki_sparsity_ratio{layer="top.0"}': 0.9,
        'niwaki_sparsity_ratio{layer="top.1"}': 0.8,
        "niwaki_multiply_adds_ratio": 0.1,
        "niwaki_budget_ratio": 0.12,
        "niwaki_published_version": 7,
        "niwaki_published_bytes": 5_000,
        "niwaki_dense_bytes": 40_000,
        "niwaki_published_age_seconds": 30,
        **{
            f'niwaki_publication_failures_total{{kind="{kind}"}}': int(kind == "timeout")
            for kind in STORE_KINDS
        },
        "niwaki_publication_interrupted": 1,
        "niwaki_snapshot_age_seconds": 100,
        "niwaki_snapshot_failures_total": 1,
        "niwaki_snapshot_failing": 1,
    }


def test_counters_start_at_zero_so_that_their_first_increase_is_seen(telemetry):
    shown = samples(telemetry)
    assert shown['niwaki_events_total{outcome="learned"}'] == 0
    assert shown['niwaki_events_total{outcome="rejected"}'] == 0
    for answered in ("true", "false"):
        labels = f'detector="ADWIN",signal="log_loss",answered="{answered}"'
        assert shown[f"niwaki_drifts_total{{{labels}}}"] == 0


def test_ages_grow_while_nothing_happens_and_are_unknown_before_anything_has():
    now_s = 100.0
    telemetry = Telemetry(clock=lambda: now_s)
    assert math.isnan(samples(telemetry)["niwaki_published_age_seconds"])
    telemetry.published(1, 10, dense_bytes=20, created_s=now_s)
    telemetry.learned(1, event_time_s=0.0)
    now_s += 60
    assert samples(telemetry)["niwaki_published_age_seconds"] == 60
    assert math.isnan(samples(telemetry)["niwaki_event_age_seconds"])  # these events carry no time


def test_a_measure_that_does_not_exist_yet_is_not_a_number(telemetry):
    telemetry.evaluated("served", {"log_loss": 0.4})
    assert samples(telemetry)['niwaki_log_loss_nats{series="served"}'] == 0.4
    assert math.isnan(samples(telemetry)['niwaki_auc_ratio{series="served"}'])


def test_a_series_that_nobody_declared_is_refused(telemetry):
    with pytest.raises(ValueError, match="series must be one of learning, served, got 'training'"):
        telemetry.evaluated("training", SUMMARY)


def test_label_values_are_bounded_and_no_event_is_lost(telemetry):
    for number in range(3 * MAX_LABEL_VALUES):
        telemetry.rejected(f"rule {number}")
    by_rule = {
        name: value
        for name, value in samples(telemetry).items()
        if name.startswith("niwaki_rejected_events")
    }
    assert len(by_rule) == MAX_LABEL_VALUES + 1
    assert sum(by_rule.values()) == 3 * MAX_LABEL_VALUES
    assert by_rule['niwaki_rejected_events_total{rule="other"}'] == 2 * MAX_LABEL_VALUES


def test_two_trainers_in_one_process_do_not_mix(telemetry):
    other = Telemetry()
    telemetry.pruned(forced=True)
    assert samples(other)["niwaki_prunings_total"] == 0


def test_metrics_are_served_over_http_until_stopped(telemetry):
    port = fill(telemetry).start(ANY_PORT)
    assert scrape(port)["niwaki_published_version"] == 7
    telemetry.stop()
    with pytest.raises(URLError):
        scrape(port)
    telemetry.stop()


def test_a_port_that_is_taken_is_the_users_to_change(telemetry):
    port = telemetry.start(ANY_PORT)
    message = rf"^telemetry.port: can't listen on 127.0.0.1:{port} \(Address already in use\)"
    with pytest.raises(ConfigError, match=message):
        Telemetry().start(TelemetryConfig(port=port))


def expressions() -> dict[str, str]:
    """Every PromQL expression of the dashboard and the alerts, by its title."""
    dashboard = json.loads((ROOT / "config/grafana/dashboards/niwaki.json").read_text("utf-8"))
    found = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    }
    alerts = (ROOT / "config/alerts.yml").read_text("utf-8")
    found |= dict(re.findall(r"- alert: (\w+)\n +expr: (.+)", alerts))
    return found


def test_panels_and_alerts_look_at_each_metric_and_at_nothing_else():
    code = (ROOT / "stream/training/telemetry.py").read_text("utf-8") + (
        ROOT / "serving/metrics.py"
    ).read_text("utf-8")
    declared = set(re.findall(r'"(niwaki_\w+)"', code))
    looked_at = set(re.findall(r"niwaki_\w+", " ".join(expressions().values())))
    assert {re.sub("_(total|bucket)$", "", name) for name in looked_at} == declared


def command(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"no {name} on the PATH (Debian: apt-get install prometheus)")
    return path


def promtool(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [command("promtool"), *arguments], input=text, capture_output=True, text=True, cwd=ROOT
    )


def test_promtool_finds_nothing_to_say_about_the_metrics(telemetry):
    port = fill(telemetry).start(ANY_PORT)
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        checked = promtool("check", "metrics", text=answer.read().decode())
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_promtool_takes_the_configuration_of_prometheus():
    checked = promtool("check", "config", "config/prometheus.yml")
    assert checked.returncode == 0, checked.stderr


def test_each_alert_fires_when_it_should_and_only_then():
    checked = promtool("test", "rules", "tests/alerts.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    shown = (ROOT / "tests/alerts.yml").read_text("utf-8")
    for name in re.findall(r"- alert: (\w+)", (ROOT / "config/alerts.yml").read_text("utf-8")):
        assert f'alertname="{name}"' in shown, f"{name} is never shown firing"


@pytest.fixture
def prometheus(telemetry, tmp_path) -> Iterator[str]:
    """A real Prometheus that scrapes the trainer; its URL."""
    port = telemetry.start(ANY_PORT)
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 200ms, scrape_timeout: 200ms}\n"
        "scrape_configs: [{job_name: trainer,"
        f" static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}]\n"
    )
    arguments = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    arguments += ["--web.listen-address=127.0.0.1:0", "--log.format=json"]
    process = subprocess.Popen(
        [command("prometheus"), *arguments], stderr=subprocess.PIPE, text=True
    )
    try:
        address, ready = None, False
        for line in map(json.loads, process.stderr):  # the two come in either order
            address = line["address"] if line.get("msg") == "Listening on" else address
            ready = ready or "ready to receive" in line.get("msg", "")
            if address and ready:
                break
        assert address and ready
        threading.Thread(
            target=process.stderr.read, daemon=True
        ).start()  # so that it never blocks on a full pipe
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


def ask(prometheus: str, expression: str) -> list[dict]:
    with urlopen(f"{prometheus}/api/v1/query?query={quote(expression)}", timeout=5) as answer:
        return json.load(answer)["data"]["result"]


def test_a_real_prometheus_scrapes_the_trainer_and_answers_every_panel(telemetry, prometheus):
    fill(telemetry)
    deadline_s = time.monotonic() + 20
    while (
        not (found := ask(prometheus, "niwaki_published_version")) and time.monotonic() < deadline_s
    ):
        threading.Event().wait(0.1)
    assert found and found[0]["value"][1] == "7"
    for title, expression in expressions().items():
        assert ask(prometheus, expression) is not None, title
