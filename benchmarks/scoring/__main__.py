"""The speed of a compact network beside the dense one it was cut from, and the cost of publishing
it.

    compute      seconds of a call by candidates, sparsity, width and threads, beside PyTorch and
                 ONNX Runtime, from hashed ids and from the bytes of a request (compute.py)
    http         the server under load, dense beside sparse; needs `wrk` (http.py)
    precision    bytes and normalized entropy by precision of the tables (publication.py)
    time         the cost of publications to the learner (publication.py)
    latency      from an event's arrival to a scorer that serves it, the whole path running
                 (latency.py)

`--only PART,...` measures some of them. `--recording FILE` is for precision, time and latency,
which else take a synthetic stream. The extra `test` brings ONNX Runtime.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.frame import Findings, main, table
from benchmarks.scoring.compute import compute
from benchmarks.scoring.http import http
from benchmarks.scoring.latency import latency
from benchmarks.scoring.publication import precision, time_taken

Part = Callable[[bool], Findings]


def parts(recording: Path | None) -> dict[str, Part]:
    """Every part by its name; each answers with rows, claims and setting."""
    return {
        "compute": compute,
        "http": http,
        "precision": partial(precision, recording=recording),
        "time": partial(time_taken, recording=recording),
        "latency": partial(latency, recording=recording),
    }


def measure(quick: bool, chosen: dict[str, Part]) -> Findings:
    """One part after the other."""
    torch.set_num_threads(1)
    rows = []
    claims = []
    setting = {"only": ",".join(chosen)}
    tables = []
    for name, part in chosen.items():
        found = part(quick)
        rows += [{"part": name} | row for row in found.rows]
        claims += found.claims
        setting |= found.setting
        tables += [f"{name}:", "", *table(found.rows), ""] if found.rows else []
    return Findings(rows, claims, setting, "\n".join(tables).rstrip())


def run_main(arguments: Sequence[str] | None = None) -> None:
    """The program: the frame's options, and which parts of what stream."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--only", help="parts, separated by commas: " + ", ".join(parts(None)))
    parser.add_argument(
        "--recording", type=Path, help="a recorded stream instead of the synthetic one"
    )
    options, rest = parser.parse_known_args(arguments)
    known = parts(options.recording)
    names = options.only.split(",") if options.only else list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"--only must name parts among {', '.join(known)}, got {', '.join(unknown)}")

    def measured(quick: bool) -> Findings:
        return measure(quick, {name: known[name] for name in names})

    main("scoring", measured, rest, parser)


if __name__ == "__main__":
    run_main()
