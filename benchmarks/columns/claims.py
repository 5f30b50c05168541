"""Tables and claims of the benchmark of columns, from its rows.

In: rows of `benchmarks.columns`. Out: a table in Markdown, and claims with their bounds.
"""

from statistics import median
from typing import Any

from benchmarks.frame import at_most, spread


def table(measured: list[dict[str, Any]]) -> str:
    """The medians over seeds, with their spread, as Markdown."""
    lines = ["| recording | variant | NE | low | high | calibration |", "|---|---|--:|--:|--:|--:|"]
    for name, variant in dict.fromkeys((row["recording"], row["variant"]) for row in measured):
        own = [row for row in measured if (row["recording"], row["variant"]) == (name, variant)]
        ne = spread([row["served_ne"] for row in own])
        calibration = median(row["calibration"] for row in own)
        values = f"{ne.median:.4f} | {ne.low:.4f} | {ne.high:.4f} | {calibration:.4f}"
        lines.append(f"| {name} | {variant} | {values} |")
    return "\n".join(lines)


def seam_claims(measured: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The claim of what is lost where a column is added in mid-stream."""
    by_run = {(r["variant"], r["seed"]): r["served_ne"] for r in measured if r["recording"] == name}
    ratios = [
        ne / by_run["column from then on", seed] - 1
        for (variant, seed), ne in by_run.items()
        if variant == "column added"
    ]
    if not ratios:
        return []
    return [at_most(f"{name}: NE lost, a column added in mid-stream", median(ratios), 0.001)]


def pair_claims(measured: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The claim that the pairs of fields that the stream chooses are as good as none or all."""
    runs = {
        variant: {
            row["seed"]: row["served_ne"]
            for row in measured
            if (row["recording"], row["variant"]) == (name, variant)
        }
        for variant in ("no pairs", "pairs of fields", "all pairs of fields")
    }
    chosen, others = runs["pairs of fields"], (runs["no pairs"], runs["all pairs of fields"])
    ratios = [
        ne / min(other[seed] for other in others if seed in other) - 1
        for seed, ne in chosen.items()
    ]
    if not ratios:
        return []
    return [at_most(f"{name}: NE over the better of no and all pairs", median(ratios), 0.001)]


def losses(measured: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The claims of what sampling loses on one recording."""
    by_run = {(r["variant"], r["seed"]): r for r in measured if r["recording"] == name}
    claims = []
    for kind, what in (("", "as recorded"), ("rare ", "a twentieth of the clicks")):
        pairs = [
            (by_run[f"{kind}sampled", seed], one)
            for (variant, seed), one in by_run.items()
            if variant == f"{kind}whole"
        ]
        if pairs:
            off = median(abs(one["calibration"] / whole["calibration"] - 1) for one, whole in pairs)
            lost = median(one["served_ne"] / whole["served_ne"] - 1 for one, whole in pairs)
            about = f"{name}, {what}, sampled at a tenth"
            claims.append(at_most(f"{about}: click rate off", off, 0.01))
            claims.append(at_most(f"{about}: NE lost", lost, 0.005))
    return claims
