"""Plots of a report, as SVG in the colours of its page and as PNG. The one home of matplotlib.

In: a report's data (`stream.offline.report.report_data`). Out: figures. They are `Figure` objects,
not pyplot's, so neither a display nor any state of matplotlib's is needed or left behind. Figures
have the colours of the light page; in SVG each becomes the CSS variable of its name.
"""

import io
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from html import escape
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from niwaki.stream.offline.colours import COLOURS
from niwaki.stream.offline.words import events_of, number, percent

WIDTHS_IN = {"wide": 7.4, "narrow": 3.8, "square": 4.1}
_LIGHT = {name: light for name, (light, _) in COLOURS.items()}
_INK, _PAPER = _LIGHT["ink"], _LIGHT["paper"]
_FAINT, _LINE = _LIGHT["faint"], _LIGHT["line"]
_SERVED, _DRIFT = _LIGHT["served"], _LIGHT["drift"]
_DENSE, _PRUNING = _LIGHT["dense"], _LIGHT["pruning"]
_LAYERS = [light for name, light in _LIGHT.items() if name.startswith("layer")]
_TEXT_PT = 8.5
_HEIGHT_IN = 2.9
_LEFT_IN, _RIGHT_IN = 0.5, 0.98
_BOTTOM_IN, _TOP_IN = 0.5, 0.45


class Plot(NamedTuple):
    """One plot of a report."""

    name: str
    """Its file's name, without the extension."""
    caption: str
    alt: str
    """Alternative text, which describes the plot."""
    draw: Callable[[dict[str, Any], float], Figure]
    """The figure of a report's data at a width in inches."""
    widths: tuple[str, ...] = ("wide", "narrow")


def plots(data: dict[str, Any]) -> list[Plot]:
    """The plots that there is data for."""
    found = []
    if data["windows"]:
        last = data["windows"][-1]
        served, learning = (
            number(last[series]["normalized_entropy"]) for series in ("served", "prequential")
        )
        layers = ", ".join(
            f"{name} {percent(ratio)}" for name, ratio in last["sparsity_by_layer"].items()
        )
        found += [
            Plot(
                "normalized_entropy",
                "Normalized entropy over events: 1 is a model that always predicts the click rate, "
                "lower is better. Served: each event predicted by the checkpoint published last "
                "before it; until the first one, by the click rate so far. Learning: by the "
                "learner itself, just before it learned the event. Each step is a window of "
                f"about {data['window_events']:,} events. Shaded: a dense network learns.",
                f"Normalized entropy by window. Served predictions end at {served}, "
                f"learning at {learning}. True drifts: {events_of(data['true_drifts'])}. "
                f"Detected drifts: {events_of(data['drifts'])}.",
                entropy,
            ),
            Plot(
                "sparsity",
                "Sparsity of the published network: the share of each layer's units, and of all "
                "multiply-adds, that is cut away. No layer's share is set by hand.",
                f"Sparsity by layer over events. At the end: {layers}, and "
                f"{percent(last['sparsity_ratio'])} of multiply-adds.",
                sparsity,
            ),
        ]
    if deciles := data["served"]["by_decile"]:
        lowest, highest = (
            f"predicts {percent(decile['predicted'])} clicks and sees {percent(decile['clicked'])}"
            for decile in (deciles[0], deciles[-1])
        )
        found.append(
            Plot(
                "calibration",
                "Calibration of the served predictions: ten slices of the events, from the lowest "
                "prediction to the highest. On the diagonal as many click as was predicted. "
                "Whiskers: two standard errors.",
                f"Calibration by decile of the prediction. The lowest decile {lowest}, "
                f"the highest {highest}.",
                calibration,
                ("square",),
            )
        )
    return found


def entropy(data: dict[str, Any], width_in: float) -> Figure:
    """Normalized entropy over events, with phases and drifts."""
    figure, axes = _canvas(data, width_in)
    windows = data["windows"]
    learning = [window["prequential"]["normalized_entropy"] for window in windows]
    served = [window["served"]["normalized_entropy"] for window in windows]
    steps = partial(axes.stairs, edges=[0, *(window["event"] for window in windows)], baseline=None)
    steps(_plain(learning), color=_FAINT, linewidth=0.9, label="learning")
    steps(_plain(served), color=_SERVED, linewidth=1.6, label="served")
    known = [1.0, *(value for value in learning + served if value is not None)]
    low, high = min(known), max(known)
    axes.set_ylim(low - 0.04 * (high - low + 0.1), high + 0.01)
    axes.axhline(1, color=_LINE, linewidth=0.8, zorder=0.5)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    _mark_phases(axes, data, width_in)
    _mark_drifts(axes, data)
    ends = [_End("learning", learning[-1], _FAINT), _End("served", served[-1], _SERVED)]
    _label_ends(axes, [*ends, _End("constant", 1.0, _FAINT)])
    return figure


