"""The HTTP server under load from another process: the dense network beside the one that is 90 %
pruned, and one process that scores beside two workers.

Load is `wrk`'s (Debian: `apt-get install wrk`), each request one context with 128 candidates. First
as fast as eight connections go (saturation), in turns, for several rounds; then with exponential
pauses between a connection's requests, so that two thirds of the saturating rate arrive. All
servers run, only one of them is asked at a time. `server us` is the processor time of all of a
server's processes, a request; other programs, such as the client, take cores but no part of it.
"""

import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.frame import ROOT, Findings, at_least, at_most, spread
from benchmarks.scoring import rivals
from benchmarks.scoring.compute import TOPS, request
from benchmarks.servers import some_redis
from niwaki.model.learner import Learner
from niwaki.model.published.checkpoint import Header, TrainingStatus, pack
from niwaki.model.published.served import ServedModel
from niwaki.serving.store import CheckpointStore
from niwaki.stream.offline.local import free_port, running

Setup = tuple[float, int]
"""Sparsity, and number of workers."""
Rows = list[dict[str, Any]]
Ratios = list[float]
_CONNECTIONS = 8
_LUA = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local file = io.open(os.getenv("BODY"), "rb")
wrk.body = file:read("*a")
local mean_ms = tonumber(os.getenv("PAUSE_MS"))
if mean_ms > 0 then
    function delay() return math.floor(0.5 - mean_ms * math.log(1 - math.random())) end
end
function done(summary, latency, requests)
    local errors = summary.errors
    io.stderr:write(string.format(
        '{"p50_ms": %f, "p99_ms": %f, "requests": %d, "seconds": %f, "errors": %d}',
        latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
        summary.requests, summary.duration / 1e6,
        errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


def http(quick: bool) -> Findings:
    """Requests and waits under load. No rows without `wrk`."""
    if not shutil.which("wrk"):
        return Findings([], [], {"http": "skipped: there is no wrk on the PATH"})
    rows: list[dict[str, Any]] = []
    claims: Rows = []
    seconds, rounds = (1, 2) if quick else (3, 7)
    with ExitStack() as stack:
        redis, url = stack.enter_context(some_redis())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="niwaki-")))
        (folder / "body.json").write_bytes(request(128))
        (folder / "load.lua").write_text(_LUA, "utf-8")
        for top in TOPS[:1] if quick else TOPS:
            with ExitStack() as servers:
                learner, name = rivals.learned(top), "-".join(map(str, top))
                models = {sparsity: rivals.compact(learner, sparsity) for sparsity in (0.0, 0.9)}
                ports = {
                    setup: servers.enter_context(_server(learner, models[setup[0]], url, setup[1]))
                    for setup in ((0.0, 1), (0.9, 1), (0.9, 2))
                }
                other = servers.enter_context(_server(learner, models[0.9], url, 1))
                found, wider = _measured(folder, ports, other, seconds, rounds)
            rows += [{"top": name} | row for row in found]
            claims += _claims(name, found, wider)
    setting = {
        "connections": _CONNECTIONS,
        "seconds_a_load": seconds,
        "rounds": rounds,
        "redis": redis,
    }
    return Findings(rows, claims, setting)


def _measured(
    folder: Path, ports: dict[Setup, int], other: int, seconds: int, rounds: int
) -> tuple[Rows, dict[str, list[float]]]:
    """Rows of all loads, and by what is compared the ratios of all rounds. `other`: port of a
    second server with one process, of the pruned network."""
    full: dict[Setup, list[dict[str, float]]] = {setup: [] for setup in ports}
    apart: list[float] = []
    for _ in range(rounds):
        for setup, port in ports.items():
            full[setup].append(_load(folder, port, 0.0, seconds))
        with ThreadPoolExecutor(2) as pool:
            both = pool.map(lambda p: _load(folder, p, 0.0, seconds), (ports[0.9, 1], other))
            apart.append(sum(result["requests_per_s"] for result in both))
    dense, pruned, two = full[0.0, 1], full[0.9, 1], full[0.9, 2]

    def ratios(key: str, above: list[dict[str, float]], below: list[dict[str, float]]) -> Ratios:
        return [one[key] / other[key] for one, other in zip(above, below, strict=True)]

    compared = {
        "rate": ratios("requests_per_s", pruned, dense),
        "time": ratios("server_us", dense, pruned),
        "workers": ratios("requests_per_s", two, pruned),
        "workers' time": [2 * ratio for ratio in ratios("server_us", pruned, two)],
        "apart": [sum_ / one["requests_per_s"] for sum_, one in zip(apart, pruned, strict=True)],
    }
    rows = []
    for (sparsity, workers), results in full.items():
        about = {"sparsity": sparsity, "workers": workers}
        medians = {key: statistics.median(result[key] for result in results) for key in results[0]}
        rows.append(about | {"load": "saturating"} | medians)
        loads = {"two thirds of its own": medians["requests_per_s"]}
        if sparsity and workers == 1:
            loads["two thirds of the dense one's"] = rows[0]["requests_per_s"]
        for load, rate in loads.items():
            port = ports[sparsity, workers]
            rows.append(about | {"load": load} | _load_at(folder, port, 2 / 3 * rate, seconds))
    return rows, compared


