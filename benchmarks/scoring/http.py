"""The HTTP server under load from another process: the dense network beside the one that is 90 %
pruned.

Load is `wrk`'s (Debian: `apt-get install wrk`), each request one context with 128 candidates. First
as fast as four connections go (saturation); then with exponential pauses between a connection's
requests, so that two thirds of the saturating rate arrive. Both servers run, only one of them is
asked at a time.
"""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.frame import ROOT, Findings, at_most
from benchmarks.scoring import rivals
from benchmarks.scoring.compute import TOPS, request
from benchmarks.servers import some_redis
from niwaki.model.learner import Learner
from niwaki.model.published.checkpoint import Header, TrainingStatus, pack
from niwaki.model.published.served import ServedModel
from niwaki.serving.store import CheckpointStore
from niwaki.stream.offline.local import free_port, running

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
    rows, claims = [], []
    seconds = 2 if quick else 8
    with ExitStack() as stack:
        redis, url = stack.enter_context(some_redis())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="niwaki-")))
        (folder / "body.json").write_bytes(request(128))
        (folder / "load.lua").write_text(_LUA, "utf-8")
        for top in TOPS[:1] if quick else TOPS:
            learner, name = rivals.learned(top), "-".join(map(str, top))
            ports = {
                sparsity: stack.enter_context(
                    _server(learner, rivals.compact(learner, sparsity), url)
                )
                for sparsity in (0.0, 0.9)
            }
            full = {sparsity: _load(folder, port, 0.0, seconds) for sparsity, port in ports.items()}
            rates = {sparsity: result["requests_per_s"] for sparsity, result in full.items()}
            for sparsity, port in ports.items():
                about = {"top": name, "sparsity": sparsity}
                rows.append(about | {"load": "saturating"} | full[sparsity])
                wanted = {
                    "two thirds of its own": rates[sparsity],
                    "two thirds of the dense one's": rates[0.0],
                }
                for load, rate in wanted.items():
                    if sparsity or load == "two thirds of its own":
                        rows.append(
                            about | {"load": load} | _load_at(folder, port, 2 / 3 * rate, seconds)
                        )
            p99 = {
                (row["load"], row["sparsity"]): row["p99_ms"] for row in rows if row["top"] == name
            }
            for load in ("two thirds of its own", "two thirds of the dense one's"):
                ratio = p99[load, 0.9] / p99["two thirds of its own", 0.0]
                text = f"HTTP, 128 candidates, top {name}: p99 at {load} saturating load"
                text += " over the dense network's at its"
                claims.append(at_most(text, ratio, 0.5))
    setting = {"connections": _CONNECTIONS, "seconds_a_load": seconds, "redis": redis}
    return Findings(rows, claims, setting)


@contextmanager
def _server(learner: Learner, model: ServedModel, url: str) -> Iterator[int]:
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
    variables = {"NIWAKI_REDIS__URL": url, "NIWAKI_REDIS__NAME": name, "PYTHONPATH": str(ROOT)}

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
        "requests": found["requests"],
    }
