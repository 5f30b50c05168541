"""The page of a report: one HTML file that needs no other, for light and dark, for a wide screen
and a phone.

In: a report's data, the rows of its summary, its plots. Out: the text of the page. Everything that
came from outside is escaped. The page computes nothing.
"""

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from niwaki.stream.offline.colours import COLOURS
from niwaki.stream.offline.figures import Plot, svg
from niwaki.stream.offline.words import number, of_dense, percent

_MOST_ROWS = 15  # more of them are folded up


def page(data: dict[str, Any], summary: Sequence[tuple[str, str]], drawn: Sequence[Plot]) -> str:
    """The whole page."""
    true_drifts = bool(data["true_drifts"])
    drift_head: tuple[str, ...] = (
        ("true drift at", "what", "detected at", "events late") if true_drifts else ("detected at",)
    )
    drift_head += ("by", "mean before \u2192 after", "since", "next cut at")
    groups = list(data["sparsity_by_layer"])
    prunings = [
        (f"{cut['event']:,}", *(f"{cut['kept'][group]:,}" for group in groups), of_dense(cut, data))
        for cut in data["prunings"]
    ]
    deciles = [
        (str(place), percent(d["predicted"]), percent(d["clicked"]), f"{d['events']:,}")
        for place, d in enumerate(data["served"]["by_decile"], 1)
    ]
    pairs = [(one["pair"], f"{one['millinats']:.3f}") for one in data["pairs"]]
    plot = {one.name: _figure(one, data) for one in drawn}
    parts = [
        f"<h1>{escape(data['title'])}</h1>",
        f"<p class=lede>{_lede(data)}</p>",
        plot.get(
            "normalized_entropy",
            "<p>The stream was shorter than a window: there is no course to plot.</p>",
        ),
        plot.get("sparsity", ""),
        "<h2>Summary</h2>",
        _table((), summary, "summary"),
        "<h2>Drifts</h2>",
        _table(drift_head, _drift_rows(data)) or "<p>None.</p>",
        "<h2>Newly pruned networks</h2>",
        _table(
            ("cut at", *(f"units in {group}" for group in groups), "multiply-adds of dense"),
            prunings,
        )
        or "<p>None.</p>",
        "<h2>Pairs of columns</h2>",
        _table(("pair", "log loss saved, thousandths of a nat"), pairs) or "<p>None.</p>",
        "<h2>Calibration</h2>",
        f"<div class=beside>{plot.get('calibration', '')}"
        f"{_table(('decile', 'mean prediction', 'click rate', 'events'), deciles)}</div>",
        "<footer>The data of this page, without what a clock measured, is in report.json beside "
        "it. The same seed and events give the same file, byte for byte.</footer>",
    ]
    return _HTML.format(title=escape(data["title"]), style=_style(), body="\n".join(parts))


def _lede(data: dict[str, Any]) -> str:
    """The run in a few words."""
    true_drifts = data["true_drifts"]
    found = sum(drift["detected"] is not None for drift in true_drifts)
    detected = (
        f"{found} of {_many(len(true_drifts), 'true drift')}"
        if true_drifts
        else _many(len(data["drifts"]), "drift")
    )
    return (
        f"{_many(data['events'], 'event')}, predicted by the served model with a normalized "
        f"entropy of {number(data['served']['normalized_entropy'])}. {detected} detected. "
        f"{_many(len(data['prunings']), 'newly pruned network')}; what is served in the end takes "
        f"{of_dense(data, data)} of the dense network's multiply-adds."
    )


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _what(drift: Mapping[str, Any]) -> str:
    """A true drift in words."""
    parts = [f"{drift['kind']} {drift['what'].replace('_', ' ')}"]
    for key in ("share", "base_rate", "field"):
        if drift.get(key, 1) != 1:
            parts.append(f"{key.replace('_', ' ')} {drift[key]}")
    if drift.get("width"):
        parts.append(f"over {drift['width']:,} events")
    return ", ".join(parts)


def _size(drift: Mapping[str, Any]) -> str:
    """The change of a drift's signal and that of the log loss, in words."""
    parts = []
    for name, key in (("", ""), ("loss ", "loss_")):
        before, after = drift[f"{key}before"], drift[f"{key}after"]
        if before is not None:
            error = number(drift[f"{key}error"])
            parts.append(f"{name}{number(before)} \u2192 {number(after)} \u00b1 {error}")
    return ", ".join(parts)


