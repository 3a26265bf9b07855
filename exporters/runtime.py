"""ONNX Runtime: how a file is opened, and the graph that really runs."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import onnx

from exporters.errors import ExportError
from exporters.external import elsewhere, read_graph
from exporters.providers import CPU, require_providers, require_runtime, starts
from surgery.errors import told_at_length

if TYPE_CHECKING:
    import onnxruntime

OPTIONS_KEY = "model_surgery.session_options"
BASE_KEY = "model_surgery.adapter_base"

Operators = Counter[tuple[str, str]]
"""Number of nodes by (domain, operator type); the ONNX domain is spelled ``ai.onnx``."""


@dataclass(frozen=True)
class SessionOptions:
    """How a file is best opened. It travels in the file's metadata.

    Attributes:
        providers: Execution providers, best first.
        disabled_optimizers: ONNX Runtime fusions to leave out, because they are slower here.
        provider_options: What the first provider is told, in its own words.
    """

    providers: tuple[str, ...] = (CPU,)
    disabled_optimizers: tuple[str, ...] = ()
    provider_options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.providers or isinstance(self.providers, str):
            raise ExportError(
                "session options without an execution provider",
                where=f"providers={self.providers!r}",
                remedy=f"pass a tuple with one at least: SessionOptions(({CPU!r},))",
            )

    def told(self) -> list[str | tuple[str, dict[str, str]]]:
        """The providers as ONNX Runtime takes them: names, the first with what it is told, if that is anything."""
        first, *others = self.providers
        return [(first, dict(self.provider_options)) if self.provider_options else first, *others]

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        told = {"provider_options": dict(self.provider_options)} if self.provider_options else {}
        return {
            "providers": list(self.providers),
            "disabled_optimizers": list(self.disabled_optimizers),
            **told,
        }


def open_session(
    path: str | os.PathLike[str],
    *,
    options: SessionOptions | None = None,
    threads: int | None = None,
    save_optimized: Path | None = None,
) -> onnxruntime.InferenceSession:
    """Open a file in ONNX Runtime, with the session options that it recommends.

    Args:
        path: The ONNX file.
        options: Instead of those in the file's metadata.
        threads: Intra-op threads; None leaves the choice to ONNX Runtime.
        save_optimized: Where to write the graph as ONNX Runtime rewrote it.

    Raises:
        ExportError: If a provider is not there (ONNX Runtime itself would quietly go on without it),
            if ONNX Runtime is installed twice or not at all, or if it refuses the file: weights that lie
            beside it are missing, cut short or elsewhere.
    """
    require_runtime()
    import onnxruntime as ort

    described = None if options else read_graph(path)
    options = options or _recommended(described)
    require_providers(options.providers, ort.get_available_providers())
    session_options = ort.SessionOptions()
    session_options.log_severity_level = 3
    if threads:
        session_options.intra_op_num_threads = threads
    if save_optimized:
        session_options.optimized_model_filepath = str(save_optimized)
        entries = {
            "session.optimized_model_external_initializers_file_name": save_optimized.name
            + ".data",
            "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
        }
        for key, value in entries.items():
            session_options.add_session_config_entry(key, value)
    try:
        if outside := elsewhere(described or read_graph(path)):
            raise ValueError(f"its weights are said to be in {outside!r}, outside its folder")
        del described  # up to 2 GB that ONNX Runtime is about to read itself
        session = ort.InferenceSession(
            os.fspath(path),
            session_options,
            providers=options.told(),
            disabled_optimizers=list(options.disabled_optimizers),
        )
    except Exception as error:  # onnxruntime's classes have no common root of their own
        raise ExportError(
            "ONNX Runtime cannot open the file",
            where=os.fspath(path),
            why=told_at_length(error),
            remedy="put the weights that lie beside a file (NAME.onnx.data) where the file lies, or export anew",
        ) from error
    # A provider may be built in and still fail to load its libraries.
    require_providers(options.providers, session.get_providers())
    return session


def available(options: SessionOptions) -> SessionOptions:
    """The options without the providers that this machine lacks; the CPU always remains."""
    there = tuple(provider for provider in options.providers if starts(provider))
    told = options.provider_options if there[:1] == options.providers[:1] else {}
    return replace(options, providers=there or (CPU,), provider_options=told)


def recommended_options(path: str | os.PathLike[str]) -> SessionOptions:
    """The session options written in a file's metadata; the defaults if there are none."""
    return _recommended(read_graph(path))


def _recommended(model: onnx.ModelProto) -> SessionOptions:
    found = _metadata(model, OPTIONS_KEY)
    if found is None:
        return SessionOptions()
    try:
        stored: dict[str, Any] = json.loads(found)
        told = stored.pop("provider_options", {})
        lists = {key: tuple(value) for key, value in stored.items()}
        return SessionOptions(**lists, provider_options=told)
    except Exception as error:  # somebody else's metadata can be anything
        raise ExportError(
            "the file's session options cannot be read",
            where=OPTIONS_KEY,
            why=told_at_length(error),
            remedy="open it with options=SessionOptions(), or export it anew",
        ) from error


def base_of(path: str | os.PathLike[str]) -> int | None:
    """What identifies the base weights of a file that takes adapters; None for any other."""
    found = _metadata(read_graph(path), BASE_KEY)
    return None if found is None else int(found)


def _metadata(model: onnx.ModelProto, key: str) -> str | None:
    return next((p.value for p in model.metadata_props if p.key == key), None)


def operators(model: onnx.ModelProto) -> Operators:
    """Count the nodes of a graph by (domain, operator type)."""
    return Counter((node.domain or "ai.onnx", node.op_type) for node in model.graph.node)


def optimized_operators(path: str | os.PathLike[str], options: SessionOptions) -> Operators:
    """Count the nodes that ONNX Runtime really runs, after its own optimisation."""
    with TemporaryDirectory() as folder:
        target = Path(folder) / "optimized.onnx"
        open_session(path, options=options, save_optimized=target)
        return operators(onnx.load(target, load_external_data=False))


def run(session: onnxruntime.InferenceSession, feeds: Mapping[str, Any]) -> list[Any]:
    """Run a session on those feeds that its graph still takes; floats in the precision that it takes them in."""
    halves = {i.name for i in session.get_inputs() if i.type == "tensor(float16)"}
    taken = {i.name: feeds[i.name] for i in session.get_inputs() if i.name in feeds}
    outputs: list[Any] = session.run(
        None, {n: v.astype("float16") if n in halves else v for n, v in taken.items()}
    )
    return outputs