def _claims(top: str, rows: Rows, compared: dict[str, Ratios]) -> Rows:
    about = f"HTTP, 128 candidates, top {top}"
    p99 = {(row["load"], row["sparsity"]): row["p99_ms"] for row in rows if row["workers"] == 1}

    def with_spread(text: str, ratios: Ratios) -> str:
        _, low, high = spread(ratios)
        return f"{about}: {text} ({low:.2f} to {high:.2f})"

    claims = [
        at_least(with_spread(text, compared[key]), statistics.median(compared[key]), bound)
        for key, text, bound in (
            ("rate", "pruned, times the dense network's saturating rate", 2.5),
            ("time", "dense, times the pruned network's processor time a request", 2.5),
            ("workers", "two workers, times the saturating rate of one process", 1.8),
            ("apart", "two servers apart, times the same, as a measure of the machine", 1.8),
            ("workers' time", "two cores of workers, times the requests of one core of one", 1.8),
        )
    ]
    for load in ("two thirds of its own", "two thirds of the dense one's"):
        ratio = p99[load, 0.9] / p99["two thirds of its own", 0.0]
        text = f"{about}: p99 at {load} saturating load over the dense network's at its"
        claims.append(at_most(text, ratio, 0.5))
    return claims


@contextmanager
def _server(learner: Learner, model: ServedModel, url: str, workers: int) -> Iterator[int]:
    """`niwaki serve` in a process of its own; its port."""
    name = f"model-{secrets.token_hex(4)}"
    dense_cost = learner.branches.dense_cost
    description = learner.description()._replace(multiply_adds=dense_cost, sparsity_by_layer={})
    header = Header.of(
        description,
        TrainingStatus("sparse", "static", 1.0),
        shape=model.shape,
        version=1,
        parent=0,
        created_s=time.time(),
    )
    with CheckpointStore.from_url(url, name) as store:
        assert store.publish(header, pack(header, model.tensors()))
    variables = {
        "NIWAKI_REDIS__URL": url,
        "NIWAKI_REDIS__NAME": name,
        "NIWAKI_SERVE__WORKERS": str(workers),
        "PYTHONPATH": str(ROOT),
    }

    def command(port: int) -> list[str]:
        settings = [
            f"{key}={value}"
            for key, value in (variables | {"NIWAKI_SERVE__PORT": str(port)}).items()
        ]
        return ["env", *settings, sys.executable, "-m", "niwaki", "serve"]

    with running(command, _ready, port=free_port(), stop_s=10) as port:
        yield port


def _ready(port: int) -> bool:
    from urllib.error import URLError
    from urllib.request import urlopen

    try:
        with urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=1) as answer:
            return answer.status == 200
    except (URLError, OSError):
        return False


def _load_at(folder: Path, port: int, rate: float, seconds: int) -> dict[str, Any]:
    """Pauses are chosen so that `rate` requests a second arrive; a first, short run tells how long
    they must be."""
    pause_ms = 1e3 * _CONNECTIONS / rate
    for _ in range(2):
        tried = _load(folder, port, pause_ms, max(seconds // 4, 1))["requests_per_s"]
        pause_ms = max(pause_ms + 1e3 * _CONNECTIONS * (1 / rate - 1 / tried), 0.1)
    return _load(folder, port, pause_ms, seconds)


def _load(folder: Path, port: int, pause_ms: float, seconds: int) -> dict[str, Any]:
    command = ["wrk", "-t1", f"-c{_CONNECTIONS}", f"-d{seconds}s", "-s", str(folder / "load.lua")]
    before_s = _processor_s(port)
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{port}/score"],
        env=os.environ | {"BODY": str(folder / "body.json"), "PAUSE_MS": str(pause_ms)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = msgspec.json.decode(done.stderr)
    assert not found["errors"], f"{found['errors']} requests failed"
    rate = found["requests"] / found["seconds"]
    return {
        "requests_per_s": rate,
        "p50_ms": found["p50_ms"],
        "p99_ms": found["p99_ms"],
        "server_us": 1e6 * (_processor_s(port) - before_s) / found["requests"],
        "requests": found["requests"],
    }


def _processor_s(port: int) -> float:
    """Processor time that all processes of the server at `port` have taken."""
    ticks, variable = 0, f"NIWAKI_SERVE__PORT={port}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if variable in (process / "environ").read_bytes().split(b"\0"):
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        except OSError:  # it has ended, or is another user's
            continue
    return ticks / os.sysconf("SC_CLK_TCK")
