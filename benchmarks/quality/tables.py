"""The quality benchmark's lines as a table for a person: several numbers a cell, so that it fits a
page.

In: the lines that `benchmarks.quality.summarise` makes. Out: Markdown.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.frame import table


def tables(lines: Sequence[Mapping[str, Any]]) -> str:
    """A table of all lines; gaps are medians over seeds, with the lowest and the highest in
    brackets."""
    return "\n".join(table([_row(line) for line in lines]))


def _row(line: Mapping[str, Any]) -> dict[str, str]:
    unpruned = not line["sparsity"] > 0
    served = [line[f"served_{every}"] for every in (128, 1_000, 5_000)]
    return {
        "stream": line["stream"],
        "policy": line["policy"],
        "pruned": "" if unpruned else f"{line['sparsity']:.1%}",
        "seeds": str(line["seeds"]),
        "training": _number(line["ne"], ".4f"),
        "served every 128 / 1,000 / 5,000": " / ".join(_number(ne, ".4f") or "-" for ne in served),
        "gap to dense, %": _gap(line, "gap"),
        "in the 50,000 events after a drift, %": _gap(line, "gap_after_drift"),
        "won back after": _number(line["won_back_events"], ",.0f"),
        "learning cost": _number(line["cost"], ".3f"),
        "drifts noticed": _number(line["drifts_found"], "g"),
        "units pruned, by layer": "" if unpruned else line["by_layer"],
    }


def _gap(line: Mapping[str, Any], name: str) -> str:
    middle = line[f"{name}_percent"]
    low, high = line[f"{name}_low"], line[f"{name}_high"]
    if math.isnan(middle):
        return ""
    return f"{middle:+.2f}" if line["seeds"] == 1 else f"{middle:+.2f} ({low:+.2f} to {high:+.2f})"


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)
