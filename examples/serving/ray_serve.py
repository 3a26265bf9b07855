"""An exported file, and one base with many adapters, behind Ray Serve: batching and autoscaling.

    serve run examples.serving.ray_serve:app path=/models/model.onnx

A replica holds one session and one thread of compute; Ray starts more of them as requests queue up.
Requests are JSON: ``{"inputs": {name: rows}}``, with ``"adapter": name`` for the file with adapters.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from starlette.requests import Request

from examples.serving.onnxruntime_server import Server

Arrays = dict[str, np.ndarray[Any, Any]]
Call = tuple[Arrays, str | None]
BATCH, WAIT_SECONDS = 16, 0.005


class Batched:
    """What both deployments share: requests in, batches through a session, rows out."""

    def run(self, feeds: Arrays, adapter: str | None) -> list[np.ndarray[Any, Any]]:
        """Run one batch."""
        raise NotImplementedError

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_SECONDS)  # type: ignore[untyped-decorator]
    async def _many(self, calls: list[Call]) -> list[list[np.ndarray[Any, Any]]]:
        """Requests of one adapter and one shape are one batch; each gets its own rows back."""
        found: dict[int, list[np.ndarray[Any, Any]]] = {}
        for (adapter, _), members in grouped(calls).items():
            feeds = {
                n: np.concatenate([calls[i][0][n] for i in members]) for n in calls[members[0]][0]
            }
            outputs = await asyncio.to_thread(self.run, feeds, adapter)
            ends = np.cumsum([_rows(calls[i][0]) for i in members])[:-1]
            parts = [np.split(output, ends) for output in outputs]
            found |= {i: [part[place] for part in parts] for place, i in enumerate(members)}
        return [found[i] for i in range(len(calls))]

    async def __call__(self, request: Request) -> dict[str, Any]:
        """One request."""
        asked = await request.json()
        return await self.answer(asked["inputs"], asked.get("adapter"))

    async def answer(self, inputs: Mapping[str, Any], adapter: str | None) -> dict[str, Any]:
        """``{"outputs": [rows, ...]}`` of one request."""
        outputs = await self._many((self.arrays(inputs), adapter))
        return {"outputs": [output.tolist() for output in outputs]}

    def arrays(self, inputs: Mapping[str, Any]) -> Arrays:
        """Rows as arrays: whole numbers are tokens, everything else is fp32."""
        made = {name: np.asarray(rows) for name, rows in inputs.items()}
        return {n: v if v.dtype.kind == "i" else v.astype(np.float32) for n, v in made.items()}


_SCALING = AutoscalingConfig(min_replicas=1, max_replicas=2, target_ongoing_requests=BATCH)
_SETTINGS: dict[str, Any] = {
    "autoscaling_config": _SCALING,
    "max_ongoing_requests": 4 * BATCH,
    "ray_actor_options": {"num_cpus": 1},
}


class Model(Batched):
    """One exported file."""

    def __init__(self, path: str, warm: Sequence[int] = (1, BATCH)) -> None:
        self.server = Server(path, threads=1, warm=warm)

    def run(self, feeds: Arrays, adapter: str | None) -> list[np.ndarray[Any, Any]]:
        """Run one batch; there is nothing to choose."""
        if adapter is not None:
            raise ValueError("this file takes no adapters")
        return self.server(feeds)


class Adapters(Batched):
    """One base in memory, an adapter for each request."""

    def __init__(self, path: str, adapters: Mapping[str, str]) -> None:
        from exporters import AdapterSession  # the other deployment needs no PyTorch

        self.session = AdapterSession(path, adapters, threads=1)

    def run(self, feeds: Arrays, adapter: str | None) -> list[np.ndarray[Any, Any]]:
        """Run one batch with one adapter."""
        return self.session.run(feeds, adapter)


scaled = serve.deployment(**_SETTINGS)
model, adapters = scaled(Model), scaled(Adapters)
"""The deployments: ``model.bind(path)``, ``adapters.bind(path, {name: file})``."""


def grouped(calls: Sequence[Call]) -> dict[tuple[str | None, Any], list[int]]:
    """Places of the calls that may be one batch."""
    found: dict[tuple[str | None, Any], list[int]] = defaultdict(list)
    for place, (feeds, adapter) in enumerate(calls):
        shapes = tuple(
            (name, value.shape[1:], str(value.dtype)) for name, value in sorted(feeds.items())
        )
        found[adapter, shapes].append(place)
    return dict(found)


def app(arguments: Mapping[str, str]) -> Application:
    """For ``serve run``: ``path=`` is the file, every other argument an adapter by name."""
    files = {name: file for name, file in arguments.items() if name != "path"}
    if files:
        return adapters.bind(arguments["path"], files)
    return model.bind(arguments["path"])


def _rows(feeds: Arrays) -> int:
    return len(next(iter(feeds.values())))
