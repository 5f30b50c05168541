"""The report of a run: its data, its summary, and a page to read.

In: a trainer, one series of its publications, its history, and the true drifts where they are
known. Out: `report.json`, the same byte for byte for the same seed and events; `report.html`; and
PNG plots. Times that a clock measured (`Measured`) are on the page only, marked as such.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from niwaki.model.deep.network import Network
from niwaki.model.evaluation import Evaluation
from niwaki.model.mixture.merit import NetworkMerit
from niwaki.model.published.table_codes import encode_rows
from niwaki.pruning.policy import Phase
from niwaki.stream.offline.figures import plots, write_png
from niwaki.stream.offline.history import History
from niwaki.stream.offline.html import page
from niwaki.stream.offline.words import events_of, listed, number, of_dense, percent
from niwaki.stream.training.served_replica import ServedReplica
from niwaki.stream.training.trainer import Trainer


class Measured(NamedTuple):
    """Measurements that differ from one run to the next."""

    elapsed_s: float
    """Wall-clock time of the run."""
    checkpoint_bytes: int = 0
    """Size of the last full checkpoint published, header and row numbers included; 0: none was
    packed."""
    more: tuple[tuple[str, str], ...] = ()
    """Further rows for the summary: label, value."""


def report_data(
    title: str,
    trainer: Trainer,
    publication: ServedReplica,
    history: History,
    true_drifts: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Everything in a report that depends on seed and events alone, as JSON has it: not a number is
    None."""
    learner = trainer.learner
    dense, sparsity = learner.branches.dense.network, learner.branches.sparsity_by_layer()
    network_bytes, dense_network_bytes = (
        _bytes(network) for network in (learner.branches.network, dense)
    )
    data = {
        "title": title,
        "events": trainer.events,
        "policy": trainer.config.pruning.policy,
        "budget": trainer.policy.budget,
        "budget_chosen": trainer.policy.config.budget == "auto",
        "window_events": trainer.config.training.window_events,
        "prequential": _measures(trainer.prequential.total),
        "served": _measures(publication.evaluation.total),
        "publications": publication.count,
        "publish_every_events": publication.every_events,
        "served_sparsity_ratio": publication.sparsity_ratio,
        "sparsity_by_layer": sparsity,
        "multiply_adds": learner.multiply_adds,
        "dense_multiply_adds": learner.branches.dense_cost,
        "network_bytes": network_bytes,
        "dense_network_bytes": dense_network_bytes,
        "table_bytes": learner.dense_bytes - dense_network_bytes,
        "pairs": [
            {"pair": pair, "millinats": round(1000 * nats, 3) + 0.0}
            for pair, nats in learner.pairs.worth().items()
        ],
        "pair_candidates": len(learner.slots.candidates),
        "network": _network(learner.branches.merit),
        "windows": history.windows,
        "phases": history.phases,
        "drifts": history.drifts,
        "detection": trainer.monitor.achieved(),
        "prunings": history.prunings,
        "true_drifts": _matched(
            [drift for drift in true_drifts if drift["event"] < trainer.events], history
        ),
    }
    encoded = msgspec.json.encode(data, enc_hook=lambda value: value.item())
    return msgspec.json.decode(encoded, type=dict[str, Any])


def summary_rows(data: dict[str, Any], measured: Measured) -> list[tuple[str, str]]:
    """Rows (label, value) of the summary, for a terminal and for the page."""
    served, events = data["served"], data["events"]
    true_drifts = data["true_drifts"]
    layers = ", ".join(
        f"{name} {percent(ratio)}" for name, ratio in data["sparsity_by_layer"].items()
    )
    average = 1 - data["served_sparsity_ratio"]
    rows = [
        ("events", f"{events:,}"),
        ("events/s, measured", f"{events / measured.elapsed_s:,.0f} ({measured.elapsed_s:,.1f} s)"),
        ("normalized entropy, served", number(served["normalized_entropy"])),
        (
            "normalized entropy, predict then learn",
            number(data["prequential"]["normalized_entropy"]),
        ),
        ("AUC, served", number(served["auc"])),
        ("calibration, served", number(served["calibration"])),
        ("click rate", percent(served["base_rate"])),
        ("true drifts", events_of(true_drifts) if true_drifts else "none known"),
        ("detected drifts", events_of(data["drifts"]) + _delays(true_drifts)),
        ("of these, not answered", _unanswered(data["drifts"])),
        ("drift detection", _achieved(data["detection"])),
        ("phases", _phases(data)),
        ("newly pruned networks at", events_of(data["prunings"])),
        (
            "of these, took over at the bound of their wait",
            str(data["prunings"][-1]["forced"] if data["prunings"] else 0),
        ),
        ("budget", percent(data["budget"]) + (", chosen" if data["budget_chosen"] else "")),
        ("sparsity by layer", layers),
        ("pairs of columns", _pairs(data)),
        ("learning of the network", data["network"]),
        (
            "multiply-adds",
            f"{of_dense(data, data)} of dense, {percent(average)} on average over served events",
        ),
        (
            "checkpoints published",
            f"{data['publications']:,}, every {data['publish_every_events']:,} events",
        ),
        ("network", f"{size(data['network_bytes'])}, dense {size(data['dense_network_bytes'])}"),
    ]
    if measured.checkpoint_bytes:
        dense = measured.checkpoint_bytes - data["network_bytes"] + data["dense_network_bytes"]
        rows.append(
            (
                "checkpoint, with its tables",
                f"{size(measured.checkpoint_bytes)}, dense {size(dense)}",
            )
        )
    return rows + list(measured.more)


