"""A model repository for the Triton Inference Server, from an exported file."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import onnx

from exporters.axes import BATCH
from exporters.errors import ExportError
from exporters.external import locations, read_graph
from exporters.leftovers import portable_twin
from exporters.metadata import facts
from exporters.pbtxt import render
from exporters.preflight import make_folder
from exporters.runtime import base_of
from exporters.staging import stage
from exporters.triton_config import LABELS, Batching, Engine, config, values
from exporters.triton_warmup import Axes, files

CONFIG, WARMUP = "config.pbtxt", "warmup"
_USUAL_BATCH = 16
_NAME = re.compile(r"[\w.-]+")
_LONGEST_NAME = 255
"""Bytes of a folder's name."""
_TAKES: dict[Engine, tuple[str, ...]] = {
    "cpu": ("cpu", "portable"),
    "cuda": ("cuda", "portable"),
    "tensorrt": ("tensorrt", "portable"),
}
"""Targets of export that make sense for each engine."""


def triton_repository(
    file: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    version: int = 1,
    engine: Engine | None = None,
    max_batch: int | None = None,
    preferred: tuple[int, ...] = (),
    delay_us: int = 500,
    instances: int = 1,
    threads: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Put an exported file into a Triton model repository: configuration, labels, one version.

    Requests are batched where the file's batch is dynamic; smallest and largest batch are run once
    before the model is ready. Labels in the file become Triton's classification labels. A version appears
    in the repository at once and whole, so that a polling server never sees half of it.

    Args:
        file: What ``to_onnx`` wrote.
        folder: The repository; made if it is not there.
        name: Of the model; the file's own if None.
        version: Number of this version. Further versions must keep inputs, outputs and settings.
        engine: ``cpu``; ``cuda``; ``tensorrt``, for files of that target and portable ones: TensorRT
            knows no operators of ONNX Runtime. None follows the file's target.
        max_batch: Largest batch; None takes 16, or fewer where the file does not hold for so many.
        preferred: Batch sizes to run as soon as they are there.
        delay_us: How long a request may wait for others, in microseconds.
        instances: Copies of the model (on each GPU).
        threads: Of each copy on the CPU; None leaves it to ONNX Runtime, which takes all cores.
        overwrite: Whether this version, and a configuration that differs, may be replaced.

    Returns:
        The folder of the model.

    Raises:
        ExportError: If the file is none of ours, takes adapters at run time, or does not suit the engine;
            if it does not hold for batches up to ``max_batch``; if the version is there already, or another
            version has other inputs or settings.
    """
    source, told = Path(file), _facts(file)
    chosen = _engine(told, engine, source)
    model = read_graph(source)
    axes: Axes = told.get("axes", {})
    batching = Batching(_largest(max_batch, axes, source), tuple(preferred), delay_us)
    _check_numbers(batching, version, instances, threads)
    title = _title(name or source.stem)
    inputs, outputs = values(model.graph)
    fields = config(
        title, inputs, outputs, chosen, batching, instances=instances, threads=threads,
        precision=told.get("precision", "fp32"), labels="labels" in told,
        profiles=_profiles(told), axes=axes,
    )  # fmt: skip
    make_folder(Path(folder))
    home = Path(folder) / title
    _check_home(home, version, render(fields), overwrite)
    with stage(Path(folder)) as aside:
        _copy(source, aside.folder / str(version), model)
        _fill(aside.folder, fields, told.get("labels"))
        _publish(aside.folder, home, version)
    return home


def _copy(source: Path, inside: Path, model: onnx.ModelProto) -> None:
    """The file, and the weights that lie beside it: it names them, only its own name is free."""
    inside.mkdir()
    shutil.copyfile(source, inside / "model.onnx")
    for location in locations(model):
        shutil.copyfile(source.parent / location, inside / location)


def _fill(place: Path, fields: dict[str, Any], labels: list[str] | None) -> None:
    (place / CONFIG).write_text(render(fields), encoding="utf-8")
    (place / WARMUP).mkdir()
    for name, content in files(fields["model_warmup"]).items():
        (place / WARMUP / name).write_bytes(content)
    if labels is not None:
        (place / LABELS).write_text("\n".join(labels) + "\n", encoding="utf-8")


def _publish(place: Path, home: Path, version: int) -> None:
    """The settings first: a server loads a model when it sees a version."""
    home.mkdir(exist_ok=True)
    for content in (place / WARMUP).iterdir():
        (home / WARMUP).mkdir(exist_ok=True)
        os.replace(content, home / WARMUP / content.name)
    for file in (CONFIG, LABELS):
        if (place / file).exists():
            os.replace(place / file, home / file)
    old = place / "old"
    if (home / str(version)).exists():
        os.replace(home / str(version), old)
    os.replace(place / str(version), home / str(version))


def _facts(file: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        told = facts(file)
        adapters = base_of(file) is not None
    except Exception as error:  # protobuf's errors have no common root
        raise _unfit(file, f"{type(error).__name__}: {error}", "pass what to_onnx wrote") from error
    if not told:
        raise _unfit(file, "it holds no metadata of model-surgery", "pass what to_onnx wrote")
    if adapters:
        why = "it takes adapters at run time, and Triton would serve the bare base"
        raise _unfit(file, why, "export each model with adapters='fold', or serve AdapterSession")
    return told


def _engine(told: dict[str, Any], engine: Engine | None, source: Path) -> Engine:
    target = str(told.get("target", "portable"))
    if engine is None:
        return next((known for known in _TAKES if known == target), "cpu")
    if engine not in tuple(_TAKES):
        raise ExportError(
            f"unknown engine {engine!r}", remedy=f"choose one of {', '.join(map(repr, _TAKES))}"
        )
    if target not in _TAKES[engine]:
        portable = portable_twin(source).name
        why = f"it was fused for {target}, and {engine} runs {' or '.join(_TAKES[engine])} files"
        raise _unfit(source, why, f"pass the file beside it, {portable}")
    return engine


def _largest(asked: int | None, axes: Axes, source: Path) -> int:
    """The largest batch, within what the file says it holds for."""
    most = axes.get(BATCH, {}).get("most")
    if asked is None:
        return min(_USUAL_BATCH, most or _USUAL_BATCH)
    if most is not None and _counts(asked) and asked > most:
        raise _unfit(source, f"it holds for batches up to {most}", f"pass max_batch={most}")
    return asked


def _profiles(told: dict[str, Any]) -> dict[str, str]:
    """The sizes that a TensorRT file says its engines are for."""
    options = told.get("session_options", {}).get("provider_options", {})
    return {key: value for key, value in options.items() if key.startswith("trt_profile_")}


def _check_numbers(batching: Batching, version: int, instances: int, threads: int | None) -> None:
    told = {
        "version": _counts(version),
        "max_batch": _counts(batching.limit),
        "delay_us": _counts(batching.delay_us, 0),
        "instances": _counts(instances),
        "threads": threads is None or _counts(threads),
        "preferred": all(map(_counts, batching.preferred)),
    }
    wrong = [name for name, right in told.items() if not right]
    if not wrong and max(batching.preferred, default=1) > batching.limit:
        wrong = ["preferred"]
    if wrong:
        raise ExportError(
            "the Triton settings make no sense",
            where=wrong[0],
            why="counts are whole numbers from 1 on, a delay from 0 on, and preferred batches at most max_batch",
            remedy="pass max_batch=16, preferred=(4, 8), delay_us=500, instances=1, threads=2, for example",
        )


def _counts(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _title(name: str) -> str:
    fits = isinstance(name, str) and _NAME.fullmatch(name) and name.strip(".")
    if fits and len(name.encode()) <= _LONGEST_NAME:
        return name
    raise ExportError(
        f"{str(name)[:40]!r} cannot be the name of a Triton model",
        remedy=f"use letters, digits, '.', '_' and '-', {_LONGEST_NAME} at most: name='cats'",
    )


def _check_home(home: Path, version: int, text: str, overwrite: bool) -> None:
    if overwrite:
        return
    if (home / str(version)).exists():
        raise ExportError(
            f"version {version} exists already",
            where=str(home),
            remedy="pass the next version=, or overwrite=True",
        )
    there = home / CONFIG
    if there.exists() and there.read_text(encoding="utf-8") != text:
        raise ExportError(
            "the other versions of this model have other inputs, outputs or settings",
            where=str(there),
            why="one configuration holds for all versions",
            remedy="pass the same settings, another name=, or overwrite=True",
        )


def _unfit(file: str | os.PathLike[str], why: str, remedy: str) -> ExportError:
    what = "this file cannot be served by Triton"
    return ExportError(what, where=os.fspath(file), why=why, remedy=remedy)
