"""Exported files served on this machine, under load for real: ONNX Runtime by itself, and Ray Serve.

    python -m benchmarks.serving            # needs pip install 'model-surgery[cpu,serve]'

Ray takes the machine's own address for its nodes; on Linux `unshare -n sh -c 'ip link set lo up; ...'` keeps all
of it on the loopback. Where the machine is busy, raise RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S.

Every load is bounded in count and time and goes to the loopback interface only. What is measured are
whole requests of one picture: JSON, HTTP, queueing, batching and the model. The figures compare ways of
serving on one small machine; they say nothing about a large one.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import exporters
import surgery
from benchmarks.record import keep
from examples.serving.onnxruntime_server import Server

SECONDS, REQUESTS = 15.0, 300
"""A load ends with whichever comes first."""
_PORT = 18_451


@dataclass(frozen=True)
class Files:
    """What is served, and the same models without a server."""

    file: Path
    base: Path
    adapters: dict[str, str]
    size: int

    @property
    def plain(self) -> Server:
        """The file in this process."""
        return Server(self.file, warm=(1,))

    @property
    def reference(self) -> exporters.AdapterSession:
        """Base and adapters in this process."""
        return exporters.AdapterSession(self.base, self.adapters)

    def picture(self) -> np.ndarray[Any, Any]:
        """One picture of noise, (1, 3, size, size)."""
        shape = (1, 3, self.size, self.size)
        return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def exported(folder: Path, *, small: bool = False) -> Files:
    """A fused file, and a base with two adapters, all with random weights."""
    torch.manual_seed(0)
    size = 32 if small else 96
    shape: dict[str, Any] = {"depth": 1} if small else {}
    base = timm.create_model("vit_tiny_patch16_224", img_size=size, num_classes=10, **shape).eval()
    exporters.to_onnx(base, folder / "model.onnx", verify=not small)
    cats, dogs = (_adapted(base, kind) for kind in ("symlora", "srlora"))
    exporters.to_onnx(cats, folder / "base.onnx", adapters="runtime", verify=not small)
    exporters.write_adapter(dogs, folder / "dogs.onnx_adapter")
    adapters = {"cats": folder / "base.onnx_adapter", "dogs": folder / "dogs.onnx_adapter"}
    named = {name: str(path) for name, path in adapters.items()}
    return Files(folder / "model.onnx", folder / "base.onnx", named, size)


def _adapted(base: nn.Module, kind: str) -> nn.Module:
    model = surgery.apply(copy.deepcopy(base), "vit-attn-qv", adapter=kind, rank=4, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@contextlib.contextmanager
def deployed(files: Files) -> Iterator[dict[str, str]]:
    """Both deployments in a Ray of their own on the loopback interface; the URL of each."""
    # Ray nices its workers: clients on the same machine would then starve what they measure.
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0")
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions

    from examples.serving.ray_serve import adapters, model

    ray.init(num_cpus=8, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    try:
        serve.start(http_options=HTTPOptions(host="127.0.0.1", port=_PORT))
        apps = {
            "file": model.bind(str(files.file)),
            "adapters": adapters.bind(str(files.base), files.adapters),
        }
        for name, app in apps.items():
            serve.run(app, name=name, route_prefix=f"/{name}")
        yield {name: f"http://127.0.0.1:{_PORT}/{name}" for name in apps}
    finally:
        serve.shutdown()
        ray.shutdown()


def post(url: str, body: Any) -> Any:
    """One JSON request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def load(name: str, calls: Sequence[Callable[[], Any]], workers: int) -> dict[str, Any]:
    """Make calls in turn from several threads until the count or the time is used up."""
    for call in calls:
        call()
    end = time.monotonic() + SECONDS
    started = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        times = [t for t in pool.map(partial(_timed, end), islice(cycle(calls), REQUESTS)) if t]
    wall = time.monotonic() - started
    ordered = sorted(times)
    return {
        "name": name,
        "clients": workers,
        "requests": len(times),
        "per_second": round(len(times) / wall, 1),
        "median_ms": round(1000 * statistics.median(ordered), 1),
        "p95_ms": round(1000 * ordered[int(0.95 * (len(ordered) - 1))], 1),
    }


def _timed(end: float, call: Callable[[], Any]) -> float | None:
    started = time.monotonic()
    if started > end:
        return None
    call()
    return time.monotonic() - started


def measure(files: Files, clients: Sequence[int]) -> list[dict[str, Any]]:
    """Every way of serving, with every number of clients."""
    x = files.picture()
    server = files.plain
    rows = [load("ONNX Runtime, in process", [lambda: server({"x": x})], n) for n in clients]
    bodies = {
        "file": [json.dumps({"inputs": {"x": x.tolist()}}).encode()],
        "adapters": [
            json.dumps({"inputs": {"x": x.tolist()}, "adapter": name}).encode()
            for name in (*files.adapters, None)
        ],
    }
    titles = {"file": "Ray Serve, one file", "adapters": "Ray Serve, 2 adapters and the base"}
    with deployed(files) as urls:
        for name, title in titles.items():
            calls = [partial(post, urls[name], body) for body in bodies[name]]
            rows += [load(title, calls, n) for n in clients]
    return rows


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows for people."""
    columns = ("", "clients", "requests", "per second", "median ms", "95 % ms")
    made = Table(*columns, title="serving", title_justify="left")
    for row in rows:
        made.add_row(*map(str, row.values()))
    return made


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--small", action="store_true", help="a model of one block, unverified")
    parser.add_argument("--note", default="", help="what a reader must know of this run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = exported(Path(folder), small=arguments.small)
        rows = measure(files, arguments.clients)
    Console().print(table(rows))
    load_average = round(os.getloadavg()[0], 1)
    about = {"small": arguments.small, "load_average": load_average, "note": arguments.note}
    keep("serving", {"rows": rows, **about})


if __name__ == "__main__":
    main()