def write_report(directory: Path, data: dict[str, Any], measured: Measured) -> Path:
    """Write data, page and plots to `directory`, which is made if it is not there; returns the path
    of the page."""
    directory.mkdir(parents=True, exist_ok=True)
    encoded = msgspec.json.format(msgspec.json.encode(data, order="sorted"), indent=1)
    (directory / "report.json").write_bytes(encoded + b"\n")
    drawn = plots(data)
    for plot in drawn:
        write_png(plot, data, directory)
    path = directory / "report.html"
    path.write_text(page(data, summary_rows(data, measured), drawn), "utf-8")
    return path


def size(count: int) -> str:
    """Bytes, in the unit that suits them."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count} bytes"


def _bytes(network: Network) -> int:
    """Size of the network in a checkpoint."""
    blocks = sum(encode_rows(kept).nbytes for kept in network.kept.values())
    return 4 * sum(math.prod(shape) for shape in network.shapes.values()) + blocks


def _measures(evaluation: Evaluation) -> dict[str, Any]:
    deciles = [decile._asdict() for decile in evaluation.calibration_by_decile()]
    return evaluation.summary() | {"by_decile": deciles}


def _matched(true_drifts: Sequence[Mapping[str, Any]], history: History) -> list[dict[str, Any]]:
    """Each true drift with its detection: the first one before the next true drift."""
    starts = sorted({drift["event"] for drift in true_drifts})
    matched = []
    for drift in true_drifts:
        until = next((start for start in starts if start > drift["event"]), float("inf"))
        found = next(
            (d["sign_of"] for d in history.drifts if drift["event"] <= d["sign_of"] < until), None
        )
        matched.append(
            {
                **drift,
                "detected": found,
                "delay_events": None if found is None else found - drift["event"],
            }
        )
    return matched


def _delays(true_drifts: Sequence[Mapping[str, Any]]) -> str:
    delays = [drift["delay_events"] for drift in true_drifts]
    found = [f"{delay:,}" for delay in delays if delay is not None]
    if not delays:
        return ""
    late = f", {listed(found)} events late" if found else ""
    return f": {len(found)} of {len(delays)} true ones{late}"


def _unanswered(drifts: Sequence[Mapping[str, Any]]) -> str:
    """Number of drifts for which nothing was regrown, such as steps of the click rate alone."""
    answered = {drift["sign_of"] for drift in drifts if drift["answered"]}
    return str(len({drift["sign_of"] for drift in drifts} - answered))


def _achieved(detection: Mapping[str, Any]) -> str:
    """Numbers of drifts and watched events, and the expected rate of false alarms."""
    asked = detection["expected_events_between_false_alarms"]
    bound = f"; false alarms asked for: one in {asked:,} events" if asked else ""
    return (
        f"{detection['drifts']:,} noticed in {detection['watched_events']:,} events watched{bound}"
    )


def _network(merit: NetworkMerit | None) -> str:
    """The state of the network, resting or learning, and the loss that it saves, in words."""
    if merit is None:
        return "learns at all times"
    saved = f"{percent(merit.gain_ratio)} of the loss saved" if merit.loss else "not measured yet"
    return f"{'rests' if merit.resting else 'learns'}, {saved}"


def _pairs(data: dict[str, Any]) -> str:
    """The number of living pairs, and those that are worth most, in words."""
    best = [f"{one['pair']} {one['millinats']:.3f}" for one in data["pairs"][:3]]
    most = f"; worth most, thousandths of a nat for each event: {', '.join(best)}" if best else ""
    return f"{len(data['pairs']):,} of {data['pair_candidates']:,} live{most}"


def _phases(data: dict[str, Any]) -> str:
    starts = [*(phase["event"] for phase in data["phases"]), data["events"]]
    shares = dict.fromkeys(map(str, Phase), 0)
    for phase, (start, end) in zip(data["phases"], pairwise(starts), strict=True):
        shares[phase["phase"]] += end - start
    return ", ".join(
        f"{name} {percent(length / max(data['events'], 1))}" for name, length in shares.items()
    )