def sparsity(data: dict[str, Any], width_in: float) -> Figure:
    """Sparsity by layer, and of the multiply-adds, over events."""
    figure, axes = _canvas(data, width_in)
    windows, ends = data["windows"], []
    for place, name in enumerate(windows[-1]["sparsity_by_layer"]):
        colour = _LAYERS[place % len(_LAYERS)]
        values = [window["sparsity_by_layer"][name] for window in windows]
        axes.plot(
            *_course(data, values),
            color=colour,
            linewidth=1.1,
            linestyle="-" if place < len(_LAYERS) else "--",
        )
        ends.append(_End(name, values[-1], colour))
    values = [window["sparsity_ratio"] for window in windows]
    axes.plot(*_course(data, values), color=_INK, linewidth=1.8, zorder=1.9)
    ends.append(_End("multiply-adds", values[-1], _INK))
    axes.set_ylim(-0.02, 1.02)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}\u00a0%"))
    _mark_phases(axes, data, width_in)
    _mark_drifts(axes, data)
    _label_ends(axes, ends)
    return figure


class Line(NamedTuple):
    """One line over the events of a stream."""

    name: str
    events: Sequence[int]
    values: Sequence[float]
    """Percent."""


def write_gaps(path: Path, lines: Sequence[Line], *, events: int, drifts: Sequence[int]) -> None:
    """Draw `lines` and the zero line of their reference, over `events` events with true
    `drifts`."""
    figure, axes = _canvas({"events": events}, WIDTHS_IN["wide"])
    axes.axhline(0, color=_LINE, linewidth=0.8, zorder=0.5)
    ends = []
    for place, line in enumerate(lines):
        colours = [*_LAYERS, _SERVED]  # the last line is niwaki's
        colour = colours[(place - len(lines)) % len(colours)]
        axes.plot(
            line.events, line.values, color=colour, linewidth=1.8 if colour == _SERVED else 1.1
        )
        ends.append(_End(line.name, line.values[-1], colour))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:+g}\u00a0%" if value else "dense")
    )
    axes.text(
        0,
        1.03,
        "loss as served, less is better",
        color=_FAINT,
        fontsize=_TEXT_PT,
        transform=axes.transAxes,
    )
    _mark_drifts(axes, {"true_drifts": [{"event": event} for event in drifts], "drifts": []})
    _label_ends(axes, ends)
    figure.savefig(path, dpi=160, facecolor=_PAPER)


def calibration(data: dict[str, Any], width_in: float) -> Figure:
    """Click rate against mean prediction, by decile of the prediction."""
    side_in = width_in - _LEFT_IN - 0.2
    height_in = side_in + _BOTTOM_IN + 0.3
    figure = Figure(figsize=(width_in, height_in))
    place = (_LEFT_IN / width_in, _BOTTOM_IN / height_in, side_in / width_in, side_in / height_in)
    axes = _quiet(figure.add_axes(place))
    deciles = data["served"]["by_decile"]
    predicted, clicked = ([decile[key] for decile in deciles] for key in ("predicted", "clicked"))
    errors = [
        2 * (rate * (1 - rate) / decile["events"]) ** 0.5
        for rate, decile in zip(clicked, deciles, strict=True)
    ]
    most = min(1.05 * max(*predicted, *(c + e for c, e in zip(clicked, errors, strict=True))), 1.0)
    axes.plot([0, most], [0, most], color=_LINE, linewidth=0.9, zorder=0.5)
    axes.errorbar(
        predicted, clicked, yerr=errors, fmt="none", ecolor=_SERVED, elinewidth=0.8, alpha=0.6
    )
    axes.plot(
        predicted,
        clicked,
        linestyle="none",
        marker="o",
        markersize=4.5,
        markeredgewidth=0,
        color=_SERVED,
    )
    axes.set(xlim=(0, most), ylim=(0, most))
    axes.set_xlabel("mean prediction", color=_FAINT, fontsize=_TEXT_PT)
    axes.text(
        0,
        1.03,
        "click rate",
        color=_FAINT,
        fontsize=_TEXT_PT,
        ha="center",
        transform=axes.transAxes,
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}\u00a0%"))
    return figure


def svg(plot: Plot, data: dict[str, Any], width: str) -> str:
    """An `<svg>` element for a page: no size of its own, text as text, ids of its own, colours as
    variables."""
    buffer = io.StringIO()
    figure = plot.draw(data, WIDTHS_IN[width])
    # Matplotlib takes these two from its global settings only; they are restored at once.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": plot.name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{plot.name}-{width}-", text)
    text = re.sub(r'(?<=\s)(width|height)="[^"]*"', "", text, count=2)  # those of <svg> come first
    for name, (light, _) in COLOURS.items():
        text = text.replace(light, f"var(--{name})")
    return text.replace(
        "<svg ", f'<svg role="img" aria-label="{escape(plot.alt)}" class="{width}" ', 1
    )


def write_png(plot: Plot, data: dict[str, Any], directory: Path) -> Path:
    """Write the plot as it looks on a light page to `directory`; returns the path."""
    path = directory / f"{plot.name}.png"
    plot.draw(data, WIDTHS_IN[plot.widths[0]]).savefig(path, dpi=160, facecolor=_PAPER)
    return path