def _drift_rows(data: dict[str, Any]) -> list[tuple[str, ...]]:
    """True drifts with their detections, and the detections that belong to none, in order."""
    detections: dict[int, list[dict[str, Any]]] = {}
    for drift in data["drifts"]:
        detections.setdefault(drift["sign_of"], []).append(drift)
    cuts = [pruning["event"] for pruning in data["prunings"]]

    def noticed(event: int) -> tuple[str, ...]:
        by = "; ".join(
            f"{drift['detector']} on {drift['signal'].replace('_', ' ')}"
            for drift in detections[event]
        )
        change = "; ".join(_size(drift) for drift in detections[event])
        since = "; ".join(f"{drift['began']:,}, {drift['kind']}" for drift in detections[event])
        if not any(drift["answered"] for drift in detections[event]):
            return by, change, since, "not answered"
        return by, change, since, next((f"{at:,}" for at in cuts if at > event), "")

    if not data["true_drifts"]:
        return [(f"{event:,}", *noticed(event)) for event in detections]
    rows = []
    for true in data["true_drifts"]:
        event, found = true["detected"], ("never", *[""] * 5)
        if event is not None:
            found = (f"{event:,}", f"{true['delay_events']:,}", *noticed(event))
        rows.append((true["event"], (f"{true['event']:,}", _what(true), *found)))
    for event in detections.keys() - {true["detected"] for true in data["true_drifts"]}:
        rows.append((event, ("", "no true drift", f"{event:,}", "", *noticed(event))))
    return [row for _, row in sorted(rows)]


def _figure(plot: Plot, data: dict[str, Any]) -> str:
    drawings = "".join(svg(plot, data, width) for width in plot.widths)
    kind = "only" if len(plot.widths) == 1 else "both"
    return (
        f"<figure class={kind}>{drawings}<figcaption>{escape(plot.caption)}</figcaption></figure>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table, or nothing where there are no rows. Without a head, each row begins with its own."""
    if not rows:
        return ""
    columns = zip(*rows, strict=True)
    numeric = (
        head and all(re.fullmatch(r"[-\d,.]*(\u00a0%)?", cell) for cell in column)
        for column in columns
    )
    aligned = [" class=number" if right else "" for right in numeric]

    def line(cells: Sequence[str], begins: str, others: str) -> str:
        tags = [begins, *[others] * (len(cells) - 1)]
        opened = (f"<{tag}{how}>" for tag, how in zip(tags, aligned, strict=True))
        parts = (tag + escape(cell) for tag, cell in zip(opened, cells, strict=True))
        return "<tr>" + "".join(parts)

    lines = [line(head, "th scope=col", "th scope=col")] if head else []
    lines += [line(row, "td" if head else "th scope=row", "td") for row in rows]
    table = f'<div class=scroll><table class="{kind}">{"".join(lines)}</table></div>'
    if len(rows) <= _MOST_ROWS or kind == "summary":
        return table
    return f"<details><summary>{len(rows):,} rows</summary>{table}</details>"


def _style() -> str:
    light, dark = (
        ";".join(f"--{name}:{pair[at]}" for name, pair in COLOURS.items()) for at in (0, 1)
    )
    return f":root{{{light}}}\n@media (prefers-color-scheme: dark) {{:root{{{dark}}}}}\n{_CSS}"


_CSS = """
:root { color-scheme: light dark }
body { margin: 2.5rem auto 4rem; padding: 0 1.1rem; max-width: 47rem;
  color: var(--ink); background: var(--paper);
  font: 1rem/1.5 "Iowan Old Style", Palatino, "Palatino Linotype", Georgia, serif }
h1 { font-size: 1.7rem; font-weight: 400; line-height: 1.2; margin: 0 0 .6rem }
h2 { font-size: 1.1rem; font-weight: 400; font-style: italic; margin: 2.6rem 0 .5rem }
.lede { margin: 0 0 2rem }
figure { margin: 1.6rem 0 }
svg { display: block; width: 100%; height: auto }
svg text { white-space: pre;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif !important }
.both .narrow { display: none }
figcaption, footer { color: var(--faint); font-size: .85rem; line-height: 1.4; margin-top: .4rem }
footer { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: .8rem }
.scroll { overflow-x: auto }
.beside { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 0 2.5rem;
  align-items: center }
.beside figure { margin: 0 }
table { border-collapse: collapse; font-size: .88rem;
  font-variant-numeric: tabular-nums lining-nums }
th { font-weight: 400; text-align: left; color: var(--faint); vertical-align: top }
th, td { padding: .25rem 1.1rem .25rem 0; border-bottom: 1px solid var(--line) }
th:last-child, td:last-child { padding-right: 0 }
.number { text-align: right }
table:not(.summary) th, table:not(.summary) td { white-space: nowrap }
table.summary { width: 100% }
@media (max-width: 36rem) {
  .both .wide { display: none }
  .both .narrow { display: block }
  .beside { grid-template-columns: minmax(0, 1fr); gap: 1.5rem }
  table.summary th { width: 9rem }
}
"""

_HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
