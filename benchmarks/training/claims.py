"""The ratios of rates of the training benchmark, and the claims about them.

In: measured rows, and the seconds of each system in each round. Out: claims, whether they hold or
not.
"""

from statistics import median
from typing import Any

from benchmarks.frame import at_least, at_most
from benchmarks.training.systems import (
    OTHERS_BATCH,
    PLAIN,
    RIVER_ADPREDICTOR,
    RIVER_LOGISTIC,
    VARIANTS,
    VW_LINEAR,
)


def ratio(
    taken: dict[tuple[str, str], list[tuple[float, float]]],
    slower: tuple[str, str],
    faster: tuple[str, str],
    place: int = 0,
) -> float:
    """Median over rounds. `place`: 0 for learning, 1 with hashing."""
    return median(a[place] / b[place] for a, b in zip(taken[slower], taken[faster], strict=True))


def best_plain(taken: dict[tuple[str, str], list[tuple[float, float]]]) -> tuple[str, str]:
    """The plain loop with the number of threads that suits it best, by the median of the rounds."""
    return min(
        (key for key in taken if key[0].startswith(PLAIN)),
        key=lambda key: median(s for s, _ in taken[key]),
    )


def claims(rows: list[dict[str, Any]], taken: dict[tuple[str, int], Any]) -> list[dict[str, Any]]:
    """The claims, as far as there are rows."""
    made = []
    for (top, batch), found in taken.items():
        if batch != 512:
            continue
        for name in VARIANTS:
            other = best_plain(found)
            about, bound = (
                f"{name}, {top}, batches of {batch}: times the {other[0]}",
                4.0 if top == "512-256" else 8.0,
            )
            made.append(
                at_least(f"{about}, 90 % pruned", ratio(found, other, (name, "sparse, 90%")), bound)
            )
            made.append(at_least(f"{about}, dense", ratio(found, other, (name, "dense")), 1.3))
    found = taken.get(("512-256", OTHERS_BATCH), {})
    entropy = {
        (row["system"], row["phase"]): row["normalized_entropy"]
        for row in rows
        if row["top"] in ("512-256", "") and row["batch"] == OTHERS_BATCH
    }
    for ours in [(name, "sparse, 90%") for name in VARIANTS] if (VW_LINEAR, "") in found else []:
        about, river = (
            f"{ours[0]}, 512-256, 90 % pruned, with hashing",
            (RIVER_LOGISTIC, RIVER_ADPREDICTOR),
        )
        made.append(
            at_least(f"{about}: times {VW_LINEAR}", ratio(found, (VW_LINEAR, ""), ours, 1), 1.0)
        )
        times = min(ratio(found, (name, ""), ours, 1) for name in river)
        made.append(at_least(f"{about}: times the faster of River's", times, 2.0))
        best = min(entropy[name, ""] for name in (VW_LINEAR, *river))
        made.append(
            at_most(
                f"{about}: normalized entropy over the best of theirs", entropy[ours] / best, 1.0
            )
        )
    return made