def _canvas(data: dict[str, Any], width_in: float) -> tuple[Figure, Axes]:
    """Axes over the events of the stream, with room for labels above and to the right."""
    figure = Figure(figsize=(width_in, _HEIGHT_IN))
    across, up = width_in - _LEFT_IN - _RIGHT_IN, _HEIGHT_IN - _BOTTOM_IN - _TOP_IN
    place = (_LEFT_IN / width_in, _BOTTOM_IN / _HEIGHT_IN, across / width_in, up / _HEIGHT_IN)
    axes = _quiet(figure.add_axes(place))
    axes.set_xlim(0, data["events"])
    axes.xaxis.set_major_locator(MaxNLocator(max(int(across), 3), steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("events", color=_FAINT, fontsize=_TEXT_PT)
    return figure, axes


def _quiet(axes: Axes) -> Axes:
    axes.set_facecolor("none")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set(color=_LINE, linewidth=0.8)
    axes.tick_params(color=_LINE, labelcolor=_FAINT, labelsize=_TEXT_PT, length=3, width=0.8)
    return axes


def _mark_phases(axes: Axes, data: dict[str, Any], width_in: float) -> None:
    """Shade the dense and the pruning phases; name each above its band where the name fits."""
    colours = {"dense": _DENSE, "pruning": _PRUNING}
    starts = {phase["event"]: phase["phase"] for phase in data["phases"]}
    # A dense phase after a dense phase continues its band.
    runs = [next(run)[0] for _, run in groupby(starts.items(), key=lambda item: item[1])]
    across_in = width_in - _LEFT_IN - _RIGHT_IN
    for start, end in pairwise([*runs, data["events"]]):
        name = starts[start]
        if name in colours:
            axes.axvspan(start, end, color=colours[name], linewidth=0, zorder=0)
        if (end - start) / data["events"] * across_in > 0.055 * len(name):
            font: dict[str, Any] = {
                "color": _FAINT,
                "fontsize": _TEXT_PT - 1.5,
                "fontstyle": "italic",
            }
            where: dict[str, Any] = {
                "ha": "center",
                "va": "bottom",
                "transform": axes.get_xaxis_transform(),
            }
            axes.text((start + end) / 2, 1.015, name, **font, **where)


def _mark_drifts(axes: Axes, data: dict[str, Any]) -> None:
    """A dashed line at each true drift, a triangle on the axis where one was detected."""
    events = sorted({drift["event"] for drift in data["true_drifts"]})
    for event in events:
        axes.axvline(event, color=_DRIFT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    detected = [drift["event"] for drift in data["drifts"]]
    triangle: dict[str, Any] = {
        "color": _DRIFT,
        "marker": "^",
        "markersize": 5.5,
        "markeredgewidth": 0,
        "linestyle": "none",
    }
    axes.plot(
        detected,
        [0.025] * len(detected),
        transform=axes.get_xaxis_transform(),
        clip_on=False,
        **triangle,
    )
    key = [
        word
        for word, there in (("\u2506 true drift", events), ("\u25b4 detected drift", detected))
        if there
    ]
    where: dict[str, Any] = {"ha": "right", "va": "bottom", "transform": axes.transAxes}
    axes.text(1, 1.095, "    ".join(key), color=_DRIFT, fontsize=_TEXT_PT - 0.5, **where)


def _course(data: dict[str, Any], values: Sequence[float]) -> tuple[list[int], list[float]]:
    """The points of a line through the values at the ends of windows: it moves while pruning, and
    jumps at a cut."""
    cuts = {pruning["event"] for pruning in data["prunings"]}
    points = [(0, 0.0)]
    start, before = points[0]
    for window, value in zip(data["windows"], values, strict=True):
        for phase in data["phases"]:
            if start < phase["event"] <= window["event"]:
                points.append((phase["event"], before))
                if phase["event"] in cuts:
                    points.append((phase["event"], value))
        points.append((window["event"], value))
        start, before = window["event"], value
    return [event for event, _ in points], [value for _, value in points]


class _End(NamedTuple):
    """The right end of a line."""

    name: str
    value: float | None
    colour: str


def _label_ends(axes: Axes, ends: Sequence[_End]) -> None:
    """Name each line at its right end, in its colour; names that would overlap make way for each
    other."""
    low, high = axes.get_ylim()
    gap = 1.25 * _TEXT_PT / 72 / (_HEIGHT_IN - _BOTTOM_IN - _TOP_IN)
    known = sorted(((end.value - low) / (high - low), end) for end in ends if end.value is not None)
    heights = [height for height, _ in known]
    for place in range(1, len(heights)):
        heights[place] = max(heights[place], heights[place - 1] + gap)
    for place in range(len(heights) - 1, -1, -1):
        above = heights[place + 1] - gap if place + 1 < len(heights) else 1.0
        heights[place] = min(heights[place], above)
    for height, end in zip(heights, (end for _, end in known), strict=True):
        axes.text(
            1.012,
            height,
            end.name,
            color=end.colour,
            fontsize=_TEXT_PT,
            va="center",
            transform=axes.transAxes,
        )


def _plain(values: Iterable[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]
