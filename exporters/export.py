"""The way out in one call: plain model -> graph -> fusion -> files -> verification -> report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from exporters import card, hooks
from exporters.axes import Axes
from exporters.capture import Captured, capture
from exporters.causal import Cache, DecoderStep, check_alone, decoder_step
from exporters.errors import ExportError, VerificationError
from exporters.fuse import Site, fuse
from exporters.generation import Generated
from exporters.inputs import Inputs, collect
from exporters.learned import SUFFIX, Learned, split
from exporters.leftovers import leftovers, portable_twin
from exporters.maker import Maker
from exporters.metadata import check_labels, describe, qualified_name, versions
from exporters.options import Adapters, check_options
from exporters.parity import Reference, Truth
from exporters.plain import plain_model
from exporters.precision import Precision
from exporters.preflight import check_destinations, onnx_path
from exporters.profiles import Profile, complete
from exporters.providers import require_runtime
from exporters.recipe import PORTABLE, Target, check_target, recipe_for
from exporters.report import ExportReport, FileReport
from exporters.runtime import BASE_KEY
from exporters.staging import Stage, stage
from exporters.verify import WithAdapter
from surgery.anatomy.buffers import kept_state


def to_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    target: Target = "cpu",
    precision: Precision = "fp32",
    adapters: Adapters = "fold",
    example_inputs: Any = None,
    dynamic: bool | Axes = True,
    cache: Cache = False,
    profile: Profile | None = None,
    portable: bool = True,
    overwrite: bool = False,
    verify: bool = True,
    samples: Any = None,
    labels: Sequence[str] | None = None,
    processor: Any = None,
    preprocessing: Mapping[str, Any] | None = None,
    accuracy: Mapping[str, float] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> ExportReport:
    """Export a model to ONNX, fused and verified. The model itself is not changed.

    ``target="cpu"`` and ``"cuda"`` write two files: ``model.onnx``, in which every attention site that
    wholly matches is one operator of ONNX Runtime, and ``model.portable.onnx``, which holds nothing but
    standard operators (opset 20) and runs in any engine. So does ``"tensorrt"``, but for the operators:
    both files hold standard ones, and the first tells the sizes that engines are to be built for.
    ``portable=False`` leaves the second file out, and half of the time; ``target="portable"`` writes
    it alone, as ``model.onnx``. An adapted model is folded, and half precision cast to fp32, in a
    copy. With ``adapters="runtime"`` the files hold the base, and ``model.onnx_adapter`` beside them
    what was learned: see :class:`exporters.AdapterSession`.

    A model card, ``model.md``, lies beside them. Files are made and verified aside and appear whole or
    not at all. A file that fails is kept beside as ``*.rejected.onnx`` with the report as
    ``*.rejected.json``.

    Args:
        model: A model in eval mode.
        path: The ONNX file to write; its name ends in ``.onnx``.
        target: What the file is fused for. Where a CUDA or TensorRT file cannot be run, it is verified
            on the CPU, and the report says so.
        precision: Of the files; inputs and outputs are fp32 all the same. ``int8`` quantises the
            matrix products dynamically, for CPUs; pass ``samples`` to learn what it costs.
        adapters: Whether an adapted model's adapters go into the weights or into a file of their own.
        example_inputs: A tensor, a tuple of positional or a mapping of named inputs. None asks
            timm's pretrained_cfg or transformers' config.
        dynamic: True makes the batch and the length of token inputs dynamic; False fixes every
            shape; ``{"x": {0: "batch"}}`` names the dynamic dimensions.
        cache: For a causal language model: one step of generation, from ``input_ids``,
            ``attention_mask`` and ``past_key_values.N.key`` and ``.value`` to ``logits`` and
            ``present.N.key`` and ``.value``, prompt or single token. See
            :class:`~exporters.causal.DecoderStep`. Verified by greedy generation; ``samples`` are
            further prompts. With True, prompts of a batch may be padded on either side; with
            ``"right"`` on the right alone, rotary embeddings go into the operator too.
        profile: For ``tensorrt``: smallest, most frequent and largest size of dynamic axes,
            ``{"batch": (1, 8, 32)}``; see :func:`exporters.profiles.complete` for the usual ones.
        portable: Whether to write a file of standard operators beside the fused one.
        overwrite: Whether existing files may be replaced. Weights and portable file of an export that
            was there before, and that this one does not replace, are then removed.
        verify: Whether to verify. Leave it on.
        samples: Real inputs, as for ``example_inputs``, on which top-1 predictions must agree.
        labels: Name of each class, for the metadata.
        processor: Image processor, tokenizer or processor of transformers, for the metadata. None
            asks the model: timm models know their data config, transformers models the folder that
            they were loaded from.
        preprocessing: A mapping in its place.
        accuracy: For metadata and card: what you measured, by the name of the metric.
        metadata: Further facts for the metadata (``license``, ``base_model``, the data set).

    Returns:
        What was written, fused, left unfused and why, and what verification found.

    Raises:
        ExportError: If the model, the inputs, the path or the installation do not allow it.
        CaptureError: If the graph cannot be captured, or inputs cannot be made.
        VerificationError: If a file failed; its ``report`` says how.
    """
    check_options(
        target=target, precision=precision, adapters=adapters, cache=cache, dynamic=dynamic,
        profile=profile, portable=portable, overwrite=overwrite, verify=verify, labels=labels,
        accuracy=accuracy, metadata=metadata,
    )  # fmt: skip
    require_runtime()
    names = _names(onnx_path(path), target, portable)
    separate = _adapter_file(names[target], adapters, precision)
    about = names[target].with_suffix(card.SUFFIX)
    if cache:
        check_alone(adapters != "fold", example_inputs is not None, dynamic is not True)
    check_target(
        target, precision, runtime=bool(separate), cached=bool(cache), profile=bool(profile)
    )
    check_destinations([*names.values(), *separate, about], overwrite)
    plain, learned = split(model) if separate else (plain_model(model), None)
    with kept_state(model):
        subject, inputs = _subject(plain.model, cache, example_inputs, dynamic)
        facts = describe(
            plain, inputs, labels=labels, processor=processor, preprocessing=preprocessing,
            accuracy=accuracy, extra=metadata,
        )  # fmt: skip
        captured = capture(subject, inputs)
        check_labels(labels, subject, captured)
        if profile:
            complete(captured, profile)  # an axis that is not there is known before the long work
        truth = _reference(subject, captured, samples) if verify else None
        with stage(names[target].parent) as aside:
            maker = Maker(aside, captured, facts, truth, precision, profile)
            if learned is not None:
                together = _truth(learned.adapted, captured, samples) if verify else None
                maker = _set_apart(learned, maker, aside.folder / separate[0].name, together)
            files, sites = _make(maker, names, target, subject)
            notes = tuple(dict.fromkeys((*plain.notes, *captured.notes, *maker.notes)))
            report = ExportReport(
                qualified_name(plain.model), files, sites, notes, versions(), about
            )
            if report.passed:
                card.write(aside.folder, report, maker.facts, plain.model)
            _hand_over(report, aside, overwrite)
        return report


def _subject(
    model: nn.Module, cache: Cache, example_inputs: Any, dynamic: bool | Axes
) -> tuple[nn.Module, Inputs]:
    """What is captured, and on what inputs."""
    if not cache:
        return model, collect(model, example_inputs, dynamic)
    step = decoder_step(model, cache).eval()
    return step, step.inputs()


def _reference(model: nn.Module, captured: Captured, samples: Any) -> Reference:
    if isinstance(model, DecoderStep):
        return Generated.of(model, samples)
    return _truth(model, captured, samples)


def _truth(model: nn.Module, captured: Captured, samples: Any) -> Truth:
    chosen = None if samples is None else collect(model, samples, False, "samples")
    return Truth.of(model, captured, chosen)


def _set_apart(learned: Learned, maker: Maker, staged: Path, together: Truth | None) -> Maker:
    """Write what was learned to a file of its own, and give it a place in the captured graph."""
    hooks.insert(maker.captured, learned)
    learned.write(staged)
    facts = {**maker.facts, BASE_KEY: str(learned.base)}
    adapter = None if together is None else WithAdapter(staged, together)
    return replace(maker, facts=facts, learned=learned, adapter=adapter)


def _make(
    maker: Maker, names: Mapping[Target, Path], target: Target, model: nn.Module
) -> tuple[tuple[FileReport, ...], tuple[Site, ...]]:
    """The portable file first, if it is wanted: fusion rewrites the captured program."""
    plain = (maker.make(names[PORTABLE], PORTABLE),) if PORTABLE in names else ()
    if target == PORTABLE:
        return plain, ()
    fed = () if maker.learned is None else tuple(maker.learned.untrained)
    fusion = fuse(maker.captured, model, recipe_for(target, maker.precision, model), fed)
    maker.notes.extend(fusion.notes)
    return (maker.make(names[target], target, fusion.expected), *plain), fusion.sites


def _names(path: Path, target: Target, portable: bool) -> dict[Target, Path]:
    """The file of each target; the one asked for gets the path as given."""
    if not portable and target == PORTABLE:
        raise ExportError(
            "target='portable' and portable=False leave nothing to write",
            remedy="leave portable=True, or name the engine: target='cpu', 'cuda' or 'tensorrt'",
        )
    if not portable or target == PORTABLE:
        return {target: path}
    return {target: path, PORTABLE: portable_twin(path)}


def _adapter_file(path: Path, adapters: Adapters, precision: Precision) -> list[Path]:
    """The file of what was learned, if it gets one."""
    if adapters == "fold":
        return []
    if precision != "fp32":
        raise ExportError(
            f"adapters for run time and precision={precision!r} do not go together",
            why="the adapters are fp32, and so must be the graph that they are added to",
            remedy="leave precision='fp32', or export with adapters='fold'",
        )
    return [path.with_suffix(SUFFIX)]


def _hand_over(report: ExportReport, aside: Stage, overwrite: bool) -> None:
    """Publish every file, or keep the rejected ones beside under another name and raise."""
    if report.passed:
        aside.publish(leftovers(report.files[0].path), overwrite=overwrite)
        return
    failed = [file for file in report.files if not file.passed]
    kept = [aside.reject(file.path.name, report.to_dict()) for file in failed]
    error = VerificationError(
        f"{len(failed)} of {len(report.files)} exported files failed verification",
        where=", ".join(str(path) for path in kept),
        why="; ".join(problem for file in failed for problem in file.problems),
        remedy="nothing was written to the path asked for; the report lies beside the rejected file",
    )
    error.report = report
    raise error
